from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.errors import SchemaError
from mlscope_lab.testing import synthetic_layer_trace, synthetic_pass
from mlscope_lab.trace import schema
from mlscope_lab.trace.build import build_run, new_run_id, plain
from mlscope_lab.trace.comparison import compare_outputs, median_ratio
from mlscope_lab.trace.records import LayerTable, LayerTrace
from mlscope_lab.trace.tables import unite


def both(process=0, **changed):
    return [synthetic_pass(level=level, process=process, **changed) for level in ("model", "layer")]


def table(names, *, parents=None, types=None):
    n = len(names)
    return LayerTable(
        name=tuple(names), type=tuple(types or ["Conv"] * n), scope=("",) * n, parent=tuple(parents or [-1] * n),
        depth=(0,) * n, input_shapes=("",) * n, output_shapes=("",) * n, parameter_bytes=(-1,) * n,
        activation_bytes=(4,) * n, sources=("",) * n,
    )  # fmt: skip


def with_table(record, layers):
    """Give a layer pass another table of the same length."""
    return dataclasses.replace(record, layers=dataclasses.replace(record.layers, layers=layers))


def test_groups_dims_and_pass_columns_of_two_processes(run_attrs):
    run = build_run(attrs=run_attrs(), passes=[*both(0, iterations=7), *both(1, iterations=9)])
    assert set(run.children) == {"passes", "latency", "layers"}
    assert not run.dataset.variables
    assert list(run["passes"]["level"].values) == ["model", "layer", "model", "layer"]
    np.testing.assert_array_equal(run["latency"]["process"], [0] * 7 + [1] * 9)
    np.testing.assert_array_equal(run["latency"]["pass_index"], [0] * 7 + [2] * 9)
    np.testing.assert_array_equal(run["layers"]["pass_index"], [1] * 7 + [3] * 9)
    assert run["layers"].sizes == {"layer_iteration": 16, "layer": 12}
    for node in run.children.values():
        for variable in node.dataset.variables.values():
            assert {"units", "long_name", "provenance"} <= variable.attrs.keys()
    assert run["latency"]["predict_ns"].attrs["units"] == "ns"
    assert run["passes"]["peak_bytes"].attrs["units"] == "byte"
    assert run["passes"]["open_ns"].values[0] == 80_000_000


def test_layer_times_become_relative_to_their_pass_and_headline_latency_is_untraced(run_attrs):
    plain_pass, traced = both(anchor_ns=777_000_000_000)
    run = build_run(attrs=run_attrs(), passes=[plain_pass, traced])
    np.testing.assert_array_equal(run["layers"]["start_ns"], traced.layers.start_ns - 777_000_000_000)
    np.testing.assert_array_equal(
        run["layers"]["iteration_start_ns"], traced.layers.iteration_start_ns - 777_000_000_000
    )
    np.testing.assert_array_equal(run["latency"]["predict_ns"], plain_pass.predict_ns)


def test_a_layer_that_did_not_run_is_absent_not_zero(run_attrs):
    run = build_run(attrs=run_attrs(), passes=both(missing=True))
    absent = run["layers"]["duration_ns"].values == -1
    assert absent.any()
    np.testing.assert_array_equal(run["layers"]["start_ns"].values == -1, absent)
    np.testing.assert_array_equal(run["layers"]["exclusive_ns"].values == -1, absent)


def test_a_layer_before_its_pass_is_clamped_and_told(run_attrs):
    plain_pass, traced = both()
    late = dataclasses.replace(traced, anchor_ns=traced.anchor_ns + 100_000)
    run = build_run(attrs=run_attrs(), passes=[plain_pass, late])
    assert (run["layers"]["start_ns"].values >= 0).all()
    assert "before its pass" in run.attrs["warnings"][0]
    forgiving = dataclasses.replace(late, layers=dataclasses.replace(late.layers, clock_error_ns=200_000))
    assert build_run(attrs=run_attrs(), passes=[plain_pass, forgiving]).attrs["warnings"] == []


