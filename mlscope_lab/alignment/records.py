"""What an alignment is: pairs of values, the operations that compute each, and what has no partner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError

__all__ = ["EVIDENCE", "Alignment", "Fix", "Pair", "in_layout_of"]

EVIDENCE = ("input", "output", "fixed", "provenance", "values", "structure")
"""Why a pair is one: both are inputs or outputs; a person said so; an exporter's names; equal values; types, shapes and
order."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A value of the reference and the value of the other side that should equal it.

    Attributes
    ----------
    a, b
        Positions in the two graphs' `values`.
    axes
        Order in which b's axes are a's: ``b.transpose(axes).reshape(a.shape)``; None where a reshape alone will do.
    confidence
        From 0 to 1: the share of such pairs that are right.
    evidence
        Words of `EVIDENCE`, the strongest first.
    group_a, group_b
        Positions of the operations that compute the value from those of earlier pairs, ascending: the smallest part
        of either graph that can be told apart. Several for one where a side is fused; empty for inputs.
    """

    a: int
    b: int
    axes: tuple[int, ...] | None
    confidence: float
    evidence: tuple[str, ...]
    group_a: tuple[int, ...] = ()
    group_b: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fix:
    """A pair that a person decided, by names of values; ``b=None`` says that `a` has no partner, and the reverse."""

    a: str | None
    b: str | None


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How two graphs meet.

    Attributes
    ----------
    pairs
        In the order in which the reference computes them, inputs first.
    unmatched_a, unmatched_b
        Positions of operations that compute and are in no pair's group.
    layout_a, layout_b
        Positions of operations in no group that only move values (transpose, reorder, pad, reshape, cast).
    notes
        What the user should know.
    """

    pairs: tuple[Pair, ...]
    unmatched_a: tuple[int, ...] = ()
    unmatched_b: tuple[int, ...] = ()
    layout_a: tuple[int, ...] = ()
    layout_b: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def in_layout_of(shape: tuple[int, ...], array: npt.NDArray[Any], axes: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """Return b's array in the layout of a.

    Parameters
    ----------
    shape
        Of a's value, whose first axis may be of another length (another batch).
    array
        b's value.
    axes
        As in `Pair`.

    Raises
    ------
    InputError
        If the array has another number of elements a sample.
    """
    moved = array if axes is None else array.transpose(axes)
    if moved.shape == shape:
        return moved
    try:
        return np.reshape(moved, shape)
    except ValueError:
        raise InputError(f"A value of shape {array.shape} is no value of shape {shape} in another layout") from None
