"""Which change of the preprocessing explains an answer that somebody saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.divergence.answering import Answers
from mlscope_lab.errors import InputError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCORE_TOLERANCE", "Observation", "Observed", "named_cause"]

Floats = npt.NDArray[np.float64]

SCORE_TOLERANCE = 0.01
"""How far a probability, or a vector of them in total variation, may be from the one seen and still explain it: people
read two or three digits off a screen."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What somebody saw of one sample.

    Attributes
    ----------
    index
        The best class.
    score
        Its probability, or None.
    scores
        (class,) probabilities of all classes, or None.
    """

    index: int
    score: float | None = None
    scores: Floats | None = None

    def fit(self, probabilities: Floats) -> tuple[bool, float]:
        """Return whether an answer (class,) explains this, and how well: 0 to 1, higher is better.

        With a class alone it is the probability of that class; with its probability, or all of them, 1 less the
        distance (of a vector: total variation).
        """
        found = int(probabilities.argmax()) == self.index
        if self.scores is not None:
            if self.scores.shape != probabilities.shape:
                raise InputError(f"observed has {self.scores.size} scores, the model {probabilities.size} classes")
            distance = float(np.abs(self.scores - probabilities).sum() / 2)
        elif self.score is not None:
            distance = abs(self.score - float(probabilities[self.index]))
        else:
            return found, float(probabilities[self.index])
        return found and distance <= SCORE_TOLERANCE, 1 - distance


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What somebody saw of each sample."""

    each: tuple[Observation, ...]

    @classmethod
    def of(cls, given: Any, labels: Sequence[str] | None, count: int) -> Observed | None:
        """Return what a caller means by ``observed``.

        Raises
        ------
        InputError
            If it is no class, label, pair or vector of scores, or of another number of samples.
        """
        if given is None:
            return None
        if count > 1:
            if not isinstance(given, list | tuple) or len(given) != count:
                raise InputError(f"observed must be a list with one answer for each of the {count} samples")
            return cls(each=tuple(_one(item, labels) for item in given))
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        return cls(each=(_one(given, labels),))

    def describe(self, labels: Sequence[str] | None) -> str:
        """Return it in words."""
        if len(self.each) > 1:
            return f"the answers to {len(self.each)} samples"
        seen = self.each[0]
        name = f"{seen.index} ({labels[seen.index]})" if labels is not None else str(seen.index)
        return name if seen.score is None else f"{name} with {seen.score:.3g}"

    def fits(self, answers: Answers, positions: Sequence[int]) -> tuple[list[bool], list[float]]:
        """Return whether, and how well, answers explain what was seen of the samples at these positions."""
        if answers.probabilities is None:
            raise InputError("observed explains answers of models that tell classes; this one does not")
        found = [self.each[p].fit(row) for p, row in zip(positions, answers.probabilities, strict=True)]
        return [hit for hit, _ in found], [fit for _, fit in found]


def _one(given: Any, labels: Sequence[str] | None) -> Observation:
    if isinstance(given, str):
        return Observation(index=_class(given, labels))
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return Observation(index=_class(int(given), labels))
    if isinstance(given, tuple) and len(given) == 2:
        index, score = given
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError(f"the probability in observed must lie between 0 and 1, not {score!r}")
        return Observation(index=_class(index, labels), score=float(score))
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.empty(0)
    if scores.ndim != 1 or scores.size < 2 or not np.isfinite(scores).all():
        raise InputError("observed must be a class, a label, (class, probability) or a vector of scores")
    if (scores < 0).any() or abs(scores.sum() - 1) > 1e-2:
        powers = np.exp(scores - scores.max())
        scores = powers / powers.sum()
    return Observation(index=int(scores.argmax()), scores=scores)


def _class(given: Any, labels: Sequence[str] | None) -> int:
    if isinstance(given, str):
        if labels is not None and given in labels:
            return list(labels).index(given)
        if given.isdecimal():
            return _class(int(given), labels)
        known = list(labels or ())
        raise InputError(f"The model has no label '{given}'.{nearest(given, known)}")
    if not isinstance(given, int | np.integer) or given < 0 or (labels is not None and given >= len(labels)):
        raise InputError(f"observed must name a class of the model, not {given!r}")
    return int(given)


def named_cause(data: xr.Dataset, observed: Observed, labels: Sequence[str] | None, declared: bool) -> dict[str, Any]:
    """Return attributes that name the cause of an observed answer.

    Variations that explain all samples come before those that explain some; of these, single ones before pairs (the
    simpler explanation), then by fit.

    Parameters
    ----------
    data
        Along ``variation``: ``name``, ``axes``, ``explains`` (share of samples), ``fit`` (mean) and
        ``explanation_rank``.
    observed, labels
        What was seen, and the names of classes.
    declared
        Whether the declared steps explain it already.

    Returns
    -------
    dict
        ``cause`` (name of the best variation, "" where none explains all samples), ``cause_axes``, ``cause_sentence``,
        and ``cause_tied``: names of the other variations, equally simple, that the observation cannot rule out.
    """
    what = observed.describe(labels)
    if declared:
        return {"cause": "", "cause_axes": [], "cause_tied": [],
                "cause_sentence": f"The declared steps give {what} already; there is nothing to explain."}  # fmt: skip
    order = np.argsort(data["explanation_rank"].values)
    names, axes = data["name"].values, data["axes"].values
    explains, fit, parts = data["explains"].values, data["fit"].values, data["size"].values
    best = int(order[0]) if len(order) else -1
    if best < 0 or explains[best] < 1:
        near = (
            f" The nearest is {names[best]} ({explains[best]:.0%} of the samples, fit {fit[best]:.3f})."
            if best >= 0
            else ""
        )
        return {"cause": "", "cause_axes": [], "cause_tied": [],
                "cause_sentence": f"No variation that was tried gives {what}.{near}"}  # fmt: skip
    tied = [int(i) for i in order if explains[i] == 1 and parts[i] == parts[best] and i != best]
    sentence = f"{names[best]} gives {what}, fit {fit[best]:.3f}"
    if tied:
        same_axis = [i for i in tied if axes[i] == axes[best]]
        others = ", ".join(f"{names[i]} ({fit[i]:.3f})" for i in tied[:4])
        more = f" and {len(tied) - 4} more" if len(tied) > 4 else ""
        sentence += f"; so {'does' if len(tied) == 1 else 'do'} {others}{more}"
        if len(same_axis) == len(tied):
            sentence += f". All are changes of the {axes[best]}"
    return {"cause": str(names[best]), "cause_axes": str(axes[best]).split(" + "),
            "cause_tied": [str(names[i]) for i in tied], "cause_sentence": sentence + "."}  # fmt: skip
