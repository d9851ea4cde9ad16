import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.divergence.capture import capture
from mlscope_lab.divergence.noise import (
    ROUNDOFF_STEPS,
    Perturbation,
    difference_noise,
    rounding_noise,
    unit_roundoff,
)
from tests.divergence.numpy_net import CLEAN, NumpyStepper, feeds


@given(st.integers(0, 1000), st.sampled_from(["float16", "float32", "float64"]), st.integers(0, 200_000))
def test_values_move_by_what_is_promised(seed, dtype, count):
    array = np.random.default_rng(seed).standard_normal(count).astype(dtype)
    moved = Perturbation(seed)(array, dtype)
    assert (moved.shape, moved.dtype) == (array.shape, array.dtype)
    if not count:
        return
    scale = np.sqrt(np.mean(array.astype(np.float64) ** 2))
    # a step of the perturbation, and the rounding of its own result
    bound = (ROUNDOFF_STEPS * 1.01 + 2) * unit_roundoff(dtype) * (np.abs(array.astype(np.float64)) + scale)
    assert (np.abs(moved.astype(np.float64) - array) <= bound).all()
    if count > 100 and dtype != "float64":
        assert (moved != array).mean() > 0.3


def test_integers_and_non_finite_values_stay():
    whole = np.arange(5)
    assert Perturbation(0)(whole, "int64") is whole
    odd = np.array([np.nan, np.inf, -np.inf, 1.0], dtype=np.float32)
    moved = Perturbation(0)(odd, "float32")
    assert np.isnan(moved[0])
    assert moved[1] == np.inf
    assert moved[2] == -np.inf


def test_the_given_array_is_not_changed():
    array = np.ones(10, dtype=np.float32)
    Perturbation(1)(array, "float32")
    assert (array == 1).all()


def test_noise_is_near_the_true_rounding_error():
    """Against double precision, the float32 network errs by less than its noise, and not by orders less."""
    given, exact = feeds(), NumpyStepper(dtype=np.float64)
    stepper = NumpyStepper()
    plain = capture(stepper, given)
    noise = rounding_noise(stepper, given, plain, seeds=4)
    double = capture(exact, given)
    with plain.spool, double.spool:
        for index, operation in enumerate(plain.graph.operations, start=1):
            true = np.abs(plain.spool.read(index) - double.spool.read(index)).max()
            assert true / 4 <= noise[index] <= 100 * max(true, 1e-9), operation.name


def test_exact_operations_add_no_noise_of_their_own():
    stepper = NumpyStepper()
    plain = capture(stepper, feeds())
    with plain.spool:
        noise = rounding_noise(stepper, feeds(), plain)
        assert noise[6] == noise[5]  # a transpose of the residual
        assert 0.0 < noise[0] < 1e-6  # the input, which is moved itself


def test_another_run_of_the_same_graph_is_a_source_of_noise():
    plain = capture(NumpyStepper(), feeds())
    with plain.spool:
        found = difference_noise(NumpyStepper(dtype=np.float64), feeds(), plain)
        assert set(found) == set(range(len(CLEAN) + 1))
        assert 0.0 < found[8] < 1e-5
        assert found[0] == 0.0


def test_seeds_change_the_noise_and_the_same_seed_does_not():
    stepper = NumpyStepper()
    plain = capture(stepper, feeds())
    with plain.spool:
        one = rounding_noise(stepper, feeds(), plain, seeds=1, first_seed=1)
        assert rounding_noise(stepper, feeds(), plain, seeds=1, first_seed=1) == one
        assert rounding_noise(stepper, feeds(), plain, seeds=1, first_seed=2) != one
        both = rounding_noise(stepper, feeds(), plain, seeds=2, first_seed=1)
        assert all(both[k] >= one[k] for k in one)


@pytest.mark.parametrize(("dtype", "bits"), [("float64", 53), ("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_roundoff_is_that_of_the_type(dtype, bits):
    assert unit_roundoff(dtype) == 2.0**-bits
