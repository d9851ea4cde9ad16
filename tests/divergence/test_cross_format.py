"""Models that are published in several forms or precisions: what they answer differs by known amounts.

The sound and the sentences are made here; the bounds are those of several such inputs, with room for other processors.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.artifacts import fetch
from mlscope_lab.backends import load_backend
from mlscope_lab.catalog import load_catalog
from mlscope_lab.errors import InputError
from mlscope_lab.handle import Model

pytestmark = [pytest.mark.network, pytest.mark.slow]
RATE = 22050
SENTENCES = (
    "The cat sits outside", "A man is playing guitar", "I love pasta", "The new movie is awesome",
    "A woman watches TV", "The new movie is so great", "Do you like pizza?",
    "How do I reset my password on the customer portal?",
    "The quarterly report shows that revenue grew by eight percent while costs stayed flat.",
)  # fmt: skip


def needs(*backends):
    for name in backends:
        if not load_backend(name).availability().ok:
            pytest.skip(f"{name} is not installed")


def text(sentence):
    return sentence.encode()


@pytest.fixture(scope="module")
def minilm(shared):
    needs("pytorch", "onnxruntime")
    with (
        ml.load("all-minilm-l6-v2", backend="pytorch", threads=1, settings=shared) as fp32,
        ml.load("all-minilm-l6-v2-int8", backend="onnxruntime", threads=1, settings=shared) as int8,
    ):
        yield fp32, int8


def embedding(model: Model, sentence: str):
    return model.predict(text(sentence)).answers["last_hidden_state"][0]


def test_minilm_means_what_its_sentences_say(minilm):
    for model in minilm:
        found = {s: embedding(model, s) for s in SENTENCES}
        assert all(np.linalg.norm(e) == pytest.approx(1, abs=1e-5) for e in found.values())
        alike = found["The new movie is awesome"] @ found["The new movie is so great"]
        other = found["The new movie is awesome"] @ found["A man is playing guitar"]
        assert alike == pytest.approx(0.894, abs=0.01)  # the figure of the model's own documentation is .8939
        assert other < 0.3


def test_minilm_in_8_bits_against_32(minilm):
    found = ml.agreement(*minilm, [text(s) for s in SENTENCES])
    assert found.sizes["sample"] == len(SENTENCES)
    assert 0.9993 < found["output_cosine"].min() < found["output_cosine"].max() < 0.9999
    assert "have a cosine of 0.999" in found.attrs["verdict"]


def test_minilm_is_compared_layer_by_layer_across_precisions(minilm, shared):
    """The weights of 8 bits differ from the first embedding on, and every matrix product has its partner."""
    found = ml.compare(*minilm, text(SENTENCES[0]), save=False, settings=shared)
    alignment = found.tree.attrs["alignment"]
    assert alignment["compute_a"] == alignment["compute_b"] == 48
    assert alignment["paired_a"] >= 46
    assert found.diverges
    first = found.tree["pairs"].isel(pair=found.tree.attrs["first_divergent"])
    assert "embedding" in str(first["operations_a"].item())


def dequantised(path):
    """Return the ONNX form's weights in single precision under their names in the safetensors form.

    Weights of 8 bits are called ``NAME_q`` and have a ``NAME_scale``; those of linear layers are transposed and have no
    name of their own, but the bias that is added to their product does.
    """
    import onnx

    graph = onnx.load(path).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    plain = {n: a for n, a in stored.items() if not n.endswith(("_q", "_scale"))}
    for name in [n.removesuffix("_q") for n in stored if n.endswith("_q")]:
        assert stored[f"{name}_q"].dtype == np.int8
        plain[name] = stored[f"{name}_q"].astype(np.float32) * stored[f"{name}_scale"]
    adds = {i: node for node in graph.node if node.op_type == "Add" for i in node.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in plain:
            bias = next(i for i in adds[node.output[0]].input if i.endswith(".bias"))
            plain[bias.replace(".bias", ".weight")] = plain[node.input[1]].T
    return {n.removeprefix("inner."): a for n, a in plain.items() if n.startswith("inner.")}


def test_the_architecture_is_that_of_the_exported_graph(minilm):
    """With the weights of the ONNX form our module gives the hidden states of the ONNX form, padding and all."""
    pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")
    from mlscope_lab.architectures.bert_encoder import build

    _, int8 = minilm
    module = build(width=384, layers=6, pooler=False).eval()
    weights = {n: torch.from_numpy(np.array(a)) for n, a in dequantised(int8.subject.files.path).items()}
    module.load_state_dict(weights)
    ids = np.array([[101, 1037, 4937, 7719, 2648, 999, 102], [101, 1045, 2293, 102, 0, 0, 0]])
    feeds = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    with torch.inference_mode():
        ours = module(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    theirs = int8.session.predict(feeds)["last_hidden_state"]
    np.testing.assert_allclose(ours[feeds["attention_mask"] > 0], theirs[feeds["attention_mask"] > 0], atol=1e-4)


@pytest.fixture(scope="module")
def pitch(shared, tmp_path_factory):
    """Basic Pitch as ONNX, TensorFlow SavedModel and TensorFlow Lite."""
    needs("onnxruntime", "tensorflow")
    manifest = load_catalog(shared).model("basic-pitch").manifest
    location = next(s.location for s in manifest.sources if s.format == "tflite")
    lite = tmp_path_factory.mktemp("pitch") / "nmp.tflite"
    shutil.copy(fetch(location, settings=shared).path, lite)
    with (
        ml.load("basic-pitch", backend="onnxruntime", threads=1, settings=shared) as onnx,
        ml.load("basic-pitch", backend="tensorflow", threads=1, settings=shared) as saved_model,
        ml.load(lite, threads=1, settings=shared) as tflite,
    ):
        assert saved_model.subject.files.format == "saved_model"
        yield {"onnx": onnx, "saved_model": saved_model, "tflite": tflite}


def sounds():
    t = np.arange(43844) / RATE
    rng = np.random.default_rng(0)
    return {
        "two notes": 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 660 * t) * (t > 1),
        "chirp": 0.5 * np.sin(2 * np.pi * (100 * t + 400 * t * t)),
        "noise": rng.normal(0, 0.1, t.size),
    }


def pitched(model: Model, sound):
    """Return outputs by the manifest's names, of whatever form."""
    outputs = model.session.predict({model.inputs[0].name: sound.astype(np.float32).reshape(1, -1, 1)})
    if "onset" in outputs:
        return outputs
    return dict(zip(("onset", "note", "contour"), outputs.values(), strict=True))


