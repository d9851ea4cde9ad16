"""Steps for decoded pictures: resize, crop, convert, normalise, reorder axes.

Between the steps a picture is a numpy array (height, width, channel). Resampling is Pillow's: its filters widen when
they shrink a picture (antialiasing), as in torchvision on PIL images and in the training code of most ImageNet models.
OpenCV's and TensorFlow's default resize do not, and give other pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step
from mlscope_lab.processing.decoding import MAX_PIXELS
from mlscope_lab.processing.resampling import resample

__all__ = ["Convert", "Crop", "Layout", "Normalize", "Resize"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}

Array = npt.NDArray[Any]


def _picture(value: Any, step: str) -> Array:
    """Return `value` if it is an array (height, width, channel)."""
    if not isinstance(value, np.ndarray) or value.ndim != 3 or 0 in value.shape:
        what = f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"{step} takes an array (height, width, channel), not {what}; put decode_image before it")
    return value


@dataclass(frozen=True, kw_only=True)
class Resize(Step):
    """Resample a picture to another size, by default with Pillow's antialiasing filters.

    Give `height` and `width`, which may change the proportions, or `shorter_side`, which keeps them.

    Parameters
    ----------
    height, width
        New size in pixels.
    shorter_side
        New length of the shorter side in pixels; the longer one follows.
    interpolation
        "nearest", "bilinear", "bicubic" (Pillow's, a = -0.5), "area" (box) or "lanczos".
    rounding
        Of the longer side with `shorter_side`: to the "nearest" pixel, or "floor" as torchvision does.
    antialias
        False for resampling as OpenCV, TensorFlow and `torch.nn.functional.interpolate` do by default; "area" has no
        such form.
    positions
        Where pixels lie, without antialiasing alone; see `mlscope_lab.processing.resampling.resample`.
    """

    height: int | None = None
    width: int | None = None
    shorter_side: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "area", "lanczos"] = "bilinear"
    rounding: Literal["nearest", "floor"] = "nearest"
    antialias: bool = True
    positions: Literal["half_pixel", "asymmetric", "align_corners"] = "half_pixel"

    def __post_init__(self) -> None:
        if not self.antialias and self.interpolation == "area":
            raise InputError("interpolation: area averages what it covers, so it goes with antialias: true alone")
        if self.antialias and self.positions != "half_pixel":
            raise InputError(f"positions: {self.positions} goes with antialias: false alone")
        both = self.height is not None and self.width is not None
        neither = self.height is None and self.width is None
        if not ((both and self.shorter_side is None) or (neither and self.shorter_side is not None)):
            raise InputError("give either height and width, or shorter_side")
        for name in ("height", "width", "shorter_side"):
            length = getattr(self, name)
            if length is not None and not 1 <= length <= 65535:
                raise InputError(f"{name} must be from 1 to 65535 pixels, not {length}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the new (height, width) in pixels of a picture of the given size."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        side = self.shorter_side or 0
        short, long = min(height, width), max(height, width)
        extra = short if self.rounding == "nearest" else 0  # half a pixel, doubled to stay in integers
        longer = max(1, (2 * long * side + extra) // (2 * short))
        return (side, longer) if height <= width else (longer, side)

    def __call__(self, value: Any) -> Array:
        """Resample uint8 or floating-point (height, width, channel); floating point becomes float32."""
        picture = _picture(value, "resize")
        height, width = self.size(*picture.shape[:2])
        if height * width > MAX_PIXELS:
            raise InputError(
                f"a picture of {picture.shape[0]} x {picture.shape[1]} would become {height} x {width}, more than "
                f"{MAX_PIXELS} pixels; crop it first"
            )
        if not self.antialias and (picture.dtype == np.uint8 or np.issubdtype(picture.dtype, np.floating)):
            kernel: Any = self.interpolation
            return resample(picture, height, width, kernel=kernel, positions=self.positions)
        pillow_filter = _FILTERS[self.interpolation]
        if picture.dtype == np.uint8 and picture.shape[2] == 3:
            return np.array(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), pillow_filter))
        if picture.dtype == np.uint8 or np.issubdtype(picture.dtype, np.floating):
            plane_type = np.uint8 if picture.dtype == np.uint8 else np.float32
            planes = [
                Image.fromarray(np.ascontiguousarray(picture[:, :, c], dtype=plane_type)).resize(
                    (width, height), pillow_filter
                )
                for c in range(picture.shape[2])
            ]
            return np.stack([np.array(p) for p in planes], axis=2)
        raise InputError(
            f"resize takes uint8 or floating-point pixels, not {picture.dtype.name}; resize before convert"
        )


@dataclass(frozen=True, kw_only=True)
class Crop(Step):
    """Keep the centre of a picture, or its corner.

    Give `height` and `width`, or `fraction`. EfficientNet's evaluation crop (a square of image / (image + 32) of the
    shorter side, resized afterwards; Tan & Le, arXiv 1905.11946, and its code) is ``fraction: 0.875, square: true,
    offset: ceil`` at 224 pixels.

    Parameters
    ----------
    height, width
        Size of what is kept, in pixels.
    fraction
        Share of each side that is kept, above 0 and up to 1; lengths are rounded down.
    square
        With `fraction`: keep a square, measured on the shorter side.
    offset
        Where an odd margin goes: "floor" leaves the smaller part above and left, "ceil" the larger.
    position
        "centre", or "top_left" for the corner.
    """

    height: int | None = None
    width: int | None = None
    fraction: float | None = None
    square: bool = False
    offset: Literal["floor", "ceil"] = "floor"
    position: Literal["centre", "top_left"] = "centre"

    def __post_init__(self) -> None:
        both = self.height is not None and self.width is not None
        neither = self.height is None and self.width is None
        if not ((both and self.fraction is None) or (neither and self.fraction is not None)):
            raise InputError("give either height and width, or fraction")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise InputError(f"fraction must be above 0 and at most 1, not {self.fraction}")
        if self.square and self.fraction is None:
            raise InputError("square goes with fraction; with height and width say both lengths")
        for name in ("height", "width"):
            length = getattr(self, name)
            if length is not None and length < 1:
                raise InputError(f"{name} must be at least 1 pixel, not {length}")

    def __call__(self, value: Any) -> Array:
        """Cut (height, width, channel); raise InputError if the picture is smaller than what is to be kept."""
        picture = _picture(value, "crop")
        rows, columns = picture.shape[:2]
        if self.height is not None and self.width is not None:
            height, width = self.height, self.width
        else:
            fraction = self.fraction or 1.0
            height, width = math.floor(rows * fraction), math.floor(columns * fraction)
            if self.square:
                height = width = min(height, width)
            height, width = max(1, height), max(1, width)
        if height > rows or width > columns:
            raise InputError(
                f"cannot keep {height} x {width} of a picture of {rows} x {columns} pixels; resize it first"
            )
        extra = 1 if self.offset == "ceil" else 0
        top, left = (rows - height + extra) // 2, (columns - width + extra) // 2
        if self.position == "top_left":
            top = left = 0
        return np.ascontiguousarray(picture[top : top + height, left : left + width])


@dataclass(frozen=True, kw_only=True)
class Convert(Step):
    """Change the element type, and multiply.

    Parameters
    ----------
    dtype
        New element type.
    scale
        Factor applied before the change, in float32 at least; 1/255 maps pixels to 0..1.
    rounding
        To integers: "nearest", ties to even, or "truncate" the fraction, as a cast in most languages does.
    overflow
        To integers, of values that do not fit: "error", or "saturate" for the nearest one that does.
    """

    dtype: Literal["float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64"] = "float32"
    scale: float = 1.0
    rounding: Literal["nearest", "truncate"] = "nearest"
    overflow: Literal["error", "saturate"] = "error"

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0:
            raise InputError(f"scale must be a number other than 0, not {self.scale}")

    def __call__(self, value: Any) -> Array:
        """Convert an array; raise InputError if a value does not fit the new type."""
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise InputError(f"convert takes numbers, not {array.dtype.name}")
        target = np.dtype(self.dtype)
        if self.scale != 1.0:
            work = np.float64 if target == np.float64 or array.dtype == np.float64 else np.float32
            array = np.multiply(array, work(self.scale), dtype=work)
        if target.kind in "iu" and array.size:
            if array.dtype.kind == "f":
                if not np.isfinite(array).all():
                    raise InputError(f"convert to {self.dtype}: the array holds NaN or infinity")
                array = np.rint(array) if self.rounding == "nearest" else np.trunc(array)
            limits, low, high = np.iinfo(target), array.min(), array.max()
            if self.overflow == "saturate":
                clipped: Array = np.clip(array, limits.min, limits.max).astype(target)
                return clipped
            if low < limits.min or high > limits.max:
                raise InputError(f"convert to {self.dtype}: {low} to {high} does not fit {limits.min} to {limits.max}")
        return array.astype(target)


@dataclass(frozen=True, kw_only=True)
class Normalize(Step):
    """Subtract a mean and divide by a standard deviation, for each channel of the last axis.

    Parameters
    ----------
    mean, std
        One number a channel, or a single one for all, in the unit of the array at this point.
    arithmetic
        "float", or "integer" for what programs do that work on pixels before they convert them: mean and std are cut to
        whole numbers, and so is the quotient (toward zero).
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    arithmetic: Literal["float", "integer"] = "float"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = (float(given),) if isinstance(given, int | float) else tuple(float(v) for v in given)
            if not values or not all(math.isfinite(v) for v in values):
                raise InputError(f"{name} must hold finite numbers, one a channel, not {given}")
            object.__setattr__(self, name, values)
        if any(v == 0 for v in self.std):
            raise InputError("std must not hold 0")
        if self.arithmetic == "integer" and any(abs(v) < 1 for v in self.std):
            raise InputError("std must be at least 1 for integer arithmetic, which cuts it to a whole number")

    def __call__(self, value: Any) -> Array:
        """Return float32 (or float64 for float64) of the same shape."""
        array = np.asarray(value)
        if array.ndim == 0 or array.dtype.kind not in "biuf":
            raise InputError(f"normalize takes an array of numbers with channels last, not {array.dtype.name}")
        channels = array.shape[-1]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in {1, channels}:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} numbers, the last axis of the array {array.shape} has "
                    f"{channels}; normalize goes before layout"
                )
        work = np.float64 if array.dtype == np.float64 else np.float32
        if self.arithmetic == "integer":
            whole = array.astype(work) - np.trunc(np.asarray(self.mean, dtype=work))
            quotient: Array = np.trunc(whole / np.trunc(np.asarray(self.std, dtype=work))).astype(work)
            return quotient
        result: Array = (array.astype(work) - np.asarray(self.mean, dtype=work)) / np.asarray(self.std, dtype=work)
        return result


