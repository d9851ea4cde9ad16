"""From a call to a run: files and live objects, inline and in processes of their own."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import xarray as xr

import mlscope_lab as ml
from mlscope_lab.analysis.layers import layer_times
from mlscope_lab.errors import InputError, MlscopeError, UnsupportedModelError
from mlscope_lab.launchers.lock import lock_path, measuring
from mlscope_lab.trace import schema
from mlscope_lab.trace.validate import validate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A new ONNX file and its manifest in a folder on MLSCOPE_PATH: a mean over channels, then a linear layer."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "w"], ["y"], name="linear"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder = tmp_path / "zoo"
    folder.mkdir()
    onnx.save(model, folder / "tiny.onnx")
    (folder / "tiny.yaml").write_text(
        textwrap.dedent("""
        kind: model
        name: tiny
        task: image-classification
        inputs:
          - name: x
            dtype: float32
            layout: NCHW
            shape: [batch, 3, 8, 8]
            preprocess:
              - {step: decode_image, color: RGB}
              - {step: resize, height: 8, width: 8, interpolation: bilinear}
              - {step: convert, dtype: float32, scale: 0.00392156862745098}
              - {step: layout, source: HWC, target: CHW}
        outputs:
          - name: y
            dtype: float32
            shape: [batch, 4]
            postprocess: [{step: softmax}, {step: top_k, k: 2}]
        labels: {names: [red, green, blue, "<b>grey</b>"]}
        sources: [{format: onnx, location: {from: file, path: tiny.onnx}}]
        """)
    )
    monkeypatch.setenv("MLSCOPE_PATH", str(folder))
    return folder / "tiny.onnx", weights


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_a_new_file_and_a_manifest_predict_and_profile_with_no_code(published, picture):
    assert published
    with ml.load("tiny") as model:
        answer = model.predict(picture)
        again = model.predict(picture, on="subprocess")
    np.testing.assert_allclose(answer.outputs["y"], again.outputs["y"], rtol=1e-6)
    best = int(answer.outputs["y"][0].argmax())
    assert answer.ranked[0][0].index == best
    assert answer.ranked[0][0].label == ["red", "green", "blue", "<b>grey</b>"][best]

    run = ml.profile("tiny", picture, level="layer", iterations=8, processes=2)
    validate(run)
    assert run.attrs["status"] == "complete"
    assert run.attrs["isolation"] == "subprocess"
    assert run.attrs["threads"] >= 1
    assert run[schema.LATENCY].sizes["latency_iteration"] == 16
    assert set(run[schema.LATENCY]["process"].values) == {0, 1}
    assert run[schema.OUTPUTS]["index"].values[0, 0] == best
    assert len(run[schema.PASSES]["level"]) == 4
    table = layer_times(run)
    assert {"pool", "linear"} <= set(table["layer"].values)
    assert 0 < float(table["covered_ns"]) <= float(table["pass_ns"])
    steps = [s["step"] for s in run.attrs["recipe"]["inputs"][0]["steps"]]
    assert steps == ["decode_image", "resize", "convert", "layout"]
    stored = ml.open_run("latest")
    xr.testing.assert_equal(stored.load(), run)
    assert stored.attrs["run_id"] == run.attrs["run_id"]


def test_a_bare_file_runs_on_seeded_values_the_same_each_time(published):
    path, _ = published
    runs = [ml.profile(path, iterations=3, batch_size=4, seed=seed) for seed in (5, 5, 6)]
    first, again, other = (run[schema.OUTPUTS]["output_0"].values for run in runs)
    assert first.shape == (4, 4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert runs[0].attrs["input"] == "seeded values"


def test_a_tensor_is_fed_as_it_is(published):
    path, weights = published
    x = np.ones((1, 3, 8, 8), np.float32)
    answer = ml.load(path).predict(x)
    np.testing.assert_allclose(answer.outputs["y"][0], weights.sum(axis=0), rtol=1e-5)
    np.save(path.parent / "x.npy", x)
    np.testing.assert_allclose(ml.load(path).predict(path.parent / "x.npy").outputs["y"], answer.outputs["y"])


def test_a_batch_of_samples(published, picture):
    answer = ml.load("tiny").predict([picture, picture, picture])
    assert answer.outputs["y"].shape == (3, 4)
    assert len(answer.ranked) == 3
    assert "sample 2" in repr(answer)
    assert "<b>grey" not in answer._repr_html_()


def test_a_callable_needs_no_manifest():
    calls = []

    def gram(x):
        calls.append(x.shape)
        return x @ x.T

    run = ml.profile(gram, np.eye(3, dtype=np.float32), iterations=5)
    assert run.attrs["isolation"] == "inline"
    assert run.attrs["backend"] == "python"
    assert set(calls) == {(3, 3)}
    assert len(calls) >= 10
    np.testing.assert_array_equal(run[schema.OUTPUTS]["output_0"].values, np.eye(3))
    with pytest.raises(UnsupportedModelError, match="on='inline'"):
        ml.profile(gram, np.eye(3, dtype=np.float32), on="subprocess")


def test_a_torch_module_runs_inline_and_exported():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).train()
    x = np.ones((2, 4), np.float32)
    inline = ml.profile(module, x, level="layer", iterations=4)
    assert module.training
    assert inline.attrs["execution_mode"] == "eager"
    assert "1" in set(inline[schema.LAYERS]["name"].values)
    apart = ml.profile(module, x, iterations=4, on="subprocess")
    assert apart.attrs["execution_mode"] == "exported"
    np.testing.assert_allclose(
        apart[schema.OUTPUTS]["output_0"].values, inline[schema.OUTPUTS]["output_0"].values, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"iterations": 2.5}, "iterations must be a whole number"),
        ({"level": "kernle"}, "Did you mean 'kernel'"),
        ({"on": "cloud"}, "on must be 'inline' or 'subprocess'"),
        ({"timeout_s": -1.0}, "timeout_s must be positive"),
        ({"backend": "onxruntime"}, "Did you mean 'onnxruntime'"),
        ({"input": "nowhere.png"}, "nowhere.png: there is no such file"),
        ({"input": {"z": 1}}, "has no input 'z'. Inputs: x"),
        ({"on": "inline", "processes": 2}, "processes > 1 needs on='subprocess'"),
    ],
)
def test_bad_arguments(published, arguments, words):
    with pytest.raises(InputError, match=words):
        ml.profile("tiny", **{"iterations": 2, **arguments})
    assert len(ml.runs()) == 0


def test_a_level_below_what_can_be_traced_says_so():
    run = ml.profile(lambda x: x @ x.T, np.ones((4, 4)), level="operator", iterations=3)
    assert list(run[schema.PASSES]["level"].values) == ["model"]
    assert run.attrs["level"] == "model"
    assert {"layer", "operator"} <= run.attrs["unavailable"].keys()
    assert [w for w in run.attrs["warnings"] if w.startswith("Level 'operator' was asked for, but a Python callable")]
    with pytest.raises(MlscopeError, match="records no layers"):
        ml.profile(lambda x: x, np.ones(3), level="layer", iterations=3)


def test_at_hardware_level_the_process_is_watched_whatever_the_framework():
    run = ml.profile(lambda x: x @ x.T, np.ones((64, 64)), level="full", iterations=3)
    assert list(run[schema.PASSES]["level"].values) == ["model", "hardware"]
    assert run[schema.LATENCY].sizes["latency_iteration"] == 3
    assert run[schema.PASSES]["overhead_ratio"].values[1] > 0
    assert "hardware (framework)" in run.attrs["unavailable"]
    validate(run)


def test_mlmodelscope_names_of_levels_are_accepted(published):
    assert ml.profile("tiny", level="framework", iterations=2).attrs["level"] == "layer"


def test_unknown_model_and_file(tmp_path):
    with pytest.raises(LookupError, match="Did you mean 'efficientnet-lite0'"):
        ml.profile("efficientnet-lite")
    with pytest.raises(InputError, match="no such file"):
        ml.profile(tmp_path / "absent.onnx")
    (tmp_path / "page.onnx").write_text("<html>404 Not Found</html>")
    with pytest.raises(UnsupportedModelError, match="a web page"):
        ml.profile(tmp_path / "page.onnx")
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(InputError, match="Write a manifest"):
        ml.profile(tmp_path / "weights.pt")


def test_a_corrupt_picture_is_the_callers_error(published, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"broken\.png"):
        ml.profile("tiny", tmp_path / "broken.png", iterations=2)
    assert len(ml.runs()) == 0


def test_compare_latency_interleaves_and_stores_both_sides(published):
    path, _ = published
    found = ml.compare_latency({"threads": 1}, {"threads": 1}, model=path, iterations=5, processes=2)
    assert int(found["processes_a"]) == int(found["processes_b"]) == 2
    assert found.attrs["verdict"] in {"faster", "slower", "same", "undecided"}
    a, b = ml.open_run(found.attrs["run_a"]), ml.open_run(found.attrs["run_b"])
    anchors = [run[schema.PASSES]["anchor_ns"].values for run in (a, b)]
    assert anchors[0][0] < anchors[1][0] < anchors[1][1] < anchors[0][1]


def test_compare_latency_names_a_wrong_argument(published):
    with pytest.raises(InputError, match="Unknown argument 'iteration'"):
        ml.compare_latency({}, {}, model="tiny", iteration=3)
    with pytest.raises(InputError, match="Neither side names a model"):
        ml.compare_latency({}, {})


def test_a_second_measurement_waits_for_the_first(published):
    import threading
    import time

    held, notes = threading.Event(), []

    def hold():
        with measuring():
            held.set()
            time.sleep(1.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    class Listener(ml.progress.Quiet):
        def note(self, text):
            notes.append(text)

    run = ml.profile("tiny", iterations=2, progress=Listener())
    thread.join()
    assert lock_path().exists()
    if run[schema.PASSES]["lock_wait_ns"].values[0] > 5e7:
        assert any("waiting" in note for note in notes)


def test_an_array_may_hold_the_whole_batch(published):
    path, weights = published
    x = np.random.default_rng(3).random((4, 3, 8, 8)).astype(np.float32)
    want = x.mean(axis=(2, 3)) @ weights
    np.testing.assert_allclose(ml.load("tiny").predict(x).outputs["y"], want, rtol=1e-4)
    np.testing.assert_allclose(ml.load(path).predict(x).outputs["y"], want, rtol=1e-4)
    for model in ("tiny", path):
        run = ml.profile(model, x, batch_size=4, iterations=2, save=False)
        np.testing.assert_allclose(run[schema.OUTPUTS]["output_0"].values, want, rtol=1e-4)
        with pytest.raises(InputError, match="say batch_size=4"):
            ml.profile(model, x, iterations=2)
