"""Runs of TensorFlow's nodes: one record for each, whoever timed it, and how records nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.tensorflow_graph import CALLS

__all__ = ["NodeRun", "by_first_start", "covered", "nest"]


@dataclass(slots=True, kw_only=True)
class NodeRun:
    """One run of one node, in nanoseconds of `time.perf_counter_ns`.

    Attributes
    ----------
    name, op
        Name that the optimised graph gives the node, and its operation.
    start, stop
        When its kernel began and ended.
    thread
        Thread that ran it, "" where unknown.
    shapes
        Types and shapes of its inputs in this very run, "" where it does not tell.
    inputs
        Names of the tensors that it reads.
    outputs
        Text of type and shape, and bytes (-1 where unknown), of each tensor that it makes.
    allocated_bytes
        Bytes that its kernel asked for, -1 where unknown.
    allocations
        When, and how many bytes it got or, negative, gave back, where known.
    label
        Name of its row: that of the node, counted where it runs more than once in a step.
    parent
        Position of the call or loop around it, -1 for none.
    children
        Positions of what it encloses.
    """

    name: str
    op: str
    start: int
    stop: int
    thread: str = ""
    shapes: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[tuple[str, int], ...] = ()
    allocated_bytes: int = -1
    allocations: tuple[tuple[int, int], ...] = ()
    label: str = ""
    parent: int = -1
    children: list[int] = field(default_factory=list)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors that it makes, -1 where unknown."""
        sizes = [size for _, size in self.outputs]
        return sum(sizes) if sizes and min(sizes) >= 0 else -1


def nest(runs: Sequence[NodeRun]) -> None:
    """Give runs their parents: the innermost function call or loop that encloses them in time.

    Parameters
    ----------
    runs
        In the order of their start, the longer first where two start together.
    """
    open_calls: list[int] = []
    for index, run in enumerate(runs):
        while open_calls and runs[open_calls[-1]].stop < run.stop:
            open_calls.pop()
        if open_calls:
            run.parent = open_calls[-1]
            runs[open_calls[-1]].children.append(index)
        if run.op in CALLS:
            open_calls.append(index)


def covered(runs: Sequence[NodeRun]) -> int:
    """Return the length of the union of some runs' intervals; they are in the order of their start."""
    total, reach = 0, -(1 << 62)
    for run in runs:
        total += max(run.stop - max(run.start, reach), 0)
        reach = max(reach, run.stop)
    return total


def by_first_start(starts: npt.NDArray[np.int64]) -> list[int]:
    """Return the rows of (iteration, row) starts in the order of their first, those of the first iteration first."""
    if not starts.size:
        return []
    ran = starts >= 0
    iteration = ran.argmax(axis=0)
    begin = starts[iteration, np.arange(starts.shape[1])]
    return [int(row) for row in np.lexsort((begin, iteration))]
