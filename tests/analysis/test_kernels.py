from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.analysis.kernels import kernel_information, kernel_roofline, kernels_by_model, kernels_by_name
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.testing import synthetic_run


def kernel(name, iteration, start, duration, **more):
    return {"name": name, "category": "kernel", "iteration": iteration, "start_ns": start, "duration_ns": duration,
            "stream": 7, "device": 0} | more  # fmt: skip


@pytest.fixture(scope="module")
def trace(imported):
    """Three iterations of gemm, relu, gemm; relu is left out of the last; one kernel before all."""
    rows = [kernel("warm-up", -1, 0, 1000, flop_count_sp=np.nan)]
    for i, begin in enumerate((2000, 4000, 6000)):
        rows.append(kernel("gemm", i, begin, 100 + i, flop_count_sp=500.0))
        if i < 2:
            rows.append(kernel("relu", i, begin + 200, 10, flop_count_sp=np.nan))
        rows.append(kernel("gemm", i, begin + 300, 50, flop_count_sp=200.0))
    return imported(kernels=rows)


def test_a_call_site_is_one_row_for_all_iterations(trace):
    found = kernel_information(trace)
    assert found["name"].values.tolist() == ["gemm", "relu", "gemm"]
    assert found["duration_ns"].values.tolist() == [101, 10, 50]
    assert found["calls"].values.tolist() == [3, 2, 3]
    assert found["flops"].values.tolist()[::2] == [500, 200]
    assert np.isnan(found["flops"].values[1])
    assert found["layer_name"].values.tolist() == ["(no layer)"] * 3
    assert found.attrs["outside_iterations_ns"] == 1000
    assert found.attrs["iterations"] == 3
    assert "dram_read_bytes" not in found
    assert "memory_bound" not in found


