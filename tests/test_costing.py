from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.errors import InputError, UnsupportedModelError


def linear() -> Any:
    torch = pytest.importorskip("torch")
    return torch.nn.Linear(3, 4)


def test_the_batch_is_that_of_the_example_unless_said_otherwise() -> None:
    example = np.zeros((5, 3), np.float32)
    assert int(ml.cost(linear(), example)["total_macs"]) == 60
    assert int(ml.cost(linear(), example, batch_size=2)["total_macs"]) == 24
    assert str(ml.cost(linear(), example, batch_size=None)["total_macs"].values.item()) == "12*batch"


def test_examples_are_arrays_or_tensors_alone_in_a_tuple_or_by_name() -> None:
    torch = pytest.importorskip("torch")
    bilinear = torch.nn.Bilinear(3, 4, 5)
    for given in (
        (torch.zeros(2, 3), np.zeros((2, 4), np.float32)),
        {"input2": torch.zeros(2, 4), "input1": torch.zeros(2, 3)},
    ):
        assert int(ml.cost(bilinear, given)["total_parameters"]) == 3 * 4 * 5 + 5
    assert int(ml.cost(linear(), [[1.0, 2.0, 3.0]])["total_parameters"]) == 16


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "many"])
def test_a_batch_that_is_none(batch_size: Any) -> None:
    with pytest.raises(InputError, match="batch_size"):
        ml.cost(linear(), np.zeros((5, 3), np.float32), batch_size=batch_size)


def test_what_cannot_be_counted() -> None:
    with pytest.raises(UnsupportedModelError, match="not of a builtins"):
        ml.cost(lambda x: x, np.zeros(3))
    with pytest.raises(InputError, match="no such file"):
        ml.cost("nowhere.onnx")
    with pytest.raises(InputError, match="symbol"):
        ml.cost(linear(), np.zeros((5, 3), np.float32), symbols={"n": 0})


def test_a_published_model_in_each_form() -> None:
    pytest.importorskip("onnx")
    cost = ml.cost("light-squeezenet", progress=False)
    assert int(cost["total_macs"]) == 349_151_936
    assert cost.attrs["model"] == "light-squeezenet"
    assert cost.attrs["conventions"]


def test_a_run_is_counted_as_it_ran() -> None:
    pytest.importorskip("onnxruntime")
    import xarray as xr

    attrs = {"model": "light-squeezenet", "backend": "onnxruntime", "batch_size": 1}
    assert int(ml.cost(xr.DataTree(xr.Dataset(attrs=attrs)), progress=False)["total_macs"]) == 349_151_936


def test_torch_onnx_and_keras_forms_of_one_network_cost_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    import warnings

    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(), nn.Linear(8 * 25, 5),
    ).eval()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (torch.zeros(1, 3, 16, 16),), dynamo=True, optimize=False, verbose=False)
    program.save(str(tmp_path / "model.onnx"))
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((16, 16, 3)), layers.Conv2D(8, 3, strides=2, use_bias=False), layers.BatchNormalization(),
        layers.ReLU(6), layers.DepthwiseConv2D(3, use_bias=False), layers.BatchNormalization(), layers.ReLU(6),
        layers.Flatten(), layers.Dense(5),
    ])  # fmt: skip
    costs = {
        "torch": ml.cost(module, torch.zeros(1, 3, 16, 16)),
        "onnx": ml.cost(tmp_path / "model.onnx"),
        "keras": ml.cost(model),
    }
    for name in ("total_macs", "total_parameters", "total_normalization_flops"):
        assert len({int(cost[name]) for cost in costs.values()}) == 1, name
    assert int(costs["torch"]["total_macs"]) == 49 * 8 * 27 + 25 * 8 * 9 + 1000
    assert int(costs["torch"]["total_parameters"]) == 8 * 27 + 16 + 8 * 9 + 16 + 1005
    zero_biases = 49 * 8 + 25 * 8  # the exporter gives every convolution a bias
    flops = {name: int(cost["total_flops"]) for name, cost in costs.items()}
    assert flops["torch"] == flops["keras"] == flops["onnx"] - zero_biases
    assert not any(cost.attrs["not_counted"] for cost in costs.values())
