"""The content-addressed cache: digests, one slot a digest, writing with a running hash, stamps and locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from mlscope_lab.errors import ArtifactError, DigestError, UnsafeArtifactError

if TYPE_CHECKING:
    from mlscope_lab.artifacts.progress import Progress
    from mlscope_lab.config import Settings

__all__ = ["CHUNK_BYTES", "Fetched", "Slot", "Writer", "combined_sha256", "digest_of", "link_or_copy", "locked"]

CHUNK_BYTES = 1 << 18


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


def digest_of(path: Path) -> str:
    r"""Return ``sha256:<hex>`` of a file or a folder.

    A folder's digest is the SHA-256 of one line ``<relative path>\0<sha256 of the file>\n`` a file, sorted by path,
    with "/" between the parts of a path, in UTF-8.

    Raises
    ------
    ArtifactError
        If nothing is there, or a folder is empty.
    UnsafeArtifactError
        If a folder holds something that is neither a file nor a folder, or a link to a folder.
    """
    if path.is_dir():
        return f"sha256:{combined_sha256({name: sha256_of(path / name) for name in files_below(path)})}"
    return f"sha256:{sha256_of(path)}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from error


def files_below(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder, sorted.

    Raises
    ------
    ArtifactError
        If there is none.
    UnsafeArtifactError
        If the folder holds a device, a pipe, a broken link or a link to a folder: what lies there would be loaded but
        not be part of the digest.
    """
    found = []
    for root, folders, names in os.walk(folder):
        for name in folders:
            if Path(root, name).is_symlink():
                raise UnsafeArtifactError(f"{Path(root, name)} is a link to a folder; put a copy in its place")
        for name in names:
            path = Path(root, name)
            if not path.is_file():
                raise UnsafeArtifactError(f"{path} is not a file (a device, a pipe or a broken link); remove it")
            found.append(path.relative_to(folder).as_posix())
    if not found:
        raise ArtifactError(f"The folder {folder} holds no files")
    return sorted(found)


def combined_sha256(members: Mapping[str, str]) -> str:
    """Return the SHA-256 of a folder from its files' ``{relative path: sha256}``; see `digest_of`."""
    lines = "".join(f"{name}\0{members[name]}\n" for name in sorted(members))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def safe_filename(name: str) -> str:
    """Return the last part of a path or URL path as a plain file name that keeps its ending."""
    plain = re.sub(r"[^\w.+-]", "_", re.split(r"[\\/]", name)[-1]).lstrip(".")
    return plain[-120:] or "artifact"


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
            # Unbuffered: bytes held back in a buffer would be lost to a later process that resumes.
            self._stream = path.open("ab" if resume else "wb", buffering=0)
            if resume:
                with path.open("rb") as stream:
                    for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
                        self._hash.update(chunk)
                        self.done += len(chunk)
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
