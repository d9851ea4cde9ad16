from __future__ import annotations

from mlscope_lab.calibration.caches import CacheLevel
from mlscope_lab.calibration.measuring import measure_peaks, working_sets

CACHES = [CacheLevel(name="L1", bytes=32768, instances=2), CacheLevel(name="L2", bytes=2**20, instances=2),
          CacheLevel(name="L3", bytes=2**25, instances=1)]  # fmt: skip


def test_a_set_lies_within_its_cache_and_that_of_memory_beyond_all():
    sets = working_sets(CACHES, 2, 2**34)
    assert list(sets) == ["L1", "L2", "L3", "memory"]
    assert sets["L1"] < 65536 < sets["L2"] < 2**21 < sets["L3"] < 2**25
    assert sets["memory"] == 4 * 2**25


def test_memory_that_is_not_there_is_not_used():
    assert working_sets(CACHES, 2, 2**26)["memory"] == 2**24
    assert working_sets([], 2, 2**34) == {"memory": 4 * 64 * 2**20}


def test_rounds_visit_every_kernel_and_end_with_the_budget():
    notes: list[str] = []
    task = {"device": "cpu", "threads": 1, "sets": {"L1": 16384, "memory": 5_000_000}, "peers": [], "rounds": 9,
            "seconds": 0.0005, "budget_s": 0}  # fmt: skip
    answer = measure_peaks(task, notes.append)
    found = answer["kernels"]
    assert answer["sets"] == task["sets"]
    assert {k["target"] for k in found} == {"L1", "memory", "float32", "float64"}
    assert all(len(k["rates"]) == len(k["shares"]) == 3 for k in found)
    assert notes == ["Round 1 of 9", "Round 2 of 9", "Round 3 of 9"]
