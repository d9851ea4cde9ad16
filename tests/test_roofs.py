from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import mlscope_lab as ml
from mlscope_lab.analysis.registry import analyze
from mlscope_lab.calibration import stored
from mlscope_lab.errors import InputError
from mlscope_lab.testing import synthetic_run

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def module():
    """Return a module of two convolutions with something between them."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(start_dim=2), torch.nn.Unflatten(2, (30, 30)),
        torch.nn.Conv2d(16, 8, 1),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def run(module):
    """Return a run of it."""
    return ml.profile(module, np.ones((1, 3, 32, 32), dtype=np.float32), level="layer", iterations=8, save=False,
                      progress=False)  # fmt: skip


@pytest.fixture
def calibrated(settings, run):
    """Keep a calibration of this machine for the run's threads: fast memory, slow arithmetic."""
    threads = run.attrs["threads"]
    identity = stored.machine_identity(threads)
    kernels = [
        {"name": "numpy copy", "target": "memory", "rates": [1e15, 2e15, 3e15], "shares": [1.0] * 3},
        {"name": "numpy matmul", "target": "float32", "rates": [1e6, 2e6, 3e6], "shares": [1.0] * 3},
    ]
    found = {"identity": identity, "created_at": "2026-11-22T00:30:00+00:00", "seconds": 12.0, "notes": [],
             "sets": {"memory": 2}, "kernels": kernels, "capacities": {}}  # fmt: skip
    stored._keep(stored._file(settings, identity), found)
    return settings


def test_a_run_on_this_machine_stands_under_its_calibration(run, module, calibrated):
    cost = ml.cost(module, np.ones((1, 3, 32, 32), dtype=np.float32))
    found = ml.roofline(run, cost=cost, settings=calibrated)
    assert found.attrs["peaks_source"] == "measured"
    assert found["matched_flops_ratio"] == 1
    judged = found.where(found["flops"] > 0, drop=True)
    assert set(judged["bound"].values) == {"compute"}
    np.testing.assert_array_equal(judged["roof_flops"], 2e6)
    assert set(found.attrs["above_roof"]) == set(judged["layer"].values)
    types = dict(zip(found["type"].values, found["bound"].values, strict=True))
    assert types["Flatten"] == types["Unflatten"] == "unknown"


def test_a_system_manifest_may_be_the_roof(run, module, settings):
    cost = ml.cost(module, np.ones((1, 3, 32, 32), dtype=np.float32))
    found = analyze(run, "roofline", cost=cost, system="cpu-avx2-2-cores", settings=settings)
    assert found.attrs["peaks_source"] == "system manifest"
    assert found.attrs["peaks_system"] == "cpu-avx2-2-cores"
    assert set(found["level"].values) <= {"memory", ""}


def test_a_model_that_nobody_published_must_be_given(run, calibrated):
    with pytest.raises(InputError, match="give model="):
        ml.roofline(run, settings=calibrated)


def test_a_run_of_another_machine_or_device_needs_peaks(module, settings):
    cost = ml.cost(module, np.ones((1, 3, 32, 32), dtype=np.float32))
    with pytest.raises(InputError, match=r"another machine \(Synthetic CPU"):
        ml.roofline(synthetic_run(), cost=cost, settings=settings)
    with pytest.raises(InputError, match="'cuda:0'"):
        ml.roofline(synthetic_run(device="cuda:0"), cost=cost, settings=settings)


def test_peaks_of_somewhere_else_are_taken_as_they_are(module, settings):
    one = np.ones(1)
    rates = {f"{name}{b}": (dim, one * 1e9) for name, dim in (("bandwidth", "level"), ("throughput", "dtype"))
             for b in ("", "_low", "_high")}  # fmt: skip
    coords = {"level": np.array(["memory"], dtype=object), "dtype": np.array(["float32"], dtype=object)}
    peaks = xr.Dataset({"capacity_bytes": ("level", one * np.inf), **rates}, coords=coords)
    cost = ml.cost(module, np.ones((1, 3, 32, 32), dtype=np.float32))
    found = ml.roofline(synthetic_run(device="cuda:0"), cost=cost, peaks=peaks, settings=settings)
    assert found["matched_flops_ratio"] == 0
    assert set(found["bound"].values) == {"unknown"}
