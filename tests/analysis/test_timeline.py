from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.analysis.device import stream_utilization
from mlscope_lab.analysis.timeline import busy_timeline
from mlscope_lab.errors import InputError

kernels = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=15
)  # fmt: skip


@given(kernels, st.integers(1, 9))
def test_the_pieces_hold_all_busy_time(imported, rows, steps):
    run = imported(kernels=[{"name": "k", "category": "kernel", "start_ns": s, "duration_ns": d, "stream": stream,
                             "device": 0} for s, d, stream in rows])  # fmt: skip
    found = busy_timeline(run, steps=steps)
    assert found["busy_ns"].sum("step").values.tolist() == stream_utilization(run)["busy_ns"].values.tolist()
    assert (found["busy_ns"] <= found["length_ns"]).all()
    assert int(found["length_ns"].sum()) == max(s + d for s, d, _ in rows) - min(s for s, _, _ in rows)


def test_where_a_stream_is_busy(imported):
    common = {"name": "k", "category": "kernel", "duration_ns": 10, "stream": 1, "device": 0}
    run = imported(kernels=[common | {"start_ns": start} for start in (0, 30)])
    found = busy_timeline(run, steps=4)
    assert found["busy_share"].values.tolist() == [[1, 0, 0, 1]]
    assert found["start_ns"].values.tolist() == [0, 10, 20, 30]
    with pytest.raises(InputError, match="at least 1"):
        busy_timeline(run, steps=0)


def test_the_first_pass_alone(run):
    found = busy_timeline(run)
    assert found["stream"].values.tolist() == ["device 0 stream 7", "device 0 stream 9"]
    assert found.attrs["pass_index"] == 2
