"""The xarray backend behind `read_tree`: arrays of one Zarr group that are read when they are used.

This module imports xarray; import it only where a tree is about to be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from mlscope_lab.errors import StoreError
from mlscope_lab.trace import schema

__all__ = ["RunBackend"]

_PLAIN_UNITS = {"", "1", *schema.UNITS}


def _dtype(folder: Path, node: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the dtype that an array will have once read."""
    kind = node["data_type"]
    if kind == "string":
        return np.dtype(object)
    if isinstance(kind, str):
        return np.dtype(kind)
    import zarr

    dtype: np.dtype[Any] = zarr.open_array(folder, mode="r").dtype
    return dtype


def _is_encoded(attrs: Mapping[str, Any]) -> bool:
    """Tell whether attributes may mean something to CF: any but the ones that the schema itself gives."""
    return not attrs.keys() <= {"units", "long_name", "provenance"} or attrs.get("units", "1") not in _PLAIN_UNITS


class _StoredArray(BackendArray):
    """One Zarr array, opened anew for each read so that an opened run holds no file and can be pickled."""

    __slots__ = ("dtype", "folder", "shape")

    def __init__(self, folder: Path, node: Mapping[str, Any]) -> None:
        self.folder = folder
        self.shape = tuple(node["shape"])
        self.dtype = _dtype(folder, node)

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        import zarr

        try:
            values = np.asarray(zarr.open_array(self.folder, mode="r")[key])
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"{self.folder} cannot be read ({type(error).__name__}: {error}); was the run deleted meanwhile?"
            ) from error
        return values.astype(self.dtype, copy=False)


class RunBackend(BackendEntrypoint):
    """Build a dataset from metadata that has been read already; CF conventions are decoded as xarray does."""

    description: ClassVar[str] = "One group of a run stored by mlscope-lab"

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        attrs: Mapping[str, Any],
        arrays: Mapping[str, Mapping[str, Any]],
        drop_variables: str | Iterable[str] | None = None,
    ) -> xr.Dataset:
        """Return the dataset of one group.

        Parameters
        ----------
        filename_or_obj
            Folder of the group.
        attrs
            Attributes of the group.
        arrays
            Zarr metadata by variable.
        drop_variables
            Variables to leave out.
        """
        folder = Path(filename_or_obj)
        variables = {
            name: xr.Variable(
                node["dimension_names"],
                indexing.LazilyIndexedArray(_StoredArray(folder / name, node)),
                dict(node["attributes"]),
            )
            for name, node in arrays.items()
        }
        data = xr.Dataset(variables, attrs=dict(attrs))
        if drop_variables is None and not any(_is_encoded(node["attributes"]) for node in arrays.values()):
            return data  # most groups of a run: decoding what is plain already would cost a third of the opening
        return xr.decode_cf(data, drop_variables=drop_variables)
