"""Pairs that look right and cannot be: they are taken back, so that no difference is reported that is none.

A batch normalisation that is folded into its convolution on one side leaves there a convolution without the shift, and
on the other one without the scale: same shape, same kind, same place, and never equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any, Final

import numpy as np

from mlscope_lab.alignment.network import Network, nearest_matched
from mlscope_lab.alignment.scores import Scores

__all__ = ["without_doubtful"]

_EQUAL: Final = 1e-3
_CLEARLY: Final = 20.0
"""A pair differs from its neighbours if it is so many times as far apart."""
_VANISHED: Final = 1e-5
_GROWS: Final = 4.0
"""Rounding may differ by so much more behind a pair than before it."""


def without_doubtful(
    a: Network, b: Network, scores: Scores, found: Mapping[int, int], forced: Container[int]
) -> dict[int, int]:
    """Return the pairs but those that cannot be.

    Parameters
    ----------
    a, b, scores, found
        As in `mlscope_lab.alignment.matching.match`.
    forced
        Tensors of a whose pairs stay.

    Notes
    -----
    Between a convolution and what its scale and shift make of it, a pair stays if its values are equal. If they are
    not, what decides is whether they are equal elsewhere in the same sequence of operators, and where that does not
    occur, whether both sides do the same in the same order with as many constants. Any other pair goes if its values
    differ and those of all pairs next to it, before and after, do not: a real difference does not vanish.
    """
    kept = dict(found)
    votes: Counter[Any] = Counter()
    open_: list[tuple[int, int, Any]] = []
    for i, j in found.items():
        if i in forced or (a.last[i] and b.last[j]):
            continue
        run_a, run_b = a.run(i), b.run(j)
        key = (_words(a, i, run_a), _words(b, j, run_b))
        if scores.distance[i, j] < _EQUAL:
            votes[key] += 1
            continue
        end_a, end_b = (run_a or [i])[-1], (run_b or [j])[-1]
        if found.get(end_a) == end_b and scores.distance[end_a, end_b] < _EQUAL:
            votes[key] -= 1
        open_.append((i, j, key))
    _prefer_ends(a, b, scores, kept, forced)
    for i, j, key in open_:
        if kept.get(i) != j:
            continue
        if votes[key] < 0 or (votes[key] == 0 and not _same_recipe(a, b, i, j)):
            del kept[i]
    _drop_vanishing(a, b, scores, kept, forced)
    _complete(a, b, scores, kept, votes)
    return kept


def _prefer_ends(a: Network, b: Network, scores: Scores, kept: dict[int, int], forced: Container[int]) -> None:
    """Pair the ends of two runs, where one end is paired inside the other run and the same runs elsewhere end equal.

    A shift that is missing on one side makes its end equal to what the other side has before the shift.
    """
    heads_a, heads_b = a.heads(), b.heads()
    votes: Counter[Any] = Counter()
    crooked: list[tuple[int, int, Any]] = []
    for i, j in kept.items():
        run_a, run_b = _whole_run(a, heads_a, i), _whole_run(b, heads_b, j)
        if run_a is None or run_b is None:
            continue
        key = (_words(a, run_a[0], run_a[1:]), _words(b, run_b[0], run_b[1:]))
        if a.last[i] and b.last[j]:
            votes[key] += bool(scores.distance[i, j] < _EQUAL)
        elif a.last[i] != b.last[j] and i not in forced:
            crooked.append((i, j, key))
            votes[key] -= bool(scores.distance[i, j] < _EQUAL)
    taken = set(kept.values())
    for i, j, key in crooked:
        end_a, end_b = (a.run(i) or [i])[-1], (b.run(j) or [j])[-1]
        own = votes[key] + bool(scores.distance[i, j] < _EQUAL)  # without this one
        if own <= 0 or (end_a != i and end_a in kept) or (end_b != j and end_b in taken):
            continue
        if np.isfinite(scores.total[end_a, end_b]):
            del kept[i]
            kept[end_a] = end_b


def _whole_run(network: Network, heads: Mapping[int, int], tensor: int) -> list[int] | None:
    head = heads.get(tensor)
    return None if head is None else [head, *network.run(head)]


def _complete(a: Network, b: Network, scores: Scores, kept: dict[int, int], votes: Counter[Any]) -> None:
    """Pair the convolutions at the beginning of paired runs, where such pairs were equal elsewhere."""
    taken = set(kept.values())
    heads: dict[int, int] = {}
    for j in range(len(b)):
        if b.heavy[j] and not b.last[j]:
            heads[b.run(j)[-1]] = j
    for i in range(len(a)):
        if i in kept or not a.heavy[i] or a.last[i]:
            continue
        run = a.run(i)
        j = heads.get(kept.get(run[-1], -1), -1)
        if j < 0 or j in taken or not np.isfinite(scores.total[i, j]):
            continue
        if votes[_words(a, i, run), _words(b, j, b.run(j))] > 0:
            kept[i] = j
            taken.add(j)


def _words(network: Network, tensor: int, run: list[int]) -> tuple[Any, ...]:
    """Return what a run is, for comparing it with others: its operators, and the kinds of those that read its end."""
    operations, tensors = network.graph.operations, network.tensors
    steps = [operations[tensors[t].writer] for t in (tensor, *run) if tensors[t].writer >= 0]
    readers = {operations[tensors[r].writer].kinds[:1] for r in network.readers[run[-1] if run else tensor]}
    return (*((o.type, o.kinds) for o in steps), tuple(sorted(readers)))


def _same_recipe(a: Network, b: Network, i: int, j: int) -> bool:
    """Tell whether the same kinds of operators follow, each with as many constants."""
    sides = []
    for network, tensor in ((a, i), (b, j)):
        operations = [network.graph.operations[network.tensors[t].writer] for t in network.run(tensor)]
        sides.append([(o.kinds[-1:], o.parameter_count) for o in operations])
    return sides[0] == sides[1]


def _drop_vanishing(a: Network, b: Network, scores: Scores, kept: dict[int, int], forced: Container[int]) -> None:
    """Drop pairs that differ while the nearest pairs before and after them are equal."""

    def furthest(pairs: frozenset[int]) -> float:
        return max((float(scores.distance[r, kept[r]]) for r in pairs), default=np.inf)

    matched = set(kept)
    before = nearest_matched(a.reads, range(len(a)), matched)
    after = nearest_matched(a.readers, range(len(a) - 1, -1, -1), matched)
    doubtful = []
    for i, j in kept.items():
        apart = scores.distance[i, j]
        if i in forced or not _EQUAL < apart < np.inf or furthest(before[i]) > _EQUAL:
            continue
        near, far = furthest(before[i]), furthest(after[i])
        if far < _VANISHED + _GROWS * near and apart > _CLEARLY * max(near, far):
            doubtful.append(i)
    for i in doubtful:
        del kept[i]
