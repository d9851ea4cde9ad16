"""Find and filter manifests: the user's folders first, then what comes with the package.

A folder is searched with all its subfolders; the file's key ``kind`` says what it is, not where it lies. A broken file
is kept as a problem and never hides the others. Nothing here imports a framework.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar, cast

from mlscope_lab.config import Settings, manifest_roots
from mlscope_lab.errors import ManifestError, ManifestNotFoundError, nearest
from mlscope_lab.manifest.dataset import DatasetManifest
from mlscope_lab.manifest.framework import FrameworkManifest
from mlscope_lab.manifest.load import Manifest, digest_of_manifest, load_manifest
from mlscope_lab.manifest.model import ModelManifest
from mlscope_lab.manifest.system import SystemManifest

__all__ = ["Catalog", "Entry", "load_catalog", "load_entry"]

M = TypeVar("M", bound=Manifest, covariant=True)

_MAX_FILES = 20_000


@dataclass(frozen=True)
class Entry(Generic[M]):
    """A manifest and where it was found.

    Attributes
    ----------
    manifest
        What the file says.
    path
        The file, absolute; relative locations in the manifest count from its folder.
    """

    manifest: M
    path: Path

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of the manifest's canonical JSON."""
        return digest_of_manifest(self.manifest)

    @property
    def name(self) -> str:
        """Name within its kind."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The manifest's version, "" for kinds that have none."""
        return str(getattr(self.manifest, "version", ""))


def _order(version: str) -> tuple[int, object, str]:
    """Return a sort key, newest last; what PEP 440 does not know sorts below what it knows."""
    from packaging.version import InvalidVersion, Version

    try:
        return (1, Version(version), version)
    except InvalidVersion:
        return (0, 0, version)


def _files(root: Path) -> Iterator[Path]:
    """Yield the YAML files below a folder in a fixed order, links to folders not followed."""
    if root.is_file():
        yield root
        return
    for folder, inner, names in os.walk(root, followlinks=False):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.endswith((".yaml", ".yml")) and not name.startswith("."):
                yield Path(folder) / name


