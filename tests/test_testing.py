"""The shipped test tools: valid synthetic records, a checker that finds faults, a contract broken backends fail."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.backends.base import Backend, Capabilities, ModelFiles, Session, TensorSpec
from mlscope_lab.errors import SessionError, UnsupportedModelError
from mlscope_lab.testing import BackendContract, check_layer_trace, synthetic_layer_trace, synthetic_pass
from mlscope_lab.trace.records import LayerTable, LayerTrace


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


# -- the contract: each deliberate fault must fail the method that is there for it ----------------------------------


class _Doubler(Session):
    """A correct session; the subclasses below each break one promise."""

    execution_mode = "graph"

    def __init__(self, options):
        super().__init__()
        self.inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
        self.outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)
        self.executable_digest = "sha256:" + "a" * 64
        self.threads = options.threads
        self.level = options.level
        self.calls = []

    def _predict(self, feeds):
        self.check(feeds)
        start = time.perf_counter_ns()
        result = self.compute(feeds["x"])
        if self._tracing:
            self.calls.append((start, time.perf_counter_ns() - start))
        return {"y": result}

    def compute(self, x):
        return np.ascontiguousarray(x) * np.float32(2)

    def _begin_trace(self):
        if self.level != "layer":
            raise SessionError("not opened for layers")
        self.calls = []

    def _end_trace(self):
        times = np.array(self.calls, dtype=np.int64).reshape(-1, 2)
        thirds = np.linspace(0, 1, 4)[:3]
        start = times[:, :1] + (times[:, 1:] * thirds).astype(np.int64)
        each = np.repeat(times[:, 1:] // 3, 3, axis=1)
        flat = ("",) * 3
        table = LayerTable(
            name=("a", "b", "c"), type=("Mul",) * 3, scope=flat, parent=(-1,) * 3, depth=(0,) * 3, input_shapes=flat,
            output_shapes=("float32[1,4]",) * 3, parameter_bytes=(-1,) * 3, activation_bytes=(-1,) * 3, sources=flat,
        )  # fmt: skip
        return LayerTrace(
            layers=table, start_ns=start, duration_ns=each, exclusive_ns=each, iteration_start_ns=times[:, 0].copy(),
            iteration_duration_ns=np.maximum(times[:, 1], 1), executable_digest=self.executable_digest,
        )  # fmt: skip


class _DoublerBackend(Backend):
    name = "doubler"
    title = "Doubler"
    module = "numpy"
    distributions = ("numpy",)
    session = _Doubler

    def capabilities(self):
        return Capabilities(formats=("onnx",), levels=("model", "layer"))

    def _open(self, model, options):
        if model.format != "onnx":
            raise UnsupportedModelError(f"not {model.format}")
        if not model.path.exists():
            raise UnsupportedModelError(f"there is no file {model.path}")
        if model.path.read_bytes() != GOOD:
            raise UnsupportedModelError(f"{model.path} is no doubler")
        return self.session(options)


GOOD = b"a doubler" * 8


def _backend_of(session):
    backend = _DoublerBackend()
    backend.session = session
    return backend


class TestCorrectBackendPasses(BackendContract):
    @pytest.fixture
    def backend(self):
        return _DoublerBackend()

    @pytest.fixture
    def model_files(self, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(GOOD)
        return ModelFiles(name="doubler", format="onnx", path=path, digest="sha256:0")

    @pytest.fixture
    def feeds(self):
        return {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}

    @pytest.fixture
    def expected(self, feeds):
        return {"y": feeds["x"] * np.float32(2)}

    def test_construction_imports_no_framework(self, backend):
        pytest.skip("a backend inside a test module cannot be imported by another process")


class _ReusesBuffer(_Doubler):
    buffer = np.zeros((2, 4), np.float32)

    def compute(self, x):
        return np.multiply(x, np.float32(2), out=self.buffer)


class _WritesInput(_Doubler):
    def compute(self, x):
        x *= 2
        return x.copy()


class _Drifts(_Doubler):
    def compute(self, x):
        self.drift = getattr(self, "drift", 0) + np.float32(1e-3)
        return x * np.float32(2) + self.drift


class _WrongType(_Doubler):
    def compute(self, x):
        return x * np.float64(2)


class _TakesAnything(_Doubler):
    def check(self, feeds):
        pass


class _Concurrent(_Doubler):
    def predict(self, feeds):
        return self._predict(feeds)


class _NeverCloses(_Doubler):
    def close(self):
        pass


class _CountsInclusiveTwice(_Doubler):
    def _end_trace(self):
        trace = super()._end_trace()
        return dataclasses.replace(trace, duration_ns=trace.duration_ns * 2, exclusive_ns=trace.exclusive_ns * 2)


class _OnAnotherClock(_Doubler):
    def _end_trace(self):
        trace = super()._end_trace()
        return dataclasses.replace(trace, start_ns=trace.start_ns + 10**12)


class _TracesWarmup(_Doubler):
    def _predict(self, feeds):
        tracing, self._tracing = self._tracing, True
        try:
            return super()._predict(feeds)
        finally:
            self._tracing = tracing

    def _begin_trace(self):
        if self.level != "layer":
            raise SessionError("not opened for layers")


class _TracesAtAnyLevel(_Doubler):
    def _begin_trace(self):
        self.calls = []


class _UnstableDigest(_Doubler):
    def __init__(self, options):
        super().__init__(options)
        self.executable_digest = "sha256:" + np.random.default_rng().bytes(32).hex()


@pytest.mark.parametrize(
    ("fault", "method"),
    [
        (_ReusesBuffer, "test_outputs_stay_valid_after_the_next_predict"),
        (_WritesInput, "test_predict_leaves_feeds_alone"),
        (_Drifts, "test_predict_is_deterministic"),
        (_Drifts, "test_predict_matches_expected"),
        (_WrongType, "test_predict_matches_expected"),
        (_WrongType, "test_specs_describe_inputs_and_outputs"),
        (_TakesAnything, "test_missing_input"),
        (_TakesAnything, "test_unknown_input"),
        (_TakesAnything, "test_wrong_dtype"),
        (_TakesAnything, "test_wrong_shape"),
        (_Concurrent, "test_concurrent_use_is_refused"),
        (_NeverCloses, "test_context_manager_closes"),
        (_UnstableDigest, "test_session_tells_what_runs"),
        (_TracesAtAnyLevel, "test_no_trace_at_model_level"),
        (_CountsInclusiveTwice, "test_trace_holds_what_ran"),
        (_OnAnotherClock, "test_trace_holds_what_ran"),
        (_TracesWarmup, "test_trace_holds_what_ran"),
    ],
)
def test_contract_fails_the_broken_backend(fault, method, tmp_path):
    test = getattr(TestCorrectBackendPasses(), method)
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}

    def run(session):
        backend = _backend_of(session)
        given = {
            "backend": backend,
            "open_session": session,
            "feeds": {k: v.copy() for k, v in feeds.items()},
            "expected": {"y": feeds["x"] * np.float32(2)},
            "tmp_path": tmp_path,
        }
        test(**{k: given[k] for k in inspect.signature(test).parameters})

    run(_Doubler)
    with pytest.raises((AssertionError, pytest.fail.Exception, SessionError)):
        run(fault)


class _TakesGarbage(_DoublerBackend):
    def _open(self, model, options):
        return _Doubler(options)


@pytest.mark.parametrize("method", ["test_unknown_format", "test_missing_file", "test_corrupt_file"])
def test_contract_fails_a_backend_that_opens_anything(method, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(GOOD)
    files = ModelFiles(name="doubler", format="onnx", path=path, digest="sha256:0")
    given = {"model_files": files, "tmp_path": tmp_path, "how": "truncated"}
    test = getattr(TestCorrectBackendPasses(), method)
    names = [n for n in inspect.signature(test).parameters if n != "backend"]
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test(backend=_TakesGarbage(), **{n: given[n] for n in names})


class _HidesLayers(_DoublerBackend):
    def capabilities(self):
        return Capabilities(formats=("onnx",))


def test_contract_wants_a_reason_for_missing_layers():
    with pytest.raises(AssertionError, match="no layer level, and no reason"):
        TestCorrectBackendPasses().test_capabilities(_HidesLayers())
