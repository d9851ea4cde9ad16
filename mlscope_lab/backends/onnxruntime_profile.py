"""ONNX Runtime's profile, a JSON file of events, as a `LayerTrace`.

The file holds one event a line, as a rule in the order in which events ended: the nodes of a run, bodies before the
control-flow node around them, then ``model_run``. Times are whole microseconds since the profile began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.onnxruntime_graph import Outline, sources_of
from mlscope_lab.backends.onnxruntime_operators import Event, NodeEvent, RunEvents, fusion_of
from mlscope_lab.errors import SessionError
from mlscope_lab.trace.importers.ort_events import (
    EVENT_CAP,
    NODE_SUFFIX,
    RESOLUTION_NS,
    arguments_of,
    bytes_of,
    field_of,
    plain_name,
    read_events,
    shapes_of,
)
from mlscope_lab.trace.records import EventTable, LayerTable, LayerTrace

__all__ = ["EVENT_CAP", "RESOLUTION_NS", "Clock", "to_layer_trace"]

# the nodes that run other nodes: ONNX's own and ONNX Runtime's generation loops
_CONTAINERS = frozenset({
    "BeamSearch", "GreedySearch", "If", "Loop", "Sampling", "Scan", "SequenceMap", "WhisperBeamSearch",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How the profile's clock lies on `time.perf_counter_ns`.

    Attributes
    ----------
    start_ns
        Start of the profile on `perf_counter_ns`.
    error_ns
        Bound on the error of that.
    """

    start_ns: int
    error_ns: int


@dataclass(slots=True)
class _Call:
    """One executed node of one run; `children` are positions in the run's list."""

    key: tuple[str, str, str]
    start: int
    duration: int
    line: str
    children: list[int] = field(default_factory=list)
    parent: int = -1


@dataclass(slots=True)
class _Run:
    start: int
    duration: int
    calls: list[_Call]
    others: list[Event]


def _runs(path: Path, first_us: int) -> Iterator[_Run]:
    """Yield the runs that began at `first_us` or later and that the profile holds to their end.

    Nodes are in order of their end and linked to their parents. The file may have events in the order of their end,
    ``model_run`` last, or in the order of their start, ``model_run`` first.
    """
    calls: list[_Call] = []
    others: list[Event] = []
    waiting: Event | None = None  # a run whose nodes are yet to come
    for category, start, duration, name, line in read_events(path, SessionError):
        if start < first_us:
            continue
        if category == "Session" and name == "model_run":
            run = Event(category, name, start, duration, line)
            if waiting is not None:
                yield _run_of(waiting, calls, others, _link_started)
                calls = [call for call in calls if call.start >= start]
                others = [other for other in others if other.start >= start]
            if any(call.start >= start for call in calls):
                yield _run_of(run, calls, others, _link_ended)
                waiting = None
            else:
                waiting = run
            calls, others = [], []
        elif category == "Node" and name.endswith(NODE_SUFFIX):
            key = (name, field_of(line, "op_name"), field_of(line, "node_index"))
            calls.append(_Call(key, start, duration, line))
        elif category != "Kernel":
            others.append(Event("fence" if category == "Node" else category, name, start, duration, line))
    if waiting is not None:
        yield _run_of(waiting, calls, others, _link_started)


def _run_of(run: Event, calls: list[_Call], others: list[Event], link: Callable[[list[_Call]], None]) -> _Run:
    """Return a run with what of these lies in it; a run that failed before it left nodes and no model_run."""
    end = run.start + run.duration
    mine = [call for call in calls if run.start <= call.start <= end]
    link(mine)
    return _Run(run.start, run.duration, mine, [*(o for o in others if run.start <= o.start <= end), run])


def _link_ended(calls: list[_Call]) -> None:
    """Give calls in the order of their end their parents; children are kept last to first."""
    waiting: list[int] = []  # calls that no node around them has ended for yet
    for here, call in enumerate(calls):
        # nodes run one after another, so one that began after this one and ended before it is part of it
        while waiting and (
            calls[waiting[-1]].start > call.start
            or (calls[waiting[-1]].start == call.start and call.key[1] in _CONTAINERS)
        ):
            inner = waiting.pop()
            calls[inner].parent = here
            call.children.append(inner)
        waiting.append(here)


