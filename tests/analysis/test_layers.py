from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.analysis.layer_types import latency_by_type, layer_types, memory_by_type
from mlscope_lab.analysis.layers import coverage, layer_data, layer_information, layer_latency, layer_times
from mlscope_lab.analysis.memory import layer_memory
from mlscope_lab.errors import SchemaError
from mlscope_lab.testing import synthetic_pass, synthetic_run
from mlscope_lab.trace.build import build_run
from mlscope_lab.trace.records import EventTable, LayerTable, LayerTrace


def layered(run, starts, durations, *, whole=100, parents=None, exclusive=None, types=None, events=None):
    """A run of one traced predict with these layers."""
    n = len(starts)
    record = synthetic_pass(level="layer", layers=4, iterations=1)
    start = np.array([starts], dtype=np.int64) + record.anchor_ns
    table = LayerTable(
        name=tuple(f"l{i}" for i in range(n)), type=tuple(types or ["Conv"] * n), scope=("",) * n,
        parent=tuple(parents or [-1] * n), depth=(0,) * n, input_shapes=("",) * n, output_shapes=("",) * n,
        parameter_bytes=(-1,) * n, activation_bytes=(8,) * n, sources=("",) * n,
    )  # fmt: skip
    length = np.array([durations], dtype=np.int64)
    trace = LayerTrace(
        layers=table, start_ns=start, duration_ns=length,
        exclusive_ns=length if exclusive is None else np.array([exclusive], dtype=np.int64),
        iteration_start_ns=np.array([record.anchor_ns]), iteration_duration_ns=np.array([whole]), events=events or {},
    )  # fmt: skip
    passes = [synthetic_pass(), dataclasses.replace(record, layers=trace)]
    return build_run(attrs=run.attrs, passes=passes)


def test_rows_of_a_predict_sum_to_it(flat):
    found = layer_latency(flat)
    assert found["layer"].values.tolist()[-2:] == ["(no layer)", "(overlap)"]
    data = layer_data(flat)
    one = flat.copy()
    one["layers"] = data.isel(layer_iteration=[0])
    single = layer_latency(one)
    assert float(single["exclusive_ns"].sum()) == float(single["pass_ns"])
    assert float(latency_by_type(one)["exclusive_ns"].sum()) == float(single["pass_ns"])


def test_concurrent_layers_are_counted_and_their_overlap_taken_off(flat):
    run = layered(flat, [10, 30], [40, 40], types=["Conv", "Relu"])
    found = layer_latency(run)
    assert found["exclusive_ns"].values.tolist() == [40, 40, 40, -20]
    assert float(found["covered_ns"]) == 60
    assert latency_by_type(run)["exclusive_ns"].values.tolist() == [40, 40, 40, -20]


def test_a_containers_own_time_is_not_that_of_leaves(flat):
    run = layered(
        flat,
        [0, 10, 10],
        [90, 30, 20],
        parents=[-1, 0, 0],
        exclusive=[0, 30, 40],
        types=["Block", "Conv", "functional"],
    )
    found = coverage(layer_data(run))
    assert (found.covered.tolist(), found.leaves.tolist(), found.whole.tolist()) == ([90], [30], [100])


intervals = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), min_size=1, max_size=8)


@given(intervals)
def test_no_union_is_above_the_whole(flat, rows):
    run = layered(flat, [s for s, _ in rows], [d for _, d in rows])
    found = coverage(layer_data(run))
    assert 0 <= found.leaves[0] <= found.covered[0] <= found.whole[0]
    assert float(layer_latency(run)["exclusive_ns"].sum()) == 100
    assert float(latency_by_type(run)["exclusive_ns"].sum()) == 100


def test_a_layer_that_runs_sometimes_keeps_its_row():
    run = synthetic_run(processes=1)
    data = run["layers"].to_dataset()
    for name in ("start_ns", "duration_ns", "exclusive_ns"):
        data[name].values[::2, 5] = -1
    found = layer_latency(run)
    assert found["calls"].values[5] == 4
    assert found["exclusive_ns"].values[5] > 0


def test_types_are_counted_and_containers_said(run):
    found = layer_types(run)
    assert int(found["count"].sum()) == 12
    assert found["share"].values.sum() == pytest.approx(1)
    assert dict(zip(found["type"].values, found["containers"].values.tolist(), strict=True))["Block"] == 3
    assert (np.diff(found["count"].values) <= 0).all()


