"""Activations on disk while they wait to be compared: one unlinked temporary file a side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import StoreError

__all__ = ["Spool"]

Array = npt.NDArray[Any]


class Spool:
    """Arrays by number, appended once, read often; a context manager that frees the disk.

    The file has no name, so that nothing of it stays whatever happens to the process.

    Parameters
    ----------
    folder
        Where the file is made; default the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by close()
        self._places: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, number: int) -> bool:
        return number in self._places

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return self._end

    def dtype(self, number: int) -> np.dtype[Any]:
        """Return the type of an array without reading it."""
        return self._places[number][2]

    def write(self, number: int, array: Array) -> None:
        """Append an array of numbers.

        Raises
        ------
        StoreError
            If the disk is full.
        """
        view = _bytes_of(np.ascontiguousarray(array))
        done = 0
        try:
            self._file.seek(self._end)
            while done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            raise StoreError(
                f"The values of the compared models do not fit into {where} ({self._end + done} bytes so far): "
                f"{error.strerror or error}; make room, or set TMPDIR to another folder"
            ) from error
        self._places[number] = (self._end, array.shape, array.dtype)
        self._end += len(view)

    def read(self, number: int) -> Array:
        """Return an array anew."""
        start, shape, dtype = self._places[number]
        array = np.empty(shape, dtype=dtype)
        view, done = _bytes_of(array), 0
        self._file.seek(start)
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise StoreError("A temporary file of the comparison was cut off by somebody else")
            done += count
        return array

    def close(self) -> None:
        """Free the disk; a second call does nothing."""
        self._file.close()


def _bytes_of(array: Array) -> memoryview:
    """Return the memory of a contiguous array, of whichever type."""
    flat: Any = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, dtype=np.uint8)
    return memoryview(flat)
