"""Importing the engine loads neither a framework, nor xarray, nor a user interface."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import mlscope_lab

HEAVY = {
    "IPython", "anywidget", "h5netcdf", "ipywidgets", "jax", "jupyterlab", "keras", "numpy", "onnx", "onnxruntime",
    "pandas", "plotly", "pydantic", "rich", "scipy", "tensorflow", "torch", "typer", "voila", "xarray", "zarr",
}  # fmt: skip


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_package_loads_nothing_heavy():
    assert not _loaded_by("import mlscope_lab") & HEAVY


def test_listing_backends_imports_no_framework():
    loaded = _loaded_by("from mlscope_lab.backends import installed; installed()")
    assert not loaded & {"torch", "tensorflow", "keras", "onnxruntime", "onnx", "xarray", "pandas", "ipywidgets"}


def test_the_worker_stays_small():
    loaded = _loaded_by("import mlscope_lab.launchers.tasks, mlscope_lab.launchers.worker")
    assert not loaded & {"xarray", "pandas", "zarr", "pydantic", "plotly", "typer", "rich", "scipy"}


def test_the_catalogue_imports_no_framework():
    statement = (
        "import mlscope_lab.catalog as c, mlscope_lab.config as f; assert len(c.load_catalog(f.load_settings())) > 20"
    )
    assert not _loaded_by(statement) & {"torch", "tensorflow", "keras", "onnxruntime", "onnx", "ipywidgets"}


def test_every_public_name_loads_and_is_documented():
    for name in mlscope_lab.__all__:
        value = getattr(mlscope_lab, name)
        assert name == "__version__" or value.__doc__, name


def test_public_names_are_the_lazy_ones():
    assert set(mlscope_lab.__all__) == {*mlscope_lab._LAZY, "__version__"}
    assert set(dir(mlscope_lab)) >= set(mlscope_lab.__all__)
    for name, module in mlscope_lab._LAZY.items():
        assert name in importlib.import_module(module).__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'profle'"):
        mlscope_lab.profle  # noqa: B018


def test_the_accessor_is_there_when_xarray_came_first():
    loaded = _loaded_by("import xarray, mlscope_lab; xarray.DataTree().mlscope")
    assert "xarray" in loaded
