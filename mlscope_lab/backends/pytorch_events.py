"""From the columns of a Kineto trace to the groups of a run, each event with its iteration, layer and launch.

Host work belongs to the layer that was running on its thread when it began. Work of a backward pass in a thread of its
own belongs to the layer of its forward operator. Device work belongs to the layer of its launch, never of its own time.
What has no such layer keeps -1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_kineto import DEVICE_WORK, Allocations, TraceColumns
from mlscope_lab.trace.attribution import enclosing, iteration_at, launches, nest
from mlscope_lab.trace.records import EventTable

__all__ = ["MARK_PREFIX", "Frame", "event_tables", "is_operator"]

_INT = npt.NDArray[np.int64]
_INDEX = npt.NDArray[np.int32]

MARK_PREFIX = "mlscope::"
"""What the names of our own marks begin with; they are no operators of the model."""
_INSTANTS = ("[memory]", "[OutOfMemory]")
_RANGES = ("user_annotation", "gpu_user_annotation", "overhead")
_COUNTERS = "cuda_profiler_range"
_NO_COUNTERS = frozenset({"External id", "context", "correlation", "device", "queued", "stream"})
_DETAILS = {
    # argument in a Kineto trace: column, or columns of its three members
    "grid": ("grid_x", "grid_y", "grid_z"),
    "block": ("block_x", "block_y", "block_z"),
    "registers per thread": ("registers",),
    "shared memory": ("shared_memory_bytes",),
    "est. achieved occupancy %": ("occupancy",),
    "bytes": ("size_bytes",),
    "context": ("context",),
}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Iterations and layers on the clock of the trace.

    Attributes
    ----------
    start_ns, duration_ns, thread, layer
        (C,) every call of a layer: its time, its thread, its row in the layer table.
    iteration_start_ns, iteration_duration_ns
        (I,) the measured predicts, in order.
    offset_ns
        What to add for `perf_counter_ns`.
    """

    start_ns: _INT
    duration_ns: _INT
    thread: _INT
    layer: _INDEX
    iteration_start_ns: _INT
    iteration_duration_ns: _INT
    offset_ns: int = 0

    def layer_at(self, times: _INT, threads: _INT) -> _INDEX:
        """Return the innermost layer at points of time on threads, -1 for none."""
        call = enclosing(times, threads, self.start_ns, self.duration_ns, self.thread)
        return np.append(self.layer, np.int32(-1))[call]

    def iteration_at(self, times: _INT) -> _INDEX:
        """Return the iteration at points of time, -1 for none."""
        return iteration_at(times, self.iteration_start_ns, self.iteration_duration_ns)


@dataclass(kw_only=True)
class _Work:
    """The operators of a trace as they are laid out: which rows they are, and what they belong to."""

    rows: npt.NDArray[np.intp]
    parent: _INDEX
    layer: _INDEX
    iteration: _INDEX
    place: _INDEX = field(default_factory=lambda: np.zeros(0, dtype=np.int32))


def event_tables(
    columns: TraceColumns, frame: Frame, *, memory: Allocations | None = None, process: int | None = None
) -> dict[str, EventTable]:
    """Lay the events of a trace out.

    Parameters
    ----------
    columns
        The trace.
    frame
        Its iterations and layers.
    memory
        Its allocations, if they were recorded.
    process
        Number of the process, for the names of threads; this one's by default.

    Returns
    -------
    dict
        {group: events}. "operators" always, "annotations" where there are any, "memory" if given; "runtime",
        "kernels", "links" and "counters" where the trace holds work of a device.
    """
    process = os.getpid() if process is None else process
    order = _in_order(columns)
    rows = order[is_operator(columns)[order]]
    work = _work(columns, frame, rows)
    tables = {"operators": _operators(columns, frame, work, process)}
    annotations = order[(columns.of(*_RANGES) & ~columns.named(lambda name: name.startswith(MARK_PREFIX)))[order]]
    if len(annotations):
        tables["annotations"] = _annotations(columns, frame, annotations, process)
    if memory is not None:
        tables["memory"], allocated = _memory(columns, frame, work, memory)
        tables["operators"] = _with(tables["operators"], allocated_bytes=allocated)
    links = [_backward_links(columns, work)]
    calls = order[columns.of(*(c for c in columns.categories if c.endswith(("_runtime", "_driver"))))[order]]
    device = order[columns.of(*DEVICE_WORK)[order]]
    counters = order[columns.of(_COUNTERS)[order]]
    if len(calls) or len(device) or len(counters):
        runtime_operator = _operator_of(columns, work, calls)
        runtime_layer = _layer_of_call(columns, frame, work, calls, runtime_operator)
        tables["runtime"] = _runtime(columns, frame, calls, runtime_operator, process)
        tables["kernels"], link = _kernels(columns, frame, work, device, calls, runtime_operator, runtime_layer)
        links.append(link)
        if len(counters):
            tables["counters"] = _counters(columns, frame, counters, calls, runtime_operator, runtime_layer)
    if found := [link for link in links if link is not None]:
        tables["links"] = _links(found)
    return tables


