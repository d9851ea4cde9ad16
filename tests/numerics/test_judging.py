from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlscope_lab.numerics.judging import judge
from mlscope_lab.numerics.measures import PairAccumulator

FLOATS = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, 1.0, 1.5, 2.0**-10, math.nan, math.inf, -math.inf, 1e-45, 1e30, 2.0**33]),
)
TOLERANCES = st.one_of(
    st.just(0.0), st.floats(1e-12, 10), st.integers(-40, 5).map(lambda k: 2.0**k), st.floats(0, 1e-4)
)
ARRAYS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*(hnp.arrays(np.float32, n, elements=FLOATS) for _ in range(2)), hnp.arrays(np.bool_, n))
)


def judged(pairs, atol, rtol):
    results = []
    for a, b in pairs:
        accumulator = PairAccumulator()
        accumulator.add(a, b)
        results.append(accumulator.result())
    names = ("count", "max_abs_error", "worst_a", "min_a", "max_a")
    columns = {name: np.array([getattr(r, name) for r in results]) for name in names}
    joint = np.array([r.joint for r in results])
    return judge(columns, joint, results[0].error_edges, results[0].reference_edges,
                 np.broadcast_to(atol, len(pairs)), np.broadcast_to(rtol, len(pairs)))  # fmt: skip


def out(a, b, atol, rtol):
    """Tell of each element whether it is out of tolerance, by the definition in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    agree = (np.isnan(a) & np.isnan(b)) | (a == b)
    with np.errstate(all="ignore"):
        return np.where(both, np.abs(b - a) > atol + rtol * np.abs(a), ~agree)


@given(ARRAYS, TOLERANCES, TOLERANCES)
def test_the_share_lies_between_its_bounds(arrays, atol, rtol):
    a, b, equal = arrays
    b = np.where(equal, a, b)
    found = judged([(a, b)], atol, rtol)
    share = out(a, b, atol, rtol).mean()
    assert found.share_out_low[0] - 1e-12 <= share <= found.share_out_high[0] + 1e-12
    if found.diverges[0] == 1:
        assert share > 0
    if found.diverges[0] == 0:
        assert share == 0


@given(ARRAYS, TOLERANCES)
def test_an_absolute_tolerance_is_judged_exactly(arrays, atol):
    a, b, equal = arrays
    b = np.where(equal, a, b)
    found = judged([(a, b)], atol, 0.0)
    assert found.diverges[0] == int(out(a, b, atol, 0.0).any())


@given(ARRAYS)
def test_no_tolerance_at_all_tells_equal_elements_exactly(arrays):
    a, b, equal = arrays
    b = np.where(equal, a, b)
    found = judged([(a, b)], 0.0, 0.0)
    share = out(a, b, 0.0, 0.0).mean()
    assert found.share_out_low[0] == found.share_out_high[0] == pytest.approx(share)


def test_the_bounds_are_close_where_errors_are_spread():
    random = np.random.default_rng(0)
    a = random.standard_normal(100_000, dtype=np.float32)
    b = a + np.float32(1e-4) * random.standard_normal(100_000, dtype=np.float32)
    found = judged([(a, b)], 1e-4, 1e-5)
    share = out(a, b, 1e-4, 1e-5).mean()
    assert found.share_out_low[0] <= share <= found.share_out_high[0]
    assert found.share_out_high[0] - found.share_out_low[0] < 0.3


def test_a_relative_tolerance_beside_the_worst_element_is_not_known():
    a = np.array([1.9, 1.1], dtype=np.float32)
    b = a + np.array([0.19, 0.12], dtype=np.float32)
    # the worst element is within 0.105 of its reference, the other is not; both share bins
    found = judged([(a, b)], 0.0, 0.105)
    assert found.diverges[0] == -1
    assert found.share_out_low[0] == 0.0
    assert found.share_out_high[0] == 1.0


def test_nan_on_one_side_is_out_of_every_tolerance():
    a, b = np.array([1.0, np.nan], np.float32), np.array([1.0, 2.0], np.float32)
    found = judged([(a, b)], 1e30, 1e30)
    assert found.diverges[0] == 1
    assert found.share_out_low[0] == found.share_out_high[0] == 0.5


def test_without_values_or_tolerance_nothing_is_known():
    one = np.ones(3, np.float32)
    found = judged([(one, one), (one[:0], one[:0]), (one, one)], np.array([np.nan, 1.0, 1.0]), 0.0)
    assert list(found.diverges) == [-1, -1, 0]
    assert np.isnan(found.share_out_low[:2]).all()
    assert found.share_out_high[2] == 0.0


def test_no_pairs_need_no_judgement():
    columns = {name: np.zeros(0) for name in ("count", "max_abs_error", "worst_a", "min_a", "max_a")}
    found = judge(columns, np.zeros((0, 160, 64), np.int64), np.zeros(161), np.zeros(65), np.zeros(0), np.zeros(0))
    assert found.diverges.shape == (0,)
