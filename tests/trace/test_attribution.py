from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.trace import attribution
from mlscope_lab.trace.attribution import enclosing, launches, nest

EVENTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 2)), max_size=30)
POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=20)


def columns(rows, width):
    return np.array(rows, dtype=np.int64).reshape(-1, width).T


def plain_nest(events):
    """The definition, event by event."""
    found = []
    for row, (start, duration, track) in enumerate(events):
        around = [
            (s, -(s + d), other)
            for other, (s, d, t) in enumerate(events)
            if other != row and t == track and s <= start and s + d >= start + duration
            and ((s, d) != (start, duration) or other < row)
        ]  # fmt: skip
        found.append(max(around)[2] if around else -1)
    return found


def plain_enclosing(points, outer):
    found = []
    for time, track in points:
        around = [
            (s, -(s + d), row) for row, (s, d, t) in enumerate(outer) if t == track and s <= time < max(s + d, s + 1)
        ]
        found.append(max(around)[2] if around else -1)
    return found


@pytest.mark.parametrize("rounds", [0, 1, 64])
@settings(deadline=None)
@given(events=EVENTS)
def test_the_parent_is_the_innermost_event_around(rounds, events):
    before, attribution._ROUNDS = attribution._ROUNDS, rounds
    try:
        found = nest(*columns(events, 3))
    finally:
        attribution._ROUNDS = before
    assert found.dtype == np.int32
    assert found.tolist() == plain_nest(events)


@settings(deadline=None)
@given(events=EVENTS)
def test_parents_make_a_forest(events):
    parents = nest(*columns(events, 3))
    for row in range(len(parents)):
        seen = set()
        while row >= 0:
            assert row not in seen
            seen.add(row)
            row = parents[row]


@settings(deadline=None)
@given(points=POINTS, outer=EVENTS)
def test_a_point_is_in_the_innermost_event_that_contains_it(points, outer):
    found = enclosing(*columns(points, 2), *columns(outer, 3))
    assert found.dtype == np.int32
    assert found.tolist() == plain_enclosing(points, outer)


def test_crossing_events_do_not_enclose_each_other():
    start, duration = np.array([0, 5, 6]), np.array([10, 10, 2])
    assert nest(start, duration, np.zeros(3, dtype=np.int32)).tolist() == [-1, -1, 1]


def test_equal_events_nest_by_row_and_boundaries_belong_to_what_starts():
    start, duration = np.array([3, 3, 0, 8]), np.array([2, 2, 8, 0])
    assert nest(start, duration, np.zeros(4, dtype=np.int64)).tolist() == [2, 0, -1, 2]
    back_to_back = np.array([0, 10]), np.array([10, 10]), np.zeros(2, dtype=np.int64)
    assert enclosing(np.array([0, 9, 10, 20]), np.zeros(4, dtype=np.int64), *back_to_back).tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize("shape", ["deep", "flat", "saw"])
def test_size_is_no_trap(shape):
    n = 200_000
    row = np.arange(n)
    if shape == "deep":
        start, duration, want = row, 2 * (n - row), row - 1
    elif shape == "flat":
        start, duration, want = 2 * row, np.ones(n, dtype=np.int64), np.full(n, -1)
    else:  # a deep nest, then siblings that have to look past all of it
        half = n // 2
        start = row
        duration = np.where(row < half, half - row, 10 * n + row)
        want = np.where(row < half, row - 1, -1)
    np.testing.assert_array_equal(nest(start, duration, np.zeros(n, dtype=np.int32)), want)


def test_launches_take_the_first_of_equal_correlations():
    found = launches(np.array([5, 6, -1, 7]), np.array([7, 5, 5, -1]))
    assert found.tolist() == [1, -1, -1, 0]
    nothing = np.zeros(0, dtype=np.int64)
    assert launches(nothing, np.array([1])).tolist() == []
    assert launches(np.array([1]), nothing).tolist() == [-1]
    assert enclosing(np.array([1]), np.array([0]), nothing, nothing, nothing).tolist() == [-1]
    assert nest(nothing, nothing, nothing).tolist() == []


def test_a_negative_duration_is_refused():
    with pytest.raises(ValueError, match="negative"):
        nest(np.array([0]), np.array([-1]), np.array([0]))
