"""The shipped test tools: valid synthetic records, a checker that finds faults, a contract broken backends fail."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.testing import check_layer_trace, synthetic_layer_trace, synthetic_pass


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(0, 30),
    iterations=st.integers(0, 6),
    block=st.integers(1, 7),
    seed=st.integers(0, 99),
    missing=st.booleans(),
)
def test_synthetic_layer_trace_is_valid(layers, iterations, block, seed, missing):
    trace = synthetic_layer_trace(layers=layers, iterations=iterations, block=block, seed=seed, missing=missing)
    check_layer_trace(trace, iterations=iterations)
    assert len(trace.layers) == layers


def test_synthetic_layer_trace_can_leave_a_branch_out():
    trace = synthetic_layer_trace(layers=8, iterations=4, missing=True)
    assert (trace.start_ns < 0).sum() == 2


def test_synthetic_records_repeat_by_seed():
    a, b, other = (synthetic_pass(seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(a.predict_ns, b.predict_ns)
    assert (a.predict_ns != other.predict_ns).any()


@pytest.mark.parametrize("level", ["model", "layer"])
@pytest.mark.parametrize("iterations", [0, 1, 9])
def test_synthetic_pass_is_ordered(level, iterations):
    record = synthetic_pass(level=level, iterations=iterations, layers=10, process=2)
    parts = (record.start_ns, record.preprocess_ns, record.predict_ns, record.postprocess_ns)
    assert all(p.dtype == np.int64 and p.shape == (iterations,) for p in parts)
    end = sum(parts)
    assert (record.start_ns[1:] >= end[:-1]).all()
    assert (record.layers is None) == (level == "model")
    if record.layers is not None and iterations:
        check_layer_trace(record.layers, iterations=iterations, after_ns=record.anchor_ns)
        np.testing.assert_array_equal(
            record.layers.iteration_start_ns - record.anchor_ns, record.start_ns + record.preprocess_ns
        )
        assert record.wall_ns >= end[-1] - record.start_ns[0]


def test_importing_the_tools_needs_no_pytest():
    code = "import sys, mlscope_lab.testing as t; t.synthetic_pass(); print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _changed(trace, **arrays):
    return dataclasses.replace(trace, **arrays)


def _at(array, i, j, value):
    array = array.copy()
    array[i, j] = value
    return array


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda t: _changed(t, duration_ns=_at(t.duration_ns, 1, 1, -5)), "never negative"),
        (lambda t: _changed(t, start_ns=_at(t.start_ns, 1, 1, 5)), "starts before iteration 1"),
        (lambda t: _changed(t, exclusive_ns=t.duration_ns), "add up to"),
        (lambda t: _changed(t, exclusive_ns=_at(t.exclusive_ns, 0, 0, 0)), "children cover at most"),
        (lambda t: _changed(t, start_ns=t.start_ns.astype(float)), "not int64"),
        (lambda t: _changed(t, iteration_duration_ns=t.iteration_duration_ns * 3), "overlap"),
        (lambda t: _changed(t, start_ns=_at(t.start_ns, 0, 1, t.start_ns[0, 0] - 500)), "order|child starts first"),
        (lambda t: _changed(t, layers=dataclasses.replace(t.layers, depth=(0,) * 8)), "depth"),
        (lambda t: _changed(t, layers=dataclasses.replace(t.layers, type=("",) * 8)), "empty type"),
        (lambda t: _changed(t, clock_error_ns=-1), "negative"),
    ],
)
def test_checker_finds_the_fault(fault, message):
    trace = synthetic_layer_trace(layers=8, iterations=3)
    with pytest.raises(AssertionError, match=message):
        check_layer_trace(fault(trace), iterations=3)


def test_checker_counts_iterations_and_compares_clock_readings():
    trace = synthetic_layer_trace(layers=4, iterations=3, start_ns=1000)
    with pytest.raises(AssertionError, match="3 iterations traced, 2 predicts"):
        check_layer_trace(trace, iterations=2)
    with pytest.raises(AssertionError, match="before its predict"):
        check_layer_trace(trace, after_ns=1001)
    with pytest.raises(AssertionError, match="after its predict"):
        check_layer_trace(trace, before_ns=2000)
