from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.errors import InputError
from mlscope_lab.numerics.calibration import FACTOR, FLOOR_ULPS, calibrated, unit_in_last_place

NAN = np.nan
F32 = ["float32"] * 3


def test_the_noise_of_both_sides_counts_together():
    found = calibrated(np.array([1e-5, 2e-5, 0.0]), np.array([3e-5, 0.0, 1e-5]), np.ones(3), F32, F32)
    assert found == pytest.approx(FACTOR * np.array([4e-5, 2e-5, 1e-5]))


def test_the_factor_can_be_given():
    noise = np.full(3, 1e-5)
    assert calibrated(noise, noise, np.ones(3), F32, F32, factor=2.0) == pytest.approx(np.full(3, 4e-5))


def test_exact_values_keep_some_units_in_the_last_place():
    none = np.zeros(3)
    found = calibrated(none, none, np.array([1.0, 10.0, 0.0]), F32, F32)
    assert found == pytest.approx(FLOOR_ULPS * 2.0**-23 * np.array([1.0, 10.0, 0.0]))


def test_the_coarser_type_sets_the_floor():
    none = np.zeros(3)
    found = calibrated(none, none, np.ones(3), F32, ["float16", "float64", "int64"])
    assert found == pytest.approx(FLOOR_ULPS * np.array([2.0**-10, 2.0**-23, 2.0**-23]))
    assert not calibrated(none, none, np.ones(3), ["int64"] * 3, ["bool"] * 3).any()


def test_unknown_noise_lies_between_its_neighbours_beside_the_values():
    noise = np.array([1e-6, NAN, 4e-6])
    found = calibrated(noise, noise, np.array([1.0, 10.0, 1.0]), F32, F32)
    assert found[1] == pytest.approx(FACTOR * 2 * 2e-6 * 10)  # the geometric mean, ten times as large
    assert found[[0, 2]] == pytest.approx(FACTOR * 2 * np.array([1e-6, 4e-6]))


def test_beyond_the_ends_the_nearest_counts():
    noise = np.array([NAN, 1e-6, NAN])
    found = calibrated(noise, noise, np.array([5.0, 1.0, 3.0]), F32, F32)
    assert found == pytest.approx(FACTOR * 2e-6 * np.array([5.0, 1.0, 3.0]))


def test_a_side_of_which_nothing_is_known_has_the_noise_of_the_other():
    noise = np.array([1e-6, 2e-6, 3e-6])
    assert calibrated(noise, np.full(3, NAN), np.ones(3), F32, F32) == pytest.approx(FACTOR * 2 * noise)
    assert calibrated(np.full(3, NAN), noise, np.ones(3), F32, F32) == pytest.approx(FACTOR * 2 * noise)


def test_an_unknown_scale_asks_for_no_floor_and_gives_no_nan():
    noise = np.array([1e-6, NAN, 1e-6])
    found = calibrated(noise, noise, np.array([1.0, NAN, 1.0]), F32, F32)
    assert np.isfinite(found).all()
    assert found[1] == 0.0


def test_neighbours_without_noise_give_none():
    noise = np.array([0.0, NAN, 0.0])
    assert calibrated(noise, noise, np.ones(3), F32, F32)[1] == pytest.approx(FLOOR_ULPS * 2.0**-23)


def test_nothing_known_is_refused():
    with pytest.raises(InputError, match="no tolerance can be calibrated"):
        calibrated(np.full(3, NAN), np.full(3, NAN), np.ones(3), F32, F32)
    assert calibrated(np.zeros(0), np.zeros(0), np.zeros(0), [], []).shape == (0,)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_units_are_those_of_numpy(dtype):
    assert unit_in_last_place(dtype) == np.finfo(dtype).eps
