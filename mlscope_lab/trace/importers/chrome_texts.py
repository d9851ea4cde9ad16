"""Texts of a trace in Chrome's format in the form that a run has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from mlscope_lab.trace import schema

__all__ = ["counter_names", "decoded", "shape_text"]

_MAX_SHAPE = 2000
_MAX_NAME = 120


def decoded(text: bytes) -> Any:
    """Return what a piece of JSON holds, None if it cannot be read."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, UnicodeDecodeError, RecursionError):
        return None


def shape_text(dims: bytes, types: bytes) -> str:
    """Return the inputs of an operator as ``float[1,3,224,224];Scalar[]``; "" for one that has no type.

    Examples
    --------
    >>> shape_text(b"[[2048, 1], [], []]", b'["float", "Scalar", ""]')
    'float[2048,1];Scalar;'
    """
    sizes, kinds = decoded(dims), decoded(types)
    if not isinstance(sizes, list):
        return ""
    kinds = kinds if isinstance(kinds, list) else []
    inputs = [
        _input(size, kinds[place] if place < len(kinds) and isinstance(kinds[place], str) else "")
        for place, size in enumerate(sizes)
    ]
    return ";".join(inputs)[:_MAX_SHAPE]


def _input(size: Any, kind: str) -> str:
    if not isinstance(size, list):
        return kind
    if any(isinstance(item, list) for item in size):  # a list of tensors
        return kind + "(" + ",".join(_input(item, "") for item in size if isinstance(item, list))[:_MAX_SHAPE] + ")"
    if not size and kind in {"", "Scalar", "ScalarList"}:
        return kind
    return kind + "[" + ",".join(str(item) for item in size if isinstance(item, int)) + "]"


def counter_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each counter the name of its variable, which is also the name of a folder.

    Examples
    --------
    >>> counter_names(["sm__cycles.sum", "read/s", "start_ns"])
    {'sm__cycles.sum': 'sm__cycles.sum', 'read/s': 'read_s', 'start_ns': 'start_ns counter'}
    """
    found: dict[str, str] = {}
    taken = {"zarr.json"}
    for name in names:
        clean = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", name)[:_MAX_NAME].strip(". ") or "counter"
        # columns of the schema have other types; a name that ends in a unit promises it, and the trace does not tell
        known = clean in schema.GROUPS[schema.COUNTERS] or schema.dtype_of(schema.COUNTERS, clean) != "float64"
        if clean in taken or known or schema.units_of(clean):
            clean += " counter"
        place, plain = 2, clean
        while clean in taken:
            clean, place = f"{plain} {place}", place + 1
        taken.add(clean)
        found[name] = clean
    return found
