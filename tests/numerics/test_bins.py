from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.numerics.bins import ERROR_EDGES, FINE_EDGES, REFERENCE_EDGES, LinearBins, divergences
from mlscope_lab.numerics.measures import PairAccumulator

COUNTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12)


@pytest.mark.parametrize("edges", [FINE_EDGES, ERROR_EDGES, REFERENCE_EDGES])
def test_edges_ascend_from_zero_to_infinity(edges):
    assert edges[0] == 0.0
    assert edges[-1] == math.inf
    assert (np.diff(edges[np.isfinite(edges)]) > 0).all()


def test_stored_edges_are_some_of_the_fine_ones():
    assert set(ERROR_EDGES) <= set(FINE_EDGES)


@given(COUNTS)
def test_divergences_are_as_defined(counts):
    one, other = np.array(counts).T
    kl, js, hellinger = divergences(one, other)
    if not one.sum() or not other.sum():
        assert math.isnan(kl)
        return
    held = (one + other) > 0
    p, q = one[held] / one.sum(), other[held] / other.sum()
    m = (p + q) / 2
    smooth = [(x[held] + 0.5) / (x[held] + 0.5).sum() for x in (one, other)]
    assert kl == pytest.approx(np.sum(smooth[0] * np.log(smooth[0] / smooth[1])), abs=1e-12)
    wanted = sum(np.sum(np.where(s > 0, s * np.log(np.where(s > 0, s, 1) / m), 0)) for s in (p, q)) / 2
    assert js == pytest.approx(wanted, abs=1e-12)
    assert hellinger**2 == pytest.approx(1 - np.sqrt(p * q).sum(), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 2.0])
def test_divergences_of_values_come_near_those_of_their_densities(shift):
    random = np.random.default_rng(0)
    a, b = random.standard_normal(400_000), random.standard_normal(400_000) + shift
    pair = PairAccumulator()
    pair.add(a.astype(np.float32), b.astype(np.float32))
    found = pair.result()
    # two normal distributions of one width; sampling adds about as much as there are bins (some 1,500) to each value
    assert found.kl_divergence == pytest.approx(shift**2 / 2, rel=0.03, abs=5e-3)
    assert found.hellinger**2 == pytest.approx(1 - math.exp(-(shift**2) / 8), rel=0.03, abs=2e-3)
    x = np.linspace(-12, 14, 200_001)
    p, q = (np.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (0.0, shift))
    m = (p + q) / 2
    js = float(np.trapezoid((p * np.log(p / m) + q * np.log(q / m)) / 2, x))
    assert found.js_divergence == pytest.approx(js, rel=0.03, abs=2e-3)


@given(st.lists(st.tuples(st.floats(0.1, 8.0), st.floats(0.1, 8.0), st.integers(1, 9)), min_size=2, max_size=8))
def test_merging_bins_lowers_js_by_no_more_than_stated(cells):
    # halves of bins, whose shares of the two sides differ within a bin by a factor of at most 1 + e
    p, q = (np.repeat([c[k] * c[2] for c in cells], 2) for k in (0, 1))
    tilt = np.tile([1.0, 1.25], len(cells))
    fine = np.rint(np.stack([p * 1e6, q * tilt * 1e6])).astype(np.int64)
    coarse = fine.reshape(2, -1, 2).sum(axis=2)
    _, exact, _ = divergences(fine[0], fine[1])
    _, binned, _ = divergences(coarse[0], coarse[1])
    assert binned <= exact + 1e-9
    assert exact - binned <= math.log(1.26)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_linear_bins_hold_their_range(low, span):
    high = low + span
    bins = LinearBins(low, high)
    assert bins.low <= low
    assert high < bins.high or high == low
    if span > 1e-9 * abs(low):
        assert bins.high - bins.low <= 2.1 * max(span, 1e-298)


@pytest.mark.parametrize(("low", "high", "folds"), [(-1.0, 1.0, True), (0.0, 6.0, True), (100.0, 101.0, False)])
def test_linear_bins_fold_where_zero_is_near(low, high, folds):
    assert LinearBins(low, high).folds is folds
    assert LinearBins(low, high, coarse=True).folds
