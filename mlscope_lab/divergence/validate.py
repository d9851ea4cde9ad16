"""Check that a tree is a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mlscope_lab.divergence import schema
from mlscope_lab.errors import SchemaError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["validate_comparison"]

_TABLES = (schema.PAIRS, schema.SKETCHES, schema.HISTOGRAMS, schema.CHANNELS, schema.UNMATCHED, schema.SAMPLES)


def _fail(message: str) -> None:
    raise SchemaError(f"Not a comparison: {message}")


def validate_comparison(tree: xr.DataTree) -> None:
    """Check that a tree keeps to `mlscope_lab.divergence.schema`; reads no values.

    Raises
    ------
    SchemaError
        Naming group, variable, what is wrong, and the fix.
    """
    attrs = tree.attrs
    missing = [name for name in schema.REQUIRED_ATTRS if name not in attrs]
    if missing:
        _fail(f"attrs of the root lack {', '.join(missing)}")
    if attrs["kind"] != schema.KIND:
        _fail(f"attrs['kind'] of the root must be '{schema.KIND}', not {attrs['kind']!r}")
    if str(attrs["schema_version"]).split(".")[0] != schema.SCHEMA_VERSION.split(".")[0]:
        _fail(f"it is of schema {attrs['schema_version']}, this is {schema.SCHEMA_VERSION}; update mlscope-lab")
    sides = attrs["sides"]
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(isinstance(s, Mapping) for s in sides):
        _fail("attrs['sides'] of the root must be two mappings")
    if attrs["status"] not in {"complete", "failed"}:
        _fail(f"attrs['status'] of the root must be complete or failed, not {attrs['status']!r}")
    if attrs["status"] == "failed" and not isinstance(attrs.get("failure"), Mapping):
        _fail("attrs['failure'] of a failed comparison must hold side and message")
    needed = _TABLES if attrs["status"] == "complete" else ()
    for group in needed:
        if group not in tree.children:
            _fail(f"it lacks the group /{group}; found {', '.join(tree.children) or 'none'}")
    for group in _TABLES:
        if group not in tree.children:
            continue
        data = tree.children[group].dataset
        for name, dims in schema.GROUPS[group].items():
            if name not in data.variables:
                _fail(f"/{group} lacks the variable '{name}'")
            variable = data.variables[name]
            if variable.dims != dims:
                _fail(f"/{group} variable '{name}' must have dims {dims}, not {variable.dims}")
            want = np.dtype(schema.DTYPES.get(name, "float64"))
            if variable.dtype != want:
                _fail(f"/{group} variable '{name}' must be {want}, not {variable.dtype}")
    if schema.PAIRS in tree.children:
        count = tree.children[schema.PAIRS].dataset.sizes["pair"]
        for name in ("first_divergent", "culprit"):
            if not -1 <= int(attrs[name]) < count:
                _fail(f"attrs['{name}'] of the root must lie between -1 and {count - 1}, not {attrs[name]!r}")
