from __future__ import annotations

import math

import pytest

from mlscope_lab.analysis.latency import model_information, predict_interval, summarize
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.testing import synthetic_run


def test_latency_and_throughput_over_batch_sizes():
    runs = [synthetic_run(seed=b, batch_size=b, mean_ns=1_000_000 * (b + 2)) for b in (4, 1, 2)]
    found = model_information(runs)
    assert found["batch_size"].values.tolist() == [1, 2, 4]
    assert found["throughput"].values == pytest.approx(found["batch_size"].values / found["latency_ns"].values * 1e9)
    assert (found["throughput_low"] < found["throughput"]).all()
    assert (found["throughput"] < found["throughput_high"]).all()
    assert found["optimal"].values.tolist() == [0, 0, 1]
    assert found["run"].values.tolist() == [runs[i].attrs["run_id"] for i in (1, 2, 0)]
    assert found["throughput"].attrs["units"] == "1/s"


def test_the_optimum_is_sought_within_a_configuration():
    runs = [synthetic_run(seed=n, batch_size=1, backend=b) for n, b in enumerate(("onnxruntime", "pytorch"))]
    assert model_information(runs)["optimal"].values.tolist() == [1, 1]


def test_the_interval_is_that_of_the_summary():
    for processes in (1, 3):
        run = synthetic_run(processes=processes)
        table = summarize(run).sel(stage="predict")
        found = predict_interval(run)
        assert (found.centre, found.low, found.high) == tuple(
            float(table[n]) for n in ("median_ns", "low_ns", "high_ns")
        )


def test_nothing_untraced():
    run = synthetic_run()
    del run["latency"]
    assert math.isnan(predict_interval(run).centre)
    with pytest.raises(SchemaError, match="no /latency"):
        model_information([run])
    with pytest.raises(InputError, match="at least one run"):
        model_information([])
