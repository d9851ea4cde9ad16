"""ONNX Runtime's profiles: written here as several versions write them, and one that it has just recorded."""

from __future__ import annotations

import contextlib
import gzip
import json
import random

import numpy as np
import pytest

from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.store import Store
from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.importers import detect_format, import_trace

SHAPES = [{"float": [1, 8]}]


def node(name, op, index, ts, dur, *, tid=7, provider="CPUExecutionProvider", **more):
    arguments = {"op_name": op, "node_index": str(index), "provider": provider, "input_type_shape": SHAPES,
                 "output_type_shape": SHAPES, "output_size": "32", "parameter_size": "256", **more}  # fmt: skip
    return event("Node", f"{name}_kernel_time", ts, dur, arguments, tid=tid)


def event(category, name, ts, dur, arguments=None, *, tid=7, pid=40):
    """One line as ONNX Runtime writes it: names as they are, values as text."""
    inside = ",".join(f'"{key}" : {json.dumps(value)}' for key, value in (arguments or {}).items())
    return (f'{{"cat" : "{category}","pid" :{pid},"tid" :{tid},"dur" :{dur},"ts" :{ts},"ph" : "X","name" :"{name}",'
            f'"args" : {{{inside}}}}}')  # fmt: skip


def run_at(ts, *extra):
    """A run of a matrix product, a branch around one node, and an activation."""
    return [
        node("mm", "MatMul", 0, ts + 5, 20), node("then/neg", "Neg", 0, ts + 31, 9), node("if", "If", 1, ts + 30, 12),
        node("relu", "Relu", 2, ts + 42, 3), *extra, event("Session", "SequentialExecutor::Execute", ts + 2, 50),
        event("Session", "model_run", ts, 55),
    ]  # fmt: skip


def written(path, lines):
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


BEGIN = [event("Session", "model_loading_uri", 6, 90), event("Session", "session_initialization", 100, 500)]
RUNS = [*BEGIN, *run_at(1000), *run_at(2000)]


