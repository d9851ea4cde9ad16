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
    for i, j, key in open_:
        if votes[key] < 0 or (votes[key] == 0 and not _same_recipe(a, b, i, j)):
            del kept[i]
    _drop_vanishing(a, b, scores, kept, forced)
    _complete(a, b, scores, kept, votes)
    return kept


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


def _words(network: Network, tensor: int, run: list[int]) -> tuple[str, ...]:
    operations = network.graph.operations
    return tuple(operations[network.tensors[t].writer].type for t in (tensor, *run) if network.tensors[t].writer >= 0)


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
        if apart > _CLEARLY * max(furthest(after[i]), _EQUAL / _CLEARLY):
            doubtful.append(i)
    for i in doubtful:
        del kept[i]
