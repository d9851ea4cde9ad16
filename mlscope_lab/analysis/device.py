"""What a device does over time: kinds of kernels, busy and idle time, and what the idle time waits for.

Everything is exact: int64 nanoseconds, no step of a trace left out, none rounded. A run without device kernels is
analysed as far as it goes, on counter ranges or on operators, whose threads take the place of streams;
``attrs["source"]`` says so.

References
----------
HolisticTraceAnalysis, whose terms these are: "host wait" and "kernel wait" as in its idle time breakdown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import sum_by_group, union_by_group
from mlscope_lab.analysis.tables import run_attrs, share_of, table, texts
from mlscope_lab.analysis.work import KINDS, Work, work_of
from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Lanes", "communication_overlap", "idle_breakdown", "kernel_breakdown", "kernel_kinds", "lanes_of",
           "stream_utilization", "temporal_breakdown", "working"]  # fmt: skip

_COMPUTE, _COMMUNICATION, _MEMORY, _SYNCHRONISATION = range(4)
KERNEL_DELAY_NS = 30
"""Idle time shorter than this, between kernels that were launched early enough, is the device's own: HTA's default."""


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Streams of devices, by pass; on a host, threads.

    Attributes
    ----------
    lane
        (N,) the lane of each entry.
    pass_index, device, stream
        (L,) what makes a lane; the stream of a host is the code of its thread, its device -1.
    """

    lane: npt.NDArray[np.int64]
    pass_index: npt.NDArray[np.int64]
    device: npt.NDArray[np.int64]
    stream: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stream)

    def labels(self, work: Work) -> npt.NDArray[np.object_]:
        """Return a label a lane, such as "device 0 stream 7" or "thread 4037/4037"."""
        if work.group == schema.OPERATORS:
            threads = work.rows.table("thread")
            return texts([f"thread {threads[code] or '?'}" for code in self.stream])
        return texts([f"device {d} stream {s}" for d, s in zip(self.device, self.stream, strict=True)])


def lanes_of(work: Work) -> Lanes:
    """Return the streams, or threads, of some work."""
    n = len(work)
    parts = [work.rows.column("pass_index").astype(np.int64)]
    if work.group == schema.KERNELS:
        parts += [work.rows.column("device").astype(np.int64), work.rows.column("stream").astype(np.int64)]
    elif work.group == schema.OPERATORS:
        parts += [np.full(n, -1, dtype=np.int64), work.rows.column("thread_code").astype(np.int64)]
    else:
        parts += [np.full(n, -1, dtype=np.int64)] * 2
    key = np.zeros(n, dtype=np.int64)
    bases = []
    for values in parts:
        low, high = int(values.min()), int(values.max())
        bases.append((low, high - low + 1))
        key = key * bases[-1][1] + (values - low)
    size = int(np.prod([width for _, width in bases], dtype=np.float64))
    if size <= 1 << 20:  # most traces: a table of all possible lanes is quicker than sorting
        used = np.flatnonzero(np.bincount(key, minlength=size))
        place = np.zeros(size, dtype=np.int64)
        place[used] = np.arange(len(used))
        lane = place[key]
    else:
        used, lane = np.unique(key, return_inverse=True)
    decoded, rest = [], used
    for low, width in reversed(bases):
        decoded.append(rest % width + low)
        rest = rest // width
    stream, device, pass_index = decoded
    return Lanes(lane=lane, pass_index=pass_index, device=device, stream=stream)


def _attrs(run: xr.DataTree, work: Work, **more: Any) -> dict[str, Any]:
    return run_attrs(run, source=work.source, level=work.rows.level, **more)


def working(work: Work) -> npt.NDArray[np.bool_]:
    """Tell of each entry whether something is done in it, not waited for."""
    return np.asarray(work.kind != _SYNCHRONISATION)


