"""Digests of files and folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from mlscope_lab.errors import ArtifactError, UnsafeArtifactError

__all__ = ["combined_sha256", "digest_of", "files_below", "sha256_of"]


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
