"""Datasets of analyses: columns along one dimension, with units and long names that are said once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NO_LAYER", "OVERLAP", "run_attrs", "share_of", "table", "texts"]

NO_LAYER = "(no layer)"
"""The row of what belongs to no layer."""
OVERLAP = "(overlap)"
"""The row of what concurrent rows count more than once; it is negative, so that rows sum to the whole."""

_UNITS = {
    "arithmetic_intensity": "flop/byte",
    "flops": "flop",
    "roof": "flop/s",
    "throughput": "1/s",
    "achieved_flops": "flop/s",
}
_LONG_NAMES = {
    "achieved_flops": "floating point operations in a second",
    "activation_bytes": "size of the outputs (-1: unknown)",
    "allocated_bytes": "bytes allocated",
    "arithmetic_intensity": "floating point operations for each byte of device memory traffic",
    "calls": "iterations in which it ran",
    "count": "how many there are",
    "dram_read_bytes": "bytes read from device memory",
    "dram_write_bytes": "bytes written to device memory",
    "duration_ns": "duration, median over iterations",
    "exclusive_ns": "duration less what enclosed calls cover, median over iterations",
    "flops": "floating point operations, a multiply-add counting two",
    "high_ns": "upper 95 % bound",
    "kernels": "how many in an iteration",
    "low_ns": "lower 95 % bound",
    "memory_bound": "1: below the ridge of the given peaks, 0: above it, -1: unknown",
    "occupancy": "achieved occupancy, weighted by time",
    "roof": "what the given peaks allow at this arithmetic intensity",
    "share": "share of the whole",
}


def texts(values: Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Return texts as an object array."""
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found


def share_of(values: npt.NDArray[Any], whole: float | None = None) -> npt.NDArray[np.float64]:
    """Return values as shares of their sum, or of the whole that is given; NaN where that is 0 or unknown."""
    total = float(np.nansum(values)) if whole is None else whole
    return values / total if total > 0 else np.full(len(values), np.nan)


def _variable(dims: tuple[str, ...], name: str, values: Any) -> tuple[tuple[str, ...], Any, dict[str, str]]:
    attrs = {"units": schema.units_of(name) or _UNITS.get(name, "1")}
    if name in _LONG_NAMES:
        attrs["long_name"] = _LONG_NAMES[name]
    return dims, values, attrs


def table(
    dim: str,
    labels: Sequence[str] | npt.NDArray[Any],
    columns: Mapping[str, Any],
    *,
    scalars: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return a dataset of columns along one dimension.

    Parameters
    ----------
    dim
        Name of the dimension.
    labels
        Its coordinate, (N,).
    columns
        {name: (N,)}. Units follow from the names.
    scalars
        What holds for the whole.
    attrs
        Of the dataset.
    """
    import xarray as xr

    coordinate = texts(labels) if len(labels) == 0 or isinstance(labels[0], str) else np.asarray(labels)
    return xr.Dataset(
        {
            **{name: _variable((dim,), name, values) for name, values in columns.items()},
            **{name: _variable((), name, value) for name, value in (scalars or {}).items()},
        },
        coords={dim: coordinate},
        attrs=dict(attrs or {}),
    )


def run_attrs(run: xr.DataTree, **more: Any) -> dict[str, Any]:
    """Return what every analysis says of the run that it is of."""
    names = ("run_id", "model", "backend", "device", "batch_size")
    return {**{name: run.attrs[name] for name in names if run.attrs.get(name) is not None}, **more}
