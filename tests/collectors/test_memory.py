from __future__ import annotations

import time

import numpy as np
import psutil

from mlscope_lab.collectors.memory import ResidentMemory, peak_resident_bytes


def test_what_the_process_takes_and_gives_back_is_seen():
    collector = ResidentMemory(period_s=0.001)
    collector.start("cpu")
    before = psutil.Process().memory_info().rss
    block = np.ones(8_000_000)  # 64 MB, mapped for itself
    held = psutil.Process().memory_info().rss
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and len(collector._sampler._times) and collector._sampler._n < 4:
        time.sleep(0.001)
    del block
    (table,) = collector.stop().values()
    resident = table.columns["allocated_bytes"]
    assert table.tables["device"] == ("process",)
    assert resident.max() >= before + 0.9 * (held - before)
    assert resident[0] <= resident.max() - 50_000_000
    assert table.columns["bytes"].sum() == resident[-1] - resident[0]
    assert table.columns["bytes"][0] == 0
    assert table.attrs["process_peak_bytes"] == resident.max() <= peak_resident_bytes() + 8 * 2**20
    assert table.attrs["page_faults_minor"] > 0
    assert table.attrs["process_period_s"] == 0.001
