"""Edits of recipes for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.processing.base import Pipeline

__all__ = ["image_edits"]

Specs = list[dict[str, Any]]
Edit = Callable[[Specs], Specs | None]

_METHODS = ("nearest", "bilinear", "bicubic", "area", "lanczos")
_VALUES = ("convert", "normalize")

# in units of pixels, 0 to 255, red first: mean and standard deviation of ImageNet as in torchvision's references, and
# the mean that came with Caffe's models
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CAFFE = (123.68, 116.779, 103.939)


def _find(specs: Specs, *names: str) -> int | None:
    return next((i for i, spec in enumerate(specs) if spec["step"] in names), None)


def _with(specs: Specs, index: int, **changed: Any) -> Specs:
    return [{**spec, **changed} if i == index else spec for i, spec in enumerate(specs)]


def _changing(step: str, **changed: Any) -> Edit:
    """Return an edit of the parameters of the first step of that name."""

    def edit(specs: Specs) -> Specs | None:
        at = _find(specs, step)
        return None if at is None else _with(specs, at, **changed)

    return edit


def _block(specs: Specs) -> tuple[int, int] | None:
    """Return where the steps are that turn pixels into what the model takes: a run of convert and normalize."""
    start = _find(specs, *_VALUES)
    if start is None:
        return None
    stop = start
    while stop < len(specs) and specs[stop]["step"] in _VALUES:
        stop += 1
    return start, stop


def image_edits(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    """Yield axis, name and edit of what may be done to a recipe for pictures; nothing for other recipes."""
    if not specs or specs[0]["step"] != "decode_image":
        return
    yield from _decoder()
    if specs[0]["color"] in {"RGB", "BGR"}:
        other = "BGR" if specs[0]["color"] == "RGB" else "RGB"
        yield "colour order", other, _changing("decode_image", color=other)
    yield from _resize(specs)
    yield from _crop(specs)
    yield from _normalisation(specs)
    yield from _types(specs)
    yield from _layout(specs)


def _decoder() -> Iterator[tuple[str, str, Edit]]:
    yield "decoder", "the camera's orientation ignored", _changing("decode_image", orientation="ignore")
    yield "decoder", "JPEG colour repeated, not smoothed", _changing("decode_image", chroma="nearest")
    yield "decoder", "JPEG decoded at a smaller scale", _drafted
    for quality, subsampling in ((90, "4:4:4"), (75, "4:2:0")):
        step = {"step": "recompress", "quality": quality, "subsampling": subsampling}
        yield "decoder", f"stored as JPEG of quality {quality}, {subsampling}", _after_decoding(step)


def _decoded(specs: Specs) -> int:
    """Return how many steps there are until pixels are those of the file."""
    return next((i for i, spec in enumerate(specs) if spec["step"] not in {"decode_image", "recompress"}), len(specs))


def _after_decoding(step: dict[str, Any]) -> Edit:
    return lambda specs: [*specs[: _decoded(specs)], step, *specs[_decoded(specs) :]]


def _drafted(specs: Specs) -> Specs | None:
    """Let the decoder go down to the size that the resize makes, as loaders for training do."""
    at = _find(specs, "resize")
    if at is None:
        return None
    side = specs[at].get("shorter_side") or min(specs[at]["height"], specs[at]["width"])
    return _with(specs, 0, draft=side, chroma="smooth")


def _resize(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    at = _find(specs, "resize")
    if at is None:
        return
    for method in _METHODS:
        if method != specs[at]["interpolation"]:
            yield "resize method", method, _changing("resize", interpolation=method)
    if specs[at]["antialias"]:
        yield "antialiasing", "none", _not_antialiased("half_pixel")
        yield "antialiasing", "none, pixels placed as TensorFlow 1 did", _not_antialiased("asymmetric")
        yield "antialiasing", "none, corners aligned", _not_antialiased("align_corners")
    else:
        yield "antialiasing", "Pillow's", _changing("resize", antialias=True, positions="half_pixel")
    if specs[at]["positions"] != "half_pixel":
        yield "antialiasing", "none, half pixels", _changing("resize", positions="half_pixel")


def _not_antialiased(positions: str) -> Edit:
    def edit(specs: Specs) -> Specs | None:
        at = _find(specs, "resize")
        if at is None:
            return None
        # "area" has no form without antialiasing; bilinear is what one takes then
        method = "bilinear" if specs[at]["interpolation"] == "area" else specs[at]["interpolation"]
        return _with(specs, at, antialias=False, positions=positions, interpolation=method)

    return edit


def _final_size(specs: Specs) -> tuple[int, int] | None:
    """Return height and width after resize and crop, where both are fixed."""
    last = next((spec for spec in reversed(specs) if spec["step"] in {"resize", "crop"}), None)
    if last is None or last.get("height") is None:
        return None
    return int(last["height"]), int(last["width"])


def _crop(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    resize, size = _find(specs, "resize"), _final_size(specs)
    if resize is None or size is None:
        return
    height, width = size

    def framed(shorter: int | None, **crop: Any) -> Edit:
        """Return an edit that resizes to a shorter side, or stretches, and cuts what is left over."""

        def edit(now: Specs) -> Specs | None:
            at = _find(now, "resize")
            if at is None:
                return None
            first = {**now[at], "height": None, "width": None, "shorter_side": shorter}
            kept = [spec for spec in now if spec["step"] != "crop"]
            at = kept.index(now[at])
            if shorter is None:
                first |= {"height": height, "width": width}
                return [*kept[:at], first, *kept[at + 1 :]]
            cut = {"step": "crop", "height": height, "width": width, **crop}
            return [*kept[:at], first, cut, *kept[at + 1 :]]

        return edit

    least = max(height, width)
    yield "crop", "none, stretched to the size", framed(None)
    for share in (1.0, 0.875, 0.75):
        name = "the largest square" if share == 1.0 and height == width else f"{share:.1%} of the shorter side"
        yield "crop", name, framed(round(least / share))
    at = _find(specs, "crop")
    if at is not None:
        yield "crop", "top left corner", _changing("crop", position="top_left")
        other = "ceil" if specs[at]["offset"] == "floor" else "floor"
        yield "crop", "centre rounded the other way", _changing("crop", offset=other)


def _affine(specs: Specs, block: tuple[int, int], channels: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return (mean, std) in units of pixels that a block of steps amounts to, None where it is no such form."""
    pixels = np.zeros((3, 1, channels), np.uint8)
    pixels[1:] = np.array([1, 255], np.uint8)[:, None, None]
    low, one, high = np.asarray(Pipeline.from_specs(specs[block[0] : block[1]])(pixels), dtype=np.float64)[:, 0]
    factor = (high - low) / 255
    if not np.all(factor) or not np.allclose(one, low + factor, rtol=1e-3, atol=1e-4):
        return None
    return -low / factor, 1 / factor


