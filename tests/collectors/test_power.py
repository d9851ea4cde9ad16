from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.collectors.power import energy_used, mean_power, power_table


@given(
    st.integers(10, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=50), st.integers(0, 1000)
)  # fmt: skip
def test_a_counter_that_wraps_tells_the_same_energy_as_one_that_does_not(limit, steps, start):
    true = np.cumsum([start, *steps]).astype(np.float64)
    np.testing.assert_array_equal(energy_used(true % limit, float(limit)), true - true[0])


def test_a_counter_without_a_known_limit_that_falls_is_unknown_from_there():
    np.testing.assert_array_equal(energy_used(np.array([1.0, 3.0, 2.0, 4.0]), None), [0, 2, np.nan, np.nan])


def test_power_is_the_mean_since_the_reading_before():
    watts = mean_power(np.array([0, 10**9, 3 * 10**9, 3 * 10**9]), np.array([0.0, 5.0, 25.0, 25.0]))
    np.testing.assert_array_equal(watts, [np.nan, 5, 10, np.nan])


def test_devices_are_interleaved_and_energy_above_idle_is_told():
    times = np.array([0, 2 * 10**9])
    columns = {
        "package-0": {"power_watts": np.array([np.nan, 10.0]), "energy_joules": np.array([0.0, 20.0])},
        "dram": {"power_watts": np.array([np.nan, 1.0]), "energy_joules": np.array([0.0, 2.0])},
    }
    table = power_table(times, columns, source="rapl", period_s=0.1, idle_watts={"package-0": 4.0})
    assert table.columns["time_ns"].tolist() == [0, 0, 2 * 10**9, 2 * 10**9]
    assert table.columns["device_code"].tolist() == [0, 1, 0, 1]
    assert table.columns["energy_joules"].tolist() == [0, 0, 20, 2]
    assert table.attrs["energy_joules"] == {"package-0": 20.0, "dram": 2.0}
    assert table.attrs["energy_above_idle_joules"] == {"package-0": pytest.approx(12.0)}
    assert table.attrs["period_s"] == {"rapl": 0.1}
