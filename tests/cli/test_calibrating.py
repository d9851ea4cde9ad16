from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from mlscope_lab.calibration import stored
from mlscope_lab.cli.calibrating import _age
from mlscope_lab.config import load_settings
from tests.cli.conftest import Workspace

KEYS = {"source", "device", "threads", "created_at", "age_s", "seconds", "disturbed", "notes", "machine",
        "working_sets", "levels", "dtypes"}  # fmt: skip


@pytest.fixture
def calibrated(workspace: Workspace) -> Workspace:
    """Keep a calibration of this machine of two hours ago."""
    settings = load_settings(home=workspace.home, environ={})
    identity = stored.machine_identity(1)
    kernels = [
        {"name": "numpy triad", "target": "memory", "rates": [19e9, 20e9, 21e9], "shares": [1.0, 1.0, 1.0]},
        {"name": "numpy add", "target": "L1", "rates": [100e9, 90e9, 95e9], "shares": [0.2, 0.3, 0.2]},
        {"name": "numpy matmul", "target": "float32", "rates": [100e9, 101e9, 99e9], "shares": [1.0, 1.0, 1.0]},
    ]
    found = {
        "identity": identity, "created_at": (datetime.now(UTC) - timedelta(hours=2, minutes=10)).isoformat(),
        "seconds": 12.0, "notes": ["Calibrated without pytorch: it crashed"], "sets": {"L1": 1, "memory": 2},
        "kernels": kernels, "capacities": {"L1": 32768, "L2": 1048576},
    }  # fmt: skip
    stored._keep(stored._file(settings, identity), found)
    return workspace


def test_json(calibrated):
    found = calibrated.json("calibrate", "-t", "1")
    assert set(found) == KEYS
    levels = {row["level"]: row for row in found["levels"]}
    assert (levels["memory"]["bandwidth"], levels["memory"]["triad"], levels["memory"]["capacity_bytes"]) == (
        20e9, 20e9, None,
    )  # fmt: skip
    assert levels["L2"]["bandwidth"] is None
    assert found["dtypes"] == [
        {"dtype": "float32", "throughput_kernel": "numpy matmul", "throughput": 100e9, "throughput_low": 99e9,
         "throughput_high": 101e9}
    ]  # fmt: skip
    assert found["disturbed"] == ["L1"]


def test_on_a_terminal(calibrated):
    result = calibrated.invoke("calibrate", "-t", "1")
    assert result.exit_code == 0, result.stderr
    for text in ("2 hours ago", "20.0 GB/s [19.0, 21.0]", "100.0 GFLOP/s", "not measured", "32.0 KiB"):
        assert text in result.stdout
    assert "calibrate again" in result.stderr
    assert "it crashed" in result.stderr


def test_threads_must_be_positive(workspace):
    assert workspace.invoke("calibrate", "-t", "0").exit_code == 2


def test_ages():
    assert [_age(s) for s in (3.0, 200.0, 9_000.0, 400_000.0)] == [
        "3 seconds ago", "3 minutes ago", "2 hours ago", "5 days ago",
    ]  # fmt: skip


def test_the_kept_file_is_plain_json(calibrated):
    (file,) = (calibrated.home / "calibration").iterdir()
    assert json.loads(file.read_text())["seconds"] == 12.0