def kernel_breakdown(run: xr.DataTree) -> xr.Dataset:
    """Sum the kernels of the whole run by kind and name.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace.

    Returns
    -------
    xarray.Dataset
        Along ``kernel`` (names, of operators types where the tool tells them), longest first: ``kind`` ("compute",
        "communication", "memory" or "synchronisation"), ``count``, ``total_ns``, ``share`` of all, ``minimum_ns``,
        ``maximum_ns``, ``mean_ns``, ``deviation_ns``. Sums, not unions: kernels that run at once count each. Iterations
        are not told apart; warm-up counts, if traced.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    duration = work.duration
    kinds = len(KINDS)
    names, labels = work.groups
    group = names * kinds + work.kind
    groups = len(labels) * kinds
    count = np.bincount(group, minlength=groups)
    rows = np.flatnonzero(count)
    place = np.zeros(groups, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    at, n = place[group], len(rows)
    total = sum_by_group(duration, at, n)
    least, most = np.full(n, np.iinfo(np.int64).max), np.zeros(n, dtype=np.int64)
    np.minimum.at(least, at, duration)
    np.maximum.at(most, at, duration)
    mean = total / count[rows]
    squares = sum_by_group((duration - mean[at]) ** 2, at, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = np.where(count[rows] > 1, np.sqrt(squares / (count[rows] - 1)), 0.0)
    order = np.argsort(-total, kind="stable")
    columns = {
        "kind": texts(KINDS)[rows % kinds], "count": count[rows], "total_ns": total, "share": share_of(total),
        "minimum_ns": least, "maximum_ns": most, "mean_ns": mean, "deviation_ns": deviation,
    }  # fmt: skip
    return table("kernel", labels[rows // kinds][order], {name: v[order] for name, v in columns.items()},
                 attrs=_attrs(run, work))  # fmt: skip


def kernel_kinds(run: xr.DataTree) -> xr.Dataset:
    """Sum the kernels of the whole run by kind: computing, communicating, moving memory.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace.

    Returns
    -------
    xarray.Dataset
        Along ``kind``: ``count``, ``total_ns`` (sum of durations), ``busy_ns`` (their union by device, in which what
        runs at once counts once), ``share`` of the sum.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    kind = work.kind.astype(np.int64)
    lanes = lanes_of(work)
    device, devices, _ = _devices(lanes)
    union = union_by_group(work.start, work.length, kind * devices + device[lanes.lane], len(KINDS) * devices)
    total = sum_by_group(work.duration, kind, len(KINDS))
    columns = {
        "count": np.bincount(kind, minlength=len(KINDS)), "total_ns": total,
        "busy_ns": union.reshape(len(KINDS), devices).sum(axis=1), "share": share_of(total),
    }  # fmt: skip
    rows = np.flatnonzero(columns["count"])
    return table("kind", texts(KINDS)[rows], {name: v[rows] for name, v in columns.items()}, attrs=_attrs(run, work))


def _devices(lanes: Lanes) -> tuple[npt.NDArray[np.int64], int, npt.NDArray[np.intp]]:
    """Return the number of each lane's device (of its pass), how many there are, and a lane of each."""
    pairs = np.stack([lanes.pass_index, lanes.device], axis=1)
    _, first, number = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    return number.reshape(-1).astype(np.int64), len(first), first


def _spans(
    start: npt.NDArray[np.int64], length: npt.NDArray[np.int64], group: npt.NDArray[np.int64], groups: int
) -> npt.NDArray[np.int64]:
    """Return the time from the first start to the last end of each group, 0 for an empty one."""
    inside = group >= 0
    first, last = np.full(groups, np.iinfo(np.int64).max), np.full(groups, np.iinfo(np.int64).min)
    np.minimum.at(first, group[inside], start[inside])
    np.maximum.at(last, group[inside], (start + length)[inside])
    used = last >= first
    return np.where(used, np.where(used, last, 0) - np.where(used, first, 0), 0)


