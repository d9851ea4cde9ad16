"""From runs of TensorFlow's nodes to the layers of a trace.

Rows are executed nodes by the names that TensorFlow's optimiser gave them. Nodes that hold or pass a tensor without
computing (constants, arguments, results, no-ops) are left out, and their microseconds count to no layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.tensorflow_graph import BOOKKEEPING, Frozen, plain_type
from mlscope_lab.backends.tensorflow_nodes import NodeRun, by_first_start, covered, nest
from mlscope_lab.backends.tensorflow_profiler import HostEvent
from mlscope_lab.trace.records import LayerTable

__all__ = ["Layers", "Step", "input_shapes", "layers_of"]


@dataclass(kw_only=True)
class Step:
    """One traced predict.

    Attributes
    ----------
    start, duration
        The predict itself, on `time.perf_counter_ns`.
    runs
        Every node that was timed, in the order of their start.
    others
        What else happened meanwhile, where it was recorded.
    """

    start: int
    duration: int
    runs: list[NodeRun]
    others: list[HostEvent] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of some steps.

    Attributes
    ----------
    table
        Their descriptions.
    start_ns, duration_ns, exclusive_ns
        (step, layer) times, -1 where a layer did not run.
    rows
        For each step the row of each of its runs, -1 for bookkeeping.
    """

    table: LayerTable
    start_ns: npt.NDArray[np.int64]
    duration_ns: npt.NDArray[np.int64]
    exclusive_ns: npt.NDArray[np.int64]
    rows: list[list[int]]


def layers_of(steps: Sequence[Step], described: Mapping[str, NodeRun], frozen: Frozen, error: int) -> Layers:
    """Make the rows.

    Parameters
    ----------
    steps
        In order; their runs are labelled, nested and cut to the step.
    described
        Runs with what they read and made, by the name of the node.
    frozen
        The graph that ran, for the names of things.
    error
        Bound on the error of the runs' times, in ns.
    """
    rows: dict[str, int] = {}
    first: list[tuple[NodeRun, int]] = []
    timed: list[list[tuple[int, NodeRun, int]]] = []
    places: list[list[int]] = []
    for step in steps:
        layers = [run for run in step.runs if run.op not in BOOKKEEPING]
        end = step.start + step.duration
        for run in layers:  # a reading of the clock may lie a microsecond beside; the step encloses its nodes
            run.start = min(max(run.start, step.start - error), end)
            run.stop = min(max(run.stop, run.start), end + error)
        nest(layers)
        seen: dict[str, int] = {}
        for run in layers:
            base = frozen.plain_name(run.name)
            seen[base] = seen.get(base, 0) + 1
            run.label = base if seen[base] == 1 else f"{base}#{seen[base]}"
            if run.label not in rows:
                rows[run.label] = len(rows)
                first.append((run, rows[layers[run.parent].label] if run.parent >= 0 else -1))
        timed.append(
            [
                (rows[run.label], run, run.stop - run.start - covered([layers[i] for i in run.children]))
                for run in layers
            ]
        )
        places.append([rows[run.label] if run.label else -1 for run in step.runs])
    shape = (len(steps), len(rows))
    starts, durations, exclusives = (np.full(shape, -1, dtype=np.int64) for _ in range(3))
    for i, times in enumerate(timed):
        for row, run, exclusive in times:
            starts[i, row], durations[i, row] = run.start, run.stop - run.start
            exclusives[i, row] = exclusive
    order = by_first_start(starts)
    place = {row: k for k, row in enumerate(order)} | {-1: -1}
    labels = list(rows)
    return Layers(
        table=_table([first[row] for row in order], place, [labels[row] for row in order], described, frozen),
        start_ns=starts[:, order],
        duration_ns=durations[:, order],
        exclusive_ns=exclusives[:, order],
        rows=[[place[row] for row in step_rows] for step_rows in places],
    )


def _table(
    first: Sequence[tuple[NodeRun, int]],
    place: Mapping[int, int],
    labels: Sequence[str],
    described: Mapping[str, NodeRun],
    frozen: Frozen,
) -> LayerTable:
    parents = [place[parent] for _, parent in first]
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    texts = [_describe(run, described, frozen) for run, _ in first]
    return LayerTable(
        name=tuple(labels),
        type=tuple(plain_type(run.op) for run, _ in first),
        scope=tuple(t["scope"] for t in texts),
        parent=tuple(parents),
        depth=tuple(depths),
        input_shapes=tuple(t["input_shapes"] for t in texts),
        output_shapes=tuple(t["output_shapes"] for t in texts),
        parameter_bytes=tuple(t["parameter_bytes"] for t in texts),
        activation_bytes=tuple(t["activation_bytes"] for t in texts),
        sources=tuple(t["sources"] for t in texts),
    )


def input_shapes(run: NodeRun, described: Mapping[str, NodeRun]) -> tuple[str, int]:
    """Return types and shapes of what a described run reads, joined by ``;``, and the bytes of its weights."""
    shapes, weights = [], 0
    for text in run.inputs:
        name, _, slot = text.lstrip("^").partition(":")
        maker = described.get(name)
        if text.startswith("^") or maker is None:
            continue
        index = int(slot) if slot.isdecimal() else 0
        if index < len(maker.outputs):
            shape, size = maker.outputs[index]
            shapes.append(shape)
            if maker.op == "Const" and not shape.startswith(("int32", "int64", "bool")):
                weights += max(size, 0)
    return ";".join(s for s in shapes if s), weights


def _describe(run: NodeRun, described: Mapping[str, NodeRun], frozen: Frozen) -> dict[str, Any]:
    found = described.get(run.name, run)
    shapes, weights = input_shapes(found, described)
    names = {text.lstrip("^").partition(":")[0] for text in found.inputs}
    sources = frozen.sources(run.name, run.op, names, set(described))
    return {
        "scope": frozen.scope(run.name, sources),
        "sources": ";".join(frozen.plain_name(s) for s in sources) if len(sources) > 1 else "",
        "input_shapes": shapes,
        "output_shapes": ";".join(text for text, _ in found.outputs if text),
        "parameter_bytes": weights if run.name in described else -1,
        "activation_bytes": found.output_bytes,
    }
