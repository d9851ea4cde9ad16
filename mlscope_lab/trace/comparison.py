"""How a deeper pass differs from the untraced one: what it cost, and whether it computed the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["compare_outputs", "median_ratio"]

_RESAMPLES = 4000
_SEED = 20190819


def _resampled_medians(values: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the medians of bootstrap resamples of `values`.

    Notes
    -----
    A resample's k-th smallest value is ``sorted[floor(n * U)]``, where U, the k-th of n uniform order statistics, is
    Beta(k, n + 1 - k) distributed. Drawing U itself gives the same distribution as resampling n values, in constant
    memory. For even n the next order statistic is U's successor: the smallest of n - k uniforms above U.
    """
    ordered = np.sort(values)
    n = len(ordered)
    k = (n + 1) // 2
    low = random.beta(k, n + 1 - k, size=_RESAMPLES)
    first = ordered[np.minimum((low * n).astype(np.intp), n - 1)]
    if n % 2:
        return first
    high = low + (1.0 - low) * -np.expm1(np.log1p(-random.random(_RESAMPLES)) / (n - k))
    return (first + ordered[np.minimum((high * n).astype(np.intp), n - 1)]) / 2.0


def median_ratio(
    above: npt.NDArray[np.int64], base: npt.NDArray[np.int64]
) -> tuple[float, float, float]:  # fmt: skip
    """Return the ratio of two medians with a 95 % bootstrap interval.

    Parameters
    ----------
    above, base
        Times of the traced and of the untraced iterations, int64 (n,) and (m,).

    Returns
    -------
    tuple of float
        Ratio, low, high. NaN without values on both sides or with a median of 0; the bounds are NaN too where a side
        has a single value. The same input gives the same interval.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile interval).
    """
    if not len(above) or not len(base):
        return math.nan, math.nan, math.nan
    numerator, denominator = above.astype(np.float64), base.astype(np.float64)
    middle = float(np.median(denominator))
    if middle <= 0:
        return math.nan, math.nan, math.nan
    ratio = float(np.median(numerator)) / middle
    if len(above) < 2 or len(base) < 2:
        return ratio, math.nan, math.nan
    random = np.random.default_rng(_SEED)
    tops, bottoms = _resampled_medians(numerator, random), _resampled_medians(denominator, random)
    if (bottoms <= 0).any():
        return ratio, math.nan, math.nan
    low, high = np.quantile(tops / bottoms, (0.025, 0.975))
    return ratio, float(low), float(high)


def _difference(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> tuple[bool, float]:
    """Return whether two arrays of one shape and dtype are equal, and by how much they differ at most."""
    if one.dtype.kind not in "biufc":
        same = bool(np.array_equal(one, two))
        return same, 0.0 if same else math.nan
    equal = one == two
    if one.dtype.kind in "fc":
        equal |= np.isnan(one) & np.isnan(two)
    if equal.all():
        return True, 0.0
    # long double holds every int64 and uint64 exactly where float64 would call neighbours equal
    wide = np.clongdouble if one.dtype.kind == "c" else np.longdouble
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(one[~equal].astype(wide) - two[~equal].astype(wide))
    # against NaN there is no distance: it is as far as can be
    return False, math.inf if np.isnan(gaps).any() else float(gaps.max())


def compare_outputs(
    outputs: Mapping[str, npt.NDArray[Any]], reference: Mapping[str, npt.NDArray[Any]] | None
) -> tuple[int, float]:
    """Compare the outputs of a traced pass with those of the untraced one.

    Parameters
    ----------
    outputs, reference
        Arrays by output name; `reference` is None where no untraced pass ran in that process.

    Returns
    -------
    equal
        1 equal in every bit that has a meaning (NaN equals NaN), 0 different, -1 unknown (nothing to compare).
    difference
        Largest absolute difference in the outputs' own unit; inf where only one side is NaN, NaN where unknown or
        where names, shapes or dtypes differ.
    """
    if not outputs or not reference:
        return -1, math.nan
    one = {name: np.asarray(value) for name, value in outputs.items()}
    two = {name: np.asarray(value) for name, value in reference.items()}
    if one.keys() != two.keys() or any(
        one[name].shape != two[name].shape or one[name].dtype != two[name].dtype for name in one
    ):
        return 0, math.nan
    results = [_difference(one[name], two[name]) for name in one]
    return int(all(same for same, _ in results)), float(np.max([gap for _, gap in results]))
