"""Values between nodes as ONNX Runtime holds them, and as numpy arrays."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["dtype_of", "from_array", "held", "size_of", "to_array", "type_of"]

Array = npt.NDArray[Any]
_BFLOAT16 = 16
_SHOWN = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8", "uint16": "uint16",
    "uint32": "uint32", "uint64": "uint64", "string": "str",
}  # fmt: skip


def type_of(value: Any) -> str:
    """Return ONNX Runtime's name of a value's type: "tensor(float)"; arrays and lists are of strings."""
    if isinstance(value, np.ndarray):
        return "tensor(string)"
    return "seq(tensor(string))" if isinstance(value, list) else str(value.data_type())


def dtype_of(value: Any) -> str | None:
    """Return the name of the element type of a value that has an array; None for others."""
    kind = type_of(value)
    return _SHOWN.get(kind[7:-1]) if kind.startswith("tensor(") else None


def to_array(value: Any) -> Array:
    """Return a tensor as an array that must not be written to, in the tensor's own memory where numpy has its type."""
    if isinstance(value, np.ndarray):
        array = value.view()
    elif value.data_type() == "tensor(bfloat16)":
        shape = tuple(value.shape())
        bits = np.zeros(shape, np.uint16)
        if bits.size:
            ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
        array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        array = value.numpy()
    array.flags.writeable = False
    return array


def from_array(array: Array, dtype: str) -> Any:
    """Return a value that holds an array, its own copy of it."""
    import onnxruntime

    if dtype == "str":
        return np.array(array, dtype=object)
    if dtype == "bfloat16":
        bits = np.asarray(array, np.float32, order="C").view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        # rounding would carry a NaN's fraction into its sign
        rounded = np.where(np.isnan(array), (bits >> np.uint64(16)) | np.uint64(0x40), rounded)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(rounded.astype(np.uint16), _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array, order="C"))


def size_of(value: Any) -> int:
    """Return the number of elements of a value; 0 of one that is no tensor."""
    if isinstance(value, np.ndarray):
        return value.size
    return 0 if isinstance(value, list) or not value.is_tensor() else int(np.prod(value.shape()))


def held(result: Any) -> Any:
    """Return a result of `InferenceSession.run` as it is passed on: strings as arrays, numbers as OrtValue."""
    if isinstance(result, np.ndarray) and result.dtype.kind not in "OUT":
        return from_array(result, result.dtype.name)
    return result
