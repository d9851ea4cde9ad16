"""To whom an event belongs: the iteration, the enclosing event, the launch. With numpy alone.

Work of a device belongs to the operator, the layer and the iteration of its *launch*, never of its own time: it runs
later, beside other work. So find its call with `launches`, and take what the call's own time tells (`enclosing`,
`iteration_at`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["enclosing", "iteration_at", "launches", "nest"]

_INT = npt.NDArray[np.int64]
_INDEX = npt.NDArray[np.int32]
_ROUNDS = 64
"""Rounds of pointer jumping before a plain loop takes over: enough for any program's calls, too few to be a trap."""


def iteration_at(
    times: npt.NDArray[Any], starts: npt.NDArray[np.int64], durations: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Return the iteration during which each event happened, -1 for none.

    Parameters
    ----------
    times
        (N,) times of the events, ns.
    starts, durations
        (I,) of the iterations, on the same clock, ascending and disjoint.

    Examples
    --------
    >>> iteration_at(np.array([5, 15, 25]), np.array([10, 20]), np.array([8, 2])).tolist()
    [-1, 0, -1]
    """
    if not len(starts):
        return np.full(len(times), -1, dtype=np.int32)
    found = np.searchsorted(starts, times, side="right") - 1
    inside = (found >= 0) & (times < (starts + durations)[found])
    return np.where(inside, found, -1).astype(np.int32)


def nest(start_ns: npt.NDArray[Any], duration_ns: npt.NDArray[Any], track: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return for each event the innermost one that encloses it on the same track, -1 for none.

    Parameters
    ----------
    start_ns, duration_ns
        (N,) in any order; durations are not negative.
    track
        (N,) integers: the thread, or whatever else events nest within.

    Returns
    -------
    numpy.ndarray
        int32 (N,) indices of rows. An event encloses another if it starts no later and ends no earlier; of two with
        equal times the earlier row encloses the later one. Events that overlap without enclosing each other are no
        parents of one another. Where several enclose an event but not each other, the one that starts last counts.

    Examples
    --------
    >>> nest(np.array([0, 1, 2, 8]), np.array([10, 5, 1, 5]), np.zeros(4, dtype=int)).tolist()
    [-1, 0, 1, -1]
    """
    start, end = _times(start_ns, duration_ns)
    order = _ordered(track, start, -end)
    found = _previous_at_least(end[order], _first_of_track(track[order]))
    parents = np.empty(len(order), dtype=np.int32)
    parents[order] = np.where(found >= 0, order[found], -1)
    return parents


def enclosing(
    times: npt.NDArray[Any],
    track: npt.NDArray[Any],
    outer_start: npt.NDArray[Any],
    outer_duration: npt.NDArray[Any],
    outer_track: npt.NDArray[Any],
) -> npt.NDArray[np.int32]:
    """Return for each point of time the innermost outer event that contains it on the same track, -1 for none.

    Parameters
    ----------
    times, track
        (N,) points of time and the tracks that they are on.
    outer_start, outer_duration, outer_track
        (M,) the events that may contain them, in any order.

    Returns
    -------
    numpy.ndarray
        int32 (N,) indices of outer events. An event contains its start but not its end, one without duration its start.
        Of several that do not enclose each other the one that starts last counts; of equal ones the last row.

    Examples
    --------
    >>> zero = np.zeros(2, dtype=int)
    >>> enclosing(np.array([5, 12]), zero, np.array([0, 4]), np.array([10, 2]), zero).tolist()
    [1, -1]
    """
    n, start = len(outer_start), np.asarray(outer_start, dtype=np.int64)
    if not n:
        return np.full(len(times), -1, dtype=np.int32)
    _, end = _times(outer_start, outer_duration)
    points = np.asarray(times, dtype=np.int64)
    until = np.concatenate([np.maximum(end, start + 1), points + 1])
    where = np.concatenate([outer_track, track])
    # of what begins at one time, outer events come first, the longest leading, then the points
    rank = -until
    rank[n:] = np.iinfo(np.int64).max
    order = _ordered(where, np.concatenate([start, points]), rank)
    del rank, end
    until, first = until[order], _first_of_track(where[order])
    del where
    found = _previous_at_least(until, first)
    del until, first
    holder = np.where(found >= 0, order[found], np.int32(-1))
    # a point's holder is another point only if both are at one time, side by side: they share what holds the first
    shared = (order >= n) & (holder >= n)
    leader = np.maximum.accumulate(np.where(shared, np.int32(0), np.arange(len(order), dtype=np.int32)))
    result = np.empty(len(order), dtype=np.int32)
    result[order] = np.where(shared, holder[leader], holder)
    return result[n:].copy()


def launches(correlation_of_device: npt.NDArray[Any], correlation_of_call: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return for each piece of device work the call that launched it, -1 for none.

    Parameters
    ----------
    correlation_of_device
        (N,) identifiers, negative where there is none.
    correlation_of_call
        (M,) identifiers of the calls. Of several calls with one identifier the first counts.

    Examples
    --------
    >>> launches(np.array([7, 9, -1, 7]), np.array([-1, 7, 8, 7])).tolist()
    [1, -1, -1, 1]
    """
    calls = np.asarray(correlation_of_call, dtype=np.int64)
    work = np.asarray(correlation_of_device, dtype=np.int64)
    if not len(calls):
        return np.full(len(work), -1, dtype=np.int32)
    order = np.argsort(calls, kind="stable")
    ascending = calls[order]
    place = np.minimum(np.searchsorted(ascending, work), len(calls) - 1)
    return np.where((ascending[place] == work) & (work >= 0), order[place], -1).astype(np.int32)


def _times(start_ns: npt.NDArray[Any], duration_ns: npt.NDArray[Any]) -> tuple[_INT, _INT]:
    start = np.asarray(start_ns, dtype=np.int64)
    duration = np.asarray(duration_ns, dtype=np.int64)
    if len(duration) and int(duration.min()) < 0:
        raise ValueError(f"a duration is negative ({int(duration.min())} ns at row {int(duration.argmin())})")
    return start, start + duration


def _ordered(track: npt.NDArray[Any], first: _INT, second: _INT) -> _INDEX:
    """Return the order of rows by track, `first`, `second` and row."""
    same = track[1:] == track[:-1]
    tie = same & (first[1:] == first[:-1])
    sorted_ = np.where(tie, second[1:] >= second[:-1], np.where(same, first[1:] > first[:-1], track[1:] > track[:-1]))
    if sorted_.all():
        return np.arange(len(track), dtype=np.int32)
    return np.lexsort((second, first, track)).astype(np.int32)


def _first_of_track(track: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    first = np.ones(len(track), dtype=np.bool_)
    first[1:] = track[1:] != track[:-1]
    return first


def _previous_at_least(values: _INT, first: npt.NDArray[np.bool_]) -> _INDEX:
    """Return for each position the last one before it, in its run, whose value is no smaller; -1 for none.

    All positions look at once, each from its neighbour on. Nothing between a position and the one that it looks at is
    large enough, so a position that looks at too small a value may go on to where that one looks: the distance doubles
    each round along a row of siblings.
    """
    looks = np.arange(-1, len(values) - 1, dtype=np.int32)
    looks[first] = -1
    open_ = np.flatnonzero(~first).astype(np.int32)
    for _ in range(_ROUNDS):
        at = looks[open_]
        small = values[at] < values[open_]
        open_, at = open_[small], at[small]
        if not len(open_):
            return looks
        onward = looks[at]
        looks[open_] = onward
        open_ = open_[onward >= 0]
    if len(open_):
        return _previous_at_least_by_stack(values, first)
    return looks


def _previous_at_least_by_stack(values: _INT, first: npt.NDArray[np.bool_]) -> _INDEX:
    """Do the same with a stack: linear in time whatever the depth."""
    found = np.empty(len(values), dtype=np.int32)
    heights: list[int] = []
    positions: list[int] = []
    step = 1 << 16  # lists of Python's integers take five times the room of the array
    for begin in range(0, len(values), step):
        result = []
        rows = zip(values[begin : begin + step].tolist(), first[begin : begin + step].tolist(), strict=True)
        for position, (value, fresh) in enumerate(rows, start=begin):
            if fresh:
                heights.clear()
                positions.clear()
            while heights and heights[-1] < value:
                heights.pop()
                positions.pop()
            result.append(positions[-1] if positions else -1)
            heights.append(value)
            positions.append(position)
        found[begin : begin + step] = result
    return found
