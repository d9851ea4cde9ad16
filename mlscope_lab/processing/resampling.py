"""Resampling without antialiasing, as OpenCV, TensorFlow and `torch.nn.functional.interpolate` do it by default.

Each new pixel is a weighted sum of the few old ones around its place, however much the picture shrinks: what lies
between the places is never looked at. Pillow's filters widen instead.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["POSITIONS", "resample"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Kernel = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Positions = Literal["half_pixel", "asymmetric", "align_corners"]
POSITIONS = ("half_pixel", "asymmetric", "align_corners")


def _places(new: int, old: int, positions: str) -> Floats:
    """Return where each new pixel lies among the old ones; ONNX calls this the coordinate transformation of Resize."""
    index = np.arange(new, dtype=np.float64)
    if positions == "half_pixel":
        return (index + 0.5) * (old / new) - 0.5
    if positions == "asymmetric":
        return index * (old / new)
    return index * ((old - 1) / (new - 1)) if new > 1 else np.zeros(1)


def _weights(kernel: str, distance: Floats) -> Floats:
    """Return the kernel at signed distances in old pixels."""
    x = np.abs(distance)
    if kernel == "bilinear":
        return np.maximum(0.0, 1.0 - x)
    if kernel == "lanczos":
        inside: Floats = np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
        return inside
    a = -0.75  # OpenCV's and PyTorch's cubic; Pillow's and TensorFlow's is -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    cubic: Floats = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return cubic


_REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}


def _along(picture: Array, axis: int, new: int, kernel: str, positions: str) -> Array:
    old = picture.shape[axis]
    places = _places(new, old, positions)
    if kernel == "nearest":
        if positions == "align_corners":
            taken = np.rint(places)
        else:  # the old pixel in which the new one's left edge lies: OpenCV's INTER_NEAREST, PyTorch's "nearest"
            taken = np.floor(np.arange(new) * (old / new) + 1e-9)
        return np.take(picture, np.clip(taken.astype(np.int64), 0, old - 1), axis=axis)
    reach = _REACH[kernel]
    first = np.floor(places).astype(np.int64) - reach + 1
    taps = first[:, None] + np.arange(2 * reach)
    weights = _weights(kernel, places[:, None] - taps)
    weights /= weights.sum(axis=1, keepdims=True)
    shape = [1] * picture.ndim
    shape[axis] = new
    made = np.zeros([new if i == axis else n for i, n in enumerate(picture.shape)], dtype=np.float64)
    for tap in range(taps.shape[1]):  # beyond the border the outermost pixel counts
        column = np.take(picture, np.clip(taps[:, tap], 0, old - 1), axis=axis)
        made += column * weights[:, tap].reshape(shape)
    return made


def resample(
    picture: Array, height: int, width: int, *, kernel: Kernel = "bilinear", positions: Positions = "half_pixel"
) -> Array:
    """Resample a picture without antialiasing.

    Parameters
    ----------
    picture
        (height, width, channel), uint8 or floating point.
    height, width
        New size in pixels.
    kernel
        "nearest", "bilinear", "bicubic" (a = -0.75) or "lanczos" (a = 3).
    positions
        Where pixels lie: "half_pixel" (their centres at halves: OpenCV, PyTorch, TensorFlow 2), "asymmetric" (their
        corners at whole numbers: TensorFlow 1 by default, Caffe2), or "align_corners" (the outermost centres on each
        other).

    Returns
    -------
    numpy.ndarray
        Of the given type; uint8 is rounded to the nearest and clipped, floating point becomes float32.

    References
    ----------
    Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29 (1981); the operator Resize of
    ONNX for the positions; `torch.nn.functional.interpolate` and `tf.image.resize`, with which the tests compare.
    """
    made = _along(_along(picture, 0, height, kernel, positions), 1, width, kernel, positions)
    if picture.dtype == np.uint8:
        return np.clip(np.rint(made), 0, 255).astype(np.uint8)
    return np.asarray(made, dtype=np.float32)
