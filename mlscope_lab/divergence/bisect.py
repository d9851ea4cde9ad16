"""Which groups of operations must stay as the reference has them, for the answer to hold: bisection over hybrids.

A hybrid runs some groups of operations on side a and the others on side b, handing values across in either one's layout
and type. With a in float32 and b in float16 this names the layers that must stay in float32; with any two sides that
align, the layers that make the difference.

References
----------
A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.records import in_layout_of
from mlscope_lab.config import Settings, load_settings
from mlscope_lab.divergence.shadow import boundary, dequantized, handed_over, replay_pair
from mlscope_lab.divergence.sides import open_side, side_of
from mlscope_lab.divergence.work import Options, Work
from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.progress import Reporter, reporter

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Hybrid", "bisect_precision", "minimal_set", "singles"]

Array = npt.NDArray[Any]
Test = Callable[[frozenset[int]], bool]


class Hybrid:
    """Runs a model with some groups on side a and the rest on side b.

    Parameters
    ----------
    work
        A comparison whose sides ran once; both must be able to run single operations again.

    Raises
    ------
    SessionError
        If a side cannot run single operations again.
    InputError
        If a group reads a value that has no partner, so that it cannot be exchanged.
    """

    def __init__(self, work: Work) -> None:
        if work.captures is None or work.alignment is None:
            raise SessionError("Nothing was compared yet")
        for letter, stepper, side in zip("ab", work.steppers, (work.a, work.b), strict=True):
            if not stepper.can_replay:
                raise SessionError(
                    f"Side {letter} ({side.label}) cannot run single operations again, so no hybrid runs"
                )
        self._captures, self._steppers, self._alignment = work.captures, work.steppers, work.alignment
        self._of = [{getattr(pair, letter): i for i, pair in enumerate(work.alignment.pairs)} for letter in "ab"]
        self.groups = [i for i, pair in enumerate(work.alignment.pairs) if pair.group_a and pair.group_b]
        self._reads: list[tuple[list[int], list[int]]] = []
        for pair in work.alignment.pairs:
            reads = boundary(work.captures[0], pair.group_a), boundary(work.captures[1], pair.group_b)
            for index, values in enumerate(reads):
                for value in values:
                    if value not in self._of[index]:
                        name = work.captures[index].graph.values[value].name
                        raise InputError(
                            f"'{name}' of side {'ab'[index]} is read across groups and has no partner; fix the pair "
                            "(fixes=) to bisect here"
                        )
            self._reads.append(reads)
        graph = work.captures[0].graph
        self.outputs = {name: self._of[0][value] for name, value in graph.outputs.items() if value in self._of[0]}
        if not self.outputs:
            raise InputError("No output of the reference has a partner, so that there is no answer to hold")

    def run(self, on_a: frozenset[int]) -> dict[str, Array]:
        """Return the outputs with the given groups (positions of pairs) on side a and all others on side b.

        Returns
        -------
        dict
            Arrays by the reference's output names, in its layout.
        """
        values: dict[int, Array] = {}
        last = {p: i for i, (ra, rb) in enumerate(self._reads)
                for p in [*(self._of[0][v] for v in ra), *(self._of[1][v] for v in rb)]}  # fmt: skip
        kept = set(self.outputs.values())
        with np.errstate(all="ignore"):
            for position, pair in enumerate(self._alignment.pairs):
                if not pair.group_a and not pair.group_b:
                    values[position] = dequantized(
                        self._captures[0].spool.read(pair.a), self._captures[0].graph.values[pair.a]
                    )
                else:
                    values[position] = self._group(position, values, on_a=position in on_a or not pair.group_b)
                for known in [k for k in values if last.get(k, -1) <= position and k not in kept and k != position]:
                    del values[known]
        return {name: values[position] for name, position in self.outputs.items()}

    def _group(self, position: int, values: Mapping[int, Array], *, on_a: bool) -> Array:
        pair, (a, b) = self._alignment.pairs[position], self._captures
        if on_a and pair.group_a:
            given = {}
            for v in self._reads[position][0]:
                here = replace(self._alignment.pairs[self._of[0][v]], axes=None)
                given[v] = handed_over(values[self._of[0][v]], here, a.graph.values[v], a.spool.dtype(v))
            return dequantized(self._steppers[0].replay(pair.group_a, given, [pair.a])[pair.a], a.graph.values[pair.a])
        given = {}
        for v in self._reads[position][1]:
            partner = self._alignment.pairs[self._of[1][v]]
            given[v] = handed_over(values[self._of[1][v]], partner, b.graph.values[v], b.spool.dtype(v))
        result = dequantized(replay_pair(self._steppers[1], pair, given), b.graph.values[pair.b])
        return in_layout_of(a.graph.values[pair.a].shape, result, pair.axes)


def minimal_set(candidates: Sequence[int], holds: Test) -> frozenset[int]:
    """Return a smallest set in the sense that none of its members can be left out: ddmin.

    Parameters
    ----------
    candidates
        What may be in it; with all of them `holds` is true.
    holds
        Tells whether a set is enough.
    """
    current, pieces = list(candidates), 2
    if holds(frozenset()):
        return frozenset()
    while len(current) >= 2:
        size = -(-len(current) // pieces)
        parts = [current[i : i + size] for i in range(0, len(current), size)]
        for part in parts:
            if holds(frozenset(part)):
                current, pieces = part, 2
                break
        else:
            for part in parts:
                rest = [c for c in current if c not in part]
                if rest and len(parts) > 2 and holds(frozenset(rest)):
                    current, pieces = rest, max(pieces - 1, 2)
                    break
            else:
                if pieces >= len(current):
                    break
                pieces = min(2 * pieces, len(current))
    return frozenset(current)


def singles(candidates: Sequence[int], holds: Test) -> frozenset[int]:
    """Return those candidates without which, all others staying, the set is not enough: one test each."""
    return frozenset(c for c in candidates if not holds(frozenset(candidates) - {c}))


def bisect_precision(
    a: Any,
    b: Any,
    input: Any,  # noqa: A002 - the word that every caller expects
    *,
    model: Any = None,
    limit: float = 0.01,
    method: Literal["binary", "linear"] = "binary",
    calibration: Sequence[Any] | None = None,
    settings: Settings | None = None,
    progress: bool | Reporter | None = None,
) -> xr.Dataset:
    """Find the layers that must stay as side a has them, so that the answer of side b holds.

    Parameters
    ----------
    a, b
        The reference, such as ``{"precision": "float32"}``, and the other side, such as ``{"precision": "float16"}``.
    input
        One sample.
    model
        What both sides share.
    limit
        An answer holds if each output is finite wherever the reference's is, and differs from it by at most this,
        relative L2.
    method
        "binary": a set of which no member can be left out, with few runs (ddmin). "linear": each group alone on b,
        which shows every group that breaks the answer by itself.
    calibration
        As for `compare`.
    settings, progress
        As for `compare`.

    Returns
    -------
    xarray.Dataset
        Along ``group``: ``operations`` and ``types`` (of b), ``scope``, ``must_stay`` (bool), ``error`` (relative L2 of
        the outputs with this group alone on b; NaN where it was not tried alone). Attributes: ``error_all`` (every
        group on b), ``error_result`` (those that must stay on a, the others on b), ``runs``, ``holds``, ``verdict``.

    Raises
    ------
    InputError
        If the sides do not align well enough to exchange groups.
    SessionError
        If a side cannot run single operations again.
    """
    import xarray as xr

    if method not in {"binary", "linear"}:
        raise InputError(f"method must be 'binary' or 'linear', not {method!r}")
    resolved = settings or load_settings()
    sides = side_of(a, model=model), side_of(b, model=model)
    with reporter(progress, total=1, title="bisect") as line, ExitStack() as stack:
        opened = [stack.enter_context(open_side(s, settings=resolved, example=input, calibration=calibration,
                                                reporter=line)) for s in sides]  # fmt: skip
        work = stack.enter_context(Work(opened[0], opened[1], Options(calibrate=(), shadow=False)))
        work.add("input", input, 1)
        hybrid = Hybrid(work)
        reference = hybrid.run(frozenset(hybrid.groups))
        errors: dict[frozenset[int], float] = {}

        def error(on_a: frozenset[int]) -> float:
            if on_a not in errors:
                line.stage(f"{len(errors) + 1} hybrids, {len(on_a)} of {len(hybrid.groups)} groups on side a")
                errors[on_a] = _distance(reference, hybrid.run(on_a))
            return errors[on_a]

        def holds(on_a: frozenset[int]) -> bool:
            return error(on_a) <= limit

        everything = frozenset(hybrid.groups)
        find = minimal_set if method == "binary" else singles
        stay = find(hybrid.groups, holds)
        pairs = work.alignment.pairs if work.alignment is not None else ()
        graph = work.captures[1].graph if work.captures is not None else None
        names = [";".join(graph.operations[i].name for i in pairs[g].group_b) if graph else "" for g in hybrid.groups]
        types = [";".join(graph.operations[i].type for i in pairs[g].group_b) if graph else "" for g in hybrid.groups]
        scopes = [next((graph.operations[i].scope for i in pairs[g].group_b if graph.operations[i].scope), "")
                  if graph else "" for g in hybrid.groups]  # fmt: skip
        alone = [errors.get(everything - {g}, np.nan) for g in hybrid.groups]
        final, all_on_b = error(stay), error(frozenset())
    data = xr.Dataset(
        {
            "operations": ("group", np.array(names, dtype=object)),
            "types": ("group", np.array(types, dtype=object)),
            "scope": ("group", np.array(scopes, dtype=object)),
            "must_stay": ("group", np.array([g in stay for g in hybrid.groups])),
            "error": ("group", np.array(alone, dtype=np.float64)),
        }
    )
    for name, variable in data.variables.items():
        variable.attrs.update(units="1", long_name=str(name).replace("_", " "))
    named = ", ".join(n for n, g in zip(names, hybrid.groups, strict=True) if g in stay)
    ok = final <= limit
    data.attrs.update(
        limit=limit, method=method, error_all=all_on_b, error_result=final, runs=len(errors), holds=bool(ok),
        side_a=opened[0].label, side_b=opened[1].label,
        verdict=_verdict(named, len(stay), len(hybrid.groups), ok=ok, all_hold=not stay),
    )  # fmt: skip
    return data


def _verdict(named: str, count: int, total: int, *, ok: bool, all_hold: bool) -> str:
    if all_hold and ok:
        return f"All {total} groups can run on side b: the answer holds."
    if not ok:
        return f"Keeping {count} of {total} groups on side a is not enough ({named or 'none breaks the answer alone'})."
    return f"{count} of {total} groups must stay on side a for the answer to hold: {named}."


def _distance(reference: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return the largest relative L2 difference of any output; inf where one is not finite and the reference is."""
    worst = 0.0
    with np.errstate(all="ignore"):
        for name, array in reference.items():
            one, two = array.astype(np.float64), other[name].astype(np.float64)
            same = (one == two) | (np.isnan(one) & np.isnan(two))
            difference = np.where(same, 0.0, two - one)
            if not np.isfinite(difference).all():
                return float("inf")
            scale = float(np.linalg.norm(one[np.isfinite(one)]))
            size = float(np.linalg.norm(difference))
            worst = max(worst, size / scale if scale else (0.0 if not size else float("inf")))
    return worst
