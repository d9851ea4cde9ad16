"""Which axis of one value is which of the other: by lengths, by profiles, and as it was for the value before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Final

import numpy as np
import numpy.typing as npt

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
        self,
        a: tuple[int, ...],
        b: tuple[int, ...],
        one: ValueSketch | None,
        other: ValueSketch | None,
        *,
        before: Sequence[tuple[int, ...]] = (),
        heals: bool = True,
    ) -> tuple[int, ...]:
        """Return the order of b's axes in which its elements stand as a's do.

        Parameters
        ----------
        a, b
            Shapes of a sample, with the batch axis.
        one, other
            Their sketches, where there are any.
        before
            Orders that were found for the values that these are computed from.
        heals
            Whether all that is computed from these is equal again. If not, axes of one length that have changed places
            since the values before are a fault to be seen, and no layout to be undone.
        """
        own = tuple(range(len(b)))
        long_a = [i for i, n in enumerate(a) if n != 1]
        long_b = [i for i, n in enumerate(b) if n != 1]
        if len(long_b) < 2 or len(long_b) > _MOST:
            return own
        if sorted(a[i] for i in long_a) != sorted(b[i] for i in long_b):
            return self._merged(a, b)
        options = [p for p in permutations(long_b) if all(a[i] == b[j] for i, j in zip(long_a, p, strict=True))]
        orders = [_whole(a, b, long_a, p) for p in options]
        costs = [_cost(long_a, p, one, other) for p in options]
        least = min(costs)
        alike = [order for order, cost in zip(orders, costs, strict=True)
                 if least > _DIFFERENT or cost <= _ALIKE * least + 1e-6]  # fmt: skip
        ranks = (len(a), len(b))
        kept = [order for order in dict.fromkeys(before) if order in orders]
        if len(kept) == 1 and (len(alike) > 1 or not heals):
            return kept[0]
        if not heals and not kept and len(orders) == 2:
            # two axes of one length, and the layout is another than before: every layout has them in the same order
            return next(order for order, p in zip(orders, options, strict=True) if _in_order(a, long_a, p))
        if len(alike) == 1:
            self._habits[ranks] = alike[0]
            return alike[0]
        for wanted in (self._habits.get(ranks), own, _moved(b, first=True), _moved(b, first=False)):
            if wanted in alike:
                return wanted
        return min(alike)

    def _merged(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        """Return an order after which a reshape alone is left, where axes of b are merged in a."""
        habit = next((h for (_, rank), h in self._habits.items() if rank == len(b)), None)
        own = tuple(range(len(b)))
        return habit if habit is not None and _refines([b[i] for i in habit], a) else own


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
            spread = _spread(p) + _spread(q)
            difference = p - q
            apart = float(np.sqrt(difference @ difference / len(p)))
        if not np.isfinite(apart):
            return float("inf")
        worst = max(worst, apart / spread if spread > 0 else float(apart > 0))
    return worst


def _in_order(a: tuple[int, ...], long_a: Sequence[int], order: Sequence[int]) -> bool:
    """Tell whether axes of one length keep their order."""
    placed = list(zip((a[i] for i in long_a), order, strict=True))
    return all(m != n or j < k for at, (n, j) in enumerate(placed) for m, k in placed[at + 1 :])


def _spread(profile: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation; by hand, since numpy's takes ten times as long for so few numbers."""
    centred = profile - profile.sum() / len(profile)
    return float(np.sqrt(centred @ centred / len(profile)))


def _moved(b: tuple[int, ...], *, first: bool) -> tuple[int, ...]:
    """Return the order that brings channels from the last place to the second, or the reverse."""
    rank = len(b)
    if rank < 3:
        return tuple(range(rank))
    return (0, rank - 1, *range(1, rank - 1)) if first else (0, *range(2, rank), 1)
