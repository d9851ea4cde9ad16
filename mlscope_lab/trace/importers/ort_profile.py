"""ONNX Runtime's profile as a run: nodes as operators and layers, runs as iterations, device kernels where it has them.

The order of events differs between versions (by end, later by start), so nothing relies on it but one thing: kernels
follow the node that launched them, whose name they carry.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema
from mlscope_lab.trace.attribution import enclosing, iteration_at, nest
from mlscope_lab.trace.importers.base import MAX_BYTES, Head, Importer
from mlscope_lab.trace.importers.ort_events import (
    DAMAGED,
    EVENT_CAP,
    NODE_SUFFIX,
    RESOLUTION_NS,
    arguments_of,
    bytes_of,
    plain_name,
    read_events,
    shapes_of,
)
from mlscope_lab.trace.importers.texts import Texts, unique_labels
from mlscope_lab.trace.records import EventTable, LayerTable, LayerTrace

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ONNXRUNTIME"]

_INT = npt.NDArray[np.int64]
# the nodes that run other nodes: ONNX's own and ONNX Runtime's generation loops
_CONTAINERS = frozenset({
    "BeamSearch", "GreedySearch", "If", "Loop", "Sampling", "Scan", "SequenceMap", "WhisperBeamSearch",
})  # fmt: skip
_FIELD = re.compile(
    r'"(op_name|provider|node_index|output_size|mem_in_use_delta|input_type_shape)" ?: ?'
    r'(?:"([^"]*)"|(\[(?:\{[^{}]{0,2000}\},?){0,999}\]))'
)
_THREAD = re.compile(r'"pid" ?: ?(-?\d{1,18}), ?"tid" ?: ?(-?\d{1,18})')
_MOST_EVENTS = 5_000_000
_MOST_SHAPES = 10_000
_SHAPES = ("input_type_shape", "output_type_shape")
_MOST_CELLS = 20_000_000
"""Layers times iterations: more of them would take a gigabyte, and no profile of one model has them."""


class _Rows:
    """Events of one kind as they are read, row behind row."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.cells = array("q")

    def add(self, *values: int) -> None:
        self.cells.extend(values)

    def __getitem__(self, name: str) -> _INT:
        if not self.cells:
            return np.zeros(0, dtype=np.int64)
        rows = np.frombuffer(self.cells, dtype=np.int64).reshape(-1, len(self.names))
        return np.ascontiguousarray(rows[:, self.names.index(name)])

    def __len__(self) -> int:
        return len(self.cells) // len(self.names)


class _Profile:
    """Everything that a file holds, in columns; times in us."""

    def __init__(self) -> None:
        self.names, self.ops, self.providers, self.shapes, self.threads = (
            Texts(what) for what in ("names", "operators", "providers", "shapes", "threads")
        )
        self.session_names, self.session_categories, self.kernel_names = (
            Texts(what) for what in ("session events", "categories", "kernels")
        )
        self.nodes = _Rows(
            "start", "duration", "name", "op", "index", "provider", "shapes", "output", "taken", "thread"
        )
        self.session = _Rows("start", "duration", "name", "category", "thread")
        self.kernels = _Rows("start", "duration", "name", "stream", "operator", "grid_x", "grid_y", "grid_z",
                             "block_x", "block_y", "block_z")  # fmt: skip
        self.details: dict[tuple[int, int, int], tuple[int, int, int, int]] = {}
        self.events = self.damaged = 0
        self._shapes: dict[str, int] = {}
        self._last: dict[int, int] = {}

    def read(self, path: Path, max_bytes: int, progress: Callable[[int, int | None], None] | None) -> None:
        for category, start, duration, name, line in read_events(
            path, InputError, lenient=True, max_bytes=max_bytes, progress=progress
        ):
            if category == DAMAGED:
                self.damaged += 1
                if self.damaged > 1000 and self.damaged > self.events:
                    raise InputError(f"{path.name} is not an ONNX Runtime profile: most of its lines are no events")
                continue
            self.events += 1
            if self.events > _MOST_EVENTS:
                raise InputError(f"{path.name} holds more than {_MOST_EVENTS:,} events; profile fewer runs")
            if category == "Node" and name.endswith(NODE_SUFFIX):
                self._node(start, duration, name, line)
            elif category == "Kernel":
                self._kernel(start, duration, name, line)
            else:
                self.session.add(start, duration, self.session_names.code(plain_name(name)),
                                 self.session_categories.code(category), self._thread(line))  # fmt: skip

    def _thread(self, line: str) -> int:
        found = _THREAD.search(line, 0, 200)
        return self.threads.code(f"{found[1]}/{found[2]}") if found is not None else -1

    def _node(self, start: int, duration: int, name: str, line: str) -> None:
        found = {field: text or nested for field, text, nested in _FIELD.findall(line)}
        key = (
            self.names.code(plain_name(name)),
            self.ops.code(found.get("op_name") or "unknown"),
            _small(found.get("node_index")),
        )
        if key not in self.details:
            told = arguments_of(line)
            given, made = (self.shapes.code(shapes_of(told.get(field))) for field in _SHAPES)
            self.details[key] = (given, made, bytes_of(told, "parameter_size"), bytes_of(told, "output_size"))
        self._last[key[0]] = len(self.nodes)
        provider = self.providers.code(found.get("provider") or "unknown")
        written = found.get("input_type_shape", "")
        shapes = self._shapes.get(written)
        if shapes is None:
            # parsed once for each distinct text, which are few
            shapes = self.shapes.code(shapes_of(_listed(written))) if written else -1
            if len(self._shapes) < _MOST_SHAPES:
                self._shapes[written] = shapes
        self.nodes.add(start, duration, *key, provider, shapes, bytes_of(found, "output_size"),
                       bytes_of(found, "mem_in_use_delta"), self._thread(line))  # fmt: skip

    def _kernel(self, start: int, duration: int, name: str, line: str) -> None:
        found = arguments_of(line)
        sizes = [_small(found.get(f"{of}_{axis}")) for of in ("grid", "block") for axis in "xyz"]
        operator = self._last.get(self.names.find(plain_name(str(found.get("parent_name")))), -1)
        self.kernels.add(start, duration, self.kernel_names.code(plain_name(name)), _small(found.get("stream")),
                         operator, *sizes)  # fmt: skip


