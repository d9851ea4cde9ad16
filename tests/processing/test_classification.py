"""Scores to probabilities to ranked classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from mlscope_lab.errors import InputError
from mlscope_lab.processing.classification import Ranked, Sigmoid, Softmax, TopK

scores = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-1e4, 1e4, width=32)
)


@given(scores)
def test_softmax_is_scipys(values: np.ndarray) -> None:
    for axis in range(-values.ndim, values.ndim):
        found = Softmax(axis=axis)(values)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, special.softmax(values.astype(float), axis=axis), atol=1e-6)


@given(scores)
def test_sigmoid_is_scipys(values: np.ndarray) -> None:
    np.testing.assert_allclose(Sigmoid()(values), special.expit(values.astype(float)), atol=1e-6)


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.integers(-3, 3)), st.integers(1, 40))
def test_top_k_is_sorted_and_stable(values: np.ndarray, k: int) -> None:
    ranked = TopK(k=k)(values)
    assert len(ranked) == min(k, values.size)
    assert list(ranked) == sorted(ranked, key=lambda r: (-r.score, r.index))
    left = set(range(values.size)) - {r.index for r in ranked}
    assert all(values[i] <= ranked[-1].score for i in left)


def test_top_k_names_classes_and_drops_axes_of_one() -> None:
    step = TopK(k=2, labels=["a", "b", "c"])  # type: ignore[arg-type] # as YAML gives it
    wanted = (Ranked(2, "c", 3.0), Ranked(0, "a", 2.0))
    assert step(np.array([2.0, 1.0, 3.0])) == wanted
    assert step(np.array([2.0, 1.0, 3.0]).reshape(3, 1, 1)) == wanted
    assert hash(step) == hash(TopK(k=2, labels=("a", "b", "c")))


def test_what_cannot_be_ranked() -> None:
    with pytest.raises(InputError, match="2 scores, but 3 labels"):
        TopK(labels=("a", "b", "c"))(np.zeros(2))
    with pytest.raises(InputError, match="put select before it"):
        TopK()(np.zeros((2, 3)))
    with pytest.raises(InputError, match="NaN"):
        TopK()(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="NaN"):
        Softmax()(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="no axis 1"):
        Softmax(axis=1)(np.zeros(3))
    with pytest.raises(InputError, match="array of scores"):
        TopK()(np.array(["x"]))
    with pytest.raises(InputError, match="array of scores"):
        Sigmoid()(np.zeros(0))
    with pytest.raises(InputError, match="at least 1"):
        TopK(k=0)
