"""Steps for tensors that need no decoding."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step
from mlscope_lab.processing.sources import existing_file

__all__ = ["Constant", "Select", "Tensor"]

Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]

_MAX_ELEMENTS = 1 << 28


def _loaded(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    file = existing_file(path)
    if file.suffix.lower() != ".npy":
        raise InputError(f"{file} is not a .npy file; save the array with numpy.save")
    try:
        # Mapped, so that a header which promises more than the file holds fails before memory is taken.
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError, MemoryError) as error:
        raise InputError(f"{file} is not a .npy file of plain numbers: {error}") from error
    return np.array(mapped)


@dataclass(frozen=True, kw_only=True)
class Tensor(Step):
    """Take an array, nested lists or the path of a .npy file, and check it.

    Parameters
    ----------
    dtype
        Element type of the result. Floating point may lose digits; integers must not change.
    shape
        Expected shape, 0 for an axis of any length, or None for any shape.
    """

    dtype: Dtype = "float32"
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.shape is not None:
            if any(n < 0 for n in self.shape):
                raise InputError(f"shape must hold lengths, 0 for any, not {list(self.shape)}")
            object.__setattr__(self, "shape", tuple(self.shape))

    def __call__(self, value: Any) -> npt.NDArray[Any]:
        """Return a contiguous array of the wanted type; raise InputError if shape or values do not fit."""
        if isinstance(value, str | os.PathLike):
            array = _loaded(value)
        else:
            try:
                array = np.asarray(value)
            except (ValueError, TypeError, OverflowError) as error:
                raise InputError(f"tensor takes numbers in a regular shape: {error}") from error
        if array.dtype.kind not in "biuf":
            raise InputError(f"tensor takes numbers in a regular shape, not {type(value).__name__} of {array.dtype}")
        target = np.dtype(self.dtype)
        if target.kind in "iub" and array.dtype != target:
            with np.errstate(all="ignore"):
                cast = array.astype(target)
            if not np.array_equal(cast, array):
                raise InputError(f"tensor: the values do not fit {self.dtype} unchanged; round or scale them first")
            array = cast
        if self.shape is not None and (
            array.ndim != len(self.shape)
            or any(want not in {0, have} for want, have in zip(self.shape, array.shape, strict=True))
        ):
            wanted = ", ".join("any" if n == 0 else str(n) for n in self.shape)
            raise InputError(f"tensor takes the shape ({wanted}), not {array.shape}")
        return np.asarray(array, dtype=target, order="C")


@dataclass(frozen=True, kw_only=True)
class Constant(Step):
    """Give the same array for every sample, e.g. a recurrent state of zeros or a sampling rate.

    An input whose pipeline begins with this step needs no sample.

    Parameters
    ----------
    value
        The number in every element.
    shape
        Shape without the batch axis; empty for a scalar.
    dtype
        Element type.
    """

    value: float = 0.0
    shape: tuple[int, ...] = ()
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        elements = 1
        for n in shape:
            elements *= n
            if n < 1 or elements > _MAX_ELEMENTS:
                raise InputError(f"shape must hold positive lengths of a sensible size, not {list(shape)}")
        object.__setattr__(self, "shape", shape)
        with np.errstate(all="ignore"):
            fits = np.dtype(self.dtype).kind == "f" or np.asarray(self.value).astype(self.dtype) == self.value
        if not fits:
            raise InputError(f"value {self.value} does not fit {self.dtype}")

    def __call__(self, value: Any) -> npt.NDArray[Any]:
        """Return the array; what is passed in does not matter."""
        return np.full(self.shape, self.value, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class Select(Step):
    """Take one index of an axis, which goes away.

    Parameters
    ----------
    index
        Which one; negative counts from the end.
    axis
        Of which axis.
    """

    index: int
    axis: int = -1

    def __call__(self, value: Any) -> npt.NDArray[Any]:
        """Return the array with one axis less."""
        array = np.asarray(value)
        if not -array.ndim <= self.axis < array.ndim:
            raise InputError(f"select: an array of shape {array.shape} has no axis {self.axis}")
        length = array.shape[self.axis]
        if not -length <= self.index < length:
            raise InputError(f"select: axis {self.axis} has {length} entries, there is no index {self.index}")
        return np.asarray(np.take(array, self.index, axis=self.axis))
