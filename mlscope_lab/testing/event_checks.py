"""The invariants of what a session records below its layers, as one function that raises AssertionError."""

from __future__ import annotations

import numpy as np

from mlscope_lab.trace import schema
from mlscope_lab.trace.records import EventTable, LayerTrace

__all__ = ["check_events"]

_IN_ITERATION = (schema.OPERATORS, schema.RUNTIME)
"""Groups of events that happen while an iteration runs; work of a device may end after it, samples lie anywhere."""
_OWN_WORK = "functional"
"""Type of the row for a module's own work, which is no span but what is left of one."""


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise AssertionError(message)


def check_events(trace: LayerTrace) -> None:
    """Raise AssertionError if the events of a trace cannot be true.

    Checked are: groups, columns and dtypes of the schema; the columns that a group cannot do without; indices that
    exist, and refer to groups that are there; iterations that exist; durations; operators and calls within the
    iteration that they belong to, operators within the layer that they belong to (the clock's resolution and error
    allowed); an operator's layer ran in its iteration.

    Parameters
    ----------
    trace
        What a session recorded; indices of its tables are relative to one another.
    """
    for group, table in trace.events.items():
        _require(group in schema.EVENT_DIMS, f"/{group} is no group of events")
        _check_columns(group, table)
        _check_indices(group, table, trace)
        if "duration_ns" in table.columns and len(table):
            _require(int(table.columns["duration_ns"].min()) >= 0, f"/{group}: a duration is negative")
    if schema.LINKS in trace.events:
        _check_links(trace)
    for group in _IN_ITERATION:
        if group in trace.events:
            _check_iterations(group, trace.events[group], trace)
    if schema.OPERATORS in trace.events:
        _check_layers(trace.events[schema.OPERATORS], trace)


def _check_columns(group: str, table: EventTable) -> None:
    required = [name for name, dims in schema.GROUPS[group].items() if dims == (schema.EVENT_DIMS[group],)]
    for name in ("start_ns", "duration_ns", "time_ns", "iteration", "name_code"):
        _require(name not in required or name in table.columns, f"/{group} lacks the column '{name}'")
    for name, values in table.columns.items():
        want = schema.dtype_of(group, name)
        _require(values.dtype.name == want, f"/{group}: '{name}' is {values.dtype}, not {want}")
        if name.endswith("_code"):
            limit = len(table.tables.get(name.removesuffix("_code"), ()))
            _require(_within(values, limit), f"/{group}: '{name}' has codes outside its table of {limit} texts")
    if "name_code" in table.columns and group != schema.COUNTERS:
        _require(bool((table.columns["name_code"] >= 0).all()), f"/{group}: an event has no name")


def _within(values: np.ndarray, limit: int) -> bool:
    return not len(values) or bool(values.min() >= -1 and values.max() < limit)


def _check_indices(group: str, table: EventTable, trace: LayerTrace) -> None:
    for name, values in table.columns.items():
        if name == "parent_index":
            limit = len(table)
            _require(not bool((values == np.arange(limit)).any()), f"/{group}: an event is its own parent")
        elif name == "iteration":
            limit = len(trace.iteration_start_ns)
        elif name == "layer_index":
            limit = len(trace.layers)
        elif name in schema.INDEX_TARGETS and name != "pass_index":
            limit = len(trace.events.get(schema.INDEX_TARGETS[name], ()))
        else:
            continue
        _require(_within(values, limit), f"/{group}: '{name}' must lie between -1 and {limit - 1}")


def _check_links(trace: LayerTrace) -> None:
    links = trace.events[schema.LINKS]
    kinds = links.tables.get("kind", ())
    for code, kind in enumerate(kinds):
        _require(kind in schema.LINK_KINDS, f"/links: '{kind}' is no kind of link")
        for column, target in zip(("source_index", "target_index"), schema.LINK_KINDS[kind], strict=True):
            values = links.columns[column][links.columns["kind_code"] == code]
            limit = len(trace.events.get(target, ()))
            _require(_within(values, limit), f"/links: '{column}' of '{kind}' must lie between -1 and {limit - 1}")


def _check_iterations(group: str, table: EventTable, trace: LayerTrace) -> None:
    iteration = table.columns["iteration"]
    mine = iteration >= 0
    slack = trace.resolution_ns + trace.clock_error_ns
    start = table.columns["start_ns"][mine]
    begin = trace.iteration_start_ns[iteration[mine]]
    _require(bool((start >= begin - slack).all()), f"/{group}: an event starts before its iteration")
    end = begin + trace.iteration_duration_ns[iteration[mine]]
    stop = start + table.columns["duration_ns"][mine]
    _require(bool((stop <= end + slack).all()), f"/{group}: an event ends after its iteration")


def _check_layers(table: EventTable, trace: LayerTrace) -> None:
    layer, iteration = table.columns.get("layer_index"), table.columns["iteration"]
    if layer is None:
        return
    mine = np.flatnonzero((layer >= 0) & (iteration >= 0))
    at = (iteration[mine], layer[mine])
    _require(bool((trace.start_ns[at] >= 0).all()), "/operators: an operator's layer did not run in its iteration")
    spans = np.array([kind != _OWN_WORK for kind in trace.layers.type], dtype=bool)[layer[mine]]
    slack = 2 * trace.resolution_ns + trace.clock_error_ns
    start = table.columns["start_ns"][mine]
    outside = start < trace.start_ns[at] - slack
    outside |= start + table.columns["duration_ns"][mine] > trace.start_ns[at] + trace.duration_ns[at] + slack
    if bool((outside & spans).any()):
        row = int(mine[np.flatnonzero(outside & spans)[0]])
        name = table.tables["name"][table.columns["name_code"][row]]
        raise AssertionError(f"operator '{name}' lies outside its layer '{trace.layers.name[layer[row]]}'")
