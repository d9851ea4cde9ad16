"""The operations between pairs: what computes each paired value from values of earlier pairs."""

from __future__ import annotations

from collections.abc import Sequence

from mlscope_lab.trace.graph import Graph
from mlscope_lab.trace.kinds import LAYOUT

__all__ = ["groups_of", "is_layout"]


def is_layout(graph: Graph, operation: int) -> bool:
    """Tell whether an operation only moves values."""
    return set(graph.operations[operation].kinds) <= LAYOUT


def groups_of(graph: Graph, values: Sequence[int]) -> list[tuple[int, ...]]:
    """Return for each of some values the operations that compute it from the others.

    Parameters
    ----------
    graph
        Of one side.
    values
        Paired values, in the order of the reference.

    Notes
    -----
    An operation that computes belongs to the first group that needs it. One that only moves values belongs to each that
    needs it, and so does one that writes several paired values: otherwise a group could not run on its own.
    """
    writers = graph.writers()
    paired = set(values)
    taken: set[int] = set()
    made: list[tuple[int, ...]] = []
    for value in values:
        group: set[int] = set()
        waiting = [writers[value]] if value in writers else []
        own = set(waiting)
        while waiting:
            operation = waiting.pop()
            if operation in group or (operation in taken and operation not in own):
                continue
            group.add(operation)
            for read in graph.operations[operation].inputs:
                if read not in paired and read in writers:
                    waiting.append(writers[read])
        taken |= {operation for operation in group if not is_layout(graph, operation)}
        made.append(tuple(sorted(group)))
    return made
