"""A run as a Zarr 3 folder: durable writing, lazy reading.

What is written is plain Zarr with consolidated metadata, which ``xarray.open_datatree(engine="zarr")`` opens too. We
read it through an xarray backend of our own because a run has some forty small arrays: taking shapes and attributes out
of the one consolidated file opens a run faster, imports zarr only once values are asked for, and gives strings as
object arrays at once (zarr's StringDType breaks xarray's reindex and merge).
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["METADATA", "encode", "read_tree", "sync_folder", "tree_bytes", "write_files"]

METADATA = "zarr.json"
_ONE_CHUNK_BYTES = 16 * 2**20


def _as_strings(where: str, variable: xr.Variable) -> xr.Variable:
    """Return text as StringDType, which Zarr knows even for an empty array; refuse object arrays of anything else."""
    values = variable.values
    for item in values.flat:
        if not isinstance(item, str):
            raise StoreError(
                f"{where} is an object array that holds {type(item).__name__}, which cannot be stored; "
                "use text, or numbers in an array of their own dtype"
            )
    return variable.copy(data=values.astype(np.dtypes.StringDType()))


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    """Ask for one chunk where the array is small, and for no fill value, so that NaN needs no decoding."""
    chosen: dict[str, Any] = {"_FillValue": None} if variable.dtype.kind == "f" else {}
    if variable.ndim and 0 < variable.size * max(variable.dtype.itemsize, 1) <= _ONE_CHUNK_BYTES:
        chosen["chunks"] = variable.shape
    return chosen


def encode(tree: xr.DataTree) -> dict[str, Any]:
    """Return the files of a run's Zarr folder.

    Parameters
    ----------
    tree
        A valid run; groups may hold any dtype that Zarr knows.

    Returns
    -------
    dict
        Compressed contents (a buffer each) by relative path. They are made in memory because a run is small, and
        because files written one after another can be made durable, which Zarr's own store does not do.

    Raises
    ------
    StoreError
        If a variable or attribute has no Zarr form.
    """
    import xarray as xr
    from zarr.storage import MemoryStore

    datasets: dict[str, xr.Dataset] = {}
    encoding: dict[str, dict[str, Any]] = {}
    for node in tree.subtree:
        data = node.to_dataset(inherit=False).drop_encoding()
        texts = {
            name: _as_strings(f"{node.path} variable '{name}'", variable)
            for name, variable in data.variables.items()
            if variable.dtype == np.dtype(object)
        }
        data = data.assign_coords({k: v for k, v in texts.items() if k in data.coords})
        datasets[node.path] = data.assign({k: v for k, v in texts.items() if k not in data.coords})
        encoding[node.path] = {str(name): _encoding(variable) for name, variable in data.variables.items()}
    files: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
            xr.DataTree.from_dict(datasets).to_zarr(
                MemoryStore(store_dict=files), mode="w", zarr_format=3, consolidated=True, encoding=encoding
            )
    except (TypeError, ValueError) as error:
        raise StoreError(f"Run {tree.attrs.get('run_id', '?')} cannot be stored as Zarr: {error}") from error
    return {path: buffer.as_buffer_like() for path, buffer in files.items()}


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable, where its filesystem can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network filesystems do not sync folders: there the rename itself is synchronous
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(handle)


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write files and make them durable, the folder's metadata last.

    Parameters
    ----------
    folder
        Folder to make; must not exist.
    files
        Contents by relative path.
    """
    folder.mkdir()
    folders = {folder}
    for name in sorted(files, key=lambda path: (path == METADATA, path)):
        path = folder / name
        for parent in path.relative_to(folder).parents:
            folders.add(folder / parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(files[name])
            file.flush()
            os.fsync(file.fileno())
    for made in sorted(folders, key=lambda path: -len(path.parts)):
        sync_folder(made)


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / METADATA).read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no {METADATA}: it is not a stored run; move it out of the store") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise StoreError(f"{folder / METADATA} is damaged ({error}); delete the run or restore it") from error
    except OSError as error:
        raise StoreError(f"{folder / METADATA} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("zarr_format") != 3 or not isinstance(found.get("attributes"), dict):
        raise StoreError(f"{folder / METADATA} does not describe a Zarr 3 group; move the folder out of the store")
    return found


def read_tree(folder: Path) -> xr.DataTree:
    """Open a stored run; values are read when they are used.

    Parameters
    ----------
    folder
        The run's folder.

    Raises
    ------
    StoreError
        If the folder is not a Zarr 3 group with consolidated metadata, or it is damaged.
    """
    import xarray as xr

    from mlscope_lab.store.lazy import RunBackend

    root = _read_metadata(folder)
    nodes = (root.get("consolidated_metadata") or {}).get("metadata")
    if not isinstance(nodes, dict):
        raise StoreError(
            f"{folder / METADATA} lacks consolidated metadata; add it with zarr.consolidate_metadata({str(folder)!r})"
        )
    groups: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"": (root["attributes"], {})}
    try:
        for path, node in nodes.items():
            if node["node_type"] == "group":
                groups[path] = (node["attributes"], {})
        for path, node in nodes.items():
            if node["node_type"] == "array":
                parent, _, name = path.rpartition("/")
                groups[parent][1][name] = node
        datasets = {
            f"/{path}": xr.open_dataset(folder / path, engine=RunBackend, attrs=attrs, arrays=arrays)
            if arrays
            else xr.Dataset(attrs=attrs)
            for path, (attrs, arrays) in groups.items()
        }
        tree = xr.DataTree.from_dict(datasets)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder / METADATA} is damaged: {error!r}; delete the run or restore it") from error
    return tree


def tree_bytes(paths: Iterable[Path]) -> int:
    """Return the bytes in files below some folders."""
    total = 0
    for path in paths:
        for folder, _, names in os.walk(path):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # deleted by another process meanwhile
                    continue
    return total
