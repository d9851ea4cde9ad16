"""What ONNX Runtime's profile tells below, or beside, its layers.

An executed node is a layer already; as an operator it has its provider, its thread, the shapes of this very run, and
what its allocation did to the arena. The session's own spans and the fences around nodes of older versions are
annotations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.onnxruntime_graph import Outline
from mlscope_lab.trace.importers.ort_events import plain_name, shapes_of
from mlscope_lab.trace.records import EventTable, LayerTable

__all__ = ["Event", "NodeEvent", "RunEvents", "fusion_of"]

_FIELD = re.compile(
    r'"(provider|output_size|activation_size|parameter_size|mem_in_use_delta|mem_requested_in_use_delta|mem_bytes_in_use|'
    r'mem_arena_held|input_type_shape)" ?: ?(?:"([^"]*)"|(\[(?:\{[^{}]{0,2000}\},? ?){0,999}\]))'
)
_THREAD = re.compile(r'"pid" ?: ?(-?\d{1,18}), ?"tid" ?: ?(-?\d{1,18})')
_SMALL = re.compile(r"-?\d{1,18}")
_UNKNOWN = -1
_PLANNED = (
    "ONNX Runtime plans a run's memory ahead once it has seen one of its shapes: nodes take from one block, and their "
    "own allocations do not show"
)
_LISTED = 1000
"""Names of nodes in an attribute of the group; their number is beside them."""


@dataclass(frozen=True, slots=True)
class Event:
    """A span of the session, or a fence; times in us."""

    category: str
    name: str
    start: int
    duration: int
    line: str


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """An executed node; times in us, parent a position among the nodes of its run."""

    name: str
    op: str
    start: int
    duration: int
    parent: int
    layer: int
    line: str


@dataclass(slots=True)
class _Codes:
    codes: dict[str, int] = field(default_factory=dict)

    def of(self, text: str) -> int:
        return self.codes.setdefault(text, len(self.codes)) if text else -1

    @property
    def table(self) -> tuple[str, ...]:
        return tuple(self.codes)


_Asked = tuple[str, str, str, int]


def _facts_of(node: NodeEvent) -> dict[str, str]:
    return {name: text or nested for name, text, nested in _FIELD.findall(node.line)}


def _asks(nodes: Sequence[NodeEvent]) -> tuple[list[dict[str, str]], list[_Asked], list[int]]:
    """Return for each node its facts, what identifies it in a run of these shapes, and the bytes it asked for."""
    facts = [_facts_of(node) for node in nodes]
    seen: dict[tuple[str, str, str], int] = {}
    keys, sizes = [], []
    for node, told in zip(nodes, facts, strict=True):
        key = (node.name, node.op, told.get("input_type_shape", ""))
        seen[key] = seen.get(key, -1) + 1
        keys.append((*key, seen[key]))
        size = told.get("mem_requested_in_use_delta", told.get("mem_in_use_delta", ""))
        sizes.append(int(size) if _SMALL.fullmatch(size) else _UNKNOWN)
    return facts, keys, sizes


class RunEvents:
    """The operators, annotations and arena samples of the traced runs, one run after another.

    Once ONNX Runtime has seen a run of some shapes, it plans the memory of the next ahead: nodes take from one block,
    and the arena does not change. What a node asks for is then told by the session's first run alone.

    Parameters
    ----------
    start_ns
        Start of the profile on `time.perf_counter_ns`.
    first
        The nodes of the session's first run, if known.
    """

    def __init__(self, start_ns: int, first: Sequence[NodeEvent] = ()) -> None:
        self._start_ns = start_ns
        _, keys, sizes = _asks(first)
        self._asked = dict(zip(keys, sizes, strict=True)) if any(sizes) else {}
        self._planned = False
        self._operators: list[tuple[int, ...]] = []
        self._annotations: list[tuple[int, ...]] = []
        self._memory: list[tuple[int, ...]] = []
        (
            self._names,
            self._providers,
            self._ops,
            self._threads,
            self._shapes,
            self._spans,
            self._categories,
            self._of,
        ) = (_Codes() for _ in range(8))
        self._read: dict[str, int] = {}
        self._iterations = 0

    def add(self, nodes: Sequence[NodeEvent], others: Sequence[Event]) -> None:
        """Take the next run: its nodes in any order, and the spans and fences of it."""
        iteration = self._iterations
        self._iterations += 1
        order = sorted(range(len(nodes)), key=lambda k: (nodes[k].start, -nodes[k].duration, -k))
        place = {k: len(self._operators) + i for i, k in enumerate(order)} | {-1: -1}
        told, keys, asked = _asks(nodes)
        first = [self._asked.get(key, _UNKNOWN) if size == 0 else size for key, size in zip(keys, asked, strict=True)]
        planned = any(before > now for before, now in zip(first, asked, strict=True))
        self._planned |= planned
        for k in order:
            node, facts = nodes[k], told[k]
            provider = facts.get("provider") or "unknown"
            size = first[k] if planned else asked[k]
            self._operators.append((
                iteration, self._names.of(plain_name(node.name)), self._providers.of(provider),
                self._ops.of(node.op or "unknown"), self._thread(node.line), node.start, node.duration,
                place[node.parent], node.layer, self._shape(facts.get("input_type_shape", "")),
                _number(facts, "output_size"), max(size, _UNKNOWN),
                _number(facts, "activation_size"), _number(facts, "parameter_size"),
            ))  # fmt: skip
        self._sample(iteration, nodes, order, told, place, planned)
        for event in sorted(others, key=lambda event: (event.start, -event.duration)):
            self._annotations.append((
                iteration, self._spans.of(plain_name(event.name)), self._categories.of(event.category),
                self._thread(event.line), event.start, event.duration,
            ))  # fmt: skip

    def _sample(
        self,
        iteration: int,
        nodes: Sequence[NodeEvent],
        order: Sequence[int],
        told: Sequence[Mapping[str, str]],
        place: Mapping[int, int],
        planned: bool,
    ) -> None:
        """Take the arena after each node, if planned where it changed, and before it if it changed in between."""
        containers = {node.parent for node in nodes}
        held = _UNKNOWN
        for k in order:
            node, facts = nodes[k], told[k]
            after, taken = _number(facts, "mem_bytes_in_use"), _number(facts, "mem_in_use_delta", 0)
            if after < 0 or k in containers:
                continue
            provider = facts.get("provider", "")
            arena = self._of.of(f"host ({provider} arena)" if provider == "CPUExecutionProvider" else provider)
            reserved = _number(facts, "mem_arena_held")
            before = after - taken
            if held not in {_UNKNOWN, before}:  # given back between the two
                self._memory.append((iteration, arena, node.start, before - held, before, -1, -1, reserved))
            if planned and held == _UNKNOWN:
                self._memory.append((iteration, arena, node.start, 0, before, -1, -1, reserved))
            held = after
            if planned and not taken:
                continue
            self._memory.append((
                iteration, arena, node.start + node.duration, taken, after, node.layer, place[k], reserved,
            ))  # fmt: skip

    def _thread(self, line: str) -> int:
        found = _THREAD.search(line, 0, 200)
        return self._threads.of(f"{found[1]}/{found[2]}") if found is not None else -1

    def _shape(self, written: str) -> int:
        """Return the code of the types and shapes of inputs; each distinct text is parsed once."""
        code = self._read.get(written)
        if code is None:
            try:
                code = self._shapes.of(shapes_of(json.loads(written))) if written else -1
            except (ValueError, RecursionError):
                code = -1
            self._read[written] = code
        return code

    def _times(self, microseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._start_ns + 1000 * microseconds

    def tables(self, attrs: Mapping[str, Any]) -> dict[str, EventTable]:
        """Return what was recorded, by group; "memory" only where the profile tells of its arena.

        Parameters
        ----------
        attrs
            Attributes of the operators.
        """
        operators, annotations, memory = (
            np.array(rows, dtype=np.int64).reshape(-1, width).T
            for rows, width in ((self._operators, 14), (self._annotations, 6), (self._memory, 8))
        )
        small = np.int32
        found = {
            "operators": EventTable(
                columns={
                    "iteration": operators[0].astype(small),
                    "name_code": operators[1].astype(small),
                    "category_code": operators[2].astype(small),
                    "type_code": operators[3].astype(small),
                    "thread_code": operators[4].astype(small),
                    "start_ns": self._times(operators[5]),
                    "duration_ns": 1000 * operators[6],
                    "parent_index": operators[7].astype(small),
                    "layer_index": operators[8].astype(small),
                    "shapes_code": operators[9].astype(small),
                    "output_bytes": operators[10],
                    "allocated_bytes": operators[11],
                    "input_bytes": operators[12],
                    "parameter_bytes": operators[13],
                },
                tables={
                    "name": self._names.table, "category": self._providers.table, "type": self._ops.table,
                    "thread": self._threads.table, "shapes": self._shapes.table,
                },
                attrs=attrs,
            ),
            "annotations": EventTable(
                columns={
                    "iteration": annotations[0].astype(small),
                    "name_code": annotations[1].astype(small),
                    "category_code": annotations[2].astype(small),
                    "thread_code": annotations[3].astype(small),
                    "start_ns": self._times(annotations[4]),
                    "duration_ns": 1000 * annotations[5],
                },
                tables={"name": self._spans.table, "category": self._categories.table, "thread": self._threads.table},
            ),
        }  # fmt: skip
        if memory.size:
            found["memory"] = EventTable(
                columns={
                    "iteration": memory[0].astype(small),
                    "device_code": memory[1].astype(small),
                    "time_ns": self._times(memory[2]),
                    "bytes": memory[3],
                    "allocated_bytes": memory[4],
                    "layer_index": memory[5].astype(small),
                    "operator_index": memory[6].astype(small),
                    "reserved_bytes": memory[7],
                },
                tables={"device": self._of.table},
                attrs={"incomplete": _PLANNED} if self._planned else {},
            )
        return found


def _number(facts: Mapping[str, str], name: str, otherwise: int = _UNKNOWN) -> int:
    text = facts.get(name, "")
    return int(text) if _SMALL.fullmatch(text) else otherwise


def fusion_of(layers: LayerTable, outline: Outline) -> dict[str, Any]:
    """Tell what optimisation made of the file's nodes, as far as names allow.

    Parameters
    ----------
    layers
        The executed nodes with their sources.
    outline
        The file's graph.

    Returns
    -------
    dict
        Attributes: ``file_nodes`` and ``executed_nodes`` count. ``fused_nodes`` run as part of another one.
        ``vanished_nodes`` neither run under their name nor are a known part of a node that does: folded into weights,
        removed, or fused without a trace; ``vanished_types`` are their operators. ``added_nodes`` run but are not in
        the file, such as changes of layout. At most a thousand names each, their number beside them.
    """
    plain = {name.partition("#")[0] for name in layers.name} | set(layers.name)
    parts = {part for sources in layers.sources for part in sources.split(";") if part}
    labels = {node.name or (node.outputs[0] if node.outputs else node.op): node.op for node in outline.nodes}
    fused = [name for name in labels if name in parts and name not in plain]
    vanished = [name for name in labels if name not in parts and name not in plain]
    added = [
        name for name, sources in zip(layers.name, layers.sources, strict=True)
        if not sources and name.partition("#")[0] not in labels
    ]  # fmt: skip
    attrs: dict[str, Any] = {"file_nodes": len(outline.nodes), "executed_nodes": len(layers)}
    for key, names in (("fused", fused), ("vanished", vanished), ("added", added)):
        attrs[f"{key}_count"] = len(names)
        attrs[f"{key}_nodes"] = names[:_LISTED]
    attrs["vanished_types"] = [labels[name] for name in vanished[:_LISTED]]
    return attrs