def temporal_breakdown(run: xr.DataTree) -> xr.Dataset:
    """Split the time of each device: computing, busy with something else, idle.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace.

    Returns
    -------
    xarray.Dataset
        Along ``device``, one row a device and pass: ``pass_index``, ``span_ns`` (first start to last end),
        ``busy_ns`` (union of all kernels), ``compute_ns`` (union of computing ones), ``non_compute_ns`` (busy, but not
        computing), ``idle_ns`` (span less busy), and the shares of the span ``compute_share``, ``non_compute_share``
        and ``idle_share``. Compute, non-compute and idle sum to the span, exactly.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    lanes = lanes_of(work)
    device, devices, first = _devices(lanes)
    of, length, kind = device[lanes.lane], work.length, work.kind
    everything = np.where(kind == _SYNCHRONISATION, -1, of)
    busy = union_by_group(work.start, length, everything, devices)
    compute = union_by_group(work.start, length, np.where(kind == _COMPUTE, of, -1), devices)
    span = _spans(work.start, length, everything, devices)
    columns: dict[str, Any] = {
        "pass_index": lanes.pass_index[first], "span_ns": span, "busy_ns": busy, "compute_ns": compute,
        "non_compute_ns": busy - compute, "idle_ns": span - busy,
    }  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        for name in ("compute", "non_compute", "idle"):
            columns[f"{name}_share"] = columns[f"{name}_ns"] / np.where(span > 0, span, np.nan)
    return table("device", lanes.device[first], columns, attrs=_attrs(run, work))


def stream_utilization(run: xr.DataTree) -> xr.Dataset:
    """Return how busy each stream is.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace.

    Returns
    -------
    xarray.Dataset
        Along ``stream`` (labels, such as "device 0 stream 7"): ``pass_index``, ``device_number``, ``stream_number``,
        ``kernels``, ``span_ns`` (from its first start to its last end), ``busy_ns`` (union), ``idle_ns`` (the rest) and
        ``busy_share`` of the span.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    lanes = lanes_of(work)
    chosen = working(work)
    lane, start, length = lanes.lane[chosen], work.start[chosen], work.length[chosen]
    busy = union_by_group(start, length, lane, len(lanes))
    count = np.bincount(lane, minlength=len(lanes))
    span = _spans(start, length, lane, len(lanes))
    columns = {
        "pass_index": lanes.pass_index, "device_number": lanes.device, "stream_number": lanes.stream,
        "kernels": count, "span_ns": span, "busy_ns": busy, "idle_ns": span - busy,
        "busy_share": busy / np.where(span > 0, span, np.nan),
    }  # fmt: skip
    return table("stream", lanes.labels(work), columns, attrs=_attrs(run, work))