@dataclass(frozen=True, kw_only=True)
class Layout(Step):
    """Bring axes into another order.

    Parameters
    ----------
    source, target
        One letter an axis, the same letters in both, e.g. "HWC" and "CHW".
    how
        "transpose" moves the values with their axes. "reinterpret" leaves them where they are in memory and only calls
        the axes by the target's order: the mistake of reading one layout as the other.
    """

    source: str = "HWC"
    target: str = "CHW"
    how: Literal["transpose", "reinterpret"] = "transpose"

    def __post_init__(self) -> None:
        if not self.source or len(set(self.source)) != len(self.source) or sorted(self.source) != sorted(self.target):
            raise InputError(
                f"source and target must hold the same letters, each once, e.g. HWC and CHW, "
                f"not {self.source!r} and {self.target!r}"
            )

    def __call__(self, value: Any) -> Array:
        """Return a contiguous array with its axes reordered."""
        array = np.asarray(value)
        if array.ndim != len(self.source):
            raise InputError(f"layout '{self.source}' has {len(self.source)} axes, the array {array.shape} does not")
        order = [self.source.index(letter) for letter in self.target]
        if self.how == "reinterpret":
            return np.ascontiguousarray(array).reshape([array.shape[axis] for axis in order])
        return np.ascontiguousarray(array.transpose(order))
