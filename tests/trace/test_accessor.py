from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mlscope_lab.errors import SchemaError
from mlscope_lab.testing import synthetic_pass
from mlscope_lab.trace.build import build_run


@pytest.fixture
def run(run_attrs):
    passes = [synthetic_pass(level=level, process=p) for p in range(3) for level in ("model", "layer")]
    return build_run(attrs=run_attrs(), passes=passes)


def test_summary_has_the_headline_of_the_untraced_passes(run):
    found = run.mlscope.summary()
    assert found["model"] == "efficientnet-lite0"
    assert found["processes"] == 3
    assert found["iterations"] == 60
    assert found["low_ns"] < found["median_ns"] < found["high_ns"]
    medians = [np.median(run["latency"]["predict_ns"].values[i : i + 20]) for i in (0, 20, 40)]
    assert found["median_ns"] == pytest.approx(np.exp(np.log(medians).mean()))
    assert "failure" not in found


def test_layers_are_in_order_of_start_and_slowest_by_exclusive_time(run):
    layers = run.mlscope.layers()
    assert list(layers.index[:3]) == ["block0", "block0.layer1", "block0.layer2"]
    data = run["layers"].to_dataset()
    np.testing.assert_allclose(layers["exclusive_ns"], np.median(data["exclusive_ns"].values, axis=0))
    assert {"type", "input_shapes", "output_shapes", "share", "duration_ns"} <= set(layers.columns)
    assert layers["share"].sum() == pytest.approx(1.0, abs=0.1)  # medians need not add up exactly
    slowest = run.mlscope.slowest(3)
    assert list(slowest["exclusive_ns"]) == sorted(layers["exclusive_ns"], reverse=True)[:3]
    assert layers.attrs["pass_ns"] > 0


def test_groups_as_tables(run):
    assert run.mlscope.run_id == run.attrs["run_id"]
    assert run.mlscope.latency.sizes["latency_iteration"] == 60
    assert len(run.mlscope.to_dataframe("passes")) == 6
    with pytest.raises(SchemaError, match=r"no group /latenzy.*Did you mean 'latency'"):
        run.mlscope.to_dataframe("latenzy")


def test_a_foreign_tree_is_told_that_it_is_no_run(run):
    import xarray as xr

    with pytest.raises(SchemaError, match="not a run"):
        xr.DataTree().mlscope.summary()


def test_a_run_without_layers_says_how_to_get_them(run_attrs):
    run = build_run(attrs=run_attrs(level="model"), passes=[synthetic_pass()])
    with pytest.raises(SchemaError, match="level='layer'"):
        run.mlscope.layers()


@pytest.mark.parametrize(
    "code",
    [
        "import mlscope_lab.xarray, xarray; xarray.DataTree().mlscope",
        "import xarray, mlscope_lab.xarray; xarray.DataTree().mlscope",
        "import mlscope_lab.trace.accessor as a, sys; assert 'xarray' not in sys.modules; a.ensure_registered(); "
        "a.ensure_registered(); import xarray; xarray.DataTree().mlscope",
        "import mlscope_lab.store, mlscope_lab.trace.build, sys; "
        "assert not {'xarray', 'pandas', 'zarr'} & set(sys.modules)",
    ],
)
def test_registration_and_light_imports(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
