"""Which formula each ONNX operator takes, and which of its inputs are weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mlscope_lab.static import formulas
from mlscope_lab.static.formulas import Shape
from mlscope_lab.static.records import Work

__all__ = ["TABLES", "Call", "UnknownShapeError", "is_known", "weight_inputs", "work_of"]


class UnknownShapeError(ValueError):
    """A shape that a formula needs is not known."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A node with what is known of its tensors.

    Attributes
    ----------
    op
        Operator, with its domain before it where that is not ``ai.onnx``.
    attributes
        By name.
    inputs, outputs
        Shapes, None where a tensor is left out or its shape is not known.
    present
        How many inputs are there, those left out in between included.
    values
        Of the inputs, None where not known.
    """

    op: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape | None]
    values: Sequence[Any]

    def given(self, index: int) -> Shape:
        """Return the shape of an input."""
        shape = self.inputs[index] if index < len(self.inputs) else None
        if shape is None:
            raise UnknownShapeError(f"input {index} of {self.op}")
        return shape

    def made(self, index: int = 0) -> Shape:
        """Return the shape of an output."""
        shape = self.outputs[index] if index < len(self.outputs) else None
        if shape is None:
            raise UnknownShapeError(f"output {index} of {self.op}")
        return shape

    def has(self, index: int) -> bool:
        """Tell whether an input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None


_Handler = Callable[[Call], Work]


def _nothing(_: Call) -> Work:
    return Work()


def _each(call: Call) -> Work:
    return formulas.elementwise(call.made())


def _variadic(call: Call) -> Work:
    return formulas.elementwise(call.made(), max(len(call.inputs) - 1, 1))


def _convolution(weight: int = 1, bias: int = 2) -> _Handler:
    def count(call: Call) -> Work:
        kernel = call.given(weight)
        groups = call.attributes.get("group", 1)
        return formulas.convolution(call.made(), kernel[2:], kernel[1] * groups, groups, bias=call.has(bias))

    return count


def _fused_convolution(call: Call) -> Work:
    work = _convolution()(call)
    extra = int(call.has(3)) + int(bool(call.attributes.get("activation")))
    return work + formulas.elementwise(call.made(), extra) if extra else work


def _transposed(call: Call) -> Work:
    kernel, groups = call.given(1), call.attributes.get("group", 1)
    return formulas.transposed_convolution(
        call.given(0), kernel[2:], kernel[1] * groups, groups, call.made(), bias=call.has(2)
    )


def _deformable(call: Call) -> Work:
    """Count the convolution, and four weighted neighbours of each sampled position."""
    kernel, groups = call.given(1), call.attributes.get("group", 1)
    work = formulas.convolution(call.made(), kernel[2:], kernel[1] * groups, groups, bias=call.has(3))
    sampled = (*call.made()[:1], call.given(0)[1], *call.made()[2:], formulas.size(kernel[2:]))
    return work + formulas.interpolation(sampled, 4)


def _gemm(call: Call) -> Work:
    a, b = call.given(0), call.given(1)
    rows, inner = (a[1], a[0]) if call.attributes.get("transA") else (a[0], a[1])
    columns = b[0] if call.attributes.get("transB") else b[1]
    work = Work(macs=rows * inner * columns)
    return work + formulas.elementwise(call.made()) if call.has(2) else work


def _matmul(left: int = 0, right: int = 1) -> _Handler:
    return lambda call: formulas.matmul(call.given(left), call.given(right))


def _einsum(call: Call) -> Work:
    shapes = [call.given(i) for i in range(len(call.inputs))]
    equation = call.attributes["equation"]
    return formulas.einsum(equation.decode() if isinstance(equation, bytes) else equation, shapes)


def _recurrent(call: Call) -> Work:
    given, recurrence = call.given(0), call.given(2)
    steps, batch = (given[1], given[0]) if call.attributes.get("layout") else (given[0], given[1])
    return formulas.recurrent(
        call.op, steps=steps, batch=batch, inputs=given[2], hidden=recurrence[2], directions=recurrence[0],
        bias=call.has(3),
    )  # fmt: skip


