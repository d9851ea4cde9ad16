"""What layers account for on real models in real frameworks: nearly all of a predict, and never more than all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.analysis.layers import coverage, layer_data, layer_latency, remainder
from mlscope_lab.analysis.levels import layer_gap, operator_gap

CASES = [
    ("onnxruntime", "squeezenet"),
    ("onnxruntime", "densenet121"),
    ("tensorflow", "mobilenet-v2"),
    ("pytorch", "efficientnet-lite0"),
]
LEAST = 0.9


def _profiled(backend: str, model: str, folder: Path):
    # a process of its own, as the engine measures: beside other frameworks TensorFlow spends more around its layers
    options = {"level": "operator", "iterations": 8, "threads": 1, "on": "subprocess"}
    if backend == "pytorch":  # the real architecture with weights of its own, so that nothing is fetched
        from mlscope_lab.architectures.efficientnet_lite import build

        options["on"] = "inline"  # in another process it would be an exported graph, without modules
        return ml.profile(build(variant="lite0"), np.zeros((1, 3, 224, 224), dtype=np.float32), **options)
    if backend == "tensorflow":
        import keras

        path = folder / "mobilenet.keras"
        with warnings.catch_warnings():  # Keras hands its variables to h5py in numpy's old way
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            keras.applications.MobileNetV2(weights=None, input_shape=(128, 128, 3)).save(path)
        return ml.profile(str(path), np.zeros((1, 128, 128, 3), dtype=np.float32), backend=backend, **options)
    import onnx

    # real graphs with synthetic weights, which the onnx package carries
    path = Path(onnx.__file__).parent / f"backend/test/data/light/light_{model}.onnx"
    if not path.is_file():
        pytest.skip(f"this onnx package does not carry {path.name}")
    return ml.profile(str(path), backend=backend, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "model"), CASES, ids=["-".join(case) for case in CASES])
def test_layers_account_for_a_predict(backend, model, tmp_path):
    for module in {"onnxruntime": ("onnxruntime", "onnx"), "tensorflow": ("tensorflow",), "pytorch": ("torch",)}[
        backend
    ]:
        pytest.importorskip(module)
    run = _profiled(backend, model, tmp_path)
    data = layer_data(run)
    found = coverage(data)
    assert (found.leaves <= found.covered).all()
    assert (found.covered <= found.whole).all()
    # a predict that the machine interrupts waits outside of its layers, too; one of eight was left alone
    assert (found.leaves / found.whole).max() >= LEAST
    # rest and overlap are rows of their own, with which each predict adds up to the nanosecond
    _, rest, _ = remainder(data)
    exclusive = np.where(data["start_ns"].values >= 0, data["exclusive_ns"].values, 0)
    assert (exclusive.sum(axis=1) + rest.sum(axis=1) == found.whole).all()
    assert {"(no layer)", "(overlap)"} <= set(layer_latency(run)["layer"].values)
    shares = layer_gap(run).to_dataframe()["share"]
    assert shares["union of leaves"] <= shares["union of layers"] <= 1
    if "operators" in run.children:
        operators = operator_gap(run).to_dataframe()["duration_ns"]
        assert operators["operators in layers"] <= operators["layers"]
