"""Operators, spans and arena of ONNX Runtime: from made-up profiles, and from a model that runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlscope_lab as ml
from mlscope_lab.artifacts import digest_of
from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.backends.onnxruntime_graph import Node, Outline
from mlscope_lab.backends.onnxruntime_operators import fusion_of
from mlscope_lab.backends.onnxruntime_profile import Clock, to_layer_trace
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.testing import check_layer_trace
from mlscope_lab.trace.records import LayerTable

START = 5_000_000_000
CLOCK = Clock(start_ns=START, error_ns=100)
OPERATORS = SessionOptions(threads=1, level="operator")


def line(category, name, ts, dur, **arguments):
    return json.dumps({"cat": category, "pid": 7, "tid": 9, "dur": dur, "ts": ts, "ph": "X", "name": name,
                       "args": arguments})  # fmt: skip


def node(name, ts, dur, op="Relu", **arguments):
    return line("Node", f"{name}_kernel_time", ts, dur, op_name=op, node_index="0", provider="CPUExecutionProvider",
                output_size="48", activation_size="12", parameter_size="8",
                input_type_shape=[{"float": [1, 3]}], **arguments)  # fmt: skip


def arena(delta, used, held=4096):
    return {"mem_in_use_delta": str(delta), "mem_bytes_in_use": str(used), "mem_arena_held": str(held)}


def trace_of(tmp_path, lines, *starts):
    path = tmp_path / "profile.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    predicts = [(START + 1000 * ts - 3000, 106_000) for ts in starts]
    return to_layer_trace(path, CLOCK, predicts, Outline(), "sha256:0", operators=True)


def texts(table, column):
    return [(*table.tables[column], "")[code] for code in table.columns[f"{column}_code"]]


def test_columns_of_nodes(tmp_path):
    lines = [
        line("Session", "session_initialization", 0, 50),
        line("Node", "a_fence_before", 104, 1, op_name="Conv"),
        node("a", 105, 10, "Conv"),
        node("b", 120, 30),
        line("Session", "SequentialExecutor::Execute", 101, 60),
        line("Session", "model_run", 100, 70),
    ]
    trace = trace_of(tmp_path, lines, 100)
    check_layer_trace(trace, iterations=1)
    operators, columns = trace.events["operators"], trace.events["operators"].columns
    assert texts(operators, "name") == ["a", "b"]
    assert texts(operators, "type") == ["Conv", "Relu"]
    assert texts(operators, "category") == ["CPUExecutionProvider"] * 2
    assert texts(operators, "thread") == ["7/9"] * 2
    assert texts(operators, "shapes") == ["float32[1,3]"] * 2
    assert columns["layer_index"].tolist() == [0, 1]
    assert columns["start_ns"].tolist() == [START + 105_000, START + 120_000]
    assert [columns[name][0] for name in ("output_bytes", "input_bytes", "parameter_bytes", "allocated_bytes")] == [
        48, 12, 8, -1,
    ]  # fmt: skip
    spans = trace.events["annotations"]
    assert list(zip(texts(spans, "name"), texts(spans, "category"), strict=True)) == [
        ("model_run", "Session"), ("SequentialExecutor::Execute", "Session"), ("a_fence_before", "fence"),
    ]  # fmt: skip
    assert "memory" not in trace.events
    assert "arena" in trace.unavailable["memory"]


def test_arena_gives_a_timeline(tmp_path):
    lines = [
        node("a", 105, 10, **arena(100, 100)),
        node("b", 120, 10, **arena(50, 150)),
        node("c", 140, 10, **arena(30, 80)),  # 100 bytes were given back before it
        line("Session", "model_run", 100, 70),
    ]
    trace = trace_of(tmp_path, lines, 100)
    memory = trace.events["memory"].columns
    assert memory["bytes"].tolist() == [100, 50, -100, 30]
    assert memory["allocated_bytes"].tolist() == [100, 150, 50, 80]
    assert memory["layer_index"].tolist() == [0, 1, -1, 2]
    assert memory["operator_index"].tolist() == [0, 1, -1, 2]
    assert (memory["time_ns"] - START).tolist() == [115_000, 130_000, 140_000, 150_000]
    assert trace.events["operators"].columns["allocated_bytes"].tolist() == [100, 50, 30]
    assert "memory" not in trace.unavailable


def test_a_run_planned_ahead_has_the_sizes_of_the_first(tmp_path):
    first = [
        node("a", 15, 10, **arena(100, 100)),
        node("b", 30, 10, **arena(50, 150)),
        node("c", 45, 9, **arena(7, 157)),
    ]
    later = [
        node("a", 105, 10, **arena(0, 512)),
        node("b", 120, 10, **arena(0, 512)),
        node("c", 140, 9, **arena(7, 519)),
    ]
    ends = [line("Session", "model_run", ts, 70) for ts in (10, 100)]
    trace = trace_of(tmp_path, [*first, ends[0], *later, ends[1]], 100)
    assert trace.events["operators"].columns["allocated_bytes"].tolist() == [100, 50, 7]
    memory = trace.events["memory"]
    assert memory.columns["allocated_bytes"].tolist() == [512, 519]
    assert memory.columns["bytes"].tolist() == [0, 7]
    assert "one block" in memory.attrs["incomplete"]
    other = [text.replace("[1, 3]", "[2, 3]") for text in later]
    trace = trace_of(tmp_path, [*first, ends[0], *other, ends[1]], 100)
    assert trace.events["operators"].columns["allocated_bytes"].tolist() == [0, 0, 7]
    assert "incomplete" not in trace.events["memory"].attrs


def test_bodies_are_children_and_do_not_count_twice(tmp_path):
    run = [
        node("inner", 112, 5, **arena(10, 10)),
        node("branch", 110, 20, "If", **arena(10, 10)),
        line("Session", "model_run", 100, 70),
    ]
    again = [text.replace('"ts": 1', '"ts": 3') for text in run]
    trace = trace_of(tmp_path, [*run, *again], 100, 300)
    columns = trace.events["operators"].columns
    assert texts(trace.events["operators"], "name") == ["branch", "inner"] * 2
    assert columns["parent_index"].tolist() == [-1, 0, -1, 2]
    assert columns["iteration"].tolist() == [0, 0, 1, 1]
    assert trace.events["memory"].columns["operator_index"].tolist() == [1, 3]


def test_no_predicts_give_empty_tables(tmp_path):
    trace = trace_of(tmp_path, [])
    assert all(len(table) == 0 for table in trace.events.values())


@settings(max_examples=40, deadline=None)
@given(
    values=st.dictionaries(
        st.sampled_from(["output_size", "mem_in_use_delta", "mem_bytes_in_use", "mem_arena_held", "provider"]),
        st.one_of(st.text(max_size=30), st.integers().map(str)),
    ),
    shapes=st.one_of(st.none(), st.integers(), st.lists(st.dictionaries(st.text(max_size=4), st.integers()))),
)
def test_odd_arguments_give_a_valid_table(tmp_path_factory, values, shapes):
    odd = line("Node", "a_kernel_time", 105, 10, op_name="Conv", input_type_shape=shapes, **values)
    trace = trace_of(tmp_path_factory.mktemp("odd"), [odd, line("Session", "model_run", 100, 70)], 100)
    check_layer_trace(trace, iterations=1)
    assert len(trace.events["operators"]) == 1


def test_what_fusion_made():
    outline = Outline(
        nodes=[
            Node(name="conv", op="Conv", inputs=("x", "w"), outputs=("c",)),
            Node(name="relu", op="Relu", inputs=("c",), outputs=("r",)),
            Node(name="one", op="Constant", inputs=(), outputs=("k",)),
            Node(name="add", op="Add", inputs=("r", "k"), outputs=("y",)),
        ]
    )
    names = ("r_nchwc", "ReorderOutput", "add", "add#2")
    same = ("",) * 4
    layers = LayerTable(
        name=names, type=("Conv", "ReorderOutput", "Add", "Add"), scope=same, parent=(-1,) * 4, depth=(0,) * 4,
        input_shapes=same, output_shapes=same, parameter_bytes=(0,) * 4, activation_bytes=(0,) * 4,
        sources=("conv;relu", "", "", ""),
    )  # fmt: skip
    assert fusion_of(layers, outline) == {
        "file_nodes": 4, "executed_nodes": 4, "fused_count": 2, "fused_nodes": ["conv", "relu"],
        "vanished_count": 1, "vanished_nodes": ["one"], "vanished_types": ["Constant"],
        "added_count": 1, "added_nodes": ["ReorderOutput"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def squeezenet():
    onnx = pytest.importorskip("onnx")
    path = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"
    if not path.exists():
        pytest.skip("this onnx package has no light models")
    return ModelFiles(name="squeezenet", format="onnx", path=path, digest=digest_of(path))


def test_a_model_that_runs(squeezenet):
    pytest.importorskip("onnxruntime")
    with OnnxRuntimeBackend().open(squeezenet, OPERATORS) as session:
        feeds = {session.inputs[0].name: np.zeros((1, 3, 224, 224), np.float32)}
        session.predict(feeds)
        session.begin_trace()
        for _ in range(2):
            session.predict(feeds)
        trace = session.end_trace()
    check_layer_trace(trace, iterations=2)
    operators = trace.events["operators"]
    assert len(operators) == 2 * len(trace.layers)
    columns = operators.columns
    rows = (columns["iteration"], columns["layer_index"])
    np.testing.assert_array_equal(columns["start_ns"], trace.start_ns[rows])
    np.testing.assert_array_equal(columns["duration_ns"], trace.duration_ns[rows])
    assert operators.attrs["fused_count"] > 20
    assert operators.attrs["file_nodes"] > operators.attrs["executed_nodes"]
    assert {"model_run", "SequentialExecutor::Execute"} <= set(trace.events["annotations"].tables["name"])
    if "memory" in trace.events:
        memory = trace.events["memory"].columns
        assert memory["allocated_bytes"].max() <= memory["reserved_bytes"].max()
        assert (columns["allocated_bytes"] > 0).any()


def test_a_run_holds_them(squeezenet):
    pytest.importorskip("onnxruntime")
    run = ml.profile(squeezenet.path, level="kernel", iterations=2, warmup=1, threads=1, on="inline", save=False)
    assert list(run["passes"]["level"].values) == ["model", "layer", "operator"]
    assert "import a profile" in run.attrs["unavailable"]["kernel"]
    assert run["operators"].attrs["vanished_count"] >= 0
    assert "memory" in run.attrs["unavailable"] or "memory" in run.children


def test_deeper_levels_are_refused_with_a_reason(squeezenet):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UnsupportedModelError, match="level 'hardware'"):
        OnnxRuntimeBackend().open(squeezenet, SessionOptions(threads=1, level="hardware"))