def test_latency_by_type_is_sorted_and_bounded(run):
    found = latency_by_type(run)
    assert found["type"].values.tolist()[-2:] == ["(no layer)", "(overlap)"]
    assert (np.diff(found["exclusive_ns"].values[:-2]) <= 0).all()
    assert (found["low_ns"] <= found["exclusive_ns"]).all()
    assert (found["exclusive_ns"] <= found["high_ns"]).all()
    assert found["share"].values.sum() == pytest.approx(1, abs=0.05)


def test_information_holds_what_layer_times_says(run):
    found = layer_information(run)
    assert found["exclusive_ns"].equals(layer_times(run)["exclusive_ns"])
    assert found["index"].values.tolist() == list(range(12))
    assert "allocated_bytes" not in found
    assert found.attrs["allocated_source"].startswith("unavailable")


def allocations(layers, sizes, devices):
    n = len(layers)
    names = tuple(dict.fromkeys(devices))
    return EventTable(
        columns={
            "iteration": np.zeros(n, dtype=np.int32), "time_ns": np.arange(n, dtype=np.int64) + 10**9,
            "device_code": np.array([names.index(d) for d in devices], dtype=np.int32),
            "bytes": np.array(sizes, dtype=np.int64), "allocated_bytes": np.full(n, -1, dtype=np.int64),
            "layer_index": np.array(layers, dtype=np.int32),
        },
        tables={"device": names},
    )  # fmt: skip


def test_allocations_by_layer(flat):
    memory = allocations([0, 0, 1, -1, -1], [100, -100, 50, 7, 10**6], ["cpu"] * 4 + ["process"])
    run = layered(flat, [0, 50], [40, 40], types=["Conv", "Relu"], events={"memory": memory})
    found = layer_memory(run)
    # what is freed stays allocated by the layer, and the process's own size is nobody's allocation
    assert found["allocated_bytes"].values.tolist() == [100, 50, 7]
    assert "/memory" in found.attrs["allocated_source"]
    assert layer_information(run)["allocated_bytes"].values.tolist() == [100, 50]
    by_type = memory_by_type(run)
    assert by_type["type"].values.tolist() == ["Conv", "Relu", "(no layer)"]
    assert by_type["allocated_bytes"].values.tolist() == [100, 50, 7]
    assert by_type["parameter_bytes"].values.tolist() == [-1, -1, -1]


def test_operators_say_what_they_allocate_once(flat):
    operators = EventTable(
        columns={
            "iteration": np.zeros(4, dtype=np.int32), "start_ns": np.full(4, 10**9, dtype=np.int64),
            "duration_ns": np.ones(4, dtype=np.int64), "parent_index": np.array([-1, 0, 1, -1], dtype=np.int32),
            "layer_index": np.array([0, 0, 0, 1], dtype=np.int32),
            "allocated_bytes": np.array([64, -1, 64, 16], dtype=np.int64),
        }
    )  # fmt: skip
    run = layered(flat, [0, 50], [40, 40], events={"operators": operators})
    assert layer_memory(run)["allocated_bytes"].values.tolist() == [64, 16, 0]


def test_a_source_that_does_not_see_every_allocation_gives_way(flat):
    memory = allocations([0], [100], ["cpu"])
    partial = dataclasses.replace(memory, attrs={"incomplete": "small ones do not show"})
    operators = EventTable(
        columns={
            "iteration": np.zeros(2, dtype=np.int32), "start_ns": np.full(2, 10**9, dtype=np.int64),
            "duration_ns": np.ones(2, dtype=np.int64), "layer_index": np.array([0, 1], dtype=np.int32),
            "allocated_bytes": np.array([104, 16], dtype=np.int64),
        }
    )  # fmt: skip
    whole = layered(flat, [0, 50], [40, 40], events={"memory": memory, "operators": operators})
    assert layer_memory(whole)["allocated_bytes"].values.tolist() == [100, 0, 0]
    run = layered(flat, [0, 50], [40, 40], events={"memory": partial, "operators": operators})
    assert layer_memory(run)["allocated_bytes"].values.tolist() == [104, 16, 0]


def test_activations_are_analytic_and_containers_left_out(run):
    by_type = memory_by_type(run).to_dataframe()
    assert by_type.loc["Block", "activation_bytes"] == -1
    assert by_type.loc["Conv", "activation_bytes"] == 2 * 4 * 8 * 16 * 16
    assert layer_memory(run)["layer"].values[-1] == "(no layer)"


def test_without_layers():
    bare = synthetic_run(layers=0)
    for analysis in (layer_latency, layer_memory, layer_types, latency_by_type, memory_by_type, layer_information):
        with pytest.raises(SchemaError, match="Profile again with level='layer'"):
            analysis(bare)
