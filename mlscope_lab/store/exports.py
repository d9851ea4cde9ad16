"""Runs as NetCDF and Parquet, for other tools."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.errors import StoreError
from mlscope_lab.trace import schema
from mlscope_lab.trace.build import texts_as_objects

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["from_netcdf", "to_netcdf", "to_parquet"]

_MARK = "mlscope_json_attrs"
_ROWS = 1 << 20
"""Events at a time, and rows of a Parquet row group."""


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


def _compressed(data: xr.DataTree | xr.Dataset) -> dict[Any, dict[str, Any]]:
    """Return how long columns of numbers are packed: events by the million take a third of the room so."""
    return {
        name: {"zlib": True, "complevel": 1, "shuffle": True}
        for name, variable in data.variables.items()
        if variable.dtype.kind in "iuf" and variable.size > 1 << 16
    }


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
        encoded = _with_attrs(tree, _encoded).map_over_datasets(_empty_texts)
        encoding = {node.path: _compressed(node.dataset) for node in encoded.subtree}
        encoded.to_netcdf(temporary, engine="h5netcdf", format="NETCDF4", encoding=encoding)
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
        A run, opened lazily or not; events are read and written some at a time.
    folder
        Folder to write ``passes.parquet``, ``latency.parquet``, ... into; made where it is missing. Files of these
        names are replaced once all are whole.

    Returns
    -------
    list of Path
        The files. Each carries the run's attributes and its variables' as JSON in the schema metadata, under
        ``mlscope``. In a group of events coded text (``name_code``) is a dictionary column (``name``), which pandas
        reads as a category; where it is not known it is null. Other groups have a row for each point of their dims.
    """
    import pyarrow as pa

    target = Path(folder)
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        temporary.mkdir(parents=True)
        names = [name for name, node in tree.children.items() if node.dataset.variables]
        for name in names:
            write = _write_events if name in schema.EVENT_DIMS else _write_points
            write(tree, name, temporary / f"{name}.parquet")
        target.mkdir(exist_ok=True)
        for name in names:
            os.replace(temporary / f"{name}.parquet", target / f"{name}.parquet")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{target} cannot be written as Parquet: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [target / f"{name}.parquet" for name in names]


def _described(tree: xr.DataTree, group: str) -> dict[bytes, bytes]:
    variables = {str(key): dict(variable.attrs) for key, variable in tree[group].dataset.variables.items()}
    note = {"run": dict(tree.attrs), "group": group, "variables": variables}
    return {b"mlscope": json.dumps(note, default=str).encode()}


def _write_points(tree: xr.DataTree, group: str, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    frame = tree[group].to_dataset().to_dataframe().reset_index()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **_described(tree, group)})
    parquet.write_table(table, path, compression="zstd")


def _write_events(tree: xr.DataTree, group: str, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    data, dim = tree[group].dataset, schema.EVENT_DIMS[group]
    columns = [str(name) for name, variable in data.variables.items() if variable.dims == (dim,)]
    tables = {name: pa.array(list(data[f"{name[:-5]}_table"].values), pa.string()) for name in columns if _coded(name)}
    fields = [
        pa.field(name.removesuffix("_code"), pa.dictionary(pa.int32(), pa.string()))
        if name in tables
        else pa.field(name, pa.from_numpy_dtype(data[name].dtype))
        for name in columns
    ]
    described = pa.schema(fields, metadata=_described(tree, group))
    with parquet.ParquetWriter(path, described, compression="zstd") as writer:
        for first in range(0, max(data.sizes[dim], 1), _ROWS):
            arrays = []
            for name in columns:
                values = data.variables[name][first : first + _ROWS].values
                if name in tables:
                    codes = pa.array(values, pa.int32(), mask=values < 0)
                    arrays.append(pa.DictionaryArray.from_arrays(codes, tables[name]))
                else:
                    arrays.append(pa.array(values))
            writer.write_table(pa.Table.from_arrays(arrays, schema=described), row_group_size=_ROWS)


def _coded(name: str) -> bool:
    return name.endswith("_code")
