"""Divergence measures between predictions: rows of probabilities over the same classes.

They are the six that MLModelScope computed between two evaluations of one model (`database divergence`), by the
formulas of the library that it called.

References
----------
rai-project/dlframework, framework/cmd/server/database_divergence.go, features.go and stats.go (University of
Illinois/NCSA): Bhattacharyya, Hellinger, Correlation, JensenShannon, Covariance, KullbackLeibler. The last file is a
copy of functions of gonum/stat (BSD-3); logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError

__all__ = [
    "DIVERGENCES", "bhattacharyya", "correlation", "covariance", "hellinger", "jensen_shannon", "kullback_leibler",
    "prediction_divergences",
]  # fmt: skip

Array = npt.NDArray[Any]

_TOLERANCE: Final = 1e-3


def _checked(p: Any, q: Any) -> tuple[Array, Array]:
    """Return both as float64, (n, classes)."""
    one, other = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (p, q))
    if one.shape != other.shape or one.ndim != 2 or not one.shape[1]:
        raise InputError(
            f"Predictions must be two arrays of one shape (samples, classes), not {np.shape(p)} and {np.shape(q)}"
        )
    for name, x in (("first", one), ("second", other)):
        sums = x.sum(axis=1)
        bad = np.flatnonzero(~(np.abs(sums - 1) <= _TOLERANCE) | (x < 0).any(axis=1))
        if bad.size:
            raise InputError(
                f"Row {bad[0]} of the {name} predictions is no distribution: it sums to {sums[bad[0]]:.6g}, its "
                f"smallest value is {x[bad[0]].min():.6g}. Turn logits into probabilities first, say by a softmax"
            )
    return one, other


def _relative_entropy(p: Array, q: Array) -> Array:
    """Return sum p ln(p / q) of rows: terms with p = 0 are 0, and q = 0 where p is not makes Inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return np.asarray(terms.sum(axis=1), dtype=np.float64)


def bhattacharyya(p: Array, q: Array) -> Array:
    """Return the Bhattacharyya distance ``-ln sum sqrt(p q)`` of each row: 0 for equal rows, Inf for disjoint ones.

    Parameters
    ----------
    p, q
        Probabilities, (samples, classes); one row may be given as (classes,).

    Returns
    -------
    numpy.ndarray
        float64, (samples,).

    Raises
    ------
    InputError
        If the shapes differ or a row is no distribution.

    References
    ----------
    A. Bhattacharyya, "On a measure of divergence between two statistical populations defined by their probability
    distributions", Bull. Calcutta Math. Soc. 35 (1943).
    """
    one, other = _checked(p, q)
    coefficient, square = _coefficient(one, other), _squared_hellinger(one, other)
    with np.errstate(divide="ignore"):
        # 1 - sum sqrt(p q) is the squared Hellinger distance, which loses nothing where both are nearly equal
        found = np.where(coefficient < 0.5, -np.log(coefficient), -np.log1p(-np.minimum(square, 0.75)))
    return np.asarray(found, dtype=np.float64)


def _coefficient(p: Array, q: Array) -> Array:
    """Return sum sqrt(p q) of rows, each taken to sum to 1 exactly."""
    one, other = (np.sqrt(x / x.sum(axis=1, keepdims=True)) for x in (p, q))
    return np.asarray(np.vecdot(one, other), dtype=np.float64)


def _squared_hellinger(p: Array, q: Array) -> Array:
    """Return 1 - sum sqrt(p q) of rows by half the squared distance of their roots, which is the same."""
    one, other = (np.sqrt(x / x.sum(axis=1, keepdims=True)) for x in (p, q))
    return np.asarray(np.minimum(np.sum((one - other) ** 2, axis=1) / 2, 1.0), dtype=np.float64)


def hellinger(p: Array, q: Array) -> Array:
    """Return the Hellinger distance ``sqrt(1 - sum sqrt(p q))`` of each row, from 0 to 1.

    Parameters, result and errors are those of `bhattacharyya`.

    References
    ----------
    E. Hellinger, "Neue Begruendung der Theorie quadratischer Formen von unendlichvielen Veraenderlichen", J. reine
    angew. Math. 136 (1909).
    """
    return np.asarray(np.sqrt(_squared_hellinger(*_checked(p, q))), dtype=np.float64)


def jensen_shannon(p: Array, q: Array) -> Array:
    """Return the Jensen-Shannon divergence ``(KL(p||m) + KL(q||m)) / 2``, ``m = (p + q) / 2``, in nats: at most ln 2.

    Parameters, result and errors are those of `bhattacharyya`.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37 (1991).
    """
    one, other = _checked(p, q)
    middle = (one + other) / 2
    return np.maximum((_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2, 0.0)


def kullback_leibler(p: Array, q: Array) -> Array:
    """Return the Kullback-Leibler divergence ``sum p ln(p / q)`` in nats; Inf where q lacks a class that p has.

    Parameters, result and errors are those of `bhattacharyya`.

    References
    ----------
    S. Kullback, R. A. Leibler, "On information and sufficiency", Ann. Math. Stat. 22 (1951).
    """
    return _relative_entropy(*_checked(p, q))


def correlation(p: Array, q: Array) -> Array:
    """Return Pearson's correlation of each row over its classes, from -1 to 1; NaN where a row is uniform.

    Parameters, result and errors are those of `bhattacharyya`.
    """
    one, other = (x - x.mean(axis=1, keepdims=True) for x in _checked(p, q))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.vecdot(one, other) / np.sqrt(np.vecdot(one, one) * np.vecdot(other, other))
    return np.asarray(np.clip(found, -1.0, 1.0), dtype=np.float64)


def covariance(p: Array, q: Array) -> Array:
    """Return the sample covariance of each row over its classes, ``sum (p - mean p)(q - mean q) / (classes - 1)``.

    Parameters, result and errors are those of `bhattacharyya`; NaN for a single class.
    """
    one, other = (x - x.mean(axis=1, keepdims=True) for x in _checked(p, q))
    classes = one.shape[1]
    total = np.vecdot(one, other)
    return np.asarray(total / (classes - 1) if classes > 1 else np.full_like(total, np.nan), dtype=np.float64)


DIVERGENCES: Final[Mapping[str, Callable[[Array, Array], Array]]] = MappingProxyType({
    "bhattacharyya": bhattacharyya, "hellinger": hellinger, "correlation": correlation,
    "jensen_shannon": jensen_shannon, "covariance": covariance, "kullback_leibler": kullback_leibler,
})  # fmt: skip
"""The six measures by name."""


def prediction_divergences(p: Array, q: Array) -> dict[str, Array]:
    """Return all six measures of each row by name, as in `DIVERGENCES`.

    Parameters, results and errors are those of `bhattacharyya`.

    Examples
    --------
    >>> found = prediction_divergences([0.5, 0.5], [0.9, 0.1])
    >>> {name: round(float(values[0]), 3) for name, values in found.items() if name != "correlation"}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'bhattacharyya': 0.112, 'hellinger': 0.325, 'jensen_shannon': 0.102, 'covariance': 0.0,
     'kullback_leibler': 0.511}
    """
    return {name: measure(p, q) for name, measure in DIVERGENCES.items()}
