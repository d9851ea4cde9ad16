"""Recorded Kineto traces of CUDA devices, and small ones made by hand, as the columns that a live profile gives."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import numpy as np

from mlscope_lab.backends.pytorch_events import Frame
from mlscope_lab.backends.pytorch_kineto import TraceColumns

__all__ = ["TRACES", "columns", "frame", "load_recorded", "nanoseconds", "outermost"]

TRACES = Path(__file__).parents[2].parent / "shared" / "data" / "cuda-traces"


def columns(rows, flows=(), arguments=None):
    """Make columns of (name, category, start, duration, device, thread, correlation, operator)."""
    names = {row[0]: None for row in rows}
    kinds = {row[1]: None for row in rows}
    names, kinds = list(names), list(kinds)
    table = np.array([row[2:] for row in rows], dtype=np.int64).reshape(-1, 6)
    return TraceColumns(
        names=tuple(names), name=np.array([names.index(row[0]) for row in rows], dtype=np.int32),
        categories=tuple(kinds), category=np.array([kinds.index(row[1]) for row in rows], dtype=np.int32),
        start_ns=table[:, 0], duration_ns=table[:, 1], device=table[:, 2], thread=table[:, 3],
        correlation=table[:, 4], operator=table[:, 5],
        flow=np.array(flows or np.zeros(len(rows)), dtype=np.int64), arguments=arguments or {},
    )  # fmt: skip


def frame(calls=(), iterations=(), offset=0):
    """Make a frame of calls (start, duration, thread, layer) and iterations (start, duration)."""
    calls = np.array(calls, dtype=np.int64).reshape(-1, 4)
    iterations = np.array(iterations, dtype=np.int64).reshape(-1, 2)
    return Frame(
        start_ns=calls[:, 0], duration_ns=calls[:, 1], thread=calls[:, 2], layer=calls[:, 3].astype(np.int32),
        iteration_start_ns=iterations[:, 0], iteration_duration_ns=iterations[:, 1], offset_ns=offset,
    )  # fmt: skip


def nanoseconds(text):
    """Return microseconds, given as a number or its text, in whole nanoseconds."""
    return int(Decimal(str(text)) * 1000)


def load_recorded(name):
    """Read a Chrome trace as columns, times exact, and as its own events; raises FileNotFoundError."""
    with gzip.open(TRACES / name, "rt", encoding="utf-8") as file:
        events = json.load(file, parse_float=Decimal)["traceEvents"]
    rows, arguments, at, flows = [], {}, {}, {}
    for event in events:
        if event["ph"] != "X" or event.get("cat") == "Trace":
            continue
        args = event.get("args", {})
        device = event["cat"].startswith(("kernel", "gpu_", "cuda_profiler", "cuda_sync"))
        start = nanoseconds(event["ts"])
        if device:
            arguments[len(rows)] = {key: float(v) if isinstance(v, Decimal) else v for key, v in args.items()}
        elif event["cat"] == "cpu_op":
            at.setdefault((event["tid"], start), len(rows))
        rows.append((
            event["name"], event["cat"], start, nanoseconds(event["dur"]), event["pid"] if device else -1,
            event["tid"], args.get("correlation", -1), args.get("External id", -1),
        ))  # fmt: skip
    for event in events:
        if event.get("cat") == "fwdbwd":
            row = at.get((event["tid"], nanoseconds(event["ts"])))
            if row is not None:
                flows[row] = event["id"]
    return columns(rows, [flows.get(row, 0) for row in range(len(rows))], arguments), events


def outermost(trace):
    """Make a layer (start, duration, thread, number) of every operator that is inside no other on its thread."""
    rows = np.flatnonzero(trace.of("cpu_op"))
    rows = rows[np.lexsort((-trace.duration_ns[rows], trace.start_ns[rows], trace.thread[rows]))]
    calls, thread, end = [], None, -1
    for row in rows.tolist():
        if trace.thread[row] != thread or trace.start_ns[row] >= end:
            thread, end = trace.thread[row], trace.start_ns[row] + trace.duration_ns[row]
            calls.append((trace.start_ns[row], trace.duration_ns[row], thread, len(calls)))
    return calls