def test_unequal_tables_are_united_by_name_with_parents_and_a_warning(run_attrs):
    first, second = both(0, layers=3)[1], both(1, layers=3)[1]
    first = with_table(first, table(["a", "b", "c"], parents=[-1, 0, -1]))
    second = with_table(second, table(["a", "x", "c"], parents=[-1, 0, -1], types=["Conv", "Relu", "Conv"]))
    run = build_run(attrs=run_attrs(), passes=[synthetic_pass(), first, second])
    layers = run["layers"]
    names = list(layers["name"].values)
    assert names == ["a", "x", "b", "c"]
    assert list(layers["parent"].values) == [-1, 0, 0, -1]
    x, b = layers["duration_ns"].values[:, 1], layers["duration_ns"].values[:, 2]
    process = layers["process"].values
    assert (x[process == 0] == -1).all()
    assert (x[process == 1] > 0).all()
    assert (b[process == 1] == -1).all()
    np.testing.assert_array_equal(b[process == 0], first.layers.duration_ns[:, 1])
    assert any("1 more, 1 fewer" in w for w in run.attrs["warnings"])


def test_overhead_is_a_ratio_of_medians_over_the_same_process(run_attrs):
    base = synthetic_pass(iterations=101)
    other = synthetic_pass(iterations=101, process=1, mean_ns=50_000_000)
    traced = synthetic_pass(level="layer", iterations=101, layers=4)
    run = build_run(attrs=run_attrs(), passes=[other, base, traced])
    ratio = float(run["passes"]["overhead_ratio"][2])
    assert ratio == np.median(traced.predict_ns) / np.median(base.predict_ns)
    assert run["passes"]["overhead_low"][2] < ratio < run["passes"]["overhead_high"][2]
    assert np.isnan(run["passes"]["overhead_ratio"].values[:2]).all()


@pytest.mark.parametrize(("n", "m"), [(25, 40), (40, 25)])
def test_bootstrap_interval_covers_the_true_ratio(n, m):
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        above = (2e6 * random.lognormal(0, 0.1, n)).astype(np.int64)
        base = (1e6 * random.lognormal(0, 0.1, m)).astype(np.int64)
        _, low, high = median_ratio(above, base)
        covered += low <= 2.0 <= high
    assert 180 <= covered <= 200  # 190 expected; the percentile interval of medians is slightly wide


def test_bootstrap_medians_match_plain_resampling():
    random = np.random.default_rng(3)
    for n in (5, 8):
        values = np.sort(random.integers(1_000, 2_000, n))
        one = np.full(2, 1_000, dtype=np.int64)
        _, low, high = median_ratio(values, one)
        drawn = np.median(random.choice(values, size=(60_000, n)), axis=1) / 1_000
        # quantiles of a discrete distribution: equal up to the neighbouring value
        assert np.quantile(drawn, 0.01) <= low <= np.quantile(drawn, 0.05)
        assert np.quantile(drawn, 0.95) <= high <= np.quantile(drawn, 0.99)


def test_ratio_of_too_little():
    one, two, none = (np.array(v, dtype=np.int64) for v in ([10], [10, 20], []))
    assert all(math.isnan(v) for v in median_ratio(none, two))
    assert median_ratio(two, one)[0] == 1.5
    assert math.isnan(median_ratio(two, one)[1])
    assert all(math.isnan(v) for v in median_ratio(two, np.zeros(3, dtype=np.int64)))


@pytest.mark.parametrize(
    ("one", "two", "want"),
    [
        ([1.0, 2.0], [1.0, 2.0], (1, 0.0)),
        ([1.0, np.nan], [1.0, np.nan], (1, 0.0)),
        ([1.0, 2.0], [1.5, 2.0], (0, 0.5)),
        ([1.0, np.nan], [1.0, 2.0], (0, math.inf)),
        ([np.inf, 0.0], [np.inf, 1.0], (0, 1.0)),
        ([2**62 + 1], [2**62], (0, 1.0)),
        ([True, False], [True, True], (0, 1.0)),
        ([], [], (1, 0.0)),
    ],
)
def test_outputs_compared(one, two, want):
    assert compare_outputs({"y": np.array(one)}, {"y": np.array(two)}) == want


