"""Edits of recipes for sound and for bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["other_edits"]

Specs = list[dict[str, Any]]
Edit = Callable[[Specs], Specs | None]

_RATES = (8000, 16000, 22050, 44100, 48000)


def _first(**changed: Any) -> Edit:
    return lambda specs: [{**specs[0], **changed}, *specs[1:]]


def _then(step: dict[str, Any]) -> Edit:
    return lambda specs: [specs[0], step, *specs[1:]]


def other_edits(specs: Specs) -> Iterator[tuple[str, str, Edit]]:
    """Yield axis, name and edit of what may be done to a recipe for sound or bytes; nothing for other recipes."""
    if not specs:
        return
    if specs[0]["step"] == "audio_frames":
        yield from _sound(specs[0])
    elif specs[0]["step"] == "byte_windows":
        yield from _bytes(specs[0])


def _sound(step: dict[str, Any]) -> Iterator[tuple[str, str, Edit]]:
    rate = step["rate"]
    for other in _RATES:
        if other != rate:
            name = f"sound of {other:,} Hz taken for {rate:,} Hz"
            yield "sampling rate", name, _first(speed=rate / other * step["speed"])
    yield "scale", "-32,768..32,767, not -1..1", _then({"step": "convert", "dtype": "float32", "scale": 32768.0})
    yield "scale", "half as loud", _then({"step": "convert", "dtype": "float32", "scale": 0.5})
    yield "scale", "scaled to 16 bits twice", _then({"step": "convert", "dtype": "float32", "scale": 1 / 32768})
    if step["channel"] == "mean":
        yield "channel", "the left one alone", _first(channel="left")
    yield "window", "half a window later", _first(start=step["start"] + step["length"] // 2)
    if step["context"]:
        yield "window", "context after, not before", _first(start=step["start"] + step["context"])


def _bytes(step: dict[str, Any]) -> Iterator[tuple[str, str, Edit]]:
    if step["strip"]:
        yield "text", "white space kept", _first(strip=False)
    if step["padding"]:
        yield "text", "missing bytes as 0", _first(padding=0)
    if step["beginning"] and step["end"]:
        yield "text", "the beginning alone", _first(beginning=step["beginning"] + step["end"], end=0)
