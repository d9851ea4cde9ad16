from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlscope_lab.errors import StoreError
from mlscope_lab.store import Store, new_run_id
from mlscope_lab.store.exports import from_netcdf, to_netcdf, to_parquet
from mlscope_lab.testing import synthetic_pass, synthetic_run
from mlscope_lab.trace.build import build_imported, build_run
from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.records import EventTable


@pytest.fixture
def run(run_attrs):
    outputs = xr.Dataset(
        {
            "label": (("sample", "rank"), [["cat", ""], ["dog", "été"]]),
            "score": (("sample", "rank"), [[0.5, np.nan], [1.0, np.inf]], {"units": "1"}),
            "kept": ("sample", [True, False]),
        },
        coords={"rank": [1, 2], "file": ("sample", ["a.png", "b.png"])},
    )
    failure = {"kind": "interrupted", "message": "stopped", "log": []}
    attrs = run_attrs(status="interrupted", failure=failure, empty="", flag=False, nothing=None, share=0.5, big=2**70)
    passes = [synthetic_pass(level=level, iterations=6) for level in ("model", "layer")]
    return build_run(attrs=attrs, passes=passes, outputs=outputs)


def test_netcdf_comes_back_identical(run, tmp_path):
    path = to_netcdf(run, tmp_path / "run.nc")
    back = from_netcdf(path)
    xr.testing.assert_identical(back, run)
    assert {k: type(v) for k, v in back.attrs.items()} == {k: type(v) for k, v in run.attrs.items()}
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_netcdf_and_zarr_through_two_stores(run, tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    run_id = one.save(run)
    assert two.from_netcdf(one.to_netcdf("latest", tmp_path / "run.nc")) == run_id
    xr.testing.assert_identical(two.open(), run)


def test_netcdf_that_is_none(tmp_path):
    (tmp_path / "x.nc").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be read as NetCDF"):
        from_netcdf(tmp_path / "x.nc")


def test_a_netcdf_that_cannot_be_written(run, tmp_path):
    with pytest.raises(StoreError, match="cannot be written as NetCDF"):
        to_netcdf(run, tmp_path / "absent" / "run.nc")


def test_parquet_has_a_file_a_group_with_the_attributes(run, tmp_path):
    import pandas as pd
    from pyarrow import parquet

    files = to_parquet(run, tmp_path / "tables")
    assert sorted(f.stem for f in files) == sorted(run.children)
    latency = pd.read_parquet(tmp_path / "tables" / "latency.parquet")
    np.testing.assert_array_equal(latency["predict_ns"], run["latency"]["predict_ns"])
    note = json.loads(parquet.read_schema(tmp_path / "tables" / "layers.parquet").metadata[b"mlscope"])
    assert note["run"] == run.attrs
    assert note["variables"]["duration_ns"]["units"] == "ns"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    extra=st.dictionaries(st.text("xyz", min_size=1, max_size=4), values, max_size=4),
    shape=st.tuples(st.integers(0, 4), st.integers(0, 5)),
    traced=st.booleans(),
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), max_size=4),
)
def test_any_run_survives_zarr_and_netcdf(tmp_path_factory, run_attrs, extra, shape, traced, texts):
    iterations, layers = shape
    passes = [synthetic_pass(iterations=iterations)]
    if traced:
        passes.append(synthetic_pass(level="layer", iterations=iterations, layers=layers))
    outputs = xr.Dataset({"text": ("rank", np.array(texts, dtype=object))})
    run = build_run(attrs=run_attrs(run_id=new_run_id(), environment=extra), passes=passes, outputs=outputs)
    folder = tmp_path_factory.mktemp("any")
    store = Store(folder / "runs")
    store.save(run)
    opened = store.open()
    xr.testing.assert_identical(opened, run)
    assert opened["outputs"]["text"].dtype == object
    xr.testing.assert_identical(from_netcdf(to_netcdf(opened, folder / "run.nc")), run)


@pytest.fixture(scope="module")
def deep():
    return synthetic_run(deep=True, processes=2)


def test_events_survive_netcdf(deep, tmp_path):
    store = Store(tmp_path / "runs")
    opened = store.open(store.save(deep))
    back = from_netcdf(to_netcdf(opened, tmp_path / "run.nc"))
    xr.testing.assert_identical(back, deep)
    for group in ("kernels", "operators"):
        assert {n: v.dtype for n, v in back[group].variables.items()} == {
            n: v.dtype for n, v in deep[group].variables.items()
        }


def test_coded_text_is_a_dictionary_in_parquet(deep, tmp_path, monkeypatch):
    import pandas as pd
    from pyarrow import parquet, types

    monkeypatch.setattr("mlscope_lab.store.exports._ROWS", 100)
    to_parquet(deep, tmp_path / "tables")
    file = parquet.ParquetFile(tmp_path / "tables" / "kernels.parquet")
    assert file.num_row_groups == 3
    assert types.is_dictionary(file.schema_arrow.field("name").type)
    assert file.schema_arrow.field("layer_index").type == "int32"
    frame = pd.read_parquet(tmp_path / "tables" / "kernels.parquet")
    kernels = deep["kernels"].dataset
    assert len(frame) == kernels.sizes["kernel"]
    assert frame["name"].tolist() == table_of(kernels, "name")
    np.testing.assert_array_equal(frame["start_ns"], kernels["start_ns"])
    note = json.loads(file.schema_arrow.metadata[b"mlscope"])
    assert note["variables"]["duration_ns"]["units"] == "ns"


def test_text_that_is_not_known_is_null_in_parquet(tmp_path):
    import pandas as pd

    times = {"start_ns": np.arange(3), "duration_ns": np.ones(3, dtype=np.int64)}
    table = EventTable(
        columns={"name_code": np.array([1, -1, 0], dtype=np.int32), **times}, tables={"name": ("b", 'a"\n')}
    )
    for events in (
        table,
        EventTable(columns={"start_ns": np.zeros(0, np.int64), "duration_ns": np.zeros(0, np.int64)}),
    ):
        run = build_imported(attrs={"model": "m", "backend": "b"}, events={"operators": events}, wall_ns=3,
                             level="operator")  # fmt: skip
        to_parquet(run, tmp_path / "tables")
        frame = pd.read_parquet(tmp_path / "tables" / "operators.parquet")
        assert (
            frame["name"].astype(object).where(frame["name"].notna(), None).tolist()
            == ['a"\n', None, "b"][: len(events)]
        )


def test_tables_are_whole_or_not_there(deep, tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.txt").write_text("mine")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlscope_lab.store.exports._write_events", full)
    with pytest.raises(StoreError, match="cannot be written as Parquet"):
        to_parquet(deep, tmp_path / "tables")
    assert [p.name for p in tmp_path.iterdir()] == ["tables"]
    assert [p.name for p in (tmp_path / "tables").iterdir()] == ["mine.txt"]
