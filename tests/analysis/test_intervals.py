from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.analysis.intervals import (
    ancestors_with,
    exclusive_ns,
    intersection_ns,
    merge,
    sum_by_group,
    union_by_group,
    union_ns,
)

LATE = 1_795_000_000_000_000_000  # what a clock of ns since 1970 says
spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(-1, 3)), max_size=25)


def columns(rows, offset=0):
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return table[:, 0] + offset, table[:, 1], table[:, 2]


def ticks(start, duration):
    return {t for a, d in zip(start.tolist(), duration.tolist(), strict=True) for t in range(a, a + d)}


@given(spans)
def test_a_union_counts_each_moment_once(rows):
    start, duration, group = columns(rows)
    assert union_ns(start, duration) == len(ticks(start, duration))
    assert union_ns(start + LATE, duration) == union_ns(start, duration)
    by_group = union_by_group(start + LATE, duration, group, 4)
    assert by_group.tolist() == [len(ticks(start[group == g], duration[group == g])) for g in range(4)]


@given(spans)
def test_merged_intervals_are_disjoint_and_ascending(rows):
    start, duration, _ = columns(rows)
    begin, end = merge(start, duration)
    assert (end > begin).all()
    assert (begin[1:] > end[:-1]).all()
    assert ticks(begin, end - begin) == ticks(start, duration)


@given(spans, spans)
def test_an_intersection_counts_what_is_in_both(one, two):
    a, b = columns(one), columns(two)
    assert intersection_ns(merge(*a[:2]), merge(*b[:2])) == len(ticks(*a[:2]) & ticks(*b[:2]))


@given(spans)
def test_sums_by_group_leave_out_what_belongs_to_none(rows):
    _, values, group = columns(rows)
    assert sum_by_group(values, group, 4).tolist() == [int(values[group == g].sum()) for g in range(4)]


def test_sums_are_exact_beyond_what_a_float_holds():
    values = np.array([2**53, 1, 1], dtype=np.int64)
    assert sum_by_group(values, np.zeros(3, dtype=np.int64), 1)[0] == 2**53 + 2


@st.composite
def trees(draw):
    """Nested intervals, children within their parents, siblings that may overlap."""
    rows = [(0, 60, -1)]
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.integers(0, len(rows) - 1))
        begin, length, _ = rows[parent]
        start = draw(st.integers(begin, begin + length))
        rows.append((start, draw(st.integers(0, begin + length - start)), parent))
    return rows


@given(trees())
def test_exclusive_time_is_what_children_leave(rows):
    start, duration, parent = columns(rows)
    found = exclusive_ns(start + LATE, duration, parent)
    for i in range(len(rows)):
        own = ticks(start[i : i + 1], duration[i : i + 1])
        children = np.flatnonzero(parent == i)
        assert found[i] == len(own - ticks(start[children], duration[children]))


def test_a_child_that_outlives_its_parent_counts_to_its_end():
    start, duration = np.array([0, 5]), np.array([10, 100])
    assert exclusive_ns(start, duration, np.array([-1, 0])).tolist() == [5, 100]


def test_ancestors_with_a_flag():
    parent = np.array([-1, 0, 1, -1, 3])
    flag = np.array([True, False, False, False, True])
    assert ancestors_with(flag, parent).tolist() == [False, True, True, False, False]


def test_a_chain_without_an_end_is_done():
    parent = np.array([1, 2, 0, 0, -1])
    assert ancestors_with(np.array([False, True, False, False, False]), parent).tolist() == [True] * 4 + [False]
    deep = np.arange(-1, 9999)
    assert ancestors_with(deep == 41, deep).sum() == 10000 - 43
