from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.analysis.roofline import Roofs, kernels_under_roofs, roofline
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.testing import synthetic_pass, synthetic_run
from mlscope_lab.trace.build import build_run
from mlscope_lab.trace.records import LayerTable, LayerTrace, PassRecord

KB, MB = 1000, 1_000_000


def texts(values):
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def peaks_of(levels: dict[str, tuple[float, float]], dtypes: dict[str, float], error: float = 0.0, **attrs: Any):
    """Peaks with the same relative error everywhere: {level: (capacity, byte/s)}, {type: operations/s}."""
    capacity = np.array([c for c, _ in levels.values()])
    rates = {"bandwidth": ("level", np.array([b for _, b in levels.values()])),
             "throughput": ("dtype", np.array(list(dtypes.values())))}  # fmt: skip
    variables: dict[str, Any] = {"capacity_bytes": ("level", capacity)}
    for name, (dim, values) in rates.items():
        for suffix, factor in (("", 1.0), ("_low", 1 - error), ("_high", 1 + error)):
            variables[name + suffix] = (dim, values * factor)
    coords = {"level": texts(levels), "dtype": texts(dtypes)}
    return xr.Dataset(variables, coords=coords, attrs={"source": "measured", "device": "cpu", "threads": 2, **attrs})


# a byte a nanosecond from memory, ten from the cache; a hundred operations a nanosecond
PEAKS = peaks_of({"L2": (1 * MB, 10e9), "memory": (np.inf, 1e9)}, {"float32": 100e9, "int8": 400e9})


def run_of(layers: list[dict[str, Any]], *, resolution_ns: int = 1, iterations: int = 1, **attrs: Any):
    """A run whose layers last as long as their rows say, in every iteration."""
    n = len(layers)
    durations = np.tile(np.array([row["ns"] for row in layers], dtype=np.int64), (iterations, 1))
    starts = np.cumsum(np.concatenate([np.zeros((iterations, 1), int), durations[:, :-1]], axis=1), axis=1)
    begin = np.arange(iterations, dtype=np.int64) * 10**9 + 10**9
    table = LayerTable(
        name=tuple(row["name"] for row in layers),
        type=tuple(row.get("type", "Conv") for row in layers),
        scope=("",) * n,
        parent=tuple(row.get("parent", -1) for row in layers),
        depth=tuple(int(row.get("parent", -1) >= 0) for row in layers),
        input_shapes=("",) * n,
        output_shapes=tuple(row.get("out", "float32[1]") for row in layers),
        parameter_bytes=(-1,) * n,
        activation_bytes=(-1,) * n,
        sources=("",) * n,
    )
    trace = LayerTrace(
        layers=table, start_ns=starts + begin[:, None], duration_ns=durations, exclusive_ns=durations,
        iteration_start_ns=begin, iteration_duration_ns=durations.sum(axis=1), resolution_ns=resolution_ns,
    )  # fmt: skip
    zeros = np.zeros(iterations, dtype=np.int64)
    record = PassRecord(
        level="layer", process=0, warmup_iterations=1, start_ns=zeros, preprocess_ns=zeros,
        predict_ns=durations.sum(axis=1), postprocess_ns=zeros, wall_ns=1, anchor_ns=10**9, layers=trace,
    )  # fmt: skip
    whole = synthetic_run(layers=0, processes=1, **attrs)
    return build_run(attrs={**whole.attrs, "level": "layer"}, passes=[synthetic_pass(iterations=2), record])


def cost_of(rows: dict[str, tuple[int, int]]):
    """Cost of layers: {label: (flops, bytes)}."""
    flops, moved = (np.array(column) for column in zip(*rows.values(), strict=True))
    columns = {"flops": flops, "input_bytes": moved, "output_bytes": 0 * moved, "parameter_bytes": 0 * moved}
    return xr.Dataset({n: ("layer", v) for n, v in columns.items()}, coords={"layer": texts(rows)})


