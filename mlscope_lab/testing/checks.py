"""The invariants of a layer trace, as one function that raises AssertionError with the row that breaks them."""

from __future__ import annotations

import numpy as np

from mlscope_lab.trace.records import LayerTrace

__all__ = ["check_layer_trace"]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise AssertionError(message)


def check_layer_trace(
    trace: LayerTrace,
    *,
    iterations: int | None = None,
    after_ns: int | None = None,
    before_ns: int | None = None,
) -> None:
    """Raise AssertionError if a trace cannot be true.

    Checked are: integer arrays; parents that exist and enclose their children in time; depths; ``0 <= exclusive <=
    duration`` and an exclusive time no smaller than the duration less all children; layers inside their iteration;
    exclusive times that add up to no more than the iteration (2 % and the clock's resolution allowed).

    Parameters
    ----------
    trace
        The trace.
    iterations
        Number of predicts that it must hold, or None to leave that open.
    after_ns, before_ns
        Readings of `time.perf_counter_ns` taken before the first and after the last predict.
    """
    table = trace.layers
    rows = len(table)
    count = len(trace.iteration_start_ns)
    _require(iterations is None or count == iterations, f"{count} iterations traced, {iterations} predicts made")
    for column in ("start_ns", "duration_ns", "exclusive_ns", "iteration_start_ns", "iteration_duration_ns"):
        dtype = getattr(trace, column).dtype
        _require(dtype == np.int64, f"{column} is {dtype}, not int64")
    _require(trace.iteration_duration_ns.shape == (count,), "iteration_duration_ns and iteration_start_ns differ")
    _require(trace.resolution_ns >= 1, "resolution_ns must be at least 1")
    _require(trace.clock_error_ns >= 0 and trace.dropped_events >= 0, "clock_error_ns or dropped_events is negative")
    _require(all(table.name), "a layer has an empty name")
    _require(all(table.type), "a layer has an empty type")
    _check_tree(trace)
    if count == 0:
        return

    begin = trace.iteration_start_ns
    end = begin + trace.iteration_duration_ns
    _require(bool((trace.iteration_duration_ns > 0).all()), "an iteration took no time")
    _require(bool((begin[1:] >= end[:-1]).all()), "iterations overlap or are out of order")
    _require(after_ns is None or begin[0] >= after_ns, "the first iteration starts before its predict was called")
    _require(before_ns is None or end[-1] <= before_ns, "the last iteration ends after its predict returned")

    ran = trace.start_ns >= 0
    duration = trace.duration_ns
    exclusive = trace.exclusive_ns
    _require(
        bool(((duration >= 0) == ran).all() and ((exclusive >= 0) == ran).all()),
        "start, duration and exclusive must be -1 together, where a layer did not run, and never negative elsewhere",
    )
    _require(bool(ran.any(axis=0).all()), "a layer ran in no iteration")
    _require(bool((exclusive <= duration).all()), "an exclusive time exceeds its duration")
    step = trace.resolution_ns
    slack = step + trace.clock_error_ns
    stop = trace.start_ns + duration
    early = ran & (trace.start_ns < (begin - slack)[:, None])
    late = ran & (stop > (end + slack)[:, None])
    for outside, word in ((early, "starts before"), (late, "ends after")):
        if outside.any():
            i, j = (int(k) for k in np.argwhere(outside)[0])
            raise AssertionError(f"layer '{table.name[j]}' {word} iteration {i} that it belongs to")
    first = trace.start_ns[0][ran[0]]
    _require(bool((np.diff(first) >= -step).all()), "rows are not in the order of their first start")
    _check_nesting(trace, ran, stop, step)

    total = np.where(ran, exclusive, 0).sum(axis=1)
    limit = trace.iteration_duration_ns * 1.02 + step * max(rows, 1)
    if (total > limit).any():
        i = int(np.argmax(total > limit))
        raise AssertionError(
            f"exclusive times of iteration {i} add up to {int(total[i])} ns, "
            f"the iteration took {int(trace.iteration_duration_ns[i])} ns"
        )


def _check_tree(trace: LayerTrace) -> None:
    table = trace.layers
    for row, (parent, depth) in enumerate(zip(table.parent, table.depth, strict=True)):
        _require(parent != row, f"layer '{table.name[row]}' is its own parent")
        want = 0 if parent < 0 else table.depth[parent] + 1
        _require(depth == want, f"layer '{table.name[row]}' has depth {depth}, its parent asks for {want}")


def _check_nesting(trace: LayerTrace, ran: np.ndarray, stop: np.ndarray, step: int) -> None:
    """Compare each child with its parent, and each parent with all its children."""
    table = trace.layers
    inside = np.zeros_like(trace.duration_ns)
    children = np.zeros(len(table), dtype=np.int64)
    for row, parent in enumerate(table.parent):
        if parent < 0:
            continue
        both = ran[:, row]
        where = f"layer '{table.name[row]}' and its parent '{table.name[parent]}'"
        _require(bool(ran[both, parent].all()), f"{where}: the parent did not run in an iteration in which it did")
        _require(
            bool((trace.start_ns[both, row] >= trace.start_ns[both, parent] - step).all()),
            f"{where}: the child starts first",
        )
        _require(bool((stop[both, row] <= stop[both, parent] + step).all()), f"{where}: the child ends last")
        inside[both, parent] += trace.duration_ns[both, row]
        children[parent] += 1
    least = trace.duration_ns - inside - step * (children + 1)
    short = ran & (trace.exclusive_ns < least)
    if short.any():
        i, j = (int(k) for k in np.argwhere(short)[0])
        raise AssertionError(
            f"layer '{table.name[j]}': exclusive {int(trace.exclusive_ns[i, j])} ns, but its {int(children[j])} "
            f"children cover at most {int(inside[i, j])} of {int(trace.duration_ns[i, j])} ns"
        )
    leaf = ran & (children == 0)[None, :]
    _require(bool((trace.exclusive_ns == trace.duration_ns)[leaf].all()), "a layer without children is not exclusive")