def idle_breakdown(run: xr.DataTree, *, kernel_delay_ns: int = KERNEL_DELAY_NS) -> xr.Dataset:
    """Tell what each stream waits for while it is idle.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace.
    kernel_delay_ns
        A gap shorter than this between kernels launched early enough is the device's own.

    Returns
    -------
    xarray.Dataset
        Along ``stream`` (labels): ``pass_index``, ``idle_ns`` (gaps between its kernels), and what they are:
        ``host_wait_ns`` (the next kernel was launched after the stream fell idle), ``kernel_wait_ns`` (it was launched
        in time, and the gap is shorter than the delay) and ``other_ns`` (launched in time, yet the gap is longer, or
        its launch is unknown); these sum to ``idle_ns``. ``gaps`` counts them, ``unknown_launches`` the kernels whose
        launch was not recorded.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    InputError
        If the delay is negative.

    Notes
    -----
    A stream is idle once all earlier kernels have ended, so that kernels which overlap within a stream make no
    negative gap, as they do in HolisticTraceAnalysis.
    """
    if kernel_delay_ns < 0:
        raise InputError(f"kernel_delay_ns must not be negative, but is {kernel_delay_ns}")
    work = work_of(run)
    lanes = lanes_of(work)
    chosen = working(work)
    lane, start, length = lanes.lane[chosen], work.start[chosen], work.length[chosen]
    launch = _launches(run, work)[chosen]
    order = _by_lane(lane, start)
    lane, start, length, launch = lane[order], start[order], length[order], launch[order]
    # lanes lie one after another on a line of their own, each moved beyond the end of the one before
    first = np.concatenate([np.ones(1, dtype=bool), lane[1:] != lane[:-1]])
    begins = np.flatnonzero(first)
    ends = np.append(begins[1:], len(lane))
    origin = start[begins]
    reach_of = np.maximum.reduceat(start + length, begins)
    shift = np.cumsum(np.append(0, (reach_of - origin)[:-1])) - origin
    moved = np.repeat(shift, ends - begins)
    begin = start + moved
    reach = np.maximum.accumulate(begin + length)
    before = np.concatenate([begin[:1], reach[:-1]])
    gap = np.where(first, 0, np.maximum(begin - before, 0))
    known = launch >= 0
    late = known & (launch + moved > before)
    kinds = np.where(late, 0, np.where(known & (gap < kernel_delay_ns), 1, 2))
    sums = sum_by_group(gap, lane * 3 + kinds, len(lanes) * 3).reshape(-1, 3)
    columns = {
        "pass_index": lanes.pass_index, "idle_ns": sums.sum(axis=1), "host_wait_ns": sums[:, 0],
        "kernel_wait_ns": sums[:, 1], "other_ns": sums[:, 2], "gaps": np.bincount(lane[gap > 0], minlength=len(lanes)),
        "unknown_launches": np.bincount(lane[~known], minlength=len(lanes)),
    }  # fmt: skip
    return table("stream", lanes.labels(work), columns, attrs=_attrs(run, work, kernel_delay_ns=kernel_delay_ns))


def _launches(run: xr.DataTree, work: Work) -> npt.NDArray[np.int64]:
    """Return when the call began that launched each kernel, -1 where that was not recorded."""
    calls = run.children.get(schema.RUNTIME)
    if work.group != schema.KERNELS or calls is None or not calls.dataset.sizes.get("call"):
        return np.full(len(work), -1, dtype=np.int64)
    starts = np.append(calls.dataset["start_ns"].values, np.int64(-1))
    return np.asarray(starts[work.rows.column("runtime_index")], dtype=np.int64)


def _by_lane(lane: npt.NDArray[np.int64], start: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return the order by lane, then by start."""
    if len(start) < 2 or bool((start[1:] >= start[:-1]).all()):
        order = None
    else:
        order = np.argsort(start, kind="stable")
    small = lane.astype(np.int16) if lane.max(initial=0) < 1 << 15 else lane  # 16 bits are sorted by radix
    if order is None:
        return np.argsort(small, kind="stable")
    return order[np.argsort(small[order], kind="stable")]


def communication_overlap(run: xr.DataTree) -> xr.Dataset:
    """Tell how much of the communication computing hides.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace.

    Returns
    -------
    xarray.Dataset
        Along ``device``, one row a device and pass: ``pass_index``, ``communication_ns`` and ``compute_ns`` (unions),
        ``overlap_ns`` (both at once), ``exposed_ns`` (communication alone) and ``overlap_share`` of the communication,
        NaN without any.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    lanes = lanes_of(work)
    device, devices, first = _devices(lanes)
    of, kind = device[lanes.lane], work.kind

    def union(*kinds: int) -> npt.NDArray[np.int64]:
        return union_by_group(work.start, work.length, np.where(np.isin(kind, kinds), of, -1), devices)

    communication, compute = union(_COMMUNICATION), union(_COMPUTE)
    overlap = communication + compute - union(_COMMUNICATION, _COMPUTE)
    columns = {
        "pass_index": lanes.pass_index[first], "communication_ns": communication, "compute_ns": compute,
        "overlap_ns": overlap, "exposed_ns": communication - overlap,
        "overlap_share": overlap / np.where(communication > 0, communication, np.nan),
    }  # fmt: skip
    return table("device", lanes.device[first], columns, attrs=_attrs(run, work))
