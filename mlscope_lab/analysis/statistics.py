"""The statistics that every timing in the project goes through.

Nothing here knows about runs. Timings are positive, skewed and have outliers, so the centre is the median and its
interval is nonparametric; between processes the unit is the process, on a logarithmic scale.

References
----------
Hettmansperger and Sheather, "Confidence intervals based on interpolated order statistics", Statistics & Probability
Letters 4 (1986). Hoefler and Belli, "Scientific benchmarking of parallel computing systems", SC'15. MLPerf LoadGen's
early stopping (mlcommons/inference) for the sample floors of percentiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONFIDENCE", "PERCENTILE_FLOORS", "Comparison", "Interval", "compare_medians", "drift", "geometric_interval",
    "median_bounds", "median_interval", "medians_by_group", "percentile",
]  # fmt: skip

CONFIDENCE = 0.95
VERDICT_CONFIDENCE = 0.99
EQUIVALENCE = 1.05
POWER = 0.8

PERCENTILE_FLOORS = {90.0: 64, 95.0: 130, 97.0: 219, 99.0: 662, 99.9: 6636}
"""Fewest samples for a percentile: 99 % confidence with one over-latency query allowed (LoadGen's early stopping)."""

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.float64] | npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A centre and its confidence interval; `low` and `high` are NaN where there are too few values."""

    centre: float
    low: float
    high: float
    confidence: float
    n: int


@lru_cache(maxsize=256)
def _ranks(n: int, confidence: float) -> tuple[int, float] | None:
    """Return (d, weight): the bounds lie between the d-th and the next order statistic from either end."""
    if 1.0 - 2.0 * 0.5**n < confidence:  # not even the extremes are far enough apart
        return None
    from scipy.special import bdtr  # the binomial's distribution; scipy.stats takes a second to import

    # (x_d, x_{n+1-d}) covers the median with probability 1 - 2 P(Binomial(n, 1/2) <= d - 1)
    covers = 1.0 - 2.0 * bdtr(np.arange(n // 2, dtype=np.float64), n, 0.5)
    wide_enough = np.flatnonzero(covers >= confidence)
    if not len(wide_enough):
        return None
    d = int(wide_enough[-1]) + 1
    wide, narrow = float(covers[d - 1]), float(covers[d]) if d < len(covers) else 0.0
    share = (wide - confidence) / (wide - narrow)
    return d, (n - d) * share / (d + (n - 2 * d) * share)


def median_bounds(values: Values, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Return the lower and upper bounds of the medians along axis 0.

    Parameters
    ----------
    values
        Independent measurements (n, ...).

    Returns
    -------
    low, high
        Arrays of shape ``values.shape[1:]``, NaN where n is too small for the wanted confidence.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=0)
    n = len(ordered)
    ranks = _ranks(n, confidence)
    if ranks is None:
        nothing = np.full(ordered.shape[1:], np.nan)
        return nothing, nothing.copy()
    d, weight = ranks
    low = (1 - weight) * ordered[d - 1] + weight * ordered[min(d, n - 1)]
    high = (1 - weight) * ordered[n - d] + weight * ordered[max(n - d - 1, 0)]
    return low, high


def medians_by_group(
    values: Values, group: npt.NDArray[np.integer], groups: int, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64]]:
    """Return the median of each group of values with its interval, as `median_interval` does of one group.

    Parameters
    ----------
    values, group
        (N,); groups from 0.
    groups
        How many there are.
    confidence
        Wanted coverage.

    Returns
    -------
    median, low, high
        (groups,), NaN where a group has no, or for the bounds too few, values.
    count
        (groups,) values of each group.
    """
    count = np.bincount(group, minlength=groups).astype(np.int64)
    median, low, high = (np.full(groups, np.nan) for _ in range(3))
    # after the stable sort by group each group's values stay in the order that the first sort gave them
    order = np.argsort(values, kind="stable") if count.max(initial=0) > 1 else np.arange(len(values))
    order = order[np.argsort(group[order], kind="stable")]
    ordered = values[order].astype(np.float64)
    first = np.cumsum(count) - count
    for n in np.unique(count[count > 0]).tolist():
        of_size = np.flatnonzero(count == n)
        rows = ordered[first[of_size] + np.arange(n)[:, None]]
        median[of_size] = (rows[(n - 1) // 2] + rows[n // 2]) / 2
        low[of_size], high[of_size] = median_bounds(rows, confidence)
    return median, low, high, count


def median_interval(values: Values, confidence: float = CONFIDENCE) -> Interval:
    """Return the median with an interval from interpolated order statistics.

    Parameters
    ----------
    values
        Independent measurements (n,); any unit.
    confidence
        Wanted coverage. At 0.95 at least 6 values are needed; with fewer the bounds are NaN.

    Notes
    -----
    Order statistics alone cover in steps; the interpolation of Hettmansperger and Sheather brings the coverage of a
    median's interval close to the wanted one for any continuous distribution.
    """
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0:
        return Interval(centre=math.nan, low=math.nan, high=math.nan, confidence=confidence, n=0)
    low, high = median_bounds(data, confidence)
    return Interval(centre=float(np.median(data)), low=float(low), high=float(high), confidence=confidence, n=n)


def geometric_interval(medians: Values, confidence: float = CONFIDENCE) -> Interval:
    """Return the geometric mean of the processes' medians with a t interval on their logarithms.

    Parameters
    ----------
    medians
        One positive median a process (n,). With one process the bounds are NaN: what another process would have
        shown is unknown.
    """
    logs = np.log(np.asarray(medians, dtype=np.float64))
    n = len(logs)
    centre = float(np.exp(logs.mean())) if n else math.nan
    if n < 2:
        return Interval(centre=centre, low=math.nan, high=math.nan, confidence=confidence, n=n)
    from scipy.special import stdtrit  # quantiles of the t distribution

    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(logs.std(ddof=1)) / math.sqrt(n)
    return Interval(
        centre=centre, low=centre * math.exp(-half), high=centre * math.exp(half), confidence=confidence, n=n
    )


def percentile(values: Values, p: float) -> float:
    """Return LoadGen's percentile, ``sorted[int(n * p / 100)]``, or NaN below its sample floor.

    Parameters
    ----------
    values
        Measurements (n,).
    p
        One of `PERCENTILE_FLOORS`.
    """
    ordered = np.sort(np.asarray(values))
    if len(ordered) < PERCENTILE_FLOORS[p]:
        return math.nan
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))])


def drift(values: Values) -> float:
    """Return the ratio of the median of the last third to that of the first third; NaN with fewer than 9 values."""
    ordered = np.asarray(values, dtype=np.float64)
    third = len(ordered) // 3
    if third < 3:
        return math.nan
    return float(np.median(ordered[-third:]) / np.median(ordered[:third]))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much slower b is than a.

    Attributes
    ----------
    ratio, low, high
        Median of b over median of a with its interval; NaN bounds with fewer than two processes a side.
    confidence
        Of the interval and of the verdict.
    verdict
        "faster" or "slower" (b, against a) if the interval leaves 1 out, "same" if it lies within the equivalence
        margin, else "undecided".
    reason
        In words, for "undecided".
    detectable_ratio
        The smallest true ratio that this many processes would have shown with 80 % probability; NaN if unknown.
    n_a, n_b
        Processes a side.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    verdict: str
    reason: str
    detectable_ratio: float
    n_a: int
    n_b: int


def _detectable_effect(quantile: float, freedom: float) -> float:
    """Return the effect, in standard errors, that a t test shows with probability `POWER` (noncentral t)."""
    from scipy.optimize import brentq
    from scipy.stats import nct

    return float(brentq(lambda effect: float(nct.sf(quantile, freedom, effect)) - POWER, 0.0, 20.0 * quantile))


def compare_medians(
    a: Values, b: Values, *, confidence: float = VERDICT_CONFIDENCE, equivalence: float = EQUIVALENCE
) -> Comparison:
    """Compare two sets of process medians with Welch's t interval on their logarithms.

    Parameters
    ----------
    a, b
        One positive median a process, shapes (n_a,) and (n_b,).
    confidence
        Of the interval. The default of 0.99 keeps false alarms near one in a hundred: identical processes differ by
        up to 1.3 times, and a person compares often.
    equivalence
        "same" means that the whole interval lies between 1/equivalence and equivalence.
    """
    x, y = (np.log(np.asarray(v, dtype=np.float64)) for v in (a, b))
    ratio = float(np.exp(y.mean() - x.mean())) if len(x) and len(y) else math.nan
    counts = {"n_a": len(x), "n_b": len(y)}
    if len(x) < 2 or len(y) < 2:
        few = "one process a side" if len(x) == len(y) == 1 else f"{len(x)} and {len(y)} processes"
        return Comparison(ratio=ratio, low=math.nan, high=math.nan, confidence=confidence, verdict="undecided",
                          reason=few, detectable_ratio=math.nan, **counts)  # fmt: skip
    from scipy.stats import t

    va, vb = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    error = math.sqrt(va + vb)
    if error == 0.0:
        freedom = float(len(x) + len(y) - 2)
    else:
        freedom = (va + vb) ** 2 / (va**2 / (len(x) - 1) + vb**2 / (len(y) - 1))
    quantile = float(t.ppf(0.5 + confidence / 2, freedom))
    low, high = ratio * math.exp(-quantile * error), ratio * math.exp(quantile * error)
    detectable = math.exp(_detectable_effect(quantile, freedom) * error)
    if low > 1.0:
        verdict, reason = "slower", ""
    elif high < 1.0:
        verdict, reason = "faster", ""
    elif low >= 1 / equivalence and high <= equivalence:
        verdict, reason = "same", ""
    else:
        verdict = "undecided"
        reason = f"the interval holds 1 and reaches beyond {equivalence:g} times; more processes would narrow it"
    return Comparison(ratio=ratio, low=low, high=high, confidence=confidence, verdict=verdict, reason=reason,
                      detectable_ratio=detectable, **counts)  # fmt: skip
