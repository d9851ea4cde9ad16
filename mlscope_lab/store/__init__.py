"""Runs on disk: one Zarr folder a run, an SQLite index that can always be rebuilt, exports to NetCDF and Parquet."""

from __future__ import annotations

from mlscope_lab.store.runs import Store
from mlscope_lab.trace.build import new_run_id

__all__ = ["Store", "new_run_id"]
