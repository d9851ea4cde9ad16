from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.analysis.latency import summarize
from mlscope_lab.analysis.levels import layer_gap, levels
from mlscope_lab.testing import synthetic_run


def test_each_level_costs_something_over_the_one_above(run):
    found = levels(run)
    assert found["level"].values.tolist() == ["model", "layer", "kernel"]
    assert np.isnan(found["overhead"].values[0])
    predict = found["predict_ns"].values
    assert predict[0] == float(summarize(run)["median_ns"].sel(stage="predict"))
    # the synthetic kernel pass takes what the layer pass took
    assert found["overhead"].values[2] == pytest.approx(1)
    passes = run["passes"].to_dataset()
    own = passes["overhead_ratio"].values[passes["level"].values == "layer"]
    assert found["overhead"].values[1] == pytest.approx(np.sqrt(own.prod()))
    assert found["passes"].values.tolist() == [2, 2, 2]
    assert found["outputs_equal"].values.tolist() == [-1, 1, 1]
    assert found.attrs["unavailable"] == run.attrs["unavailable"]


def test_one_process_keeps_its_own_interval(flat):
    found = levels(flat)
    passes = flat["passes"].to_dataset()
    assert found["overhead"].values[1] == passes["overhead_ratio"].values[1]
    assert found["overhead_low"].values[1] == passes["overhead_low"].values[1]


def test_an_imported_trace_has_no_overhead(imported):
    found = levels(imported(kernels=[{"name": "k", "start_ns": 0, "duration_ns": 1, "stream": 0}]))
    assert found["level"].values.tolist() == ["kernel"]
    assert np.isnan(found["predict_ns"].values[0])


def test_a_different_output_in_one_process_shows(run):
    changed = run.copy()
    data = changed["passes"].to_dataset().copy(deep=True)
    data["outputs_equal"].values[1] = 0
    changed["passes"] = data
    assert levels(changed)["outputs_equal"].values.tolist() == [-1, 0, 1]


def test_the_gap_between_layers_and_model(flat):
    found = layer_gap(flat).to_dataframe()["duration_ns"]
    whole = found["traced predict"]
    assert found["union of leaves"] <= found["union of layers"] <= whole
    assert 0.9 * whole <= found["union of leaves"]
    assert found["no layer"] == 5000
    assert found["overlap"] == 0
    assert found["gap"] == found["untraced predict"] - found["sum of layers"]
    shares = layer_gap(flat).to_dataframe()["share"]
    assert shares["union of layers"] <= 1


def test_without_untraced_latency_there_is_no_gap():
    run = synthetic_run()
    del run["latency"]
    assert np.isnan(layer_gap(run).to_dataframe()["duration_ns"]["gap"])
