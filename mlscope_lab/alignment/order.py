"""An order of tensors that two frameworks share, whatever order they run branches in.

Depth first from the outputs, inputs before what reads them, arguments in their order. The arguments of an addition or
a multiplication have no order of their own: that with more convolutions behind it goes first, which holds also where
one of them is fused with the addition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlscope_lab.alignment.network import Network
from mlscope_lab.trace.kinds import COMPUTE

__all__ = ["canonical_order"]

_COMMUTATIVE = frozenset({"addition", "multiplication"})


def canonical_order(network: Network, outputs: Sequence[int], places: Mapping[int, float] | None = None) -> list[int]:
    """Return all tensors of a network, each after what it is computed from.

    Parameters
    ----------
    network
        Of one side.
    outputs
        Tensors to begin from, in the order that both sides share; others that nothing reads follow.
    places
        Where tensors stand in the other side's order, as far as known: decides between arguments that are alike.
    """
    around = _Around(network, places or {})
    done: list[int] = []
    seen: set[int] = set()
    for start in [*outputs, *network.outputs]:
        stack = [(start, False)]
        while stack:
            tensor, finished = stack.pop()
            if finished:
                done.append(tensor)
                continue
            if tensor in seen:
                continue
            seen.add(tensor)
            stack.append((tensor, True))
            stack.extend((i, False) for i in reversed(around.arguments(tensor)) if i not in seen)
    return done


class _Around:
    """Arguments in order, by depth and by where the other side has them."""

    def __init__(self, network: Network, places: Mapping[int, float]) -> None:
        self._network, self._places = network, places

    def arguments(self, tensor: int) -> list[int]:
        network = self._network
        reads = list(dict.fromkeys(network.reads[tensor]))
        writer = network.tensors[tensor].writer
        if len(reads) < 2 or writer < 0:
            return reads
        kinds = network.graph.operations[writer].kinds
        heavy = bool(COMPUTE & set(kinds))
        if not _COMMUTATIVE & set(kinds) or (heavy and len(kinds) < 2):
            return reads
        keys = {}
        for place, r in enumerate(reads):
            extra = int(heavy and place == 0)
            keys[r] = (-(network.depth[r] + extra), -(network.ancestors[r] + extra))
        alike = len(set(keys.values())) < len(reads)
        if alike and self._places:
            found = {r: self._place(r, reads) for r in reads}
            if all(p is not None for p in found.values()):
                return sorted(reads, key=lambda r: (keys[r], found[r]))
        return sorted(reads, key=lambda r: keys[r])

    def _place(self, tensor: int, siblings: Sequence[int]) -> float | None:
        """Return where the other side has a tensor, or what is known of the nearest before it."""
        network, current, others = self._network, tensor, set(siblings) - {tensor}
        for _ in range(len(network)):
            if current in self._places:
                return self._places[current]
            current = network.main[current]
            if current < 0 or current in others:
                return None
        return None
