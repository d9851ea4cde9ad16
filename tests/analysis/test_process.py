from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mlscope_lab.analysis.process import energy, process_counters
from mlscope_lab.collectors.power import power_table
from mlscope_lab.errors import SchemaError
from mlscope_lab.testing import synthetic_pass, synthetic_run
from mlscope_lab.trace.build import build_run
from mlscope_lab.trace.records import EventTable

ANCHOR = 10**9
SECOND = 10**9


def watched(events: dict[str, EventTable], *, process: int = 0, **attrs: Any):
    """A run with a hardware pass of two seconds and four iterations, and what collectors recorded of it."""
    plain = synthetic_pass(iterations=4, process=process, anchor_ns=ANCHOR)
    record = dataclasses.replace(plain, level="hardware", wall_ns=2 * SECOND, events=events)
    whole = synthetic_run(layers=0, processes=1, **attrs)
    return build_run(attrs={**whole.attrs, "level": "hardware"}, passes=[plain, record])


def counted(**counters: float) -> dict[str, EventTable]:
    columns: dict[str, Any] = {name: np.array([value]) for name, value in counters.items()}
    columns |= {"start_ns": np.array([ANCHOR]), "duration_ns": np.array([2 * SECOND]),
                "name_code": np.zeros(1, dtype=np.int32), "category_code": np.zeros(1, dtype=np.int32)}  # fmt: skip
    return {"counters": EventTable(columns=columns, tables={"name": ("pass",), "category": ("process",)})}


def test_counters_are_told_by_pass_and_iteration_with_their_ratios():
    found = process_counters(watched(counted(cycles=8e9, instructions=12e9, task_clock_ns=3e9, cache_misses=5.0)))
    assert found["count"].sel(counter="cycles").values.tolist() == [8e9]
    assert found["per_iteration"].sel(counter="instructions").values.tolist() == [3e9]
    assert found["instructions_per_cycle"].values.tolist() == [1.5]
    assert found["cores_busy"].values.tolist() == [1.5]
    assert "cache_miss_share" not in found
    assert list(found["level"].values) == ["hardware"]


def test_a_run_without_counters_says_why():
    reason = {"perf_events cycles": "ENOENT: a virtual machine"}
    with pytest.raises(SchemaError, match="a virtual machine"):
        process_counters(watched({}, unavailable=reason))
    with pytest.raises(SchemaError, match="level='hardware'"):
        process_counters(synthetic_run(deep=True))


def powered(**columns: Any) -> dict[str, EventTable]:
    """Samples half a second before the start, at each half second, and half a second after the end."""
    times = ANCHOR + np.arange(-1, 6) * SECOND // 2
    devices = {"package-0": {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}}
    table = power_table(times, devices, source="rapl", period_s=0.5, idle_watts={"package-0": 2.0})
    return {"power": table}


def test_energy_is_that_of_the_measured_part_less_what_rest_would_take():
    counter = np.arange(7) * 5.0  # ten watts
    (row,) = (energy(watched(powered(power_watts=np.full(7, 99.0), energy_joules=counter))).isel(row=i) for i in [0])
    assert row["energy_joules"] == pytest.approx(20)
    assert row["power_watts"] == pytest.approx(10)
    assert row["energy_per_iteration_joules"] == pytest.approx(5)
    assert (row["idle_watts"], row["energy_above_idle_joules"]) == (2, pytest.approx(16))
    assert (row["source"], row["device"], row["level"]) == ("counter", "package-0", "hardware")


def test_without_a_counter_the_power_is_added_up():
    watts = [np.nan, 0, 10, 20, 30, 40, 0]
    row = energy(watched(powered(power_watts=watts))).isel(row=0)
    assert row["energy_joules"] == pytest.approx(40)
    assert row["source"] == "power"


def test_a_device_that_told_nothing_has_no_energy():
    row = energy(watched(powered(power_watts=np.full(7, np.nan)))).isel(row=0)
    assert np.isnan(row["energy_joules"])


def test_a_run_without_power_says_why():
    with pytest.raises(SchemaError, match="may be read by root"):
        energy(watched({}, unavailable={"rapl": "may be read by root alone"}))
