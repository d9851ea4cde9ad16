from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy

from mlscope_lab.errors import InputError
from mlscope_lab.numerics.distributions import (
    DIVERGENCES,
    bhattacharyya,
    correlation,
    covariance,
    hellinger,
    jensen_shannon,
    kullback_leibler,
    prediction_divergences,
)  # fmt: skip

SIZES = st.tuples(st.integers(1, 4), st.integers(2, 9))


@st.composite
def two(draw, lowest=0.0):
    shape = draw(SIZES)
    elements = st.floats(lowest, 1.0, allow_subnormal=False)
    rows = [draw(hnp.arrays(np.float64, shape, elements=elements)) + (0 if lowest else 1e-12) for _ in range(2)]
    return [x / x.sum(axis=1, keepdims=True) for x in rows]


@given(two(lowest=1e-6))
def test_measures_are_those_of_scipy_and_numpy(both):
    p, q = both
    assert kullback_leibler(p, q) == pytest.approx(entropy(p, q, axis=1), abs=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(
        (entropy(p, (p + q) / 2, axis=1) + entropy(q, (p + q) / 2, axis=1)) / 2, abs=1e-12
    )
    coefficient = np.sqrt(p * q).sum(axis=1)
    assert bhattacharyya(p, q) == pytest.approx(-np.log(coefficient), abs=1e-12)
    assert hellinger(p, q) ** 2 == pytest.approx(1 - coefficient, abs=1e-12)
    assert covariance(p, q) == pytest.approx([np.cov(a, b)[0, 1] for a, b in zip(p, q, strict=True)], abs=1e-14)
    for found, a, b in zip(correlation(p, q), p, q, strict=True):
        if np.ptp(a) > 1e-9 and np.ptp(b) > 1e-9:
            assert found == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)


@given(two())
def test_distances_are_bounded_and_nothing_for_equal_rows(both):
    p, q = both
    assert (jensen_shannon(p, q) <= math.log(2) + 1e-12).all()
    assert (hellinger(p, q) <= 1.0).all()
    assert (kullback_leibler(p, q) >= -1e-12).all()
    for measure in (bhattacharyya, hellinger, jensen_shannon, kullback_leibler):
        assert np.abs(measure(p, p)).max() < 1e-12
        assert measure(p, q).shape == (len(p),)


def test_disjoint_rows_are_as_far_apart_as_can_be():
    p, q = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    found = prediction_divergences(p, q)
    assert found["bhattacharyya"][0] == math.inf
    assert found["kullback_leibler"][0] == math.inf
    assert found["hellinger"][0] == 1.0
    assert found["jensen_shannon"][0] == pytest.approx(math.log(2))
    assert found["correlation"][0] == -1.0
    assert found["covariance"][0] == -0.5
    assert list(found) == list(DIVERGENCES)


def test_rows_that_barely_meet_keep_their_distance():
    tiny = 1e-40
    found = bhattacharyya(np.array([1.0, tiny]), np.array([0.0, 1.0]))
    assert found[0] == pytest.approx(-math.log(math.sqrt(tiny)))


def test_rows_that_are_nearly_equal_keep_theirs():
    p = np.array([0.5, 0.5])
    q = np.array([0.5 + 1e-9, 0.5 - 1e-9])
    # to second order both are the sum of squared differences over eight times p
    assert bhattacharyya(p, q)[0] == pytest.approx(2 * 1e-18 / 4, rel=1e-6)
    assert hellinger(p, q)[0] == pytest.approx(math.sqrt(2 * 1e-18 / 4), rel=1e-6)


def test_a_uniform_row_has_no_correlation():
    assert np.isnan(correlation(np.array([0.5, 0.5]), np.array([0.9, 0.1]))[0])


def test_a_single_class_has_no_covariance():
    assert np.isnan(covariance(np.array([[1.0]]), np.array([[1.0]]))[0])


@pytest.mark.parametrize(
    ("p", "q", "said"),
    [
        ([[2.0, -1.0]], [[0.5, 0.5]], "Row 0 of the first predictions"),
        ([[0.5, 0.5]], [[3.0, 1.0]], "softmax"),
        ([[0.5, 0.5]], [[np.nan, 0.5]], "Row 0 of the second predictions"),
        ([[0.5, 0.5]], [[0.2, 0.3, 0.5]], "one shape"),
    ],
)
def test_what_is_no_distribution_is_refused(p, q, said):
    with pytest.raises(InputError, match=said):
        kullback_leibler(np.array(p), np.array(q))
