"""Steps from hidden states to embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step

__all__ = ["Mean", "UnitLength"]

Array = npt.NDArray[Any]


def _numbers(value: Any, step: str, axis: int) -> Array:
    array = np.asarray(value)
    if array.dtype.kind != "f" or not -array.ndim <= axis < array.ndim or not array.size:
        raise InputError(f"{step} takes floating-point numbers with an axis {axis}, not {array.dtype}{array.shape}")
    return array


@dataclass(frozen=True, kw_only=True)
class Mean(Step):
    """Take the mean along an axis, which goes away: mean pooling of the hidden states of a text that has no padding.

    Parameters
    ----------
    axis
        Along which.
    """

    axis: int = 0

    def __call__(self, value: Any) -> Array:
        """Return the mean, computed in float64, in the given type."""
        array = _numbers(value, "mean", self.axis)
        return np.asarray(array.mean(axis=self.axis, dtype=np.float64)).astype(array.dtype)


@dataclass(frozen=True, kw_only=True)
class UnitLength(Step):
    """Divide by the Euclidean norm along an axis, so that the product of two results is their cosine.

    Parameters
    ----------
    axis
        Along which.
    """

    axis: int = -1

    def __call__(self, value: Any) -> Array:
        """Return an array of the same shape; raise InputError for a norm of 0."""
        array = _numbers(value, "unit_length", self.axis)
        norm = np.linalg.norm(array.astype(np.float64), axis=self.axis, keepdims=True)
        if not np.all(norm > 0):
            raise InputError("unit_length: a vector has the norm 0 or holds NaN; the model or its input is broken")
        return np.asarray(array / norm).astype(array.dtype)
