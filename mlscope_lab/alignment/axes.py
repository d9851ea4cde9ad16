"""Which axis of one value is which of the other: by lengths, by profiles, and as it was for the value before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Final

import numpy as np

from mlscope_lab.alignment.sketch import ValueSketch

__all__ = ["Axes"]

_MOST: Final = 6
"""Values of more axes are not permuted."""
_DIFFERENT: Final = 0.3
_ALIKE: Final = 3.0


class Axes:
    """Finds orders of axes, one value after the other; remembers the last that was certain for each pair of ranks."""

    def __init__(self) -> None:
        self._habits: dict[tuple[int, int], tuple[int, ...]] = {}

    def between(
        self, a: tuple[int, ...], b: tuple[int, ...], one: ValueSketch | None, other: ValueSketch | None
    ) -> tuple[int, ...] | None:
        """Return the order of b's axes in which its elements stand as a's do, None if it is their own.

        Parameters
        ----------
        a, b
            Shapes of a sample, with the batch axis.
        one, other
            Their sketches, where there are any.
        """
        long_a = [i for i, n in enumerate(a) if n != 1]
        long_b = [i for i, n in enumerate(b) if n != 1]
        if len(long_b) < 2 or len(long_b) > _MOST:
            return None
        if sorted(a[i] for i in long_a) != sorted(b[i] for i in long_b):
            return self._merged(a, b, long_b)
        options = [p for p in permutations(long_b) if all(a[i] == b[j] for i, j in zip(long_a, p, strict=True))]
        orders = [_whole(a, b, long_a, p) for p in options]
        chosen = self._choose(a, b, orders, [_cost(long_a, p, one, other) for p in options])
        return None if chosen == tuple(range(len(b))) else chosen

    def _choose(
        self, a: tuple[int, ...], b: tuple[int, ...], orders: Sequence[tuple[int, ...]], costs: Sequence[float]
    ) -> tuple[int, ...]:
        ranks = (len(a), len(b))
        least = min(costs)
        alike = [
            order for order, cost in zip(orders, costs, strict=True)
            if least > _DIFFERENT or cost <= _ALIKE * least + 1e-6
        ]  # fmt: skip
        if len(alike) == 1:
            if len(orders) == 1 or least <= _DIFFERENT:
                self._habits[ranks] = alike[0]
            return alike[0]
        habit = self._habits.get(ranks)
        own = tuple(range(len(b)))
        for wanted in (habit, own, _moved(b, first=True), _moved(b, first=False)):
            if wanted in alike:
                return wanted
        return min(alike)

    def _merged(self, a: tuple[int, ...], b: tuple[int, ...], long_b: Sequence[int]) -> tuple[int, ...] | None:
        """Return an order after which a reshape alone is left, where axes of b are merged in a."""
        habit = next((h for (_, rank), h in self._habits.items() if rank == len(b)), None)
        for order in (habit, tuple(range(len(b)))):
            if order is not None and _refines([b[i] for i in order], a):
                return None if order == tuple(range(len(b))) else order
        return None


def _refines(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Tell whether a shape becomes another by merging axes that stand side by side."""
    ends = np.cumprod([n for n in fine if n != 1])
    return set(np.cumprod([n for n in coarse if n != 1]).tolist()) <= set(ends.tolist())


def _whole(a: tuple[int, ...], b: tuple[int, ...], long_a: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Return an order of all axes of b; those of length 1 stand where a has such, as far as it has."""
    short_b = [j for j, n in enumerate(b) if n == 1]
    places = dict(zip(long_a, order, strict=True))
    made: list[int] = []
    for i in range(len(a)):
        if i in places:
            made.append(places[i])
        elif short_b:
            made.append(short_b.pop(0))
    if short_b:
        # an order that leaves axes as they are is kept so
        if list(order) == sorted(order):
            return tuple(range(len(b)))
        made += short_b
    return tuple(made)


def _cost(long_a: Sequence[int], order: Sequence[int], one: ValueSketch | None, other: ValueSketch | None) -> float:
    """Return the largest relative difference of the profiles of axes that are to be the same; inf where unknown."""
    if one is None or other is None:
        return float("inf")
    worst = 0.0
    for i, j in zip(long_a, order, strict=True):
        if i >= len(one.profiles) or j >= len(other.profiles):
            return float("inf")
        p, q = one.profiles[i], other.profiles[j]
        if len(p) != len(q) or not len(p):
            return float("inf")
        with np.errstate(all="ignore"):
            spread = float(np.std(p) + np.std(q))
            apart = float(np.sqrt(np.mean(np.square(p - q))))
        if not np.isfinite(apart):
            return float("inf")
        worst = max(worst, apart / spread if spread > 0 else float(apart > 0))
    return worst


def _moved(b: tuple[int, ...], *, first: bool) -> tuple[int, ...]:
    """Return the order that brings channels from the last place to the second, or the reverse."""
    rank = len(b)
    if rank < 3:
        return tuple(range(rank))
    return (0, rank - 1, *range(1, rank - 1)) if first else (0, *range(2, rank), 1)