def _channels(specs: Specs) -> int:
    return 1 if specs[0]["color"] == "GRAY" else 3


def _normalisation(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    block = _block(specs)
    if block is None:
        return

    def ordered(values: tuple[float, ...]) -> list[float]:
        return list(values if specs[0]["color"] == "RGB" else reversed(values))

    def replacing(*steps: dict[str, Any]) -> Edit:
        def edit(now: Specs) -> Specs | None:
            found = _block(now)
            return None if found is None else [*now[: found[0]], *steps, *now[found[1] :]]

        return edit

    def normalize(mean: Any, std: Any) -> Edit:
        return replacing({"step": "normalize", "mean": mean, "std": std})

    yield "normalisation", "(x - 127) / 128", normalize([127.0], [128.0])
    yield "normalisation", "x / 127.5 - 1", normalize([127.5], [127.5])
    yield "normalisation", "x / 255", normalize([0.0], [255.0])
    yield "normalisation", "none, 0 to 255", replacing({"step": "convert", "dtype": "float32"})
    if _channels(specs) == 3:
        mean, std = (ordered(values) for values in _IMAGENET)
        yield "normalisation", "mean and std of ImageNet", normalize(mean, std)
        yield "normalisation", "Caffe's mean, no std", normalize(ordered(_CAFFE), [1.0])
    amounts = _affine(specs, block, _channels(specs))
    if amounts is None:
        return
    mean_px, std_px = amounts
    if len(set(mean_px.round(3))) > 1:
        reverse = normalize(mean_px[::-1].tolist(), std_px[::-1].tolist())
        yield "normalisation", "constants in the other channel order", reverse
    if mean_px.any():
        yield "normalisation", "mean forgotten", normalize([0.0], std_px.tolist())
    scaled = [spec for spec in specs[block[0] : block[1]] if spec["step"] == "convert" and spec["scale"] != 1.0]
    has_constants = any(spec["step"] == "normalize" for spec in specs[block[0] : block[1]])
    if scaled and has_constants:
        factor = scaled[0]["scale"]
        yield "normalisation", "scale to 0..1 forgotten", normalize((mean_px * factor).tolist(),
                                                                    (std_px * factor).tolist())  # fmt: skip
    if has_constants or scaled:
        yield "normalisation", "scaled to 0..1 twice", normalize((mean_px * 255).tolist(), (std_px * 255).tolist())


def _types(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    if _block(specs) is None:
        return
    to_float = {"step": "convert", "dtype": "float32", "scale": 1.0}
    if _find(specs, "resize") is not None:
        yield "type conversion", "to float before resizing", _after_decoding(to_float)
        yield "type conversion", "resized in float, cut to bytes", _cut_to_bytes
        yield "type conversion", "normalised before resizing", _normalised_first
    yield "type conversion", "normalised in whole numbers", _in_integers


def _cut_to_bytes(specs: Specs) -> Specs | None:
    at = _find(specs, "resize")
    if at is None:
        return None
    cut = {"step": "convert", "dtype": "uint8", "rounding": "truncate", "overflow": "saturate"}
    start = _decoded(specs)
    to_float = {"step": "convert", "dtype": "float32"}
    return [*specs[:start], to_float, *specs[start : at + 1], cut, *specs[at + 1 :]]


def _normalised_first(specs: Specs) -> Specs | None:
    found, at = _block(specs), _find(specs, "resize")
    if found is None or at is None or found[0] < at:
        return None
    block = specs[found[0] : found[1]]
    return [*specs[:at], *block, *specs[at : found[0]], *specs[found[1] :]]


def _in_integers(specs: Specs) -> Specs | None:
    found = _block(specs)
    if found is None:
        return None
    amounts = _affine(specs, found, _channels(specs))
    if amounts is None or (np.abs(amounts[1]) < 1 - 1e-9).any():
        return None
    # a thousandth of a level is rounding of the float32 arithmetic that the constants were read from
    mean, std = (np.round(values, 3).tolist() for values in amounts)
    step = {"step": "normalize", "mean": mean, "std": std, "arithmetic": "integer"}
    return [*specs[: found[0]], step, *specs[found[1] :]]


def _layout(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    at = _find(specs, "layout")
    if at is None or specs[at]["target"] == specs[at]["source"]:
        yield "layout", "CHW read as HWC", lambda now: [
            *now, {"step": "layout", "source": "HWC", "target": "CHW"},
            {"step": "layout", "source": "CHW", "target": "HWC", "how": "reinterpret"},
        ]  # fmt: skip
        yield "layout", "height and width swapped", lambda now: [
            *now, {"step": "layout", "source": "HWC", "target": "WHC"}
        ]  # fmt: skip
        return
    source, target = specs[at]["source"], specs[at]["target"]
    if specs[at]["how"] == "transpose":
        yield "layout", f"{source} read as {target}", _changing("layout", how="reinterpret")
    swapped = target.translate(str.maketrans("HW", "WH"))
    yield "layout", "height and width swapped", _changing("layout", target=swapped)
