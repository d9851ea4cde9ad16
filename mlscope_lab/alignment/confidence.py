"""How sure a pair is: the share of right ones among pairs with the same evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from mlscope_lab.alignment.network import Network
from mlscope_lab.alignment.scores import Scores

__all__ = ["confidences"]

_EQUAL: Final = 1e-3


def confidences(a: Network, b: Network, scores: Scores, found: Mapping[int, int]) -> dict[int, float]:
    """Return the confidence of each pair of tensors, by a's tensor."""
    made: dict[int, float] = {}
    for i, j in found.items():
        if not np.isfinite(scores.total[i, j]):
            made[i] = 0.5
            continue
        known = [r for r in dict.fromkeys(a.reads[i]) if r in found]
        agreeing = sum(found[r] in b.reads[j] for r in known)
        share = agreeing / len(known) if known else 0.5
        equal = scores.distance[i, j] < _EQUAL
        tails = a.tails[i] == b.tails[j]
        made[i] = min(0.999, 0.55 + 0.2 * share + 0.15 * tails + 0.25 * equal + 0.2 * bool(scores.named[i, j]))
    return made
