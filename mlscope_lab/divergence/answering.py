"""What a side answers: scores of classes out of a model's outputs, and how far two such answers are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.classification import TopK
from mlscope_lab.processing.recipe import Recipe, batch_axis, declared_outputs

__all__ = ["Answering", "Answers", "differences", "effect_of", "interaction_of", "rows_of"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a side said to some samples.

    Attributes
    ----------
    values
        (sample, element) the main output of each sample, flattened, float64.
    probabilities
        (sample, class), each row adding up to 1, or None where the model tells no classes.
    outputs
        All outputs by their declared names, batch axis included.
    """

    values: Floats
    probabilities: Floats | None
    outputs: Mapping[str, Array]

    @property
    def top1(self) -> npt.NDArray[np.int64]:
        """(sample,) best class, -1 where there are none; ties go to the lower index."""
        if self.probabilities is None:
            return np.full(len(self.values), -1, dtype=np.int64)
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    def ranked(self, k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return the best k classes and their probabilities, (sample, rank) each."""
        if self.probabilities is None:
            return np.empty((len(self.values), 0), dtype=np.int64), np.empty((len(self.values), 0))
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return order.astype(np.int64), np.take_along_axis(self.probabilities, order, axis=1)


class Answering:
    """How the outputs of one model become answers.

    Parameters
    ----------
    recipe
        Declared post-processing. Classes are what an output with the step top_k ranks. A model that declares such an
        output for one score between 0 and 1 (after select or sigmoid, say) decides between two classes at 0.5. Where
        nothing is declared, an output (sample, class) holds scores of classes.
    axis
        Position of the batch axis where nothing is declared.

    Attributes
    ----------
    output
        Name of the main output, known after the first answers.
    how
        What was done to make probabilities of it, in words.
    """

    def __init__(self, recipe: Recipe, *, axis: int = 0) -> None:
        self.recipe, self._axis = recipe, axis
        self.output, self.how = "", ""
        self._softmax: bool | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes, None where the model has none."""
        for item in self.recipe.outputs:
            for step in item.pipeline.steps:
                if isinstance(step, TopK) and step.labels is not None:
                    return step.labels
        return None

    def of(self, outputs: Mapping[str, Array]) -> Answers:
        """Return the answers to a batch.

        Parameters
        ----------
        outputs
            As the session returned them.
        """
        named = declared_outputs(self.recipe, outputs)
        declared = {item.spec.name: item for item in self.recipe.outputs}
        for name, item in declared.items():
            position = next((i for i, s in enumerate(item.pipeline.steps) if isinstance(s, TopK)), None)
            if position is not None and name in named:
                before = Pipeline(names=item.pipeline.names[:position], steps=item.pipeline.steps[:position])
                rows = [before(row) for row in rows_of(named[name], batch_axis(item.spec))]
                return self._classes(name, _flat(rows), named)
        for name, item in declared.items():
            if item.pipeline.steps and name in named:
                values = _flat([item.pipeline(row) for row in rows_of(named[name], batch_axis(item.spec))])
                if values.shape[1] == 1 and ((values >= 0) & (values <= 1)).all():
                    return self._decision(name, values, named)
                self.output = name
                return Answers(values=values, probabilities=None, outputs=named)
        name = next(iter(named))
        axis = batch_axis(declared[name].spec) if name in declared else self._axis
        values = _flat(rows_of(named[name], axis))
        if not declared and named[name].ndim == 2 and named[name].dtype.kind == "f" and values.shape[1] > 1:
            return self._classes(name, values, named)
        self.output = name
        return Answers(values=values, probabilities=None, outputs=named)

    def _classes(self, name: str, scores: Floats, named: Mapping[str, Array]) -> Answers:
        if np.isnan(scores).any():
            raise InputError(f"Output '{name}' holds NaN; the model or its input is broken")
        if self._softmax is None:
            sums = scores.sum(axis=1)
            self._softmax = bool((scores < 0).any() or (np.abs(sums - 1) > 1e-3).any())
            self.how = "softmax of the scores" if self._softmax else "as the model gives them"
        self.output = name
        if self._softmax:
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities = powers / powers.sum(axis=1, keepdims=True)
        else:
            positive = np.maximum(scores, 0.0)
            probabilities = positive / positive.sum(axis=1, keepdims=True)
        return Answers(values=scores, probabilities=probabilities, outputs=named)

    def _decision(self, name: str, values: Floats, named: Mapping[str, Array]) -> Answers:
        self.output, self.how = name, "one score: no below .5, yes from there"
        # the second class wins a tie at .5, so it must lie above by a hair where argmax takes the first
        yes = np.where(values == 0.5, np.nextafter(0.5, 1.0), values)
        return Answers(values=values, probabilities=np.hstack([1 - yes, yes]), outputs=named)


def rows_of(array: Array, axis: int | None) -> list[Array]:
    """Return the samples of a batch."""
    return (
        [array] if axis is None or array.ndim == 0 else [np.take(array, i, axis=axis) for i in range(array.shape[axis])]
    )


def _flat(rows: Sequence[Any]) -> Floats:
    return np.stack([np.asarray(row, dtype=np.float64).reshape(-1) for row in rows])


def differences(a: Floats, b: Floats) -> dict[str, Floats]:
    """Return how far outputs are apart.

    Parameters
    ----------
    a, b
        (sample, element), a the reference.

    Returns
    -------
    dict
        (sample,) each: ``output_max_abs_error``, ``output_l2_relative`` (norm of the difference over that of a) and
        ``output_cosine``; NaN where a norm is 0.
    """
    if a.shape != b.shape:
        raise InputError(f"The outputs to compare have {a.shape[1]} and {b.shape[1]} elements a sample")
    error = b - a
    with np.errstate(invalid="ignore", divide="ignore"):
        norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        return {
            "output_max_abs_error": np.abs(error).max(axis=1, initial=0.0),
            "output_l2_relative": np.linalg.norm(error, axis=1) / norm_a,
            "output_cosine": (a * b).sum(axis=1) / (norm_a * norm_b),
        }


def effect_of(declared: Answers, found: Answers) -> Floats:
    """Return how far answers moved, (sample,).

    Total variation distance of the probabilities (half their summed absolute differences, 0 to 1), which is the largest
    change of the probability of any set of classes; for models without classes, the norm of the output's difference
    over that of the output.
    """
    if declared.probabilities is not None and found.probabilities is not None:
        return _size(found.probabilities - declared.probabilities, None)
    return _size(found.values - declared.values, declared.values)


def interaction_of(declared: Answers, pair: Answers, one: Answers, other: Answers) -> Floats:
    """Return what two changes do together beyond what each does alone, (sample,).

    The size, as `effect_of` measures it, of the interaction contrast of a two-by-two factorial design,
    pair - one - other + declared: 0 where the changes simply add up.
    """
    answers = (declared, pair, one, other)
    told = [a.probabilities for a in answers if a.probabilities is not None]
    plain = len(told) == len(answers)
    base, both, first, second = told if plain else [a.values for a in answers]
    return _size(both - first - second + base, None if plain else base)


def _size(change: Floats, scale: Floats | None) -> Floats:
    if scale is None:
        return np.asarray(np.abs(change).sum(axis=1) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.linalg.norm(change, axis=1) / np.linalg.norm(scale, axis=1))