def _in_order(columns: TraceColumns) -> npt.NDArray[np.intp]:
    """Return rows by start, the longer first."""
    start, end = columns.start_ns, columns.start_ns + columns.duration_ns
    rising, tie = start[1:] > start[:-1], start[1:] == start[:-1]
    if (rising | (tie & (end[1:] <= end[:-1]))).all():
        return np.arange(len(columns))
    return np.lexsort((-end, start))


def is_operator(columns: TraceColumns) -> npt.NDArray[np.bool_]:
    """Return where rows are operators of the model: neither marks of ours nor allocations."""
    return columns.of("cpu_op") & ~columns.named(lambda name: name.startswith(MARK_PREFIX) or name in _INSTANTS)


def _work(columns: TraceColumns, frame: Frame, rows: npt.NDArray[np.intp]) -> _Work:
    start, thread = columns.start_ns[rows], columns.thread[rows]
    parent = nest(start, columns.duration_ns[rows], thread)
    layer = frame.layer_at(start, thread)
    place = np.full(len(columns) + 1, -1, dtype=np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    work = _Work(rows=rows, parent=parent, layer=layer, iteration=frame.iteration_at(start), place=place)
    flow = columns.flow[rows]
    if flow.any():
        forward = _forward_of(columns, rows)
        layer = np.where((layer < 0) & (forward >= 0), layer[forward], layer)
        while True:  # what a backward operator calls belongs where it belongs; a round a depth
            inherited = np.where((layer < 0) & (parent >= 0), layer[parent], layer)
            if np.array_equal(inherited, layer):
                break
            layer = inherited
        work.layer = layer.astype(np.int32)
    return work


def _forward_of(columns: TraceColumns, rows: npt.NDArray[np.intp]) -> _INDEX:
    """Return for each operator the one whose backward it is, -1 for none."""
    flow = columns.flow[rows]
    found = np.full(len(rows), -1, dtype=np.int32)
    first: dict[int, int] = {}
    for place in np.flatnonzero(flow).tolist():
        number = int(flow[place])
        if number in first:
            found[place] = first[number]
        else:
            first[number] = place
    return found


def _backward_links(columns: TraceColumns, work: _Work) -> tuple[str, _INDEX, _INDEX] | None:
    if not columns.flow.any():
        return None
    forward = _forward_of(columns, work.rows)
    target = np.flatnonzero(forward >= 0).astype(np.int32)
    return "forward_backward", forward[target], target


def _links(found: Sequence[tuple[str, _INDEX, _INDEX]]) -> EventTable:
    kinds = tuple(kind for kind, _, _ in found)
    return EventTable(
        columns={
            "kind_code": np.repeat(np.arange(len(found), dtype=np.int32), [len(source) for _, source, _ in found]),
            "source_index": np.concatenate([source for _, source, _ in found]),
            "target_index": np.concatenate([target for _, _, target in found]),
        },
        tables={"kind": kinds},
    )


def _coded(names: tuple[str, ...], codes: _INDEX) -> tuple[_INDEX, tuple[str, ...]]:
    """Return codes into a table that holds no more names than are used."""
    used = np.zeros(len(names), dtype=np.bool_)
    used[codes] = True
    place = np.cumsum(used, dtype=np.int32) - 1
    return place[codes].astype(np.int32), tuple(name for name, keep in zip(names, used, strict=True) if keep)


def _threads(threads: _INT, process: int) -> tuple[_INDEX, tuple[str, ...]]:
    known, codes = np.unique(threads, return_inverse=True)
    return codes.astype(np.int32), tuple(f"{process}/{thread}" for thread in known.tolist())


def _timed(
    columns: TraceColumns, frame: Frame, rows: npt.NDArray[np.intp], **more: Any
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    name, names = _coded(columns.names, columns.name[rows])
    category, categories = _coded(columns.categories, columns.category[rows])
    timed = {
        "name_code": name, "category_code": category, "start_ns": columns.start_ns[rows] + frame.offset_ns,
        "duration_ns": columns.duration_ns[rows], **more,
    }  # fmt: skip
    return timed, {"name": names, "category": categories}


def _operators(columns: TraceColumns, frame: Frame, work: _Work, process: int) -> EventTable:
    timed, tables = _timed(
        columns, frame, work.rows, iteration=work.iteration, parent_index=work.parent, layer_index=work.layer
    )
    timed["thread_code"], tables["thread"] = _threads(columns.thread[work.rows], process)
    return EventTable(columns=timed, tables=tables)


def _annotations(columns: TraceColumns, frame: Frame, rows: npt.NDArray[np.intp], process: int) -> EventTable:
    timed, tables = _timed(columns, frame, rows, iteration=frame.iteration_at(columns.start_ns[rows]))
    places = [
        f"{process}/{thread}" if device < 0 else f"cuda:{device} stream {thread}"
        for device, thread in zip(columns.device[rows].tolist(), columns.thread[rows].tolist(), strict=True)
    ]
    table = {text: code for code, text in enumerate(dict.fromkeys(places))}
    timed["thread_code"] = np.array([table[text] for text in places], dtype=np.int32)
    return EventTable(columns=timed, tables={**tables, "thread": tuple(table)})


def _operator_of(columns: TraceColumns, work: _Work, calls: npt.NDArray[np.intp]) -> _INDEX:
    """Return the operator that made each call: the one that the trace names, else the one that was running."""
    named = launches(columns.operator[calls], columns.operator[work.rows])
    outer = enclosing(
        columns.start_ns[calls], columns.thread[calls], columns.start_ns[work.rows], columns.duration_ns[work.rows],
        columns.thread[work.rows],
    )  # fmt: skip
    return np.where(named >= 0, named, outer).astype(np.int32)


def _layer_of_call(
    columns: TraceColumns, frame: Frame, work: _Work, calls: npt.NDArray[np.intp], operator: _INDEX
) -> _INDEX:
    here = frame.layer_at(columns.start_ns[calls], columns.thread[calls])
    return np.where(here >= 0, here, np.append(work.layer, np.int32(-1))[operator]).astype(np.int32)


def _runtime(
    columns: TraceColumns, frame: Frame, calls: npt.NDArray[np.intp], operator: _INDEX, process: int
) -> EventTable:
    timed, tables = _timed(
        columns, frame, calls, iteration=frame.iteration_at(columns.start_ns[calls]),
        correlation=columns.correlation[calls], operator_index=operator,
    )  # fmt: skip
    timed["thread_code"], tables["thread"] = _threads(columns.thread[calls], process)
    return EventTable(columns=timed, tables=tables)


def _kernels(
    columns: TraceColumns,
    frame: Frame,
    work: _Work,
    device: npt.NDArray[np.intp],
    calls: npt.NDArray[np.intp],
    call_operator: _INDEX,
    call_layer: _INDEX,
) -> tuple[EventTable, tuple[str, _INDEX, _INDEX]]:
    call = launches(columns.correlation[device], columns.correlation[calls])
    # without its call in the trace, the operator that the device work itself names may still be there
    named = launches(columns.operator[device], columns.operator[work.rows])
    operator = np.where(call >= 0, np.append(call_operator, np.int32(-1))[call], named).astype(np.int32)
    layer = np.where(
        call >= 0, np.append(call_layer, np.int32(-1))[call], np.append(work.layer, np.int32(-1))[operator]
    )
    call_iteration = np.append(frame.iteration_at(columns.start_ns[calls]), np.int32(-1))
    iteration = np.where(call >= 0, call_iteration[call], np.append(work.iteration, np.int32(-1))[operator])
    timed, tables = _timed(
        columns, frame, device, iteration=iteration.astype(np.int32), device=columns.device[device].astype(np.int32),
        stream=columns.thread[device].astype(np.int32), correlation=columns.correlation[device], runtime_index=call,
        operator_index=operator, layer_index=layer.astype(np.int32),
        **_details([columns.arguments.get(row, {}) for row in device.tolist()]),
    )  # fmt: skip
    target = np.flatnonzero(call >= 0).astype(np.int32)
    return EventTable(columns=timed, tables=tables), ("launch", call[target], target)


def _details(arguments: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of what kernels and copies tell of themselves, of those that any tells."""
    found: dict[str, npt.NDArray[Any]] = {}
    for argument, names in _DETAILS.items():
        if not any(argument in each for each in arguments):
            continue
        for member, column in enumerate(names):
            values = (_number(each.get(argument), member if len(names) > 1 else None) for each in arguments)
            table = np.fromiter(values, dtype=np.float64, count=len(arguments))
            if column == "occupancy":
                found[column] = table / 100
            else:
                found[column] = np.where(np.isnan(table), -1, table).astype(np.int64)
    return found


def _number(value: Any, member: int | None) -> float:
    if member is not None:
        value = value[member] if isinstance(value, list) and member < len(value) else None
    return float(value) if isinstance(value, int | float) else float("nan")


def _counters(
    columns: TraceColumns,
    frame: Frame,
    rows: npt.NDArray[np.intp],
    calls: npt.NDArray[np.intp],
    call_operator: _INDEX,
    call_layer: _INDEX,
) -> EventTable:
    """Lay counters out, a row a measured kernel.

    Ranges carry no correlation. CUPTI measures one kernel at a time, in the order of their launches; so where there are
    as many launches as ranges, the n-th range is that of the n-th launch.
    """
    arguments = [columns.arguments.get(row, {}) for row in rows.tolist()]
    known = dict.fromkeys(key for each in arguments for key in each if key not in _DETAILS and key not in _NO_COUNTERS)
    measured = {
        key: np.array([_number(each.get(key), None) for each in arguments], dtype=np.float64)
        for key in known
        if any(isinstance(each.get(key), int | float) for each in arguments)
    }
    name, names = _coded(columns.names, columns.name[rows])
    n = len(rows)
    table: dict[str, npt.NDArray[Any]] = {
        "name_code": name, "start_ns": columns.start_ns[rows] + frame.offset_ns,
        "duration_ns": columns.duration_ns[rows], "correlation": np.full(n, -1, dtype=np.int64),
        "kernel_index": np.full(n, -1, dtype=np.int32), **measured,
    }  # fmt: skip
    launched = np.flatnonzero(columns.named(lambda text: "LaunchKernel" in text or "LaunchCooperative" in text)[calls])
    if len(launched) == n:
        table |= {
            "correlation": columns.correlation[calls[launched]], "runtime_index": launched.astype(np.int32),
            "operator_index": call_operator[launched], "layer_index": call_layer[launched],
            "iteration": frame.iteration_at(columns.start_ns[calls[launched]]),
        }  # fmt: skip
    return EventTable(columns=table, tables={"name": names})


def _memory(
    columns: TraceColumns, frame: Frame, work: _Work, memory: Allocations
) -> tuple[EventTable, npt.NDArray[np.int64]]:
    """Return the allocations, and for each operator the bytes that it allocated itself, less none that it freed."""
    time, thread = memory.time_ns, memory.thread
    operator = enclosing(
        time, thread, columns.start_ns[work.rows], columns.duration_ns[work.rows], columns.thread[work.rows]
    )
    here = frame.layer_at(time, thread)
    layer = np.where(here >= 0, here, np.append(work.layer, np.int32(-1))[operator]).astype(np.int32)

    def integers(argument: str, absent: int = -1) -> _INT:
        return np.array([int(each.get(argument, absent)) for each in memory.arguments], dtype=np.int64)

    taken, on_device = integers("Bytes", 0), integers("Device Type", 0) == 1
    devices = [f"cuda:{n}" if on else "cpu" for on, n in zip(on_device, integers("Device Id"), strict=True)]
    table = {text: code for code, text in enumerate(dict.fromkeys(devices))}
    reserved = integers("Total Reserved")
    allocated = np.zeros(len(work.rows) + 1, dtype=np.int64)
    np.add.at(allocated, operator, np.maximum(taken, 0))
    found = EventTable(
        columns={
            "device_code": np.array([table[text] for text in devices], dtype=np.int32),
            "time_ns": time + frame.offset_ns, "bytes": taken, "allocated_bytes": integers("Total Allocated"),
            "reserved_bytes": np.where(on_device, reserved, -1),  # the host's allocator keeps none
            "address": integers("Addr"), "operator_index": operator, "layer_index": layer,
            "iteration": frame.iteration_at(time),
        },
        tables={"device": tuple(table)},
    )  # fmt: skip
    return found, allocated[:-1]


def _with(table: EventTable, **columns: Any) -> EventTable:
    return replace(table, columns={**table.columns, **columns})