def _attention(call: Call) -> Work:
    """Count ``Attention`` of opset 23: 4-d heads, or 3-d with their number in attributes."""
    q, k, v = (call.given(i) for i in range(3))
    if len(q) == 3:
        heads, shared = call.attributes["q_num_heads"], call.attributes["kv_num_heads"]
        q = (q[0], heads, q[1], q[2] // heads)
        k, v = (k[0], heads, k[1], k[2] // shared), (v[0], heads, v[1], v[2] // shared)
    past = call.given(4)[2] if call.has(4) else 0
    k, v = (*k[:-2], k[-2] + past, k[-1]), (*v[:-2], v[-2] + past, v[-1])
    return formulas.attention(q, (*q[:-2], *k[-2:]), (*q[:-2], *v[-2:]), mask=call.has(3))


def _batch_normalization(call: Call) -> Work:
    return formulas.normalization(call.made(), given=not call.attributes.get("training_mode"))


def _normalization(call: Call) -> Work:
    return formulas.normalization(call.made(), given=False)


def _local_response(call: Call) -> Work:
    """Count the square, the sum over a window of channels, and scale, power and quotient of each element."""
    window = call.attributes["size"]
    return Work(flops={"normalization": formulas.size(call.made()) * (window + 4)})


def _pooling(call: Call) -> Work:
    return formulas.pooling(call.made(), call.attributes["kernel_shape"])


def _global_pooling(call: Call) -> Work:
    return Work(flops={"pooling": formulas.size(call.given(0))})


def _region_pooling(call: Call) -> Work:
    """Count RoiAlign: four weighted neighbours for each sample of each bin, and their mean."""
    ratio = call.attributes.get("sampling_ratio", 0) or 1
    samples = (*call.made(), ratio * ratio)
    return formulas.interpolation(samples, 4) + formulas.pooling(call.made(), (ratio, ratio))


def _reduction(call: Call) -> Work:
    return formulas.reduction(formulas.size(call.given(0)))


def _softmax(call: Call) -> Work:
    return formulas.softmax(call.made())


def _resize(call: Call) -> Work:
    mode = call.attributes.get("mode", b"nearest")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    given, made = call.given(0), call.made()
    scaled = sum(a != b for a, b in zip(given, made, strict=True))
    each = {"linear": 2, "cubic": 4}.get(mode, 0)
    return formulas.interpolation(made, each**scaled if each and scaled else 0)


def _grid_sample(call: Call) -> Work:
    mode = call.attributes.get("mode", b"linear")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    each = {"nearest": 0, "bicubic": 4, "cubic": 4}.get(mode, 2)
    return formulas.interpolation(call.made(), each ** (len(call.made()) - 2) if each else 0)


def _sorting(call: Call) -> Work:
    """Count one comparison for each element and each doubling of the axis."""
    shape = call.given(0)
    length = shape[call.attributes.get("axis", -1)] if shape else 1
    return Work(flops={"other": formulas.size(shape) * max(math.ceil(math.log2(length)), 1) if length else 0})


def _dropout(call: Call) -> Work:
    training = call.values[2] if len(call.values) > 2 else None
    return formulas.elementwise(call.made()) if training is not None and bool(training) else Work()


def _quantized_gemm(call: Call) -> Work:
    work = _gemm(call)
    return work + formulas.elementwise(call.made())


def _requantized(count: _Handler) -> _Handler:
    return lambda call: count(call) + formulas.elementwise(call.made())


_MOVES = (
    "Cast CastLike Col2Im Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Expand EyeLike "
    "Flatten Gather GatherElements GatherND Identity OneHot Optional OptionalGetElement OptionalHasElement Pad Range "
    "Reshape ReverseSequence Scatter ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty "
    "SequenceErase SequenceInsert SequenceLength Shape Size Slice SpaceToDepth Split SplitToSequence Squeeze Tile "
    "Transpose Trilu Unique Unsqueeze CenterCropPad RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
    "NonZero BitCast TensorScatter"
)
_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip "
    "Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu "
    "Less LessOrEqual Log Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Sub Swish Tan Tanh ThresholdedRelu Where Xor QuantizeLinear DequantizeLinear "
    "Bernoulli CumSum CumProd"
)
_REDUCTIONS = (
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
)

_HANDLERS: Final[dict[str, _Handler]] = {
    **dict.fromkeys(_MOVES.split(), _nothing),
    **dict.fromkeys(_ELEMENTWISE.split(), _each),
    **dict.fromkeys(("Sum", "Mean", "Max", "Min"), _variadic),
    **dict.fromkeys(_REDUCTIONS.split(), _reduction),
    "Conv": _convolution(),
    "ConvInteger": _convolution(1, 99),
    "QLinearConv": _requantized(_convolution(3, 8)),
    "ConvTranspose": _transposed,
    "DeformConv": _deformable,
    "Gemm": _gemm,
    "MatMul": _matmul(),
    "MatMulInteger": _matmul(),
    "QLinearMatMul": _requantized(_matmul(0, 3)),
    "Einsum": _einsum,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Attention": _attention,
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _normalization,
    "InstanceNormalization": _normalization,
    "LayerNormalization": _normalization,
    "RMSNormalization": _normalization,
    "LpNormalization": _normalization,
    "MeanVarianceNormalization": _normalization,
    "LRN": _local_response,
    "AveragePool": _pooling,
    "LpPool": _pooling,
    "MaxPool": _pooling,
    "GlobalAveragePool": _global_pooling,
    "GlobalLpPool": _global_pooling,
    "GlobalMaxPool": _global_pooling,
    "MaxRoiPool": _region_pooling,
    "RoiAlign": _region_pooling,
    "MaxUnpool": _nothing,
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "Softmax": _softmax,
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "TopK": _sorting,
    "RotaryEmbedding": lambda call: formulas.elementwise(call.made(), 3),
    "SwiGLU": lambda call: formulas.elementwise(call.made(), 2),
    "NegativeLogLikelihoodLoss": _reduction,
    "SoftmaxCrossEntropyLoss": lambda call: formulas.softmax(call.given(0)) + _reduction(call),
    "Dropout": _dropout,
    "DynamicQuantizeLinear": lambda call: formulas.elementwise(call.made()) + _reduction(call),
    "com.microsoft.FusedConv": _fused_convolution,
    "com.microsoft.Gelu": _each,
    "com.microsoft.FastGelu": _each,
    "com.microsoft.QuickGelu": _each,
    "com.microsoft.BiasGelu": lambda call: formulas.elementwise(call.made(), 2),
    "com.microsoft.SkipLayerNormalization": lambda call: _normalization(call) + formulas.elementwise(call.made()),
    "com.microsoft.QLinearAdd": _each,
    "com.microsoft.QLinearMul": _each,
    "com.microsoft.QLinearSigmoid": _each,
    "com.microsoft.QLinearLeakyRelu": _each,
    "com.microsoft.DynamicQuantizeMatMul": _requantized(_matmul()),
    "com.microsoft.MatMulIntegerToFloat": _requantized(_matmul()),
    "com.microsoft.QGemm": _requantized(_matmul(0, 3)),
}
# positions of inputs that are never weights: statistics, bounds, shapes, scales and zero points
_NOT_WEIGHTS: Final[dict[str, frozenset[int]]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "ConvInteger": frozenset({2, 3}),
    "DequantizeLinear": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "LSTM": frozenset({4, 5, 6}),
    "GRU": frozenset({4, 5}),
    "RNN": frozenset({4, 5}),
    "MatMulInteger": frozenset({2, 3}),
    "Pad": frozenset({1, 2, 3}),
    "Pow": frozenset({1}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QuantizeLinear": frozenset({1, 2}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Where": frozenset({0, 1, 2}),
    "com.microsoft.DynamicQuantizeMatMul": frozenset({2, 3}),
    "com.microsoft.MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "com.microsoft.QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    "com.microsoft.QLinearAdd": frozenset({1, 2, 4, 5, 6, 7}),
    "com.microsoft.QLinearMul": frozenset({1, 2, 4, 5, 6, 7}),
}
# operators whose weights are weights even if they have one element, and may be integers where these say so
_WEIGHTED: Final = frozenset({
    "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Gemm", "GroupNormalization", "GRU",
    "InstanceNormalization", "LayerNormalization", "LSTM", "MatMul", "MatMulInteger", "PRelu", "QLinearConv",
    "QLinearMatMul", "RMSNormalization", "RNN", "com.microsoft.FusedConv", "com.microsoft.DynamicQuantizeMatMul",
    "com.microsoft.MatMulIntegerToFloat", "com.microsoft.QGemm", "com.microsoft.BiasGelu",
    "com.microsoft.SkipLayerNormalization",
})  # fmt: skip
TABLES: Final = frozenset({"Gather", "GatherElements", "GatherND"})  # of their weights only the rows taken are read
_INTEGER_WEIGHTS: Final = frozenset({
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat", "com.microsoft.QGemm",
})  # fmt: skip


def is_known(op: str) -> bool:
    """Tell whether an operator is counted."""
    return op in _HANDLERS


def work_of(call: Call) -> Work:
    """Count a node.

    Raises
    ------
    UnknownShapeError
        If a shape that the formula needs is not known.
    KeyError
        If the operator is not known, see `is_known`.
    """
    return _HANDLERS[call.op](call)


def weight_inputs(op: str, count: int) -> list[tuple[int, bool, bool]]:
    """Return which inputs can be weights: (position, even of one element, even of integers)."""
    left_out = _NOT_WEIGHTS.get(op, frozenset())
    return [(i, op in _WEIGHTED, op in _INTEGER_WEIGHTS) for i in range(count) if i not in left_out]