def _listed(text: str) -> object:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _small(value: object) -> int:
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


def _load(
    path: Path, *, max_bytes: int = MAX_BYTES, progress: Callable[[int, int | None], None] | None = None
) -> xr.DataTree:
    """Read a profile; see `mlscope_lab.trace.importers.base.Importer`."""
    from mlscope_lab.trace.build import build_imported

    found = _Profile()
    try:
        found.read(path, max_bytes, progress)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); get it again") from error
    if not len(found.nodes) and not len(found.session):
        raise InputError(
            f"{path} holds no event of ONNX Runtime; write a profile with SessionOptions.enable_profiling = True and "
            "session.end_profiling()"
        )
    warnings: list[str] = []
    unavailable: dict[str, str] = {}
    if found.damaged:
        warnings.append(f"{found.damaged} lines of {path.name} could not be read; was the file cut off?")
    runs = _Runs(found)
    layers = runs.layers(unavailable)
    dropped = found.damaged + runs.lost(found.events)
    if found.events >= EVENT_CAP:
        warnings.append(
            f"ONNX Runtime keeps {EVENT_CAP:,} events, and this profile has as many: later ones are lost, at least "
            f"{dropped - found.damaged:,} of them. Profile fewer runs to see all"
        )
        unavailable["events"] = f"those after the first {EVENT_CAP:,}, which is all that ONNX Runtime keeps"
    filled = [rows for rows in (found.nodes, found.session, found.kernels) if len(rows)]
    start = min(int(rows["start"].min()) for rows in filled)
    end = max(int((rows["start"] + rows["duration"]).max()) for rows in filled)
    unavailable["latency"] = "an ONNX Runtime profile holds traced runs only"
    return build_imported(
        attrs={
            "model": path.name,
            "backend": "onnxruntime",
            "source_format": "onnxruntime",
            "device": "cuda" if len(found.kernels) else "cpu",
            "warnings": warnings,
            "unavailable": unavailable,
            "trace": {"events": found.events + found.damaged},
        },
        events=runs.events(),
        layers=layers,
        anchor_ns=1000 * start,
        wall_ns=1000 * (end - start),
        level="kernel" if len(found.kernels) else "operator",
        resolution_ns=RESOLUTION_NS,
        dropped_events=dropped,
        iterations=len(runs.start),
    )


