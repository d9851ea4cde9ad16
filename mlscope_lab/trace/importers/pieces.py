"""The bytes of a file, gzip or not, a bounded piece at a time and bounded in number."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers.base import Progress

__all__ = ["pieces_of"]

_PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


def pieces_of(path: Path, *, max_bytes: int, progress: Progress | None = None) -> Iterator[bytes]:
    """Read a file piece by piece, decompressed.

    Not in a thread: next to a parser that holds the interpreter's lock, one waits for it at every piece, which costs
    more than it saves once the machine is busy.

    Parameters
    ----------
    path
        File, gzip or not.
    max_bytes
        The most bytes that it may give.
    progress
        Called with the bytes of the file read so far and its size.

    Raises
    ------
    InputError
        If it cannot be read, is damaged, or gives more.
    """
    total = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP
            file.seek(0)
            for piece in _inflated(file, path) if compressed else iter(lambda: file.read(_PIECE_BYTES), b""):
                total += len(piece)
                if total > max_bytes:
                    raise InputError(
                        f"{path} holds more than {max_bytes} bytes once read; if it is what you expect, allow more "
                        "with max_bytes="
                    )
                if progress is not None:
                    progress(file.tell(), size)
                yield piece
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _inflated(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Decompress one gzip member after the other, a bounded piece at a time."""
    member: Any = None
    rest = b""
    while True:
        if not rest and not (rest := file.read(_PIECE_BYTES // 4)):
            break
        if member is None:
            rest = rest.lstrip(b"\0")  # padding between members
            if not rest:
                continue
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            piece = member.decompress(rest, _PIECE_BYTES)
        except zlib.error as error:
            raise InputError(f"{path} is a damaged gzip file ({error}); get it again") from error
        rest = member.unconsumed_tail
        if piece:
            yield piece
        if member.eof:
            rest, member = member.unused_data, None
    while member is not None and (piece := member.decompress(b"", _PIECE_BYTES)):
        yield piece
    if member is not None and not member.eof:
        raise InputError(f"{path} ends in the middle of its gzip stream: it is truncated; get it again")
