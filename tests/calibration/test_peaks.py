from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.calibration.peaks import peaks_from_samples, peaks_from_system
from mlscope_lab.errors import InputError
from mlscope_lab.manifest.system import SystemManifest


def kernel(name, target, rates, shares=None):
    return {"name": name, "target": target, "rates": rates, "shares": shares or [1.0] * len(rates)}


KERNELS = [
    kernel("numpy triad", "memory", [18.0, 20.0, 19.0]),
    kernel("numpy copy", "memory", [30.0, 26.0, 28.0]),
    kernel("numpy add", "L1", [100.0, 400.0, 380.0, 390.0], [0.5, 1.0, 0.99, 0.96]),
    kernel("numpy matmul", "float32", [200.0, 210.0, 190.0]),
    kernel("numpy once", "float32", [120.0, 290.0, 130.0]),
    kernel("pytorch mm", "float32", [205.0, 250.0, 100.0]),
    kernel("pytorch mm", "bfloat16", [30.0, 50.0, 40.0], [0.5, 0.5, 0.8]),
]
CAPACITIES = {"L1": 64.0, "memory": np.inf}


def test_the_best_kernel_by_its_median_is_the_roof_and_its_repeats_the_error():
    peaks = peaks_from_samples(KERNELS, CAPACITIES, {"source": "measured"})
    memory = peaks.sel(level="memory")
    assert (memory["bandwidth"], memory["bandwidth_low"], memory["bandwidth_high"]) == (28, 26, 30)
    assert memory["bandwidth_kernel"] == "numpy copy"
    assert memory["triad"] == 19
    single = peaks.sel(dtype="float32")
    assert (single["throughput_kernel"], single["throughput"]) == ("pytorch mm", 205)
    assert (single["throughput_low"], single["throughput_high"]) == (100, 290)
    assert peaks["bandwidth"].attrs["units"] == "byte/s"
    assert np.isinf(memory["capacity_bytes"])


def test_repeats_that_others_disturbed_do_not_count():
    first = peaks_from_samples(KERNELS, CAPACITIES, {}).sel(level="L1")
    assert (first["bandwidth_low"], first["bandwidth"], first["bandwidth_high"]) == (380, 390, 400)


def test_where_all_are_disturbed_the_most_that_was_seen_counts_and_the_bound_is_what_it_would_have_been():
    peaks = peaks_from_samples(KERNELS, CAPACITIES, {})
    half = peaks.sel(dtype="bfloat16")
    assert (half["throughput_low"], half["throughput"], half["throughput_high"]) == (30, 50, 60)
    assert peaks.attrs["disturbed"] == ["bfloat16"]


def test_a_level_without_kernels_is_unknown():
    peaks = peaks_from_samples(KERNELS, {"L1": 64.0, "L2": 128.0, "memory": np.inf}, {})
    assert np.isnan(peaks["bandwidth"].sel(level="L2"))
    assert list(peaks["dtype"].values) == ["float32", "bfloat16"]


def system(**processor):
    return SystemManifest(
        name="box", processors=[{"name": "some", "device": "cpu", "count": 2, **processor}],
    )  # fmt: skip


def test_a_system_manifest_tells_memory_and_types():
    manifest = system(memory_bandwidth=10e9, peak_flops={"float32": 1e12})
    peaks = peaks_from_system(manifest)
    assert list(peaks["level"].values) == ["memory"]
    assert peaks["bandwidth"].item() == peaks["bandwidth_high"].item() == 20e9
    assert peaks["throughput"].sel(dtype="float32") == 2e12
    assert (peaks.attrs["source"], peaks.attrs["system"]) == ("system manifest", "box")


def test_a_manifest_without_the_device_is_refused():
    with pytest.raises(InputError, match="'cuda:0'"):
        peaks_from_system(system(memory_bandwidth=1.0), device="cuda:0")
    with pytest.raises(InputError, match="memory_bandwidth"):
        peaks_from_system(system())
