from __future__ import annotations

import json

import pytest

import mlscope_lab as ml
from mlscope_lab.errors import InputError, RunNotFoundError
from mlscope_lab.store import Store
from mlscope_lab.testing import synthetic_run


@pytest.fixture
def stored(settings):
    return Store(settings.runs).save(synthetic_run(deep=True, processes=1))


@pytest.mark.parametrize("form", ["netcdf", "perfetto", "chrome", "speedscope"])
def test_a_run_or_the_id_of_a_stored_one_is_exported(stored, form, tmp_path):
    assert ml.export_run(stored[:12], tmp_path / "one", form) == [tmp_path / "one"]
    assert ml.export_run(ml.open_run(stored), str(tmp_path / "two"), form) == [tmp_path / "two"]
    if form != "netcdf":
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        assert json.loads((tmp_path / "one").read_text(encoding="utf-8"))


def test_tables_are_a_file_a_group(stored, tmp_path):
    files = ml.export_run(stored, tmp_path / "tables", "parquet")
    assert {file.stem for file in files} == set(ml.open_run(stored).children)
    assert [p.name for p in tmp_path.iterdir()] == ["tables"]


def test_what_is_not_there_is_named(stored, tmp_path):
    with pytest.raises(InputError, match=r"Unknown format 'perfeto'.* Did you mean 'perfetto'"):
        ml.export_run(stored, tmp_path / "x", "perfeto")
    with pytest.raises(RunNotFoundError):
        ml.export_run("1999", tmp_path / "x", "perfetto")
    assert not list(tmp_path.iterdir())
