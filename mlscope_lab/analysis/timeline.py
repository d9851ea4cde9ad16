"""How busy each stream is along time, in as many steps as a picture has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.device import lanes_of, working
from mlscope_lab.analysis.intervals import merge
from mlscope_lab.analysis.tables import run_attrs
from mlscope_lab.analysis.work import work_of
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["busy_timeline"]

Ints = npt.NDArray[np.int64]


def busy_timeline(run: xr.DataTree, *, steps: int = 400) -> xr.Dataset:
    """Return the busy time of each stream along time.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace; of the passes that trace least the first one.
    steps
        Pieces of equal length that the time from the first start to the last end is cut into.

    Returns
    -------
    xarray.Dataset
        Along ``stream`` (labels) and ``step``: ``busy_ns`` (union of the kernels' intervals within the piece) and
        ``busy_share`` of it; along ``step``: ``start_ns`` and ``length_ns`` of the piece. Summed over the steps the
        busy time is that of `mlscope_lab.analysis.device.stream_utilization`, exactly.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    InputError
        If there is no step.
    """
    import xarray as xr

    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    work = work_of(run)
    lanes = lanes_of(work)
    first_pass = int(lanes.pass_index.min())
    of = np.flatnonzero(lanes.pass_index == first_pass)
    chosen = working(work) & (lanes.pass_index[lanes.lane] == first_pass)
    lane, start, length = lanes.lane[chosen], work.start[chosen], work.length[chosen]
    begin, end = (int(start.min()), int((start + length).max())) if len(start) else (0, 1)
    # integers, so that the pieces tile the whole
    edges = begin + (end - begin) * np.arange(steps + 1, dtype=np.int64) // steps
    order = np.argsort(lane, kind="stable")
    lane, start, length = lane[order], start[order], length[order]
    bounds = np.searchsorted(lane, np.stack([of, of + 1]))
    busy = np.array([_reached(start[a:b], length[a:b], edges) for a, b in bounds.T])
    busy = np.diff(busy, axis=1)
    lengths = np.diff(edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(lengths > 0, busy / lengths, 0.0)
    return xr.Dataset(
        {
            "busy_ns": (("stream", "step"), busy, {"units": "ns"}),
            "busy_share": (("stream", "step"), share, {"units": "1"}),
            "start_ns": ("step", edges[:-1], {"units": "ns"}),
            "length_ns": ("step", lengths, {"units": "ns"}),
        },
        coords={"stream": lanes.labels(work)[of], "step": np.arange(steps)},
        attrs=run_attrs(run, source=work.source, level=work.rows.level, pass_index=first_pass),
    )


def _reached(start: Ints, duration: Ints, edges: Ints) -> Ints:
    """Return for how long the intervals have lasted, together, up to each edge."""
    begin, end = merge(start, duration)
    if not len(begin):
        return np.zeros(len(edges), dtype=np.int64)
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(end - begin)])
    at = np.searchsorted(begin, edges, side="right") - 1
    inside = np.maximum(at, 0)
    running = np.clip(edges - begin[inside], 0, (end - begin)[inside])
    return np.asarray(np.where(at >= 0, before[inside] + running, 0), dtype=np.int64)
