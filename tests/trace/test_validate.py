from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import SchemaError
from mlscope_lab.testing import synthetic_pass, synthetic_run
from mlscope_lab.trace import schema
from mlscope_lab.trace.build import build_run
from mlscope_lab.trace.validate import validate


@pytest.fixture
def run(run_attrs):
    return build_run(attrs=run_attrs(), passes=[synthetic_pass(level=level) for level in ("model", "layer")])


@pytest.fixture
def deep_run():
    return synthetic_run(deep=True, processes=1)


def test_a_built_run_is_valid(run):
    validate(run)
    validate(run, values=False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("schema_version", "2.0", "schema 1"),
        ("run_id", "../../etc", "8 hex digits"),
        ("run_id", "20261122T003000Z-1a2b3c4d/..", "8 hex digits"),
        ("created_at", "2026-11-22T00:30:00", "with its offset"),
        ("created_at", "yesterday", "ISO 8601"),
        ("status", "done", "complete, failed, interrupted"),
        ("model", "", "model's name"),
        ("batch_size", 0, "positive integer"),
        ("batch_size", True, "positive integer"),
        ("level", "framework", "one of model, layer"),
        ("seed", "0", "an integer or None"),
        ("threads", -1, "positive integer or None"),
        ("clock_anchor_unix_ns", 1.5, "an integer"),
        ("environment", "linux", "a mapping"),
        ("warnings", "hot", "list of sentences"),
        ("unavailable", {"power": 0}, "what: reason"),
    ],
)
def test_a_malformed_attribute_is_named(run, name, value, words):
    run.attrs[name] = value
    with pytest.raises(SchemaError, match=rf"attrs\['{name}'\].*{words}"):
        validate(run)


@pytest.mark.parametrize("group", list(schema.GROUPS))
def test_every_variable_is_required_with_its_dims_dtype_and_attrs(deep_run, group):
    run = deep_run
    for name in schema.GROUPS[group]:
        whole = run[group].to_dataset()

        def refused(data, words, group=group):
            run[group] = xr.DataTree(data)
            with pytest.raises(SchemaError, match=words):
                validate(run, values=False)

        refused(whole.drop_vars(name), f"/{group} lacks the variable '{name}'")
        refused(whole.drop_vars(name).assign({f"{name}x": whole[name]}), f"Did you mean '{name}x'")
        refused(whole.assign({name: whole[name].astype("float32")})
                if not schema.is_text(name) else whole.assign({name: whole[name].astype("U")}),
                f"/{group} variable '{name}' must be")  # fmt: skip
        refused(whole.assign({name: ((), 0)}), f"variable '{name}' must have dims")
        for attr in ("units", "long_name", "provenance"):
            bare = whole.copy()
            del bare[name].attrs[attr]
            refused(bare, f"variable '{name}' lacks the attribute '{attr}'")
        run[group] = xr.DataTree(whole)
    validate(run)


def test_units_and_provenance_are_checked(run):
    run["latency"]["predict_ns"].attrs["units"] = "us"
    with pytest.raises(SchemaError, match="units must be 'ns', not 'us'"):
        validate(run)
    run["latency"]["predict_ns"].attrs |= {"units": "ns", "provenance": "guessed"}
    with pytest.raises(SchemaError, match="provenance must be one of measured"):
        validate(run)


def test_structure(run):
    with pytest.raises(SchemaError, match="needs the group /latency"):
        validate(xr.DataTree.from_dict({"/": xr.Dataset(attrs=run.attrs), "/passes": run["passes"].to_dataset()}))
    headless = run.copy()
    headless.attrs["status"] = "interrupted"
    del headless["passes"]
    with pytest.raises(SchemaError, match="refers to /passes"):
        validate(headless)
    deep = run.copy()
    deep["latency/inner"] = xr.DataTree(xr.Dataset({"x": 1}))
    with pytest.raises(SchemaError, match="flat siblings, but /latency holds inner"):
        validate(deep)
    rooted = run.copy()
    rooted.dataset = xr.Dataset({"x": 1}, attrs=run.attrs)
    with pytest.raises(SchemaError, match="root must hold attributes only"):
        validate(rooted)
    with pytest.raises(SchemaError, match="attrs of the root lack"):
        validate(xr.DataTree())


def test_failures(run):
    run.attrs["failure"] = {"kind": "crash", "message": "m", "log": []}
    with pytest.raises(SchemaError, match="belongs to a failed run only"):
        validate(run)
    run.attrs["status"] = "failed"
    validate(run)
    run.attrs["failure"] = {"kind": "bang", "message": "m", "log": []}
    with pytest.raises(SchemaError, match="crash, out_of_memory"):
        validate(run)
    run.attrs["failure"] = {"kind": "crash", "message": "m"}
    with pytest.raises(SchemaError, match="kind, message"):
        validate(run)
    del run.attrs["failure"]
    with pytest.raises(SchemaError, match="failed run must be one of"):
        validate(run)


def put(run, group, name, where, value):
    values = run[group][name].values.copy()
    values[where] = value
    run[group][name] = run[group][name].copy(data=values)


@pytest.mark.parametrize(
    ("group", "name", "where", "value", "words"),
    [
        ("passes", "level", 0, "deep", "must be one of"),
        ("passes", "outputs_equal", 0, 2, "1, 0 or -1"),
        ("latency", "pass_index", 3, 9, "between 0 and 1, found 0 to 9"),
        ("latency", "pass_index", 3, 1, "headline latency"),
        ("latency", "predict_ns", 3, -5, "negative times"),
        ("layers", "name", 1, "block0", "a label twice"),
        ("layers", "parent", 1, 99, "between -1 and 11"),
        ("layers", "pass_index", 0, -1, "between 0 and 1"),
        ("layers", "duration_ns", (0, 0), -1, "disagree on which layers ran"),
    ],
)
def test_values(run, group, name, where, value, words):
    put(run, group, name, where, value)
    validate(run, values=False)
    with pytest.raises(SchemaError, match=words):
        validate(run)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)


@given(st.dictionaries(st.sampled_from(schema.REQUIRED_ATTRS), scalars), st.booleans())
def test_nothing_but_schema_errors_comes_out(attrs, grouped):
    groups = {"/passes": xr.Dataset({"level": ("pass", np.zeros(1))})} if grouped else {}
    with pytest.raises(SchemaError):
        validate(xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **groups}))
