"""Aligning two graphs: which value of one is which of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mlscope_lab.alignment.axes import Axes
from mlscope_lab.alignment.completion import behind_detours
from mlscope_lab.alignment.confidence import confidences
from mlscope_lab.alignment.doubts import without_doubtful
from mlscope_lab.alignment.ends import paired_ends
from mlscope_lab.alignment.groups import groups_of, is_layout
from mlscope_lab.alignment.matching import match
from mlscope_lab.alignment.network import Network, nearest_matched, sample_shape
from mlscope_lab.alignment.records import Alignment, Fix, Pair
from mlscope_lab.alignment.scores import Scores
from mlscope_lab.alignment.sketch import ValueSketch
from mlscope_lab.errors import InputError, nearest
from mlscope_lab.trace.graph import Graph

__all__ = ["align"]

_EQUAL: Final = 1e-3
_UNSCORED: Final = 0.5


def align(
    a: Graph,
    b: Graph,
    sketches_a: Mapping[int, ValueSketch],
    sketches_b: Mapping[int, ValueSketch],
    *,
    batch_a: int = 1,
    batch_b: int = 1,
    fixes: Sequence[Fix] = (),
    provenance: bool = True,
    values: bool = True,
) -> Alignment:
    """Pair the values of two graphs.

    Parameters
    ----------
    a, b
        The reference, and the other side; recorded on the same input.
    sketches_a, sketches_b
        Of the values of one sample, by position; those that are missing are paired by structure alone.
    batch_a, batch_b
        Samples in the runs: a first axis of this length is the batch.
    fixes
        Pairs that a person decided; they win over everything else.
    provenance
        Also use names and scopes.
    values
        Also use sketches.

    Returns
    -------
    Alignment
        Inputs first, then in the order in which the reference computes the values. Without a common layer only inputs
        and outputs are paired, and a note says so.

    Raises
    ------
    InputError
        If a fix names a value that does not exist, names one twice, or pairs values of different sizes.

    Notes
    -----
    A value and its transposed, reshaped and copied forms count as one tensor, whose first form is paired. Tensors are
    matched by dynamic programming along an order that frameworks share (`mlscope_lab.alignment.order`), by a score of
    shape, kinds of operators, place in the network, values and names; neighbours that are paired then support each
    other in further rounds.
    """
    sides = (Network(a, sketches_a if values else {}, batch_a), Network(b, sketches_b if values else {}, batch_b))
    scores = Scores.of(*sides, provenance=provenance, values=values)
    fixed, excluded = _fixed(a, b, fixes, sides)
    notes: list[str] = []
    pairs = dict(fixed)
    kinds = dict.fromkeys(fixed, "fixed")
    for kind in ("input", "output"):
        taken = set(pairs.values())
        for one, other in paired_ends(sides, kind, notes).items():
            if one not in pairs and other not in taken and one not in excluded[0] and other not in excluded[1]:
                pairs[one], kinds[one] = other, kind
    forced: dict[int, int] = {}
    for one, other in pairs.items():
        i, j = sides[0].of.get(one), sides[1].of.get(other)
        if i is not None and j is not None and i not in forced and j not in forced.values():
            forced[i] = j
    alone = [{side.of[v] for v in out if v in side.of} for side, out in zip(sides, excluded, strict=True)]
    for side, out, given in zip(sides, alone, (set(forced), set(forced.values())), strict=True):
        # what only moves values, such as a padding, has no partner: the other side may do it elsewhere or not at all
        out |= {i for i, t in enumerate(side.tensors) if t.writer >= 0 and is_layout(side.graph, t.writer)} - given
    matched = match(*sides, scores, forced, (alone[0], alone[1]))
    matched = without_doubtful(*sides, scores, matched, forced)
    for i, j in list(matched.items()):
        if i not in forced:
            matched[i] = behind_detours(sides[1], j, set(matched.values()))
            k = behind_detours(sides[0], i, matched)
            if k != i:
                matched[k] = matched.pop(i)
    sure = confidences(*sides, scores, matched)
    decided = {sides[0].of.get(one) for one in pairs}, {sides[1].of.get(other) for other in pairs.values()}
    for i, j in matched.items():
        if i not in decided[0] and j not in decided[1]:
            pairs[sides[0].tensors[i].root] = sides[1].tensors[j].root
    return _alignment(sides, scores, pairs, kinds, sure, notes)


def _alignment(
    sides: tuple[Network, Network],
    scores: Scores,
    pairs: Mapping[int, int],
    kinds: Mapping[int, str],
    sure: Mapping[int, float],
    notes: list[str],
) -> Alignment:
    """Return pairs of values with their axes, evidence and groups, and what is left."""
    a, b = sides[0].graph, sides[1].graph
    writers = a.writers()
    ordered = sorted(pairs, key=lambda value: (writers.get(value, -1), value))
    groups = groups_of(a, ordered), groups_of(b, [pairs[one] for one in ordered])
    orders = _orders(sides, scores, pairs, ordered)
    made = []
    for one, other, group_a, group_b in zip(ordered, (pairs[one] for one in ordered), *groups, strict=True):
        i, j = sides[0].of.get(one), sides[1].of.get(other)
        evidence = [kinds[one]] if one in kinds else []
        if i is not None and j is not None:
            evidence += ["provenance"] if scores.named[i, j] else []
            evidence += ["values"] if scores.distance[i, j] < _EQUAL else []
        confidence = 1.0 if kinds.get(one) == "fixed" else sure.get(i, _UNSCORED) if i is not None else _UNSCORED
        made.append(
            Pair(
                a=one, b=other, confidence=confidence, evidence=tuple(evidence) or ("structure",), group_a=group_a,
                group_b=group_b, axes=orders[one],
            )
        )  # fmt: skip
    left = []
    for graph, grouped in zip((a, b), groups, strict=True):
        used = {operation for group in grouped for operation in group}
        rest = [i for i in range(len(graph.operations)) if i not in used]
        moving = tuple(i for i in rest if is_layout(graph, i))
        left.append((tuple(i for i in rest if i not in set(moving)), moving))
    if not any(pair.group_a and pair.group_b and "output" not in pair.evidence for pair in made):
        notes.append(
            "No layer of one side was found on the other: nothing between inputs and outputs has the same shape, kind "
            "and place in both"
        )
    return Alignment(
        pairs=tuple(made), unmatched_a=left[0][0], unmatched_b=left[1][0], layout_a=left[0][1], layout_b=left[1][1],
        notes=tuple(notes),
    )  # fmt: skip


def _orders(
    sides: tuple[Network, Network], scores: Scores, pairs: Mapping[int, int], ordered: Sequence[int]
) -> dict[int, tuple[int, ...] | None]:
    """Return the order of axes of each pair, by a's value; None where it is b's own."""
    a, b = sides
    partner: dict[int, tuple[int, int]] = {}
    for one in ordered:
        if one in a.of and pairs[one] in b.of:
            partner.setdefault(a.of[one], (a.of[one], b.of[pairs[one]]))
    unequal = [False] * len(a)
    for i in reversed(range(len(a))):
        unequal[i] = any(
            unequal[r] or (r in partner and _EQUAL < scores.distance[partner[r]] < np.inf) for r in a.readers[i]
        )
    before = nearest_matched(a.reads, range(len(a)), set(partner))
    axes, found = Axes(), {}
    by_tensor: dict[int, tuple[int, ...]] = {}
    for one in ordered:
        other, i = pairs[one], a.of.get(one, -1)
        order = axes.between(
            *_shapes(sides, one, other), a.sketch(one), b.sketch(other),
            before=[by_tensor[r] for r in sorted(before[i]) if r in by_tensor] if i >= 0 else (),
            heals=i < 0 or not unequal[i],
        )  # fmt: skip
        if i >= 0 and a.tensors[i].writer >= 0:
            by_tensor.setdefault(i, order)
        found[one] = None if order == tuple(range(len(order))) else order
    return found


def _shapes(sides: tuple[Network, Network], one: int, other: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shapes = [sample_shape(side.graph.values[v].shape, side.batch) for side, v in zip(sides, (one, other), strict=True)]
    return shapes[0], shapes[1]


def _fixed(
    a: Graph, b: Graph, fixes: Sequence[Fix], sides: tuple[Network, Network]
) -> tuple[dict[int, int], tuple[set[int], set[int]]]:
    """Return pairs and exclusions that a person decided, as positions of values."""
    named = [{value.name: i for i, value in enumerate(graph.values)} for graph in (a, b)]
    pairs: dict[int, int] = {}
    excluded: tuple[set[int], set[int]] = (set(), set())
    seen: tuple[set[int], set[int]] = (set(), set())
    for fix in fixes:
        found = []
        for letter, name, known, used in zip("ab", (fix.a, fix.b), named, seen, strict=True):
            if name is None:
                continue
            if name not in known:
                raise InputError(
                    f"A fix names '{name}', which is no value of side {letter}.{nearest(name, list(known))}"
                )
            if known[name] in used:
                raise InputError(f"Two fixes name '{name}' of side {letter}; keep one")
            used.add(known[name])
            found.append(known[name])
        if fix.a is None and fix.b is None:
            raise InputError("A fix names no value; give a, b or both")
        if fix.a is not None and fix.b is not None:
            sizes = [side.elements(v) for side, v in zip(sides, found, strict=True)]
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"A fix pairs '{fix.a}' with '{fix.b}', which have {sizes[0]} and {sizes[1]} elements a sample"
                )
            pairs[found[0]] = found[1]
        else:
            excluded[0 if fix.b is None else 1].add(found[0])
    return pairs, excluded
