"""One-to-one matching of tensors: dynamic programming along a common order, then growth along edges.

References
----------
S. B. Needleman and C. D. Wunsch, "A General Method Applicable to the Search for Similarities in the Amino Acid
Sequence of Two Proteins", Journal of Molecular Biology 48(3), 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.network import Network, nearest_matched
from mlscope_lab.alignment.order import canonical_order
from mlscope_lab.alignment.scores import Scores

__all__ = ["match"]

Floats = npt.NDArray[np.float32]

_ROUNDS: Final = 3
_NEIGHBOURS: Final = 1.5
_FORCED: Final = 100.0
_EQUAL: Final = 1e-4


def match(
    a: Network, b: Network, scores: Scores, forced: Mapping[int, int], excluded: tuple[set[int], set[int]]
) -> dict[int, int]:
    """Return partners of a's tensors.

    Parameters
    ----------
    a, b
        The sides.
    scores
        How well tensors fit.
    forced
        Partners that are known: inputs, outputs, and what a person decided.
    excluded
        Tensors of either side that have none.
    """
    total = scores.total.copy()
    for one, other in forced.items():
        total[one, :] = -np.inf
        total[:, other] = -np.inf
    for one, other in forced.items():
        total[one, other] = _FORCED
    for side, axis in zip(excluded, (0, 1), strict=True):
        for i in side:
            total[(i, slice(None)) if axis == 0 else (slice(None), i)] = -np.inf
    ends = [(i, j) for i, j in forced.items() if a.tensors[i].writer >= 0 and b.tensors[j].writer >= 0]
    order_a = canonical_order(a, [i for i, _ in ends])
    place_a = {i: float(p) for p, i in enumerate(order_a)}
    found: dict[int, int] = dict(forced)
    bonus: Floats | None = None
    for _ in range(_ROUNDS):
        places = {j: place_a[i] for i, j in found.items()}
        order_b = canonical_order(b, [j for _, j in ends], places)
        score = total if bonus is None else total + bonus
        before, found = found, dict(forced)
        for i, j in _along(score[np.ix_(order_a, order_b)], _gaps(a, order_a), _gaps(b, order_b)):
            found[order_a[i]] = order_b[j]
        _grow(a, b, total, scores, found)
        _uncross(a, b, total, found, forced)
        if found == before:
            break
        bonus = _support(a, b, found, total.shape)
    return found


def _gaps(network: Network, order: Sequence[int]) -> Floats:
    """Return what leaving each tensor without a partner costs."""
    return np.array([(0.2 if network.heavy[i] else 0.1) * network.last[i] for i in order], np.float32)


def _along(score: Floats, gaps_a: Floats, gaps_b: Floats) -> list[tuple[int, int]]:
    """Return the pairs of the best monotone alignment."""
    rows, columns = score.shape
    shift = np.concatenate([[0.0], np.cumsum(gaps_b)]).astype(np.float64)
    best = -shift
    taken = np.zeros((rows + 1, columns + 1), np.int8)
    taken[0, 1:] = 2
    for i in range(rows):
        up = best - gaps_a[i]
        diagonal = np.concatenate([[-np.inf], best[:-1] + score[i]]).astype(np.float64)
        here = np.maximum(up, diagonal)
        choice = np.where(diagonal > up, 0, 1).astype(np.int8)
        reached = np.maximum.accumulate(here + shift) - shift
        from_left = reached > here + 1e-6
        taken[i + 1] = np.where(from_left, 2, choice)
        best = np.where(from_left, reached, here)
    found = []
    i, j = rows, columns
    while i or j:
        step = taken[i, j] if i else 2
        if step == 0:
            found.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif step == 1:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _support(a: Network, b: Network, found: Mapping[int, int], shape: tuple[int, ...]) -> Floats:
    """Return a bonus for pairs whose nearest matched neighbours are partners of each other."""
    bonus = np.zeros(shape, np.float32)
    other = set(found.values())
    for links_a, links_b, reverse in ((a.reads, b.reads, False), (a.readers, b.readers, True)):
        way_a, way_b = range(len(a)), range(len(b))
        near_a = nearest_matched(links_a, way_a[::-1] if reverse else way_a, set(found))
        near_b = nearest_matched(links_b, way_b[::-1] if reverse else way_b, other)
        who: dict[int, list[int]] = {}
        for j, near in enumerate(near_b):
            for n in near:
                who.setdefault(n, []).append(j)
        for i, near in enumerate(near_a):
            for n in near:
                for j in who.get(found[n], ()):
                    bonus[i, j] += _NEIGHBOURS / max(len(near), len(near_b[j]))
    return bonus


def _grow(a: Network, b: Network, total: Floats, scores: Scores, found: dict[int, int]) -> None:
    """Pair what is left: equal values that occur once, then what lies alone between the same pairs."""
    taken = set(found.values())
    left = [i for i in range(len(a)) if i not in found]
    free = [j for j in range(len(b)) if j not in taken]
    if not left or not free:
        return
    grid = np.ix_(left, free)
    equal = (scores.distance[grid] < _EQUAL) & np.isfinite(total[grid])
    once = equal & (equal.sum(axis=1, keepdims=True) == 1) & (equal.sum(axis=0, keepdims=True) == 1)
    for i, j in zip(*np.nonzero(once), strict=True):
        one, other = left[i], free[j]
        sketch = a.tensors[one].sketch
        if sketch is not None and not sketch.constant:
            found[one] = other
    _between(a, b, total, found)


def _between(a: Network, b: Network, total: Floats, found: dict[int, int]) -> None:
    """Pair what lies alone between the same pairs on both sides, and has the same tail."""
    sides: list[dict[tuple[Any, ...], list[int]]] = []
    for network, names in ((a, found), (b, {j: j for j in found.values()})):
        before = nearest_matched(network.reads, range(len(network)), names)
        after = nearest_matched(network.readers, range(len(network) - 1, -1, -1), names)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i in range(len(network)):
            if i not in names and before[i] and after[i]:
                key = ({names[r] for r in before[i]}, {names[r] for r in after[i]})
                groups.setdefault((*map(frozenset, key), network.tails[i], network.last[i]), []).append(i)
        sides.append(groups)
    for key, left in sides[0].items():
        free = sides[1].get(key, [])
        if len(left) == len(free) == 1 and total[left[0], free[0]] > 0:
            found[left[0]] = free[0]


def _uncross(a: Network, b: Network, total: Floats, found: dict[int, int], forced: Mapping[int, int]) -> None:
    """Drop pairs until no ancestor of one is paired with a descendant of its partner."""
    pairs = sorted(found.items())
    if not pairs:
        return
    before_a = _ancestry(a, [i for i, _ in pairs])
    before_b = _ancestry(b, [j for _, j in pairs])
    crossed = before_a & before_b.T
    crossed |= crossed.T
    while crossed.any():
        counts = crossed.sum(axis=1)
        weights = np.array([total[i, j] for i, j in pairs])
        weights[[i in forced for i, _ in pairs]] = np.inf
        worst = min(np.flatnonzero(counts), key=lambda p: (weights[p] == np.inf, -counts[p], weights[p]))
        crossed[worst, :] = False
        crossed[:, worst] = False
        found.pop(pairs[worst][0], None)


def _ancestry(network: Network, chosen: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return whether the second of two chosen tensors comes before the first."""
    bit = {tensor: p for p, tensor in enumerate(chosen)}
    above: list[int] = []
    for reads in network.reads:
        mask = 0
        for r in reads:
            mask |= above[r] | (1 << bit[r] if r in bit else 0)
        above.append(mask)
    width = (len(chosen) + 7) // 8
    packed = np.frombuffer(b"".join(above[t].to_bytes(width, "little") for t in chosen), np.uint8)
    return np.unpackbits(packed.reshape(len(chosen), width), axis=1, bitorder="little")[:, : len(chosen)].astype(bool)
