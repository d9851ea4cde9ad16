"""Write files with a running digest, a size limit, and an error that helps when the disk is full."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from mlscope_lab.errors import ArtifactError

__all__ = ["CHUNK_BYTES", "Writer", "copy_file", "link_or_copy", "make_folder"]

CHUNK_BYTES = 1 << 18


def make_folder(folder: Path) -> None:
    """Make a folder of the cache, or tell why that fails and which setting moves it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"The cache folder {folder} cannot be made: {error.strerror}. MLSCOPE_HOME chooses another place"
        ) from error


class Writer:
    """A file being written, with its running SHA-256, a size limit, and an error that helps when the disk is full.

    Parameters
    ----------
    path
        The file.
    limit
        Largest size in bytes, or None.
    what
        What is written, for messages.
    resume
        Keep what the file holds already and write on at its end.
    """

    def __init__(self, path: Path, *, limit: int | None, what: str, resume: bool = False) -> None:
        self.path = path
        self.what = what
        self.limit = limit
        self.total: int | None = None
        self.done = 0
        self._hash = hashlib.sha256()
        make_folder(path.parent)
        try:
            # A pipe or device in the file's place would never come to an end.
            if resume and path.is_file():
                with path.open("rb") as stream:
                    for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
                        self._hash.update(chunk)
                        self.done += len(chunk)
            # Unbuffered: bytes held back in a buffer would be lost to a later process that resumes.
            self._stream = path.open("ab" if self.done else "wb", buffering=0)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far, in hexadecimal."""
        return self._hash.hexdigest()

    def expect(self, total: int | None) -> None:
        """Note the size in bytes that the whole file will have; refuse it if it is over the limit or does not fit.

        Raises
        ------
        ArtifactError
            If it is over the limit, or larger than what the disk has left.
        """
        self.total = total
        if total is None:
            return
        self._check_limit(total)
        if total - self.done > shutil.disk_usage(self.path.parent).free:
            self._full()

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises
        ------
        ArtifactError
            If the file grows over the limit, or the disk is full; the file is removed then.
        """
        self._check_limit(self.done + len(chunk))
        view = memoryview(chunk)
        try:
            while view:
                written = self._stream.write(view)
                self._hash.update(view[:written])
                self.done += written
                view = view[written:]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                self._full(error)
            raise ArtifactError(f"{self.path} cannot be written: {error.strerror}") from error

    def restart(self) -> None:
        """Drop all bytes."""
        if self.done:
            self._stream.truncate(0)
            self._stream.seek(0)
        self._hash = hashlib.sha256()
        self.done = 0

    def sync(self) -> None:
        """Force the bytes to the disk."""
        os.fsync(self._stream.fileno())

    def discard(self) -> None:
        """Close and remove the file."""
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def _check_limit(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            self.discard()
            raise ArtifactError(
                f"{self.what} is larger than the limit of {self.limit:,} bytes. "
                f"If that is meant, raise MLSCOPE_MAX_ARTIFACT_BYTES"
            )

    def _full(self, cause: OSError | None = None) -> NoReturn:
        needed = "more" if self.total is None else f"{self.total - self.done:,} more bytes"
        done, free = self.done, shutil.disk_usage(self.path.parent).free
        self.discard()
        raise ArtifactError(
            f"The disk is full: {self.what} needs {needed} in {self.path.parent} after {done:,} bytes written, "
            f"{free:,} are free. Make room there, or choose another place with MLSCOPE_HOME",
        ) from cause


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name by a hard link, or copy it where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, with an error that helps when the disk is full."""
    with source.open("rb") as stream, Writer(target, limit=None, what=str(source)) as writer:
        writer.total = source.stat().st_size
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            writer.write(chunk)
