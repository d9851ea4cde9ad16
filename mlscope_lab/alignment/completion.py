"""Pairs moved behind operators that one side has alone and that leave a value as it is.

Casts there and back, or scaling and its inverse: what comes out should be what went in, so the value behind them is the
partner, and what goes wrong in between (an overflow in float16) is found in the group that they are in.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from mlscope_lab.alignment.distances import distance
from mlscope_lab.alignment.network import Network
from mlscope_lab.alignment.sketch import ValueSketch
from mlscope_lab.trace.kinds import LAYOUT

__all__ = ["behind_detours"]

_PLAIN: Final = LAYOUT | {"multiplication", "addition", "elementwise", "quantization"}
_KEPT: Final = 1e-2


def behind_detours(network: Network, tensor: int, taken: Container[int]) -> int:
    """Return the last tensor behind a chain of operators that change nothing, the given one if there is none.

    Parameters
    ----------
    network
        Of one side.
    tensor
        Which has a partner.
    taken
        Tensors that have partners.

    Notes
    -----
    Operators count that read one value and at most one constant, one after the other without branches. What is behind
    them is as before if its sketch is, or if elements that were finite are no longer.
    """
    best, current, first = tensor, tensor, network.tensors[tensor]
    while len(network.readers[current]) == 1:
        current = network.readers[current][0]
        here = network.tensors[current]
        operation = network.graph.operations[here.writer]
        if (
            current in taken
            or not set(operation.kinds) <= _PLAIN
            or operation.parameter_count > 1
            or len(set(network.reads[current])) != 1
            or (here.elements, here.kind) != (first.elements, first.kind)
        ):
            break
        if first.sketch is not None and here.sketch is not None and _unchanged(first.sketch, here.sketch):
            best = current
    return best


def _unchanged(before: ValueSketch, after: ValueSketch) -> bool:
    lost = after.nan + after.inf > before.nan + before.inf
    return lost or (not before.constant and distance(before, after) < _KEPT)