def test_outputs_that_cannot_be_compared():
    y = {"y": np.zeros(2, dtype=np.float32)}
    for other in ({"z": y["y"]}, {"y": np.zeros(3, dtype=np.float32)}, {"y": np.zeros(2)}):
        equal, difference = compare_outputs(y, other)
        assert equal == 0
        assert math.isnan(difference)
    for other in (None, {}):
        assert compare_outputs(y, other)[0] == -1
    assert compare_outputs({"t": np.array(["a"])}, {"t": np.array(["b"])})[0] == 0
    assert compare_outputs({"t": np.array(["a"])}, {"t": np.array(["a"])}) == (1, 0.0)


def test_outputs_of_the_layer_pass_are_compared_within_its_process(run_attrs):
    plain_pass, traced = both()
    shifted = dataclasses.replace(traced, outputs={"scores": traced.outputs["scores"] + np.float32(1)})
    lonely = synthetic_pass(level="layer", process=3)
    run = build_run(attrs=run_attrs(), passes=[plain_pass, traced, shifted, lonely])
    assert list(run["passes"]["outputs_equal"].values) == [-1, 1, 0, -1]
    assert run["passes"]["max_output_difference"].values[2] == pytest.approx(1.0, abs=1e-6)


def test_warnings_and_what_was_unavailable_are_collected(run_attrs):
    plain_pass, traced = both()
    plain_pass = dataclasses.replace(plain_pass, warnings=("noisy", "noisy"))
    traced = dataclasses.replace(
        traced, layers=dataclasses.replace(traced.layers, unavailable={"flops": "not told"}, dropped_events=3)
    )
    run = build_run(attrs=run_attrs(warnings=["hot"]), passes=[plain_pass, traced])
    assert run.attrs["warnings"] == ["hot", "noisy"]
    assert run.attrs["unavailable"] == {"power": "no counter", "flops": "not told"}
    assert list(run["passes"]["dropped_events"].values) == [0, 3]


@pytest.mark.parametrize("name", [n for n in schema.REQUIRED_ATTRS if n != "schema_version"])
def test_every_attribute_is_required(run_attrs, name):
    attrs = run_attrs()
    del attrs[name]
    with pytest.raises(SchemaError, match=name):
        build_run(attrs=attrs, passes=both())


def test_records_that_contradict_themselves(run_attrs):
    plain_pass, traced = both()
    for wrong, words in (
        (dataclasses.replace(traced, layers=None), "no layer trace"),
        (dataclasses.replace(plain_pass, layers=traced.layers), "call it level 'layer'"),
        (dataclasses.replace(plain_pass, level="full"), "model, layer"),
        (dataclasses.replace(plain_pass, start_ns=np.zeros(1, dtype=np.int64)), "start_ns has shape"),
    ):
        with pytest.raises(SchemaError, match=words):
            build_run(attrs=run_attrs(), passes=[plain_pass, wrong])


def test_a_failed_run_needs_no_groups(run_attrs):
    failure = {"kind": "out_of_memory", "message": "killed", "log": ["last line"]}
    run = build_run(attrs=run_attrs(status="failed", failure=failure), passes=[])
    assert not run.children
    assert run.mlscope.summary()["failure"] == {"kind": "out_of_memory", "message": "killed"}


def test_outputs_are_kept_with_text_as_objects(run_attrs):
    import pandas as pd

    labels = xr.Dataset({"label": ("rank", np.array(["cat", "dog"])), "score": ("rank", [0.5, 0.25])})
    run = build_run(attrs=run_attrs(), passes=both(), outputs=labels)
    assert run["outputs"]["label"].dtype == object
    assert list(run["outputs"]["label"].values) == ["cat", "dog"]
    frame = pd.DataFrame({"label": ["cat", "dog"]}, index=pd.Index(["a", "b"], name="key"))
    from_pandas = build_run(attrs=run_attrs(), passes=both(), outputs=frame.to_xarray())
    assert from_pandas["outputs"]["label"].dtype == object


