from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from mlscope_lab.store import Store
from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.importers import import_trace
from mlscope_lab.trace.validate import validate
from tests.trace.importers import plain_reference as reference
from tests.trace.importers.chrome_files import rows


@pytest.fixture(scope="module", params=reference.TRACES)
def both(request):
    """A recorded trace as we read it, and as the standard library does."""
    path = reference.recorded(request.param)
    return import_trace(path), reference.read(path)


def spans_by_stream(run):
    spans = defaultdict(list)
    for row in rows(run, "kernels"):
        spans[row["device"], row["stream"]].append((row["start_ns"], row["start_ns"] + row["duration_ns"]))
    return spans


def test_every_event_is_there_to_the_nanosecond(both):
    run, events = both
    anchor = int(run["passes"]["anchor_ns"].values[0])
    assert anchor == min(e["ts"] for e in events if e["ph"] in "Xi")
    ours = sorted(
        (row["start_ns"] + anchor, row["duration_ns"], row["name"], row["category"])
        for group in ("operators", "runtime", "kernels", "annotations", "counters")
        for row in rows(run, group)
    )
    theirs = sorted((e["ts"], e.get("dur", 0), e["name"], e.get("cat", "")) for e in events if e["ph"] in "Xi")
    assert ours == theirs
    assert run.attrs["trace"]["events"] == len(events)
    assert run["passes"]["dropped_events"].values.tolist() == [0]
    assert (
        run["passes"]["wall_ns"].values[0] == max(e["ts"] + e.get("dur", 0) for e in events if e["ph"] in "Xi") - anchor
    )
    validate(run)


def test_busy_and_idle_time_of_every_stream(both):
    run, events = both
    found = {
        place: (
            reference.covered(spans),
            max(e for _, e in spans) - min(s for s, _ in spans) - reference.covered(spans),
        )
        for place, spans in spans_by_stream(run).items()
    }
    assert found == reference.by_stream(events)


def test_kernels_by_name(both):
    run, events = both
    total, count = defaultdict(int), defaultdict(int)
    for row in rows(run, "kernels"):
        if row["category"] == "kernel":
            total[row["name"]] += row["duration_ns"]
            count[row["name"]] += 1
    want = reference.by_name(events)
    assert {name: (total[name], count[name]) for name in total} == want
    top = sorted(want, key=lambda name: (-want[name][0], name))[:10]
    assert sorted(total, key=lambda name: (-total[name], name))[:10] == top


def test_the_v100_trace_as_the_record_has_it():
    path = reference.recorded(reference.TRACES[0])
    run = import_trace(path)
    time = defaultdict(int)
    for row in rows(run, "kernels"):
        time["compute" if row["category"] == "kernel" else "memory"] += row["duration_ns"]
    assert round(time["compute"] / 1000, 1) == 468_153.6
    assert round(time["memory"] / 1000, 1) == 4_300.8
    spans = [span for found in spans_by_stream(run).values() for span in found]
    idle = max(e for _, e in spans) - min(s for s, _ in spans) - reference.covered(spans)
    assert round(idle / 1000) == 7_575
    assert run.attrs["device"] == "cuda:0"
    assert run.attrs["backend"] == "kineto"
    assert run.attrs["environment"]["deviceProperties"][0]["name"] == "Tesla V100-SXM2-32GB"
    assert run["passes"]["measured_iterations"].values.tolist() == [5]


