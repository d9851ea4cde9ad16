"""TensorFlow's profiler: every node in it, one at a time, and what it says when it cannot be had."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mlscope_lab.backends import tensorflow_profiler
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.backends.tensorflow_profiler import HostProfiler, ProfilerUnavailableError, read_profile
from mlscope_lab.errors import SessionError

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()


@pytest.fixture
def profiler(tmp_path):
    made = HostProfiler(tf, tmp_path)
    if made._level is None:
        pytest.skip("this build of tensorflow does not export its profiler's level")
    yield made
    made.discard()


@pytest.fixture
def session():
    function = tf.function(lambda x: tf.reshape(tf.linalg.matmul(x, x), [-1]))
    example = {"x": np.eye(4, dtype=np.float32)}
    with TensorFlowBackend().wrap(function, example, SessionOptions(threads=1, level="layer")) as opened:
        for _ in range(40):  # until TensorFlow has found out that all of it is inexpensive
            opened.predict(example)
        yield opened


def test_inexpensive_nodes_are_recorded(profiler, session):
    profiler.start()
    session.predict({"x": np.eye(4, dtype=np.float32)})
    folder = profiler.stop()
    nodes = [event for event in read_profile(folder) if event.kind == "node"]
    ops = {event.op for event in nodes}
    assert {"Reshape", "_Arg", "_Retval"} <= ops
    assert any("MatMul" in op for op in ops)
    assert profiler._level.value == -1
    assert all(event.thread and event.stop >= event.start > 10**18 for event in nodes)


def test_details_hold_what_the_executor_did(profiler, session):
    profiler.start()
    session.predict({"x": np.eye(4, dtype=np.float32)})
    kinds = {}
    for event in read_profile(profiler.stop(), details=True):
        kinds.setdefault(event.kind, []).append(event)
    assert {"node", "propagation", "executor", "session"} <= set(kinds)
    assert len(kinds["session"]) == 1
    assert {str(event.stats["kernel_name"]) for event in kinds["propagation"]} > {e.name for e in kinds["node"]} - {""}


def test_one_at_a_time_and_the_users_own_is_left_alone(profiler, tmp_path):
    tf.profiler.experimental.start(str(tmp_path / "theirs"))
    try:
        with pytest.raises(ProfilerUnavailableError, match="there can be one only"):
            profiler.start()
    finally:
        tf.profiler.experimental.stop()
    assert list((tmp_path / "theirs").rglob("*.xplane.pb"))
    profiler.start()
    profiler.discard()
    assert [p for p in tmp_path.iterdir() if p.name != "theirs"] == []
    tf.profiler.experimental.start(str(tmp_path / "again"))
    tf.profiler.experimental.stop(save=False)


def test_a_build_without_the_level_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorflow_profiler, "_SYMBOL", "there_is_no_such_variable")
    with pytest.raises(ProfilerUnavailableError, match="inexpensive nodes"):
        HostProfiler(tf, tmp_path).start()


def test_a_variable_that_reads_otherwise_is_not_written(monkeypatch, profiler, tmp_path):
    profiler._level.value = 77
    try:
        with pytest.raises(ProfilerUnavailableError, match="inexpensive nodes"):
            profiler.start()
        assert profiler._level.value == 77
    finally:
        profiler._level.value = -1


def test_stopped_by_somebody_else(profiler):
    profiler.start()
    tf.profiler.experimental.stop(save=False)
    with pytest.raises(SessionError, match="was stopped while"):
        profiler.stop()


def test_stop_without_start(profiler):
    with pytest.raises(SessionError, match="not running"):
        profiler.stop()


def test_an_empty_profile_holds_no_events(profiler):
    profiler.start()
    folder = profiler.stop()
    for path in folder.rglob("*.xplane.pb"):
        path.write_bytes(b"")
    assert list(read_profile(folder)) == []
    shutil.rmtree(folder)