def test_the_larger_of_two_least_times_is_the_roof():
    run = run_of([{"name": "a", "ns": 40_000}, {"name": "b", "ns": 40_000}])
    found = roofline(run, cost_of({"b": (2_000_000, 100 * KB), "a": (100_000, 100 * KB)}), PEAKS)
    assert list(found["layer"].values) == ["a", "b"]
    a, b = found.sel(layer="a"), found.sel(layer="b")
    assert (a["bound"], b["bound"]) == ("memory", "compute")
    assert (a["roof_ns"], b["roof_ns"]) == (10_000, 20_000)
    assert (a["roof_share"], b["roof_share"]) == (0.25, 0.5)
    assert (b["arithmetic_intensity"], b["achieved_flops"], b["roof_flops"]) == (20, 50e9, 100e9)
    assert (a["achieved_bandwidth"], a["roof_bandwidth"], a["level"]) == (2.5e9, 10e9, "L2")
    assert found.attrs["above_roof"] == []
    assert found.attrs["peaks_source"] == "measured"


def test_a_footprint_beyond_a_cache_finds_a_part_of_itself_there():
    run = run_of([{"name": "a", "ns": 10 * MB}])
    found = roofline(run, cost_of({"a": (0, 3 * MB)}), PEAKS).sel(layer="a")
    # a million bytes at ten, two million at one byte a nanosecond
    assert found["roof_ns"] == pytest.approx(0.1 * MB + 2 * MB)
    assert found["level"] == "memory"
    assert found["roof_bandwidth"] == pytest.approx(3 / 2.1 * 1e9)


def test_the_error_of_peaks_and_the_layers_interval_make_the_bounds():
    peaks = peaks_of({"memory": (np.inf, 1e9)}, {"float32": 100e9}, error=0.1)
    found = roofline(run_of([{"name": "a", "ns": 1000}]), cost_of({"a": (0, 1000)}), peaks)
    assert found["roof_share_low"].item() == pytest.approx(1 / 1.1)
    assert found["roof_share_high"].item() == pytest.approx(1 / 0.9)
    assert found.attrs["above_roof"] == []
    fast = roofline(run_of([{"name": "a", "ns": 800}]), cost_of({"a": (0, 1000)}), peaks)
    assert fast.attrs["above_roof"] == ["a"]


def test_a_coarse_clock_widens_the_bounds():
    run = run_of([{"name": "a", "ns": 0}, {"name": "b", "ns": 2000}], resolution_ns=1000)
    found = roofline(run, cost_of({"a": (0, 500), "b": (0, 4000)}), peaks_of({"memory": (np.inf, 1e9)}, {}))
    assert np.isnan(found["roof_share"].values[0])
    assert found["roof_share_low"].values.tolist() == pytest.approx([0.5, 4 / 3])
    assert found["roof_share_high"].values.tolist()[1] == pytest.approx(4.0)
    assert found.attrs["above_roof"] == ["b"]
    assert found.attrs["resolution_ns"] == 1000


def test_the_element_type_decides_the_roof_of_operations():
    layers = [{"name": "f", "ns": 1000, "out": "float32[1,2];int64[3]"}, {"name": "q", "ns": 1000, "out": "uint8[1]"},
              {"name": "d", "ns": 1000, "out": "float64[2]"}, {"name": "s", "ns": 1000, "out": ""}]  # fmt: skip
    found = roofline(run_of(layers), cost_of(dict.fromkeys("fqds", (100_000, 1))), PEAKS)
    assert list(found["dtype"].values) == ["float32", "int8", "float64", "float32"]
    np.testing.assert_array_equal(found["roof_flops"], [100e9, 400e9, np.nan, 100e9])
    # no peak of float64: only the bytes limit it
    assert list(found["bound"].values) == ["compute", "compute", "memory", "compute"]


def test_containers_views_and_layers_without_cost_are_not_judged():
    layers = [{"name": "block", "ns": 100, "type": "Block"}, {"name": "block.conv", "ns": 100, "parent": 0},
              {"name": "flat", "ns": 1, "type": "Flatten"}, {"name": "free", "ns": 1},
              {"name": "unknown", "ns": 1}]  # fmt: skip
    cost = cost_of({"block": (0, MB), "block.conv": (100, 100), "flat": (0, MB), "unknown": (-1, -1)})
    found = roofline(run_of(layers), cost, PEAKS)
    assert list(found["bound"].values) == ["unknown", "memory", "unknown", "unknown", "unknown"]
    assert np.isfinite(found["roof_share"].values).tolist() == [False, True, False, False, False]
    assert list(found["level"].values) == ["", "L2", "", "", ""]
    assert found.attrs["above_roof"] == []


