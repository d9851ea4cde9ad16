"""Analyses of traces that GPUs made, against a plain reference that sums exact integer nanoseconds."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlscope_lab.analysis.counters import METRIC_COUNTERS
from mlscope_lab.analysis.critical_path import critical_path
from mlscope_lab.analysis.device import (
    communication_overlap,
    idle_breakdown,
    kernel_breakdown,
    kernel_kinds,
    stream_utilization,
    temporal_breakdown,
)
from mlscope_lab.analysis.kernel_layers import layer_roofline, metrics_by_layer
from mlscope_lab.analysis.kernels import kernel_information, kernel_roofline, kernels_by_name
from mlscope_lab.analysis.registry import analyses
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace.importers import import_trace

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cuda-traces"
V100, COUNTERS = "ns_resolution_rank0.pt.trace.json.gz", "cupti_counters.pt.trace.json.gz"
RANKS = ("two_ranks_rank0.json.gz", "two_ranks_rank1.json.gz")
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}

pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="the recorded CUDA traces are not here")


@dataclass(frozen=True)
class Event:
    """One event of the reference, in exact nanoseconds."""

    name: str
    category: str
    start: int
    end: int
    arguments: dict[str, Any]

    @property
    def kind(self) -> str:
        if "Memcpy" in self.name or "Memset" in self.name:
            return "memory"
        return "communication" if "ncclKernel" in self.name else "compute"


def union(spans: list[tuple[int, int]]) -> int:
    total, reach = 0, None
    for start, end in sorted(spans):
        if reach is None or start > reach:
            total, reach = total + end - start, end
        elif end > reach:
            total, reach = total + end - reach, end
    return total


def reference(name: str) -> list[Event]:
    """Return all complete events; times from their decimal text, never through a float."""
    with gzip.open(TRACES / name) as file:
        events = json.loads(file.read(), parse_float=Decimal)["traceEvents"]
    found = []
    for event in events:
        if event.get("ph") == "X":
            start, length = (Decimal(event[key]) * 1000 for key in ("ts", "dur"))
            assert start == int(start)
            assert length == int(length)
            found.append(Event(event["name"], str(event.get("cat", "")).lower(), int(start), int(start + length),
                               event.get("args") or {}))  # fmt: skip
    return found


@pytest.fixture(scope="module", params=[V100, *RANKS])
def trace(request):
    """A run, and the kernels of its reference."""
    events = reference(request.param)
    return import_trace(TRACES / request.param), [e for e in events if e.category in ON_DEVICE], events


def test_kernels_by_name(trace):
    run, kernels, _ = trace
    totals: dict[str, list[int]] = defaultdict(list)
    for kernel in kernels:
        totals[kernel.name].append(kernel.end - kernel.start)
    found = kernel_breakdown(run)
    assert int(found["count"].sum()) == len(kernels)
    assert int(found["total_ns"].sum()) == sum(map(sum, totals.values()))
    rows = {name: (n, t, low, high) for name, n, t, low, high in zip(
        found["kernel"].values, *(found[c].values.tolist() for c in ("count", "total_ns", "minimum_ns", "maximum_ns")),
        strict=True)}  # fmt: skip
    assert rows == {name: (len(v), sum(v), min(v), max(v)) for name, v in totals.items()}
    top = sorted((sum(v) for v in totals.values()), reverse=True)[:10]
    assert found["total_ns"].values[:10].tolist() == top


def test_kinds(trace):
    run, kernels, _ = trace
    found = kernel_kinds(run).to_dataframe()
    for kind in ("compute", "communication", "memory"):
        spans = [(k.start, k.end) for k in kernels if k.kind == kind]
        if spans:
            assert found.loc[kind, "total_ns"] == sum(end - start for start, end in spans)
            assert found.loc[kind, "busy_ns"] == union(spans)
        else:
            assert kind not in found.index


def test_busy_and_idle_by_stream(trace):
    run, kernels, _ = trace
    streams: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for kernel in kernels:
        streams[kernel.arguments["device"], kernel.arguments["stream"]].append((kernel.start, kernel.end))
    found = stream_utilization(run)
    rows = {
        (device, stream): (busy, idle)
        for device, stream, busy, idle in zip(
            *(found[n].values.tolist() for n in ("device_number", "stream_number", "busy_ns", "idle_ns")), strict=True
        )
    }
    expected = {}
    for lane, spans in streams.items():
        busy = union(spans)
        expected[lane] = (busy, max(e for _, e in spans) - min(s for s, _ in spans) - busy)
    assert rows == expected
    assert idle_breakdown(run)["idle_ns"].values.tolist() == [idle for _, idle in rows.values()]


def test_idle_time_by_what_it_waits_for(trace):
    run, kernels, events = trace
    launches = {
        e.arguments.get("correlation"): e.start for e in events if e.category in {"cuda_runtime", "cuda_driver"}
    }
    expected: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    reached: dict[tuple[int, int], int] = {}
    for kernel in sorted(kernels, key=lambda k: k.start):
        lane = kernel.arguments["device"], kernel.arguments["stream"]
        launch = launches.get(kernel.arguments.get("correlation"))
        before = reached.get(lane)
        if before is not None:
            gap = max(kernel.start - before, 0)
            late = launch is not None and launch > before
            expected[lane][0 if late else 1 if launch is not None and gap < 30 else 2] += gap
        reached[lane] = max(kernel.end, before or kernel.end)
    found = idle_breakdown(run)
    order = sorted(expected)
    columns = [found[f"{name}_ns"].values.tolist() for name in ("host_wait", "kernel_wait", "other")]
    assert [list(row) for row in zip(*columns, strict=True)] == [expected[lane] for lane in order]


def test_the_device_over_time(trace):
    run, kernels, _ = trace
    (row,) = temporal_breakdown(run).to_dataframe().to_dict("records")
    spans = [(k.start, k.end) for k in kernels]
    compute = union([(k.start, k.end) for k in kernels if k.kind == "compute"])
    assert row["span_ns"] == max(e for _, e in spans) - min(s for s, _ in spans)
    assert row["busy_ns"] == union(spans)
    assert row["compute_ns"] == compute
    assert row["non_compute_ns"] == union(spans) - compute
    assert row["idle_ns"] == row["span_ns"] - row["busy_ns"]
    (overlap,) = communication_overlap(run).to_dataframe().to_dict("records")
    communication = [(k.start, k.end) for k in kernels if k.kind == "communication"]
    both = union(communication) + compute - union([(k.start, k.end) for k in kernels if k.kind != "memory"])
    assert (overlap["communication_ns"], overlap["overlap_ns"]) == (union(communication), both)


def test_the_critical_path_leaves_no_gap(trace):
    run, _, _ = trace
    for iteration in np.unique(run["kernels"]["iteration"].values):
        if iteration >= 0:
            found = critical_path(run, iteration=int(iteration))
            assert int(found["duration_ns"].sum()) == int(found["path_ns"])


def test_the_numbers_of_the_v100():
    run = import_trace(TRACES / V100)
    kinds = kernel_kinds(run).to_dataframe()
    assert kinds.loc["compute", "busy_ns"] == 468_153_602
    assert kinds.loc["memory", "busy_ns"] == 4_300_839
    assert temporal_breakdown(run)["idle_ns"].values.tolist() == [7_574_738]
    assert int(kernel_breakdown(run)["count"].sum()) == 6095


def test_counters_without_kernels():
    run = import_trace(TRACES / COUNTERS)
    ranges = [e for e in reference(COUNTERS) if e.category == "cuda_profiler_range"]
    found = kernel_information(run)
    assert found.attrs["source"].startswith("counters")
    assert found.sizes["kernel"] == len(ranges) == 77
    assert sorted(found["duration_ns"].values.tolist()) == sorted(e.end - e.start for e in ranges)
    factors = METRIC_COUNTERS["flops"][1]
    flops = sum(factors[c] * int(v) for e in ranges for c, v in e.arguments.items())
    assert float(found["flops"].sum()) == flops
    by_layer = metrics_by_layer(run)
    for counter in factors:
        total = sum(int(e.arguments[counter]) for e in ranges)
        assert float(by_layer[counter].values[-1]) == total
    totals: dict[str, int] = defaultdict(int)
    for event in ranges:
        totals[event.name] += event.end - event.start
    assert kernels_by_name(run)["duration_ns"].values.tolist() == sorted(totals.values(), reverse=True)
    # flops are known, traffic is not: there is no intensity, and nothing is made up
    assert kernel_roofline(run).attrs["without_metrics"] == 77
    assert np.isnan(layer_roofline(run)["dram_read_bytes"].values).all()


@pytest.mark.parametrize("name", [V100, COUNTERS, *RANKS])
def test_every_analysis_goes_as_far_as_the_trace(name):
    run = import_trace(TRACES / name)
    refused = {}
    for analysis in analyses():
        if analysis.name == "roofline":  # it needs the peaks of the machine, and says so
            continue
        given = [run, run] if analysis.name == "predict_latency" else [run] if analysis.several else run
        try:
            analysis.function(given)
        except SchemaError as error:
            refused[analysis.name] = str(error)
    # nobody knows what the model takes untraced, nor its layers; all else is there
    assert "no /latency" in refused.pop("model_information")
    assert set(refused) >= {"layer_latency", "what_if"}
    assert "has no layers: the trace" in refused["layer_latency"]
    assert all("has no " in reason for reason in refused.values())
