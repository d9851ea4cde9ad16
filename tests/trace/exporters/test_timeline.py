from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import InputError, StoreError
from mlscope_lab.testing import synthetic_failed_run, synthetic_run
from mlscope_lab.trace.exporters.timeline import lanes, opened_and_closed, passes_of, slices_of, written

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=40)


@given(spans=SPANS)
def test_spans_of_a_lane_lie_apart_or_inside_each_other(spans):
    start = np.array([begin for begin, _ in spans], dtype=np.int64)
    end = start + np.array([length for _, length in spans], dtype=np.int64)
    lane = lanes(start, end)
    for number in np.unique(lane):
        here = np.flatnonzero(lane == number)
        stack, before, seen = [], -1, []
        for row, at in opened_and_closed(start[here], end[here]):
            assert at >= before
            before = at
            if row >= 0:
                assert not stack or end[here][stack[-1]] >= end[here][row]
                stack.append(row)
                seen.append(row)
            else:
                assert stack.pop() == ~row
                assert at == end[here][~row]
        assert not stack
        assert sorted(seen) == list(range(len(here)))


def test_spans_that_overlap_without_end_take_no_time():
    n = 20_000
    lane = lanes(np.arange(n), np.arange(n) + n)
    assert sorted(set(lane.tolist())) == list(range(-1, 256))


def test_passes_lie_on_one_clock():
    run = synthetic_run(deep=True)
    spans = passes_of(run)
    assert [span.level for span in spans] == ["model", "layer", "kernel"] * 2
    assert spans[0].start_ns == 1_795_000_000_000_000_000 + 1_000_000_000
    assert spans[3].start_ns - spans[0].start_ns == 60_000_000_000
    with pytest.raises(InputError, match="has no passes to export"):
        passes_of(synthetic_failed_run())


def test_slices_hold_every_row_once(monkeypatch):
    run = synthetic_run(deep=True)
    monkeypatch.setattr("mlscope_lab.trace.exporters.timeline._SLICE", 100)
    parts = list(slices_of(run, "kernels"))
    assert [len(part["start_ns"]) for part in parts] == [100, 100, 40]
    np.testing.assert_array_equal(np.concatenate([p["start_ns"] for p in parts]), run["kernels"]["start_ns"])
    assert "name_table" not in parts[0]
    assert not list(slices_of(synthetic_run(), "kernels"))


def test_a_file_appears_once_it_is_whole(tmp_path):
    with written(tmp_path / "a.txt", "text") as out:
        out.write("é\n")
        assert [p.name[:5] for p in tmp_path.iterdir()] == [".tmp-"]
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    with pytest.raises(TypeError), written(tmp_path / "a.txt", "text") as out:
        out.write(b"half")
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_text_packs_to_the_same_bytes(tmp_path):
    for name in ("a.txt.gz", "b.txt.gz"):
        with written(tmp_path / name, "text") as out:
            out.write("x" * 1000)
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.txt.gz").read_bytes()) == b"x" * 1000


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="cannot be written as text: No space left"), written(tmp_path / "a", "text"):
        pass
    assert not list(tmp_path.iterdir())
