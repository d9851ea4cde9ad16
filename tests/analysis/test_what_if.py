from __future__ import annotations

import math

import numpy as np
import pytest

from mlscope_lab.analysis.layers import layer_times
from mlscope_lab.analysis.what_if import _covered_once, what_if
from mlscope_lab.errors import InputError
from tests.analysis.test_layers import layered


def test_amdahls_law(flat):
    found = what_if(flat, factor=2).to_dataframe()
    shares = layer_times(flat).to_dataframe()["share"]
    now = found["now_ns"].iloc[0]
    for name, row in found.iterrows():
        assert row["latency_ns"] == pytest.approx(now * (1 - shares[name] / 2))
        assert row["low_ns"] <= row["latency_ns"] <= row["high_ns"]
        assert row["speedup"] == pytest.approx(now / row["latency_ns"])
    assert (np.diff(found["saved_ns"]) <= 0).all()


def test_taking_a_layer_out_and_slowing_it_down(flat):
    (gone,) = what_if(flat, factor=math.inf, layer="block0.layer1").to_dataframe().to_dict("records")
    assert gone["latency_ns"] == pytest.approx(gone["now_ns"] * (1 - gone["share"]))
    (slow,) = what_if(flat, factor=0.5, layer="block0.layer1").to_dataframe().to_dict("records")
    assert slow["latency_ns"] == pytest.approx(slow["now_ns"] * (1 + slow["share"]))
    assert slow["low_ns"] <= slow["latency_ns"] <= slow["high_ns"]


def test_all_layers_of_a_type(flat):
    found = what_if(flat, layer_type="Relu")
    assert found["layer"].values.tolist() == ["Relu"]
    table = layer_times(flat).to_dataframe()
    assert float(found["share"][0]) == pytest.approx(table[table["type"] == "Relu"]["share"].sum(), rel=0.1)


def test_what_runs_beside_another_may_save_nothing(flat):
    run = layered(flat, [0, 0], [100, 100])
    found = what_if(run, layer="l0")
    assert float(found["share"][0]) == 1
    assert float(found["alone_share"][0]) == 0
    half = what_if(layered(flat, [0, 50], [100, 50]))
    assert half["alone_share"].values.tolist() == [0.5, 0]


def test_the_time_alone():
    found = _covered_once(np.array([0, 5, 20]), np.array([10, 10, 5]))
    assert found.tolist() == [5, 5, 5]


def test_wrong_questions(flat):
    with pytest.raises(InputError, match="factor must be above 0"):
        what_if(flat, factor=0)
    with pytest.raises(InputError, match=r"No layer is called 'block0\.layr1'.*Did you mean 'block0\.layer1'"):
        what_if(flat, layer="block0.layr1")
    with pytest.raises(InputError, match="Types: Add, Block"):
        what_if(flat, layer_type="Convolution")
    with pytest.raises(InputError, match="not both"):
        what_if(flat, layer="block0", layer_type="Block")
