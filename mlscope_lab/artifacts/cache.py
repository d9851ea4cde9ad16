"""The content-addressed cache: one slot a digest, stamps and locks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.artifacts.digests import sha256_of
from mlscope_lab.artifacts.writer import Writer, link_or_copy, make_folder
from mlscope_lab.errors import DigestError

if TYPE_CHECKING:
    from mlscope_lab.artifacts.progress import Progress
    from mlscope_lab.config import Settings

__all__ = ["Fetched", "Slot", "locked", "safe_filename", "stamped", "write_stamp"]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Bytes that lie on this disk and have been checked.

    Attributes
    ----------
    path
        The file or folder.
    digest
        ``sha256:<hex>``, as `digest_of` gives it.
    size_bytes
        Size of the file, or of all files of the folder.
    from_cache
        True if a cached copy was used; False if it was fetched now, or is used in place.
    """

    path: Path
    digest: str
    size_bytes: int
    from_cache: bool


def safe_filename(name: str) -> str:
    """Return the last part of a path or URL path as a plain file name that keeps its ending."""
    plain = re.sub(r"[^\w.+-]", "_", re.split(r"[\\/]", name)[-1]).lstrip(".")
    return plain[-120:] or "artifact"


@contextmanager
def locked(settings: Settings, name: str, *, what: str, progress: Progress) -> Iterator[None]:
    """Hold the machine-wide lock `name`; say so while another process has it."""
    from filelock import FileLock, Timeout

    folder = settings.cache / "locks"
    make_folder(folder)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(0, None, f"waiting for another process that fetches {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Slot:
    """The place of one digest in the cache.

    Parameters
    ----------
    settings
        Say where the cache is.
    sha256
        Digest in hexadecimal.
    filename
        Name that the file shall have; the same bytes may be there under several names.
    """

    def __init__(self, settings: Settings, sha256: str, filename: str) -> None:
        self.sha256 = sha256
        self.folder = settings.cache / "artifacts" / sha256
        self.path = self.folder / safe_filename(filename)
        self.part = settings.cache / "partial" / f"{sha256}.part"
        self._staged = settings.cache / "partial" / f"{sha256}.tmp"
        self._stamp = settings.cache / "stamps" / f"{sha256}.json"
        self._limit = settings.max_artifact_bytes

    def find(self) -> Fetched | None:
        """Return the cached file under this slot's name, or None.

        A file that changed since its digest was checked does not count.
        """
        others = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for candidate in [self.path, *(p for p in others if p != self.path)]:
            if candidate.is_symlink() or not candidate.is_file():
                continue
            if not stamped(self._stamp, candidate.parent, [candidate.name]):
                if sha256_of(candidate) != self.sha256:
                    continue
                write_stamp(self._stamp, candidate.parent, [candidate.name])
            if candidate != self.path:
                return self._adopt(candidate)
            return self._fetched(from_cache=True)
        return None

    def store(self, chunks: Iterable[bytes], *, source: str, total: int | None, progress: Progress) -> Fetched:
        """Write bytes into the slot; call it with the slot's lock held.

        Parameters
        ----------
        chunks
            The bytes.
        source
            Where they come from, for messages.
        total
            Their number as announced, or None.
        progress
            Called after each chunk.

        Raises
        ------
        DigestError
            If they are not the bytes of this digest; nothing is kept.
        ArtifactError
            If the disk is full or the size limit is passed; nothing is kept.
        """
        with Writer(self._staged, limit=self._limit, what=source) as writer:
            try:
                writer.expect(total)
                for chunk in chunks:
                    writer.write(chunk)
                    progress(writer.done, total, self.path.name)
                return self.commit(writer, source=source)
            except BaseException:
                writer.discard()
                raise

    def commit(self, writer: Writer, *, source: str) -> Fetched:
        """Check a finished file's digest and move it to its final name in one step.

        Raises
        ------
        DigestError
            If the digest is another; the file is removed.
        """
        if writer.sha256 != self.sha256:
            writer.discard()
            raise DigestError(
                f"{source}: expected sha256 {self.sha256}, got {writer.sha256} ({writer.done:,} bytes); the file was "
                f"not kept. Either the manifest is out of date or the file was changed: ask its author which is right"
            )
        writer.sync()
        # Cached bytes stand for their digest; read-only keeps an editor from changing them by mistake.
        writer.path.chmod(0o444)
        make_folder(self.folder)
        writer.path.replace(self.path)
        write_stamp(self._stamp, self.folder, [self.path.name])
        return self._fetched(from_cache=False)

    def _adopt(self, other: Path) -> Fetched:
        staged = self._staged.with_suffix(f".{os.getpid()}")
        make_folder(staged.parent)
        link_or_copy(other, staged)
        staged.replace(self.path)
        # Renaming one link of a file onto another link of it does nothing and leaves both.
        staged.unlink(missing_ok=True)
        write_stamp(self._stamp, self.folder, [self.path.name])
        return self._fetched(from_cache=True)

    def _fetched(self, *, from_cache: bool) -> Fetched:
        size = self.path.stat().st_size
        return Fetched(path=self.path, digest=f"sha256:{self.sha256}", size_bytes=size, from_cache=from_cache)


def _state(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    return {name: [(stat := (folder / name).stat()).st_size, stat.st_mtime_ns] for name in names}


def _noted(stamp: Path) -> dict[str, Any]:
    try:
        noted = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or damaged: the bytes are read again
        return {}
    return noted if isinstance(noted, dict) else {}


def stamped(stamp: Path, folder: Path, names: Iterable[str]) -> bool:
    """Tell whether files have the size and time that they had when their digest was last checked.

    Reading gigabytes again at each opening would cost more than loading the model.
    """
    noted = _noted(stamp)
    try:
        return all(noted.get(name) == state for name, state in _state(folder, names).items())
    except OSError:
        return False


def write_stamp(stamp: Path, folder: Path, names: Iterable[str]) -> None:
    """Note size and time of files whose digest was just checked."""
    make_folder(stamp.parent)
    staged = stamp.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps(_noted(stamp) | _state(folder, names)), encoding="utf-8")
    staged.replace(stamp)
