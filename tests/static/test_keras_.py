from __future__ import annotations

import math
from typing import Any

import pytest

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import InputError
from mlscope_lab.static import CostTable, cost_of

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")


def macs(table: CostTable) -> Any:
    return sum((layer.macs for layer in table.layers), 0)


# VGG19 and DenseNet-121 are the graphs of ONNX's light models, whose exporter split each normalisation's scale and
# shift into layers of their own: 83,648 parameters more. MobileNetV2 is the figure of its paper (300 M).
@pytest.mark.parametrize(
    ("name", "multiply_adds", "parameters"),
    [
        ("VGG19", 19_632_062_464, 143_667_240),
        pytest.param("DenseNet121", 2_834_161_664, 8_062_504 - 83_648, marks=pytest.mark.slow),
        ("MobileNetV2", 300_774_272, 3_504_872),
    ],
)
def test_architectures_are_exact(name: str, multiply_adds: int, parameters: int) -> None:
    model = getattr(keras.applications, name)(weights=None)
    table = cost_of(model)
    assert macs(table) == multiply_adds
    assert table.parameters == parameters == sum(math.prod(w.shape) for w in model.trainable_weights)
    assert not table.unknown


def test_the_models_graph_does_not_grow() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    before = [len(layer._inbound_nodes) for layer in model.layers]
    call = keras.layers.Layer.symbolic_call
    cost_of(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == before
    assert keras.layers.Layer.symbolic_call is call


def test_layers_by_path_and_batch_as_a_symbol() -> None:
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="stem")(inputs)
    inner = keras.Sequential([keras.layers.DepthwiseConv2D(3, name="deep"), keras.layers.BatchNormalization(name="bn")],
                             name="block")  # fmt: skip
    x = inner(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="net")
    table = cost_of(model, batch_size=None)
    by_name = {layer.name: layer for layer in table.layers}
    assert str(by_name["net/stem"].macs) == "3888*batch"
    assert str(by_name["net/stem"].flops["elementwise"]) == "288*batch"  # bias and activation
    assert str(by_name["net/block/deep"].macs) == "576*batch"
    assert str(by_name["net/block/bn"].flops["normalization"]) == "128*batch"
    assert str(by_name["net/head"].macs) == "8*batch"
    assert by_name["net/block/bn"].parameters == 8
    assert table.layers[by_name["net/block/deep"].parent].name == "net/block"
    assert str(by_name["net/stem"].outputs[0]) == "float32[batch,6,6,4]"
    assert {t.kind: str(t.nbytes) for t in by_name["net/stem"].transfers if t.kind != "parameter"} == {
        "input": "768*batch", "output": "576*batch",
    }  # fmt: skip


def test_attention_and_recurrent_layers() -> None:
    inputs = keras.Input((7, 16))
    x = keras.layers.MultiHeadAttention(4, 4, name="attend")(inputs, inputs)
    x = keras.layers.LayerNormalization(name="norm")(x + inputs)
    x = keras.layers.Bidirectional(keras.layers.LSTM(5, return_sequences=True), name="both")(x)
    x = keras.layers.GRU(3, name="gru")(x)
    table = cost_of(keras.Model(inputs, x, name="net"))
    by_name = {layer.name: layer for layer in table.layers}
    assert sum(n.macs for name, n in by_name.items() if "attend" in name) == 4 * 7 * 16 * 16 + 2 * 4 * 7 * 7 * 4
    assert sum(n.macs for name, n in by_name.items() if "both" in name) == 2 * 7 * 20 * (16 + 5)
    assert by_name["net/gru"].macs == 7 * 9 * (10 + 3)
    assert by_name["net/norm"].flops == {"normalization": 7 * 7 * 16}
    assert not table.unknown


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (lambda: keras.layers.Conv1D(6, 3, groups=3, activation="relu"), (9, 3), 7 * 6 * 1 * 3),
        (lambda: keras.layers.Conv2DTranspose(5, 2, strides=2), (3, 3, 4), 36 * 5 * 4),
        (lambda: keras.layers.SeparableConv2D(5, 3), (5, 5, 4), 9 * 4 * (9 + 5)),
        (lambda: keras.layers.Dense(7), (3, 5), 3 * 5 * 7),
        (lambda: keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 6)), (3, 5), 3 * 5 * 6),
        (lambda: keras.layers.Rescaling(2.0), (4,), 0),
        (lambda: keras.layers.UpSampling2D(2, interpolation="bilinear"), (3, 3, 2), 0),
        (lambda: keras.layers.GroupNormalization(2), (3, 4), 0),
        (lambda: keras.layers.Dropout(0.5), (3, 4), 0),
        (lambda: keras.layers.ZeroPadding2D(1), (3, 3, 2), 0),
    ],
)
def test_layers(layer: Any, shape: tuple[int, ...], multiply_adds: int) -> None:
    inputs = keras.Input(shape)
    table = cost_of(keras.Model(inputs, layer()(inputs)))
    assert macs(table) == multiply_adds
    assert not table.unknown


class Shared(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="shared")
        self.first = keras.layers.Dense(4, name="first")
        self.second = keras.layers.Dense(4, name="second")

    def call(self, x: Any) -> Any:
        return keras.ops.relu(self.second(self.first(x))) + self.first(x)


def test_subclassed_models_and_shared_layers() -> None:
    table = cost_of(Shared(), inputs=[TensorSpec(name="x", dtype="float32", shape=(2, 4))])
    assert [(layer.name, layer.macs) for layer in table.layers] == [
        ("shared", 0), ("shared/first", 32), ("shared/second", 32), ("shared/first#2", 32),
    ]  # fmt: skip
    assert table.layers[0].flops == {"elementwise": 2 * 8}
    assert table.parameters == 2 * 20
    with pytest.raises(InputError, match="example arrays"):
        cost_of(Shared())


class Opaque(keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x.numpy() * 2  # needs values

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def test_layers_that_need_values_are_listed() -> None:
    inputs = keras.Input((4,))
    table = cost_of(keras.Model(inputs, keras.layers.Dense(2)(Opaque()(inputs))))
    assert dict(table.unknown) == {"Opaque": 1}
    assert [layer.counted for layer in table.layers if layer.type == "Opaque"] == [False]
    assert macs(table) == 8
