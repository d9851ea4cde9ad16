"""What ONNX Runtime's fused operators compute, and where quantised ones keep their scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from mlscope_lab.trace.kinds import kind_of

__all__ = ["kinds_of", "passes_on", "quantization_of", "quantized_input"]

_FUSED: Final[dict[str, tuple[str, ...]]] = {
    "BiasGelu": ("addition", "activation"),
    "BiasDropout": ("addition", "identity"),
    "BiasSoftmax": ("addition", "softmax"),
    "BiasSplitGelu": ("addition", "slicing", "activation"),
    "DynamicQuantizeLSTM": ("quantization", "recurrent"),
    "DynamicQuantizeMatMul": ("quantization", "product"),
    "EmbedLayerNormalization": ("embedding", "normalization"),
    "GemmFastGelu": ("product", "activation"),
    "QEmbedLayerNormalization": ("embedding", "normalization"),
    "SkipGroupNorm": ("addition", "normalization"),
    "SkipLayerNormalization": ("addition", "normalization"),
    "SkipSimplifiedLayerNormalization": ("addition", "normalization"),
}
# ONNX's Sum and Max take tensors, not axes; the rest are operators that no other framework has
_OWN: Final = {
    name: kind
    for kind, names in {
        "addition": "Sum",
        "elementwise": "Max Min Mean Acos Acosh Asin Asinh Atan Atanh Cosh Sinh Tan BitShift BitwiseAnd BitwiseNot "
                       "BitwiseOr BitwiseXor QLinearWhere",
        "product": "MatMulIntegerToFloat TransposeMatMul FusedMatMulActivation MatMulBnb4 MatMulFpQ4",
        "pooling": "NhwcMaxPool GlobalLpPool MaxUnpool",
        "reduction": "ReduceL1 ReduceLogSum QLinearReduceMean CumProd",
        "normalization": "GroupNorm RMSNormalization MeanVarianceNormalization",
        "attention": "DecoderAttention DecoderMaskedMultiHeadAttention LongformerAttention PackedAttention "
                     "PackedMultiHeadAttention PagedAttention SparseAttention",
        "slicing": "ScatterElements SplitToSequence",
        "concatenation": "ConcatFromSequence",
    }.items()
    for name in names.split()
}  # fmt: skip
_WITH_ACTIVATION = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMulActivation"})
# where a quantising operator takes the scale of what it writes; the zero point is the argument after it
_SCALES: Final[dict[str, int]] = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QGemm": 7,
    "QLinearSigmoid": 3, "QLinearLeakyRelu": 3, "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3,
    "QLinearSoftmax": 3, "QLinearReduceMean": 3, "QLinearConcat": 0, "QLinearWhere": 7,
}  # fmt: skip
_PASSING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "NhwcMaxPool", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


def kinds_of(node: Any) -> tuple[str, ...]:
    """Return what a node computes, in order, in the words of `mlscope_lab.trace.kinds`.

    A convolution that adds a fourth argument and applies an activation is ("convolution", "addition", "activation").
    """
    if node.op_type in _FUSED:
        return _FUSED[node.op_type]
    kinds = [_OWN.get(node.op_type) or kind_of(node.op_type)]
    if node.op_type == "FastGelu" and len(node.input) > 1 and node.input[1]:
        return ("addition", "activation")
    if node.op_type in _WITH_ACTIVATION:
        if kinds[0] == "convolution" and len(node.input) > 3 and node.input[3]:
            kinds.append("addition")
        if any(a.name in {"activation", "activation_type"} and a.s for a in node.attribute):
            kinds.append("activation")
    return tuple(kinds)


def quantization_of(node: Any, constant: Callable[[str], Any]) -> tuple[float, int] | None:
    """Return scale and zero point of what a quantising node writes, None where there is none for the whole tensor.

    Parameters
    ----------
    node
        The NodeProto.
    constant
        Gives the array of a name, None for one that is not known.
    """
    if node.op_type == "DynamicQuantizeLinear":
        return _numbers(constant(node.output[1]), constant(node.output[2]))
    at = _SCALES.get(node.op_type)
    return None if at is None else _pair(node, at, constant)


def quantized_input(node: Any, constant: Callable[[str], Any]) -> tuple[float, int] | None:
    """Return scale and zero point of what a dequantising node reads, as `quantization_of`."""
    return _pair(node, 1, constant) if node.op_type == "DequantizeLinear" else None


def passes_on(node: Any) -> bool:
    """Tell whether what a node writes is quantised as its first argument is, for it moves values only."""
    return node.op_type in _PASSING


def _pair(node: Any, at: int, constant: Callable[[str], Any]) -> tuple[float, int] | None:
    if len(node.input) <= at:
        return None
    scale = constant(node.input[at])
    zero = constant(node.input[at + 1]) if len(node.input) > at + 1 and node.input[at + 1] else np.zeros(1, np.int8)
    return _numbers(scale, zero)


def _numbers(scale: Any, zero: Any) -> tuple[float, int] | None:
    if scale is None or zero is None or np.size(scale) != 1 or np.size(zero) != 1:
        return None
    return float(np.reshape(scale, -1)[0]), int(np.reshape(zero, -1)[0])
