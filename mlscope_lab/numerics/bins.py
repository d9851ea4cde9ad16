"""Bins of the sketches: which there are, and which one a number falls into by the bits of its float32.

A float's top bits are the logarithm of its size, so that shifting them is a log-binned histogram without a logarithm:
with `m` bits of the mantissa there are ``2**m`` bins an octave, each twice as wide in the next octave.

Sizes of errors have 4 bins an octave while counting, from 2^-64 to 2^32, and 1 or 2 where they are stored; sizes of
references have 1 an octave, from 2^-32 to 2^30. Values have 32 an octave and side of zero.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "BINS", "ERROR_EDGES", "ERROR_OFFSET", "ERROR_ROWS", "ERROR_SHIFT", "FINE_EDGES", "HIGHEST_ERROR",
    "HIGHEST_REFERENCE", "LOWEST_ERROR", "LOWEST_REFERENCE", "REFERENCE_COLUMNS", "REFERENCE_EDGES",
    "REFERENCE_OFFSET", "REFERENCE_SHIFT", "ROW_INF", "ROW_UNDER", "ROW_ZERO", "VALUE_CODES", "VALUE_SHIFT",
    "LinearBins", "divergences", "fold_joint", "merged_values", "quantiles",
]  # fmt: skip

Array = npt.NDArray[Any]

MANTISSA: Final = 23
BIAS: Final = 127

# rows of the joint counts while counting: zero, under 2^-64, 4 an octave up to 2^32, over, without a size
_FROM, _TO, _BITS = -64, 32, 2
ROW_ZERO: Final = 0
ROW_UNDER: Final = 1
ROW_INF: Final = ((_TO - _FROM) << _BITS) + 3
ERROR_ROWS: Final = ROW_INF + 1
ERROR_SHIFT: Final = MANTISSA - _BITS
ERROR_OFFSET: Final = ((BIAS + _FROM) << _BITS) - 2
"""Subtract this from the shifted bits of a size from `LOWEST_ERROR` to `HIGHEST_ERROR` to have its row."""
LOWEST_ERROR: Final = 2.0**_FROM * 0.875
HIGHEST_ERROR: Final = 2.0**_TO

# columns: under 2^-32, one an octave up to 2^30, over
_REFERENCE_FROM, _REFERENCE_TO = -32, 30
REFERENCE_COLUMNS: Final = _REFERENCE_TO - _REFERENCE_FROM + 2
REFERENCE_SHIFT: Final = MANTISSA
REFERENCE_OFFSET: Final = BIAS + _REFERENCE_FROM - 1
LOWEST_REFERENCE: Final = 2.0 ** (_REFERENCE_FROM - 1)
HIGHEST_REFERENCE: Final = 2.0**_REFERENCE_TO

# counters of values: the sign, the exponent and 5 bits of the mantissa, negative ones in the upper half
VALUE_BITS: Final = 5
VALUE_SHIFT: Final = MANTISSA - VALUE_BITS
VALUE_CODES: Final = 1 << (32 - VALUE_SHIFT)

_SMALLEST: Final = 5e-324

BINS: Final = 64
"""Number of bins of the histograms."""


def _midpoints(edges: Array) -> Array:
    """Return, for edges that are numbers of float32, from where on a number is rounded to the edge or above."""
    below = np.nextafter(edges.astype(np.float32), np.float32(0)).astype(np.float64)
    return np.asarray((edges + below) / 2, dtype=np.float64)


def _octaves(first: int, last: int, bits: int) -> Array:
    """Return the edges from 2^first up to, and without, 2^last."""
    steps = 1.0 + np.arange(1 << bits) / (1 << bits)
    return np.concatenate([2.0**k * steps for k in range(first, last)])


FINE_EDGES: Final[Array] = np.concatenate(
    [[0.0, _SMALLEST], _midpoints(np.append(_octaves(_FROM, _TO, _BITS), 2.0**_TO)), [np.inf, np.inf]]
)
"""Edges of the rows while counting: row i holds sizes of at least edge i and less than edge i + 1; the last one holds
what has no size (NaN or Inf on one side)."""
_STORED: Final = np.concatenate([_octaves(_FROM, -44, 0), _octaves(-44, 16, 1), _octaves(16, _TO, 0), [2.0**_TO]])
ERROR_EDGES: Final[Array] = np.concatenate([[0.0, _SMALLEST], _midpoints(_STORED), [np.inf, np.inf]])
"""Edges of the stored bins of errors. The first bin is of equal elements, the last one of those that are NaN or Inf on
one side. An edge lies half a float32 below its power of two (or one and a half times it), because sizes are binned
as float32, and rounded to it."""
REFERENCE_EDGES: Final[Array] = np.concatenate(
    [[0.0], _midpoints(2.0 ** np.arange(_REFERENCE_FROM, _REFERENCE_TO + 1, dtype=np.float64)), [np.inf]]
)
"""Edges of the stored bins of absolute reference values. The last bin also holds references that are NaN or Inf."""

_ROW_STARTS: Final = np.append(np.searchsorted(FINE_EDGES, ERROR_EDGES[:-2]), ROW_INF)


def fold_joint(joint: Array) -> Array:
    """Return joint counts in the stored bins.

    Parameters
    ----------
    joint
        int64, (`ERROR_ROWS`, `REFERENCE_COLUMNS`).

    Returns
    -------
    numpy.ndarray
        int64, (len(ERROR_EDGES) - 1, len(REFERENCE_EDGES) - 1).
    """
    return np.asarray(np.add.reduceat(joint, _ROW_STARTS, axis=0), dtype=np.int64)


def quantiles(rows: Array, wanted: tuple[float, ...], largest: float) -> Array:
    """Return quantiles of the absolute error from its counts.

    Parameters
    ----------
    rows
        int64, (`ERROR_ROWS`,).
    wanted
        Which, from 0 to 1. A quantile q of n elements is the ceil(q n)-th smallest ("inverted_cdf" of numpy).
    largest
        The largest error, exact; Inf where one has no size.

    Returns
    -------
    numpy.ndarray
        float64, one for each. Each is wrong by at most a ninth of the exact one; those under 2^-64 by 2^-64, and those
        over 2^32 lie between that and `largest`. Zeros, and the last of all elements, are exact. NaN where nothing was
        counted.
    """
    total = int(rows.sum())
    if not total:
        return np.full(len(wanted), np.nan)
    reached = np.cumsum(rows)
    ranks = np.clip(np.ceil(np.asarray(wanted) * total), 1, total)
    row = np.searchsorted(reached, ranks)
    low, high = FINE_EDGES[row], np.minimum(FINE_EDGES[row + 1], largest)
    with np.errstate(invalid="ignore"):
        # the harmonic mean of the edges is as far from either, relatively
        found = np.where(row <= ROW_UNDER, high / 2, 2 * low * (high / (low + high)))
    found = np.where(row == ROW_ZERO, 0.0, np.where(row == ROW_INF, np.inf, found))
    return np.asarray(np.where(ranks == total, largest, np.minimum(found, largest)), dtype=np.float64)


def merged_values(counts: tuple[Array, Array], largest: float) -> tuple[Array, Array, Array]:
    """Return counts of values in ascending order, those close to zero in one bin.

    Parameters
    ----------
    counts
        Two int64 arrays, (`VALUE_CODES`,).
    largest
        Largest absolute value of either side; sizes of less than 2^-24 of it are one bin, whatever their sign.

    Returns
    -------
    tuple
        The two arrays of counts, int64, and the values in the middle of their bins, float64.
    """
    half = VALUE_CODES // 2
    numbers = 255 << VALUE_BITS  # from there on the bits are those of Inf and NaN
    edges = np.arange(numbers, dtype=np.int32) << VALUE_SHIFT
    sizes = np.full(half + 1, 2.0 ** (BIAS + 1))
    sizes[:numbers] = edges.view(np.float32)
    first = int(np.searchsorted(sizes, min(largest, 2.0**BIAS) * 2.0**-24, "right"))
    first = min(max(first, 1), half - 1)
    found = []
    for side in counts:
        above, below = side[:half], side[half:]
        zero = above[:first].sum() + below[:first].sum()
        found.append(np.concatenate([below[: first - 1 : -1], [zero], above[first:]]))
    middles = (sizes[first:-1] + sizes[first + 1 :]) / 2
    return found[0], found[1], np.concatenate([-middles[::-1], [0.0], middles])


class LinearBins:
    """`BINS` bins of equal width, a power of two, that hold a range.

    Parameters
    ----------
    low, high
        The range.
    coarse
        Make the bins so wide that `fold` is exact.

    Attributes
    ----------
    low, high
        The range that the bins cover.
    folds
        Whether no bin of values within the range lies across an edge, so that `fold` is exact.
    """

    def __init__(self, low: float, high: float, *, coarse: bool = False) -> None:
        span = high / 2 - low / 2  # half of it, for the whole may overflow
        if span <= 0:
            span = abs(low) / 2 or 0.5
        exponent = max(int(np.ceil(np.log2(span) + 1 - np.log2(BINS - 2))), -1000)
        finest = int(np.frexp(max(abs(low), abs(high)))[1]) - 1 - VALUE_BITS
        self.folds = coarse or exponent >= finest
        self._width = 2.0 ** (max(exponent, finest) if coarse else exponent)
        self._first = float(np.floor(low / self._width))
        self.low, self.high = self._first * self._width, (self._first + BINS) * self._width

    def fold(self, counts: Array, middles: Array) -> Array:
        """Return the histogram from counts of values and the middles of their bins: int64, (`BINS`,)."""
        held = np.flatnonzero(counts)
        found = np.zeros(BINS, dtype=np.int64)
        np.add.at(found, self._place(middles[held]), counts[held])
        return found

    def count(self, values: Array) -> Array:
        """Return the histogram of finite values: int64, (`BINS`,)."""
        return np.bincount(self._place(values.astype(np.float64)), minlength=BINS)

    def _place(self, values: Array) -> Array:
        places = np.floor(values / self._width) - self._first
        return np.clip(places, 0, BINS - 1).astype(np.intp)


def divergences(one: Array, other: Array) -> tuple[float, float, float]:
    """Return Kullback-Leibler and Jensen-Shannon divergence and Hellinger distance of two histograms.

    Parameters
    ----------
    one, other
        Counts in the same bins; p and q are their shares.

    Returns
    -------
    tuple
        KL(p || q) = sum p ln(p / q) in nats, after half an element is added on either side to each bin that holds one
        on any side (Krichevsky and Trofimov's estimator), so that a bin which one side lacks does not make it infinite;
        JS = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 in nats, at most ln 2; and
        sqrt(1 - sum sqrt(p q)), from 0 to 1. The last two have no smoothing. NaN where a side holds nothing.

    Notes
    -----
    These are the divergences of the binned distributions, and by the data-processing inequality at most those of
    the values themselves. They are exact if p / q is the same everywhere within a bin; if it varies within each bin
    by a factor of at most 1 + e, KL is low by at most ln(1 + e), and so is JS (chain rule of the relative entropy).
    Two samples of n values of one distribution have a KL of about k / n, k being the number of bins that they reach.

    References
    ----------
    R. E. Krichevsky, V. K. Trofimov, "The performance of universal encoding", IEEE Trans. Inf. Theory 27 (1981).
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37 (1991).
    T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd edition, 2.5 and 2.8.
    """
    held = (one > 0) | (other > 0)
    a, b = one[held].astype(np.float64), other[held].astype(np.float64)
    if not a.sum() or not b.sum():
        return float("nan"), float("nan"), float("nan")
    p, q = (a + 0.5) / (a.sum() + 0.5 * a.size), (b + 0.5) / (b.sum() + 0.5 * b.size)
    kl = float(np.sum(p * np.log(p / q)))
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    js = sum(float(np.sum(s[s > 0] * np.log(s[s > 0] / middle[s > 0]))) for s in (p, q)) / 2
    # half the squared distance of the roots: 1 - sum sqrt(p q) would lose what is under 1e-16
    hellinger = float(np.sqrt(np.sum((np.sqrt(p) - np.sqrt(q)) ** 2) / 2))
    return max(kl, 0.0), max(js, 0.0), min(hellinger, 1.0)
