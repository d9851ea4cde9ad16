"""What the events of Chrome's format mean, however they are written."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers import detect_format, formats, import_trace, json_text
from mlscope_lab.trace.validate import validate
from tests.trace.importers.chrome_files import EVENTS, load, rows, shape, write, x

FORMS = {
    "pretty": lambda events: json.dumps({"schemaVersion": 1, "traceEvents": events}, indent=2),
    "minified": lambda events: json.dumps({"traceEvents": events}, separators=(",", ":")),
    "events first": lambda events: json.dumps({"traceEvents": events, "other": {"x": [1, {"traceEvents": []}]}}),
    "events last": lambda events: json.dumps({"a": '"traceEvents": [', "b": [[{}]], "c": 1.5, "traceEvents": events}),
    "keys turned round": lambda events: json.dumps(
        {"traceEvents": [dict(reversed(e.items())) for e in events]}, sort_keys=False
    ),
    "a list": json.dumps,
    "a list that is not closed": lambda events: json.dumps(events)[:-1] + ",\n",
    "a mark of the byte order": lambda events: "\ufeff" + json.dumps(events),
    "escaped": lambda events: json.dumps(events).replace("cudaLaunchKernel", "\\u0063udaLaunchKernel"),
    "spaces": lambda events: " \n[\t" + " ,\r\n ".join(json.dumps(e, indent=1) for e in events) + "  \n] ",
}


@pytest.mark.parametrize("block", [16, 100, 2 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_it_gives_the_same_run(form, block, tmp_path, monkeypatch):
    want = shape(load(tmp_path, EVENTS))
    monkeypatch.setattr(json_text, "BLOCK_BYTES", block)
    found = shape(import_trace(write(tmp_path, FORMS[form](EVENTS), "other.json"), format="chrome"))
    assert found == want
    found = shape(import_trace(write(tmp_path, FORMS[form](EVENTS), "other.json.gz")))
    assert found == want


def test_what_the_events_mean(tmp_path):
    run = load(tmp_path, EVENTS)
    outer, inner = rows(run, "operators")
    (call,), (kernel,), (mark,) = rows(run, "runtime"), rows(run, "kernels"), rows(run, "annotations")
    assert (outer["parent_index"], inner["parent_index"], call["operator_index"]) == (-1, 0, 1)
    assert (inner["start_ns"], inner["duration_ns"], inner["thread"]) == (10_500, 10_250, "1/2")
    assert inner["shapes"] == "float[1,2];Scalar;TensorList([3],[4,5])"
    assert (kernel["operator_index"], kernel["runtime_index"], kernel["stream"], kernel["device"]) == (1, 0, 7, 0)
    assert (kernel["grid_x"], kernel["grid_y"], kernel["occupancy"]) == (4, 2, 0.25)
    assert (mark["name"], mark["duration_ns"], mark["start_ns"]) == ("mark", 0, 20_000)
    assert run["operators"].attrs["thread_names"] == {"1/2": "thread 2 (python)"}
    assert run.attrs["backend"] == "chrome"
    assert run["passes"]["dropped_events"].values.tolist() == [0]


def b(name, ts, phase="B", tid=1):
    return {"ph": phase, "cat": "c", "name": name, "pid": 1, "tid": tid, "ts": ts}


def test_begins_and_ends_are_paired_by_thread(tmp_path):
    run = load(tmp_path, [b("end", 0, "E"), b("outer", 1), b("other", 2, tid=2), b("inner", 3), b("", 5, "E"),
                          b("", 9, "E"), b("other", 8, "E", tid=2), b("open", 10)])  # fmt: skip
    found = {row["name"]: row for row in rows(run, "operators")}
    assert {name: (r["start_ns"], r["duration_ns"]) for name, r in found.items()} == {
        "outer": (0, 8000), "inner": (2000, 2000), "other": (1000, 6000),
    }  # fmt: skip
    assert run.attrs["trace"]["dropped"] == {"begin without an end, or end without a begin": 2}
    assert run["passes"]["dropped_events"].values.tolist() == [2]
    assert "2 events begin without an end" in run.attrs["warnings"][0]


def test_counters_and_memory(tmp_path):
    memory = {"ph": "i", "s": "t", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1}
    run = load(tmp_path, [
        x(dur=100),
        {"ph": "C", "name": "load", "pid": 1, "ts": 1, "args": {"busy/s": 2.5, "start_ns": 1, "word": "x"}},
        {"ph": "C", "name": "load", "pid": 1, "ts": 2, "args": {"busy/s": 3}},
        {**memory, "ts": 5, "args": {"Bytes": -512, "Total Allocated": 1024, "Addr": 2**62 + 1, "Device Type": 0,
                                     "Device Id": -1}},
        {**memory, "ts": 6, "args": {"Bytes": 8, "Total Allocated": 8, "Total Reserved": 9, "Device Type": 1,
                                     "Device Id": 0}},
    ])  # fmt: skip
    first, second = rows(run, "counters")
    assert (first["busy_s"], first["start_ns counter"], first["name"]) == (2.5, 1.0, "load")
    assert second["busy_s"] == 3.0
    assert np.isnan(second["start_ns counter"])
    assert run["counters"]["busy_s"].attrs["long_name"] == "busy/s"
    assert (run.attrs["level"], run.attrs["device"]) == ("operator", "unknown")
    freed, allocated = rows(run, "memory")
    assert (freed["bytes"], freed["allocated_bytes"], freed["address"], freed["device"]) == (
        -512,
        1024,
        2**62 + 1,
        "cpu",
    )
    assert (allocated["device"], allocated["reserved_bytes"], allocated["operator_index"]) == ("cuda:0", 9, 0)


def test_steps_are_iterations(tmp_path):
    step = {"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 1, "dur": 10}
    run = load(tmp_path, [{**step, "name": "ProfilerStep#3", "ts": 0}, {**step, "name": "ProfilerStep#4", "ts": 10},
                          x(ts=5), x(ts=10), x(ts=25)])  # fmt: skip
    assert [row["iteration"] for row in rows(run, "operators")] == [0, 1, -1]
    assert run["passes"]["measured_iterations"].values.tolist() == [2]
    overlapping = load(tmp_path, [{**step, "name": f"ProfilerStep#{n}", "ts": n} for n in range(2)] + [x()])
    assert [row["iteration"] for row in rows(overlapping, "operators")] == [-1]
    assert "overlap" in overlapping.attrs["warnings"][0]


def test_the_unix_time_of_the_first_event(tmp_path):
    text = json.dumps({"baseTimeNanoseconds": 1_700_000_000_000_000_000, "traceEvents": [x(ts=1.5)]})
    run = load(tmp_path, text)
    assert run["passes"]["anchor_ns"].values[0] + run.attrs["clock_anchor_unix_ns"] == 1_700_000_000_000_001_500


def test_flows_of_any_kind(tmp_path):
    flow = {"cat": "mine", "name": "mine", "pid": 1, "tid": 1}
    run = load(tmp_path, [x(ts=0), x(ts=5), x(ts=9), {**flow, "ph": "s", "id": "0xff", "ts": 0},
                          {**flow, "ph": "t", "id": "0xff", "ts": 5}, {**flow, "ph": "f", "id": "0xff", "ts": 9},
                          {**flow, "ph": "s", "id": 3, "ts": 0}])  # fmt: skip
    assert [(r["kind"], r["source_index"], r["target_index"]) for r in rows(run, "links")] == [
        ("flow", 0, 1), ("flow", 1, 2),
    ]  # fmt: skip
    assert run.attrs["trace"]["single_flows"] == 1


def test_what_has_no_place_is_counted(tmp_path):
    run = load(tmp_path, [x(), {"ph": "b", "id": 1, "ts": 0}, {"ph": "e", "id": 1, "ts": 1}, {"ph": "e", "ts": 1}])
    assert run.attrs["trace"]["left_out"] == {"b": 1, "e": 2}
    assert "2 of phase 'e'" in run.attrs["warnings"][0]


def test_graphs_drivers_and_synchronisations(tmp_path):
    def host(name, ts, correlation, cat="cuda_runtime", dur=2):
        return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 9, "ts": ts, "dur": dur,
                "args": {"correlation": correlation}}  # fmt: skip

    def device(name, ts, correlation, cat="kernel", stream=7):
        return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": ts, "dur": 3,
                "args": {"correlation": correlation, "stream": stream, "device": 0}}  # fmt: skip

    flow = {"cat": "ac2g", "name": "ac2g", "id": 1}
    run = load(tmp_path, [
        {**x("aten::mm", 0, 9), "pid": 9, "tid": 9},
        host("cudaGraphLaunch", 1, 1), host("cuLaunchKernelEx", 4, 2, "cuda_driver"),
        device("Stream Sync", 20, 3, "cuda_sync"), host("cudaStreamSynchronize", 12, 3, dur=20),
        device("first", 12, 1), device("second", 16, 1), device("triton", 11, 2, stream=8),
        {**flow, "ph": "s", "pid": 9, "tid": 9, "ts": 1}, {**flow, "ph": "f", "pid": 0, "tid": 7, "ts": 16, "bp": "e"},
        {"ph": "X", "cat": "overhead", "name": "Buffer Flush", "pid": -1, "tid": 0, "ts": 30, "dur": 1},
    ])  # fmt: skip
    kernels, calls = rows(run, "kernels"), rows(run, "runtime")
    assert [(k["name"], calls[k["runtime_index"]]["name"], k["operator_index"]) for k in kernels] == [
        ("first", "cudaGraphLaunch", 0), ("second", "cudaGraphLaunch", 0), ("triton", "cuLaunchKernelEx", 0),
    ]  # fmt: skip
    assert [(c["name"], c["category"], c["operator_index"]) for c in calls[2:]] == [
        ("Stream Sync", "cuda_sync", -1), ("cudaStreamSynchronize", "cuda_runtime", -1),
    ]  # fmt: skip
    assert [(link["source_index"], link["target_index"]) for link in rows(run, "links")] == [(0, 1)]
    assert [row["category"] for row in rows(run, "annotations")] == ["overhead"]
    assert run.attrs["warnings"] == []


def test_formats_are_told_by_content(tmp_path):
    assert detect_format(write(tmp_path, json.dumps([x()]))) == "chrome"
    assert detect_format(write(tmp_path, json.dumps(EVENTS))) == "kineto"
    assert detect_format(write(tmp_path, json.dumps({"traceEvents": EVENTS}), "x.gz")) == "kineto"
    assert detect_format(write(tmp_path, json.dumps({"schemaVersion": 1, "traceEvents": EVENTS}))) == "kineto"
    with pytest.raises(InputError, match="known format"):
        detect_format(write(tmp_path, "no"))
    with pytest.raises(InputError, match="no such file"):
        import_trace(tmp_path / "none")
    with pytest.raises(InputError, match="Did you mean 'kineto'"):
        import_trace(write(tmp_path, "[]"), format="kinto")
    with pytest.raises(InputError, match="positive"):
        import_trace(write(tmp_path, "[]"), max_bytes=0)
    assert formats()[-2:] == ["kineto", "chrome"]


def test_progress_is_told(tmp_path):
    told = []
    load(tmp_path, EVENTS, progress=lambda done, size: told.append((done, size)))
    assert told[-1][0] == told[-1][1] > 0


def module(name, ts, dur, **more):
    return x(f"nn.Module: {name}", ts, dur, **more)


def test_calls_of_modules_are_layers(tmp_path):
    step = {"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 1, "dur": 100}
    calls = [[module("Net_0", t, 50), module("Relu_0", t + 1, 5), x("op", t + 2, 1), module("Linear_0", t + 10, 20),
              module("Relu_0", t + 40, 5), x("op", t + 60, 1)] for t in (0, 100)]  # fmt: skip
    launch = {"ph": "X", "cat": "cuda_runtime", "name": "l", "pid": 1, "tid": 1, "ts": 12, "dur": 1,
              "args": {"correlation": 1}}  # fmt: skip
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 180, "dur": 1,
              "args": {"correlation": 1}}  # fmt: skip
    run = load(tmp_path, [{**step, "name": "ProfilerStep#1", "ts": 0}, {**step, "name": "ProfilerStep#2", "ts": 100},
                          *calls[0], *calls[1][:-2], launch, kernel])  # fmt: skip
    layers = run["layers"].to_dataset()
    assert layers["name"].values.tolist() == ["Net_0", "Relu_0", "Linear_0", "Relu_0#2"]
    assert layers["type"].values.tolist() == ["Net", "Relu", "Linear", "Relu"]
    assert layers["scope"].values.tolist() == ["Net_0", "Net_0.Relu_0", "Net_0.Linear_0", "Net_0.Relu_0"]
    assert layers["parent"].values.tolist() == [-1, 0, 0, 0]
    assert (layers["exclusive_ns"].values // 1000).tolist() == [[20, 5, 20, 5], [25, 5, 20, -1]]
    assert [row["layer_index"] for row in rows(run, "operators")] == [0, 1, 1, 2, 3, -1, 0, 1, 1, 2]
    (work,) = rows(run, "kernels")
    assert (work["layer_index"], work["iteration"]) == (2, 0)
    alone = load(tmp_path, [module("Net_0", 0, 1)])
    assert "layers" not in alone.children
    assert "marks no steps" in alone.attrs["unavailable"]["layers"]


RECORD = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
with torch.profiler.profile(
    activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True, with_modules=True, record_shapes=True,
    profile_memory=True, schedule=torch.profiler.schedule(wait=0, warmup=1, active=2, repeat=1),
    on_trace_ready=lambda profile: profile.export_chrome_trace(sys.argv[1]),
) as profile:
    for _ in range(3):
        model(torch.ones(3, 4)).sum().backward()
        profile.step()
"""


def test_a_trace_that_pytorch_writes_today(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "trace.json.gz"
    # in a process of its own: PyTorch's tracer of Python calls does not survive pytest's stack
    subprocess.run([sys.executable, "-c", RECORD, str(path)], check=True, capture_output=True)
    run = import_trace(path)
    validate(run)
    assert run.attrs["backend"] == "kineto"
    assert run.attrs["warnings"] == []
    assert abs(run["passes"]["anchor_ns"].values[0] + run.attrs["clock_anchor_unix_ns"] - time.time_ns()) < 600e9
    layers = run["layers"].to_dataset()
    assert layers["type"].values.tolist() == ["Sequential", "Linear", "ReLU", "Linear"]
    assert layers.sizes["layer_iteration"] == 2
    operators = rows(run, "operators")
    inside = [row["shapes"] for row in operators if row["name"] == "aten::linear" and row["layer_index"] == 1]
    assert inside == ["float[3,4];float[4,4];float[4]"] * 2
    assert {row["kind"] for row in rows(run, "links")} == {"forward_backward"}
    assert {row["device"] for row in rows(run, "memory")} == {"cpu"}
