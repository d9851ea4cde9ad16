from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.trace.joining import join_attrs, join_tables
from mlscope_lab.trace.records import EventTable


def memory(times, device, **more):
    n = len(times)
    return EventTable(
        columns={"time_ns": np.array(times), "device_code": np.zeros(n, dtype=np.int32), **more},
        tables={"device": (device,)},
        attrs={"idle": {device: 1.0}},
    )


def test_events_of_two_sources_are_in_order_of_time_under_one_table():
    first = memory([10, 30], "cuda:0", address=np.array([7, 8]))
    second = memory([0, 20], "process", share=np.array([0.5, 1.0]))
    joined = join_tables([first, second])
    assert joined.columns["time_ns"].tolist() == [0, 10, 20, 30]
    assert [joined.tables["device"][code] for code in joined.columns["device_code"]] == [
        "process", "cuda:0", "process", "cuda:0",
    ]  # fmt: skip
    assert joined.columns["address"].tolist() == [-1, 7, -1, 8]
    assert np.isnan(joined.columns["share"]).tolist() == [False, True, False, True]
    assert joined.attrs == {"idle": {"cuda:0": 1.0, "process": 1.0}}


def test_unknown_codes_stay_unknown_and_equal_texts_are_one():
    first = memory([1], "cuda:0")
    second = EventTable(
        columns={"time_ns": np.array([2, 3]), "device_code": np.array([-1, 1], dtype=np.int32)},
        tables={"device": ("process", "cuda:0")},
    )
    joined = join_tables([first, second])
    assert joined.columns["device_code"].tolist() == [0, -1, 0]
    assert joined.tables["device"] == ("cuda:0", "process")


def test_one_table_is_itself_and_trees_are_refused():
    table = memory([1], "cuda:0")
    assert join_tables([table]) is table
    tree = memory([1], "cuda:0", parent_index=np.array([-1], dtype=np.int32))
    with pytest.raises(ValueError, match="parents"):
        join_tables([table, tree])


def test_of_plain_attributes_the_last_counts():
    assert join_attrs([{"a": 1, "b": {"x": 1}}, {"a": 2, "b": 3}]) == {"a": 2, "b": 3}
