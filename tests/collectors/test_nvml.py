"""On recorded readings: no device is needed."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from mlscope_lab.collectors.nvml import COLUMNS, Nvml, open_nvml


class Recorded:
    """Readings of a board, as NVML gives them: clocks in Hz, energy since the driver was loaded."""

    def __init__(self, columns, rows, lacking=None, fails_at=None):
        self.columns, self.lacking = columns, lacking or {}
        self._rows, self._numbers, self._fails_at = rows, itertools.count(), fails_at
        self.read_all, self.closed = threading.Event(), 0

    def read(self):
        number = next(self._numbers)
        if self._fails_at is not None and number >= self._fails_at:
            self.read_all.set()
            raise OSError("NVML: GPU is lost")
        if number >= len(self._rows) - 2:
            self.read_all.set()
        return self._rows[min(number, len(self._rows) - 1)]

    def close(self):
        self.closed += 1


ROWS = [
    (61.0, 7000.0, 1.98e9, 2.6e9, 38, 0.1, 0x1),
    (250.0, 7020.0, 1.75e9, 2.6e9, 41, 1.0, 0x4),
    (270.0, 7047.0, 1.70e9, 2.6e9, 44, 1.0, 0x24),
    (260.0, 7073.0, 1.70e9, 2.6e9, 45, 1.0, 0x4),
]


def watched(reader, *, idle=None):
    readers = iter([idle, reader] if idle is not None else [reader])
    collector = Nvml(period_s=0.001, idle_s=0.005, open_reader=lambda device: next(readers))
    if idle is not None:
        collector.prepare("cuda:0")
    collector.start("cuda:0")
    assert reader.read_all.wait(30)
    (table,) = collector.stop().values()
    assert reader.closed == 1
    return collector, table


def test_readings_become_samples_and_energy_counts_from_the_start():
    idle = Recorded(COLUMNS, [(60.0, 6990.0, 0.3e9, 2.6e9, 37, 0.0, 0x1)])
    collector, table = watched(Recorded(COLUMNS, ROWS), idle=idle)
    assert idle.closed == 1
    assert table.tables["device"] == ("cuda:0",)
    assert table.columns["energy_joules"][:4].tolist() == [0, 20, 47, 73]
    assert table.columns["throttle_reasons"].dtype == np.int64
    assert table.columns["throttle_reasons"][:4].tolist() == [1, 4, 36, 4]
    assert table.attrs["idle_watts"] == {"cuda:0": 60.0}
    seconds = (table.columns["time_ns"][-1] - table.columns["time_ns"][0]) / 1e9
    assert table.attrs["energy_above_idle_joules"]["cuda:0"] == pytest.approx(73 - 60 * seconds)
    assert not collector.missing


def test_a_board_without_an_energy_counter_tells_power_alone():
    columns = ("power_watts", "temperature_celsius")
    _, table = watched(Recorded(columns, [(row[0], row[4]) for row in ROWS]))
    assert "energy_joules" not in table.columns
    assert table.attrs["energy_joules"] == {}
    assert table.columns["power_watts"][:2].tolist() == [61, 250]


def test_a_board_that_tells_energy_alone_has_its_power_from_it():
    _, table = watched(Recorded(("energy_joules",), [(row[1],) for row in ROWS]))
    assert np.isnan(table.columns["power_watts"][0])
    assert (table.columns["power_watts"][1:4] > 0).all()


def test_what_a_device_lacks_is_listed():
    reader = Recorded(("power_watts",), [(1.0,)], lacking={"energy_joules": "NVML: Not Supported"})
    collector = Nvml(open_reader=lambda device: reader)
    assert collector.unavailable("cuda:0") == {"nvml energy_joules": "NVML: Not Supported"}
    assert reader.closed == 1


def test_a_device_that_is_lost_ends_the_samples_with_its_reason():
    collector, table = watched(Recorded(COLUMNS, ROWS, fails_at=3))
    assert len(table) == 3
    assert "GPU is lost" in collector.missing["nvml"]


def test_a_run_on_the_cpu_is_not_watched():
    assert "'cpu'" in Nvml().unavailable("cpu")["nvml"]


def test_a_machine_without_nvml_says_why():
    try:
        open_nvml("cuda:0").close()
    except OSError as error:
        assert "nvidia-ml-py" in str(error) or "NVML" in str(error)  # noqa: PT017 - either way is right here
    else:
        pytest.skip("this machine has a device")
