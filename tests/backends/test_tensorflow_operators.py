"""What lies below TensorFlow's layers, from the profiler and from step statistics."""

from __future__ import annotations

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.testing import check_layer_trace
from mlscope_lab.trace.events import table_of

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
OPERATORS = SessionOptions(threads=1, level="operator")
FILTERS = np.random.default_rng(0).normal(size=(3, 3, 3, 64)).astype(np.float32)
PICTURE = {"x": np.random.default_rng(1).random((1, 64, 64, 3), dtype=np.float32)}


def network(x):
    with tf.name_scope("stem"):
        x = tf.nn.relu(tf.nn.conv2d(x, tf.constant(FILTERS), 1, "SAME"))
    return tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), [1, -1])


def traced(count=3, *, feeds=(PICTURE,), function=network):
    with TensorFlowBackend().wrap(tf.function(function), feeds[0], OPERATORS) as session:
        for _ in range(3):
            session.predict(feeds[0])
        session.begin_trace()
        for i in range(count):
            session.predict(feeds[i % len(feeds)])
        return session.end_trace()


def needs_profiler(trace):
    if "TensorFlow's profiler" in trace.unavailable:
        pytest.skip(trace.unavailable["TensorFlow's profiler"])
    return trace


@pytest.fixture(params=["profiler", "step statistics"])
def trace(request, tmp_path):
    if request.param == "profiler":
        return needs_profiler(traced())
    tf.profiler.experimental.start(str(tmp_path))
    try:
        return traced()
    finally:
        tf.profiler.experimental.stop(save=False)


def texts(table, column):
    return np.array([*table.tables[column], ""], dtype=object)[table.columns[f"{column}_code"]]


def test_every_node_has_a_row_within_its_iteration_and_layer(trace):
    check_layer_trace(trace, iterations=3)
    operators = trace.events["operators"]
    columns, layer = operators.columns, operators.columns["layer_index"]
    category, kind = texts(operators, "category"), texts(operators, "type")
    assert set(category) <= {"tf_op", "bookkeeping", "executor"}
    assert {"Const", "Arg", "Retval"} <= set(kind[category == "bookkeeping"])
    assert ((layer >= 0) == (category == "tf_op")).all()
    for iteration in range(3):
        mine = columns["iteration"] == iteration
        assert sorted(layer[mine & (layer >= 0)]) == list(range(len(trace.layers)))
        begin, length = trace.iteration_start_ns[iteration], trace.iteration_duration_ns[iteration]
        assert (columns["start_ns"][mine] >= begin).all()
        assert (columns["start_ns"] + columns["duration_ns"])[mine].max() <= begin + length
    rows = np.flatnonzero(layer >= 0)
    np.testing.assert_array_equal(
        columns["duration_ns"][rows], trace.duration_ns[columns["iteration"][rows], layer[rows]]
    )
    assert (np.diff(columns["start_ns"]) >= 0).all()


def test_sizes_are_those_of_the_tensors(trace):
    operators = trace.events["operators"]
    convolution = np.flatnonzero(["Conv2D" in kind for kind in texts(operators, "type")])
    assert len(convolution) == 3
    size = 64 * 64 * 64 * 4
    assert (operators.columns["output_bytes"][convolution] == size).all()
    assert all(s.startswith("float32[1,64,64,3];float32[3,3,3,64]") for s in texts(operators, "shapes")[convolution])
    assert (operators.columns["allocated_bytes"][convolution] >= size).all()


def test_memory_is_given_out_to_the_nodes_that_asked_and_taken_back(trace):
    memory, operators = trace.events["memory"].columns, trace.events["operators"]
    assert (np.diff(memory["time_ns"]) >= 0).all()
    layer = next(i for i, kind in enumerate(trace.layers.type) if "Conv2D" in kind)
    mine = (memory["layer_index"] == layer) & (memory["bytes"] >= 64 * 64 * 64 * 4)
    assert memory["iteration"][mine].tolist() == [0, 1, 2]
    kinds = texts(operators, "type")[memory["operator_index"][mine]]
    assert all("Conv2D" in kind for kind in kinds)
    assert (memory["bytes"] < 0).any()


def test_profiler_tells_threads_and_what_the_allocator_holds():
    trace = needs_profiler(traced())
    assert all(texts(trace.events["operators"], "thread"))
    memory = trace.events["memory"].columns
    assert (memory["allocated_bytes"] > 0).all()
    steps = np.diff(memory["allocated_bytes"])
    within = np.diff(memory["iteration"]) == 0
    assert (np.sign(steps) == np.sign(memory["bytes"][1:]))[within].all()
    spans = trace.events["annotations"]
    assert (texts(spans, "name") == "SessionRun").sum() == 3


def test_sizes_are_unknown_where_other_shapes_were_fed():
    wide = {"x": np.zeros((1, 3), np.float32)}
    high = {"x": np.zeros((4, 3), np.float32)}

    def double(x):
        return tf.linalg.matmul(x, tf.ones([3, 3])) * 2.0

    function = tf.function(double, input_signature=[tf.TensorSpec([None, 3], tf.float32)]).get_concrete_function()
    trace = needs_profiler(traced(4, feeds=(wide, high), function=function))
    assert "other shapes" in trace.unavailable["sizes"]
    operators = trace.events["operators"].columns
    named = operators["layer_index"] >= 0
    assert (operators["output_bytes"][named & (operators["iteration"] % 2 == 0)] == -1).all()
    assert (operators["output_bytes"][named & (operators["iteration"] % 2 == 1)] == 4 * 3 * 4).any()
    shapes, even = texts(trace.events["operators"], "shapes"), operators["iteration"] % 2 == 0
    assert any(s.startswith("float32[1,3]") for s in shapes[named & even])
    assert any(s.startswith("float32[4,3]") for s in shapes[named & ~even])


def test_a_run_holds_them():
    run = ml.profile(tf.function(network), PICTURE, level="operator", iterations=3, warmup=2, threads=1, save=False)
    operators = run["operators"].dataset
    assert list(run["passes"]["level"].values) == ["model", "layer", "operator"]
    assert set(operators["pass_index"].values) == {2}
    assert "Reshape" in {table_of(operators, "type")[i] for i in np.flatnonzero(operators["layer_index"].values >= 0)}
    assert (run["passes"]["outputs_equal"].values[1:] == 1).all()
    assert "kernel" not in run.attrs["unavailable"]


def test_deeper_levels_are_refused_with_a_reason():
    with pytest.raises(UnsupportedModelError, match="level 'kernel'"):
        TensorFlowBackend().wrap(tf.function(network), PICTURE, SessionOptions(threads=1, level="kernel"))
