"""Events below the layers, on recorded traces of CUDA devices and on small ones made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.backends.pytorch_events import MARK_PREFIX, event_tables
from mlscope_lab.backends.pytorch_kineto import Allocations
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.events import table_of
from tests.gpu.recorded import columns, frame, load_recorded, nanoseconds, outermost

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def recorded(name):
    try:
        return load_recorded(name)
    except FileNotFoundError as error:
        pytest.skip(f"there is no {error.filename}")


def op(name, start, duration, thread=1, operator=-1):
    return (name, "cpu_op", start, duration, -1, thread, -1, operator)


def test_work_belongs_to_the_layer_that_was_running_on_its_thread():
    found = event_tables(
        columns([
            op(MARK_PREFIX + "0", 5, 90), op("outer", 10, 50), op("inner", 20, 10), op("between", 70, 5),
            op("other thread", 25, 5, thread=2), op("after", 120, 5), op("[memory]", 21, 0),
        ]),
        frame(calls=[(5, 90, 1, 0), (8, 55, 1, 3)], iterations=[(0, 100)], offset=1000), process=7,
    )["operators"]  # fmt: skip
    assert [found.tables["name"][c] for c in found.columns["name_code"]] == [
        "outer", "inner", "other thread", "between", "after",
    ]  # fmt: skip
    assert found.columns["layer_index"].tolist() == [3, 3, -1, 0, -1]
    assert found.columns["parent_index"].tolist() == [-1, 0, -1, -1, -1]
    assert found.columns["iteration"].tolist() == [0, 0, 0, 0, -1]
    assert found.columns["start_ns"].tolist() == [1010, 1020, 1025, 1070, 1120]
    assert [found.tables["thread"][c] for c in found.columns["thread_code"]] == ["7/1", "7/1", "7/2", "7/1", "7/1"]


def test_backward_work_in_its_own_thread_belongs_to_the_layer_of_its_forward():
    tables = event_tables(
        columns(
            [op("forward", 10, 5), op("later", 30, 5), op("backward", 50, 9, 2), op("inside", 52, 2, 2),
             op("stray", 70, 1, 2)],
            flows=[4, 0, 4, 0, 0],
        ),
        frame(calls=[(5, 15, 1, 6), (25, 15, 1, 8)], iterations=[(0, 100)]),
    )  # fmt: skip
    assert tables["operators"].columns["layer_index"].tolist() == [6, 8, 6, 6, -1]
    links = tables["links"]
    assert links.tables["kind"] == ("forward_backward",)
    assert (links.columns["source_index"].tolist(), links.columns["target_index"].tolist()) == ([0], [2])


def test_device_work_belongs_to_its_launch():
    tables = event_tables(
        columns(
            [
                op("a", 10, 10, operator=11), op("b", 40, 10, operator=12),
                ("launch", "cuda_runtime", 12, 2, -1, 1, 101, 11), ("launch", "cuda_runtime", 42, 2, -1, 1, 102, 12),
                ("bare", "cuda_driver", 60, 2, -1, 1, 103, -1), ("sync", "cuda_runtime", 80, 15, -1, 1, 104, -1),
                ("k1", "kernel", 41, 30, 0, 7, 101, 11), ("k2", "kernel", 71, 20, 0, 7, 102, 12),
                ("k3", "kernel", 91, 1, 0, 9, 103, -1), ("lost", "kernel", 95, 1, 0, 9, 555, 12),
                ("nobody's", "gpu_memset", 96, 1, 0, 9, -1, -1), ("wait", "cuda_sync", 80, 12, 0, 7, 104, -1),
            ],
            arguments={6: {"grid": [2, 3, 4], "registers per thread": 32, "est. achieved occupancy %": 25},
                       10: {"bytes": 64, "grid": "none"}},
        ),
        frame(calls=[(5, 20, 1, 1), (35, 30, 1, 2)], iterations=[(0, 30), (35, 65)]),
    )  # fmt: skip
    kernels = tables["kernels"].columns
    names = [tables["kernels"].tables["name"][c] for c in kernels["name_code"]]
    assert names == ["k1", "k2", "wait", "k3", "lost", "nobody's"]
    assert kernels["layer_index"].tolist() == [1, 2, -1, 2, 2, -1]
    assert kernels["operator_index"].tolist() == [0, 1, -1, -1, 1, -1]
    assert kernels["runtime_index"].tolist() == [0, 1, 3, 2, -1, -1]
    assert kernels["iteration"].tolist() == [0, 1, 1, 1, 1, -1]
    assert kernels["stream"].tolist() == [7, 7, 7, 9, 9, 9]
    assert kernels["grid_y"].tolist() == [3, -1, -1, -1, -1, -1]
    assert kernels["size_bytes"].tolist() == [-1, -1, -1, -1, -1, 64]
    assert kernels["occupancy"][0] == 0.25
    assert np.isnan(kernels["occupancy"][1])
    runtime = tables["runtime"].columns
    assert runtime["operator_index"].tolist() == [0, 1, -1, -1]
    links = tables["links"].columns
    assert links["source_index"].tolist() == [0, 1, 3, 2]
    assert links["target_index"].tolist() == [0, 1, 2, 3]


def test_ranges_of_users_are_annotations_and_no_operators():
    tables = event_tables(
        columns([("step", "user_annotation", 0, 50, -1, 1, -1, 3), op("a", 10, 5, operator=4),
                 ("step", "gpu_user_annotation", 20, 5, 0, 7, -1, -1)]),
        frame(), process=7,
    )  # fmt: skip
    assert tables["operators"].columns["parent_index"].tolist() == [-1]
    found = tables["annotations"]
    assert [found.tables["thread"][c] for c in found.columns["thread_code"]] == ["7/1", "cuda:0 stream 7"]


def test_memory_by_layer_and_operator():
    memory = Allocations(
        time_ns=np.array([12, 14, 40, 60]), thread=np.array([1, 1, 1, 2]),
        arguments=[
            {"Bytes": 100, "Total Allocated": 100, "Total Reserved": 0, "Device Type": 0, "Device Id": -1, "Addr": 5},
            {"Bytes": 20, "Total Allocated": 20, "Total Reserved": 64, "Device Type": 1, "Device Id": 0, "Addr": 6},
            {"Bytes": -100, "Total Allocated": 0, "Total Reserved": 0, "Device Type": 0, "Device Id": -1, "Addr": 5},
            {"Bytes": 8},
        ],
    )  # fmt: skip
    tables = event_tables(
        columns([op("a", 10, 5), op("inside", 13, 2)]), frame(calls=[(5, 50, 1, 4)], iterations=[(0, 50)], offset=3),
        memory=memory,
    )  # fmt: skip
    found = tables["memory"]
    assert [found.tables["device"][c] for c in found.columns["device_code"]] == ["cpu", "cuda:0", "cpu", "cpu"]
    assert found.columns["time_ns"].tolist() == [15, 17, 43, 63]
    assert found.columns["layer_index"].tolist() == [4, 4, 4, -1]
    assert found.columns["operator_index"].tolist() == [0, 1, -1, -1]
    assert found.columns["allocated_bytes"].tolist() == [100, 20, 0, -1]
    assert found.columns["reserved_bytes"].tolist() == [-1, 64, -1, -1]
    assert tables["operators"].columns["allocated_bytes"].tolist() == [100, 20]


def test_nothing_recorded_is_an_empty_table():
    tables = event_tables(columns([]), frame())
    assert set(tables) == {"operators"}
    assert len(tables["operators"]) == 0


# -- recorded traces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ns_resolution_rank0.pt.trace.json.gz", "two_ranks_rank0.json.gz"])
def test_recorded_kernels_keep_their_time_and_belong_to_their_launch(name):
    trace, events = recorded(name)
    calls = outermost(trace)
    steps = [(nanoseconds(e["ts"]), nanoseconds(e["dur"])) for e in events
             if e.get("cat") == "user_annotation" and e["name"].startswith("ProfilerStep")]  # fmt: skip
    tables = event_tables(trace, frame(calls=calls, iterations=sorted(steps)))
    kernels = tables["kernels"]
    wanted = [event for event in events if event.get("cat") in DEVICE]
    assert len(kernels) == len(wanted)
    assert int(kernels.columns["duration_ns"].sum()) == sum(nanoseconds(event["dur"]) for event in wanted)

    launched = kernels.columns["runtime_index"]
    time = kernels.columns["duration_ns"]
    assert time[launched >= 0].sum() >= 0.99 * time.sum()
    assert time[kernels.columns["operator_index"] >= 0].sum() >= 0.99 * time.sum()
    runtime = tables["runtime"].columns
    known = launched >= 0
    assert (runtime["correlation"][launched[known]] == kernels.columns["correlation"][known]).all()
    assert (runtime["start_ns"][launched[known]] <= kernels.columns["start_ns"][known]).mean() > 0.99

    # one by one, from the launch's own time
    threads = [tables["runtime"].tables["thread"][c].partition("/")[2] for c in runtime["thread_code"]]
    operators = tables["operators"].columns
    for kernel in np.flatnonzero(known)[::97].tolist():
        call = launched[kernel]
        when, thread = runtime["start_ns"][call], int(threads[call])
        layer = [c[3] for c in calls if c[2] == thread and c[0] <= when < c[0] + c[1]]
        found = kernels.columns["layer_index"][kernel]
        if layer:
            assert found == layer[-1]
        elif found >= 0:  # of a thread without layers: the operator that launched it tells
            assert operators["layer_index"][runtime["operator_index"][call]] == found
        step = [i for i, (begin, length) in enumerate(sorted(steps)) if begin <= when < begin + length]
        assert kernels.columns["iteration"][kernel] == (step[0] if step else -1)


def test_recorded_kernels_tell_their_launch_configuration():
    trace, events = recorded("ns_resolution_rank0.pt.trace.json.gz")
    found = event_tables(trace, frame())["kernels"].columns
    by_correlation = {e["args"]["correlation"]: e["args"] for e in events if e.get("cat") == "kernel"}
    seen = 0
    for row, correlation in enumerate(found["correlation"].tolist()):
        if (args := by_correlation.get(correlation)) is None:
            continue
        seen += 1
        assert [found[f"grid_{axis}"][row] for axis in "xyz"] == args["grid"]
        assert [found[f"block_{axis}"][row] for axis in "xyz"] == args["block"]
        assert found["registers"][row] == args["registers per thread"]
        assert found["shared_memory_bytes"][row] == args["shared memory"]
    assert seen == len(by_correlation)
    copies = [e["args"]["bytes"] for e in events if e.get("cat") in {"gpu_memcpy", "gpu_memset"}]
    assert found["size_bytes"][found["size_bytes"] >= 0].sum() == sum(copies)


def test_recorded_backward_operators_belong_to_the_layer_of_their_forward():
    trace, events = recorded("ns_resolution_rank0.pt.trace.json.gz")
    forward_thread = {e["tid"] for e in events if e.get("cat") == "fwdbwd" and e["ph"] == "s"}
    rows = np.flatnonzero(trace.of("cpu_op") & np.isin(trace.thread, list(forward_thread)))
    calls = [(trace.start_ns[r], trace.duration_ns[r], trace.thread[r], n) for n, r in enumerate(rows.tolist())]
    tables = event_tables(trace, frame(calls=calls))
    links = tables["links"]
    backward = links.columns["kind_code"] == links.tables["kind"].index("forward_backward")
    source, target = (links.columns[f"{side}_index"][backward] for side in ("source", "target"))
    assert len(source) == len([e for e in events if e.get("cat") == "fwdbwd" and e["ph"] == "f"])
    layer = tables["operators"].columns["layer_index"]
    assert (layer[source] == layer[target]).all()
    names = tables["operators"].tables["name"]
    codes = tables["operators"].columns["name_code"]
    assert all("Backward" in names[codes[t]] for t in target.tolist())


def test_recorded_counters_follow_the_launches():
    trace, events = recorded("cupti_counters.pt.trace.json.gz")
    tables = event_tables(trace, frame(calls=outermost(trace)))
    counters = tables["counters"]
    ranges = sorted((e for e in events if e.get("cat") == "cuda_profiler_range"), key=lambda e: e["ts"])
    assert len(counters) == len(ranges) == 77
    assert len(tables["kernels"]) == 0
    for metric in ranges[0]["args"]:
        assert counters.columns[metric].tolist() == [float(e["args"][metric]) for e in ranges]
    launches = counters.columns["runtime_index"]
    runtime = tables["runtime"]
    assert {runtime.tables["name"][c] for c in runtime.columns["name_code"][launches]} == {"cudaLaunchKernel"}
    assert (np.diff(runtime.columns["start_ns"][launches]) > 0).all()
    layers = counters.columns["layer_index"]
    assert (layers >= 0).mean() > 0.9
    events = event_tables(trace, frame())
    run = build_imported(attrs={"model": "m", "backend": "kineto"}, events=events, wall_ns=1, level="hardware")
    assert table_of(run["counters"].to_dataset(), "name") == [e["name"] for e in ranges]
    assert (run["counters"]["runtime_index"].values == launches).all()


def test_counters_without_a_launch_each_are_not_guessed():
    launch = ("cudaLaunchKernel", "cuda_runtime", 5, 1, -1, 1, 9, -1)
    ranges = [(name, "cuda_profiler_range", 10 + n, 1, 0, 0, -1, -1) for n, name in enumerate("ab")]
    found = event_tables(columns([launch, *ranges], arguments={1: {"x": 3}, 2: {"x": 4}}), frame())["counters"]
    assert "runtime_index" not in found.columns
    assert found.columns["x"].tolist() == [3.0, 4.0]


# -- any trace ------------------------------------------------------------------------------------------------------

KINDS = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver", "kernel", "gpu_memcpy", "cuda_sync",
         "cuda_profiler_range", "overhead", "python_function")  # fmt: skip
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "cudaLaunchKernel", MARK_PREFIX + "0", "[memory]"]), st.sampled_from(KINDS),
        st.integers(0, 60), st.integers(0, 30), st.integers(-1, 1), st.integers(1, 3), st.integers(-1, 4),
        st.integers(-1, 4),
    ),
    max_size=30,
)  # fmt: skip
SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30), st.integers(1, 3)), max_size=6)


@given(EVENTS, SPANS, st.data())
def test_any_trace_becomes_a_run(rows, spans, data):
    flows = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    words = st.dictionaries(
        st.sampled_from(["grid", "bytes", "metric", "odd"]), st.sampled_from([1, [2, 3, 4], "x", None])
    )
    arguments = {n: data.draw(words) for n, row in enumerate(rows) if row[1] in {"kernel", "cuda_profiler_range"}}
    calls = [(start, length, thread, number) for number, (start, length, thread) in enumerate(spans)]
    tables = event_tables(columns(rows, flows, arguments), frame(calls=calls, iterations=[(0, 20), (25, 20)]))
    run = build_imported(
        attrs={"model": "m", "backend": "b"}, wall_ns=100, level="hardware",
        events={
            group: replace(table, columns={k: v for k, v in table.columns.items() if k != "layer_index"})
            for group, table in tables.items()
        },
    )  # fmt: skip
    assert set(run.children) == {"passes", *tables}
    device = [row for row in rows if row[1] in {"kernel", "gpu_memcpy", "cuda_sync"}]
    if "kernels" in tables:
        assert int(tables["kernels"].columns["duration_ns"].sum()) == sum(row[3] for row in device)
    else:
        assert not device
    operators = tables["operators"].columns
    assert len(tables["operators"]) == sum(
        row[1] == "cpu_op" and row[0] in {"a", "b", "cudaLaunchKernel"} for row in rows
    )
    if not any(flows):
        threads = [int(text.partition("/")[2]) for text in tables["operators"].tables["thread"]]
        for start, thread, layer in zip(
            operators["start_ns"], operators["thread_code"], operators["layer_index"], strict=True
        ):
            inside = [c for c in calls if c[2] == threads[thread] and c[0] <= start < max(c[0] + c[1], c[0] + 1)]
            assert layer == -1 if not inside else layer in {c[3] for c in inside if c[0] == max(c[0] for c in inside)}