def _link_started(calls: list[_Call]) -> None:
    """Give calls in the order of their start their parents; children are kept last to first."""
    around: list[int] = []
    for here, call in enumerate(calls):
        while around and calls[around[-1]].start + calls[around[-1]].duration < call.start + max(call.duration, 1):
            around.pop()
        if around:
            call.parent = around[-1]
            calls[around[-1]].children.insert(0, here)
        if call.key[1] in _CONTAINERS:
            around.append(here)


class _Rows:
    """The call sites seen so far: a row for each parent row, branch, node and how often it ran there before.

    The profile does not say which branch an If took, and unnamed nodes of both may be called alike; the branch is told
    by the nodes that ran in it, all of them, for a branch runs as a whole.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], int] = {}
        self.parents: list[int] = []
        self.keys: list[tuple[str, str, str]] = []
        self.lines: list[str] = []
        self._known: dict[tuple[Any, ...], list[int]] = {}

    def of(self, run: _Run) -> list[int]:
        """Return the row of each call of a run, in the run's order."""
        signature = tuple((call.key, call.parent) for call in run.calls)
        known = self._known.get(signature)
        if known is not None:
            return known
        rows = [-1] * len(run.calls)
        counts: dict[tuple[Any, ...], int] = {}
        roots = [i for i, call in enumerate(run.calls) if call.parent < 0]
        todo: list[tuple[int, int, tuple[Any, ...]]] = [(i, -1, ()) for i in reversed(roots)]
        while todo:
            here, parent, branch = todo.pop()
            call = run.calls[here]
            site = (parent, branch, call.key)
            nth = counts[site] = counts.get(site, 0) + 1
            row = self.rows.setdefault((*site, nth), len(self.keys))
            if row == len(self.keys):
                self.keys.append(call.key)
                self.lines.append(call.line)
                self.parents.append(parent)
            rows[here] = row
            # children are kept last to first, which is the order in which a stack wants them
            taken = tuple(run.calls[child].key for child in call.children) if call.key[1] == "If" else ()
            todo.extend((child, row, taken) for child in call.children)
        self._known[signature] = rows
        return rows

    def table(self, outline: Outline) -> LayerTable:
        names = [plain_name(key[0]) for key in self.keys]
        ops = [key[1] or "unknown" for key in self.keys]
        sources, scopes = sources_of(names, ops, outline)
        labels: list[str] = []
        taken: set[str] = set()
        for plain in names:
            label, n = plain or "unnamed", 1
            while label in taken:
                n += 1
                label = f"{plain or 'unnamed'}#{n}"
            taken.add(label)
            labels.append(label)
        depth: list[int] = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        arguments = [arguments_of(line) for line in self.lines]
        return LayerTable(
            name=tuple(labels),
            type=tuple(ops),
            scope=tuple(scopes),
            parent=tuple(self.parents),
            depth=tuple(depth),
            input_shapes=tuple(shapes_of(a.get("input_type_shape")) for a in arguments),
            output_shapes=tuple(shapes_of(a.get("output_type_shape")) for a in arguments),
            parameter_bytes=tuple(bytes_of(a, "parameter_size") for a in arguments),
            activation_bytes=tuple(bytes_of(a, "output_size") for a in arguments),
            sources=tuple(sources),
        )


