"""Timing nodes with TensorFlow's profiler, and with step statistics where it cannot be had."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.backends import tensorflow_trace
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.backends.tensorflow_profiler import HostProfiler
from mlscope_lab.testing import check_layer_trace

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
LAYERS = SessionOptions(threads=1, level="layer")
WEIGHTS = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


def network(x):
    hidden = tf.nn.relu(tf.linalg.matmul(x, tf.constant(WEIGHTS), name="first"))
    return tf.reshape(tf.linalg.matmul(hidden, tf.constant(WEIGHTS), name="second"), [-1], name="flat")


@pytest.fixture
def feeds():
    return {"x": np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)}


@pytest.fixture
def session(feeds):
    with TensorFlowBackend().wrap(tf.function(network), feeds, LAYERS) as opened:
        yield opened


def traced(session, feeds, count=3):
    session.begin_trace()
    for _ in range(count):
        done = session.predict(feeds)
    return session.end_trace(), done


def needs_profiler(session):
    if session._recorder._profiler._level is None:
        pytest.skip("this build of tensorflow does not export its profiler's level")


def test_both_ways_of_timing_give_the_same_layers(session, feeds, tmp_path):
    needs_profiler(session)
    for _ in range(30):
        plain = session.predict(feeds)
    ours, _ = traced(session, feeds)
    assert ours.unavailable == {}
    tf.profiler.experimental.start(str(tmp_path))
    try:
        theirs, done = traced(session, feeds)
    finally:
        tf.profiler.experimental.stop()
    assert "step statistics timed the nodes" in theirs.unavailable["TensorFlow's profiler"].lower()
    np.testing.assert_array_equal(done["output"], plain["output"])
    for trace in (ours, theirs):
        check_layer_trace(trace, iterations=3)
    assert ours.layers == theirs.layers
    assert ours.executable_digest == theirs.executable_digest
    assert {"Reshape"} <= set(ours.layers.type)
    assert ours.layers.parameter_bytes[ours.layers.name.index(_named(ours, "second"))] >= WEIGHTS.nbytes
    assert traced(session, feeds)[0].unavailable == {}  # the profiler is taken up again once it is free


def _named(trace, part):
    return next(
        n for n, s, t in zip(trace.layers.name, trace.layers.sources, trace.layers.type, strict=True)
        if part in n + s and "MatMul" in t
    )  # fmt: skip


def test_long_traces_are_written_in_parts(session, feeds, monkeypatch):
    needs_profiler(session)
    monkeypatch.setattr(tensorflow_trace, "_NODE_RUNS_A_PROFILE", 2 * session._recorder._frozen.size)
    stops = []
    stop = HostProfiler.stop
    monkeypatch.setattr(HostProfiler, "stop", lambda self: stops.append(1) or stop(self))
    trace, _ = traced(session, feeds, count=7)
    assert len(stops) == 4
    check_layer_trace(trace, iterations=7)
    assert trace.dropped_events == 0
    assert (trace.start_ns >= 0).all()


def test_lost_profiles_are_counted(session, feeds, monkeypatch):
    needs_profiler(session)
    monkeypatch.setattr(tensorflow_trace, "_NODE_RUNS_A_PROFILE", 2 * session._recorder._frozen.size)
    stop = HostProfiler.stop
    parts = []

    def lossy(self):
        folder = stop(self)
        parts.append(folder)
        if len(parts) == 2:  # what TensorFlow does beyond 2 GiB
            for path in folder.rglob("*.xplane.pb"):
                path.write_bytes(b"")
        return folder

    monkeypatch.setattr(HostProfiler, "stop", lossy)
    trace, _ = traced(session, feeds, count=6)
    check_layer_trace(trace, iterations=4)
    assert trace.dropped_events >= 2 * len(trace.layers)
    assert "of 2 of 6 iterations" in trace.unavailable["layers"]
    assert not any(part.exists() for part in parts)


def test_an_asynchronous_loop_keeps_its_body():
    body = tf.function(lambda i, x: (i + 1, tf.linalg.matmul(x, x)))

    @tf.function
    def turn(x):
        return tf.raw_ops.StatelessWhile(
            input=[tf.constant(0), x],
            cond=tf.function(lambda i, x: i < 4).get_concrete_function(tf.constant(0), tf.TensorSpec([4, 4])),
            body=body.get_concrete_function(tf.constant(0), tf.TensorSpec([4, 4])),
        )[1]

    x = {"x": np.eye(4, dtype=np.float32)}
    with TensorFlowBackend().wrap(turn, x, LAYERS) as session:
        session.predict(x)
        trace, done = traced(session, x, count=2)
    np.testing.assert_array_equal(done["output"], x["x"])
    check_layer_trace(trace, iterations=2)
    assert sum("MatMul" in kind for kind in trace.layers.type) == 4
    covered = np.where(trace.start_ns >= 0, trace.exclusive_ns, 0).sum(axis=1)
    assert (covered <= trace.iteration_duration_ns).all()
