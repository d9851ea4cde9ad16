from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlscope_lab.analysis.kernel_layers import (
    device_and_host_by_layer,
    kernels_by_layer,
    layer_roofline,
    metrics_by_layer,
)
from mlscope_lab.analysis.kernels import kernels_by_model, kernels_by_name
from mlscope_lab.analysis.layers import layer_latency
from mlscope_lab.errors import SchemaError
from mlscope_lab.testing import synthetic_events, synthetic_pass
from mlscope_lab.trace.build import build_run


def deep_run(run, *, change=None, level="kernel"):
    """A run of one process whose deepest pass holds changed events."""
    record = synthetic_pass(level="layer", iterations=8)
    events = synthetic_events(anchor_ns=record.anchor_ns)
    if change is not None:
        change(events)
    trace = dataclasses.replace(record.layers, events=events)
    return build_run(
        attrs={**run.attrs, "level": level},
        passes=[synthetic_pass(), record, dataclasses.replace(record, level=level, layers=trace)],
    )


def unattributed(events):
    columns = dict(events["kernels"].columns)
    columns["layer_index"] = np.where(columns["layer_index"] == 3, -1, columns["layer_index"])
    events["kernels"] = dataclasses.replace(events["kernels"], columns=columns)


def operators_only(events):
    for name in list(events):
        if name not in {"operators", "annotations"}:
            del events[name]


def test_layers_in_order_and_what_belongs_to_none_last(run):
    found = kernels_by_layer(run)
    assert found["layer"].values.tolist() == [*run["layers"]["name"].values, "(no layer)"]
    assert found["kernels"].values[-1] == 0
    assert float(found["kernels"].sum()) == 15
    assert (found["busy_ns"] <= found["duration_ns"] + 1).all()


def test_kernels_of_no_layer_are_a_row_of_their_own(run):
    some, less = kernels_by_layer(deep_run(run)), kernels_by_layer(deep_run(run, change=unattributed))
    assert less["duration_ns"].values[3] == 0
    assert less["duration_ns"].values[-1] == some["duration_ns"].values[3]
    assert less["flops"].values[-1] == some["flops"].values[3]
    kept = [i for i in range(12) if i != 3]
    assert (less["duration_ns"].values[kept] == some["duration_ns"].values[kept]).all()


def test_sums_over_layers_names_and_the_model_agree(run):
    by_layer, by_name, whole = kernels_by_layer(run), kernels_by_name(run), kernels_by_model([run])
    for metric in ("flops", "dram_read_bytes", "dram_write_bytes"):
        assert float(np.nansum(by_layer[metric])) == pytest.approx(float(by_name[metric].sum()))
        assert float(np.nansum(by_layer[metric])) == pytest.approx(float(whole[metric][0]))


def test_every_counter_by_layer(run):
    found = metrics_by_layer(run)
    assert {"flop_count_sp", "dram_read_bytes.sum", "occupancy"} <= set(found.data_vars)
    assert found["flop_count_sp"].values[:-1] == pytest.approx(found["flops"].values[:-1])
    assert found["occupancy"].values[:-1] == pytest.approx(0.5)
    assert np.isnan(found["flops"].values[-1])

    def percentage(events):
        table = events["kernels"]
        n = len(table)
        columns = {**table.columns, "sm__throughput.avg.pct_of_peak": np.linspace(10, 90, n)}
        events["kernels"] = dataclasses.replace(table, columns=columns)

    weighted = metrics_by_layer(deep_run(run, change=percentage))
    assert weighted.attrs["weighted"] == ["sm__throughput.avg.pct_of_peak"]
    assert weighted["sm__throughput.avg.pct_of_peak"].values[:-1].max() <= 90


def test_no_counters_says_why(run):
    bare = deep_run(run, change=operators_only, level="operator")
    found = metrics_by_layer(bare)
    assert found.attrs["metrics_source"].startswith("unavailable")
    assert set(found.data_vars) == {"type", "kernels"}
    assert layer_roofline(bare).sizes["layer"] == 0
    assert "unavailable" in layer_roofline(bare).attrs["flops_source"]


def test_device_against_host(run):
    found = device_and_host_by_layer(run)
    layers = layer_latency(run)
    assert found["layer_ns"].values[:-1].tolist() == layers["exclusive_ns"].values[:12].tolist()
    assert found["layer_ns"].values[-1] == 5000
    assert (found["host_ns"] >= 0).all()
    assert (found["device_share"].values[:-1] <= 1).all()
    assert found.attrs["exceeding"] == int((found["device_ns"] > found["layer_ns"]).sum())


def test_on_a_cpu_operators_are_the_device(run):
    bare = deep_run(run, change=operators_only, level="operator")
    found = device_and_host_by_layer(bare)
    assert "operators" in found.attrs["source"]
    # the union of an operator and the one inside it counts once
    assert found["device_ns"].values[:12].tolist() == [80_000] * 12


def test_the_roofline_of_layers(run):
    found = layer_roofline(run, peak_flops=1e13, peak_bandwidth=2e12)
    assert found["arithmetic_intensity"].values == pytest.approx(10)
    assert (found["memory_bound"].values == 0).all()
    assert found.attrs["traffic_source"] == "hardware counters"
    assert "(no layer)" not in found["layer"].values


def test_traffic_that_nobody_measured_is_the_least_possible(run):
    def flops(events):
        operators_only(events)
        table = events["operators"]
        inner = table.columns["parent_index"] >= 0
        columns = {**table.columns, "flops": np.where(inner, 1_000_000, -1).astype(np.int64)}
        events["operators"] = dataclasses.replace(table, columns=columns)

    found = layer_roofline(deep_run(run, change=flops, level="operator"))
    assert found.attrs["traffic_source"].startswith("analytic")
    assert found["flops"].values.tolist() == [1_000_000] * 12
    tensor = 4 * 8 * 16 * 16
    assert found["dram_read_bytes"].values[1] == tensor + 4 * 2 * 64
    assert found["arithmetic_intensity"].values[1] == pytest.approx(1_000_000 / (2 * tensor + 512))


def test_without_layers(imported):
    run = imported(kernels=[{"name": "k", "start_ns": 0, "duration_ns": 5, "stream": 1, "device": 0}])
    assert kernels_by_layer(run)["layer"].values.tolist() == ["(no layer)"]
    with pytest.raises(SchemaError, match="no layers"):
        device_and_host_by_layer(run)
