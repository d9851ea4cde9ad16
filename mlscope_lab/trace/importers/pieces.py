"""The bytes of a file, gzip or not, read ahead by a thread and bounded in number."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers.base import Progress

__all__ = ["Pieces"]

_PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


class Pieces:
    """The bytes of a file, decompressed on the way by a thread that reads ahead.

    Parameters
    ----------
    path
        File, gzip or not.
    max_bytes
        The most bytes that it may give.
    progress
        Called with the bytes of the file read so far and its size.
    """

    def __init__(self, path: Path, *, max_bytes: int, progress: Progress | None = None) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._progress = progress
        self._ready: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trace-reader", daemon=True)

    def __enter__(self) -> Pieces:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def _work(self) -> None:
        try:
            total = 0
            for piece in self._pieces():
                total += len(piece)
                if total > self._max_bytes:
                    raise InputError(
                        f"{self._path} holds more than {self._max_bytes} bytes once read; if it is what you expect, "
                        "allow more with max_bytes="
                    )
                if not self._put(piece):
                    return
            self._put(None)
        except OSError as error:
            self._put(InputError(f"{self._path} cannot be read: {error.strerror or error}"))
        except Exception as error:  # raised again where the pieces are used
            self._put(error)

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _pieces(self) -> Iterator[bytes]:
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            compressed = file.read(2) == _GZIP
            file.seek(0)
            for piece in self._inflated(file) if compressed else iter(lambda: file.read(_PIECE_BYTES), b""):
                if self._progress is not None:
                    self._progress(file.tell(), size)
                yield piece

    def _inflated(self, file: IO[bytes]) -> Iterator[bytes]:
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
                raise InputError(f"{self._path} is a damaged gzip file ({error}); get it again") from error
            rest = member.unconsumed_tail
            if piece:
                yield piece
            if member.eof:
                rest, member = member.unused_data, None
        while member is not None and (piece := member.decompress(b"", _PIECE_BYTES)):
            yield piece
        if member is not None and not member.eof:
            raise InputError(f"{self._path} ends in the middle of its gzip stream: it is truncated; get it again")
