"""Edits of recipes: which apply, that they change what they say and nothing else, and that two go together."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from skimage import data

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.variants import AXES, combined, pairs
from mlscope_lab.processing.variants import variations as found_variations

variations = functools.cache(found_variations)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET = Pipeline.from_specs([
    {"step": "decode_image", "color": "RGB"},
    {"step": "resize", "shorter_side": 256, "interpolation": "bicubic"},
    {"step": "crop", "height": 224, "width": 224},
    {"step": "convert", "dtype": "float32", "scale": 1 / 255},
    {"step": "normalize", "mean": MEAN, "std": STD},
    {"step": "layout", "source": "HWC", "target": "CHW"},
])  # fmt: skip
BYTES_LAST = Pipeline.from_specs([
    {"step": "decode_image"}, {"step": "resize", "height": 96, "width": 96},
])  # fmt: skip
CAFFE = Pipeline.from_specs([
    {"step": "decode_image", "color": "BGR"}, {"step": "resize", "height": 64, "width": 64, "interpolation": "area"},
    {"step": "normalize", "mean": [104.0, 117.0, 123.0]}, {"step": "layout"},
])  # fmt: skip
GRAY = Pipeline.from_specs([
    {"step": "decode_image", "color": "GRAY"}, {"step": "resize", "height": 28, "width": 28},
    {"step": "convert", "dtype": "float32", "scale": 1 / 255},
])  # fmt: skip
SOUND = Pipeline.from_specs([{"step": "audio_frames", "context": 64, "frames": 1}])
FILE = Pipeline.from_specs([{"step": "byte_windows"}])
CAT = data.chelsea()
PIXELS = CAT[:, :, ::-1]


def named(pipeline, name):
    return next(v for v in variations(pipeline) if v.name == name).pipeline


def in_pixels(pipeline, name):
    """Return the mean and std, in levels of 0 to 255, that a variation's normalisation comes to."""
    even = [np.asarray(named(pipeline, name)(np.full((64, 64, 3), level, np.uint8))) for level in (0, 255)]
    channels = [e.reshape(-1, 3)[0] if e.shape[-1] == 3 else e.reshape(3, -1)[:, 0] for e in even]
    factor = (channels[1] - channels[0]) / 255
    return -channels[0] / factor, 1 / factor


@pytest.mark.parametrize("pipeline", [IMAGENET, BYTES_LAST, CAFFE, GRAY, SOUND, FILE])
def test_each_is_applicable_once_and_on_a_known_axis(pipeline):
    found = variations(pipeline)
    assert found
    assert len({v.name for v in found}) == len(found)
    for variation in found:
        assert len(variation.axes) == 1
        assert variation.axes[0] in AXES
        assert variation.name.startswith(f"{variation.axes[0]}: ")
        assert variation.pipeline.to_specs() == list(variation.steps)
        assert variation.pipeline != pipeline
    assert [AXES.index(v.axes[0]) for v in found] == sorted(AXES.index(v.axes[0]) for v in found)


@pytest.mark.parametrize("pipeline", [IMAGENET, CAFFE, GRAY, BYTES_LAST])
def test_each_makes_another_tensor_of_the_same_shape(pipeline):
    declared = np.asarray(pipeline(CAT))
    for variation in variations(pipeline):
        made = np.asarray(variation.pipeline(CAT))
        assert made.shape == declared.shape, variation.name
        assert made.dtype == declared.dtype, variation.name
        shows_on_files_alone = variation.axes == ("decoder",) and "quality" not in variation.name
        assert np.array_equal(made, declared) == shows_on_files_alone, variation.name


def test_no_two_make_the_same_tensor():
    made = [np.asarray(v.pipeline(CAT)) for v in variations(IMAGENET) if v.axes != ("decoder",)]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert not np.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pipeline", "name", "mean", "std"),
    [
        (IMAGENET, "(x - 127) / 128", [127] * 3, [128] * 3),
        (IMAGENET, "x / 127.5 - 1", [127.5] * 3, [127.5] * 3),
        (IMAGENET, "x / 255", [0] * 3, [255] * 3),
        (IMAGENET, "none, 0 to 255", [0] * 3, [1] * 3),
        (IMAGENET, "Caffe's mean, no std", [123.68, 116.779, 103.939], [1] * 3),
        (IMAGENET, "constants in the other channel order", np.multiply(MEAN, 255)[::-1], np.multiply(STD, 255)[::-1]),
        (IMAGENET, "mean forgotten", [0] * 3, np.multiply(STD, 255)),
        (IMAGENET, "scale to 0..1 forgotten", MEAN, STD),
        (IMAGENET, "scaled to 0..1 twice", np.multiply(MEAN, 255**2), np.multiply(STD, 255**2)),
        (CAFFE, "mean and std of ImageNet", np.multiply(MEAN, 255)[::-1], np.multiply(STD, 255)[::-1]),
        (CAFFE, "Caffe's mean, no std", [103.939, 116.779, 123.68], [1] * 3),
    ],
)
def test_normalisations_are_what_they_say(pipeline, name, mean, std):
    found = in_pixels(pipeline, f"normalisation: {name}")
    np.testing.assert_allclose(found[0], mean, rtol=1e-3, atol=0.02)
    np.testing.assert_allclose(found[1], std, rtol=1e-3)


