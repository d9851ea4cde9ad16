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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import StoreError
from mlscope_lab.trace.build import plain

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["METADATA", "encode", "read_tree", "sync_folder", "tree_bytes", "write_files"]

METADATA = "zarr.json"
_CHUNK_BYTES = 16 * 2**20


def _little_endian(variable: xr.Variable, where: str) -> tuple[str, Any, npt.NDArray[Any], dict[str, Any]]:
    """Return Zarr's data type, fill value, contents and first codec of a variable."""
    values = variable.values
    if values.dtype.kind in "OUT":
        for item in values.flat:
            if not isinstance(item, str):
                raise StoreError(
                    f"{where} is an object array that holds {type(item).__name__}, which cannot be stored; "
                    "use text, or numbers in an array of their own dtype"
                )
        return "string", "", values.astype(object), {"name": "vlen-utf8", "configuration": {}}
    if values.dtype.kind not in "biufc":
        raise StoreError(f"{where} is {values.dtype}, which cannot be stored; use numbers, bool or text")
    fill: Any = False if values.dtype.kind == "b" else [0.0, 0.0] if values.dtype.kind == "c" else 0
    codec = {"name": "bytes"} | ({"configuration": {"endian": "little"}} if values.dtype.itemsize > 1 else {})
    return values.dtype.name, fill, values.astype(values.dtype.newbyteorder("<"), order="C", copy=False), codec


def _chunks(values: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Cut a large array along its first axis; the last piece is padded, since all chunks of a grid have one shape."""
    rows = _chunk_shape(values)[:1]
    if not values.ndim:
        yield "c", values
    elif values.size:
        rest = "/0" * (values.ndim - 1)
        for number, first in enumerate(range(0, len(values), rows[0])):
            piece = values[first : first + rows[0]]
            if len(piece) < rows[0]:
                missing = np.full((rows[0] - len(piece), *values.shape[1:]), "" if values.dtype == object else 0)
                piece = np.concatenate([piece, missing.astype(values.dtype)])
            yield f"c/{number}{rest}", piece


def _chunk_shape(values: npt.NDArray[Any]) -> tuple[int, ...]:
    if not values.ndim or not values.size:
        return tuple(max(1, n) for n in values.shape)
    whole = -(-values.nbytes // _CHUNK_BYTES)
    return (-(-len(values) // whole), *values.shape[1:])


def _array(variable: xr.Variable, where: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the metadata and the chunk files of one array."""
    from numcodecs.vlen import VLenUTF8
    from numcodecs.zstd import Zstd

    kind, fill, values, codec = _little_endian(variable, where)
    strings, compressor = VLenUTF8(), Zstd(level=1)
    files = {}
    for key, piece in _chunks(values):
        try:
            raw = strings.encode(piece.ravel()) if kind == "string" else np.ascontiguousarray(piece).tobytes()
        except UnicodeEncodeError as error:
            raise StoreError(f"{where} holds text that is no Unicode: {error}") from error
        files[key] = bytes(compressor.encode(raw))
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(values.shape),
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(_chunk_shape(values))}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [codec, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
        "attributes": plain(variable.attrs, where),
        "dimension_names": [str(dim) for dim in variable.dims],
        "storage_transformers": [],
    }
    return metadata, files


def encode(tree: xr.DataTree) -> dict[str, bytes]:
    """Return the files of a run's Zarr folder.

    Parameters
    ----------
    tree
        A valid run; groups may hold numbers, bool, times and text.

    Returns
    -------
    dict
        Compressed contents by relative path.

    Raises
    ------
    StoreError
        If a variable or attribute has no Zarr form.

    References
    ----------
    Zarr core specification, version 3.1; CF conventions as in `xarray.conventions`.

    Notes
    -----
    Zarr's own writer hands every small array to another thread and back several times: half a second for a run on an
    idle machine, seconds on a busy one. The arrays are made here, in memory, because a run is small.
    """
    from xarray.conventions import encode_dataset_coordinates

    files: dict[str, bytes] = {}
    nodes: dict[str, dict[str, Any]] = {}
    for node in tree.subtree:
        path = node.path.strip("/")
        data = node.to_dataset(inherit=False).drop_encoding()
        variables, attrs = encode_dataset_coordinates(data)
        group = {"zarr_format": 3, "node_type": "group", "attributes": plain(attrs, f"/{path} attrs")}
        if path:
            nodes[path] = group
        for name, variable in variables.items():
            where = f"/{path} variable '{name}'"
            if "/" in str(name) or str(name) in {"", ".", "..", METADATA}:
                raise StoreError(f"{where} has a name that cannot be a folder's; rename it")
            encoded = variable if variable.dtype.kind in "OUTbiufc" else _times_as_numbers(variable, where)
            at = f"{path}/{name}".lstrip("/")
            nodes[at], chunks = _array(encoded, where)
            files |= {f"{at}/{key}": content for key, content in chunks.items()}
    for path, metadata in nodes.items():
        files[f"{path}/{METADATA}"] = _json(metadata)
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": plain(tree.attrs),
        "consolidated_metadata": consolidated,
    }
    files[METADATA] = _json(root)
    return files


def _json(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, allow_nan=False).encode()


def _times_as_numbers(variable: xr.Variable, where: str) -> xr.Variable:
    """Return times and durations as numbers with units, as CF has them."""
    from xarray.conventions import encode_cf_variable

    try:
        return encode_cf_variable(variable, name=where)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where} is {variable.dtype}, which cannot be stored: {error}") from error


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
