"""Traces that other tools made, as runs.

An importer is an `mlscope_lab.trace.importers.base.Importer` registered under the entry-point group
``mlscope_lab.importers``; the built-in ones are in `mlscope_lab.plugins.BUILTINS`, the most particular first: Chrome's
format, which many tools write, comes last.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from mlscope_lab import plugins
from mlscope_lab.errors import InputError, nearest
from mlscope_lab.trace.importers.base import HEAD_BYTES, MAX_BYTES, Head, Importer, Progress

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MAX_BYTES", "detect_format", "formats", "import_trace"]

_GROUP = "mlscope_lab.importers"


def formats() -> list[str]:
    """Return the names of the formats that can be imported."""
    return plugins.names(_GROUP)


def detect_format(path: str | os.PathLike[str]) -> str:
    """Return the format of a trace, judged by its content.

    Parameters
    ----------
    path
        File, gzip or not, or a folder that a tool wrote.

    Raises
    ------
    InputError
        If there is no such file, or no importer recognises it.
    """
    head = _head(_existing(path))
    # a plugin's format may be a kind of Chrome's, which ours would take for it
    for name, importer in sorted(plugins.load_all(_GROUP), key=lambda item: item[0] in plugins.BUILTINS[_GROUP]):
        if importer.recognises(head):
            return name
    raise InputError(
        f"{head.path} is not a trace in a known format ({', '.join(formats())}); if it is one of them, say which "
        "with format="
    )


def import_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word that a caller expects
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Read a trace that another tool made.

    Parameters
    ----------
    path
        File, gzip or not, or a folder that a tool wrote.
    format
        One of `formats`; default what the content says.
    max_bytes
        The most bytes that the trace may have once decompressed.
    progress
        Called with the bytes read so far and the file's size.

    Returns
    -------
    xarray.DataTree
        The run, ``origin`` "imported"; not stored yet.

    Raises
    ------
    InputError
        If the file is no trace, is damaged, or is larger than allowed.
    SchemaError
        If what it says contradicts itself.
    """
    where = _existing(path)
    if max_bytes < 1:
        raise InputError(f"max_bytes must be positive, not {max_bytes}")
    if format is None:
        format = detect_format(where)  # noqa: A001
    elif format not in formats():
        raise InputError(f"Unknown trace format '{format}'. Known: {', '.join(formats())}.{nearest(format, formats())}")
    importer: Importer = plugins.load(_GROUP, format)
    return importer.load(where, max_bytes=max_bytes, progress=progress)


def _existing(path: str | os.PathLike[str]) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"{found}: there is no such file")
    return found


def _head(path: Path) -> Head:
    if path.is_dir():
        return Head(path=path, data=b"", compressed=False)
    try:
        with path.open("rb") as file:
            data = file.read(HEAD_BYTES)
        if not data.startswith(b"\x1f\x8b"):
            return Head(path=path, data=data, compressed=False)
        with gzip.open(path) as stream:
            return Head(path=path, data=stream.read(HEAD_BYTES), compressed=True)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); get it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
