from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.calibration import stored
from mlscope_lab.calibration.caches import CacheLevel
from mlscope_lab.config import Settings
from mlscope_lab.errors import InputError, RunError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is measured in a second: small caches, few and short repeats, no frameworks."""
    caches = [CacheLevel(name="L1", bytes=32768, instances=2), CacheLevel(name="L2", bytes=2**20, instances=2)]
    monkeypatch.setattr(stored, "find_caches", lambda: caches)
    monkeypatch.setattr(stored, "installed_peers", list)
    monkeypatch.setattr(stored, "_SECONDS", 0.001)
    monkeypatch.setattr(stored, "_BUDGET_S", 0.0)


def only_file(settings: Settings):
    (file,) = (settings.home / "calibration").iterdir()
    return file


@pytest.mark.usefixtures("small")
def test_a_machine_is_calibrated_once(settings):
    said: list[str] = []
    first = ml.calibrate(threads=2, settings=settings, report=said.append)
    assert list(first["level"].values) == ["L1", "L2", "memory"]
    assert (first["bandwidth"].values > 1e8).all()
    assert (first["bandwidth_low"] <= first["bandwidth"]).all()
    assert (first["bandwidth_high"] >= first["bandwidth"]).all()
    assert first["capacity_bytes"].values.tolist() == [65536, 2**21, np.inf]
    assert first["throughput"].sel(dtype="float32") > 1e8
    assert first.attrs["threads"] == 2
    assert first.attrs["source"] == "measured"
    assert any("Round" in text for text in said)
    said.clear()
    again = ml.calibrate(threads=2, settings=settings, report=said.append)
    assert not said
    assert again["bandwidth"].identical(first["bandwidth"])
    assert again.attrs["created_at"] == first.attrs["created_at"]


@pytest.mark.usefixtures("small")
def test_age_counts_from_the_measurement_and_again_measures(settings):
    ml.calibrate(threads=1, settings=settings)
    file = only_file(settings)
    kept = json.loads(file.read_text())
    kept["created_at"] = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    file.write_text(json.dumps(kept))
    assert 172_000 < ml.calibrate(threads=1, settings=settings).attrs["age_s"] < 260_000
    assert ml.calibrate(threads=1, again=True, settings=settings).attrs["age_s"] < 10_000


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"created_at": "yesterday"}', '{"created_at": "2026-01-01T00:00:00+00:00", "kernels": [1]}']
)
def test_a_damaged_calibration_is_made_anew(settings, damage, monkeypatch):
    identity = stored.machine_identity(1)
    file = stored._file(settings, identity)
    file.parent.mkdir(parents=True)
    file.write_text(damage)
    with pytest.warns(UserWarning, match="damaged"):
        assert stored._stored(file) is None


def test_other_threads_are_another_calibration(settings):
    files = {stored._file(settings, stored.machine_identity(n)) for n in (1, 2, 2)}
    assert len(files) == 2


@pytest.mark.usefixtures("small")
def test_a_framework_that_takes_the_process_down_is_left_out(settings, monkeypatch):
    monkeypatch.setattr(stored, "installed_peers", lambda: ["no such framework"])
    peaks = ml.calibrate(threads=1, settings=settings)
    assert "without no such framework" in peaks.attrs["notes"][0]
    assert np.isfinite(peaks["bandwidth"].values).all()


@pytest.mark.usefixtures("small")
def test_a_measurement_that_cannot_be_made_says_why(settings, monkeypatch):
    monkeypatch.setattr(stored, "_TIMEOUT_S", 0.01)
    with pytest.raises(RunError, match="could not be calibrated"):
        ml.calibrate(threads=1, settings=settings)
    assert not (settings.home / "calibration").exists()


def test_a_device_that_is_not_there_is_refused(settings):
    if stored.machine_identity(1, "cuda:0")["gpus"]:
        pytest.skip("this machine has a device")
    with pytest.raises(InputError, match="cuda:0"):
        ml.calibrate(device="cuda:0", settings=settings)
