"""Which values of two graphs are the same: pairs across frameworks, layouts and fusion.

Pure: graphs and sketches of values in, pairs out; no framework, no backend.
"""
