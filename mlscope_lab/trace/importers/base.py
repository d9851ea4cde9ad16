"""What an importer of a trace format is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["HEAD_BYTES", "MAX_BYTES", "Head", "Importer", "Progress"]

HEAD_BYTES = 1 << 16
MAX_BYTES = 4 << 30
"""Default of the most bytes that a trace may have once decompressed."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes of the file read so far and the bytes that it has, None where that is unknown."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is known of a file before anybody parses it.

    Attributes
    ----------
    path
        File, or folder where a tool writes one.
    data
        Its first `HEAD_BYTES` bytes, decompressed if it is gzip; empty for a folder.
    compressed
        Whether it is gzip.
    """

    path: Path
    data: bytes
    compressed: bool


@dataclass(frozen=True, kw_only=True)
class Importer:
    """One format.

    Attributes
    ----------
    title
        The format in words, for messages.
    recognises
        Whether a file is of this format, by its content; sees the head only and raises nothing.
    load
        ``load(path, *, max_bytes, progress)`` returns the run, made by `mlscope_lab.trace.build.build_imported`.
        ``max_bytes`` bounds what is read, after decompression; ``progress`` may be None. A file that cannot be read
        raises `mlscope_lab.errors.InputError` with what is wrong, where, and the way out; what can be left out is
        counted in ``dropped_events`` and named in the run's warnings. Memory is bounded whatever the file holds. The
        run's attribute ``trace`` has ``events``, the number of events in the file.
    """

    title: str
    recognises: Callable[[Head], bool]
    load: Callable[..., xr.DataTree]
