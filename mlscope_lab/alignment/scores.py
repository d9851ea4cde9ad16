"""How well each tensor of one side fits each of the other: shape, kinds, place, values, names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.distances import distances
from mlscope_lab.alignment.network import Network
from mlscope_lab.trace.kinds import COMPUTE

__all__ = ["Scores", "value_score"]

Floats = npt.NDArray[np.float32]
_Positions = npt.NDArray[np.int64]

_VALUES: Final = 8.0
_NAMES: Final = 4.0
_FLOOR: Final = 1e-6
_THRESHOLD: Final = 1.2
"""What a pair must earn before it is better than none."""
_WORDS = re.compile(r"[^0-9a-z]+")


def value_score(distance: Floats) -> Floats:
    """Return evidence from values: 0 from a distance of 1 on, `_VALUES` for equal ones, 2 at one in a thousand."""
    with np.errstate(all="ignore"):
        share = np.log10(np.clip(distance, _FLOOR, 1.0)) / np.float32(np.log10(_FLOOR))
    return np.asarray(_VALUES * np.square(share), np.float32)


@dataclass(kw_only=True)
class Scores:
    """Scores of all pairs of tensors, -inf for those of other shapes.

    Attributes
    ----------
    total
        float32[tensors of a, tensors of b].
    distance
        Of the values; inf where not known or not compatible.
    named
        Where names agree.
    """

    total: Floats
    distance: Floats
    named: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, a: Network, b: Network, *, provenance: bool, values: bool) -> Scores:
        """Compare all tensors of two networks."""
        total = np.full((len(a), len(b)), -np.inf, np.float32)
        apart = np.full((len(a), len(b)), np.inf, np.float32)
        named = np.zeros((len(a), len(b)), np.bool_)
        columns_a, columns_b = _Columns(a), _Columns(b)
        tails = _table(columns_a.tails, columns_b.tails, _tail_score)
        shapes = _table(columns_a.dims, columns_b.dims, _shape_score)
        for rows, columns in _blocks(a, b):
            grid = np.ix_(rows, columns)
            score = tails[np.ix_(columns_a.tail[rows], columns_b.tail[columns])]
            score = score + shapes[np.ix_(columns_a.dim[rows], columns_b.dim[columns])]
            score += np.where(np.equal.outer(columns_a.last[rows], columns_b.last[columns]), 0.3, -0.5)
            score -= _elsewhere(columns_a, columns_b, rows, columns)
            score -= _THRESHOLD
            if values:
                found = distances([a.tensors[i].sketch for i in rows], [b.tensors[j].sketch for j in columns])
                evidence = value_score(found)
                plain = np.logical_or.outer(columns_a.constant[rows], columns_b.constant[columns])
                evidence[plain] *= 0.15
                score += evidence
                apart[grid] = found
            total[grid] = score
        if provenance:
            named = _names(a, b, np.isfinite(total))
            total[named] += _NAMES
        return cls(total=total, distance=apart, named=named)


class _Columns:
    """What is compared of the tensors of one side, as arrays."""

    def __init__(self, network: Network) -> None:
        self.tail, self.tails = _codes(network.tails)
        self.dim, self.dims = _codes([t.dims for t in network.tensors])
        self.depth = np.array(network.depth, np.float32)
        self.height = np.array(network.height, np.float32)
        self.ancestors = np.array(network.ancestors, np.float32)
        self.last = np.array(network.last, np.bool_)
        self.constant = np.array([t.sketch is not None and t.sketch.constant for t in network.tensors], np.bool_)


def _codes(items: Sequence[Any]) -> tuple[_Positions, list[Any]]:
    known: dict[Any, int] = {}
    codes = [known.setdefault(item, len(known)) for item in items]
    return np.array(codes, np.int64), list(known)


def _table(rows: Sequence[Any], columns: Sequence[Any], score: Any) -> Floats:
    made = np.zeros((len(rows), len(columns)), np.float32)
    for i, one in enumerate(rows):
        for j, other in enumerate(columns):
            made[i, j] = score(one, other)
    return made


def _blocks(a: Network, b: Network) -> list[tuple[_Positions, _Positions]]:
    """Return positions of tensors with equally many elements of one class of type."""
    sides: list[dict[tuple[int, str], list[int]]] = []
    for network in (a, b):
        groups: dict[tuple[int, str], list[int]] = {}
        for i, tensor in enumerate(network.tensors):
            groups.setdefault((tensor.elements, tensor.kind), []).append(i)
        sides.append(groups)
    return [(np.array(rows), np.array(sides[1][key])) for key, rows in sides[0].items() if key in sides[1]]


def _elsewhere(a: _Columns, b: _Columns, rows: _Positions, columns: _Positions) -> Floats:
    """Return a penalty for another place in the network.

    It is counted from the inputs or from the outputs, whichever agrees better: where one side computes something in
    more steps, the other count is still the same.
    """
    depth = np.abs(np.subtract.outer(a.depth[rows], b.depth[columns]))
    height = np.abs(np.subtract.outer(a.height[rows], b.height[columns]))
    ancestors = np.abs(np.subtract.outer(a.ancestors[rows], b.ancestors[columns]))
    apart = np.minimum(np.minimum(depth, height), 3.0)
    steps = np.where(apart > 0, 1.5 + 0.5 * apart, 0.0)
    return np.asarray(steps + 0.3 * np.minimum(ancestors, 2.0), np.float32)


def _tail_score(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    if one == other:
        return 2.0
    same_start = one[:1] == other[:1]
    if same_start and len(one) == len(other):
        return 0.8  # one operator replaced by another
    if one[-1:] == other[-1:]:
        return 1.0 if one[-1] not in COMPUTE else 0.5
    heavy = [bool(COMPUTE & set(t)) for t in (one, other)]
    if heavy[0] != heavy[1]:
        return -3.0
    return -0.7 if same_start else -2.0


def _shape_score(one: tuple[tuple[int, ...], ...], other: tuple[tuple[int, ...], ...]) -> float:
    if one[0] == other[0]:
        return 1.0
    return 0.5 if set(one) & set(other) else -1.0


def _names(a: Network, b: Network, fits: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where a name, a scope or a source is shared by few tensors, of those that fit."""
    made = np.zeros(fits.shape, np.bool_)
    sides = [_keys(a), _keys(b)]
    for key, rows in sides[0].items():
        columns = sides[1].get(key, [])
        if columns and len(rows) <= 8 and len(columns) <= 8:
            made[np.ix_(rows, columns)] = True
    made &= fits
    return made


def _keys(network: Network) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, tensor in enumerate(network.tensors):
        names = {network.graph.values[v].name for v in tensor.members}
        if tensor.writer >= 0:
            operation = network.graph.operations[tensor.writer]
            names |= {operation.name, operation.scope, *operation.sources}
            names |= set(operation.scope.split("/")) | set(operation.name.split("/"))
        for key in {".".join(_WORDS.split(n.lower())).strip(".") for n in names}:
            if any(c.isdigit() for c in key):
                found.setdefault(key, []).append(i)
    return found
