"""How far two tensors are apart: exact measures, sketches that stay small, and judging them by tolerances.

Pure numpy; no framework, no backend, no xarray.
"""
