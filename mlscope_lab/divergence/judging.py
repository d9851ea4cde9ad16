"""From measures to a judgement: which pairs are out of tolerance, which comes first, and which group is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["INJECTION_FACTOR", "Judgement", "injection_tolerance", "judge_injections", "pick"]

Array = npt.NDArray[Any]

INJECTION_FACTOR: Final = 16.0
"""How many times the rounding noise of a group another framework's kernel may differ: it sums in another order, and
some (Winograd, FFT) compute other intermediate values."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Which pair is first, and which is to blame: positions of pairs, -1 for none."""

    first_divergent: int
    culprit: int


def injection_tolerance(noise: Array) -> Array:
    """Return the largest absolute error that a faultless group may make, by pair; NaN where nothing was replayed."""
    return np.asarray(INJECTION_FACTOR * noise, dtype=np.float64)


def judge_injections(max_abs: Array, tolerance: Array) -> npt.NDArray[np.int8]:
    """Return 1 where a group injects an error of its own, 0 where not, -1 where it was not replayed."""
    with np.errstate(invalid="ignore"):
        injects = max_abs > tolerance
    known = ~np.isnan(max_abs) & ~np.isnan(tolerance)
    return np.where(known, injects, -1).astype(np.int8)


def pick(columns: Mapping[str, Array]) -> Judgement:
    """Name the first divergent pair and the culprit.

    Parameters
    ----------
    columns
        Of ``/pairs``: ``diverges``, ``injects``, ``injected_max_abs``, ``injected_tolerance``.

    Notes
    -----
    A small injected error may grow until it passes a tolerance some pairs later. So, where groups were replayed, the
    first divergent pair is the first out of tolerance if it injects or nothing before it does, else the first one
    before it that injects. The culprit is the group whose injected error is largest beside its tolerance.
    """
    diverges, injects = columns["diverges"] == 1, columns["injects"] == 1
    beyond = np.flatnonzero(diverges)
    first = int(beyond[0]) if beyond.size else -1
    if first >= 0 and not injects[first]:
        earlier = np.flatnonzero(injects[:first])
        first = int(earlier[0]) if earlier.size else first
    culprit = -1
    if injects.any() and first >= 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(injects, columns["injected_max_abs"] / columns["injected_tolerance"], 0.0)
        excess[np.isnan(excess)] = np.inf
        culprit = int(np.argmax(excess))
    return Judgement(first_divergent=first, culprit=culprit)
