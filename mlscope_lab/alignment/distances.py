"""How far apart two sketches are: 0 for equal values in any layout, 1 and more for others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.sketch import STATISTICS, ValueSketch

__all__ = ["distance", "distances"]

Floats = npt.NDArray[np.float32]

_SMALLEST = np.float32(1e-30)


def distance(one: ValueSketch, other: ValueSketch) -> float:
    """Return the largest relative difference of two sketches' statistics; inf if the numbers of elements differ."""
    return float(distances([one], [other])[0, 0]) if one.count == other.count else float("inf")


def distances(rows: Sequence[ValueSketch | None], columns: Sequence[ValueSketch | None]) -> Floats:
    """Return the distances of all pairs of sketches of equally many elements.

    Returns
    -------
    ndarray
        float32[len(rows), len(columns)]; inf where a sketch is missing. Means and roots of moments are compared
        relative to the larger root mean square, extremes relative to the largest magnitude.
    """
    one, other = _matrix(rows), _matrix(columns)
    worst = np.zeros((len(rows), len(columns)), np.float32)
    with np.errstate(all="ignore"):
        scale = np.maximum.outer(one[:, 1], other[:, 1])
        np.maximum(scale, _SMALLEST, out=scale)
        reach = [np.abs(side[:, 3:5]).max(axis=1) for side in (one, other)]
        for place in range(len(STATISTICS)):
            difference = np.subtract.outer(one[:, place], other[:, place])
            np.abs(difference, out=difference)
            if place == 3:
                scale = np.maximum.outer(*reach)
                np.maximum(scale, _SMALLEST, out=scale)
            difference /= scale
            np.fmax(worst, difference, out=worst)
        for place in (5, 6):
            worst[np.not_equal.outer(one[:, place], other[:, place])] = 1.0
    worst[np.isnan(one[:, 1])] = np.inf
    worst[:, np.isnan(other[:, 1])] = np.inf
    return worst


def _matrix(sketches: Sequence[ValueSketch | None]) -> Floats:
    made = np.full((len(sketches), len(STATISTICS) + 2), np.nan, np.float32)
    with np.errstate(all="ignore"):
        for row, found in zip(made, sketches, strict=True):
            if found is not None:
                row[:-2] = found.statistics
                row[-2:] = found.nan, found.inf
    return made
