"""Load manifests from YAML files."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlscope_lab.errors import ManifestError, nearest
from mlscope_lab.manifest.common import ManifestBase
from mlscope_lab.manifest.dataset import DatasetManifest
from mlscope_lab.manifest.framework import FrameworkManifest
from mlscope_lab.manifest.messages import explain
from mlscope_lab.manifest.model import ModelManifest
from mlscope_lab.manifest.system import SystemManifest
from mlscope_lab.manifest.yaml_ import MAX_BYTES, parse_yaml

__all__ = ["KINDS", "Manifest", "digest_of_manifest", "load_manifest", "parse_manifest", "to_data"]

Manifest = ModelManifest | FrameworkManifest | DatasetManifest | SystemManifest

KINDS: dict[str, type[ModelManifest] | type[FrameworkManifest] | type[DatasetManifest] | type[SystemManifest]] = {
    "model": ModelManifest,
    "framework": FrameworkManifest,
    "dataset": DatasetManifest,
    "system": SystemManifest,
}


@cache
def _schema(kind: str) -> dict[str, Any]:
    return KINDS[kind].model_json_schema(by_alias=True)


def load_manifest(path: Path) -> Manifest:
    """Load one manifest.

    Parameters
    ----------
    path
        A YAML file.

    Returns
    -------
    ModelManifest, FrameworkManifest, DatasetManifest or SystemManifest
        By its key ``kind``.

    Raises
    ------
    ManifestError
        If the file cannot be read, or anything in it is wrong; one line a mistake, each with file and path.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ManifestError(f"{path}: there is no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ManifestError(f"{path.name}: holds more than {MAX_BYTES} bytes; it is no manifest")
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path.name}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_manifest(text, where=path.name)


def parse_manifest(text: str, *, where: str) -> Manifest:
    """Read a manifest out of YAML text.

    Parameters
    ----------
    text
        The YAML.
    where
        File name for messages.

    Raises
    ------
    ManifestError
        As `load_manifest`.
    """
    data = parse_yaml(text, where=where)
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        known = list(KINDS)
        if kind is None:
            raise ManifestError(f"{where}: kind is missing; write kind: model, or one of {', '.join(known[1:])}")
        raise ManifestError(
            f"{where}: kind must be one of {', '.join(known)}, not {kind!r}.{nearest(str(kind), known)}"
        )
    try:
        return KINDS[kind].model_validate(data)
    except ValidationError as error:
        # include_url and friends off: only type, loc, ctx and input are read
        found = explain(error.errors(include_url=False), _schema(kind))
        raise ManifestError("\n".join(f"{where}: {sentence}" for _, sentence in found)) from error
    except RecursionError as error:
        raise ManifestError(f"{where}: is nested too deep") from error


def to_data(manifest: ManifestBase) -> dict[str, Any]:
    """Return a manifest as plain data that `parse_manifest` would take as YAML; unset optional keys are left out."""
    data: dict[str, Any] = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    return data


def digest_of_manifest(manifest: ManifestBase) -> str:
    """Return ``sha256:<hex>`` of the manifest's canonical JSON: keys sorted, every default written out."""
    data = manifest.model_dump(mode="json", by_alias=True)
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()
