"""Batches out of samples and answers out of outputs, for the shapes that real models have."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.recipe import Recipe, TensorRecipe, answers, constant_feeds, example_feeds, prepare


def part(name: str, dtype: str, shape: tuple[int | str, ...], *steps: dict[str, object]) -> TensorRecipe:
    return TensorRecipe(spec=TensorSpec(name=name, dtype=dtype, shape=shape), pipeline=Pipeline.from_specs(steps))


VOICE = Recipe(
    inputs=(
        part("input", "float32", ("batch", 576), {"step": "audio_frames", "context": 64, "frames": 1}),
        part("state", "float32", (2, "batch", 128), {"step": "constant", "shape": [2, 128]}),
        part("sr", "int64", (), {"step": "constant", "value": 16000, "dtype": "int64"}),
    ),
    outputs=(
        part("output", "float32", ("batch", 1), {"step": "select", "index": 0}),
        part("stateN", "float32", (2, "batch", 128)),
    ),
)
ONE = Recipe(
    inputs=(part("data", "float32", (1, 3, 4, 4), {"step": "decode_image"}, {"step": "convert"}, {"step": "layout"}),),
    outputs=(part("prob", "float32", (1, 5, 1, 1), {"step": "top_k", "k": 2}),),
)
SOUND = np.linspace(-1, 1, 600, dtype=np.float32)
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_of_a_recurrent_model(batch: int) -> None:
    feeds = prepare(Recipe.from_json(json.loads(json.dumps(VOICE.to_json()))), {"input": [SOUND] * batch})
    assert {k: (v.shape, v.dtype.name) for k, v in feeds.items()} == {
        "input": ((batch, 576), "float32"),
        "state": ((2, batch, 128), "float32"),
        "sr": ((), "int64"),
    }
    assert np.array_equal(feeds["input"][-1][64:], SOUND[:512])
    assert int(feeds["sr"]) == 16000


def test_a_state_may_be_given() -> None:
    state = np.ones((2, 1, 128), np.float32)
    assert np.array_equal(prepare(VOICE, {"input": [SOUND], "state": [state]})["state"], state)


def test_seeded_feeds_keep_constants() -> None:
    specs = [r.spec for r in VOICE.inputs]
    feeds = example_feeds(specs, batch_size=4) | constant_feeds(VOICE, 4)
    assert {k: v.shape for k, v in feeds.items()} == {"input": (4, 576), "state": (2, 4, 128), "sr": ()}
    assert int(feeds["sr"]) == 16000
    assert not feeds["state"].any()


def test_a_fixed_first_axis_of_one_takes_one_sample() -> None:
    feeds = prepare(ONE, {"data": [PICTURE]})
    assert np.array_equal(feeds["data"], PICTURE.transpose(2, 0, 1)[None].astype(np.float32))
    with pytest.raises(InputError, match="takes one sample at a time"):
        prepare(ONE, {"data": [PICTURE, PICTURE]})
    ranked = answers(ONE, {"prob": np.array([0, 3, 1, 2, 0], np.float32).reshape(1, 5, 1, 1)})["prob"]
    assert [[r.index for r in sample] for sample in ranked] == [[1, 3]]


def test_tensors_are_taken_as_they_are() -> None:
    made = prepare(ONE, {"data": [PICTURE]})["data"]
    for tensor in (made, made[0]):
        assert np.array_equal(prepare(ONE, {"data": [tensor]})["data"], made)


def test_answers_go_along_the_batch_axis() -> None:
    outputs = {"output": np.array([[0.1], [0.9]], np.float32), "stateN": np.zeros((2, 2, 128), np.float32)}
    found = answers(VOICE, outputs)
    assert set(found) == {"output"}
    np.testing.assert_allclose([float(x) for x in found["output"]], [0.1, 0.9], rtol=1e-6)


def test_errors_name_input_and_step() -> None:
    with pytest.raises(InputError, match=r"Input 'input' is missing\. Inputs: input: float32\[batch, 576\]"):
        prepare(VOICE, {})
    with pytest.raises(InputError, match="Input 'data', step 'decode_image': an array of pixels must be uint8"):
        prepare(ONE, {"data": [PICTURE.astype(float)]})
    with pytest.raises(InputError, match=r"preprocessing made a tensor of shape \[3, 2, 4\]"):
        prepare(ONE, {"data": [PICTURE[:2]]})
    with pytest.raises(InputError, match="Output 'prob', step 'top_k': top_k: the scores hold NaN"):
        answers(ONE, {"prob": np.full((1, 5, 1, 1), np.nan, np.float32)})
    byte = Recipe(inputs=(part("data", "float32", ("batch", 4, 4, 3), {"step": "decode_image"}),))
    with pytest.raises(InputError, match=r"end it with \{step: convert, dtype: float32\}"):
        prepare(byte, {"data": [PICTURE]})
