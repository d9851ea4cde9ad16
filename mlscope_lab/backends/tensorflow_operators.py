"""What lies below TensorFlow's layers: every node of a step, what the executor did, and its allocators' memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.tensorflow_graph import BOOKKEEPING, Frozen, plain_type
from mlscope_lab.backends.tensorflow_layers import Layers, Step, input_shapes
from mlscope_lab.backends.tensorflow_nodes import NodeRun
from mlscope_lab.trace.attribution import enclosing
from mlscope_lab.trace.events import intern_texts
from mlscope_lab.trace.records import EventTable

__all__ = ["Operators", "annotations_of", "memory_of", "operators_of", "sizes_of"]

_NODE, _BOOKKEEPING, _EXECUTOR = "tf_op", "bookkeeping", "executor"
_TYPES = {"double": "float64", "float": "float32", "half": "float16"}
_UNSEEN = "oneDNN's allocator shows no allocations of less than some hundred kilobytes"
_PASSED_ON = "constants do not run: their rows are the time in which the executor passed their tensor on"


@dataclass(slots=True)
class _Row:
    iteration: int
    name: str
    category: str
    kind: str
    thread: str
    start: int
    stop: int
    layer: int = -1
    parent: int = -1
    output_bytes: int = -1
    allocated_bytes: int = -1
    allocations: Sequence[tuple[int, int]] = field(default_factory=tuple)
    shapes: str = ""


@lru_cache(maxsize=4096)
def _shapes(written: str) -> str:
    """Return TensorFlow's ``(float[2,3];int32[])`` as ``float32[2,3];int32[]``; "" where it knows no input.

    Examples
    --------
    >>> _shapes("(float[2,3];int32[])")
    'float32[2,3];int32[]'
    """
    parts = [part.partition("[") for part in written.removeprefix("(").removesuffix(")").split(";")]
    text = ";".join(f"{_TYPES.get(kind, kind)}{mark}{rest}" for kind, mark, rest in parts)
    return text if text.strip(";") else ""


@dataclass(frozen=True, kw_only=True)
class Operators:
    """The operators of some steps.

    Attributes
    ----------
    table
        A row each.
    allocations
        (row, iteration, time, bytes) of what each kernel got or, negative, gave back, where the runs themselves tell.
    """

    table: EventTable
    allocations: Sequence[tuple[int, int, int, int]]


def sizes_of(runs: Sequence[NodeRun]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return output bytes and allocated bytes of a step's runs, by the node's name and how often it ran before."""
    seen: dict[str, int] = {}
    sizes = {}
    for run in runs:
        nth = seen[run.name] = seen.get(run.name, -1) + 1
        sizes[run.name, nth] = (run.output_bytes, run.allocated_bytes)
    return sizes


def operators_of(
    steps: Sequence[Step],
    layers: Layers,
    described: Mapping[str, NodeRun],
    sizes: Sequence[Mapping[tuple[str, int], tuple[int, int]]],
    frozen: Frozen,
) -> Operators:
    """Return a row for each run of a node, in the order of their start.

    The category is "tf_op" for a node that computes, "bookkeeping" for one that holds or passes a tensor, and
    "executor" for the passing on of a node's outputs. Under the profiler constants do not run: their rows are the time
    in which the executor passed their tensor on. The profiler does not tell sizes; they are those of the step that
    described the nodes.

    Parameters
    ----------
    steps, layers
        What was recorded, and the layers made of it.
    described
        Runs with what they read and made, by the name of the node.
    sizes
        For each step output bytes and allocated bytes by name and count, for runs that do not tell themselves.
    frozen
        The graph that ran.
    """
    rows: list[_Row] = []
    for iteration, step in enumerate(steps):
        made = [*_of_nodes(iteration, step, layers.rows[iteration], sizes[iteration], frozen)]
        for row, run in zip(made, step.runs, strict=True):
            row.shapes = _shapes(run.shapes) if run.shapes else input_shapes(run, described)[0]
        made += _of_executor(iteration, step, described, frozen)
        order = sorted(range(len(made)), key=lambda k: (made[k].start, -made[k].stop))
        place = {k: len(rows) + i for i, k in enumerate(order)} | {-1: -1}
        for k in order:
            made[k].parent = place[made[k].parent]
            rows.append(made[k])
    passed_on = any(event.kind == "propagation" for step in steps for event in step.others)
    return Operators(
        table=_table(rows, {"bookkeeping": _PASSED_ON} if passed_on else {}),
        allocations=[(k, row.iteration, when, size) for k, row in enumerate(rows) for when, size in row.allocations],
    )