@pytest.mark.parametrize("form", ["saved_model", "tflite"])
@pytest.mark.parametrize("sound", sounds())
def test_basic_pitch_hears_alike_in_three_forms(pitch, form, sound):
    wave = sounds()[sound]
    reference, found = pitched(pitch["onnx"], wave), pitched(pitch[form], wave)
    assert sum(float(array.max()) > 0.3 for array in reference.values()) >= (0 if sound == "noise" else 1)
    for name, array in reference.items():
        np.testing.assert_allclose(found[name], array, atol=2e-5, err_msg=name)


def test_basic_pitch_as_two_sides(pitch):
    found = ml.agreement(pitch["onnx"], pitch["saved_model"], [s.astype(np.float32) for s in sounds().values()])
    assert found.sizes["sample"] == 3
    assert found["output_max_abs_error"].max() < 2e-5


@pytest.mark.parametrize("form", ["saved_model", "tflite"])
def test_basic_pitch_is_compared_layer_by_layer_across_forms(pitch, form, shared):
    """Sixteen convolutions and as many matrix products in each form: all are paired, and none differs."""
    sound = sounds()["two notes"].astype(np.float32).reshape(1, -1, 1)
    found = ml.compare(pitch["onnx"], pitch[form], sound, shadow=False, calibrate=(), save=False, settings=shared)
    alignment = found.tree.attrs["alignment"]
    assert alignment["compute_a"] == alignment["compute_b"] >= 30
    assert alignment["paired_a"] / alignment["compute_a"] >= 0.95
    assert found.tree["samples"]["output_max_abs_error"].max() < 2e-5


def voice():
    """Return a second of silence and two of something like a voice: a hum whose pitch and loudness move."""
    t = np.arange(32000) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(t * 5.3)) / 16000
    hum = sum(np.sin(k * phase) / k for k in range(1, 12)) * (1 + np.sin(t * 18)) * 0.1
    return np.concatenate([np.zeros(16000), hum]).astype(np.float32)


def test_silero_hears_the_same_windows_in_both_forms(shared):
    """Each window of 512 samples in turn, from a state of zeros.

    The TorchScript form keeps context and state inside; to the ONNX form the last 64 samples and `stateN` of the window
    before are given back. Both sessions are fresh, so both begin with zeros.
    """
    needs("onnxruntime", "pytorch")
    sound = voice()
    with (
        ml.load("silero-vad", backend="onnxruntime", threads=1, settings=shared) as a,
        ml.load("silero-vad-torchscript", backend="pytorch", threads=1, settings=shared) as b,
    ):
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
        found = []
        for start in range(0, sound.size - 511, 512):
            window = sound[None, start : start + 512]
            one = a.session.predict({"input": np.hstack([context, window]), "state": state, "sr": np.array(16000)})
            other = b.session.predict({"x": window, "sr": np.array(16000)})
            state, context = one["stateN"], window[:, -64:]
            found.append((one["output"].item(), next(iter(other.values())).item()))
    probabilities = np.array(found)
    assert len(probabilities) == 93
    assert probabilities[:, 0].min() < 0.1
    assert probabilities[:, 0].max() > 0.5
    np.testing.assert_allclose(probabilities[:, 1], probabilities[:, 0], atol=5e-5)


def test_silero_has_other_inputs_in_either_form_which_is_said(shared):
    needs("onnxruntime", "pytorch")
    with pytest.raises(InputError, match=r"The sides take different inputs: a .* takes input.*state.*; b .* takes x"):
        ml.compare("silero-vad", "silero-vad-torchscript", voice(), save=False, settings=shared)