def to_layer_trace(
    path: Path,
    clock: Clock,
    predicts: Sequence[tuple[int, int]],
    outline: Outline,
    executable_digest: str,
    *,
    operators: bool = False,
) -> LayerTrace:
    """Read the traced predicts out of a profile.

    Parameters
    ----------
    path
        The profile; it may hold runs before, between and after the traced ones.
    clock
        Where the profile lies on `time.perf_counter_ns`.
    predicts
        (start, duration) of each traced predict on `time.perf_counter_ns`, in ns, in order.
    outline
        The model's own graph, for the sources and scopes of fused nodes.
    executable_digest
        Digest of what ran.
    operators
        Also give what lies below the layers.

    Returns
    -------
    LayerTrace
        Predicts whose run is not in the profile to its end are left out, and counted in ``dropped_events`` and
        ``unavailable``.

    Raises
    ------
    SessionError
        If the file cannot be read as a profile, or holds none of the traced runs.
    """
    found: list[_Placed] = []
    rows = _Rows()
    below = RunEvents(clock.start_ns, _first_nodes(path) if operators and predicts else ())
    if predicts:
        slack = clock.error_ns + RESOLUTION_NS
        first_us = (predicts[0][0] - clock.start_ns - slack) // 1000
        waiting = iter(enumerate(predicts))
        current = next(waiting, None)
        for run in _runs(path, first_us):
            start = clock.start_ns + run.start * 1000
            middle = start + run.duration * 500
            while current is not None and current[1][0] + current[1][1] + slack < middle:
                current = next(waiting, None)
            if current is None:
                break
            if current[1][0] - slack <= middle and run.calls:
                found.append(_Placed(current[0], run, rows.of(run)))
                if operators:
                    below.add(_nodes(run, found[-1].rows), run.others)
                current = next(waiting, None)
        if not found:
            raise SessionError(
                f"ONNX Runtime's profile holds none of the {len(predicts)} traced predicts; it keeps {EVENT_CAP:,} "
                "events, those of the warm-up included. Warm up and trace fewer iterations"
            )
    table = rows.table(outline)
    events = below.tables(fusion_of(table, outline)) if operators else {}
    return _assemble(clock, predicts, found, table, executable_digest, events)


def _first_nodes(path: Path) -> list[NodeEvent]:
    """Return the nodes of the first run in a profile, which belong to no layer yet."""
    run = next(_runs(path, -(1 << 62)), None)
    return _nodes(run, [-1] * len(run.calls)) if run is not None else []


def _nodes(run: _Run, rows: Sequence[int]) -> list[NodeEvent]:
    return [
        NodeEvent(call.key[0], call.key[1], call.start, call.duration, call.parent, row, call.line)
        for call, row in zip(run.calls, rows, strict=True)
    ]


class _Placed:
    """A run as arrays, which take a tenth of the room of its calls."""

    __slots__ = ("duration", "exclusive", "index", "rows", "start")

    def __init__(self, index: int, run: _Run, rows: list[int]) -> None:
        self.index = index
        self.rows = rows
        self.start = np.array([call.start for call in run.calls], dtype=np.int64)
        self.duration = np.array([call.duration for call in run.calls], dtype=np.int64)
        inside = np.zeros_like(self.duration)
        for call in run.calls:
            if call.parent >= 0:
                inside[call.parent] += call.duration
        self.exclusive = np.maximum(self.duration - inside, 0)


def _assemble(
    clock: Clock,
    predicts: Sequence[tuple[int, int]],
    found: Sequence[_Placed],
    table: LayerTable,
    executable_digest: str,
    events: Mapping[str, EventTable],
) -> LayerTrace:
    """Fill the arrays, iteration by iteration."""
    start: npt.NDArray[np.int64] = np.full((len(found), len(table)), -1, dtype=np.int64)
    duration, exclusive = start.copy(), start.copy()
    for i, run in enumerate(found):
        start[i, run.rows] = clock.start_ns + 1000 * run.start
        duration[i, run.rows] = 1000 * run.duration
        exclusive[i, run.rows] = 1000 * run.exclusive
    kept = np.array([predicts[run.index] for run in found], dtype=np.int64).reshape(-1, 2)
    lost = len(predicts) - len(found)
    typical = int(np.median([len(run.rows) for run in found])) if found else 0
    unavailable = {}
    if lost:
        unavailable["layers"] = (
            f"of {lost} of {len(predicts)} iterations: ONNX Runtime keeps {EVENT_CAP:,} events, those of the warm-up "
            "included; trace fewer iterations to see all"
        )
    if events and "memory" not in events:
        unavailable["memory"] = "of nodes: the profile of this version of ONNX Runtime tells nothing of its arena"
    return LayerTrace(
        layers=table,
        start_ns=start,
        duration_ns=duration,
        exclusive_ns=exclusive,
        iteration_start_ns=kept[:, 0].copy(),
        iteration_duration_ns=kept[:, 1].copy(),
        resolution_ns=RESOLUTION_NS,
        clock_error_ns=clock.error_ns,
        executable_digest=executable_digest,
        dropped_events=lost * (typical + 2),  # the nodes, SequentialExecutor::Execute and model_run
        unavailable=unavailable,
        events=events,
    )
