"""What is known of two tensors so far: exact sums, extremes and counts, of one piece after the other."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.numerics.bins import BINS, ERROR_ROWS, REFERENCE_COLUMNS, VALUE_CODES

__all__ = ["POWERS", "Totals"]

Array = npt.NDArray[Any]

# the sums: of |e|, e^2, a^2, b^2 and ab where both are finite; of relative errors; of each side's values and squares
ABS, SQUARE, AA, BB, AB, REL, OWN_A, OWN_AA, OWN_B, OWN_BB = range(10)
POWERS: Final = np.array([1, 2, 2, 2, 2, 0, 1, 2, 1, 2])
"""By which power of the values' scale each sum grows."""


class Totals:
    """Sums, extremes and counts of pairs of elements; they add up.

    Parameters
    ----------
    channels
        How many.

    Attributes
    ----------
    sums
        float64, one for each of `POWERS`, in units of ``2 ** (exponent * power)``; ``channel_square`` is
        such a one, too.
    exponent
        0, but for values whose squares do not fit float64.
    comparable
        Elements with an error: finite on both sides, or NaN or the same infinity on both.
    relative
        Elements with a relative error: finite on both sides, the reference not zero.
    worst
        Largest absolute error, its place in the flat tensor (-1: none yet) and both values.
    joint
        int64, (`ERROR_ROWS`, `REFERENCE_COLUMNS`).
    values
        int64, (`VALUE_CODES`,), twice: of a, and of what b's counts are more than a's.
    linear
        int64, (`BINS`,), twice: histograms of a and b where these have to be counted apart.
    """

    def __init__(self, channels: int) -> None:
        self.sums = np.zeros(len(POWERS), dtype=np.float64)
        self.exponent: int | None = None
        self.count = self.comparable = self.relative = 0
        self.finite = [0, 0]
        self.nan, self.inf = [0, 0], [0, 0]
        self.low, self.high = [np.inf, np.inf], [-np.inf, -np.inf]
        self.max_rel = -np.inf
        self.worst: tuple[float, int, float, float] = (-1.0, -1, np.nan, np.nan)
        self.joint = np.zeros((ERROR_ROWS, REFERENCE_COLUMNS), dtype=np.int64)
        self.values = [np.zeros(VALUE_CODES, dtype=np.int64) for _ in range(2)]
        self.linear = [np.zeros(BINS, dtype=np.int64) for _ in range(2)]
        self.channel_max = np.zeros(channels, dtype=np.float64)
        self.channel_square = np.zeros(channels, dtype=np.float64)
        self.channel_count = np.zeros(channels, dtype=np.int64)

    def shift_for(self, exponent: int) -> int:
        """Make sums in units of ``2 ** exponent`` fit in; return by which power of two they have to be multiplied."""
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            shift = self.exponent - exponent
            self.sums = np.ldexp(self.sums, POWERS * shift)
            self.channel_square = np.ldexp(self.channel_square, 2 * shift)
            self.exponent = exponent
        return exponent - self.exponent

    def add_range(self, side: int, low: float, high: float) -> None:
        """Take smallest and largest finite value of some elements."""
        self.low[side], self.high[side] = min(self.low[side], low), max(self.high[side], high)

    def add_worst(self, error: float, place: int, a: float, b: float) -> None:
        """Take the largest error of some elements; of equal ones the first in place is kept."""
        if error > self.worst[0] or (error == self.worst[0] and place < self.worst[1]):
            self.worst = (error, place, a, b)

    def add(self, other: Totals) -> None:
        """Add what is known of other elements of the same tensor."""
        if other.exponent is not None:
            shift = self.shift_for(other.exponent)
            self.sums += np.ldexp(other.sums, POWERS * shift)
            self.channel_square += np.ldexp(other.channel_square, 2 * shift)
        self.count += other.count
        self.comparable += other.comparable
        self.relative += other.relative
        for mine, theirs in ((self.finite, other.finite), (self.nan, other.nan), (self.inf, other.inf)):
            for side in (0, 1):
                mine[side] += theirs[side]
        for side in (0, 1):
            self.add_range(side, other.low[side], other.high[side])
            self.values[side] += other.values[side]
            self.linear[side] += other.linear[side]
        self.max_rel = max(self.max_rel, other.max_rel)
        self.add_worst(*other.worst)
        self.joint += other.joint
        np.maximum(self.channel_max, other.channel_max, out=self.channel_max)
        self.channel_count += other.channel_count