def test_nodes_are_operators_and_layers_of_their_runs(tmp_path):
    path = written(tmp_path / "profile.json", RUNS)
    assert detect_format(path) == "onnxruntime"
    run = import_trace(path)
    operators, layers = run["operators"].dataset, run["layers"].dataset
    assert table_of(operators, "name") == ["mm", "then/neg", "if", "relu"] * 2
    assert table_of(operators, "type") == ["MatMul", "Neg", "If", "Relu"] * 2
    assert set(table_of(operators, "category")) == {"CPUExecutionProvider"}
    assert set(table_of(operators, "shapes")) == {"float32[1,8]"}
    np.testing.assert_array_equal(operators["iteration"], [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(operators["parent_index"], [-1, 2, -1, -1, -1, 6, -1, -1])
    np.testing.assert_array_equal(operators["start_ns"][:4], [999_000, 1_025_000, 1_024_000, 1_036_000])
    assert layers["name"].values.tolist() == ["mm", "if", "then/neg", "relu"]
    assert layers["parent"].values.tolist() == [-1, -1, 1, -1]
    np.testing.assert_array_equal(layers["duration_ns"], [[20_000, 12_000, 9_000, 3_000]] * 2)
    np.testing.assert_array_equal(layers["exclusive_ns"], [[20_000, 3_000, 9_000, 3_000]] * 2)
    np.testing.assert_array_equal(layers["pass_duration_ns"], [55_000] * 2)
    np.testing.assert_array_equal(layers["parameter_bytes"], [256] * 4)
    assert layers["name"].values[operators["layer_index"].values].tolist() == table_of(operators, "name")
    notes = run["annotations"].dataset
    assert table_of(notes, "name")[:2] == ["model_loading_uri", "session_initialization"]
    np.testing.assert_array_equal(notes["iteration"], [-1, -1, 0, 0, 1, 1])
    assert run.attrs["warnings"] == []
    assert run["passes"]["resolution_ns"].values.tolist() == [1000]


def test_the_order_of_lines_does_not_matter(tmp_path):
    one = import_trace(written(tmp_path / "a.json", RUNS))
    by_start = sorted(RUNS, key=lambda line: json.loads(line)["ts"])
    other = import_trace(written(tmp_path / "b.json.gz", by_start))
    np.testing.assert_array_equal(
        one["layers"]["duration_ns"].values.sum(), other["layers"]["duration_ns"].values.sum()
    )
    for run in (one, other):
        table = dict(zip(run["layers"]["name"].values, run["layers"]["exclusive_ns"].values[1], strict=True))
        assert table == {"mm": 20_000, "if": 3_000, "then/neg": 9_000, "relu": 3_000}
        assert run["layers"].sizes == {"layer": 4, "layer_iteration": 2}


def test_names_that_spoil_the_json(tmp_path):
    lines = [*BEGIN, node('say "hi', "Relu", 0, 1005, 3), node("back\\\\slash", "Relu", 1, 1010, 3),
             node("half \\ud800 pair", "Relu", 2, 1015, 3), event("Session", "model_run", 1000, 30)]  # fmt: skip
    run = import_trace(written(tmp_path / "profile.json", lines))
    assert table_of(run["operators"].dataset, "name") == ['say "hi', "back\\slash", "half ? pair"]
    store = Store(tmp_path / "runs")
    assert store.open(store.save(run))["layers"].identical(run["layers"])


def test_repeated_nodes_are_call_sites_of_their_own(tmp_path):
    lines = [node("a", "Relu", 0, 1005, 3), node("a", "Relu", 0, 1010, 4), event("Session", "model_run", 1000, 30)]
    layers = import_trace(written(tmp_path / "profile.json", lines))["layers"].dataset
    assert layers["name"].values.tolist() == ["a", "a#2"]
    np.testing.assert_array_equal(layers["duration_ns"], [[3_000, 4_000]])


def test_branches_are_told_by_what_ran_in_them(tmp_path):
    lines = []
    for at, op in ((1000, "Neg"), (2000, "Abs"), (3000, "Neg")):
        lines += [node("", op, 0, at + 11, 4), node("", "Exp", 1, at + 15, 4), node("if", "If", 1, at + 10, 12),
                  event("Session", "model_run", at, 30)]  # fmt: skip
    layers = import_trace(written(tmp_path / "profile.json", lines))["layers"].dataset
    assert layers["type"].values.tolist() == ["If", "Neg", "Exp", "Abs", "Exp"]
    assert layers["parent"].values.tolist() == [-1, 0, 0, 0, 0]
    np.testing.assert_array_equal(
        layers["duration_ns"].values >= 0, [[1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [1, 1, 1, 0, 0]]
    )


def test_a_container_holds_what_took_as_long(tmp_path):
    lines = [node("a", "Neg", 0, 1010, 5), node("if", "If", 1, 1010, 5), node("loop", "Loop", 2, 1010, 5),
             node("next", "Abs", 3, 1015, 5), event("Session", "model_run", 1000, 30)]  # fmt: skip
    for order in (lines, [lines[3], *lines[:3], lines[4]]):
        layers = import_trace(written(tmp_path / "profile.json", order))["layers"].dataset
        parents = dict(zip(layers["name"].values, layers["parent"].values, strict=True))
        names = layers["name"].values.tolist()
        assert names[parents["if"]] == "loop"
        assert names[parents["a"]] == "if"
        assert layers["exclusive_ns"].sum() == 10_000


def test_runs_of_several_threads_at_once(tmp_path):
    nodes = [node("a", "Relu", 0, 1005, 30, tid=1), node("a", "Relu", 0, 1006, 20, tid=2)]
    lines = [*nodes, *(event("Session", "model_run", 1000 + n, 40, tid=1 + n) for n in range(2))]
    run = import_trace(written(tmp_path / "profile.json", lines))
    np.testing.assert_array_equal(run["operators"]["iteration"], [0, 1])
    np.testing.assert_array_equal(run["layers"]["duration_ns"], [[30_000], [20_000]])


def test_kernels_belong_to_the_node_that_they_name(tmp_path):
    told = {"parent_name": "mm_kernel_time", "stream": "7", "grid_x": "4", "grid_y": "1", "block_x": "128"}
    kernel = event("Kernel", "gemm<float>", 1040, 12, told, pid=-1, tid=-1)
    run = import_trace(written(tmp_path / "profile.json", [*BEGIN, *run_at(1000, kernel), *run_at(2000, kernel)]))
    kernels = run["kernels"].dataset
    np.testing.assert_array_equal(kernels["operator_index"], [0, 4])
    np.testing.assert_array_equal(kernels["iteration"], [0, 1])
    np.testing.assert_array_equal(kernels["stream"], [7, 7])
    np.testing.assert_array_equal(kernels["block_y"], [-1, -1])
    assert run["layers"]["name"].values[kernels["layer_index"].values].tolist() == ["mm", "mm"]
    assert run.attrs["device"] == "cuda"


def test_dropped_events_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("mlscope_lab.trace.importers.ort_profile.EVENT_CAP", 9)
    cut = [*run_at(1000), *run_at(2000)[:3]]
    run = import_trace(written(tmp_path / "profile.json", cut))
    assert run["passes"]["dropped_events"].values.tolist() == [3]  # a node, the executor and the run itself
    assert "this profile has as many: later ones are lost, at least 3" in run.attrs["warnings"][0]
    assert "events" in run.attrs["unavailable"]
    np.testing.assert_array_equal(run["operators"]["iteration"], [0, 0, 0, 0, -1, -1, -1])


def test_a_file_that_was_cut_off(tmp_path):
    path = written(tmp_path / "profile.json", RUNS)
    path.write_bytes(path.read_bytes()[:-200])
    run = import_trace(path)
    assert run["passes"]["dropped_events"].values.tolist() == [1]
    assert "1 lines of profile.json could not be read" in run.attrs["warnings"][0]
    assert run["layers"].sizes["layer_iteration"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no event of ONNX Runtime; write a profile"),
        ("[]", "holds no event"),
        ("nothing\n" * 2000, "most of its lines are no events"),
        ('{"cat" : "Node", "ts": ' + "9" * 5000 + "}\n", "holds no event"),
        ("[" * 100_000, "holds no event"),
        ("x" * (5 << 20), "line 1 of x.json is longer than 4,194,304 characters"),
    ],
)
def test_what_is_no_profile_is_refused(text, words, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=words):
        import_trace(tmp_path / "x.json", format="onnxruntime")


def test_limits(tmp_path, monkeypatch):
    path = written(tmp_path / "profile.json", RUNS)
    with pytest.raises(InputError, match="more than 1,000 bytes; if that is meant, allow more with max_bytes="):
        import_trace(path, max_bytes=1000)
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b"\n" * 20_000_000))
    with pytest.raises(InputError, match="more than 1,000,000 bytes"):
        import_trace(bomb, format="onnxruntime", max_bytes=1_000_000)
    monkeypatch.setattr("mlscope_lab.trace.importers.ort_profile._MOST_CELLS", 5)
    run = import_trace(path)
    assert "layers" not in run.children
    assert "4 call sites in 2 runs" in run.attrs["unavailable"]["layers"]


