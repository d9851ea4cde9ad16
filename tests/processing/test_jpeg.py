"""Decoders of JPEG files differ; here by how much, and against one that others use."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from mlscope_lab.errors import InputError
from mlscope_lab.processing.decoding import DecodeImage
from mlscope_lab.processing.jpeg import Recompress


def encoded(picture, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **{"quality": 90, "subsampling": "4:2:0", **options})
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(300, 451), (299, 450), (16, 16), (1, 9)])
def test_repeated_colour_is_bit_for_bit_that_of_tensorflow(size):
    tf = pytest.importorskip("tensorflow")
    file = encoded(data.chelsea()[: size[0], : size[1]])
    theirs = tf.io.decode_jpeg(file, fancy_upscaling=False, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(DecodeImage(chroma="nearest")(file), theirs)
    smooth = tf.io.decode_jpeg(file, fancy_upscaling=True, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(DecodeImage()(file), smooth)


def test_colour_moves_and_brightness_stays():
    file = encoded(data.chelsea())
    smooth, repeated = (DecodeImage(chroma=c)(file).astype(np.float64) for c in ("smooth", "nearest"))
    luma = np.array([0.299, 0.587, 0.114])
    assert 1 < np.abs(smooth - repeated).max() < 120
    assert np.abs((smooth - repeated) @ luma).mean() < 0.7


@pytest.mark.parametrize("options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}])
def test_other_files_are_not_affected(options):
    file = encoded(data.chelsea(), **options)
    np.testing.assert_array_equal(DecodeImage(chroma="nearest")(file), DecodeImage()(file))
    gray = encoded(data.camera())
    np.testing.assert_array_equal(DecodeImage(chroma="nearest")(gray), DecodeImage()(gray))
    np.testing.assert_array_equal(DecodeImage(chroma="nearest", draft=None)(data.chelsea()), data.chelsea())


def test_orientation_survives_both_ways(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(data.chelsea()).save(path, exif=exif, subsampling="4:2:0")
    for step in (DecodeImage(), DecodeImage(chroma="nearest")):
        assert step(path).shape == (451, 300, 3)
    assert DecodeImage(chroma="nearest", orientation="ignore")(path).shape == (300, 451, 3)


@pytest.mark.parametrize(("side", "shape"), [(300, (300, 451)), (151, (300, 451)), (150, (150, 226)), (60, (75, 113)),
                                             (1, (38, 57))])  # fmt: skip
def test_drafts_keep_the_shorter_side(side, shape):
    file = encoded(data.chelsea())
    assert DecodeImage(draft=side)(file).shape[:2] == shape


@pytest.mark.parametrize("parameters", [{"draft": 0}, {"draft": 8, "chroma": "nearest"}])
def test_nonsense_is_refused(parameters):
    with pytest.raises(InputError):
        DecodeImage(**parameters)


def test_recompressing_loses_a_little_and_keeps_the_order_of_channels():
    cat = data.chelsea()
    good, bad = (Recompress(quality=q, subsampling=s)(cat) for q, s in ((95, "4:4:4"), (30, "4:2:0")))
    errors = [np.abs(p.astype(int) - cat).mean() for p in (good, bad)]
    assert 0 < errors[0] < errors[1] < 10
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    assert Recompress()(red)[..., 0].min() > 200
    assert Recompress()(cat[:, :, :1]).shape == cat[:, :, :1].shape


def test_recompressing_takes_pixels_only():
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(InputError, match="recompress"):
            Recompress()(wrong)
    with pytest.raises(InputError, match="quality"):
        Recompress(quality=0)


@given(st.data())
def test_damaged_files_are_an_error_or_a_picture(draw):
    file = bytearray(encoded(data.chelsea()[:40, :61]))
    for _ in range(draw.draw(st.integers(1, 4))):
        file[draw.draw(st.integers(2, len(file) - 1))] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        del file[draw.draw(st.integers(4, len(file) - 1)) :]
    for step in (DecodeImage(chroma="nearest"), DecodeImage(draft=10)):
        with contextlib.suppress(InputError):  # whatever else is raised fails the test
            assert step(bytes(file)).dtype == np.uint8
