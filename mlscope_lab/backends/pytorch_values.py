"""numpy arrays to PyTorch tensors and back, and the many shapes in which a module returns its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ALIGNMENT",
    "aligned",
    "dtype_name",
    "flatten",
    "shape_text",
    "tensor_bytes",
    "tensors_in",
    "to_array",
    "to_tensor",
]


def to_tensor(array: npt.NDArray[Any]) -> Any:
    """Return a CPU tensor that shares the array's memory where torch can, else of a copy.

    Read-only arrays are copied, because torch knows no read-only memory; so are arrays of negative strides and of
    foreign byte order.
    """
    import torch

    if array.dtype.name == "bfloat16":  # ml_dtypes' type, which torch does not take by itself
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if not array.flags.writeable or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


ALIGNMENT = 64
"""Bytes to which PyTorch aligns memory on a CPU. Kernels take other paths, and round otherwise, on memory that is not
aligned so: a copy gives the numbers of the original only where it begins at the same distance from such an address."""


def aligned(array: npt.NDArray[Any], skew: int | None = None) -> npt.NDArray[Any]:
    """Return a copy in C order that begins `skew` bytes after a multiple of `ALIGNMENT`; default as the array does."""
    if skew is None:
        skew = array.__array_interface__["data"][0] % ALIGNMENT
    dtype = array.dtype.newbyteorder("=")
    memory = np.empty(array.size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = (skew - memory.__array_interface__["data"][0]) % ALIGNMENT
    copy: npt.NDArray[Any] = memory[start : start + array.size * dtype.itemsize].view(dtype).reshape(array.shape)
    copy[...] = array
    return copy


def to_array(tensor: Any) -> npt.NDArray[Any]:
    """Return a tensor of any device, layout and element type as a numpy array.

    Types that numpy lacks (bfloat16, 8-bit floats) become float32, quantised ones their real values, sparse ones dense.
    """
    import torch

    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in {torch.float16, torch.float32, torch.float64}:
        tensor = tensor.float()
    array: npt.NDArray[Any] = tensor.numpy(force=True)
    return array


def dtype_name(dtype: Any) -> str:
    """Return numpy's name of a torch element type: ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the tensors and numbers in what a module returned, with a name for each.

    A single tensor is ``output``; members of a tuple or list are ``output_0``, ``output_1``; those of a mapping, a
    dataclass or a named tuple have their own names; deeper ones are joined by dots. None is left out.
    What is neither is passed on as it is, for the caller to refuse.
    """
    if value is None:
        return
    members: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        members = iter(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        members = zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        members = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    if members is None:
        yield name or "output", value
        return
    for key, member in members:
        own = f"output_{key}" if not name and isinstance(key, int) else str(key)
        yield from flatten(member, f"{name}.{own}" if name else own)


def tensors_in(*values: Any) -> Iterator[Any]:
    """Walk the tensors in arguments or results."""
    import torch

    for _, leaf in flatten(values):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def shape_text(*values: Any) -> str:
    """Return e.g. ``float32[1,3,224,224];int64[1]`` for the tensors in `values`."""
    return ";".join(f"{dtype_name(t.dtype)}[{','.join(map(str, t.shape))}]" for t in tensors_in(*values))


def tensor_bytes(*values: Any) -> int:
    """Return the bytes of the elements of the tensors in `values`, each tensor object counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors_in(*values)}.values())
