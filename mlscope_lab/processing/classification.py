"""Steps from scores to ranked classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step

__all__ = ["Ranked", "Sigmoid", "Softmax", "TopK"]


class Ranked(NamedTuple):
    """One class of a ranking: its index, its name (None where the model has no labels) and its score."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs on a ranking
    label: str | None
    score: float


def _scores(value: Any, step: str) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise InputError(f"{step} takes an array of scores, not {array.dtype.name} of shape {array.shape}")
    return array if array.dtype.kind == "f" else array.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Softmax(Step):
    """Turn scores into probabilities that sum to 1 along an axis.

    Parameters
    ----------
    axis
        Axis of the classes in one sample's output.
    """

    axis: int = -1

    def __call__(self, value: Any) -> npt.NDArray[Any]:
        """Return an array of the same shape; the maximum is subtracted first, so that nothing overflows."""
        scores = _scores(value, "softmax")
        if not -scores.ndim <= self.axis < scores.ndim:
            raise InputError(f"softmax: an array of shape {scores.shape} has no axis {self.axis}")
        if np.isnan(scores).any():
            raise InputError("softmax: the scores hold NaN; the model or its input is broken")
        wide = scores.astype(np.float64)
        powers = np.exp(wide - wide.max(axis=self.axis, keepdims=True))
        probabilities: npt.NDArray[Any] = (powers / powers.sum(axis=self.axis, keepdims=True)).astype(scores.dtype)
        return probabilities


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Step):
    """Turn each score into a probability of its own, 1 / (1 + exp(-x))."""

    def __call__(self, value: Any) -> npt.NDArray[Any]:
        """Return an array of the same shape, without overflow for large negative scores."""
        scores = _scores(value, "sigmoid")
        wide = scores.astype(np.float64)
        small = np.exp(-np.abs(wide))
        probabilities: npt.NDArray[Any] = np.where(wide >= 0, 1.0, small) / (1.0 + small)
        return probabilities.astype(scores.dtype)


@dataclass(frozen=True, kw_only=True)
class TopK(Step):
    """Rank the classes by score and keep the best.

    Parameters
    ----------
    k
        How many; all if there are fewer classes.
    labels
        Class names by index. The engine fills them in from the manifest's labels.
    """

    k: int = 5
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1, not {self.k}")
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))

    def __call__(self, value: Any) -> tuple[Ranked, ...]:
        """Rank one sample's scores, (class,) or the same with axes of length 1; ties go to the lower index."""
        scores = _scores(value, "top_k")
        if max(scores.shape, default=1) != scores.size:
            raise InputError(
                f"top_k ranks one vector of scores, not an array of shape {scores.shape}; put select before it"
            )
        flat = scores.reshape(-1)
        if np.isnan(flat).any():
            raise InputError("top_k: the scores hold NaN; the model or its input is broken")
        if self.labels is not None and len(self.labels) != flat.size:
            raise InputError(
                f"top_k: {flat.size} scores, but {len(self.labels)} labels; the labels are another model's"
            )
        best = np.argsort(-flat.astype(np.float64), kind="stable")[: self.k]
        return tuple(
            Ranked(index=int(i), label=self.labels[i] if self.labels is not None else None, score=float(flat[i]))
            for i in best
        )
