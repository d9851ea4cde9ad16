"""Which input is which input, and which output which: by name, by values, by order."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from mlscope_lab.alignment.distances import distance
from mlscope_lab.alignment.network import Network, sample_shape

__all__ = ["paired_ends"]

_EQUAL: Final = 1e-2


def paired_ends(sides: tuple[Network, Network], kind: Literal["input", "output"], notes: list[str]) -> dict[int, int]:
    """Return partners of a's inputs or outputs, as positions of values.

    Parameters
    ----------
    sides
        The networks.
    kind
        Which end.
    notes
        Gets a note in words for each that has no partner.
    """
    ends = [dict(side.graph.inputs if kind == "input" else side.graph.outputs) for side in sides]
    found: dict[int, int] = {}
    left = [dict(ends[0]), dict(ends[1])]

    def pair(one: str, other: str) -> None:
        a, b = left[0].pop(one), left[1].pop(other)
        if a not in found and b not in found.values():
            found[a] = b

    common = [name for name in ends[0] if name in ends[1]]
    # a name that both have decides, unless values say that names were given in another order
    for name in common:
        if _fits(sides, ends[0][name], ends[1][name]) and not _contradicted(sides, ends, name):
            pair(name, name)
    for one in list(left[0]):
        equal = [
            other for other in left[1]
            if _fits(sides, left[0][one], left[1][other]) and _apart(sides, left[0][one], left[1][other]) < _EQUAL
        ]  # fmt: skip
        if len(equal) == 1:
            pair(one, equal[0])
    for one in list(left[0]):
        fitting = [other for other in left[1] if _fits(sides, left[0][one], left[1][other])]
        if fitting:
            pair(one, min(fitting, key=lambda other: not _alike(sides, left[0][one], left[1][other])))
    for letter, names in zip("ab", left, strict=True):
        notes.extend(f"The {kind} '{name}' of side {letter} has no partner of its shape" for name in names)
    return found


def _fits(sides: tuple[Network, Network], a: int, b: int) -> bool:
    return sides[0].elements(a) == sides[1].elements(b)


def _alike(sides: tuple[Network, Network], a: int, b: int) -> bool:
    """Tell whether two values have axes of the same lengths."""
    shapes = [sample_shape(s.graph.values[v].shape, s.batch) for s, v in zip(sides, (a, b), strict=True)]
    return sorted(n for n in shapes[0] if n != 1) == sorted(n for n in shapes[1] if n != 1)


def _apart(sides: tuple[Network, Network], a: int, b: int) -> float:
    one, other = sides[0].sketch(a), sides[1].sketch(b)
    return float("inf") if one is None or other is None else distance(one, other)


def _contradicted(sides: tuple[Network, Network], ends: list[dict[str, int]], name: str) -> bool:
    """Tell whether values of this name differ while those of another name are equal to them."""
    a = ends[0][name]
    own = _apart(sides, a, ends[1][name])
    if not np.isfinite(own) or own < _EQUAL:
        return False
    return any(_fits(sides, a, b) and _apart(sides, a, b) < _EQUAL for other, b in ends[1].items() if other != name)
