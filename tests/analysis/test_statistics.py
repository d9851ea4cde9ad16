"""The intervals hold what they promise, and verdicts are given only where they can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import nct, t

from mlscope_lab.analysis.statistics import (
    PERCENTILE_FLOORS,
    compare_medians,
    drift,
    geometric_interval,
    median_bounds,
    median_interval,
    medians_by_group,
    percentile,
)

TRIALS = 4000


def _skewed(rng, shape):
    """Latency-like: log-normal with one value in fifty three times as slow; the median is exp(0) = 1 up to 1 %."""
    values = np.exp(0.2 * rng.standard_normal(shape))
    return np.where(rng.random(shape) < 0.02, values * 3, values)


@pytest.mark.parametrize("n", [10, 25, 50, 200])
def test_the_interval_of_a_median_covers_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    # columns are independent experiments, so one call judges all of them
    low, high = median_bounds(np.exp(0.2 * rng.standard_normal((n, TRIALS))))
    coverage = np.mean((low <= 1.0) & (high >= 1.0))
    assert 0.94 <= coverage <= 0.96


def test_the_interval_between_processes_covers_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for medians in np.exp(0.1 * rng.standard_normal((TRIALS, 5))):
        found = geometric_interval(medians)
        hits += found.low <= 1.0 <= found.high
    assert 0.94 <= hits / TRIALS <= 0.96


def test_a_against_a_is_called_different_about_once_in_a_hundred():
    rng = np.random.default_rng(11)
    verdicts = [compare_medians(*_skewed(rng, (2, 5))).verdict for _ in range(2000)]
    assert sum(v in {"faster", "slower"} for v in verdicts) / len(verdicts) <= 0.02


def test_a_difference_of_the_detectable_size_is_seen_about_as_often_as_it_says():
    rng = np.random.default_rng(13)
    sigma, n = 0.03, 5
    # noncentrality that a two-sided 99 % t test with 8 degrees of freedom shows in 80 % of cases
    effect = brentq(lambda d: nct.sf(t.ppf(0.995, 2 * n - 2), 2 * n - 2, d) - 0.8, 0, 50)
    true_ratio = math.exp(effect * sigma * math.sqrt(2 / n))
    found = [
        compare_medians(*(np.exp(sigma * rng.standard_normal((2, n))) * [[1.0], [true_ratio]])) for _ in range(1500)
    ]
    assert 0.70 <= np.mean([f.verdict == "slower" for f in found]) <= 0.85
    assert np.median([f.detectable_ratio for f in found]) == pytest.approx(true_ratio, rel=0.02)


def test_known_order_statistics():
    # n = 10: (x2, x9) covers 0.9785, (x3, x8) 0.8906; the interpolation lies between
    found = median_interval(np.arange(1.0, 11.0))
    assert found.centre == 5.5
    assert 2.0 < found.low < 3.0
    assert 8.0 < found.high < 9.0
    assert found.low + found.high == pytest.approx(11.0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_values_give_no_interval(n):
    found = median_interval(np.arange(1.0, n + 1))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_six_values_are_enough():
    found = median_interval(np.arange(1.0, 7.0))
    assert 1.0 <= found.low < found.centre < found.high <= 6.0


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=60))
def test_bounds_enclose_the_median_and_stay_within_the_data(values):
    found = median_interval(np.array(values))
    assert min(values) <= found.centre <= max(values)
    if not math.isnan(found.low):
        slack = 1e-9 * max(values)
        assert min(values) - slack <= found.low <= found.centre + slack
        assert found.centre - slack <= found.high <= max(values) + slack


def test_bounds_scale_with_the_unit():
    values = np.random.default_rng(0).random(40) + 1
    ns, us = median_interval(values * 1000), median_interval(values)
    assert ns.low == pytest.approx(us.low * 1000)


@pytest.mark.parametrize(("p", "floor"), list(PERCENTILE_FLOORS.items()))
def test_a_percentile_below_its_floor_is_refused(p, floor):
    assert math.isnan(percentile(np.arange(floor - 1), p))
    n = floor
    assert percentile(np.arange(n), p) == min(n - 1, int(n * p / 100))


def test_drift_shows_a_machine_that_slows_down():
    assert drift(np.linspace(1.0, 2.0, 90)) > 1.3
    assert drift(np.ones(90)) == 1.0
    assert math.isnan(drift(np.ones(8)))


def test_one_process_a_side_is_undecided():
    found = compare_medians(np.array([1.0]), np.array([5.0]))
    assert found.verdict == "undecided"
    assert found.reason == "one process a side"
    assert found.ratio == pytest.approx(5.0)


def test_verdicts():
    base = np.array([1.0, 1.001, 0.999, 1.0, 1.0])
    assert compare_medians(base, base * 1.2).verdict == "slower"
    assert compare_medians(base, base / 1.2).verdict == "faster"
    assert compare_medians(base, base).verdict == "same"
    wide = np.array([1.0, 1.5, 0.7, 1.2, 0.9])
    assert compare_medians(wide, wide[::-1].copy()).verdict == "undecided"


def test_equal_times_without_any_spread_are_the_same():
    found = compare_medians(np.ones(5), np.ones(5))
    assert found.verdict == "same"
    assert found.ratio == found.low == found.high == 1.0


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 4)), max_size=60))
def test_medians_by_group_are_those_of_each_group(rows):
    values = np.array([v for v, _ in rows], dtype=np.int64)
    group = np.array([g for _, g in rows], dtype=np.int64)
    median, low, high, count = medians_by_group(values, group, 5)
    for g in range(5):
        found = median_interval(values[group == g])
        assert count[g] == found.n
        assert np.array_equal([median[g], low[g], high[g]], [found.centre, found.low, found.high], equal_nan=True)
