from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.analysis.latency import summarize
from mlscope_lab.analysis.levels import layer_gap, levels, operator_gap
from mlscope_lab.testing import synthetic_run
from tests.analysis.conftest import event_table
from tests.analysis.test_layers import layered


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


def test_operators_within_their_layers(flat):
    def operator(start, duration, parent, layer):
        return {"name": "o", "iteration": 0, "start_ns": 10**9 + start, "duration_ns": duration, "parent_index": parent,
                "layer_index": layer}  # fmt: skip

    # layers at 10-50 and 60-90; operators 15-40 with one inside, 60-80, one of no layer at 92, one beyond the predict
    operators = event_table([
        operator(15, 25, -1, 0), operator(20, 10, 0, 0), operator(60, 20, -1, 1), operator(92, 4, -1, -1),
        operator(500, 10, -1, -1),
    ])  # fmt: skip
    run = layered(flat, [10, 60], [40, 30], events={"operators": operators})
    found = operator_gap(run).to_dataframe()["duration_ns"]
    assert found.to_dict() == {
        "layers": 70, "operators in layers": 45, "rest of layers": 25, "operators in containers": 0,
        "operators in no layer": 4, "overlap": 0,
    }  # fmt: skip
    assert operator_gap(run).to_dataframe()["share"]["operators in layers"] == pytest.approx(45 / 70)


def test_operators_of_several_processes(run):
    found = operator_gap(run)
    assert found.attrs["iterations"] == 16
    parts = found.to_dataframe()["duration_ns"]
    assert parts["operators in layers"] <= parts["layers"]