def test_bounds_of_many_iterations_are_the_medians_interval():
    run = synthetic_run(processes=1, layers=6)
    labels = list(run["layers"]["name"].values)
    found = roofline(run, cost_of(dict.fromkeys(labels, (1000, 1000))), PEAKS)
    judged = found["bound"].values != "unknown"
    assert (found["low_ns"] < found["duration_ns"])[judged].all()
    assert (found["high_ns"] > found["duration_ns"])[judged].all()
    assert (found["roof_share_low"] < found["roof_share"])[judged].all()


def test_other_threads_and_disturbed_peaks_are_said():
    peaks = PEAKS.assign_attrs(threads=1, disturbed=["L1"], created_at="then", age_s=5.0)
    attrs = roofline(run_of([{"name": "a", "ns": 1}]), cost_of({"a": (1, 1)}), peaks).attrs
    assert "1 threads" in attrs["peaks_differ"]
    assert (attrs["peaks_disturbed"], attrs["peaks_created_at"], attrs["peaks_age_s"]) == (["L1"], "then", 5.0)


def test_what_does_not_fit_is_refused():
    run, cost = run_of([{"name": "a", "ns": 1}]), cost_of({"a": (1, 1)})
    with pytest.raises(InputError, match="cuda:0"):
        roofline(run_of([{"name": "a", "ns": 1}], device="cuda:0"), cost, PEAKS)
    with pytest.raises(SchemaError, match="lacks flops"):
        roofline(run, cost.drop_vars("flops"), PEAKS)
    with pytest.raises(SchemaError, match="two rows"):
        roofline(run, xr.concat([cost, cost], dim="layer"), PEAKS)
    with pytest.raises(SchemaError, match="lack bandwidth"):
        roofline(run, cost, PEAKS.drop_vars("bandwidth"))
    with pytest.raises(SchemaError, match="memory"):
        roofline(run, cost, PEAKS.isel(level=[0]))
    with pytest.raises(SchemaError, match="no layers"):
        roofline(synthetic_run(layers=0), cost, PEAKS)


levels = st.lists(st.tuples(st.integers(1, 10**8), st.integers(1, 10**12)), max_size=4)


@given(levels, st.integers(10**6, 10**11), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_roofs_only_fall_with_the_footprint(inner, memory, footprints):
    known = {f"L{i}": (float(size), float(rate)) for i, (size, rate) in enumerate(sorted(inner), 1)}
    roofs = Roofs.of(peaks_of({**known, "memory": (np.inf, float(memory))}, {}))
    footprint = np.sort(np.array(footprints, dtype=np.float64))
    parts = roofs.filled(footprint)
    np.testing.assert_allclose(parts.sum(axis=1), footprint)
    times = roofs.least_bytes_ns(footprint)[0]
    assert (np.diff(times) >= -1e-9 * times[1:]).all()
    some = footprint > 0
    bandwidth = footprint[some] / times[some]
    assert (np.diff(bandwidth) <= 1e-9 * bandwidth[:-1]).all()
    assert (bandwidth * 1e9 >= memory * (1 - 1e-9)).all()


def test_kernels_stand_under_memory_alone(imported):
    common = {"iteration": 0, "category": "kernel", "stream": 7, "device": 0, "layer_index": -1}
    kernels = [
        {"name": "gemm", "start_ns": 0, "duration_ns": 1000, "flop_count_sp": 50_000.0, "dram_read_bytes": 100.0,
         "dram_write_bytes": 200.0, **common},
        {"name": "copy", "start_ns": 2000, "duration_ns": 1000, "flop_count_sp": 0.0, "dram_read_bytes": 250.0,
         "dram_write_bytes": 250.0, **common},
        {"name": "untold", "start_ns": 4000, "duration_ns": 1000, "flop_count_sp": float("nan"),
         "dram_read_bytes": float("nan"), "dram_write_bytes": float("nan"), **common},
    ]  # fmt: skip
    run = imported(kernels=kernels)
    found = kernels_under_roofs(run, PEAKS)
    assert list(found["name"].values) == ["gemm", "copy"]
    assert found["roof_share"].values.tolist() == [0.5, 0.5]
    assert list(found["bound"].values) == ["compute", "memory"]
    assert set(found["level"].values) == {"memory"}
    assert found.attrs["without_metrics"] == 1


def test_kernels_without_counters_say_so(imported):
    kernels = [{"name": "gemm", "category": "kernel", "start_ns": 0, "duration_ns": 1, "stream": 7, "iteration": 0}]
    with pytest.raises(SchemaError, match="tells no flops"):
        kernels_under_roofs(imported(kernels=kernels), PEAKS)
