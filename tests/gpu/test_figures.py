"""The figures of the device check, on runs made by hand; and what the check says where there is no device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.testing import synthetic_run
from tests.gpu.__main__ import run_on
from tests.gpu.figures import figures_of


def kept(run):
    return {figure.what: figure.kept for figure in figures_of(run) if figure.kept is not None}


def test_a_run_with_everything():
    run = synthetic_run(deep=True)
    run["passes"]["resolution_ns"].values[:] = 500
    found = kept(run)
    assert found["kernel time with its layer"]
    assert found["energy (NVML)"]
    assert found["hardware counters"]
    assert any("kernel time with its launch" in figure.what for figure in figures_of(run))


def test_kernels_without_layers_are_a_miss():
    run = synthetic_run(deep=True)
    run["kernels"]["layer_index"].values[:50] = -1
    assert kept(run)["kernel time with its layer"] is False


def test_a_run_with_nothing():
    assert set(kept(synthetic_run()).values()) == {False}


def test_what_is_run_runs_without_a_device_too():
    pytest.importorskip("torch", reason="needs PyTorch")
    run = run_on("cpu", iterations=3, warmup=1, batch_size=2, size=64)
    assert run["passes"]["level"].values.tolist() == ["model", "layer", "operator", "kernel", "hardware"]
    assert run.attrs["execution_mode"] == "eager"
    operators = run["operators"].to_dataset()
    names = run["layers"]["name"].values
    assert "_blocks.0._depthwise_conv" in {names[i] for i in np.unique(operators["layer_index"].values) if i >= 0}
    assert "counts nothing on a CPU" in run.attrs["unavailable"]["hardware (framework)"]
    assert kept(run)["kernels"] is False


def test_without_a_device_it_says_so():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu"], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert "no CUDA device" in done.stdout
    assert "unverified on a device" in done.stdout
