"""Intervals of time: unions, overlaps and what events leave to the events that they enclose.

Everything is int64 nanoseconds and vectorised: sort once, then `numpy.maximum.accumulate`. Nothing here knows about
runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ancestors_with", "exclusive_ns", "intersection_ns", "merge", "sum_by_group", "union_by_group", "union_ns"]

Ints = npt.NDArray[np.int64]


def _sorted(start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Return intervals in order of start; what is in order already, as most traces are, costs one look."""
    if len(start) < 2 or bool((start[1:] >= start[:-1]).all()):
        return start, end
    order = np.argsort(start, kind="stable")
    return start[order], end[order]


def merge(start: Ints, duration: Ints) -> tuple[Ints, Ints]:
    """Return the union of intervals as disjoint ones in ascending order.

    Parameters
    ----------
    start, duration
        (N,) of the intervals, in any order, ns.

    Returns
    -------
    start, end
        (M,) of the disjoint intervals. Intervals that touch are one; those of no length are left out.

    Examples
    --------
    >>> merge(np.array([5, 0, 3]), np.array([2, 4, 2]))
    (array([0]), array([7]))
    """
    begin, end = _sorted(start, start + duration)
    real = end > begin
    if not real.all():
        begin, end = begin[real], end[real]
    if not len(begin):
        return begin, end
    reach = np.maximum.accumulate(end)
    first = np.flatnonzero(begin[1:] > reach[:-1]) + 1
    firsts = np.concatenate([np.zeros(1, dtype=first.dtype), first])
    lasts = np.concatenate([first - 1, np.array([len(begin) - 1], dtype=first.dtype)])
    return begin[firsts], reach[lasts]


def union_ns(start: Ints, duration: Ints) -> int:
    """Return the length of the union of intervals, ns.

    Examples
    --------
    >>> union_ns(np.array([0, 3, 10]), np.array([4, 2, 1]))
    6
    """
    begin, end = merge(start, duration)
    return int((end - begin).sum())


def intersection_ns(a: tuple[Ints, Ints], b: tuple[Ints, Ints]) -> int:
    """Return how long both of two sets of disjoint intervals last at once, ns.

    Parameters
    ----------
    a, b
        From `merge`.

    Examples
    --------
    >>> intersection_ns((np.array([0]), np.array([10])), (np.array([2, 8]), np.array([4, 20])))
    4
    """
    lengths = [int((end - begin).sum()) for begin, end in (a, b)]
    both = np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])
    return sum(lengths) - union_ns(both[0], both[1] - both[0])


def sum_by_group(values: npt.NDArray[Any], group: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    """Return the sum of the values of each group; integers are summed as int64, floats as float64.

    Parameters
    ----------
    values, group
        (N,); groups from 0, those below 0 are left out.
    groups
        How many there are.
    """
    found = np.zeros(groups, dtype=np.float64 if values.dtype.kind == "f" else np.int64)
    inside = group >= 0
    if not inside.all():
        values, group = values[inside], group[inside]
    np.add.at(found, group, values)
    return found


def union_by_group(start: Ints, duration: Ints, group: npt.NDArray[Any], groups: int) -> Ints:
    """Return the length of the union of the intervals of each group.

    Parameters
    ----------
    start, duration, group
        (N,); groups from 0, those below 0 are left out.
    groups
        How many there are.

    Notes
    -----
    The groups are laid end to end on one line, so that one running maximum serves all; the line is as long as the
    groups' spans together, which keeps it far from the limits of int64.
    """
    inside = group >= 0
    if not inside.all():
        start, duration, group = start[inside], duration[inside], group[inside]
    if not len(start):
        return np.zeros(groups, dtype=np.int64)
    only = int(group[0])
    if groups == 1 or bool((group == only).all()):  # one stream of one device, as most traces have
        found = np.zeros(groups, dtype=np.int64)
        found[only] = union_ns(start, duration)
        return found
    end = start + duration
    first = np.full(groups, np.iinfo(np.int64).max, dtype=np.int64)
    last = np.full(groups, np.iinfo(np.int64).min, dtype=np.int64)
    np.minimum.at(first, group, start)
    np.maximum.at(last, group, end)
    used = last >= first
    span = np.zeros(groups, dtype=np.int64)
    span[used] = last[used] - first[used]
    place = np.zeros(groups, dtype=np.int64)
    np.cumsum(span[:-1], out=place[1:])
    shift = np.zeros(groups, dtype=np.int64)
    shift[used] = place[used] - first[used]
    begin, end = start + shift[group], end + shift[group]
    order = np.argsort(begin, kind="stable")
    begin, end, group = begin[order], end[order], group[order]
    reach = np.maximum.accumulate(end)
    before = np.concatenate([begin[:1], reach[:-1]])
    # a piece is new only beyond what the intervals before it have reached
    new = np.maximum(end - np.maximum(begin, before), 0)
    return sum_by_group(new, group, groups)


def exclusive_ns(start: Ints, duration: Ints, parent: npt.NDArray[Any]) -> Ints:
    """Return the duration of each event less the union of the parts that its children cover.

    Parameters
    ----------
    start, duration
        (N,) of the events, ns.
    parent
        (N,) index of the enclosing event, -1 for none.

    Notes
    -----
    Children that reach beyond their parent, as work that was handed to another thread does, count up to its end.
    """
    child = np.flatnonzero(parent >= 0)
    if not len(child):
        return duration.astype(np.int64, copy=True)
    of = parent[child]
    begin = np.maximum(start[child], start[of])
    end = np.minimum(start[child] + duration[child], start[of] + duration[of])
    covered = union_by_group(begin, np.maximum(end - begin, 0), of, len(start))
    left: Ints = np.maximum(duration - covered, 0)
    return left


def ancestors_with(flag: npt.NDArray[np.bool_], parent: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell of each event whether one that encloses it has the flag.

    Parameters
    ----------
    flag
        (N,).
    parent
        (N,) index of the enclosing event, -1 for none.
    """
    # each step looks twice as far up, so that even a chain without an end is soon done
    above = np.append(parent, -1)
    found: npt.NDArray[np.bool_] = np.append(flag, False)[above]
    for _ in range(len(flag).bit_length()):
        if (above < 0).all():
            break
        found |= found[above]
        above = above[above]
    return found[:-1]
