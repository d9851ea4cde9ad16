from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.analysis.device import (
    communication_overlap,
    idle_breakdown,
    kernel_breakdown,
    kernel_kinds,
    stream_utilization,
    temporal_breakdown,
)
from mlscope_lab.errors import InputError


def kernel(name, start, duration, stream=7, *, category="kernel", launch=-1, device=0):
    return {"name": name, "category": category, "start_ns": start, "duration_ns": duration, "stream": stream,
            "device": device, "runtime_index": launch}  # fmt: skip


def call(start, duration=1):
    return {"name": "cudaLaunchKernel", "category": "cuda_runtime", "thread": "1/1", "start_ns": start,
            "duration_ns": duration}  # fmt: skip


@pytest.fixture(scope="module")
def trace(imported):
    """Two streams: computing 100-200 and 230-260, copying 150-250, communicating 240-300."""
    return imported(
        kernels=[
            kernel("gemm", 100, 100, launch=0),
            kernel("gemm", 230, 30, launch=1),
            kernel("Memcpy HtoD", 150, 100, 9, category="gpu_memcpy", launch=2),
            kernel("ncclKernel_AllReduce", 240, 60, 9, launch=3),
        ],
        runtime=[call(50), call(220), call(60), call(70)],
    )


def test_kernels_by_name_with_totals(trace):
    found = kernel_breakdown(trace)
    assert found["kernel"].values.tolist() == ["gemm", "Memcpy HtoD", "ncclKernel_AllReduce"]
    assert found["kind"].values.tolist() == ["compute", "memory", "communication"]
    assert found["total_ns"].values.tolist() == [130, 100, 60]
    assert found["count"].values.tolist() == [2, 1, 1]
    assert (found["minimum_ns"].values[0], found["maximum_ns"].values[0]) == (30, 100)
    assert found["deviation_ns"].values[0] == pytest.approx(math.sqrt(2450))
    assert found["total_ns"].attrs["units"] == "ns"
    kinds = kernel_kinds(trace)
    assert dict(zip(kinds["kind"].values, kinds["busy_ns"].values.tolist(), strict=True)) == {
        "compute": 130, "communication": 60, "memory": 100,
    }  # fmt: skip


def test_time_of_the_device_sums_to_its_span(trace):
    (row,) = temporal_breakdown(trace).to_dataframe().to_dict("records")
    assert (row["span_ns"], row["busy_ns"], row["idle_ns"]) == (200, 200, 0)
    assert (row["compute_ns"], row["non_compute_ns"]) == (130, 70)


def test_streams(trace):
    found = stream_utilization(trace)
    assert found["stream"].values.tolist() == ["device 0 stream 7", "device 0 stream 9"]
    assert found["busy_ns"].values.tolist() == [130, 150]
    assert found["idle_ns"].values.tolist() == [30, 0]


def test_idle_time_says_what_it_waits_for(imported):
    run = imported(
        kernels=[
            kernel("a", 100, 10, launch=0),
            kernel("b", 150, 10, launch=1),  # launched at 120, after a had ended: the host was late by 40
            kernel("c", 165, 10, launch=2),  # launched at 130, in time: 5 ns between kernels
            kernel("d", 275, 10, launch=3),  # launched at 140, in time, yet 100 ns late
            kernel("e", 300, 10),  # nobody knows when it was launched
        ],
        runtime=[call(50), call(120), call(130), call(140)],
    )
    (row,) = idle_breakdown(run).to_dataframe().to_dict("records")
    assert (row["host_wait_ns"], row["kernel_wait_ns"], row["other_ns"]) == (40, 5, 115)
    assert row["idle_ns"] == 160
    assert (row["gaps"], row["unknown_launches"]) == (4, 1)
    assert idle_breakdown(run, kernel_delay_ns=101)["kernel_wait_ns"].values.tolist() == [105]
    with pytest.raises(InputError, match="must not be negative"):
        idle_breakdown(run, kernel_delay_ns=-1)


def test_waiting_for_an_event_is_no_work(imported):
    run = imported(kernels=[kernel("k", 0, 10), kernel("Event Sync", 0, 500, category="cuda_sync")])
    assert temporal_breakdown(run)["busy_ns"].values.tolist() == [10]
    assert set(kernel_breakdown(run)["kind"].values) == {"compute", "synchronisation"}


def test_computing_hides_communication(trace):
    (row,) = communication_overlap(trace).to_dataframe().to_dict("records")
    assert (row["communication_ns"], row["overlap_ns"], row["exposed_ns"]) == (60, 20, 40)
    assert row["overlap_share"] == pytest.approx(1 / 3)


def test_devices_are_told_apart(imported):
    run = imported(kernels=[kernel("k", 0, 10), kernel("k", 5, 10, device=1), kernel("k", 40, 10, device=1)])
    found = temporal_breakdown(run)
    assert found["device"].values.tolist() == [0, 1]
    assert found["idle_ns"].values.tolist() == [0, 25]
    assert math.isnan(communication_overlap(run)["overlap_share"].values[0])


def test_threads_take_the_place_of_streams(imported):
    operators = [
        {"name": "conv", "category": "cpu_op", "thread": "main", "start_ns": 0, "duration_ns": 50, "parent_index": -1},
        {
            "name": "conv2d",
            "category": "cpu_op",
            "thread": "main",
            "start_ns": 10,
            "duration_ns": 30,
            "parent_index": 0,
        },
        {"name": "add", "category": "cpu_op", "thread": "other", "start_ns": 60, "duration_ns": 5, "parent_index": -1},
    ]
    run = imported(operators=operators)
    assert temporal_breakdown(run)["busy_ns"].values.tolist() == [55]
    assert stream_utilization(run)["stream"].values.tolist() == ["thread main", "thread other"]
    assert "operators" in idle_breakdown(run).attrs["source"]
    totals = kernel_breakdown(run)
    assert totals["total_ns"].values.sum() == 55


rows = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 30), st.integers(0, 3), st.integers(0, 1), st.integers(-1, 100)),
    min_size=1, max_size=20,
)  # fmt: skip


@given(rows)
def test_any_kernels_add_up(imported, drawn):
    run = imported(
        kernels=[kernel(f"k{i % 3}", s, d, stream, device=dev, launch=i if at >= 0 else -1)
                 for i, (s, d, stream, dev, at) in enumerate(drawn)],
        runtime=[call(max(at, 0)) for *_, at in drawn],
    )  # fmt: skip
    streams, idle, time = stream_utilization(run), idle_breakdown(run), temporal_breakdown(run)
    assert (streams["busy_ns"] + streams["idle_ns"] == streams["span_ns"]).all()
    # gaps before the first and after the last kernel are nobody's, so that both say the same
    assert idle["idle_ns"].values.tolist() == streams["idle_ns"].values.tolist()
    assert (idle["host_wait_ns"] + idle["kernel_wait_ns"] + idle["other_ns"] == idle["idle_ns"]).all()
    assert (time["compute_ns"] + time["non_compute_ns"] + time["idle_ns"] == time["span_ns"]).all()
    assert kernel_breakdown(run)["total_ns"].values.sum() == sum(d for _, d, *_ in drawn)
