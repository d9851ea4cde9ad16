from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlscope_lab.errors import SchemaError
from mlscope_lab.launchers.codec import pass_from_message, pass_to_message
from mlscope_lab.store import Store
from mlscope_lab.testing import synthetic_pass
from mlscope_lab.trace import schema
from mlscope_lab.trace.attribution import iteration_at
from mlscope_lab.trace.build import build_imported, build_run
from mlscope_lab.trace.events import PassEvents, datasets_of, table_of
from mlscope_lab.trace.records import EventTable
from mlscope_lab.trace.validate import validate


def operators(names, start, *, parents=None, layers=None):
    n = len(names)
    texts = tuple(dict.fromkeys(names))
    return EventTable(
        columns={
            "name_code": np.array([texts.index(name) for name in names], dtype=np.int32),
            "start_ns": start + 10 * np.arange(n, dtype=np.int64),
            "duration_ns": np.full(n, 5, dtype=np.int64),
            "parent_index": np.array(parents or [-1] * n, dtype=np.int32),
            "layer_index": np.array(layers or [-1] * n, dtype=np.int32),
            "iteration": np.zeros(n, dtype=np.int32),
        },
        tables={"name": texts},
    )


def kernels(n, start, *, operators_=None):
    return EventTable(
        columns={
            "start_ns": start + 7 * np.arange(n, dtype=np.int64),
            "duration_ns": np.ones(n, dtype=np.int64),
            "operator_index": np.array(operators_ or [-1] * n, dtype=np.int32),
            "flop_count_sp": np.arange(n, dtype=np.float64),
        },
        variable_attrs={"flop_count_sp": {"units": "1", "long_name": "single-precision operations"}},
    )


def deep(record, anchor, events):
    """A pass of level "operator" whose layers are those of a layer pass."""
    trace = dataclasses.replace(record.layers, events=events)
    return dataclasses.replace(record, level="operator", layers=trace, anchor_ns=anchor)


def whole(attrs, *, processes=1):
    passes = []
    for process in range(processes):
        anchor = 1_000_000_000 * (process + 1)
        common = {"process": process, "anchor_ns": anchor}
        passes += [synthetic_pass(**common), synthetic_pass(level="layer", **common)]
        names = ["aten::conv2d", "aten::relu"] if process == 0 else ["aten::relu", "aten::add", "aten::conv2d"]
        events = {
            "operators": operators(
                names, anchor + 100, parents=[-1, 0, 0][: len(names)], layers=[0, 3, 2][: len(names)]
            ),
            "kernels": kernels(2, anchor + 100, operators_=[1, -1]),
        }
        passes.append(deep(synthetic_pass(level="layer", **common), anchor, events))
    return build_run(attrs=attrs, passes=passes)


def test_events_of_several_passes_share_tables_and_shift_indices(run_attrs):
    run = whole(run_attrs(level="operator"), processes=2)
    found = run["operators"].to_dataset()
    assert table_of(found, "name") == ["aten::conv2d", "aten::relu", "aten::relu", "aten::add", "aten::conv2d"]
    np.testing.assert_array_equal(found["pass_index"], [2, 2, 5, 5, 5])
    np.testing.assert_array_equal(found["parent_index"], [-1, 0, -1, 2, 2])
    np.testing.assert_array_equal(found["layer_index"], [0, 3, 0, 3, 2])
    np.testing.assert_array_equal(found["start_ns"], [100, 110, 100, 110, 120])
    np.testing.assert_array_equal(run["kernels"]["operator_index"], [1, -1, 3, -1])
    np.testing.assert_array_equal(run["kernels"]["correlation"], [-1] * 4)
    np.testing.assert_array_equal(run["kernels"]["flop_count_sp"], [0.0, 1.0, 0.0, 1.0])
    assert run["kernels"]["flop_count_sp"].attrs["long_name"] == "single-precision operations"


def test_a_deeper_pass_is_compared_with_the_one_above_and_leaves_the_layer_table_alone(run_attrs):
    run = whole(run_attrs(level="operator"))
    passes = run["passes"].to_dataset()
    assert list(passes["level"].values) == ["model", "layer", "operator"]
    assert np.isnan(passes["overhead_ratio"].values[0])
    assert passes["overhead_ratio"].values[2] == pytest.approx(1.0)  # the same times as the layer pass
    shallow = whole(run_attrs(level="operator")).mlscope.layers()
    assert shallow["calls"].max() == run["layers"].sizes["layer_iteration"] // 2


def test_events_survive_the_pipe_and_the_store(run_attrs, tmp_path):
    run = whole(run_attrs(level="operator"), processes=2)
    record = deep(synthetic_pass(level="layer"), 5, {"operators": operators(["a", "b", "a"], 10)})
    again = pass_from_message(*pass_to_message(record))
    assert again.layers.events["operators"].tables == {"name": ("a", "b")}
    for column, values in record.layers.events["operators"].columns.items():
        np.testing.assert_array_equal(again.layers.events["operators"].columns[column], values)
    store = Store(tmp_path)
    opened = store.open(store.save(run))
    for group in ("operators", "kernels"):
        assert opened[group].to_dataset().load().identical(run[group].to_dataset())
    validate(opened)


