from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.collectors.rapl import Rapl, find_domains


def zone(root: Path, folder: str, name: str, counter: int, limit: int | None = 262_143_328_850) -> Path:
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{counter}\n")
    if limit is not None:
        (made / "max_energy_range_uj").write_text(f"{limit}\n")
    return made / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """The files of a machine with two packages, as Linux lays them out (flat, beside the controller's own folder)."""
    root = tmp_path / "powercap"
    (root / "intel-rapl").mkdir(parents=True)
    (root / "intel-rapl" / "enabled").write_text("1\n")
    zone(root, "intel-rapl:0", "package-0", 1_000_000)
    zone(root, "intel-rapl:0:0", "core", 500_000)
    zone(root, "intel-rapl:0:1", "dram", 100_000)
    zone(root, "intel-rapl:1", "package-1", 3_000_000)
    zone(root, "intel-rapl-mmio:0", "package-0", 1_000_000)
    return root


def advance(file: Path, microjoules: int) -> None:
    """Let a counter run on, in the file that is open already."""
    limit = int((file.parent / "max_energy_range_uj").read_text())
    file.write_text(f"{(int(file.read_text()) + microjoules) % limit}\n")


def record(powercap: Path, joules: float, *, idle_joules: float = 0.0) -> tuple[Rapl, object]:
    collector = Rapl(powercap=powercap, hwmon=powercap / "none", period_s=5.0, idle_s=0.0)
    file = powercap / "intel-rapl:0" / "energy_uj"
    collector.prepare("cpu")
    collector.start("cpu")
    time.sleep(0.01)
    advance(file, int(joules * 1e6))
    (table,) = collector.stop().values()
    return collector, table


def test_domains_are_named_by_their_parents_and_counted_once(powercap):
    assert [d.name for d in find_domains(powercap, powercap)] == [
        "package-0", "package-0/core", "package-0/dram", "package-1",
    ]  # fmt: skip


def test_energy_is_read_from_the_counters(powercap):
    collector, table = record(powercap, 2.5)
    assert collector.unavailable("cpu") == {}
    assert table.tables["device"] == ("package-0", "package-0/core", "package-0/dram", "package-1")
    assert table.attrs["energy_joules"]["package-0"] == pytest.approx(2.5)
    assert table.attrs["energy_joules"]["package-1"] == 0
    of_package = table.columns["device_code"] == 0
    seconds = np.diff(table.columns["time_ns"][of_package]) / 1e9
    assert table.columns["power_watts"][of_package][1:] * seconds == pytest.approx([2.5])


def test_a_counter_may_turn_over_while_it_is_watched(powercap):
    (powercap / "intel-rapl:0" / "energy_uj").write_text("262143000000\n")
    _, table = record(powercap, 1.0)
    assert table.attrs["energy_joules"]["package-0"] == pytest.approx(1.0)


def test_idle_power_is_taken_off(powercap):
    collector = Rapl(powercap=powercap, hwmon=powercap, period_s=0.005, idle_s=0.05)
    collector._idle = {}
    collector.prepare("cpu")
    assert collector._idle["package-0"] == 0  # the files stand still
    collector.start("cpu")
    advance(powercap / "intel-rapl:0" / "energy_uj", 1_000_000)
    (table,) = collector.stop().values()
    assert table.attrs["idle_watts"]["package-0"] == 0
    assert table.attrs["energy_above_idle_joules"]["package-0"] == pytest.approx(1.0)


def test_amds_own_sensor(tmp_path):
    folder = tmp_path / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    (tmp_path / "hwmon" / "hwmon0").mkdir()
    (tmp_path / "hwmon" / "hwmon0" / "name").write_text("nvme\n")
    (folder / "name").write_text("amd_energy\n")
    for number, label in ((1, "Ecore000"), (65, "Esocket0")):
        (folder / f"energy{number}_label").write_text(f"{label}\n")
        (folder / f"energy{number}_input").write_text("42\n")
    assert [d.name for d in find_domains(tmp_path / "powercap", tmp_path / "hwmon")] == ["package-0"]


def test_a_machine_without_counters_says_so(tmp_path):
    (reason,) = Rapl(powercap=tmp_path, hwmon=tmp_path).unavailable("cpu").values()
    assert "virtual machines" in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(powercap):
    for file in powercap.glob("*/energy_uj"):
        file.chmod(0)
    assert "chmod a+r" in Rapl(powercap=powercap, hwmon=powercap).unavailable("cpu")["rapl"]


def test_a_file_that_cannot_be_read_is_left_out_with_its_reason(powercap):
    broken = powercap / "intel-rapl:0:1" / "energy_uj"
    broken.unlink()
    broken.mkdir()  # reading it fails for everybody
    collector = Rapl(powercap=powercap, hwmon=powercap)
    assert set(collector.unavailable("cpu")) == {"rapl package-0/dram"}
