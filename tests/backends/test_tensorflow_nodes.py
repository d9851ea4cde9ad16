"""Runs of nodes: how they nest, what they cover, in which order their rows stand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.backends.tensorflow_nodes import NodeRun, by_first_start, covered, nest


def run(start, stop, op="Relu"):
    return NodeRun(name=f"{op}{start}", op=op, start=start, stop=stop)


RUNS = st.lists(
    st.builds(
        lambda start, length, op: run(start, start + length, op),
        st.integers(0, 60), st.integers(0, 30), st.sampled_from(["Relu", "While", "If", "PartitionedCall"]),
    ),
    max_size=25,
).map(lambda runs: sorted(runs, key=lambda r: (r.start, -r.stop)))  # fmt: skip


def test_only_calls_and_loops_hold_others():
    runs = [run(0, 100, "While"), run(10, 40), run(20, 30), run(50, 90, "If"), run(60, 70), run(95, 120)]
    nest(runs)
    assert [r.parent for r in runs] == [-1, 0, 0, 0, 3, -1]
    assert runs[0].children == [1, 2, 3]
    assert covered([runs[i] for i in runs[0].children]) == 30 + 40


@given(RUNS)
def test_a_parent_encloses_and_comes_first(runs):
    nest(runs)
    for here, child in enumerate(runs):
        assert child.parent < here
        if child.parent >= 0:
            parent = runs[child.parent]
            assert parent.start <= child.start
            assert child.stop <= parent.stop
            assert here in parent.children


@given(RUNS)
def test_covered_is_the_union(runs):
    ticks = {tick for r in runs for tick in range(r.start, r.stop)}
    assert covered(runs) == len(ticks)


def test_rows_by_first_start():
    starts = np.array([[30, -1, 10, -1], [5, 8, 6, 1]], dtype=np.int64)
    assert by_first_start(starts) == [2, 0, 3, 1]
    assert by_first_start(np.zeros((0, 0), dtype=np.int64)) == []


def test_bytes_of_outputs():
    assert run(0, 1).output_bytes == -1
    assert NodeRun(name="a", op="Add", start=0, stop=1, outputs=(("float32[2]", 8), ("int32[]", 4))).output_bytes == 12
