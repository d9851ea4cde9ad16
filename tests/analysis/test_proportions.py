"""Intervals of shares and the paired test, against scipy, their own equations and what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from mlscope_lab.analysis.proportions import clopper_pearson_interval, mcnemar, wilson_interval

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(counts, confidence):
    successes, n = counts
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(successes, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.low <= ours.centre <= ours.high


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_is_that_of_scipy(counts, confidence):
    successes, n = counts
    theirs = binomtest(successes, n).proportion_ci(confidence, method="exact")
    ours = clopper_pearson_interval(successes, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.994])
def test_intervals_cover_what_they_promise(share):
    n = 200
    probability = binom.pmf(np.arange(n + 1), n, share)
    covered = {}
    for method in (wilson_interval, clopper_pearson_interval):
        found = [method(k, n) for k in range(n + 1)]
        covered[method] = sum(p for p, i in zip(probability, found, strict=True) if i.low <= share <= i.high)
    assert covered[clopper_pearson_interval] >= 0.95
    assert 0.92 < covered[wilson_interval] < 0.985


def test_wilson_solves_its_equation():
    interval = wilson_interval(7, 20)
    z = norm.ppf(0.975)
    for bound in (interval.low, interval.high):
        assert abs(0.35 - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / 20))


@pytest.mark.parametrize("method", [wilson_interval, clopper_pearson_interval])
def test_ends_and_nothing(method):
    assert method(0, 30).low == 0
    assert method(30, 30).high == 1
    assert math.isnan(method(0, 0).low)
    for wrong in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not possible"):
            method(*wrong)
    with pytest.raises(ValueError, match="confidence"):
        method(1, 2, 1.0)


@given(*[st.integers(0, 60)] * 4)
def test_mcnemar_is_the_binomial_test_of_the_discordant(both, only_a, only_b, neither):
    found = mcnemar(both, only_a, only_b, neither)
    if only_a + only_b:
        assert found.p_value == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    else:
        assert found.p_value == 1
    n = both + only_a + only_b + neither
    if n:
        assert found.difference == pytest.approx((only_b - only_a) / n)
        assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
    turned = mcnemar(both, only_b, only_a, neither)
    assert turned.p_value == pytest.approx(found.p_value)
    if n:
        assert (-turned.high, -turned.low) == pytest.approx((found.low, found.high))


def test_mcnemar_cries_wolf_no_more_often_than_promised():
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(1000):
        both, only_a, only_b, neither = rng.multinomial(200, [0.6, 0.1, 0.1, 0.2])
        false += mcnemar(int(both), int(only_a), int(only_b), int(neither)).p_value < 0.05
    assert false <= 60


def test_the_interval_of_a_difference_covers_it():
    rng = np.random.default_rng(1)
    true, hits = 0.12 - 0.05, 0
    for _ in range(1000):
        both, only_a, only_b, neither = rng.multinomial(150, [0.6, 0.05, 0.12, 0.23])
        found = mcnemar(int(both), int(only_a), int(only_b), int(neither))
        hits += found.low <= true <= found.high
    assert 920 <= hits <= 985


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="negative"):
        mcnemar(1, -1, 0, 0)
