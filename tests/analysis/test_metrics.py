from __future__ import annotations

import math

import numpy as np
import pytest

from mlscope_lab.analysis.metrics import Peaks, metric_totals, roof_columns
from mlscope_lab.analysis.sites import match, sites_of
from mlscope_lab.analysis.work import work_of
from mlscope_lab.errors import InputError


def test_peaks_are_checked_and_known_ones_said():
    assert Peaks.of(2e12, 1e11).attrs() == {"peak_flops": 2e12, "peak_bandwidth": 1e11, "ridge": 20.0}
    assert Peaks.of(None, 1e11).attrs() == {"peak_bandwidth": 1e11}
    for wrong in (0, -1.0, math.inf, "1e12"):
        with pytest.raises(InputError, match="peak_bandwidth must be a positive number of byte/s"):
            Peaks.of(None, wrong)


def test_a_roof_is_the_lower_of_two():
    metrics = {"flops": np.array([1e6, 1e6, np.nan]), "dram_read_bytes": np.array([1e6, 1e3, 1.0]),
               "dram_write_bytes": np.array([0.0, 0.0, 1.0])}  # fmt: skip
    found = roof_columns(metrics, np.array([1e3, 1e3, 1e3]), Peaks.of(1e12, 1e10), roof=True)
    assert found["arithmetic_intensity"][:2].tolist() == [1, 1000]
    assert found["memory_bound"].tolist() == [1, 0, -1]
    assert found["roof"][:2].tolist() == [1e10, 1e12]
    assert found["achieved_flops"][0] == 1e12
    assert roof_columns({}, np.array([1.0]), Peaks.of(None, None)) == {}


def test_unknown_counters_are_left_out_of_sums(imported):
    kernels = [
        {"name": "k", "category": "kernel", "start_ns": 10 * i, "duration_ns": d, "stream": 0, "device": 0,
         "iteration": 0, "flop_count_sp": f, "achieved_occupancy": o}
        for i, (d, f, o) in enumerate([(5, 10.0, 0.2), (15, np.nan, np.nan), (10, 30.0, 0.8)])
    ]  # fmt: skip
    run = imported(kernels=kernels)
    work = work_of(run)
    means = metric_totals(run, work, by="all", groups=1).means
    assert means["flops"].tolist() == [40]
    assert means["occupancy"][0] == pytest.approx((5 * 0.2 + 10 * 0.8) / 15)
    by_site = metric_totals(run, work, sites=sites_of(work)).means
    assert np.isnan(by_site["flops"]).tolist() == [False, True, False]


def test_sites_meet_across_tables_of_names(imported):
    common = {"category": "kernel", "duration_ns": 5, "iteration": 0, "stream": 0, "device": 0}
    kernels = [{"name": n, "start_ns": s} | common for n, s in (("a", 0), ("b", 10), ("a", 20))]
    ranges = [{"name": n, "category": "kernel", "start_ns": s, "duration_ns": 9, "c": 1.0}
              for n, s in (("b", 0), ("a", 10), ("new", 20), ("a", 30))]  # fmt: skip
    run = imported(kernels=kernels, counters=ranges)
    work, other = work_of(run), work_of(run, group="counters")
    assert match(sites_of(work), work, sites_of(other), other).tolist() == [1, 0, -1, 2]