def _table(rows: Sequence[_Row], attrs: Mapping[str, str]) -> EventTable:
    names, name_table = intern_texts([row.name for row in rows])
    categories, category_table = intern_texts([row.category for row in rows])
    kinds, type_table = intern_texts([row.kind for row in rows])
    threads, thread_table = _told([row.thread for row in rows])
    shapes, shapes_table = _told([row.shapes for row in rows])
    return EventTable(
        columns={
            "iteration": np.array([row.iteration for row in rows], dtype=np.int32),
            "name_code": names,
            "category_code": categories,
            "type_code": kinds,
            "thread_code": threads,
            "shapes_code": shapes,
            "start_ns": np.array([row.start for row in rows], dtype=np.int64),
            "duration_ns": np.array([row.stop - row.start for row in rows], dtype=np.int64),
            "parent_index": np.array([row.parent for row in rows], dtype=np.int32),
            "layer_index": np.array([row.layer for row in rows], dtype=np.int32),
            "output_bytes": np.array([row.output_bytes for row in rows], dtype=np.int64),
            "allocated_bytes": np.array([row.allocated_bytes for row in rows], dtype=np.int64),
        },
        tables={
            "name": name_table, "category": category_table, "type": type_table, "thread": thread_table,
            "shapes": shapes_table,
        },
        attrs=attrs,
    )  # fmt: skip


