"""How sure a pair is: the share of right ones among pairs with the same evidence.

The shares were counted on about 40,000 pairs whose truth is known: networks at random (with and without a fault, with
and without values) and real ones in three frameworks, fused and not, with noise from some operation on. They are cut
off at 0.999, since no such count says more. `tests/alignment/test_confidence.py` counts them anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mlscope_lab.alignment.network import Network, nearest_matched
from mlscope_lab.alignment.scores import Scores

__all__ = ["confidences"]

_EQUAL: Final = 1e-3
_EQUAL_VALUES: Final = {2: 0.999, 1: 0.97, 0: 0.95}
"""By how many of both neighbourhoods, before and after, agree."""
_CONSTANT_VALUES: Final = 0.95
_SAME_TAIL: Final = {(2, 2): 0.995, (2, 1): 0.97, (2, 0): 0.9, (1, 2): 0.95, (1, 1): 0.9, (1, 0): 0.8}
_OTHER_TAIL: Final = {(2, 2): 0.98, (2, 1): 0.9, (2, 0): 0.9, (1, 2): 0.35}
"""By how many counts of layers (from the inputs, to the outputs) are equal, then by neighbourhoods."""
_SAME_TAIL_ELSEWHERE: Final = 0.8
_UNLIKELY: Final = 0.2


def confidences(a: Network, b: Network, scores: Scores, found: Mapping[int, int]) -> dict[int, float]:
    """Return the confidence of each pair of tensors, by a's tensor.

    Parameters
    ----------
    a, b, scores
        The sides, and how their tensors fit.
    found
        All pairs.

    Notes
    -----
    Evidence is whether values are equal; else whether the same was done since the last convolution, whether as many
    layers lie before and behind, and whether the nearest pairs before and behind are partners of each other. Where
    names agree as well, half of the doubt is left.
    """
    taken = set(found.values())
    near = [
        nearest_matched(a.reads, range(len(a)), found), nearest_matched(b.reads, range(len(b)), taken),
        nearest_matched(a.readers, range(len(a) - 1, -1, -1), found),
        nearest_matched(b.readers, range(len(b) - 1, -1, -1), taken),
    ]  # fmt: skip
    made: dict[int, float] = {}
    for i, j in found.items():
        agreeing = sum({found[r] for r in near[k][i]} == near[k + 1][j] for k in (0, 2))
        places = int(a.depth[i] == b.depth[j]) + int(a.height[i] == b.height[j])
        sketch = a.tensors[i].sketch
        if scores.distance[i, j] < _EQUAL and sketch is not None:
            sure = _CONSTANT_VALUES if sketch.constant else _EQUAL_VALUES[agreeing]
        elif a.tails[i] == b.tails[j]:
            sure = _SAME_TAIL.get((places, agreeing), _SAME_TAIL_ELSEWHERE)
        else:
            sure = _OTHER_TAIL.get((places, agreeing), _UNLIKELY)
        made[i] = min(0.999, 1 - (1 - sure) / 2) if scores.named[i, j] else sure
    return made
