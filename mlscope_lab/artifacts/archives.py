"""Single members of zip and tar archives, streamed; nothing is ever unpacked as a whole."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self, cast

from mlscope_lab.artifacts.writer import CHUNK_BYTES
from mlscope_lab.errors import ArtifactError, UnsafeArtifactError, nearest

__all__ = ["check_ratio", "check_zip", "is_inside", "open_member"]

# Deflate cannot pass 1032:1; honest model files stay below 20:1. Small members may be all zeros without any harm.
MAX_RATIO = 200
SMALL_BYTES = 64 << 20
MAX_MEMBERS = 100_000
MAX_TAR_HEADER_BYTES = 1 << 20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def is_inside(name: str) -> bool:
    """Tell whether a member's name is relative and stays below its folder."""
    parts = name.replace("\\", "/").split("/")
    return (
        bool(name) and "\0" not in name and not name.startswith(("/", "\\")) and ".." not in parts and name[1:2] != ":"
    )


def check_ratio(where: str, *, packed: int, unpacked: int) -> None:
    """Raise UnsafeArtifactError if so many bytes out of so few look like a decompression bomb."""
    if unpacked > SMALL_BYTES and unpacked > MAX_RATIO * max(packed, 1):
        raise UnsafeArtifactError(
            f"{where}: {unpacked:,} bytes out of {packed:,} is more than {MAX_RATIO} to 1, as in a decompression bomb"
        )


def check_zip(path: Path, *, limit: int | None = None) -> zipfile.ZipFile:
    """Open a zip archive after a look at its directory; the caller closes it.

    Raises
    ------
    UnsafeArtifactError
        If a member's name leaves the archive, a member is a link or a device, the members are too many, or together
        they are a decompression bomb.
    ArtifactError
        If the archive is broken or encrypted.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: broken zip archive: {error}") from error
    try:
        infos = archive.infolist()
        if len(infos) > MAX_MEMBERS:
            raise UnsafeArtifactError(f"{path}: {len(infos):,} members are more than {MAX_MEMBERS:,}")
        for info in infos:
            if not is_inside(info.filename):
                raise UnsafeArtifactError(f"{path}: member {info.filename!r} would lie outside the archive's folder")
            _check_kind(path, info)
        unpacked = sum(i.file_size for i in infos)
        check_ratio(str(path), packed=path.stat().st_size, unpacked=unpacked)
        if limit is not None and unpacked > limit:
            raise UnsafeArtifactError(f"{path}: its members hold {unpacked:,} bytes, more than {limit:,}")
    except BaseException:
        archive.close()
        raise
    return archive


def _check_kind(path: Path, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise UnsafeArtifactError(f"{path}: member {info.filename!r} is a link or a device, not a file")
    if info.flag_bits & 0x1:
        raise ArtifactError(f"{path}: member {info.filename!r} is encrypted")


@contextmanager
def open_member(path: Path, member: str, *, limit: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open one member of an archive.

    Parameters
    ----------
    path
        Zip, tar, tar.gz, tar.bz2 or tar.xz; told apart by content, not by name.
    member
        Name within the archive, with "/" between its parts.
    limit
        Largest number of bytes that may be unpacked to get at it.

    Yields
    ------
    tuple
        The member's size in bytes as the archive states it, and an iterator over its bytes.

    Raises
    ------
    UnsafeArtifactError
        If the member is a link or a device, has a name that leaves the archive, or is a decompression bomb.
    ArtifactError
        If the archive is broken, of another kind, or has no such member.
    """
    if not is_inside(member):
        raise UnsafeArtifactError(f"{path}: {member!r} is not a relative path without '..'")
    try:
        with path.open("rb") as stream:
            head = stream.read(262)
            stream.seek(0)
            if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                with _zip_member(path, stream, member, limit) as opened:
                    yield opened
            else:
                with _tar_member(path, _unpacked(path, head, stream, limit), member, limit) as opened:
                    yield opened
    except _BROKEN as error:
        raise ArtifactError(f"{path}: broken archive: {error or type(error).__name__}") from error
    except ArtifactError:
        raise
    # zipfile: unknown compression or encryption; bz2: a plain OSError for invalid data.
    except (NotImplementedError, RuntimeError, OSError) as error:
        raise ArtifactError(f"{path}: member {member!r} cannot be read: {error}") from error


