"""The critical path: which work, one piece after another, an iteration could not have ended earlier without.

Walked from the end to the start. A kernel waits for the one before it on its stream or for the call that launched it,
whichever is later; a host waits for the kernel that a synchronising call waits for, and else for itself, back to the
start of its thread and of the one that is there before it.

What no trace tells is not guessed: waits between streams (`cudaStreamWaitEvent`) and between threads are not seen, and
time of which nothing is known is "host" without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import sum_by_group
from mlscope_lab.analysis.tables import NO_LAYER, run_attrs, share_of, table, texts
from mlscope_lab.analysis.work import Rows, Work, events_of, layer_labels, work_of
from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["critical_path", "critical_path_by_name"]

KINDS = ("device", "host", "launch", "wait")
_DEVICE, _HOST, _LAUNCH, _WAIT = range(4)
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Host:
    """What happened on the host in the window: calls of the runtime, and operators."""

    start: Ints
    end: Ints
    thread: Ints
    name: npt.NDArray[np.object_]
    layer: Ints
    parent: Ints  # within these arrays


@dataclass(frozen=True, kw_only=True)
class _Device:
    """Kernels in the window, and what each one waited for."""

    start: Ints
    end: Ints
    name: npt.NDArray[np.object_]
    layer: Ints
    before: Ints  # the kernel before it on its stream, -1 for none
    call: Ints  # the call that launched it, -1 if unknown


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """Calls of the runtime in the window."""

    start: Ints
    end: Ints
    thread: Ints
    waits: npt.NDArray[np.bool_]  # synchronising by name


@dataclass(kw_only=True)
class _Path:
    """Pieces from the last to the first: kind, index of the kernel or thread of the host, start, end."""

    pieces: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, kind: int, which: int, start: int, end: int) -> None:
        if end > start:
            self.pieces.append((kind, which, start, end))


def critical_path(run: xr.DataTree, *, iteration: int | None = None) -> xr.Dataset:
    """Find the critical path of one iteration.

    Parameters
    ----------
    run
        A run at level "kernel", or an imported trace; with operators alone the path is that of the host.
    iteration
        Measured iteration of the first pass that holds kernels; default the one of median length. Where none is
        marked, the whole trace is one.

    Returns
    -------
    xarray.Dataset
        Along ``segment``, in order of time and without a gap: ``kind`` ("device": a kernel; "host": an operator or
        call; "launch": from the call to the start of its kernel; "wait": between kernels of a stream), ``name``,
        ``layer``, ``start_ns``, ``duration_ns``. Scalars: ``path_ns`` and its parts ``device_ns``, ``host_ns``,
        ``launch_ns``, ``wait_ns``, which sum to it exactly.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    InputError
        If it has no such iteration.
    """
    work = work_of(run)
    if work.group == schema.COUNTERS:  # ranges of counters follow one another: what they wait for is the measuring
        work = work_of(run, group=schema.OPERATORS)
    window = _window(run, work, iteration)
    threads: dict[str, int] = {}
    device, calls = _device(run, work, window, threads)
    host = _host(run, window, threads)
    path = _walk(device, calls, host, window)
    return _as_dataset(run, work, path, device, host, window)


def critical_path_by_name(run: xr.DataTree, *, iteration: int | None = None) -> xr.Dataset:
    """Sum the critical path by what is on it: kernels, operators, launches and waits.

    Parameters
    ----------
    run, iteration
        As for `critical_path`.

    Returns
    -------
    xarray.Dataset
        Along ``name``, longest first: ``kind``, ``duration_ns`` (sum of its segments), ``share`` of the path, ``count``
        of segments. One name of two kinds (a kernel, and the launches of it) is two rows. The shares sum to 1.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    InputError
        If it has no such iteration.
    """
    path = critical_path(run, iteration=iteration)
    number: dict[tuple[str, str], int] = {}
    pairs = zip(path["kind"].values, path["name"].values, strict=True)
    group = np.array([number.setdefault(pair, len(number)) for pair in pairs], dtype=np.int64)
    total = sum_by_group(path["duration_ns"].values, group, len(number))
    order = np.argsort(-total, kind="stable")
    labels = list(number)
    columns = {
        "kind": texts([labels[i][0] for i in order]), "duration_ns": total[order], "share": share_of(total)[order],
        "count": np.bincount(group, minlength=len(number))[order],
    }  # fmt: skip
    scalars = {str(name): int(value) for name, value in path.data_vars.items() if not value.dims}
    return table("name", texts([labels[i][1] for i in order]), columns, scalars=scalars, attrs=path.attrs)


@dataclass(frozen=True, kw_only=True)
class _Window:
    """One iteration of one pass, and its bounds."""

    of_pass: int
    iteration: int  # -1: no iteration is marked, the whole counts as one
    first: int
    last: int

    def overlapping(self, rows: Rows) -> npt.NDArray[np.intp]:
        """Return which events of the pass happen within the bounds, whatever iteration they belong to."""
        start = rows.column("start_ns")
        inside = (rows.column("pass_index") == self.of_pass) & (start < self.last)
        return np.flatnonzero(inside & (start + rows.column("duration_ns") > self.first))


def _window(run: xr.DataTree, work: Work, iteration: int | None) -> _Window:
    of_pass = int(work.rows.column("pass_index").min())
    groups = [rows for name in (schema.KERNELS, schema.RUNTIME, schema.OPERATORS)
              if (rows := events_of(run, name, of_pass=of_pass)) is not None]  # fmt: skip
    own = work.rows.column("iteration")[work.rows.column("pass_index") == of_pass]
    known = np.unique(own[own >= 0])
    if not len(known):
        if iteration not in (None, 0):
            raise InputError(f"iteration must be 0: no iteration is marked in pass {of_pass}, the whole counts as one")
        return _Window(of_pass=of_pass, iteration=-1, **_bounds(groups, of_pass, -1))
    if iteration is not None and iteration not in known:
        raise InputError(f"iteration must be one of {known[0]} to {known[-1]}, not {iteration}")
    bounds = _of_layers(run, of_pass, known)
    if not bounds:
        bounds = {int(n): _bounds(groups, of_pass, int(n)) for n in (known if iteration is None else [iteration])}
    if iteration is None:
        by_length = sorted(bounds, key=lambda n: bounds[n]["last"] - bounds[n]["first"])
        iteration = by_length[len(by_length) // 2]
    return _Window(of_pass=of_pass, iteration=iteration, **bounds[iteration])


def _of_layers(run: xr.DataTree, of_pass: int, known: npt.NDArray[Any]) -> dict[int, dict[str, int]]:
    """Return the bounds of the iterations where the layers of the pass tell them, else nothing."""
    layers = run.children.get(schema.LAYERS)
    if layers is None:
        return {}
    at = np.flatnonzero(layers.dataset["pass_index"].values == of_pass)
    if len(at) <= int(known[-1]):
        return {}
    begin, length = (layers.dataset[name].values[at] for name in ("iteration_start_ns", "pass_duration_ns"))
    return {int(n): {"first": int(begin[n]), "last": int(begin[n] + length[n])} for n in known}


def _bounds(groups: Sequence[Rows], of_pass: int, iteration: int) -> dict[str, int]:
    """Return the first start and the last end of the events of an iteration."""
    firsts, lasts = [], []
    for rows in groups:
        inside = rows.column("pass_index") == of_pass
        if iteration >= 0:
            inside &= rows.column("iteration") == iteration
        if inside.any():
            start = rows.column("start_ns")[inside]
            firsts.append(int(start.min()))
            lasts.append(int((start + rows.column("duration_ns")[inside]).max()))
    return {"first": min(firsts), "last": max(lasts)}


def _threads(rows: Rows, at: npt.NDArray[np.intp], known: dict[str, int]) -> Ints:
    """Return the threads of some events, numbered alike in every group: each group has a table of its own."""
    number = np.array([known.setdefault(name, len(known)) for name in rows.table("thread")], dtype=np.int64)
    return np.asarray(number[rows.column("thread_code")[at]], dtype=np.int64)


def _device(run: xr.DataTree, work: Work, window: _Window, threads: dict[str, int]) -> tuple[_Device, _Calls]:
    none, names = np.zeros(0, dtype=np.int64), texts([])
    calls = _Calls(start=none, end=none, thread=none, waits=np.zeros(0, dtype=bool))
    if work.group != schema.KERNELS:
        return _Device(start=none, end=none, name=names, layer=none, before=none, call=none), calls
    place = np.full(1, -1, dtype=np.int64)
    rows = events_of(run, schema.RUNTIME, of_pass=window.of_pass)
    if rows is not None:
        # a kernel may have been launched long before the window in which it runs
        of_calls = np.flatnonzero(rows.column("start_ns") < window.last)
        place = np.full(rows.data.sizes["call"] + 1, -1, dtype=np.int64)
        place[of_calls if rows.rows is None else rows.rows[of_calls]] = np.arange(len(of_calls))
        start = rows.column("start_ns")[of_calls]
        names = rows.table("name")
        waits = np.array(["ynchronize" in n or n in {"cudaMemcpy", "hipMemcpy"} for n in names], dtype=bool)
        calls = _Calls(
            start=start, end=start + rows.column("duration_ns")[of_calls],
            thread=_threads(rows, of_calls, threads),
            waits=waits[rows.column("name_code")[of_calls]],
        )  # fmt: skip
    at = window.overlapping(work.rows)
    at = at[np.argsort(work.start[at], kind="stable")]
    lane = (work.rows.column("device")[at].astype(np.int64) << 32) + work.rows.column("stream")[at]
    order = np.argsort(lane, kind="stable")
    before = np.full(len(at), -1, dtype=np.int64)
    same = lane[order][1:] == lane[order][:-1]
    before[order[1:][same]] = order[:-1][same]
    launched = work.rows.column("runtime_index")[at]
    device = _Device(
        start=work.start[at], end=work.start[at] + work.duration[at], name=work.names[work.name[at]],
        layer=work.layer[at].astype(np.int64), before=before,
        call=place[launched] if len(place) > 1 else np.full(len(at), -1, dtype=np.int64),
    )  # fmt: skip
    return device, calls


def _host(run: xr.DataTree, window: _Window, threads: dict[str, int]) -> _Host:
    rows = events_of(run, schema.OPERATORS, of_pass=window.of_pass)
    at = np.zeros(0, dtype=np.intp) if rows is None else window.overlapping(rows)
    if rows is None or not len(at):
        none = np.zeros(0, dtype=np.int64)
        return _Host(start=none, end=none, thread=none, name=texts([]), layer=none, parent=none)
    own = at if rows.rows is None else rows.rows[at]
    place = np.full(rows.data.sizes["operator"] + 1, -1, dtype=np.int64)
    place[own] = np.arange(len(own))
    start = rows.column("start_ns")[at]
    return _Host(
        start=start, end=start + rows.column("duration_ns")[at], name=rows.table("name")[rows.column("name_code")[at]],
        thread=_threads(rows, at, threads), layer=rows.column("layer_index")[at].astype(np.int64),
        parent=place[rows.column("parent_index")[at]],
    )  # fmt: skip


def _walk(device: _Device, calls: _Calls, host: _Host, window: _Window) -> _Path:
    """Walk from the end of the window to its start."""
    path, first, now = _Path(), window.first, window.last
    starts, ends, before, call = (v.tolist() for v in (device.start, device.end, device.before, device.call))
    call_end, call_thread = calls.end.tolist(), calls.thread.tolist()
    kernel_of = _waited_for(device, calls)
    waiting = {int(t): _Waits.of(calls, kernel_of, int(t)) for t in np.unique(calls.thread[kernel_of >= 0])}
    kernel, thread = -1, _last_thread(calls, host, now)
    done = np.where(device.end <= now, device.end, first)
    busy = max((int(np.minimum(e.end, now).max()) for e in (calls, host) if len(e.end)), default=first)
    if len(done) and int(done.max()) >= busy:
        # nothing on the host was seen to wait for the last kernel: what follows it is the host's all the same
        kernel = int(np.argmax(done))
        path.add(_HOST, thread, ends[kernel], now)
        now = ends[kernel]
    seen: set[int] = set()
    while now > first:
        if kernel < 0:  # on the host, until the call that waited for a kernel
            found = waiting[thread].latest(now) if thread in waiting else -1
            if found < 0 or found in seen or ends[found] <= first:
                path.add(_HOST, thread, first, now)
                break
            path.add(_HOST, thread, ends[found], now)
            kernel, now = found, ends[found]
            continue
        seen.add(kernel)
        begin = max(min(starts[kernel], now), first)
        path.add(_DEVICE, kernel, begin, now)
        now, previous, by = begin, before[kernel], call[kernel]
        launched = min(call_end[by], now) if by >= 0 else -1
        if previous >= 0 and ends[previous] >= launched:
            reached = max(min(ends[previous], now), first)
            path.add(_WAIT, kernel, reached, now)
            kernel, now = previous, reached
        else:
            reached = max(launched, first) if by >= 0 else now
            path.add(_LAUNCH, kernel, reached, now)
            kernel, now, thread = -1, reached, call_thread[by] if by >= 0 else _last_thread(calls, host, now)
    return path


@dataclass(frozen=True, kw_only=True)
class _Waits:
    """Calls of one thread that waited for a kernel, in order of when that ended."""

    ends: Ints
    kernels: Ints

    @classmethod
    def of(cls, calls: _Calls, kernel_of: Ints, thread: int) -> _Waits:
        at = np.flatnonzero((kernel_of >= 0) & (calls.thread == thread))
        at = at[np.argsort(calls.end[at], kind="stable")]
        return cls(ends=calls.end[at], kernels=kernel_of[at])

    def latest(self, now: int) -> int:
        """Return the kernel that the last call before `now` waited for, -1 for none."""
        at = int(np.searchsorted(self.ends, now, side="right")) - 1
        return int(self.kernels[at]) if at >= 0 else -1


def _waited_for(device: _Device, calls: _Calls) -> Ints:
    """Return the kernel whose end each call waited for, -1 for none."""
    found = np.full(len(calls.start), -1, dtype=np.int64)
    if not len(device.end) or not len(found):
        return found
    order = np.argsort(device.end, kind="stable")
    ordered = device.end[order]
    at = np.searchsorted(ordered, calls.end, side="right") - 1
    inside = calls.waits & (at >= 0) & (ordered[np.maximum(at, 0)] > calls.start)
    found[inside] = order[at[inside]]
    # a copy from memory that is not pinned returns when it is done, whatever the call is named
    own = np.flatnonzero(device.call >= 0)
    done = own[device.end[own] <= calls.end[device.call[own]]]
    found[device.call[done]] = done
    return found


def _last_thread(calls: _Calls, host: _Host, now: int) -> int:
    """Return the thread on which something happened last before `now`, -1 if nothing did."""
    best, thread = -1, -1
    for events in (host, calls):
        inside = np.flatnonzero(events.start < now)
        if len(inside):
            at = inside[np.argmax(np.minimum(events.end[inside], now))]
            if int(events.end[at]) > best:
                best, thread = int(events.end[at]), int(events.thread[at])
    return thread


def _innermost(host: _Host, thread: int) -> tuple[Ints, Ints]:
    """Return times, and which operator of a thread is the innermost from each of them on, -1 for none."""
    at = np.flatnonzero((host.thread == thread) & (host.end > host.start))
    start, end, parent = host.start[at], host.end[at], host.parent[at]
    parent = np.where((parent >= 0) & (host.thread[parent] == thread), parent, -1)
    times = np.concatenate([end, start])
    active = np.concatenate([parent, at])
    begins = np.repeat([0, 1], len(at))
    # at one time ends come first, the inner one before the outer; then starts, the outer one first
    order = np.lexsort((np.concatenate([-start, -end]), begins, times))
    return times[order], active[order]


def _host_pieces(host: _Host, thread: int, start: int, end: int, known: dict[int, tuple[Ints, Ints]]) -> list[Any]:
    """Cut a time on the host at its operators: (operator or -1, start, end)."""
    if thread not in known:
        known[thread] = _innermost(host, thread)
    times, active = known[thread]
    low, high = np.searchsorted(times, [start, end], side="right")
    cuts = [start, *times[low:high].tolist(), end]
    on = [int(active[low - 1]) if low else -1, *active[low:high].tolist()]
    return [(o, a, b) for o, a, b in zip(on, cuts[:-1], cuts[1:], strict=True) if b > a]


def _as_dataset(run: xr.DataTree, work: Work, path: _Path, device: _Device, host: _Host, window: _Window) -> xr.Dataset:
    known: dict[int, tuple[Ints, Ints]] = {}
    rows: list[tuple[int, str, int, int, int]] = []
    beginnings = {int(t): int(host.start[host.thread == t].min()) for t in np.unique(host.thread)}
    first_thread = min(beginnings, key=lambda t: beginnings[t], default=-1)
    for kind, which, start, end in reversed(path.pieces):
        if kind != _HOST:
            rows.append((kind, device.name[which], int(device.layer[which]), start, end))
            continue
        # before a thread's first event it waited for the one that was there before it
        change = min(max(beginnings.get(which, end), start), end)
        for thread, a, b in ((first_thread, start, change), (which, change, end)):
            if b > a:
                rows += [
                    (_HOST, host.name[o] if o >= 0 else "", int(host.layer[o]) if o >= 0 else -1, x, y)
                    for o, x, y in _host_pieces(host, thread, a, b, known)
                ]
    labels = layer_labels(run)
    kinds = np.array([row[0] for row in rows], dtype=np.intp)
    start_ns, end_ns = (np.array([row[i] for row in rows], dtype=np.int64) for i in (3, 4))
    duration = end_ns - start_ns
    columns = {
        "kind": texts(KINDS)[kinds], "name": texts([row[1] for row in rows]),
        "layer": texts([labels[row[2]] if row[2] >= 0 else NO_LAYER for row in rows]),
        "start_ns": start_ns, "duration_ns": duration,
    }  # fmt: skip
    scalars = {"path_ns": window.last - window.first}
    scalars |= {f"{name}_ns": int(duration[kinds == code].sum()) for code, name in enumerate(KINDS)}
    return table("segment", np.arange(len(rows)), columns, scalars=scalars,
                 attrs=run_attrs(run, source=work.source, level=work.rows.level,
                                 iteration=window.iteration if window.iteration >= 0 else "the whole"))  # fmt: skip
