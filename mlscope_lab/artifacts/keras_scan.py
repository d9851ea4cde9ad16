"""Look into a ``.keras`` archive for what would run code or read other files, without Keras.

Keras' own safe mode does the same work when it opens the file; this refuses earlier and in clear words, and also with
releases of Keras whose safe mode could be got around (CVE-2025-1550, CVE-2025-8747, CVE-2025-12058).
"""

from __future__ import annotations

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlscope_lab.errors import UnsafeArtifactError, UnsupportedModelError

__all__ = ["check_keras"]

MAX_CONFIG_BYTES = 256 << 20
_PACKAGES = ("keras", "keras_core", "tf_keras")
_TRUST = (
    "If you trust its author, mark the source with 'trusted: true' in the manifest; Keras may still refuse it. "
    "Better: ask for the model as an ONNX file or a SavedModel"
)


def check_keras(path: Path, archive: zipfile.ZipFile, *, trusted: bool) -> None:
    """Refuse Lambda layers, objects of modules other than Keras, and weights that lie in other files.

    Raises
    ------
    UnsafeArtifactError
        If one of these is found; `trusted` lifts the first two.
    UnsupportedModelError
        If the archive has no readable ``config.json``.
    """
    try:
        info = archive.getinfo("config.json")
        if info.file_size > MAX_CONFIG_BYTES:
            raise UnsafeArtifactError(f"{path}: config.json has {info.file_size:,} bytes")
        config = json.loads(archive.read(info))
    except KeyError:
        raise UnsupportedModelError(f"{path}: no config.json, so this is not a .keras archive") from None
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{path}: config.json is not JSON: {error}") from error
    if not trusted:
        _check_config(path, config)
    for member in archive.namelist():
        if member.endswith((".h5", ".hdf5")):
            _check_hdf5(path, archive, member)


def _check_config(path: Path, config: Any) -> None:
    todo = [config]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        if not isinstance(node, dict):
            continue
        todo += node.values()
        name, module = node.get("class_name"), node.get("module")
        if name in {"Lambda", "__lambda__"}:
            raise UnsafeArtifactError(f"{path}: the model has a Lambda layer, which is Python bytecode. {_TRUST}")
        if isinstance(module, str) and not _is_modelling(module, name):
            raise UnsafeArtifactError(
                f"{path}: the model would load {module}.{name}, which is not Keras' own. {_TRUST}"
            )
        vocabulary = node.get("vocabulary")
        if isinstance(vocabulary, str) and vocabulary:
            raise UnsafeArtifactError(f"{path}: a layer would read the file '{vocabulary}' of this machine. {_TRUST}")


def _is_modelling(module: str, name: Any) -> bool:
    parts = module.split(".")
    if module == "builtins":
        # How Keras writes its own functions, e.g. an activation by name.
        return name in {"function", "str", "int", "float", "bool"}
    return parts[0] in _PACKAGES and not {"utils", "config", "export", "datasets"} & set(parts)


def _check_hdf5(path: Path, archive: zipfile.ZipFile, member: str) -> None:
    """Refuse links and datasets of an HDF5 member that lead to other files of this machine."""
    if find_spec("h5py") is None:
        # Keras needs h5py to read the member, so nothing here can open it.
        return
    import h5py  # type: ignore[import-untyped]

    where = f"{path}: {member}"
    try:
        with archive.open(member) as stream, h5py.File(stream, "r") as file:
            todo: list[Any] = [file]
            seen = set()
            while todo:
                group = todo.pop()
                for name in group:
                    link = group.get(name, getlink=True)
                    if isinstance(link, h5py.ExternalLink):
                        raise UnsafeArtifactError(f"{where}: '{name}' is a link to the file '{link.filename}'")
                    if isinstance(link, h5py.SoftLink):
                        continue
                    item = group[name]
                    # Hard links can form a ring.
                    address = h5py.h5o.get_info(item.id).addr
                    if address in seen:
                        continue
                    seen.add(address)
                    if isinstance(item, h5py.Group):
                        todo.append(item)
                    elif isinstance(item, h5py.Dataset) and (item.external or _is_foreign(item)):
                        raise UnsafeArtifactError(f"{where}: the data of '{item.name}' lie in another file")
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, UnsafeArtifactError):
            raise
        raise UnsupportedModelError(f"{where} is not a readable HDF5 file: {error}") from error


def _is_foreign(dataset: Any) -> bool:
    return bool(dataset.is_virtual) and any(source.file_name != "." for source in dataset.virtual_sources())