def test_a_damaged_gzip_file(tmp_path):
    path = written(tmp_path / "profile.json.gz", RUNS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is a damaged gzip file"):
        import_trace(path, format="onnxruntime")
    path.write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    with pytest.raises(InputError, match="damaged gzip file"):
        import_trace(path, format="onnxruntime")


def test_damaged_files_are_refused_or_read(tmp_path):
    whole, chance = written(tmp_path / "profile.json", RUNS).read_bytes(), random.Random(7)
    path = tmp_path / "x.json"
    for number in range(150):
        data = bytearray(whole)
        for _ in range(1 + number % 20):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(InputError, SchemaError):
            import_trace(path, format="onnxruntime")


def test_a_profile_that_onnxruntime_has_recorded(tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    make = onnx.helper
    x, y = (make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8]) for name in "xy")
    weight = make.make_tensor("w", onnx.TensorProto.FLOAT, [8, 8], np.ones(64, dtype=np.float32).tolist())
    nodes = [make.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
             make.make_node("Relu", ["a"], ["y"], name='re"lu')]  # fmt: skip
    model = make.make_model(
        make.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[make.make_opsetid("", 17)], ir_version=9
    )
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(5):
        session.run(None, {"x": np.ones((1, 8), dtype=np.float32)})
    run = import_trace(session.end_profiling())
    assert run["layers"]["name"].values.tolist() == ["mm", 're"lu']
    assert run["layers"]["output_shapes"].values.tolist() == ["float32[1,8]"] * 2
    assert run["layers"].sizes["layer_iteration"] == 5
    assert (run["layers"]["duration_ns"].values >= 0).all()
    assert run.attrs["warnings"] == []
