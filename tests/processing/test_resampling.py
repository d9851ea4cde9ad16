"""Resampling without antialiasing, against the libraries that do it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from mlscope_lab.errors import InputError
from mlscope_lab.processing.image import Resize
from mlscope_lab.processing.resampling import resample

CAT = data.chelsea()[:120, :150]
SIZES = [(50, 61), (300, 200), (120, 40)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "aligned"), [("bilinear", False), ("bilinear", True), ("bicubic", False),
                                                 ("bicubic", True), ("nearest", None)])  # fmt: skip
def test_equals_torch(size, kernel, aligned):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(CAT.astype(np.float32)).permute(2, 0, 1)[None]
    more = {} if aligned is None else {"align_corners": aligned}
    theirs = torch.nn.functional.interpolate(tensor, size=size, mode=kernel, **more)[0].permute(1, 2, 0).numpy()
    positions = "align_corners" if aligned else "half_pixel"
    ours = resample(CAT.astype(np.float32), *size, kernel=kernel, positions=positions)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


@pytest.mark.slow
def test_equals_tensorflow_of_both_ages():
    tf = pytest.importorskip("tensorflow")
    picture = CAT.astype(np.float32)
    new = tf.image.resize(picture[None], (50, 61), method="bilinear", antialias=False).numpy()[0]
    np.testing.assert_allclose(resample(picture, 50, 61), new, atol=5e-3)
    old = tf.raw_ops.ResizeBilinear(images=picture[None], size=(50, 61), align_corners=False, half_pixel_centers=False)
    np.testing.assert_allclose(resample(picture, 50, 61, positions="asymmetric"), old.numpy()[0], atol=5e-3)


@given(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
       st.sampled_from(["half_pixel", "asymmetric", "align_corners"]), st.integers(1, 40), st.integers(1, 40),
       st.integers(0, 255))  # fmt: skip
def test_an_even_picture_stays_even(kernel, positions, height, width, level):
    picture = np.full((7, 13, 3), level, np.uint8)
    assert (resample(picture, height, width, kernel=kernel, positions=positions) == level).all()


@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_same_size_is_the_same_picture(kernel):
    np.testing.assert_array_equal(resample(CAT, *CAT.shape[:2], kernel=kernel), CAT)


def test_antialiasing_is_what_differs_when_a_picture_shrinks():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 255
    with_it = Resize(height=8, width=8)(stripes)
    without = Resize(height=8, width=8, antialias=False)(stripes)
    assert without.max() == 0  # every new pixel falls between the stripes
    assert 20 < with_it.mean() < 45


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"interpolation": "area", "antialias": False}, "area averages"),
        ({"positions": "asymmetric"}, "antialias: false alone"),
    ],
)
def test_what_does_not_go_together_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        Resize(height=8, width=8, **parameters)
