"""Layers: what each call site costs, and what the layers leave unexplained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.statistics import median_bounds
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["layer_times", "shallowest_pass", "slowest_layers"]

_TEXT = ("type", "scope", "parent", "depth", "input_shapes", "output_shapes", "parameter_bytes", "activation_bytes",
         "sources")  # fmt: skip


def _union_ns(start: npt.NDArray[np.int64], duration: npt.NDArray[np.int64]) -> int:
    """Return the length of the union of intervals."""
    order = np.argsort(start, kind="stable")
    begin, end = start[order], start[order] + duration[order]
    reach = np.maximum.accumulate(end)
    # a piece is new only beyond what the intervals before it have reached
    before = np.concatenate([begin[:1], reach[:-1]])
    return int(np.clip(end - np.maximum(begin, before), 0, None).sum())


def shallowest_pass(run: xr.DataTree) -> xr.Dataset:
    """Return ``/layers`` of the passes that trace least: what a deeper one costs would count to its layers.

    Parameters
    ----------
    run
        A run with layers.

    Returns
    -------
    xarray.Dataset
        As ``/layers``, the rows of one level only.
    """
    data = run[schema.LAYERS].to_dataset()
    if schema.PASSES not in run.children or not data.sizes["layer_iteration"]:
        return data
    depth = np.array([schema.LEVELS.index(level) for level in run[schema.PASSES].to_dataset()["level"].values])
    of_rows = depth[data["pass_index"].values]
    if (of_rows == of_rows[0]).all():
        return data
    return data.isel(layer_iteration=np.flatnonzero(of_rows == of_rows.min()))


def layer_times(run: xr.DataTree) -> xr.Dataset:
    """Summarise the layer pass of a run.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``layer`` (label coordinate), in order of first start: ``duration_ns`` (inclusive) and ``exclusive_ns``,
        medians over the traced iterations in which the layer ran, with 95 % bounds ``exclusive_low_ns`` and
        ``exclusive_high_ns``; ``share`` (exclusive time over the pass's); ``calls`` (iterations in which it ran), and
        the describing columns of ``/layers``. Scalars, medians over iterations: ``pass_ns`` (the traced predict),
        ``covered_ns`` (union of the root layers' intervals), ``unattributed_ns`` (the pass less that, belonging to no
        layer) and ``overlap_ns`` (what concurrent layers counted twice). They are rows of their own and never spread.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    import xarray as xr

    if schema.LAYERS not in run.children:
        reason = run.attrs.get("unavailable", {}).get("layers", "it was recorded at level 'model'")
        raise SchemaError(
            f"Run {run.attrs.get('run_id', '?')} has no layers: {reason}. Profile again with level='layer'."
        )
    data = shallowest_pass(run)
    start, duration, exclusive = (data[name].values for name in ("start_ns", "duration_ns", "exclusive_ns"))
    ran = start >= 0
    whole = data["pass_duration_ns"].values
    covered, overlap = _coverage(start, duration, exclusive, ran)
    columns = {name: np.full(duration.shape[1], np.nan) for name in ("duration", "exclusive", "low", "high")}
    if ran.all() and len(whole):
        columns["duration"], columns["exclusive"] = np.median(duration, axis=0), np.median(exclusive, axis=0)
        columns["low"], columns["high"] = median_bounds(exclusive)
    else:
        for index in np.flatnonzero(ran.any(axis=0)):
            seen = ran[:, index]
            columns["duration"][index] = np.median(duration[seen, index])
            columns["exclusive"][index] = np.median(exclusive[seen, index])
            columns["low"][index], columns["high"][index] = median_bounds(exclusive[seen, index])
    # a layer that runs in some iterations only counts in proportion
    with np.errstate(invalid="ignore"):
        shares = np.where(ran, exclusive, 0) / np.where(whole > 0, whole, 1)[:, None]
    units = {"units": "ns"}
    described: dict[str, Any] = {name: ("layer", data[name].values, data[name].attrs) for name in _TEXT}
    return xr.Dataset(
        {
            "duration_ns": ("layer", columns["duration"], units),
            "exclusive_ns": ("layer", columns["exclusive"], units),
            "exclusive_low_ns": ("layer", columns["low"], units),
            "exclusive_high_ns": ("layer", columns["high"], units),
            "share": ("layer", np.median(shares, axis=0) if len(whole) else columns["duration"], {"units": "1"}),
            "calls": ("layer", ran.sum(axis=0)),
            **described,
            "pass_ns": ((), _median(whole), units),
            "covered_ns": ((), _median(covered), units),
            "unattributed_ns": ((), _median(np.maximum(whole - covered, 0)), units),
            "overlap_ns": ((), _median(overlap), units),
        },
        coords={"layer": data["name"].values},
        attrs={"backend": run.attrs.get("backend"), "model": run.attrs.get("model"), "confidence": 0.95},
    )


def _median(values: npt.NDArray[Any]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _coverage(
    start: npt.NDArray[np.int64], duration: npt.NDArray[np.int64], exclusive: npt.NDArray[np.int64],
    ran: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # fmt: skip
    """Return, for each iteration, the union of all layers' intervals and what they count more than once."""
    covered = np.zeros(len(start), dtype=np.int64)
    overlap = np.zeros(len(start), dtype=np.int64)
    for i in range(len(start)):
        seen = ran[i]
        if seen.any():
            covered[i] = _union_ns(start[i, seen], duration[i, seen])
            overlap[i] = max(0, int(exclusive[i, seen].sum()) - covered[i])
    return covered, overlap


def slowest_layers(run: xr.DataTree, n: int = 5) -> xr.Dataset:
    """Return the n layers with the largest exclusive time, slowest first (see `layer_times`)."""
    table = layer_times(run)
    order = np.argsort(-np.nan_to_num(table["exclusive_ns"].values), kind="stable")[:n]
    return table.isel(layer=order)
