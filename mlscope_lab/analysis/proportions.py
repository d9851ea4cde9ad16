"""Statistics of counts: shares with their intervals, and the paired test of two classifiers.

References
----------
Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Clopper and Pearson,
"The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26 (1934). Brown, Cai and
DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001), for which to take when.
McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika 12
(1947); its exact form is the binomial test of the discordant pairs (Dietterich, "Approximate statistical tests for
comparing supervised classification learning algorithms", Neural Computation 10 (1998)). Newcombe, "Improved confidence
intervals for the difference between binomial proportions based on paired data", Statistics in Medicine 17 (1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlscope_lab.analysis.statistics import CONFIDENCE, Interval

__all__ = ["McNemar", "clopper_pearson_interval", "mcnemar", "wilson_interval"]


def _check(successes: int, n: int, confidence: float) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials are not possible")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a share with Wilson's score interval.

    Its coverage is close to the wanted one on average, for small n and for shares near 0 and 1, too, where it never
    leaves [0, 1] (Brown, Cai and DasGupta 2001). Bounds are NaN for n = 0.

    Parameters
    ----------
    successes, n
        How many of how many.
    confidence
        Wanted coverage.
    """
    _check(successes, n, confidence)
    if n == 0:
        return Interval(centre=math.nan, low=math.nan, high=math.nan, confidence=confidence, n=0)
    from scipy.special import ndtri  # scipy.stats takes a second to import

    z = float(ndtri(0.5 + confidence / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # exactly 0 and 1 at the ends, which the formula gives but for rounding
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Interval(centre=share, low=low, high=high, confidence=confidence, n=n)


def clopper_pearson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a share with the exact interval of Clopper and Pearson, whose coverage is never below the wanted one.

    Parameters
    ----------
    successes, n
        How many of how many.
    confidence
        Least coverage.
    """
    _check(successes, n, confidence)
    if n == 0:
        return Interval(centre=math.nan, low=math.nan, high=math.nan, confidence=confidence, n=0)
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return Interval(centre=successes / n, low=low, high=high, confidence=confidence, n=n)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's exact test of whether two classifiers are right equally often on the same samples.

    Attributes
    ----------
    only_a, only_b
        Samples that a alone, or b alone, gets right: the discordant pairs.
    p_value
        Two-sided: how probable so uneven a split, or a more uneven one, is where both are right equally often. 1
        without discordant pairs.
    difference, low, high
        Accuracy of b minus that of a, with Newcombe's interval for paired shares (method 10); NaN without samples.
    n
        All samples.
    confidence
        Of the interval.
    """

    only_a: int
    only_b: int
    p_value: float
    difference: float
    low: float
    high: float
    n: int
    confidence: float


def mcnemar(both: int, only_a: int, only_b: int, neither: int, confidence: float = CONFIDENCE) -> McNemar:
    """Test whether a and b are right equally often, by the exact binomial distribution of the discordant pairs.

    Parameters
    ----------
    both, only_a, only_b, neither
        Samples that both, a alone, b alone or nobody got right.
    confidence
        Of the difference's interval.

    Notes
    -----
    Given the number of discordant pairs, those of a are Binomial(only_a + only_b, 1/2) where both are equally good. The
    two-sided p-value doubles the smaller tail, which is that of `scipy.stats.binomtest` for a symmetric distribution.
    """
    for count in (both, only_a, only_b, neither):
        if count < 0:
            raise ValueError("counts must not be negative")
    discordant, n = only_a + only_b, both + only_a + only_b + neither
    p = 1.0
    if discordant:
        from scipy.special import bdtr

        p = min(1.0, 2.0 * float(bdtr(min(only_a, only_b), discordant, 0.5)))
    difference, low, high = _newcombe(both, only_a, only_b, neither, confidence)
    return McNemar(only_a=only_a, only_b=only_b, p_value=p, difference=difference, low=low, high=high, n=n,
                   confidence=confidence)  # fmt: skip


def _newcombe(both: int, only_a: int, only_b: int, neither: int, confidence: float) -> tuple[float, float, float]:
    """Return accuracy of b minus that of a and its interval: Wilson's intervals of both, and their correlation."""
    n = both + only_a + only_b + neither
    if n == 0:
        return math.nan, math.nan, math.nan
    of_a, of_b = (wilson_interval(both + only, n, confidence) for only in (only_a, only_b))
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = 0.0
    if margins:
        product: float = both * neither - only_a * only_b
        if product > 0:  # Newcombe's continuity correction, which applies to positive correlation alone
            product = max(product - n / 2, 0.0)
        phi = product / math.sqrt(margins)
    below_a, above_a = of_a.centre - of_a.low, of_a.high - of_a.centre
    below_b, above_b = of_b.centre - of_b.low, of_b.high - of_b.centre
    difference = of_b.centre - of_a.centre
    down = math.sqrt(max(0.0, below_b**2 - 2 * phi * below_b * above_a + above_a**2))
    up = math.sqrt(max(0.0, above_b**2 - 2 * phi * above_b * below_a + below_a**2))
    return difference, max(-1.0, difference - down), min(1.0, difference + up)