class _Runs:
    """The runs of a profile, and what of it belongs to each."""

    def __init__(self, found: _Profile) -> None:
        self.found = found
        nodes, session = found.nodes, found.session
        names = found.session_names.table
        code = names.index("model_run") if "model_run" in names else -2
        of_run = np.flatnonzero(session["name"] == code)
        of_run = of_run[np.argsort(session["start"][of_run], kind="stable")]
        self.start, self.duration = session["start"][of_run], session["duration"][of_run]
        self.thread = session["thread"][of_run]
        self.disjoint = bool(np.all(self.start[1:] >= (self.start + self.duration)[:-1]))
        self.iteration = self._iteration(nodes["start"], nodes["thread"])
        self.layer = np.full(len(nodes), -1, dtype=np.int32)
        self.depth = np.zeros(len(nodes), dtype=np.int32)
        self.parent = self._parents()

    def _iteration(self, times: _INT, threads: _INT) -> npt.NDArray[np.int32]:
        own = enclosing(times, threads, self.start, self.duration, self.thread)
        if not self.disjoint:
            return own
        # nodes of a parallel executor run on threads of a pool; runs that lie apart tell by time alone
        return np.where(own >= 0, own, iteration_at(times, self.start, self.duration)).astype(np.int32)

    def _parents(self) -> npt.NDArray[np.int32]:
        """Return the control-flow node that each node is part of."""
        nodes, ops = self.found.nodes, self.found.ops.table
        container = np.array([op in _CONTAINERS for op in ops], dtype=np.bool_)[nodes["op"]]
        if not container.any():
            return np.full(len(nodes), -1, dtype=np.int32)
        # of nodes with equal times, whole microseconds, a container is the outer one, the one that ended last outermost
        first = np.lexsort((np.where(container, -np.arange(len(nodes)), np.arange(len(nodes))), ~container))
        start, duration, thread = (nodes[name][first] for name in ("start", "duration", "thread"))
        around = nest(start, duration, thread).tolist()
        held = container[first].tolist()
        # neighbours may lie inside each other, too; but only a container holds nodes
        parents, depth = [-1] * len(around), [0] * len(around)
        for here in np.lexsort((np.arange(len(around)), -duration, start)).tolist():
            outer = around[here]
            outer = outer if outer < 0 or held[outer] else parents[outer]
            parents[here], depth[here] = outer, depth[outer] + 1 if outer >= 0 else 0
        found = np.full(len(nodes), -1, dtype=np.int32)
        found[first] = np.append(first, -1)[parents]
        self.depth[first] = depth
        return found

    def lost(self, events: int) -> int:
        """Return how many events the profiler surely dropped: the rest of the run that the cap cut."""
        if events < EVENT_CAP:
            return 0
        counts = np.bincount(self.iteration[self.iteration >= 0])
        typical = int(np.median(counts)) if len(counts) else 0
        return max(1, typical + 2 - int((self.iteration < 0).sum()))

    def layers(self, unavailable: dict[str, str]) -> LayerTrace | None:
        """Return the nodes of each run by call site."""
        nodes = self.found.nodes
        inside = np.flatnonzero(self.iteration >= 0)
        if not len(inside):
            unavailable["layers"] = "the profile holds no run from its beginning to its end"
            return None
        rows: dict[tuple[int, ...], int] = {}
        keys: list[tuple[int, int, int]] = []
        parents: list[int] = []
        counts: dict[tuple[int, ...], int] = {}
        columns = (self.depth, -nodes["duration"], nodes["start"], self.iteration)
        order = inside[np.lexsort(tuple(column[inside] for column in columns))]
        layer = self.layer.tolist()
        named = [nodes[name][order].tolist() for name in ("name", "op", "index")]
        branches = self._branches(order, named)
        before = -1
        for here, iteration, outer, *key in zip(
            order.tolist(), self.iteration[order].tolist(), self.parent[order].tolist(), *named, strict=True
        ):
            if iteration != before:
                counts, before = {}, iteration
            above = layer[outer] if outer >= 0 else -1
            site = (above, branches.get(outer, -1), *key)
            counts[site] = nth = counts.get(site, 0) + 1
            row = layer[here] = rows.setdefault((*site, nth), len(keys))
            if row == len(keys):
                keys.append((key[0], key[1], key[2]))
                parents.append(above)
        if len(keys) * len(self.start) > _MOST_CELLS:
            unavailable["layers"] = (
                f"{len(keys):,} call sites in {len(self.start):,} runs are more than a table of layers is made for; "
                "the nodes are in /operators"
            )
            return None
        self.layer = np.array(layer, dtype=np.int32)
        return self._trace(self._table(keys, parents), inside)

    def _branches(self, order: npt.NDArray[np.intp], named: list[list[int]]) -> dict[int, int]:
        """Return a number for what ran in each If: the profile does not say which branch that was.

        A branch runs as a whole, so the nodes that ran tell it, though some of both may be called alike.
        """
        branching = self.found.ops.find("If")
        ops = self.found.nodes["op"]
        inside: dict[int, list[tuple[int, ...]]] = {}
        for here, *key in zip(order.tolist(), *named, strict=True):
            outer = int(self.parent[here])
            if outer >= 0 and ops[outer] == branching:
                inside.setdefault(outer, []).append(tuple(key))
        numbers: dict[tuple[tuple[int, ...], ...], int] = {}
        return {outer: numbers.setdefault(tuple(sorted(ran)), len(numbers)) for outer, ran in inside.items()}

    def _table(self, keys: list[tuple[int, int, int]], parents: list[int]) -> LayerTable:
        names, ops = self.found.names.table, self.found.ops.table
        depth: list[int] = []
        for above in parents:
            depth.append(0 if above < 0 else depth[above] + 1)
        details, shapes = [self.found.details[key] for key in keys], self.found.shapes.table
        return LayerTable(
            name=tuple(unique_labels(names[key[0]] for key in keys)),
            type=tuple(ops[key[1]] for key in keys),
            scope=("",) * len(keys),
            parent=tuple(parents),
            depth=tuple(depth),
            input_shapes=tuple(shapes[code] for code, *_ in details),
            output_shapes=tuple(shapes[code] for _, code, *_ in details),
            parameter_bytes=tuple(size for *_, size, _ in details),
            activation_bytes=tuple(size for *_, size in details),
            sources=("",) * len(keys),
        )

    def _trace(self, table: LayerTable, inside: npt.NDArray[np.intp]) -> LayerTrace:
        nodes = self.found.nodes
        held = np.zeros(len(nodes), dtype=np.int64)
        children = np.flatnonzero(self.parent >= 0)
        np.add.at(held, self.parent[children], nodes["duration"][children])
        shape = (len(self.start), len(table))
        start, duration, exclusive = (np.full(shape, -1, dtype=np.int64) for _ in range(3))
        at = (self.iteration[inside], self.layer[inside])
        start[at] = 1000 * nodes["start"][inside]
        duration[at] = 1000 * nodes["duration"][inside]
        exclusive[at] = 1000 * np.maximum(nodes["duration"] - held, 0)[inside]
        return LayerTrace(
            layers=table, start_ns=start, duration_ns=duration, exclusive_ns=exclusive,
            iteration_start_ns=1000 * self.start, iteration_duration_ns=1000 * self.duration,
            resolution_ns=RESOLUTION_NS,
        )  # fmt: skip

    def events(self) -> dict[str, EventTable]:
        """Return nodes, session events and kernels by group."""
        found, nodes, session, kernels = self.found, self.found.nodes, self.found.session, self.found.kernels
        groups = {
            schema.OPERATORS: EventTable(
                columns={
                    "iteration": self.iteration,
                    "name_code": nodes["name"].astype(np.int32),
                    "category_code": nodes["provider"].astype(np.int32),
                    "thread_code": nodes["thread"].astype(np.int32),
                    "type_code": nodes["op"].astype(np.int32),
                    "start_ns": 1000 * nodes["start"],
                    "duration_ns": 1000 * nodes["duration"],
                    "parent_index": self.parent,
                    "layer_index": self.layer,
                    "shapes_code": nodes["shapes"].astype(np.int32),
                    "output_bytes": nodes["output"],
                    "allocated_bytes": nodes["taken"],
                },
                tables={"name": found.names.table, "category": found.providers.table, "thread": found.threads.table,
                        "type": found.ops.table, "shapes": found.shapes.table},
            ),
            schema.ANNOTATIONS: EventTable(
                columns={
                    "iteration": self._iteration(session["start"], session["thread"]),
                    "name_code": session["name"].astype(np.int32),
                    "category_code": session["category"].astype(np.int32),
                    "thread_code": session["thread"].astype(np.int32),
                    "start_ns": 1000 * session["start"],
                    "duration_ns": 1000 * session["duration"],
                },
                tables={"name": found.session_names.table, "category": found.session_categories.table,
                        "thread": found.threads.table},
            ),
        }  # fmt: skip
        if len(kernels):
            launched = kernels["operator"]
            groups[schema.KERNELS] = EventTable(
                columns={
                    "iteration": np.append(self.iteration, np.int32(-1))[launched],
                    "name_code": kernels["name"].astype(np.int32),
                    "category_code": np.zeros(len(kernels), dtype=np.int32),
                    "start_ns": 1000 * kernels["start"],
                    "duration_ns": 1000 * kernels["duration"],
                    "stream": kernels["stream"].astype(np.int32),
                    "operator_index": launched.astype(np.int32),
                    "layer_index": np.append(self.layer, np.int32(-1))[launched],
                    **{
                        f"{of}_{axis}": kernels[f"{of}_{axis}"].astype(np.int32)
                        for of in ("grid", "block")
                        for axis in "xyz"
                    },
                },
                tables={"name": found.kernel_names.table, "category": ("kernel",)},
            )
        return groups


def _recognises(head: Head) -> bool:
    text = head.data[:4096]
    return re.search(rb'\{"cat" ?: ?"(Session|Node|Api)", ?"pid" ?: ?-?\d+, ?"tid" ?: ?-?\d+, ?"dur"', text) is not None


ONNXRUNTIME = Importer(title="ONNX Runtime profile", recognises=_recognises, load=_load)