@contextmanager
def _zip_member(path: Path, stream: IO[bytes], member: str, limit: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        infos = {_normal(i.filename): i for i in archive.infolist() if not i.is_dir()}
        info = infos.get(_normal(member))
        if info is None:
            raise _missing(path, member, infos)
        _check_kind(path, info)
        where = f"{path}: member {member!r}"
        check_ratio(where, packed=info.compress_size, unpacked=info.file_size)
        if info.file_size > limit:
            raise UnsafeArtifactError(f"{where} states {info.file_size:,} bytes, more than {limit:,}")
        with archive.open(info) as opened:
            yield info.file_size, _read(opened)


class _Unpacked:
    """The bytes of a decompressor, counted, so that a bomb ahead of the wanted member is noticed as well."""

    def __init__(self, path: Path, packed: IO[bytes], stream: IO[bytes], limit: int) -> None:
        self._path, self._packed, self._stream, self._limit = path, packed, stream, limit
        self._done = 0

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._done += len(chunk)
        if self._stream is not self._packed:
            check_ratio(str(self._path), packed=self._packed.tell(), unpacked=self._done)
        if self._done > self._limit:
            raise UnsafeArtifactError(
                f"{self._path}: more than {self._limit:,} bytes would have to be unpacked; "
                f"if that is meant, raise MLSCOPE_MAX_ARTIFACT_BYTES"
            )
        return chunk


def _unpacked(path: Path, head: bytes, stream: IO[bytes], limit: int) -> _Unpacked:
    opened: Any
    if head.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(fileobj=stream)
    elif head.startswith(b"BZh"):
        opened = bz2.BZ2File(stream)
    elif head.startswith(b"\xfd7zXZ\x00"):
        # A crafted .xz may ask for gigabytes of dictionary.
        opened = _BoundedXz(stream)
    elif head[257:262] == b"ustar":
        opened = stream
    else:
        raise ArtifactError(f"{path}: not an archive of a known kind (zip, tar, tar.gz, tar.bz2, tar.xz)")
    return _Unpacked(path, stream, cast("IO[bytes]", opened), limit)


class _BoundedXz:
    """An .xz stream whose decompressor may take 256 MiB of memory at most."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20)

    def read(self, size: int) -> bytes:
        done = b""
        while len(done) < size and not self._decompressor.eof:
            fed = self._stream.read(CHUNK_BYTES) if self._decompressor.needs_input else b""
            if not fed and self._decompressor.needs_input:
                raise EOFError("the .xz stream ends early")
            done += self._decompressor.decompress(fed, size - len(done))
        return done


class _Header(tarfile.TarInfo):
    """A tar header that refuses extended headers and long names of absurd size, which tarfile would read at once."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                    tarfile.GNUTYPE_LONGLINK)  # fmt: skip
        if header.type in extended and header.size > MAX_TAR_HEADER_BYTES:
            raise UnsafeArtifactError(f"the archive has an extended header of {header.size:,} bytes")
        return header


@contextmanager
def _tar_member(path: Path, source: _Unpacked, member: str, limit: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    wanted = _normal(member)
    seen: dict[str, Any] = {}
    with tarfile.open(fileobj=cast("IO[bytes]", source), mode="r|", tarinfo=_Header) as archive:
        while (info := archive.next()) is not None:
            if len(seen) >= MAX_MEMBERS:
                raise UnsafeArtifactError(f"{path}: more than {MAX_MEMBERS:,} members")
            if _normal(info.name) != wanted:
                seen[info.name] = None
                continue
            if not is_inside(info.name):
                raise UnsafeArtifactError(f"{path}: member {info.name!r} would lie outside the archive's folder")
            opened = archive.extractfile(info) if info.isreg() else None
            if opened is None:
                raise UnsafeArtifactError(f"{path}: member {member!r} is a link, a folder or a device, not a file")
            if info.size > limit:
                raise UnsafeArtifactError(f"{path}: member {member!r} states {info.size:,} bytes, more than {limit:,}")
            yield info.size, _read(opened)
            return
    raise _missing(path, member, seen)


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    yield from iter(lambda: stream.read(CHUNK_BYTES), b"")


def _normal(name: str) -> str:
    return str(PurePosixPath(name))


def _missing(path: Path, member: str, names: dict[str, Any]) -> ArtifactError:
    some = ", ".join(sorted(names)[:8])
    return ArtifactError(
        f"{path} has no member {member!r}.{nearest(member, list(names))} It holds {len(names)} files: {some}"
        f"{', ...' if len(names) > 8 else ''}"
    )
