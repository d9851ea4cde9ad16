from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlscope_lab.calibration.caches import CacheLevel, find_caches


def cache(root: Path, processor: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
    folder = root / f"cpu{processor}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(f"{text}\n")


@pytest.fixture
def processors(tmp_path: Path) -> Path:
    """Four processors on two cores of two threads, one third-level cache for all."""
    for processor in range(4):
        pair = "0-1" if processor < 2 else "2-3"
        cache(tmp_path, processor, 0, 1, "Data", "48K", pair)
        cache(tmp_path, processor, 1, 1, "Instruction", "32K", pair)
        cache(tmp_path, processor, 2, 2, "Unified", "2048K", pair)
        cache(tmp_path, processor, 3, 3, "Unified", "30M", "0-3")
    return tmp_path


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS tells through sysctl")
def test_data_caches_are_counted_once_where_processors_share_them(processors):
    assert find_caches(processors, range(4)) == [
        CacheLevel(name="L1", bytes=48 * 1024, instances=2),
        CacheLevel(name="L2", bytes=2 * 2**20, instances=2),
        CacheLevel(name="L3", bytes=30 * 2**20, instances=1),
    ]
    assert [c.instances for c in find_caches(processors, [0, 1])] == [1, 1, 1]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS tells through sysctl")
def test_a_system_that_tells_nothing_has_no_levels(tmp_path):
    assert find_caches(tmp_path, range(2)) == []
    broken = tmp_path / "cpu0" / "cache" / "index0"
    broken.mkdir(parents=True)
    (broken / "level").write_text("one\n")
    (broken / "size").write_text("?\n")
    assert find_caches(tmp_path, range(2)) == []


def test_threads_have_no_more_than_the_caches_that_they_can_use():
    level = CacheLevel(name="L2", bytes=100, instances=4)
    assert [level.capacity(n) for n in (1, 3, 8)] == [100, 300, 400]


def test_this_machine():
    sizes = [c.bytes for c in find_caches()]
    assert sizes == sorted(sizes)
