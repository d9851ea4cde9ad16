from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.analysis.configurations import layer_statistics, predict_latency
from mlscope_lab.errors import InputError
from mlscope_lab.testing import synthetic_run


@pytest.fixture(scope="module")
def models():
    """Three models of 8, 12 and 16 layers; the longer ones hold the configurations of the shorter."""
    return [synthetic_run(layers=n, seed=n, model=f"model-{n}", mean_ns=400_000 * n) for n in (8, 12, 16)]


def test_common_layers_come_first(models):
    found = layer_statistics(models)
    assert int(found["count"].sum()) == int(found["layers"]) == 6 + 9 + 12
    assert found["models"].values[:6].tolist() == [3] * 6
    assert found["count"].values[-1] == 1
    assert int(found["configurations"]) == 12
    assert float(found["repeated_share"]) == pytest.approx((3 * 6 + 2 * 3) / 27)
    assert found["share"].values.sum() == pytest.approx(1)
    assert "Block" not in found["type"].values  # a container's time is that of what it holds


def test_runs_of_one_model_are_one_model(models):
    found = layer_statistics([models[0], models[0]])
    assert found["runs"].values.tolist() == [2] * 6
    assert found["models"].values.tolist() == [1] * 6
    with pytest.raises(InputError, match="at least one run"):
        layer_statistics([])


def test_a_prediction_from_the_layers_of_others(models):
    found = predict_latency(models).to_dataframe()
    assert found["complete"].tolist() == [1, 1, 0]
    assert found["known_layers"].tolist() == [6, 9, 9]
    complete = found[found["complete"] == 1]
    assert (complete["error"].abs() < 0.5).all()
    assert (complete["low_ns"] <= complete["predicted_ns"]).all()
    assert (complete["predicted_ns"] <= complete["high_ns"]).all()
    assert found["median_error"].iloc[0] == pytest.approx(complete["error"].abs().median())
    missing = found[found["complete"] == 0].iloc[0]
    assert missing["predicted_ns"] < missing["measured_ns"]
    assert 0.5 < missing["known_share"] < 1


def test_another_environment_predicts_nothing(models):
    other = synthetic_run(layers=8, seed=5, threads=1)
    found = predict_latency([models[0], other]).to_dataframe()
    assert found["known_layers"].tolist() == [0, 0]
    assert np.isnan(found["predicted_ns"]).all()
    assert found["complete"].tolist() == [0, 0]
    with pytest.raises(InputError, match="at least two runs"):
        predict_latency(models[:1])


def test_the_same_layers_again_predict_well():
    runs = [synthetic_run(seed=seed, processes=5) for seed in range(4)]
    found = predict_latency(runs)
    assert predict_latency(runs, same_model=False)["known_layers"].values.tolist() == [0] * 4
    assert float(found["median_error"]) < 0.1
    assert found["inside"].values.tolist() == [1, 1, 1, 1]
