"""Messages between the parent and a worker: a JSON header, then the raw bytes of its arrays.

Nothing is pickled: a header is JSON and an array is dtype, shape and bytes, so a worker that a model has taken over
cannot make the parent run anything. The pipes are their own descriptors, never 0, 1 or 2, because frameworks print
there.

A message is an 8-byte little-endian header length, the header, and for each entry of ``header["arrays"]`` its bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ClosedPipeError", "receive", "send"]

_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 256 * 1024 * 1024
_MAX_ARRAY = 1 << 40


class ClosedPipeError(EOFError):
    """The other side closed its end, between messages or within one."""


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while view:
        view = view[os.write(fd, view[: 1 << 20]) :]


def _read(fd: int, size: int) -> bytearray:
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = os.readv(fd, [view[done : done + (1 << 20)]])
        if count == 0:
            raise ClosedPipeError("the other side closed the pipe")
        done += count
    return buffer


def send(fd: int, message: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
    """Write one message.

    Parameters
    ----------
    fd
        Writable descriptor.
    message
        JSON-able mapping.
    arrays
        Arrays by key; object and string arrays travel inside the header.
    """
    described, blobs, inline = [], [], {}
    for key, array in (arrays or {}).items():
        array = np.asarray(array)
        if array.dtype.kind in "OUSV":
            inline[key] = {"shape": list(array.shape), "items": [str(x) for x in array.ravel().tolist()]}
            continue
        blob = np.ascontiguousarray(array)
        described.append({"key": key, "dtype": blob.dtype.str, "shape": list(array.shape)})
        blobs.append(blob)
    header = json.dumps({"message": message, "arrays": described, "strings": inline}, allow_nan=True).encode()
    _write(fd, _LENGTH.pack(len(header)))
    _write(fd, header)
    for blob in blobs:
        _write(fd, blob.reshape(-1).view(np.uint8).data if blob.size else b"")


def receive(fd: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read one message; the counterpart of `send`.

    Raises
    ------
    ClosedPipeError
        If the other side closed its end.
    ValueError
        If the message is not one that `send` writes.
    """
    (length,) = _LENGTH.unpack(bytes(_read(fd, _LENGTH.size)))
    if length > _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes is not a message")
    header = json.loads(bytes(_read(fd, length)))
    arrays: dict[str, npt.NDArray[Any]] = {}
    for item in header["arrays"]:
        dtype, shape = np.dtype(item["dtype"]), tuple(int(n) for n in item["shape"])
        if dtype.hasobject or any(n < 0 for n in shape):
            raise ValueError(f"array {item['key']!r} is not plain data")
        size = dtype.itemsize * math.prod(shape)
        if size > _MAX_ARRAY:
            raise ValueError(f"array {item['key']!r} would hold {size} bytes")
        arrays[item["key"]] = np.frombuffer(_read(fd, size), dtype=dtype).reshape(shape)
    for key, item in header["strings"].items():
        array = np.empty(len(item["items"]), dtype=object)
        array[:] = item["items"]
        arrays[key] = array.reshape(item["shape"])
    return header["message"], arrays
