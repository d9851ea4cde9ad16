"""Synthetic comparisons obey the schema, and their numbers fit together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.divergence import schema
from mlscope_lab.divergence.validate import validate_comparison
from mlscope_lab.testing import synthetic_comparison


@settings(deadline=None, max_examples=20)
@given(pairs=st.integers(4, 40), share=st.floats(0, 1), seed=st.integers(0, 99), samples=st.integers(1, 3))
def test_the_fault_is_injected_once_and_inherited_after(pairs, share, seed, samples):
    fault = 1 + round(share * (pairs - 2))
    tree = synthetic_comparison(pairs, fault_at=fault, seed=seed, samples=samples, channels=4, size=3)
    validate_comparison(tree)
    found = tree[schema.PAIRS].dataset
    assert tree.attrs["first_divergent"] == tree.attrs["culprit"] == fault
    assert np.flatnonzero(found["injects"].values == 1).tolist() == [fault]
    assert not found["diverges"].values[:fault].any()
    assert found["diverges"].values[fault] == 1


def test_a_clean_one_names_nothing():
    tree = synthetic_comparison()
    found = tree[schema.PAIRS].dataset
    assert tree.attrs["first_divergent"] == tree.attrs["culprit"] == -1
    assert not (found["diverges"].values == 1).any()
    assert not (found["injects"].values == 1).any()


def test_numbers_are_those_of_the_kept_values():
    tree = synthetic_comparison(8, fault_at=3, keep_tensors=True)
    found = tree[schema.PAIRS].dataset
    for node in tree[schema.TENSORS].children.values():
        row = found.isel(pair=int(node.attrs["pair_index"]))
        a, b = node["a"].values, node["b"].values
        error = np.abs(b - a)
        assert float(row["max_abs_error"]) == error.max()
        assert float(row["l2_relative"]) == pytest.approx(np.linalg.norm(error) / np.linalg.norm(a))
        assert int(row["count"]) == a.size == int(tree["sketches"]["joint"].values[int(node.attrs["pair_index"])].sum())
        place = tuple(int(i) for i in str(row["worst_position"].item()).split(","))
        assert (a[place], b[place]) == (float(row["worst_a"]), float(row["worst_b"]))
        assert float(row["error_quantiles"].sel(quantile=1.0)) == error.max()


def test_same_seed_same_comparison():
    one, two, other = (synthetic_comparison(6, seed=seed) for seed in (1, 1, 2))
    assert one.identical(two)
    assert not one.identical(other)


@pytest.mark.parametrize(("pairs", "fault"), [(3, None), (8, 8), (8, 0)])
def test_what_cannot_be_is_refused(pairs, fault):
    with pytest.raises(ValueError, match="at least 4 pairs"):
        synthetic_comparison(pairs, fault_at=fault)
