"""Events that come in two: a begin and its end, the parts of a flow."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema
from mlscope_lab.trace.attribution import enclosing, launches
from mlscope_lab.trace.importers.chrome_columns import Table

__all__ = ["flow_links", "paired"]

_Columns = dict[str, npt.NDArray[Any]]
_START, _STEP, _FINISH = 0, 1, 2
_SLICE = 1 << 16
_KINDS = {"ac2g": "launch", "async_cpu_to_gpu": "launch", "fwdbwd": "forward_backward",
          "forward_backward": "forward_backward"}  # fmt: skip


def paired(table: Table) -> tuple[_Columns, int]:
    """Pair begins with ends, on each thread the last begin with the next end.

    Parameters
    ----------
    table
        Begins and ends: ``track``, ``start_ns``, ``opens``, ``name_code``, ``category_code``.

    Returns
    -------
    columns
        Events with ``duration_ns``, in the order of their begins.
    unfinished
        Begins without an end and ends without a begin.
    """
    columns = {name: table.take(name) for name in ("track", "start_ns", "opens", "name_code", "category_code")}
    order = np.lexsort((columns["start_ns"], columns["track"]))  # stable: what happens at one time stays in its order
    begins, ends = array("q"), array("q")
    unfinished, stack, at = 0, list[int](), -1
    for slice_ in np.array_split(order, 1 + len(order) // _SLICE):  # Python's integers take five times the room
        tracks, opens = columns["track"][slice_].tolist(), columns["opens"][slice_].tolist()
        for row, track, opening in zip(slice_.tolist(), tracks, opens, strict=True):
            if track != at:
                unfinished += len(stack)
                stack.clear()
                at = track
            if opening:
                stack.append(row)
            elif stack:
                begins.append(stack.pop())
                ends.append(row)
            else:
                unfinished += 1
    unfinished += len(stack)
    in_file = np.argsort(np.array(begins))
    first, last = np.array(begins)[in_file], np.array(ends)[in_file]
    result = {name: columns[name][first] for name in ("track", "start_ns", "name_code", "category_code")}
    result["duration_ns"] = columns["start_ns"][last] - result["start_ns"]
    return result, unfinished


def flow_links(
    table: Table, categories: Sequence[str], groups: Mapping[str, _Columns]
) -> tuple[_Columns, tuple[str, ...], int]:
    """Turn flow events into links between the events that they are bound to.

    Parameters
    ----------
    table
        Flow events: ``track``, ``start_ns``, ``phase``, ``identity``, ``category_code``.
    categories
        Texts of the category codes.
    groups
        Columns of the groups that links refer to.

    Returns
    -------
    columns
        ``kind_code``, ``source_index``, ``target_index``.
    kinds
        Texts of ``kind_code``.
    single
        Flow events without a counterpart.
    """
    flows = {name: table.take(name) for name in ("track", "start_ns", "phase", "identity", "category_code")}
    source, target = _neighbours(flows)
    alone = np.ones(len(flows["phase"]), dtype=np.bool_)
    alone[source] = alone[target] = False
    kinds = tuple(schema.LINK_KINDS)
    kind_of = np.array([kinds.index(_KINDS.get(c, "flow")) for c in categories] or [0], dtype=np.int32)
    kind = kind_of[flows["category_code"][source].astype(np.int64)]
    found: _Columns = {
        "kind_code": kind,
        "source_index": np.full(len(source), -1, dtype=np.int32),
        "target_index": np.full(len(source), -1, dtype=np.int32),
    }
    for code, name in enumerate(kinds):
        mine = kind == code
        for end, rows, group in zip(("source_index", "target_index"), (source, target), schema.LINK_KINDS[name],
                                    strict=True):  # fmt: skip
            found[end][mine] = _bound(flows, rows[mine], groups[group], by_correlation=name == "launch")
    return found, kinds, int(alone.sum())


def _neighbours(flows: _Columns) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the rows that follow each other in a flow.

    A flow is what has one category and identifier, in order of time; an identifier may be used again afterwards.
    """
    order = np.lexsort((flows["phase"], flows["start_ns"], flows["identity"], flows["category_code"]))
    if len(order) < 2:
        return order[:0], order[:0]
    identity, category, phase = (flows[name][order] for name in ("identity", "category_code", "phase"))
    same = (identity[1:] == identity[:-1]) & (category[1:] == category[:-1])
    forward = same & (phase[:-1] != _FINISH) & (phase[1:] != _START)
    # two clocks may disagree by so much that a kernel seems to start before its launch
    alone = np.ones(len(order) + 1, dtype=np.bool_)
    alone[1:-1] = ~same
    backward = same & (phase[:-1] == _FINISH) & (phase[1:] == _START) & alone[:-2] & alone[2:]
    first, second = np.flatnonzero(forward), np.flatnonzero(backward)
    source = np.concatenate([order[first], order[second + 1]])
    target = np.concatenate([order[first + 1], order[second]])
    in_file = np.argsort(source, kind="stable")
    return source[in_file], target[in_file]


def _bound(
    flows: _Columns, rows: npt.NDArray[np.intp], group: _Columns, *, by_correlation: bool
) -> npt.NDArray[np.int32]:
    """Return the events that flow events are bound to: what runs then and there."""
    when, track = flows["start_ns"][rows], flows["track"][rows]
    found = np.full(len(rows), -1, dtype=np.int32)
    told = found
    if by_correlation and "correlation" in group and len(rows):
        # Kineto's flows carry the correlation: no search is needed, unless several events have one
        told = launches(flows["identity"][rows], group["correlation"])
        start = group["start_ns"][told]
        there = (told >= 0) & (group["track"][told] == track)
        found[there] = np.where((start <= when) & (when <= start + group["duration_ns"][told]), told, -1)[there]
    rest = found < 0
    if rest.any():
        found[rest] = enclosing(when[rest], track[rest], group["start_ns"], group["duration_ns"], group["track"])
    return np.where(found < 0, told, found).astype(np.int32)
