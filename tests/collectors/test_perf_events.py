from __future__ import annotations

import math
import os
import sys
import threading
import time

import numpy as np
import pytest

from mlscope_lab.collectors.perf_events import EVENTS, PerfEvents, scaled
from mlscope_lab.collectors.sampling import Sampler
from mlscope_lab.trace import schema

NAMES = {event.name for event in EVENTS}


@pytest.fixture
def collector() -> PerfEvents:
    made = PerfEvents()
    reasons = made.unavailable("cpu")
    if "perf_events" in reasons:
        pytest.skip(reasons["perf_events"])
    if "perf_events task_clock_ns" in reasons:
        pytest.skip(reasons["perf_events task_clock_ns"])
    return made


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def test_processor_time_of_old_and_new_threads_is_counted_and_of_samplers_not(collector):
    go, done = threading.Event(), threading.Event()

    def old():
        go.wait()
        work(0.05)
        done.set()

    thread = threading.Thread(target=old)
    thread.start()
    sampler = Sampler(lambda: (work(0.002), 0.0)[1:], 1, period_s=0.001)
    sampler.start()
    collector.start("cpu")
    go.set()
    work(0.05)
    young = threading.Thread(target=work, args=(0.05,))
    young.start()
    young.join()
    done.wait()
    (table,) = collector.stop().values()
    sampler.stop()
    thread.join()
    counted = table.columns["task_clock_ns"][0]
    assert 0.15e9 <= counted < 0.25e9
    assert table.columns["start_ns"].shape == (1,)
    assert table.tables["name"] == ("pass",)
    assert table.variable_attrs["task_clock_ns"]["units"] == "ns"


def test_every_counter_is_there_or_listed(collector):
    missing = collector.unavailable("cpu")
    collector.start("cpu")
    (table,) = collector.stop().values()
    found = NAMES & set(table.columns)
    assert found | {what.removeprefix("perf_events ") for what in missing} == NAMES
    assert all(why for why in missing.values())
    for name in found:
        assert table.columns[name].dtype == np.float64
        assert schema.dtype_of("counters", name) == "float64"


def test_page_faults_are_those_of_the_measured_part(collector):
    collector.start("cpu")
    np.ones(4_000_000)
    (table,) = collector.stop().values()
    assert table.columns["page_faults_minor"][0] >= 10


def test_nothing_stays_open(collector):
    import psutil

    before = psutil.Process().num_fds()
    collector.start("cpu")
    assert psutil.Process().num_fds() > before
    collector.stop()
    assert psutil.Process().num_fds() == before


def test_a_process_with_many_threads_keeps_files_for_itself(collector):
    import resource

    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(30)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for thread in threads:
        thread.start()
    try:
        # room for two counters of each thread and for the spare files
        limit = len(os.listdir("/proc/self/fd")) + 128 + 2 * len(os.listdir("/proc/self/task")) + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        collector.start("cpu")
        (table,) = collector.stop().values()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        end.set()
        for thread in threads:
            thread.join()
    assert len(NAMES & set(table.columns)) == 2
    assert all("ulimit -n" in reason for reason in collector.missing.values())
    assert len(collector.missing) >= 1


def test_counts_are_extended_to_the_time_in_which_they_were_not_counted():
    assert scaled([(10, 100, 50), (4, 100, 100)]) == (24.0, 0.75)
    assert scaled([]) == (0.0, 1.0)
    assert scaled([(0, 0, 0)]) == (0.0, 1.0)
    assert math.isnan(scaled([(0, 100, 0), (5, 10, 10)])[0])


@pytest.mark.skipif(sys.platform == "linux", reason="Linux has perf events")
def test_elsewhere_it_says_where_they_are():
    assert "Linux" in PerfEvents().unavailable("cpu")["perf_events"]
