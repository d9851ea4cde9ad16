"""The models that come inside packages run, each on the backends that open it as published."""

from __future__ import annotations

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends import load_backend

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.mark.parametrize(
    ("model", "backend"),
    [
        ("silero-vad", "onnxruntime"),
        ("silero-vad-torchscript", "pytorch"),
        ("magika", "onnxruntime"),
        ("mtcnn-pnet", "onnxruntime"),
        ("mtcnn-rnet", "onnxruntime"),
        ("mtcnn-onet", "onnxruntime"),
        ("basic-pitch", "onnxruntime"),
        ("light-shufflenet", "onnxruntime"),
        ("all-minilm-l6-v2", "pytorch"),
        ("all-minilm-l6-v2-int8", "onnxruntime"),
    ],
)
def test_it_runs_layer_by_layer(model, backend):
    if not load_backend(backend).availability().ok:
        pytest.skip(f"{backend} is not installed")
    run = ml.profile(model, backend=backend, level="layer", iterations=2)
    assert run.attrs["status"] == "complete"
    assert len(run["layers"]["name"]) > 10
    assert run.attrs["derived_from"] == {}


def test_magika_names_this_file():
    pytest.importorskip("onnxruntime")
    best = ml.load("magika", backend="onnxruntime").predict(__file__).ranked[0][0]
    assert best.label == "python"
    assert best.score > 0.9


def test_basic_pitch_answers_alike_as_onnx_and_as_saved_model():
    pytest.importorskip("onnxruntime")
    if not load_backend("tensorflow").availability().ok:
        pytest.skip("tensorflow is not installed")
    sound = np.sin(np.linspace(0, 2 * np.pi * 440 * 2, 43844, dtype=np.float32)).reshape(1, 43844, 1)
    found = {
        backend: ml.load("basic-pitch", backend=backend).predict(sound, on="subprocess").outputs
        for backend in ("onnxruntime", "tensorflow")
    }
    for name, array in found["onnxruntime"].items():
        np.testing.assert_allclose(found["tensorflow"][name], array, atol=5e-3, err_msg=name)
