"""Find where an ONNX file keeps tensors outside itself, without loading it.

A walk over the protobuf wire format reads the few fields that lead to ``TensorProto.external_data`` and steps over
all weights, so that a model of gigabytes costs a few megabytes of memory, needs no framework, and no hostile byte gets
to a C++ parser before its references are known. Field numbers are those of onnx.proto (ONNX IR version 13).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from mlscope_lab.errors import UnsafeArtifactError, UnsupportedModelError

__all__ = ["check_external_data", "external_locations"]

# {message: {field: message or "entry" of that field}} along every way from the root to a tensor.
_WAYS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_GRAPH_FIELD = 7
_MAX_DEPTH = 100


class _WireError(ValueError):
    """The bytes are not a protobuf message."""


def external_locations(path: Path) -> set[tuple[str, int, int | None]]:
    """Return all external data of an ONNX file as (location, offset, length) with bytes as unit; length may be None.

    Raises
    ------
    UnsupportedModelError
        If the file is not an ONNX model, or was cut off.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found: set[tuple[str, int, int | None]] = set()
            has_graph = False
            for kind, depth, field, start, end in _messages(data):
                has_graph |= depth == 0 and field == _GRAPH_FIELD
                if kind == "tensor":
                    found |= _external(data, start, end)
            if not has_graph:
                raise _WireError("it has no graph")
            return found
    except (_WireError, UnicodeDecodeError, ValueError) as error:
        raise UnsupportedModelError(f"{path} is not an ONNX model, or was cut off: {error}") from error


def check_external_data(path: Path) -> None:
    """Refuse an ONNX file that would read files outside its own folder.

    Raises
    ------
    UnsafeArtifactError
        If a location is absolute, contains ``..``, is or passes a link that leaves the folder, or lies (in part)
        outside of its file.
    UnsupportedModelError
        If the file is not an ONNX model, or its data are not beside it.
    """
    folder = path.resolve().parent
    for location, offset, length in sorted(external_locations(path), key=lambda e: (e[0], e[1])):
        parts = location.replace("\\", "/").split("/")
        where = f"{path}: a tensor's external data '{location}'"
        # ONNX Runtime takes "*/_ORT_MEM_ADDR_/*" for a pointer into its own memory.
        if not location or location.startswith(("/", "\\", "*")) or ".." in parts or ":" in parts[0]:
            raise UnsafeArtifactError(f"{where} would be read from outside the model's folder")
        file = folder / "/".join(parts)
        if not file.resolve().is_relative_to(folder):
            raise UnsafeArtifactError(f"{where} is a link that leaves the model's folder; put a copy in its place")
        if not file.is_file():
            raise UnsupportedModelError(
                f"{where} is not beside it. Put the file there; in a manifest use 'from: folder' with both as members"
            )
        size = file.stat().st_size
        if offset < 0 or (length is not None and length < 0) or offset + (length or 0) > size:
            raise UnsafeArtifactError(f"{where} takes bytes {offset} to {offset + (length or 0)} of a file of {size}")


def _messages(data: mmap.mmap) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield (kind, depth of the parent, field, start, end) of every message on the way to a tensor."""
    todo = [("model", 0, 0, len(data))]
    while todo:
        kind, depth, start, end = todo.pop()
        if depth > _MAX_DEPTH:
            raise _WireError(f"messages are nested deeper than {_MAX_DEPTH}")
        ways = _WAYS[kind]
        for field, wire, low, high in _fields(data, start, end):
            child = ways.get(field) if wire == 2 else None
            if child is not None and child != "entry":
                yield child, depth, field, low, high
                todo.append((child, depth + 1, low, high))


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end) of the fields between two offsets."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        field, wire = key >> 3, key & 7
        if wire == 0:
            low = at
            _, at = _varint(data, at, end)
        elif wire == 1:
            low, at = at, at + 8
        elif wire == 2:
            length, low = _varint(data, at, end)
            at = low + length
        elif wire == 5:
            low, at = at, at + 4
        else:
            raise _WireError(f"wire type {wire} at byte {at}")
        if field == 0 or at > end:
            raise _WireError(f"a field at byte {low} ends outside its message")
        yield field, wire, low, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _WireError(f"a number at byte {at} does not end")


def _external(data: mmap.mmap, start: int, end: int) -> set[tuple[str, int, int | None]]:
    """Return the external data of one tensor; with repeated keys every combination that a reader might take."""
    values: dict[str, list[str]] = {"location": [], "offset": [], "length": []}
    for field, wire, low, high in _fields(data, start, end):
        if field != 13 or wire != 2:
            continue
        entry = {f: data[lo:hi].decode() for f, w, lo, hi in _fields(data, low, high) if w == 2}
        if entry.get(1) in values:
            values[entry[1]].append(entry.get(2, ""))
    offsets = [int(v) for v in values["offset"]] or [0]
    lengths: list[int | None] = [int(v) for v in values["length"]] or [None]
    return {(where, offset, length) for where in values["location"] for offset in offsets for length in lengths}