def test_arguments_become_columns(both):
    run, events = both
    theirs = sorted(
        (e["ts"], e["args"]["correlation"], e["args"]["device"], e["args"]["stream"],
         *(e["args"].get("grid") or [-1] * 3), *(e["args"].get("block") or [-1] * 3),
         e["args"].get("registers per thread", -1), e["args"].get("shared memory", -1), e["args"].get("bytes", -1),
         float(e["args"].get("est. achieved occupancy %", -100)) / 100)
        for e in reference.complete(events, *reference.DEVICE)
    )  # fmt: skip
    anchor = int(run["passes"]["anchor_ns"].values[0])
    names = ("correlation", "device", "stream", "grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z",
             "registers", "shared_memory_bytes", "size_bytes")  # fmt: skip
    ours = sorted(
        (row["start_ns"] + anchor, *(row[name] for name in names),
         -1.0 if np.isnan(row["occupancy"]) else row["occupancy"])
        for row in rows(run, "kernels")
    )  # fmt: skip
    assert ours == theirs
    calls = sorted((row["start_ns"] + anchor, row["correlation"], row["thread"]) for row in rows(run, "runtime"))
    assert calls == sorted(
        (e["ts"], e["args"]["correlation"], f"{e['pid']}/{e['tid']}")
        for e in reference.complete(events, "cuda_runtime", "cuda_driver")
    )
    operators = sorted((r["start_ns"] + anchor, r["correlation"], r["sequence"]) for r in rows(run, "operators"))
    assert operators == sorted(
        (e["ts"], e["args"]["External id"], e["args"].get("Sequence number", -1))
        for e in reference.complete(events, "cpu_op")
    )


def test_counters_are_variables():
    path = reference.recorded(reference.TRACES[1])
    run, events = import_trace(path), reference.read(path)
    ranges = reference.complete(events, "cuda_profiler_range")
    names = {name for e in ranges for name in e["args"]}
    assert len(names) == 9
    data = run["counters"].to_dataset()
    for name in names:
        assert data[name].dtype == np.float64
        assert data[name].values.tolist() == [float(e["args"][name]) for e in ranges]
    assert "kernels" not in run.children
    assert run.attrs["level"] == "hardware"
    assert run.attrs["unavailable"]["kernels"]


def test_device_work_belongs_to_its_launch(both):
    run, _ = both
    operators, runtime, kernels = (rows(run, group) for group in ("operators", "runtime", "kernels"))
    if not kernels:
        pytest.skip("this trace holds counters and no kernels")
    calls = {}
    for index, call in enumerate(runtime):
        calls.setdefault(call["correlation"], index)
    steps = [(row["start_ns"], row["start_ns"] + row["duration_ns"]) for row in rows(run, "annotations")
             if row["name"].startswith("ProfilerStep#") and row["category"] == "user_annotation"]  # fmt: skip
    steps.sort()
    for kernel in kernels:
        index = calls.get(kernel["correlation"], -1)
        assert kernel["runtime_index"] == index
        if index < 0:
            assert (kernel["operator_index"], kernel["iteration"]) == (-1, -1)
            continue
        call = runtime[index]
        assert kernel["operator_index"] == call["operator_index"]
        at = [number for number, (start, end) in enumerate(steps) if start <= call["start_ns"] < end]
        assert kernel["iteration"] == (at[0] if at else -1)
        if call["operator_index"] >= 0:
            operator = operators[call["operator_index"]]
            assert operator["thread"] == call["thread"]
            assert 0 <= call["start_ns"] - operator["start_ns"] < operator["duration_ns"]
    assert all(row["layer_index"] == -1 for row in kernels)


def test_operators_nest_within_their_thread(both):
    run, _ = both
    operators = rows(run, "operators")
    for row in operators:
        if row["parent_index"] >= 0:
            parent = operators[row["parent_index"]]
            assert parent["thread"] == row["thread"]
            assert parent["start_ns"] <= row["start_ns"]
            assert parent["start_ns"] + parent["duration_ns"] >= row["start_ns"] + row["duration_ns"]


def test_flows_link_launches_and_backward_operators():
    run = import_trace(reference.recorded(reference.TRACES[0]))
    operators, runtime, kernels = (rows(run, group) for group in ("operators", "runtime", "kernels"))
    data = run["links"].to_dataset()
    kinds = table_of(data, "kind")
    assert kinds.count("launch") == 6095
    assert kinds.count("forward_backward") == 905
    for kind, source, target in zip(kinds, data["source_index"].values, data["target_index"].values, strict=True):
        if kind == "launch":
            assert runtime[source]["correlation"] == kernels[target]["correlation"]
        else:
            assert operators[source]["sequence"] == operators[target]["sequence"] >= 0


def test_a_stored_trace_opens_again(tmp_path):
    run = import_trace(reference.recorded(reference.TRACES[2]))
    store = Store(tmp_path)
    opened = store.open(store.save(run))
    for group in run.children:
        assert opened[group].to_dataset().load().identical(run[group].to_dataset())