def test_order_in_the_table_does_not_matter(trace, imported):
    data = trace["kernels"].to_dataset()
    rows = [
        kernel(str(data["name_table"].values[c]), int(i), int(s), int(d), flop_count_sp=float(f))
        for c, i, s, d, f in zip(*(data[n].values for n in ("name_code", "iteration", "start_ns", "duration_ns",
                                                            "flop_count_sp")), strict=True)
    ]  # fmt: skip
    shuffled = imported(kernels=[rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    one, two = kernel_information(trace), kernel_information(shuffled)
    assert one["name"].values.tolist() == two["name"].values.tolist()
    assert one["duration_ns"].values.tolist() == two["duration_ns"].values.tolist()


def test_by_name_sums_in_an_iteration(trace):
    found = kernels_by_name(trace)
    assert found["name"].values.tolist() == ["gemm", "relu"]
    assert found["kernels"].values.tolist() == [2, pytest.approx(2 / 3)]
    assert found["duration_ns"].values.tolist() == [151, 10]
    assert found["flops"].values.tolist()[0] == 700
    assert found["share"].values.sum() == pytest.approx(1)


def test_the_whole_counts_as_one_where_nothing_is_marked(imported):
    run = imported(kernels=[kernel("k", -1, 0, 5), kernel("k", -1, 10, 7)])
    found = kernels_by_name(run)
    assert found["duration_ns"].values.tolist() == [12]
    assert "the whole counts as one" in found.attrs["iterations_marked"]
    assert len(kernel_information(run)["kernel"]) == 2


def test_the_roofline_needs_traffic_and_peaks(run, trace):
    assert kernel_roofline(trace).sizes["kernel"] == 0
    assert kernel_roofline(trace).attrs["without_metrics"] == 3
    # synthetic kernels do 4000 flop/ns with 400 byte/ns: an intensity of 10 flop/byte
    steep = kernel_roofline(run, peak_flops=1e13, peak_bandwidth=5e11)
    assert steep["arithmetic_intensity"].values == pytest.approx(10)
    assert steep.attrs["ridge"] == 20
    assert (steep["memory_bound"].values == 1).all()
    assert steep["roof"].values == pytest.approx(5e12)
    flat = kernel_roofline(run, peak_flops=5e12, peak_bandwidth=5e11)
    assert (flat["memory_bound"].values == 0).all()
    points = kernel_roofline(run)
    assert "roof" not in points
    with pytest.raises(InputError, match="peak_flops must be a positive number"):
        kernel_roofline(run, peak_flops=0)


def test_the_model_over_batch_sizes(run):
    other = synthetic_run(deep=True, seed=1, batch_size=4)
    found = kernels_by_model([run, other], peak_flops=1e13, peak_bandwidth=1e12)
    assert found["batch_size"].values.tolist() == [1, 4]
    names = kernels_by_name(run)
    assert found["flops"].values[0] == pytest.approx(float(names["flops"].sum()))
    assert (found["busy_ns"] <= found["duration_ns"]).all()
    assert found["kernels"].values[0] == 15
    assert found["latency_ns"].values[0] > 0
    assert found["occupancy"].values == pytest.approx(0.5)


def test_operators_say_so(imported):
    run = imported(operators=[{"name": "aten::add", "start_ns": 0, "duration_ns": 100, "parent_index": -1}])
    for found in (kernel_information(run), kernels_by_name(run)):
        assert found.attrs["source"].startswith("operators: no device kernels in this run")
    assert "operators" in kernels_by_model([run])["source"].values[0]
    assert np.isnan(kernels_by_model([run])["latency_ns"].values[0])


def test_operators_of_one_type_are_one_row_where_the_tool_tells_types(imported):
    from mlscope_lab.analysis.device import kernel_breakdown

    operators = [
        {"name": f"node_{i}", "type": kind, "start_ns": 100 * i, "duration_ns": 10 + i, "parent_index": -1}
        for i, kind in enumerate(["Conv", "Relu", "Conv"])
    ]
    run = imported(operators=operators)
    found = kernels_by_name(run)
    assert found["name"].values.tolist() == ["Conv", "Relu"]
    assert found["duration_ns"].values.tolist() == [22, 11]
    assert kernel_breakdown(run)["kernel"].values.tolist() == ["Conv", "Relu"]
    assert kernel_information(run)["name"].values.tolist() == ["node_0", "node_1", "node_2"]


def test_counters_of_a_deeper_pass_meet_the_times_of_the_shallower(run):
    import dataclasses

    from mlscope_lab.testing import synthetic_events, synthetic_pass
    from mlscope_lab.trace.build import build_run

    passes = [synthetic_pass()]
    slow = 3
    for level, anchor in (("kernel", 10**9), ("hardware", 10**10)):
        record = synthetic_pass(level="layer", anchor_ns=anchor, iterations=8)
        events = synthetic_events(anchor_ns=anchor, layer_ns=100_000 * (slow if level == "hardware" else 1))
        kernels = events["kernels"]
        if level == "kernel":
            counters = {"flop_count_sp", "dram_read_bytes.sum", "dram_write_bytes.sum", "occupancy"}
            kept = {name: values for name, values in kernels.columns.items() if name not in counters}
            events["kernels"] = dataclasses.replace(kernels, columns=kept)
        del events["counters"]
        passes.append(
            dataclasses.replace(record, level=level, layers=dataclasses.replace(record.layers, events=events))
        )
    both = build_run(attrs={**run.attrs, "level": "full"}, passes=passes)
    found = kernel_information(both)
    assert "hardware pass" in found.attrs["metrics_source"]
    assert found.attrs["level"] == "kernel"
    alone = kernel_information(build_run(attrs=run.attrs, passes=passes[:2]))
    assert found["duration_ns"].values.tolist() == alone["duration_ns"].values.tolist()
    assert "flops" not in alone
    # a kernel of the hardware pass takes three times as long, and does 4000 operations in each of its ns
    assert found["flops"].values / found["duration_ns"].values == pytest.approx(4000 * slow, rel=0.5)
    assert kernels_by_name(both)["flops"].values.sum() == pytest.approx(float(found["flops"].sum()))


def test_no_runs_and_no_kernels(flat):
    with pytest.raises(InputError, match="at least one run"):
        kernels_by_model([])
    with pytest.raises(SchemaError, match="no kernels or operators"):
        kernel_information(flat)