def test_attributes_become_what_json_gives_back():
    value = {
        "a": np.float32(0.5), "b": np.arange(2), "c": (1, 2), "d": {"e": {"z", "y"}}, "p": Path("x") / "y",
        "t": dt.date(2026, 11, 22), "nan": float("nan"), "none": None, 3: True,
    }  # fmt: skip
    simple = plain(value)
    assert json.loads(json.dumps(simple, allow_nan=False)) == simple
    assert simple["b"] == [0, 1]
    assert simple["d"] == {"e": ["y", "z"]}
    assert simple["nan"] is None
    with pytest.raises(SchemaError, match=r"attrs\['a'\]\[1\] is a object"):
        plain({"a": [1, object()]})


def test_run_ids_are_distinct_and_of_one_form():
    import re

    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(schema.RUN_ID, i) for i in ids)


names = st.lists(st.text("abcdef.#", min_size=1, max_size=4), unique=True, max_size=8)


@given(st.lists(names, min_size=1, max_size=4))
def test_united_tables_hold_every_row_once(lists):
    united, positions, _ = unite([(i, table(names)) for i, names in enumerate(lists)])
    assert set(united.name) == {name for names in lists for name in names}
    for names_, position in zip(lists, positions, strict=True):
        assert [united.name[i] for i in position] == names_


@st.composite
def records(draw):
    passes = []
    for process in range(draw(st.integers(1, 3))):
        iterations = draw(st.integers(0, 6))
        anchor = draw(st.integers(0, 2**60))
        base = synthetic_pass(process=process, iterations=iterations, anchor_ns=anchor, seed=draw(st.integers(0, 99)))
        passes.append(base)
        if draw(st.booleans()):
            n = draw(st.integers(0, 6))
            traced = draw(st.integers(0, 4))
            trace = synthetic_layer_trace(layers=n, iterations=traced, start_ns=anchor, missing=draw(st.booleans()))
            if draw(st.booleans()) and n:
                trace = dataclasses.replace(trace, layers=table([f"layer{process}.{i}" for i in range(n)]))
            passes.append(dataclasses.replace(base, level="layer", layers=trace))
    return draw(st.permutations(passes))


@settings(max_examples=60, deadline=None)
@given(passes=records())
def test_any_records_build_a_valid_run_that_keeps_every_number(run_attrs, passes):
    run = build_run(attrs=run_attrs(), passes=passes)
    untraced = [p for p in passes if p.level == "model"]
    np.testing.assert_array_equal(run["latency"]["predict_ns"], np.concatenate([p.predict_ns for p in untraced]))
    traced: list[tuple[int, LayerTrace, int]] = [
        (i, p.layers, p.anchor_ns) for i, p in enumerate(passes) if p.layers is not None
    ]
    assert ("layers" in run.children) == bool(traced)
    for index, trace, anchor in traced:
        data = run["layers"].to_dataset()
        rows = data["pass_index"].values == index
        columns = [list(data["name"].values).index(name) for name in trace.layers.name]
        duration = data["duration_ns"].values[rows]
        np.testing.assert_array_equal(duration[:, columns], trace.duration_ns)
        start = data["start_ns"].values[rows][:, columns]
        np.testing.assert_array_equal(start[start >= 0], (trace.start_ns - anchor)[trace.start_ns >= 0])
        others = np.delete(duration, columns, axis=1)
        assert (others == -1).all()


def test_a_pass_in_which_only_the_process_was_watched_is_compared_with_the_untraced_one(run_attrs):
    plain_pass, traced = both(iterations=9)
    slow = dataclasses.replace(traced, predict_ns=10 * traced.predict_ns)
    watched = dataclasses.replace(plain_pass, level="hardware", predict_ns=2 * plain_pass.predict_ns)
    run = build_run(attrs=run_attrs(level="hardware"), passes=[plain_pass, slow, watched])
    assert run["passes"]["overhead_ratio"].values[2] == pytest.approx(2.0)