def test_an_imported_trace_is_a_run_without_latency(tmp_path):
    run = build_imported(
        attrs={"model": "trace.json", "backend": "kineto"}, wall_ns=1000, level="kernel", anchor_ns=50,
        events={"operators": operators(["a", "b"], 60), "kernels": kernels(3, 70)},
    )  # fmt: skip
    assert run.attrs["origin"] == "imported"
    assert "latency" not in run.children
    assert run["operators"]["start_ns"].attrs["provenance"] == "imported"
    assert run["operators"]["start_ns"].values[0] == 10
    store = Store(tmp_path)
    assert store.open(store.save(run)).attrs["batch_size"] is None
    assert store.runs().loc[run.attrs["run_id"], "backend"] == "kineto"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name_code": np.array([0, 9], dtype=np.int32)}, "name_code"),
        ({"parent_index": np.array([0, 2], dtype=np.int32)}, "parent_index"),
        ({"pass_index": np.array([0, 1], dtype=np.int32)}, "pass_index"),
        ({"duration_ns": np.array([1, -1])}, "negative duration"),
        ({"start_ns": np.array([0.0, 1.0])}, "must be int64"),
        ({"layer_index": np.array([0, 0], dtype=np.int32)}, "layer_index"),
    ],
)
def test_broken_events_are_named(change, words):
    run = build_imported(
        attrs={"model": "m", "backend": "b"},
        wall_ns=1,
        level="operator",
        events={"operators": operators(["a", "b"], 0)},
    )
    data = run["operators"].to_dataset()
    run["operators"] = data.assign({k: (("operator",), v, data[k].attrs) for k, v in change.items()})
    with pytest.raises(SchemaError, match=words):
        validate(run)


def test_tables_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="shape"):
        EventTable(columns={"start_ns": np.zeros(2), "duration_ns": np.zeros(3)})
    with pytest.raises(ValueError, match="codes outside"):
        EventTable(columns={"name_code": np.array([1])}, tables={"name": ("a",)})
    events = {"operators": EventTable(columns={"start_ns": np.zeros(1, dtype=np.int64)})}
    with pytest.raises(SchemaError, match="lack duration_ns"):
        datasets_of([PassEvents(pass_index=0, anchor_ns=0, groups=events)])
    with pytest.raises(SchemaError, match="Unknown group"):
        datasets_of([PassEvents(pass_index=0, anchor_ns=0, groups={"kernel": kernels(1, 0)})])


def test_links_of_several_kinds_are_shifted_each_by_its_own():
    links = EventTable(
        columns={
            "kind_code": np.array([0, 1, 0], dtype=np.int32),
            "source_index": np.array([0, 0, -1], dtype=np.int32),
            "target_index": np.array([0, 1, 0], dtype=np.int32),
        },
        tables={"kind": ("launch", "forward_backward")},
    )
    calls = EventTable(columns={"start_ns": np.zeros(1, dtype=np.int64), "duration_ns": np.zeros(1, dtype=np.int64)})
    first = {"operators": operators(["a", "b", "c"], 0), "runtime": calls, "kernels": kernels(2, 0)}
    second = {"operators": operators(["a", "b"], 0), "runtime": calls, "kernels": kernels(1, 0), "links": links}
    found = datasets_of(
        [
            PassEvents(pass_index=0, anchor_ns=0, groups=first),
            PassEvents(pass_index=1, anchor_ns=0, groups=second),
        ]
    )["links"]
    assert found["source_index"].values.tolist() == [1, 3, -1]
    assert found["target_index"].values.tolist() == [2, 4, 2]
    wrong = {**second, "links": EventTable(columns=links.columns, tables={"kind": ("launch", "owes")})}
    with pytest.raises(SchemaError, match="owes"):
        datasets_of([PassEvents(pass_index=1, anchor_ns=0, groups=wrong)])


def test_every_group_has_a_dim_of_its_own():
    for group, dim in schema.EVENT_DIMS.items():
        dims = set(schema.GROUPS[group].values())
        assert (dim,) in dims
        for other in schema.GROUPS:
            if other != group:
                assert not dims & set(schema.GROUPS[other].values())


def test_iterations_of_times():
    starts, durations = np.array([10, 30]), np.array([10, 5])
    np.testing.assert_array_equal(iteration_at(np.array([9, 10, 19, 20, 34, 35]), starts, durations),
                                  [-1, 0, 0, -1, 1, -1])  # fmt: skip
    assert iteration_at(np.array([1]), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == [-1]