def _told(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return codes and table of texts, -1 for the empty one."""
    codes, found = intern_texts(texts)
    if "" not in found:
        return codes, found
    gone = found.index("")
    place = np.array([-1 if k == gone else k - (k > gone) for k in range(len(found))], dtype=np.int32)
    return place[codes], tuple(text for text in found if text)


def _of_nodes(
    iteration: int, step: Step, layers: Sequence[int], sizes: Mapping[tuple[str, int], tuple[int, int]], frozen: Frozen
) -> Iterator[_Row]:
    """Yield the rows of a step's nodes; parents are positions among them."""
    of_layers = [k for k, run in enumerate(step.runs) if run.label]  # parents count among these
    seen: dict[str, int] = {}
    end = step.start + step.duration
    for run, layer in zip(step.runs, layers, strict=True):
        nth = seen[run.name] = seen.get(run.name, -1) + 1
        start = min(max(run.start, step.start), end)
        known = sizes.get((run.name, nth), (-1, -1))
        yield _Row(
            iteration=iteration,
            name=frozen.plain_name(run.name),
            category=_BOOKKEEPING if run.op in BOOKKEEPING else _NODE,
            kind=plain_type(run.op),
            thread=run.thread,
            start=start,
            stop=min(max(run.stop, start), end),
            layer=layer,
            parent=of_layers[run.parent] if run.parent >= 0 else -1,
            output_bytes=run.output_bytes if run.outputs else known[0],
            allocated_bytes=run.allocated_bytes if run.allocated_bytes >= 0 else known[1],
            allocations=run.allocations,
        )


def _of_executor(iteration: int, step: Step, described: Mapping[str, NodeRun], frozen: Frozen) -> Iterator[_Row]:
    timed = {run.name for run in step.runs}
    for event in step.others:
        if event.kind != "propagation":
            continue
        node = str(event.stats.get("kernel_name", ""))
        maker = described.get(node)
        held = maker is not None and node not in timed and maker.op in BOOKKEEPING
        yield _Row(
            iteration=iteration,
            name=frozen.plain_name(node),
            category=_BOOKKEEPING if held else _EXECUTOR,
            kind=plain_type(maker.op) if maker is not None and held else "PropagateOutputs",
            thread=event.thread,
            start=event.start,
            stop=event.stop,
            output_bytes=maker.output_bytes if maker is not None and held else -1,
            allocated_bytes=0 if held else -1,
        )


def annotations_of(steps: Sequence[Step]) -> EventTable | None:
    """Return the spans of the session's run and of the executor's turns, None where they were not recorded."""
    found = [
        (iteration, event)
        for iteration, step in enumerate(steps)
        for event in sorted(step.others, key=lambda event: (event.start, -event.stop))
        if event.kind in {"session", "executor"}
    ]
    if not found:
        return None
    names, name_table = intern_texts([event.name for _, event in found])
    categories, category_table = intern_texts([event.kind for _, event in found])
    threads, thread_table = intern_texts([event.thread for _, event in found])
    return EventTable(
        columns={
            "iteration": np.array([iteration for iteration, _ in found], dtype=np.int32),
            "name_code": names,
            "category_code": categories,
            "thread_code": threads,
            "start_ns": np.array([event.start for _, event in found], dtype=np.int64),
            "duration_ns": np.array([event.stop - event.start for _, event in found], dtype=np.int64),
        },
        tables={"name": name_table, "category": category_table, "thread": thread_table},
    )


def memory_of(steps: Sequence[Step], operators: Operators) -> EventTable | None:
    """Return what TensorFlow's allocators gave out and took back, None where nothing was recorded.

    Under the profiler these are the allocators' own events with the bytes that they hold; an allocation belongs to the
    node that was running on its thread. oneDNN's allocator keeps small ones to itself; the attribute "incomplete" says
    so. Step statistics give each kernel's allocations, whose sum is not told.
    """
    columns = operators.table.columns
    known = {thread: code for code, thread in enumerate(operators.table.tables["thread"])}
    found: list[tuple[int, int, int, str, int, int, int, int]] = []
    for iteration, step in enumerate(steps):
        for event in step.others:
            if event.kind == "memory":
                size, stats = int(event.stats.get("allocation_bytes", 0)), event.stats
                found.append((
                    event.start, iteration, known.get(event.thread, -2), f"host ({stats.get('allocator_name', '')})",
                    size if event.name == "MemoryAllocation" else -size,
                    int(stats.get("bytes_allocated", -1)), int(stats.get("addr", -1)), -1,
                ))  # fmt: skip
    stops = columns["start_ns"] + columns["duration_ns"]
    for row, iteration, when, size in operators.allocations:
        own = row if size > 0 or when <= stops[row] else -1  # a tensor goes when its last reader has run
        found.append((when, iteration, -2, "host", size, -1, -1, own))
    if not found:
        return None
    found.sort()
    times = np.array([row[0] for row in found], dtype=np.int64)
    around = enclosing(
        times, np.array([row[2] for row in found], dtype=np.int64), columns["start_ns"], columns["duration_ns"],
        columns["thread_code"].astype(np.int64),
    )  # fmt: skip
    own_rows = np.array([row[7] for row in found], dtype=np.int32)
    operator = np.where(own_rows >= 0, own_rows, around).astype(np.int32)
    devices, device_table = intern_texts([row[3] for row in found])
    return EventTable(
        columns={
            "iteration": np.array([row[1] for row in found], dtype=np.int32),
            "device_code": devices,
            "time_ns": times,
            "bytes": np.array([row[4] for row in found], dtype=np.int64),
            "allocated_bytes": np.array([row[5] for row in found], dtype=np.int64),
            "layer_index": np.append(columns["layer_index"], np.int32(-1))[operator],
            "operator_index": operator,
            "address": np.array([row[6] for row in found], dtype=np.int64),
        },
        tables={"device": device_table},
        attrs={"incomplete": _UNSEEN} if any("(mkl" in name for name in device_table) else {},
    )
