"""What fused operators of ONNX Runtime compute, and where quantised ones keep their scale."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
from onnx import helper

from mlscope_lab.backends.onnxruntime_kinds import kinds_of, passes_on, quantization_of, quantized_input
from mlscope_lab.trace.kinds import KINDS

NCHWC = "com.microsoft.nchwc"
KNOWN = {"s": np.float32(0.5), "z": np.int8(-3), "many": np.ones(4, np.float32), "zeros": np.zeros(4, np.int8)}


@pytest.mark.parametrize(
    ("node", "kinds"),
    [
        (helper.make_node("Conv", list("xwb"), ["y"]), ("convolution",)),
        (helper.make_node("Conv", list("xwb"), ["y"], domain=NCHWC, activation="Relu"), ("convolution", "activation")),
        (helper.make_node("Conv", ["x", "w", "", "s"], ["y"], domain=NCHWC), ("convolution", "addition")),
        (
            helper.make_node("Conv", list("xwbs"), ["y"], domain=NCHWC, activation="Clip"),
            ("convolution", "addition", "activation"),
        ),
        (helper.make_node("FusedConv", list("xw"), ["y"], activation="Relu"), ("convolution", "activation")),
        (helper.make_node("FusedGemm", list("abc"), ["y"], activation="Relu"), ("product", "activation")),
        (helper.make_node("FusedMatMul", list("ab"), ["y"], transA=1), ("product",)),
        (helper.make_node("QLinearConv", list("abcdefgh"), ["y"]), ("convolution",)),
        (helper.make_node("SkipLayerNormalization", list("abc"), ["y"]), ("addition", "normalization")),
        (helper.make_node("FastGelu", ["x"], ["y"]), ("activation",)),
        (helper.make_node("FastGelu", ["x", "b"], ["y"]), ("addition", "activation")),
        (helper.make_node("DynamicQuantizeMatMul", list("abc"), ["y"]), ("quantization", "product")),
        (helper.make_node("ReorderOutput", ["x"], ["y"], domain=NCHWC), ("layout",)),
        (helper.make_node("If", ["c"], ["y"]), ("control",)),
        (helper.make_node("Sum", list("abc"), ["y"]), ("addition",)),
        (helper.make_node("Max", list("ab"), ["y"]), ("elementwise",)),
        (helper.make_node("ReduceMax", list("ab"), ["y"]), ("reduction",)),
        (helper.make_node("FusedMatMulActivation", list("ab"), ["y"], activation="Relu"), ("product", "activation")),
    ],
)
def test_kinds(node, kinds):
    assert kinds_of(node) == kinds
    assert set(kinds) <= set(KINDS)


class TestQuantization:
    """Scales and zero points by the operator's arguments."""

    def test_of_what_is_written(self):
        node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
        assert quantization_of(node, KNOWN.get) == (0.5, -3)
        node = helper.make_node("QLinearConv", ["x", "", "", "w", "", "", "s", "z"], ["y"])
        assert quantization_of(node, KNOWN.get) == (0.5, -3)
        node = helper.make_node("QLinearConcat", ["s", "z", "a", "", ""], ["y"])
        assert quantization_of(node, KNOWN.get) == (0.5, -3)

    def test_without_zero_point(self):
        assert quantization_of(helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), KNOWN.get) == (0.5, 0)
        assert quantization_of(helper.make_node("QuantizeLinear", ["x", "s", ""], ["y"]), KNOWN.get) == (0.5, 0)

    def test_channels_have_no_common_one(self):
        node = helper.make_node("QuantizeLinear", ["x", "many", "zeros"], ["y"])
        assert quantization_of(node, KNOWN.get) is None

    def test_unknown_or_no_quantizer(self):
        assert quantization_of(helper.make_node("QuantizeLinear", ["x", "?", "z"], ["y"]), KNOWN.get) is None
        assert quantization_of(helper.make_node("Relu", ["x"], ["y"]), KNOWN.get) is None

    def test_of_what_is_read(self):
        node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])
        assert quantized_input(node, KNOWN.get) == (0.5, -3)
        assert quantized_input(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), KNOWN.get) is None

    def test_what_only_moves_passes_it_on(self):
        assert passes_on(helper.make_node("Transpose", ["x"], ["y"]))
        assert not passes_on(helper.make_node("QLinearAdd", ["x"], ["y"]))
