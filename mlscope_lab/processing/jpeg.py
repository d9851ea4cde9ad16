"""What JPEG decoders do differently: how colour comes back to full resolution, and decoding at a smaller scale."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step

__all__ = ["Recompress", "draft", "with_nearest_chroma"]

Plane = npt.NDArray[np.uint8]


def _jpeg(image: Image.Image) -> JpegImageFile | None:
    return image if isinstance(image, JpegImageFile) else None


def draft(image: Image.Image, side: int) -> Image.Image:
    """Let a JPEG file be decoded at 1/2, 1/4 or 1/8, as long as its shorter side keeps `side` pixels.

    Parameters
    ----------
    image
        Opened, not yet loaded; other formats come back as they are.
    side
        Shortest side in pixels.
    """
    opened = _jpeg(image)
    if opened is not None:
        short = min(opened.size)
        # rounded down: asking for a hair more than half would decode in full
        width, height = (length * side // short for length in opened.size)
        opened.draft(None, (width, height))
    return image


def with_nearest_chroma(image: Image.Image) -> Image.Image:
    """Decode a JPEG file with 4:2:0 colour so that each stored colour is repeated over its four pixels.

    The colour planes as stored come from decoding at half the scale, where libjpeg takes all of their coefficients and
    a quarter of the brightness's.

    Parameters
    ----------
    image
        Opened, not yet loaded; pictures that are no JPEG file with 4:2:0 colour come back as they are.
    """
    opened = _jpeg(image)
    # Pillow tells (component, horizontal, vertical sampling, quantization table) of each layer
    halved = [(2, 2), (1, 1), (1, 1)]
    if opened is None or opened.mode != "RGB" or [tuple(layer[1:3]) for layer in opened.layer] != halved:
        return image
    if opened.fp is None:
        return image
    opened.fp.seek(0)
    data = opened.fp.read()
    width, height = opened.size
    full, half = (JpegImageFile(io.BytesIO(data)) for _ in range(2))
    full.draft("YCbCr", full.size)
    half.draft("YCbCr", (max(1, width // 2), max(1, height // 2)))
    colour = np.asarray(half)[:, :, 1:]
    if colour.shape[:2] != (-(-height // 2), -(-width // 2)):
        return image  # a picture of one pixel is not decoded at half the scale
    wide = colour.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    made = Image.fromarray(_rgb(np.asarray(full)[:, :, 0], wide[:, :, 0], wide[:, :, 1]))
    exif = image.getexif()
    if exif:
        made.info["exif"] = exif.tobytes()
    return made


def _rgb(y: Plane, cb: Plane, cr: Plane) -> Plane:
    """Return RGB in the fixed-point arithmetic of libjpeg (jdcolor.c), so that colour planes alone differ."""
    bits = 16
    half = 1 << (bits - 1)
    red, green_b, green_r, blue = (round(factor * (1 << bits)) for factor in (1.402, 0.344136286, 0.714136286, 1.772))
    brightness, b, r = y.astype(np.int64), cb.astype(np.int64) - 128, cr.astype(np.int64) - 128
    planes = (
        brightness + ((red * r + half) >> bits),
        brightness + ((half - green_b * b - green_r * r) >> bits),
        brightness + ((blue * b + half) >> bits),
    )
    return np.asarray(np.clip(np.stack(planes, axis=2), 0, 255), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Recompress(Step):
    """Store a picture as JPEG and decode it again: what a web service or a camera did to it on the way.

    Parameters
    ----------
    quality
        Pillow's and libjpeg's scale, 1 to 95.
    subsampling
        Of colour: "4:4:4" keeps its resolution, "4:2:0" halves it both ways.
    """

    quality: int = 75
    subsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise InputError(f"quality must be from 1 to 95, not {self.quality}")

    def __call__(self, value: Any) -> Plane:
        """Return uint8 (height, width, channel) of the same shape, 1 or 3 channels; which of three is red is kept."""
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3:
            raise InputError("recompress takes uint8 (height, width, channel); put it right after decode_image")
        if value.shape[2] not in {1, 3} or max(value.shape[:2]) > 65500:
            raise InputError(f"recompress takes 1 or 3 channels and sides of up to 65,500 pixels, not {value.shape}")
        file = io.BytesIO()
        image = Image.fromarray(value[:, :, 0] if value.shape[2] == 1 else np.ascontiguousarray(value))
        image.save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
        file.seek(0)
        again = np.array(Image.open(file), dtype=np.uint8)
        return np.asarray(again.reshape(value.shape))
