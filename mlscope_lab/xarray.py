"""Import for the `.mlscope` accessor on trees that come from elsewhere: ``import mlscope_lab.xarray``."""

from __future__ import annotations

from mlscope_lab.trace.accessor import RunAccessor, ensure_registered

__all__ = ["RunAccessor"]

ensure_registered()
