"""Which formula each Keras operation takes, and the layers whose call does not consist of such operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mlscope_lab.static import formulas
from mlscope_lab.static.records import Work

__all__ = ["OperationCall", "layer_work", "work_of"]


@dataclass(frozen=True, kw_only=True)
class OperationCall:
    """An operation with the shapes of what it takes and returns.

    Attributes
    ----------
    operation
        The `keras.Operation`.
    given
        Shapes of its tensors and variables, positional ones first.
    keywords
        Names of the keyword arguments that are not None.
    result
        Shape of its first result.
    """

    operation: Any
    given: Sequence[tuple[int, ...]]
    keywords: frozenset[str]
    result: tuple[int, ...]

    def setting(self, name: str, default: Any = None) -> Any:
        """Return what the operation was made with."""
        return getattr(self.operation, name, default)

    @property
    def channel_axis(self) -> int:
        """Axis of the channels, by the operation's data format."""
        return 1 if self.setting("data_format") == "channels_first" else -1


_Handler = Callable[[OperationCall], Work]


def _convolution(call: OperationCall) -> Work:
    """Count a convolution; kernels are (*spatial, channels in, channels out)."""
    *spatial, inner, _ = call.given[1]
    channels = call.given[0][call.channel_axis]
    return formulas.convolution(
        call.result, spatial, channels, max(channels // inner, 1), channel_axis=call.channel_axis
    )


def _depthwise(call: OperationCall) -> Work:
    *spatial, channels, _ = call.given[1]
    return formulas.convolution(call.result, spatial, channels, channels, channel_axis=call.channel_axis)


def _separable(call: OperationCall) -> Work:
    """Count a depthwise convolution, at the positions of the result, and a pointwise one."""
    *spatial, channels, multiplier = call.given[1]
    outputs = call.given[2][-1]
    positions = math.prod(call.result) // max(call.result[call.channel_axis], 1)
    return Work(macs=positions * channels * multiplier * (math.prod(spatial) + outputs))


def _transposed(call: OperationCall) -> Work:
    """Count a transposed convolution; kernels are (*spatial, channels out, channels in)."""
    *spatial, outputs, _ = call.given[1]
    return formulas.transposed_convolution(call.given[0], spatial, outputs, 1, call.result)


def _matmul(call: OperationCall) -> Work:
    return formulas.matmul(call.given[0], call.given[1])


def _dot(call: OperationCall) -> Work:
    left, right = call.given[0], call.given[1]
    if not left or not right:
        return formulas.elementwise(call.result)
    return Work(macs=math.prod(call.result) * left[-1])


def _tensordot(call: OperationCall) -> Work:
    axes = call.setting("axes", 2)
    left = call.given[0]
    if isinstance(axes, int):
        summed = math.prod(left[len(left) - axes :])
    else:
        first = axes[0]
        summed = math.prod(left[axis] for axis in (first if isinstance(first, list | tuple) else [first]))
    return Work(macs=math.prod(call.result) * summed)


def _einsum(call: OperationCall) -> Work:
    return formulas.einsum(call.setting("subscripts"), call.given)


def _attention(call: OperationCall) -> Work:
    query, key, value = ((s[0], s[2], s[1], s[3]) for s in call.given[:3])  # (batch, length, heads, features)
    masked = len(call.given) > 3 or bool(call.setting("is_causal")) or bool({"mask", "bias"} & call.keywords)
    return formulas.attention(query, (*query[:2], *key[2:]), (*query[:2], *value[2:]), mask=masked)


def _batch_normalization(call: OperationCall) -> Work:
    return formulas.normalization(call.result, given=True)


def _normalization(call: OperationCall) -> Work:
    return formulas.normalization(call.result, given=False)


def _pooling(call: OperationCall) -> Work:
    size = call.setting("pool_size")
    axes = len(call.result) - 2
    return formulas.pooling(call.result, (size,) * axes if isinstance(size, int) else size)


def _adaptive_pooling(call: OperationCall) -> Work:
    return Work(flops={"pooling": math.prod(call.given[0])})


def _reduction(call: OperationCall) -> Work:
    return formulas.reduction(math.prod(call.given[0]))


def _moments(call: OperationCall) -> Work:
    return formulas.reduction(4 * math.prod(call.given[0]))


def _softmax(call: OperationCall) -> Work:
    return formulas.softmax(call.result)


def _elementwise(call: OperationCall) -> Work:
    return formulas.elementwise(call.result)


def _resize(call: OperationCall) -> Work:
    each = {"nearest": 0, "bilinear": 2, "bicubic": 4, "lanczos3": 6, "lanczos5": 10}[call.setting("interpolation")]
    scaled = sum(a != b for a, b in zip(call.given[0], call.result, strict=True))
    return formulas.interpolation(call.result, each**scaled if each and scaled else 0)


def _sorting(call: OperationCall) -> Work:
    length = call.given[0][-1] if call.given[0] else 1
    return Work(flops={"other": math.prod(call.given[0]) * max(math.ceil(math.log2(length)), 1) if length else 0})


def _nothing(_: OperationCall) -> Work:
    return Work()


_MOVES = (
    "Append Arange Array ArraySplit BroadcastTo Cast Concatenate ConvertToTensor Copy CropImages DepthToSpace Diag "
    "Diagflat Diagonal Dsplit Dstack EmptyLike ExpandDims ExtractPatches Flip Fliplr Flipud Full FullLike GetItem "
    "Hsplit Hstack Meshgrid Moveaxis MultiHot Ndim OneHot OnesLike Pad PadImages Ravel Repeat Reshape Roll Rot90 "
    "SaturateCast Scatter ScatterUpdate Size Slice SliceUpdate SpaceToDepth Split Squeeze Stack StopGradient Swapaxes "
    "Take TakeAlongAxis Tile Transpose Tril Triu UnravelIndex Unstack View Vsplit Vstack ZerosLike Nonzero"
)
_REDUCTIONS = (
    "All Amax Amin Any Argmax Argmin Average CountNonzero Logsumexp Max Mean Median Min Norm Prod Sum Trace Ptp"
)
_ELEMENTWISE = (
    "Absolute Add Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh BitwiseAnd BitwiseInvert BitwiseLeftShift "
    "BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Cbrt Ceil Celu Clip Conjugate Cos Cosh Cumprod Cumsum Deg2rad "
    "Divide DivideNoNan Elu Equal Erf Erfinv Exp Exp2 Expm1 Fabs Floor FloorDivide Fmax Fmin Fmod Gelu Glu Greater "
    "GreaterEqual HardShrink HardSigmoid HardSilu HardTanh Heaviside Hypot Imag Isclose Isfinite Isinf Isnan LeakyRelu "
    "LeftShift Less LessEqual Log Log10 Log1p Log2 LogSigmoid Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr "
    "LogicalXor Maximum Minimum Mod Multiply NanToNum Negative NotEqual Power Rad2deg Real Reciprocal Relu Relu6 "
    "ReLU Mish RightShift Round Rsqrt Selu Sigmoid Sign Silu Sin Sinc Sinh SoftShrink Softplus Softsign SparsePlus "
    "SparseSigmoid Sqrt Square Squareplus Subtract Tan Tanh TanhShrink Threshold TrueDivide Trunc Where"
)

_HANDLERS: Final[dict[str, _Handler]] = {
    **dict.fromkeys(_MOVES.split(), _nothing),
    **dict.fromkeys(_REDUCTIONS.split(), _reduction),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "Conv": _convolution,
    "DepthwiseConv": _depthwise,
    "SeparableConv": _separable,
    "ConvTranspose": _transposed,
    "Matmul": _matmul,
    "Dot": _dot,
    "Inner": _dot,
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    "DotProductAttention": _attention,
    "BatchNorm": _batch_normalization,
    "LayerNorm": _normalization,
    "RMSNorm": _normalization,
    "Normalize": _normalization,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    "AdaptiveMaxPool": _adaptive_pooling,
    "AdaptiveAveragePool": _adaptive_pooling,
    "Moments": _moments,
    "Std": _moments,
    "Var": _moments,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Resize": _resize,
    "Sort": _sorting,
    "Argsort": _sorting,
    "TopK": _sorting,
}


def work_of(call: OperationCall) -> Work | None:
    """Count an operation; None if it is not known."""
    handler = _HANDLERS.get(type(call.operation).__name__)
    return None if handler is None else handler(call)


def _recurrent(kind: str) -> Callable[[Any, Sequence[tuple[int, ...]]], Work]:
    def count(layer: Any, given: Sequence[tuple[int, ...]]) -> Work:
        batch, steps, inputs = given[0]
        return formulas.recurrent(
            kind, steps=steps, batch=batch, inputs=inputs, hidden=layer.units, directions=1, bias=layer.use_bias
        )

    return count


def _grouped_convolution(layer: Any, given: Sequence[tuple[int, ...]]) -> Work | None:
    """Count a convolution of several groups, which Keras cannot call on shapes."""
    if layer.groups == 1:
        return None
    axis = 1 if layer.data_format == "channels_first" else -1
    result = tuple(layer.compute_output_shape(given[0]))
    kernel = layer.kernel.shape[:-2]
    work = formulas.convolution(result, kernel, given[0][axis], layer.groups, channel_axis=axis, bias=layer.use_bias)
    activation = getattr(layer.activation, "__name__", "linear")
    return work if activation == "linear" else work + formulas.elementwise(result)


def _rescaling(_layer: Any, given: Sequence[tuple[int, ...]]) -> Work:
    return formulas.elementwise(given[0], 2)


def _standardization(_layer: Any, given: Sequence[tuple[int, ...]]) -> Work:
    return formulas.normalization(given[0], given=True)


def _none(_layer: Any, _given: Sequence[tuple[int, ...]]) -> Work:
    return Work()


# Layers whose call is a loop of the framework, or that do nothing at inference.
_LAYERS: Final[Mapping[str, Callable[[Any, Sequence[tuple[int, ...]]], Work | None]]] = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _grouped_convolution),
    "Rescaling": _rescaling,
    "Normalization": _standardization,
    "LSTM": _recurrent("LSTM"),
    "GRU": _recurrent("GRU"),
    "SimpleRNN": _recurrent("RNN"),
    **dict.fromkeys(
        (
            "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "InputLayer",
            "Masking", "RandomBrightness", "RandomContrast", "RandomCrop", "RandomFlip", "RandomRotation",
            "RandomTranslation", "RandomZoom", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Embedding",
            "Flatten", "Reshape", "Identity",
        ),
        _none,
    ),
}  # fmt: skip


def layer_work(layer: Any, given: Sequence[tuple[int, ...]]) -> Work | None:
    """Count a layer of Keras itself by a formula of its own; None if it has none, and its call must be followed."""
    kind = type(layer)
    if not kind.__module__.startswith("keras."):
        return None
    count = _LAYERS.get(kind.__name__)
    return None if count is None else count(layer, given)
