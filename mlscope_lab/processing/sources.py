"""Read a sample that is given as a path or as bytes, and name it in messages."""

from __future__ import annotations

import os
from pathlib import Path

from mlscope_lab.errors import InputError

__all__ = ["existing_file", "read_bytes", "source_name"]

MAX_BYTES = 1 << 30


def source_name(value: object) -> str:
    """Return how messages call a sample: its file name, or its type."""
    if isinstance(value, str | os.PathLike):
        return Path(value).name or str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"the {len(value)} bytes given"
    return f"the {type(value).__name__} given"


def existing_file(value: str | os.PathLike[str]) -> Path:
    """Return the path of a regular file.

    Raises
    ------
    InputError
        If there is none at that path, or it is larger than 1 GiB.
    """
    path = Path(value).expanduser()
    try:
        regular = path.is_file()
        size = path.stat().st_size if regular else 0
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"{value!r} cannot be read: {error}") from error
    if not regular:
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}; give the path of a file")
    if size > MAX_BYTES:
        raise InputError(f"{path} holds {size} bytes, more than the {MAX_BYTES} that one sample may have; cut it up")
    return path


def read_bytes(value: object) -> bytes:
    """Return the bytes of a sample given as bytes or as a path.

    Raises
    ------
    InputError
        If it is neither, or the file cannot be read.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"takes a path or bytes, not {type(value).__name__}")
    path = existing_file(value)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
