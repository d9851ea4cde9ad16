"""Sketches: the same in every layout, different for different values, and what is counted apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.alignment.distances import distance, distances
from mlscope_lab.alignment.sketch import STATISTICS, sketch


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.permutations(range(4)), st.integers(0, 1000))
def test_no_layout_changes_it(order: list[int], seed: int) -> None:
    x = values(1, 3, 5, 4, seed=seed)
    one, other = sketch(x), sketch(np.ascontiguousarray(x.transpose(order)))
    assert distance(one, other) < 1e-5
    for axis, source in enumerate(order):
        np.testing.assert_allclose(other.profiles[axis], one.profiles[source], rtol=0, atol=1e-5)


def test_statistics_are_what_their_names_say() -> None:
    x = values(2, 30, 7)
    wide = x.astype(np.float64)
    expected = (wide.mean(), np.sqrt((wide**2).mean()), np.cbrt((wide**3).mean()), wide.min(), wide.max())
    np.testing.assert_allclose(sketch(x).statistics, expected, rtol=1e-5)
    assert len(STATISTICS) == len(expected)
    np.testing.assert_allclose(sketch(x).profiles[1], wide.mean(axis=(0, 2)), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int64", "bool"])
def test_every_type_is_taken(dtype: str) -> None:
    x = (values(4, 6) * 30).astype(dtype)
    found = sketch(x)
    assert found.statistics[0] == pytest.approx(x.astype(np.float64).mean(), rel=1e-5, abs=1e-6)
    assert (found.count, found.nan, found.inf) == (24, 0, 0)


def test_float16_does_not_overflow_in_it() -> None:
    assert sketch(np.full((8, 8), 60000, np.float16)).statistics[1] == pytest.approx(60000, rel=1e-3)
    assert sketch(np.full((8, 8), 1e20, np.float32)).statistics[2] == pytest.approx(1e20, rel=1e-5)


def test_what_is_not_finite_is_counted_apart() -> None:
    x = values(3, 4)
    x[0, 0], x[1, 1], x[2, 2] = np.nan, np.inf, -np.inf
    found = sketch(x)
    assert (found.nan, found.inf) == (1, 2)
    assert np.isfinite(found.statistics).all()
    assert distance(found, sketch(np.nan_to_num(x, nan=0, posinf=0, neginf=0))) == 1.0


def test_complex_values_are_taken_by_magnitude() -> None:
    x = values(3, 4) + 1j * values(3, 4, seed=1)
    assert distance(sketch(x), sketch(np.abs(x))) < 1e-6


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
def test_odd_shapes_are_taken(shape: tuple[int, ...]) -> None:
    found = sketch(np.ones(shape, np.float32))
    assert found.shape == shape
    assert found.count == int(np.prod(shape))
    assert len(found.profiles) == len(shape)


def test_a_quantised_tensor_is_compared_in_real_values() -> None:
    scale, zero = 0.05, 12
    x = values(1, 6, 5, 5)
    quantised = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
    real = (quantised.astype(np.float32) - zero) * np.float32(scale)
    found = sketch(quantised).dequantized(scale, zero)
    np.testing.assert_allclose(found.statistics, sketch(real).statistics, atol=1e-5)
    np.testing.assert_allclose(found.profiles[1], sketch(real).profiles[1], atol=1e-5)
    assert distance(found, sketch(x)) < 0.05


def test_different_values_are_apart() -> None:
    x = values(2, 8, 8)
    others = [np.maximum(x, 0), x + 0.1, x * 1.01, -x, np.zeros_like(x)]
    apart = distances([sketch(x)], [sketch(o) for o in others])[0]
    assert (apart > 5e-3).all()
    assert np.isinf(distances([sketch(x)], [None])[0, 0])


def test_long_axes_are_pooled() -> None:
    found = sketch(values(2, 5000))
    assert len(found.profiles[1]) == 1024
    assert found.profiles[1].mean() == pytest.approx(found.statistics[0], abs=1e-3)


def test_a_constant_says_that_it_is_one() -> None:
    assert sketch(np.full((3, 3), 7.0)).constant
    assert not sketch(values(3, 3)).constant
