"""The check of recorded events: it passes what can be true, and names what cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlscope_lab.testing import check_events, synthetic_layer_trace
from mlscope_lab.trace.records import EventTable, LayerTrace


def good() -> LayerTrace:
    """Return a trace with an operator in the middle of each leaf of each iteration."""
    trace = synthetic_layer_trace(layers=8, iterations=3)
    iteration, layer = np.nonzero(trace.start_ns >= 0)
    start, length = trace.start_ns[iteration, layer], trace.duration_ns[iteration, layer]
    n = len(layer)
    operators = EventTable(
        columns={
            "iteration": iteration.astype(np.int32),
            "name_code": np.zeros(n, dtype=np.int32),
            "thread_code": np.zeros(n, dtype=np.int32),
            "start_ns": start + length // 4,
            "duration_ns": length // 2,
            "parent_index": np.full(n, -1, dtype=np.int32),
            "layer_index": layer.astype(np.int32),
        },
        tables={"name": ("op",), "thread": ("1/1",)},
    )
    memory = EventTable(
        columns={
            "iteration": iteration.astype(np.int32),
            "time_ns": start,
            "bytes": length,
            "operator_index": np.arange(n, dtype=np.int32),
        }
    )
    links = EventTable(
        columns={
            "kind_code": np.zeros(1, dtype=np.int32),
            "source_index": np.zeros(1, dtype=np.int32),
            "target_index": np.ones(1, dtype=np.int32),
        },
        tables={"kind": ("forward_backward",)},
    )
    return replace(trace, events={"operators": operators, "memory": memory, "links": links})


def spoiled(group: str, **columns: np.ndarray) -> LayerTrace:
    trace = good()
    table = trace.events[group]
    return replace(trace, events={**trace.events, group: replace(table, columns={**table.columns, **columns})})


def changed(group: str, column: str, row: int, value: int) -> LayerTrace:
    values = good().events[group].columns[column].copy()
    values[row] = value
    return spoiled(group, **{column: values})


def test_what_can_be_true_passes():
    check_events(good())
    check_events(replace(good(), events={}))


@pytest.mark.parametrize(
    ("group", "column", "value", "message"),
    [
        ("operators", "layer_index", 99, "'layer_index' must lie between"),
        ("operators", "iteration", 3, "'iteration' must lie between -1 and 2"),
        ("operators", "parent_index", 0, "its own parent"),
        ("operators", "duration_ns", -5, "negative"),
        ("operators", "name_code", -1, "has no name"),
        ("operators", "start_ns", 0, "starts before its iteration"),
        ("operators", "duration_ns", 10**15, "ends after its iteration"),
        ("memory", "operator_index", 10**6, "'operator_index' must lie between"),
        ("links", "target_index", 10**6, "'target_index' of 'forward_backward'"),
    ],
)
def test_what_cannot_be_true_is_named(group, column, value, message):
    with pytest.raises(AssertionError, match=message):
        check_events(changed(group, column, 0, value))


def test_dtypes_are_those_of_the_schema():
    times = good().events["operators"].columns["start_ns"]
    with pytest.raises(AssertionError, match="'start_ns' is float64"):
        check_events(spoiled("operators", start_ns=times.astype(np.float64)))


def test_a_group_needs_its_columns():
    trace = good()
    table = trace.events["operators"]
    columns = {name: values for name, values in table.columns.items() if name != "iteration"}
    with pytest.raises(AssertionError, match="lacks the column 'iteration'"):
        check_events(replace(trace, events={"operators": replace(table, columns=columns)}))
    with pytest.raises(AssertionError, match="no group of events"):
        check_events(replace(trace, events={"sensors": table}))


def test_an_operator_outside_its_layer_is_named():
    layers = good().events["operators"].columns["layer_index"]
    first, second = (int(np.flatnonzero(layers == layer)[0]) for layer in (1, 5))
    with pytest.raises(AssertionError, match="lies outside its layer"):
        check_events(changed("operators", "layer_index", first, int(layers[second])))


def test_an_operator_of_a_layer_that_did_not_run_is_named():
    trace = good()
    start = trace.start_ns.copy()
    start[0, 1] = -1
    with pytest.raises(AssertionError, match="did not run"):
        check_events(replace(trace, start_ns=start))
