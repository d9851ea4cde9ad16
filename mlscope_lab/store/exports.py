"""Runs as NetCDF and Parquet, for other tools."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.errors import StoreError
from mlscope_lab.trace.build import texts_as_objects

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["from_netcdf", "to_netcdf", "to_parquet"]

_MARK = "mlscope_json_attrs"


def _encoded(attrs: dict[Any, Any]) -> dict[str, Any]:
    """Return attributes as NetCDF knows them: text and numbers as they are, the rest as JSON, named in a mark."""
    simple: dict[str, Any] = {}
    marked = []
    for name, value in attrs.items():
        # an int beyond 64 bits has no NetCDF type; a text that is empty reads back as none from some libraries
        fits = (
            isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63) or isinstance(value, float)
        )
        if fits and not isinstance(value, bool) and value != "":
            simple[str(name)] = value
        else:
            simple[str(name)] = json.dumps(value)
            marked.append(str(name))
    if marked:
        simple[_MARK] = json.dumps(marked)
    return simple


def _decoded(attrs: dict[Any, Any]) -> dict[str, Any]:
    marked = json.loads(str(attrs.get(_MARK, "[]")))
    return {
        str(name): json.loads(value) if name in marked else value.item() if isinstance(value, np.generic) else value
        for name, value in attrs.items()
        if name != _MARK
    }


def _with_attrs(tree: xr.DataTree, change: Any) -> xr.DataTree:
    import xarray as xr

    done: dict[str, xr.Dataset] = {}
    for node in tree.subtree:
        data = node.to_dataset(inherit=False).drop_encoding().copy()
        data.attrs = change(data.attrs)
        for variable in data.variables.values():
            variable.attrs = change(variable.attrs)
        done[node.path] = data
    return xr.DataTree.from_dict(done)


def _empty_texts(data: xr.Dataset) -> xr.Dataset:
    """Say that text of length 0 is text; xarray would write an empty object array as numbers."""
    names = [name for name, variable in data.variables.items() if variable.dtype == object and not variable.size]
    return data.assign({name: data[name].astype("U1") for name in names})


def to_netcdf(tree: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a run as one NetCDF 4 file.

    Attributes that NetCDF has no type for (nested ones, None, bool) are written as JSON; the attribute
    ``mlscope_json_attrs`` names them, and `from_netcdf` restores them.

    Parameters
    ----------
    tree
        A run.
    path
        File to write; an existing one is replaced once the new one is whole.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        encoded = _with_attrs(tree.load(), _encoded).map_over_datasets(_empty_texts)
        encoded.to_netcdf(temporary, engine="h5netcdf", format="NETCDF4")
        os.replace(temporary, target)
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(f"{target} cannot be written as NetCDF: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def from_netcdf(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a run that `to_netcdf` wrote.

    Raises
    ------
    StoreError
        If the file cannot be read.
    SchemaError
        If it is not a run.
    """
    import xarray as xr

    from mlscope_lab.trace.accessor import ensure_registered
    from mlscope_lab.trace.validate import validate

    ensure_registered()
    try:
        with xr.open_datatree(Path(path), engine="h5netcdf") as opened:
            tree = _with_attrs(opened.load(), _decoded).map_over_datasets(texts_as_objects)
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as NetCDF: {error}") from error
    validate(tree)
    return tree


def to_parquet(tree: xr.DataTree, folder: str | os.PathLike[str]) -> list[Path]:
    """Write a run as Parquet, one file a group.

    Parameters
    ----------
    tree
        A run.
    folder
        Folder to write ``passes.parquet``, ``latency.parquet``, ... into; made where it is missing.

    Returns
    -------
    list of Path
        The files. Each carries the run's attributes and its variables' as JSON in the schema metadata, under
        ``mlscope``.
    """
    import pyarrow as pa
    from pyarrow import parquet

    target = Path(folder)
    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, node in tree.children.items():
            if not node.dataset.variables:
                continue
            table = pa.Table.from_pandas(node.to_dataset().to_dataframe().reset_index(), preserve_index=False)
            described = {str(key): dict(variable.attrs) for key, variable in node.dataset.variables.items()}
            note = json.dumps({"run": dict(tree.attrs), "group": name, "variables": described}, default=str)
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"mlscope": note.encode()})
            parquet.write_table(table, target / f"{name}.parquet", compression="zstd")
            written.append(target / f"{name}.parquet")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{target} cannot be written as Parquet: {error}") from error
    return written
