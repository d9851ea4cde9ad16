"""Small files in Chrome's format, and what becomes of them."""

from __future__ import annotations

import gzip
import json

from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.importers import import_trace

EVENTS = [
    {"ph": "X", "cat": "cpu_op", "name": "a },{ b", "pid": 1, "tid": 2, "ts": 10, "dur": 100,
     "args": {"External id": 1}},
    {"ph": "X", "cat": "cpu_op", "name": 'q "}, {" \\', "pid": 1, "tid": 2, "ts": 20.5, "dur": 10.25,
     "args": {"list": [{"a": 1}, {"b": [{}, {}]}], "Input Dims": [[1, 2], [], [[3], [4, 5]]],
              "Input type": ["float", "Scalar", "TensorList"]}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 2, "ts": 21, "dur": 5,
     "args": {"correlation": 7}},
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": "stream 7", "ts": 40, "dur": 50,
     "args": {"correlation": 7, "grid": [4, 2, 1], "est. achieved occupancy %": 25}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "thread 2 (python)"}},
    {"ph": "i", "name": "mark", "pid": 1, "tid": 2, "ts": 30, "s": "t"},
]  # fmt: skip


def write(folder, text, name="trace.json"):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    return path


def load(folder, events, **options):
    text = events if isinstance(events, str | bytes) else json.dumps({"traceEvents": events})
    return import_trace(write(folder, text), format="chrome", **options)


def rows(run, group):
    if group not in run.children:
        return []
    data = run[group].to_dataset()
    dim = data["pass_index"].dims[0]
    columns = {str(n): v.values.tolist() for n, v in data.data_vars.items() if v.dims == (dim,)}
    columns |= {n[:-5]: table_of(data, n[:-5]) for n in list(columns) if n.endswith("_code")}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def shape(run):
    """What of a run does not depend on how its file is written."""
    return {group: rows(run, group) for group in run.children if group != "passes"}, run["passes"]["wall_ns"].values


def x(name="a", ts=0, dur=1, **more):
    return {"ph": "X", "cat": "c", "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, **more}