def test_whole_numbers_are_whole():
    made = named(IMAGENET, "type conversion: normalised in whole numbers")(CAT)
    assert np.array_equal(made, np.trunc(made))
    assert not any("whole numbers" in v.name for v in variations(Pipeline.from_specs(
        [{"step": "decode_image"}, {"step": "convert", "dtype": "float32"}, {"step": "layout"}]
    )))  # fmt: skip


def test_colour_order_swaps_red_and_blue_before_the_constants():
    swapped = named(IMAGENET, "colour order: BGR")(CAT)
    np.testing.assert_array_equal(swapped, IMAGENET(PIXELS))


def test_layouts():
    declared = IMAGENET(CAT)
    np.testing.assert_array_equal(named(IMAGENET, "layout: height and width swapped")(CAT), declared.swapaxes(1, 2))
    read = named(IMAGENET, "layout: HWC read as CHW")(CAT)
    np.testing.assert_array_equal(read.reshape(-1), declared.transpose(1, 2, 0).reshape(-1))
    back = named(BYTES_LAST, "layout: CHW read as HWC")(CAT)
    np.testing.assert_array_equal(back.reshape(-1), BYTES_LAST(CAT).transpose(2, 0, 1).reshape(-1))


def test_crops_keep_the_size():
    whole = named(IMAGENET, "crop: none, stretched to the size").to_specs()
    assert [s["step"] for s in whole].count("crop") == 0
    assert (whole[1]["height"], whole[1]["width"]) == (224, 224)
    assert named(IMAGENET, "crop: the largest square").to_specs()[1]["shorter_side"] == 224
    kept = named(BYTES_LAST, "crop: 87.5% of the shorter side").to_specs()
    assert (kept[1]["shorter_side"], kept[2]["height"]) == (110, 96)
    assert not any("87.5%" in v.name for v in variations(IMAGENET))  # the declared one


def test_gray_pictures_have_neither_colour_order_nor_constants_of_three_channels():
    names = [v.name for v in variations(GRAY)]
    assert not any(name.startswith("colour order") or "ImageNet" in name for name in names)


def test_sound_played_too_fast_and_too_loud():
    rate, seconds = 16000, 1
    t = np.arange(rate * seconds) / rate
    tone = np.sin(2 * np.pi * 500 * t).astype(np.float32)
    whole = Pipeline.from_specs([{"step": "audio_frames", "length": 8000, "frames": 1}])
    spectrum = np.abs(np.fft.rfft(named(whole, "sampling rate: sound of 8,000 Hz taken for 16,000 Hz")(tone)[0]))
    assert spectrum.argmax() == 500  # 1,000 Hz in half a second: twice as fast
    loud = named(whole, "scale: -32,768..32,767, not -1..1")(tone)
    np.testing.assert_allclose(loud, whole(tone) * 32768)


def test_bytes():
    text = b"  some text that is long enough  "
    stripped, kept = FILE(text), named(FILE, "text: white space kept")(text)
    assert bytes(kept[:6].astype(np.uint8)) == b"  some"
    assert bytes(stripped[:4].astype(np.uint8)) == b"some"
    assert named(FILE, "text: missing bytes as 0")(text).min() == 0


def test_pairs_put_both_changes_together():
    names = ("colour order: BGR", "normalisation: (x - 127) / 128")
    pair = combined(IMAGENET, names)
    assert pair.parts == names
    assert pair.axes == ("colour order", "normalisation")
    np.testing.assert_array_equal(pair.pipeline(CAT), named(IMAGENET, names[1])(PIXELS))
    assert combined(IMAGENET, names[::-1]).steps == pair.steps


def test_pairs_are_of_two_axes_and_new():
    singles = variations(IMAGENET)
    found = pairs(IMAGENET, singles)
    assert len(found) > 200
    known = {repr(v.steps) for v in singles}
    for pair in found:
        assert len(set(pair.axes)) == 2
        assert repr(pair.steps) not in known
    assert len({repr(p.steps) for p in found}) == len(found)


def test_what_does_not_go_together_is_said():
    with pytest.raises(InputError, match="No such variation: typo"):
        combined(IMAGENET, ("typo", "colour order: BGR"))
    with pytest.raises(InputError, match="do not go together"):
        combined(IMAGENET, ("normalisation: x / 255", "normalisation: none, 0 to 255"))


def test_antialiasing_keeps_the_method_of_a_pair():
    resize = combined(IMAGENET, ("resize method: nearest", "antialiasing: none")).steps[1]
    assert (resize["interpolation"], resize["antialias"]) == ("nearest", False)
    # averaging areas is antialiasing: without it the usual method stands in
    resize = named(CAFFE, "antialiasing: none").to_specs()[1]
    assert (resize["interpolation"], resize["antialias"]) == ("bilinear", False)


def test_recipes_without_steps_have_no_variations():
    assert variations(Pipeline()) == ()
    assert variations(Pipeline.from_specs([{"step": "tensor"}])) == ()
