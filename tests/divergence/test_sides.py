import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.config import load_settings
from mlscope_lab.divergence.sides import Side, open_side, side_of, split_samples
from mlscope_lab.errors import InputError, UnsupportedModelError


def double(x):
    return x * 2


def test_a_side_is_a_mapping_a_backend_or_a_model():
    assert side_of({"backend": "pytorch"}, model="m") == Side(model="m", backend="pytorch")
    assert side_of("pytorch", model="m") == Side(model="m", backend="pytorch")
    assert side_of("some-model") == Side(model="some-model")
    assert side_of({"model": "n"}, model="m").model == "n"
    assert side_of(double).model is double


@pytest.mark.parametrize(
    ("given", "model", "words"),
    [
        ({"bakcend": "pytorch"}, "m", r"no 'bakcend'.*Did you mean.*backend"),
        ({"backend": "pytorch"}, None, "needs a model"),
        ({"batch_size": 0}, "m", "batch_size must be"),
        ({"threads": True}, "m", "threads must be"),
        ("no-backend", "m", "each side is a backend or a mapping"),
    ],
)
def test_a_wrong_side_is_said_in_words(given, model, words):
    with pytest.raises(InputError, match=words):
        side_of(given, model=model)


def test_a_loaded_model_keeps_its_options():
    with ml.load(double, example=[[1.0]]) as model:
        with pytest.raises(InputError, match=r"keeps its own precision; say ml.load"):
            Side(model=model, precision="float16")
        with open_side(Side(model=model), settings=load_settings()) as side:
            assert side.session is model.session
        assert model.predict([[2.0]]).outputs["output"].tolist() == [[4.0]]  # still open


def test_precisions_that_a_backend_lacks_are_refused_with_those_that_it_has():
    with pytest.raises(UnsupportedModelError, match=r"cannot be asked for precision='float16'"):
        open_side(Side(model=double, precision="float16"), settings=load_settings(), example=[[1.0]])
    with pytest.raises(InputError, match=r"Unknown precision 'fp16'"):
        open_side(Side(model=double, precision="fp16"), settings=load_settings(), example=[[1.0]])


def test_input_sets_are_taken_apart():
    assert split_samples(["a", "b"]) == [["a"], ["b"]]
    assert split_samples("a") == ["a"]
    assert split_samples({"x": [1, 2], "y": [3, 4]}) == [{"x": [1], "y": [3]}, {"x": [2], "y": [4]}]
    with pytest.raises(InputError, match="different lengths"):
        split_samples({"x": [1, 2], "y": [3]})


@pytest.mark.network
def test_other_preprocessing_replaces_the_declared_one(picture, shared):
    side = side_of({"backend": "onnxruntime", "preprocess": [
        {"step": "decode_image", "color": "RGB"}, {"step": "resize", "height": 224, "width": 224},
        {"step": "convert", "dtype": "float32"}, {"step": "layout", "source": "HWC", "target": "CHW"},
    ]}, model="efficientnet-lite0")  # fmt: skip
    with open_side(side, settings=shared) as opened:
        feeds = opened.feeds(picture, 1)
        assert feeds["input"].max() > 100.0
        assert opened.facts()["preprocessing"][0]["steps"][1]["width"] == 224
    declared = side_of({"backend": "onnxruntime"}, model="efficientnet-lite0")
    with open_side(declared, settings=shared) as opened:
        assert opened.feeds(picture, 1)["input"].max() < 3.0
    wrong = side_of({"preprocess": {"inptu": []}, "backend": "onnxruntime"}, model="efficientnet-lite0")
    with pytest.raises(InputError, match=r"no input 'inptu'"):
        open_side(wrong, settings=shared)


@pytest.mark.network
def test_a_larger_batch_repeats_the_sample(picture, shared):
    with open_side(side_of({"backend": "onnxruntime", "batch_size": 3}, model="efficientnet-lite0"),
                   settings=shared) as opened:  # fmt: skip
        feeds = opened.feeds(picture, 1)
        assert feeds["input"].shape[0] == 3
        assert np.array_equal(feeds["input"][0], feeds["input"][2])


@pytest.mark.network
def test_other_preprocessing_is_said_to_be_the_difference(picture, shared):
    other = {"backend": "onnxruntime", "preprocess": [
        {"step": "decode_image", "color": "BGR"}, {"step": "resize", "height": 224, "width": 224},
        {"step": "convert", "dtype": "float32", "scale": 0.01}, {"step": "layout", "source": "HWC", "target": "CHW"},
    ]}  # fmt: skip
    found = ml.compare("onnxruntime", other, picture, model="efficientnet-lite0", settings=shared, save=False)
    assert found.first_divergent["evidence"] == "input"
    assert "The sides are fed different inputs: 'input' differs by up to" in found.summary()
    assert found.culprit is None  # no layer is to blame
