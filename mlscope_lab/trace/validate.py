"""Check that a tree is a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.errors import SchemaError, nearest
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["validate"]


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_reasons(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())


_ATTRS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "schema_version": (lambda v: isinstance(v, str) and v.split(".")[0] == schema.SCHEMA_VERSION.split(".")[0],
                       f"a version of schema {schema.SCHEMA_VERSION.split('.')[0]}; update mlscope-lab to open it"),
    "run_id": (lambda v: isinstance(v, str) and re.fullmatch(schema.RUN_ID, v) is not None,
               "UTC time and 8 hex digits such as 20261122T003000Z-1a2b3c4d"),
    "created_at": (_is_time, "an ISO 8601 time with its offset such as 2026-11-22T00:30:00+00:00"),
    "status": (lambda v: v in schema.STATUSES, f"one of {', '.join(schema.STATUSES)}"),
    "model": (lambda v: isinstance(v, str) and bool(v), "the model's name"),
    "model_digest": (lambda v: v is None or isinstance(v, str), "text or None"),
    "backend": (lambda v: isinstance(v, str) and bool(v), "the backend's name"),
    "backend_version": (lambda v: v is None or isinstance(v, str), "text or None"),
    "device": (lambda v: isinstance(v, str) and bool(v), "a device such as cpu"),
    "precision": (lambda v: v is None or isinstance(v, str), "text such as float32 or None"),
    "batch_size": (lambda v: v is None or (_is_int(v) and v > 0), "a positive integer, or None where unknown"),
    "level": (lambda v: v in schema.LEVELS, f"one of {', '.join(schema.LEVELS)}"),
    "seed": (lambda v: v is None or _is_int(v), "an integer or None"),
    "threads": (lambda v: v is None or (_is_int(v) and v > 0), "a positive integer or None"),
    "isolation": (lambda v: isinstance(v, str) and bool(v), "text such as subprocess or inline"),
    "execution_mode": (lambda v: v is None or isinstance(v, str), "text such as graph or None"),
    "executable_digest": (lambda v: v is None or isinstance(v, str), "text or None"),
    "clock_anchor_unix_ns": (_is_int, "an integer, ns since 1970"),
    "environment": (lambda v: isinstance(v, Mapping), "a mapping"),
    "warnings": (_is_texts, "a list of sentences"),
    "unavailable": (_is_reasons, "a mapping {what: reason}"),
}  # fmt: skip


def _fail(message: str) -> None:
    raise SchemaError(f"Not a run: {message}")


def _check_attrs(attrs: Mapping[Any, Any]) -> None:
    missing = [name for name in schema.REQUIRED_ATTRS if name not in attrs]
    if missing:
        near = "".join(nearest(name, [str(k) for k in attrs if k not in schema.REQUIRED_ATTRS]) for name in missing[:1])
        _fail(f"attrs of the root lack {', '.join(missing)}; add what is missing (None where unknown).{near}")
    for name, (holds, what) in _ATTRS.items():
        if not holds(attrs[name]):
            _fail(f"attrs['{name}'] of the root must be {what}, not {attrs[name]!r}")
    if attrs.get("origin", "measured") not in schema.ORIGINS:
        _fail(f"attrs['origin'] of the root must be one of {', '.join(schema.ORIGINS)}, not {attrs['origin']!r}")
    failure = attrs.get("failure")
    if attrs["status"] == "failed":
        if not isinstance(failure, Mapping) or failure.get("kind") not in schema.FAILURE_KINDS:
            _fail(f"attrs['failure']['kind'] of a failed run must be one of {', '.join(schema.FAILURE_KINDS)}, "
                  f"not {failure.get('kind') if isinstance(failure, Mapping) else failure!r}")  # fmt: skip
        elif not isinstance(failure.get("message"), str) or "log" not in failure:
            _fail("attrs['failure'] of a failed run must hold kind, message (text) and log")
    elif attrs["status"] == "complete" and failure is not None:
        _fail("attrs['failure'] belongs to a failed run only, and status is 'complete'; drop one of them")


def _check_variable(group: str, name: str, variable: xr.Variable, dims: tuple[str, ...]) -> None:
    where = f"/{group} variable '{name}'"
    if variable.dims != dims:
        _fail(f"{where} must have dims {dims}, not {variable.dims}")
    if schema.is_text(name):
        if variable.dtype != np.dtype(object):
            _fail(f"{where} must be text in an object array, not {variable.dtype}; use .astype(object)")
    elif variable.dtype != np.dtype(schema.dtype_of(group, name)):
        _fail(f"{where} must be {schema.dtype_of(group, name)}, not {variable.dtype}")
    for attr in ("units", "long_name", "provenance"):
        if not isinstance(variable.attrs.get(attr), str):
            _fail(f"{where} lacks the attribute '{attr}'")
    if variable.attrs["provenance"] not in schema.PROVENANCES:
        _fail(f"{where}: provenance must be one of {', '.join(schema.PROVENANCES)}, "
              f"not {variable.attrs['provenance']!r}")  # fmt: skip
    want = schema.units_of(name)
    if want is not None and variable.attrs["units"] != want:
        _fail(f"{where}: units must be '{want}', not {variable.attrs['units']!r}")


def _check_index(where: str, values: Any, size: int, *, lowest: int = 0) -> None:
    if len(values) and not (values.min() >= lowest and values.max() < size):
        _fail(f"{where} must lie between {lowest} and {size - 1}, found {values.min()} to {values.max()}")


def _check_values(tree: xr.DataTree) -> None:
    """Check what only the values tell; loads small columns and the layer times."""
    groups = {name: node.dataset for name, node in tree.children.items()}
    if schema.PASSES not in groups:
        return
    passes = groups[schema.PASSES]
    levels = list(passes["level"].values)
    for row, level in enumerate(levels):
        if level not in schema.LEVELS:
            _fail(f"/passes variable 'level': [{row}] must be one of {', '.join(schema.LEVELS)}, not {level!r}")
    if not np.isin(passes["outputs_equal"].values, (-1, 0, 1)).all():
        _fail("/passes variable 'outputs_equal' must be 1, 0 or -1")
    if schema.LATENCY in groups:
        latency = groups[schema.LATENCY]
        index = latency["pass_index"].values
        _check_index("/latency variable 'pass_index'", index, len(levels))
        if any(levels[i] != "model" for i in np.unique(index)):
            _fail("/latency holds iterations of a traced pass; headline latency comes from untraced passes only")
        for name in ("start_ns", "preprocess_ns", "predict_ns", "postprocess_ns"):
            if (latency[name].values < 0).any():
                _fail(f"/latency variable '{name}' holds negative times; count from the start of the pass")
    if schema.LAYERS in groups:
        layers = groups[schema.LAYERS]
        names = list(layers["name"].values)
        if len(set(names)) != len(names):
            _fail("/layers variable 'name' holds a label twice; append #2, #3 to repeated call sites")
        _check_index("/layers variable 'parent'", layers["parent"].values, len(names), lowest=-1)
        _check_index("/layers variable 'pass_index'", layers["pass_index"].values, len(levels))
        absent = layers["start_ns"].values < 0
        for name in ("duration_ns", "exclusive_ns"):
            if not np.array_equal(layers[name].values < 0, absent):
                _fail(f"/layers variables 'start_ns' and '{name}' disagree on which layers ran; "
                      "both are -1 where a layer did not run")  # fmt: skip


def _check_extras(group: str, data: xr.Dataset) -> None:
    """Check the columns that a group of events may have besides those that it must."""
    dim = schema.EVENT_DIMS[group]
    for name, variable in data.variables.items():
        if name in schema.GROUPS[group]:
            continue
        text = str(name)
        if text.endswith("_table"):
            _check_variable(group, text, variable, (f"{dim}_{text.removesuffix('_table')}",))
        else:
            _check_variable(group, text, variable, (dim,))


def _check_events(tree: xr.DataTree) -> None:
    """Check codes and indices; each column is looked through once."""
    sizes = {
        name: int(node.dataset.sizes.get(dim, 0))
        for name, node in tree.children.items()
        for dim in [schema.EVENT_DIMS.get(name, {schema.PASSES: "pass", schema.LAYERS: "layer"}.get(name, ""))]
    }
    for group, dim in schema.EVENT_DIMS.items():
        if group not in tree.children:
            continue
        data = tree.children[group].dataset
        for key, variable in data.variables.items():
            name, where = str(key), f"/{group} variable '{key}'"
            if variable.dims != (dim,):
                continue
            if name.endswith("_code"):
                _check_index(where, variable.values, int(data[f"{name[:-5]}_table"].size), lowest=-1)
            elif name == "parent_index":
                _check_index(where, variable.values, sizes[group], lowest=-1)
            elif name in schema.INDEX_TARGETS:
                _check_index(where, variable.values, sizes.get(schema.INDEX_TARGETS[name], 0), lowest=-1)
            elif name == "duration_ns" and variable.size and int(variable.values.min()) < 0:
                _fail(f"{where} holds a negative duration ({int(variable.values.min())})")


def validate(tree: xr.DataTree, *, values: bool = True) -> None:
    """Check that a tree keeps to the schema.

    Parameters
    ----------
    tree
        Any tree. A failed or interrupted run may lack groups.
    values
        Also check what only the values tell. Without, nothing is loaded: the check of a run opened lazily.

    Raises
    ------
    SchemaError
        Naming group, variable, what is wrong, and the fix.
    """
    _check_attrs(tree.attrs)
    if tree.dataset.sizes or tree.dataset.variables:
        _fail(f"the root must hold attributes only, not dims {tuple(tree.dataset.sizes)} and variables "
              f"{tuple(tree.dataset.variables)}; move them into a group")  # fmt: skip
    measured = tree.attrs.get("origin", "measured") == "measured"
    needed = () if tree.attrs["status"] != "complete" else (schema.PASSES, schema.LATENCY)[: 1 + measured]
    for group in needed:
        if group not in tree.children:
            _fail(f"a complete run needs the group /{group}; found {', '.join(tree.children) or 'none'}")
    for group, variables in schema.GROUPS.items():
        node = tree.children.get(group)
        if node is None:
            continue
        data = node.dataset
        for name, dims in variables.items():
            if name not in data.variables:
                near = nearest(name, [str(v) for v in data.variables if v not in variables])
                _fail(f"/{group} lacks the variable '{name}'.{near}")
            _check_variable(group, name, data.variables[name], dims)
        if group in schema.EVENT_DIMS:
            _check_extras(group, data)
    for group, node in tree.children.items():
        if group != "tensors" and node.children:
            _fail(f"groups must be flat siblings, but /{group} holds {', '.join(node.children)}; move them to the root")
    for group in (schema.LATENCY, schema.LAYERS, *schema.EVENT_GROUPS):
        if group in tree.children and schema.PASSES not in tree.children:
            _fail(f"/{group} refers to /{schema.PASSES}, which is missing")
    if values:
        _check_values(tree)
        _check_events(tree)
