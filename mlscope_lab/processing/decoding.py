"""The step that decodes pictures."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step
from mlscope_lab.processing.jpeg import draft, with_nearest_chroma
from mlscope_lab.processing.sources import existing_file, source_name

__all__ = ["MAX_PIXELS", "DecodeImage"]

MAX_PIXELS = 89_478_485
"""Largest picture taken in or made, in pixels (Pillow's own limit: 256 MiB of RGB)."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class DecodeImage(Step):
    """Decode a picture to uint8 (height, width, channel).

    Takes a path, encoded bytes, a PIL image, or a uint8 array (height, width[, 1, 3 or 4 channels]) in RGB order. Of an
    animation the first frame counts. 16-bit grey levels are scaled to 8 bits; CMYK and palettes become RGB.

    Parameters
    ----------
    color
        "RGB", "BGR" (as models trained with OpenCV or Caffe want it), or "GRAY" (ITU-R 601-2 luma, one channel).
    background
        Red, green and blue, 0 to 255, shown where the picture is transparent.
    orientation
        "exif" turns the picture as its camera says; "ignore" leaves it as stored, as many decoders do.
    chroma
        Of JPEG files that store colour at half the resolution: "smooth" brings it up with libjpeg's triangle filter,
        "nearest" repeats it, as decoders set to be fast do (TensorFlow's ``fancy_upscaling=False``). Other files and
        decoded pictures are not affected.
    draft
        Shortest side in pixels that a JPEG file may be decoded at: the decoder then leaves frequencies out and gives
        half, a quarter or an eighth of the size, as fast loaders do (Pillow's draft mode). None decodes in full.
    """

    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    background: tuple[int, int, int] = (0, 0, 0)
    orientation: Literal["exif", "ignore"] = "exif"
    chroma: Literal["smooth", "nearest"] = "smooth"
    draft: int | None = None

    def __post_init__(self) -> None:
        if self.draft is not None and self.draft < 1:
            raise InputError(f"draft must be at least 1 pixel, not {self.draft}")
        if self.draft is not None and self.chroma != "smooth":
            raise InputError("draft and chroma: nearest do not go together")
        background = tuple(self.background)
        if len(background) != 3 or not all(0 <= c <= 255 for c in background):
            raise InputError(f"background must be three numbers from 0 to 255, not {list(background)}")
        object.__setattr__(self, "background", background)

    def __call__(self, value: Any) -> npt.NDArray[np.uint8]:
        """Decode one picture.

        Returns
        -------
        numpy.ndarray
            uint8 (height, width, channel) with 3 channels, or 1 for "GRAY".

        Raises
        ------
        InputError
            If it is not a picture, is damaged or cut off, or has more than `MAX_PIXELS` pixels.
        """
        name = source_name(value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # e.g. corrupt EXIF
                return self._pixels(self._open(value, name), name)
        except InputError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(
                f"{name} has too many pixels (at most {MAX_PIXELS}); scale it down first. Pillow says: {error}"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{name} is not a picture that Pillow knows; give a JPEG, PNG, BMP, GIF, WebP or TIFF file"
            ) from error
        except Exception as error:  # Pillow's decoders raise many types on damaged files
            raise InputError(
                f"{name} is damaged or cut off ({type(error).__name__}: {error}); fetch or export it again"
            ) from error

    def _open(self, value: Any, name: str) -> Image.Image:
        if isinstance(value, Image.Image):
            image = value
        elif isinstance(value, np.ndarray):
            image = _from_array(value)
        elif isinstance(value, bytes | bytearray | memoryview):
            image = self._decoded(Image.open(io.BytesIO(bytes(value))))
        elif isinstance(value, str | os.PathLike):
            path = existing_file(value)
            with Image.open(path) as opened:
                decoded = self._decoded(opened)
                decoded.load()
                image = decoded.copy() if getattr(decoded, "is_animated", False) else decoded
        else:
            raise InputError(f"takes a path, bytes, a PIL image or a uint8 array, not {type(value).__name__}")
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
        if 0 in image.size:
            raise InputError(f"{name} has no pixels")
        return image

    def _decoded(self, opened: Image.Image) -> Image.Image:
        """Return an encoded picture, or what its decoder makes of it where that is chosen."""
        if self.draft is not None:
            return draft(opened, self.draft)
        return with_nearest_chroma(opened) if self.chroma == "nearest" else opened

    def _pixels(self, image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
        image.load()
        if self.orientation == "exif":
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = _from_16_bit(image, name)
        elif image.mode == "F":
            raise InputError(
                f"{name} holds floating-point pixels of unknown range; save it with 8 or 16 bits a channel"
            )
        if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
            image = image.convert("RGBA")
            base = Image.new("RGBA", image.size, (*self.background, 255))
            image = Image.alpha_composite(base, image).convert("RGB")
        if self.color == "GRAY":
            gray = np.array(image if image.mode == "L" else image.convert("RGB").convert("L"), dtype=np.uint8)
            return gray[:, :, None]
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)
        return pixels if self.color == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def _from_array(value: Array) -> Image.Image:
    if value.dtype != np.uint8:
        raise InputError(
            f"an array of pixels must be uint8 (0 to 255), not {value.dtype.name}; "
            "convert it, e.g. with skimage.util.img_as_ubyte"
        )
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    if 0 in value.shape or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in {3, 4})):
        raise InputError(
            f"an array of pixels must have the shape (height, width[, 1, 3 or 4]), not {value.shape}; "
            "give one picture at a time, channels last"
        )
    return Image.fromarray(np.ascontiguousarray(value))


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise InputError(f"{name} holds grey levels outside 0 to 65535; save it with 8 or 16 bits")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
