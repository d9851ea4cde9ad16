from __future__ import annotations

import numpy as np

from mlscope_lab.testing import synthetic_run
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.exporters.steps import steps_of
from mlscope_lab.trace.exporters.timeline import passes_of
from mlscope_lab.trace.records import EventTable


def imported(start, duration, iteration, **more):
    columns = {"start_ns": np.array(start, dtype=np.int64), "duration_ns": np.array(duration, dtype=np.int64),
               "iteration": np.array(iteration, dtype=np.int32)}  # fmt: skip
    events = {"operators": EventTable(columns=columns), **more}
    return build_imported(attrs={"model": "m", "backend": "b"}, events=events, wall_ns=100, level="operator")


def found(run):
    start, end = steps_of(run, passes_of(run))
    return list(zip(start.tolist(), end.tolist(), strict=True))


def test_a_step_is_what_the_host_did_in_an_iteration():
    assert found(imported([5, 0, 20, 30, 90], [10, 7, 5, 5, 5], [0, 0, 1, 1, -1])) == [(0, 15), (20, 35)]


def test_steps_of_several_passes_follow_each_other():
    run = synthetic_run(deep=True)
    steps = found(run)
    assert len(steps) == 16
    assert steps == sorted(steps)
    assert steps[0][0] == passes_of(run)[2].start_ns


def test_iterations_that_overlap_are_no_steps():
    assert found(imported([0, 5], [10, 10], [0, 1])) == []
    assert found(imported([0, 5], [10, 10], [-1, -1])) == []


def test_steps_that_a_trace_marks_itself_are_left_alone():
    times = {"start_ns": np.zeros(1, dtype=np.int64), "duration_ns": np.ones(1, dtype=np.int64)}
    marks = EventTable(
        columns={**times, "name_code": np.zeros(1, dtype=np.int32)}, tables={"name": ("ProfilerStep#3",)}
    )
    assert found(imported([0], [1], [0], annotations=marks)) == []
