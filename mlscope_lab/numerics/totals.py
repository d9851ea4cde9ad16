"""What is known of two tensors so far: exact sums, extremes and counts, of one piece after the other."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.numerics.bins import BINS, ERROR_ROWS, REFERENCE_COLUMNS, VALUE_CODES

__all__ = ["POWERS", "Totals", "scaled_sums"]

Array = npt.NDArray[Any]

# the sums: of |e|, e^2, a^2, b^2 and ab where both are finite; of relative errors; of each side's values and squares
ABS, SQUARE, AA, BB, AB, REL, OWN_A, OWN_AA, OWN_B, OWN_BB = range(10)
POWERS: Final = np.array([[0, 0, 2, 2, 2, 0, 1, 2, 1, 2], [1, 2, 0, 0, 0, 0, 0, 0, 0, 0]])
"""By which power of the scale of values, and of the scale of errors, each sum grows."""


def scaled_sums(sums: Array, shift: tuple[int, int]) -> Array:
    """Return sums after values and errors were multiplied by powers of two."""
    return sums if shift == (0, 0) else np.asarray(np.ldexp(sums, np.array(shift) @ POWERS), dtype=np.float64)


class Totals:
    """Sums, extremes and counts of pairs of elements.

    Parameters
    ----------
    channels
        How many.

    Attributes
    ----------
    sums
        float64, in units of 2 to the power of ``exponents @ POWERS``; ``channel_square`` grows as the second one.
    exponents
        Of values and of errors: 0, but where their squares do not fit float64; None before anything is added.
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
        self.sums = np.zeros(POWERS.shape[1], dtype=np.float64)
        self.exponents: tuple[int, int] | None = None
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

    def shift_for(self, exponents: tuple[int, int]) -> tuple[int, int]:
        """Make sums in units of these exponents fit in; return by which powers of two they have to be multiplied."""
        mine = self.exponents or exponents
        self.exponents = max(mine[0], exponents[0]), max(mine[1], exponents[1])
        if self.exponents != mine:
            shift = mine[0] - self.exponents[0], mine[1] - self.exponents[1]
            self.sums = scaled_sums(self.sums, shift)
            self.channel_square = np.ldexp(self.channel_square, 2 * shift[1])
        return exponents[0] - self.exponents[0], exponents[1] - self.exponents[1]

    def add_range(self, side: int, low: float, high: float) -> None:
        """Take smallest and largest finite value of some elements."""
        self.low[side], self.high[side] = min(self.low[side], low), max(self.high[side], high)

    def add_worst(self, error: float, place: int, a: float, b: float) -> None:
        """Take the largest error of some elements; of equal ones the first in place is kept."""
        if error > self.worst[0] or (error == self.worst[0] and place < self.worst[1]):
            self.worst = (error, place, a, b)
