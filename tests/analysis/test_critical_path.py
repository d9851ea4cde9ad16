from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.analysis.critical_path import critical_path, critical_path_by_name
from mlscope_lab.errors import InputError


def kernel(name, start, duration, launch, stream=7, **more):
    return {"name": name, "category": "kernel", "start_ns": start, "duration_ns": duration, "stream": stream,
            "device": 0, "runtime_index": launch} | more  # fmt: skip


def call(name, start, duration, thread="main", **more):
    return {"name": name, "category": "cuda_runtime", "thread": thread, "start_ns": start,
            "duration_ns": duration} | more  # fmt: skip


def operator(name, start, duration, parent=-1, thread="main", **more):
    return {"name": name, "category": "cpu_op", "thread": thread, "start_ns": start, "duration_ns": duration,
            "parent_index": parent} | more  # fmt: skip


def pieces(found):
    return [
        (kind, name, int(start), int(length))
        for kind, name, start, length in zip(
            found["kind"].values, found["name"].values, found["start_ns"].values, found["duration_ns"].values,
            strict=True,
        )
    ]  # fmt: skip


def test_through_launches_streams_and_the_host(imported):
    run = imported(
        operators=[operator("conv", 0, 40), operator("launching", 5, 20, 0), operator("relu", 45, 15),
                   operator("sync", 62, 138)],
        runtime=[call("cudaLaunchKernel", 10, 10), call("cudaLaunchKernel", 50, 5),
                 call("cudaDeviceSynchronize", 70, 120)],
        kernels=[kernel("gemm", 30, 100, 0), kernel("relu_kernel", 135, 45, 1)],
    )  # fmt: skip
    found = critical_path(run)
    assert pieces(found) == [
        ("host", "conv", 0, 5), ("host", "launching", 5, 15),  # until the call that launched gemm was over
        ("launch", "gemm", 20, 10), ("device", "gemm", 30, 100),
        ("wait", "relu_kernel", 130, 5),  # the stream was busy when it had been launched
        ("device", "relu_kernel", 135, 45),
        ("host", "sync", 180, 20),  # after the kernel that the call waited for
    ]  # fmt: skip
    assert {n: int(found[f"{n}_ns"]) for n in ("path", "device", "host", "launch", "wait")} == {
        "path": 200, "device": 145, "host": 40, "launch": 10, "wait": 5,
    }  # fmt: skip


def test_a_host_that_is_late_is_the_path(imported):
    run = imported(
        operators=[operator("one", 0, 20), operator("slow", 20, 200), operator("two", 220, 30)],
        runtime=[call("cudaLaunchKernel", 10, 5), call("cudaLaunchKernel", 230, 5)],
        kernels=[kernel("a", 20, 30, 0), kernel("b", 240, 60, 1)],
    )
    assert pieces(critical_path(run)) == [
        ("host", "one", 0, 20), ("host", "slow", 20, 200), ("host", "two", 220, 15), ("launch", "b", 235, 5),
        ("device", "b", 240, 60),
    ]  # fmt: skip


def test_a_copy_that_returns_when_it_is_done_is_waited_for(imported):
    run = imported(
        operators=[operator("copy", 0, 100)],
        runtime=[call("cudaMemcpyAsync", 10, 70)],
        kernels=[kernel("Memcpy DtoH", 30, 40, 0)],
    )
    assert pieces(critical_path(run)) == [
        ("host", "copy", 0, 30), ("device", "Memcpy DtoH", 30, 40), ("host", "copy", 70, 30),
    ]  # fmt: skip


def test_a_thread_that_comes_later_waited_for_the_first(imported):
    run = imported(
        operators=[operator("forward", 0, 100), operator("backward", 110, 50, thread="autograd")],
        runtime=[call("cudaLaunchKernel", 120, 5, "autograd")],
        kernels=[kernel("k", 130, 100, 0)],
    )
    assert pieces(critical_path(run)) == [
        ("host", "forward", 0, 100), ("host", "", 100, 10), ("host", "backward", 110, 15), ("launch", "k", 125, 5),
        ("device", "k", 130, 100),
    ]  # fmt: skip


def test_operators_alone_are_the_hosts_own_time(imported):
    run = imported(operators=[operator("a", 0, 10), operator("inside", 2, 3, 0), operator("b", 15, 5)])
    found = critical_path(run)
    assert pieces(found) == [("host", "a", 0, 2), ("host", "inside", 2, 3), ("host", "a", 5, 5), ("host", "", 10, 5),
                             ("host", "b", 15, 5)]  # fmt: skip
    assert "operators" in found.attrs["source"]


def test_an_iteration_is_chosen(imported, run):
    kernels = [kernel("k", s, d, -1, iteration=i) for i, (s, d) in enumerate([(0, 10), (100, 30), (200, 20)])]
    trace = imported(kernels=kernels)
    assert critical_path(trace).attrs["iteration"] == 2  # of median length
    assert int(critical_path(trace, iteration=1)["device_ns"]) == 30
    with pytest.raises(InputError, match="one of 0 to 2, not 9"):
        critical_path(trace, iteration=9)
    with pytest.raises(InputError, match="no iteration is marked"):
        critical_path(imported(kernels=[kernel("k", 0, 10, -1)]), iteration=3)
    measured = critical_path(run)
    layers = run["layers"].to_dataset()
    lengths = layers["pass_duration_ns"].values[layers["pass_index"].values == 2]
    assert int(measured["path_ns"]) == sorted(lengths)[4]
    assert set(measured["layer"].values) > {"block0.layer1", "(no layer)"}


def test_by_name(imported):
    run = imported(operators=[operator("a", 0, 10), operator("inside", 2, 3, 0), operator("b", 15, 5)])
    found = critical_path_by_name(run)
    assert dict(zip(found["name"].values, found["duration_ns"].values.tolist(), strict=True)) == {
        "a": 7, "": 5, "b": 5, "inside": 3,
    }  # fmt: skip
    assert found["count"].values.tolist() == [2, 1, 1, 1]
    assert float(found["share"].sum()) == pytest.approx(1)
    assert int(found["path_ns"]) == int(found["duration_ns"].sum()) == 20


drawn = st.lists(
    st.tuples(st.integers(0, 80), st.integers(0, 15), st.integers(0, 60), st.integers(0, 30), st.integers(0, 1)),
    min_size=1, max_size=12,
)  # fmt: skip


@given(drawn, st.integers(0, 120), st.integers(0, 60))
def test_any_trace_is_tiled_without_a_gap(imported, rows, sync, wait):
    calls = [call("cudaLaunchKernel", s, d) for s, d, *_ in rows] + [call("cudaStreamSynchronize", sync, wait)]
    kernels = [kernel(f"k{i}", s + gap, length, i, stream) for i, (s, _, gap, length, stream) in enumerate(rows)]
    found = critical_path(imported(kernels=kernels, runtime=calls, operators=[operator("o", 0, 50)]))
    starts, lengths = found["start_ns"].values, found["duration_ns"].values
    assert int(lengths.sum()) == int(found["path_ns"])
    assert ((starts + lengths)[:-1] == starts[1:]).all()
    assert sum(int(found[f"{kind}_ns"]) for kind in ("device", "host", "launch", "wait")) == int(found["path_ns"])