class Catalog:
    """All manifests below some folders.

    Parameters
    ----------
    roots
        Folders (or single files), most specific first: of two manifests with the same kind, name and version, the one
        from the earlier folder counts.

    Attributes
    ----------
    problems : list of ManifestError
        One for each file that could not be read, and for each name given twice within one folder.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(Path(r) for r in roots)
        self.problems: list[ManifestError] = []
        self._entries: dict[tuple[str, str, str], Entry[Manifest]] = {}
        count = 0
        for root in self.roots:
            if not root.exists():
                self.problems.append(ManifestError(f"{root}: there is no such folder; mend MLSCOPE_PATH"))
                continue
            own: dict[tuple[str, str, str], Entry[Manifest]] = {}
            for file in _files(root):
                count += 1
                if count > _MAX_FILES:
                    self.problems.append(
                        ManifestError(f"{root}: more than {_MAX_FILES} YAML files; name a folder below")
                    )
                    break
                self._add(file, own)
            for key, entry in own.items():
                self._entries.setdefault(key, entry)

    def _add(self, file: Path, own: dict[tuple[str, str, str], Entry[Manifest]]) -> None:
        try:
            entry = load_entry(file)
        except ManifestError as error:
            self.problems.append(error)
            return
        key = (entry.manifest.kind, entry.name, entry.version)
        if key in own:
            version = f" {entry.version}" if entry.version else ""
            self.problems.append(
                ManifestError(
                    f"{file.name}: {key[0]} '{entry.name}'{version} is in {own[key].path.name} already; "
                    "change the name or the version"
                )
            )
            return
        own[key] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[Manifest]]:
        return iter(self._sorted(list(self._entries.values())))

    @staticmethod
    def _sorted(entries: list[Entry[M]]) -> list[Entry[M]]:
        ordered = sorted(entries, key=lambda e: _order(e.version), reverse=True)
        return sorted(ordered, key=lambda e: (e.manifest.kind, e.name.lower()))

    def _of(self, kind: str) -> list[Entry[Manifest]]:
        return [entry for entry in self if entry.manifest.kind == kind]

    def _find(self, kind: str, name: str) -> Entry[Manifest]:
        wanted, _, version = name.partition("@")
        entries = self._of(kind)
        named = [e for e in entries if e.name == wanted]
        for entry in named:  # newest first
            if not version or entry.version == version:
                return entry
        if named:
            have = ", ".join(e.version for e in named)
            raise ManifestNotFoundError(f"There is no version '{version}' of the {kind} '{wanted}'. Versions: {have}.")
        known = sorted({e.name for e in entries})
        listed = f" Known: {', '.join(known)}." if 0 < len(known) <= 12 else f" There are {len(known)}."
        hint = nearest(wanted, known)
        if not known:
            folders = ", ".join(str(r) for r in self.roots) or "none"
            listed, hint = f" No {kind} manifest was found. Folders searched: {folders}.", ""
        broken = [str(p).splitlines()[0] for p in self.problems if wanted and wanted.lower() in str(p).lower()]
        if broken:
            hint += f" A broken manifest may be the one: {broken[0]}"
        raise ManifestNotFoundError(f"There is no {kind} named '{wanted}'.{listed}{hint}")

    def model(self, name: str) -> Entry[ModelManifest]:
        """Return one model.

        Parameters
        ----------
        name
            ``"name"`` for the newest version, or ``"name@version"``.

        Raises
        ------
        ManifestNotFoundError
            With the nearest names, or the versions there are.
        """
        return cast("Entry[ModelManifest]", self._find("model", name))

    def framework(self, name: str) -> Entry[FrameworkManifest]:
        """Return one framework by name; raise ManifestNotFoundError if there is none."""
        return cast("Entry[FrameworkManifest]", self._find("framework", name))

    def dataset(self, name: str) -> Entry[DatasetManifest]:
        """Return one dataset by ``"name"`` or ``"name@version"``; raise ManifestNotFoundError if there is none."""
        return cast("Entry[DatasetManifest]", self._find("dataset", name))

    def system(self, name: str) -> Entry[SystemManifest]:
        """Return one system by name; raise ManifestNotFoundError if there is none."""
        return cast("Entry[SystemManifest]", self._find("system", name))

    def models(
        self,
        *,
        task: str | None = None,
        framework: str | None = None,
        format: str | None = None,  # noqa: A002 - the manifest's own word
        search: str | None = None,
    ) -> list[Entry[ModelManifest]]:
        """Return the models for which all given conditions hold, by name, newest version first.

        Parameters
        ----------
        task
            One of `mlscope_lab.manifest.model.TASKS`.
        framework
            Name in a source's framework constraint.
        format
            One of `mlscope_lab.manifest.model.FORMATS`.
        search
            Words, all of which must occur in name, description, task or references; case does not matter.
        """
        words = search.lower().split() if search else []
        found = []
        for entry in cast("list[Entry[ModelManifest]]", self._of("model")):
            manifest = entry.manifest
            if task is not None and manifest.task != task:
                continue
            if framework is not None and all(
                s.framework is None or s.framework.name != framework for s in manifest.sources
            ):
                continue
            if format is not None and all(s.format != format for s in manifest.sources):
                continue
            text = " ".join((manifest.name, manifest.description, manifest.task, *manifest.references)).lower()
            if all(word in text for word in words):
                found.append(entry)
        return found

    def frameworks(self) -> list[Entry[FrameworkManifest]]:
        """Return all frameworks by name."""
        return cast("list[Entry[FrameworkManifest]]", self._of("framework"))

    def datasets(self, *, task: str | None = None) -> list[Entry[DatasetManifest]]:
        """Return all datasets by name, or those for one task."""
        entries = cast("list[Entry[DatasetManifest]]", self._of("dataset"))
        return [e for e in entries if task is None or e.manifest.task == task]

    def systems(self) -> list[Entry[SystemManifest]]:
        """Return all systems by name."""
        return cast("list[Entry[SystemManifest]]", self._of("system"))


def load_entry(path: str | os.PathLike[str]) -> Entry[Manifest]:
    """Load one manifest file as an entry; raise ManifestError as `mlscope_lab.manifest.load.load_manifest` does."""
    file = Path(path).expanduser().absolute()
    return Entry(manifest=load_manifest(file), path=file)


def load_catalog(settings: Settings) -> Catalog:
    """Return the catalogue of the folders that `mlscope_lab.config.manifest_roots` names."""
    return Catalog([*settings.path, *(root for root in manifest_roots(settings) if root not in settings.path)])
