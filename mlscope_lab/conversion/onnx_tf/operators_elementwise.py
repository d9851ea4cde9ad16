"""Operators that work element by element, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.values import Context, Value, last_axes, operator

__all__ = ["broadcast", "unary"]

Tensor = Any


def unary(c: Context, function: Callable[[Tensor], Tensor], x: Value) -> Value:
    """Apply a function to a tensor in whatever order it has."""
    tensor, last = c.native(x)
    return c.wrap(function(tensor), last)


def _aligned(c: Context, x: Value, rank: int) -> Tensor:
    """Return an operand so that it broadcasts against a channels-last tensor of `rank` axes."""
    if x.rank == rank:
        return c.last(x)
    if x.rank == 0:
        return c.first(x)
    missing = rank - x.rank
    if x.constant is not None:
        array = x.constant.reshape((1,) * missing + x.constant.shape)
        return c.tensor(np.ascontiguousarray(array.transpose(last_axes(rank))))
    tensor = c.first(x)
    for _ in range(missing):
        tensor = c.tf.expand_dims(tensor, 0)
    return c.tf.transpose(tensor, last_axes(rank))


def broadcast(c: Context, function: Callable[..., Tensor], *values: Value) -> Value:
    """Apply a function to several operands, keeping the channels last where one of the widest has them last."""
    rank = max(v.rank for v in values)
    if rank >= 3 and any(v.native_last and v.rank == rank for v in values):
        return c.wrap(function(*(_aligned(c, v, rank) for v in values)), last=True)
    return c.wrap(function(*(c.first(v) for v in values)))


_UNARY: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "Abs": lambda tf: tf.abs,
    "Acos": lambda tf: tf.acos,
    "Acosh": lambda tf: tf.acosh,
    "Asin": lambda tf: tf.asin,
    "Asinh": lambda tf: tf.asinh,
    "Atan": lambda tf: tf.atan,
    "Atanh": lambda tf: tf.atanh,
    "Ceil": lambda tf: tf.math.ceil,
    "Cos": lambda tf: tf.cos,
    "Cosh": lambda tf: tf.cosh,
    "Erf": lambda tf: tf.math.erf,
    "Exp": lambda tf: tf.exp,
    "Floor": lambda tf: tf.floor,
    "IsNaN": lambda tf: tf.math.is_nan,
    "Log": lambda tf: tf.math.log,
    "Neg": lambda tf: tf.negative,
    "Not": lambda tf: tf.logical_not,
    "Reciprocal": lambda tf: tf.math.reciprocal,
    "Relu": lambda tf: tf.nn.relu,
    "Round": lambda tf: tf.round,
    "Sigmoid": lambda tf: tf.sigmoid,
    "Sign": lambda tf: tf.sign,
    "Sin": lambda tf: tf.sin,
    "Sinh": lambda tf: tf.sinh,
    "Softplus": lambda tf: tf.nn.softplus,
    "Softsign": lambda tf: tf.nn.softsign,
    "Sqrt": lambda tf: tf.sqrt,
    "Tan": lambda tf: tf.tan,
    "Tanh": lambda tf: tf.tanh,
    "HardSwish": lambda tf: lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "Mish": lambda tf: lambda x: x * tf.tanh(tf.nn.softplus(x)),
}


@operator(*_UNARY)
def _unary(c: Context, node: Node, x: Value) -> Value:
    return unary(c, _UNARY[node.op](c.tf), x)


def _divide(tf: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: tf.truncatediv(a, b) if a.dtype.is_integer else tf.divide(a, b)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(*operands: Tensor) -> Tensor:
        total = operands[0]
        for operand in operands[1:]:
            total = function(total, operand)
        return total

    return apply


_NARY: dict[str, Callable[[Any], Callable[..., Tensor]]] = {
    "Add": lambda tf: tf.add,
    "And": lambda tf: tf.logical_and,
    "Div": _divide,
    "Equal": lambda tf: tf.equal,
    "Greater": lambda tf: tf.greater,
    "GreaterOrEqual": lambda tf: tf.greater_equal,
    "Less": lambda tf: tf.less,
    "LessOrEqual": lambda tf: tf.less_equal,
    "Max": lambda tf: _fold(tf.maximum),
    "Mean": lambda tf: lambda *x: _fold(tf.add)(*x) / len(x),
    "Min": lambda tf: _fold(tf.minimum),
    "Mul": lambda tf: tf.multiply,
    "Or": lambda tf: tf.logical_or,
    "PRelu": lambda tf: lambda x, slope: tf.where(x < 0, x * slope, x),
    "Pow": lambda tf: lambda x, y: tf.pow(x, tf.cast(y, x.dtype)),
    "Sub": lambda tf: tf.subtract,
    "Sum": lambda tf: _fold(tf.add),
    "Where": lambda tf: tf.where,
    "Xor": lambda tf: tf.math.logical_xor,
}


@operator(*_NARY)
def _nary(c: Context, node: Node, *values: Value) -> Value:
    return broadcast(c, _NARY[node.op](c.tf), *values)


@operator("Mod")
def _mod(c: Context, node: Node, x: Value, y: Value) -> Value:
    return broadcast(c, c.tf.truncatemod if node.attributes.get("fmod") else c.tf.math.floormod, x, y)


@operator("IsInf")
def _is_inf(c: Context, node: Node, x: Value) -> Value:
    wanted = [s for s, k in ((np.inf, "detect_positive"), (-np.inf, "detect_negative")) if node.attributes.get(k, 1)]

    def apply(t: Tensor) -> Tensor:
        found = c.tf.zeros_like(t, dtype=c.tf.bool)
        for sign in wanted:
            found = c.tf.logical_or(found, c.tf.equal(t, sign))
        return found

    return unary(c, apply, x)


@operator("Identity", "Dropout")
def _identity(c: Context, node: Node, x: Value, *_: Value) -> Value | tuple[Value, ...]:
    tensor, last = c.native(x)
    kept = c.wrap(c.tf.identity(tensor), last) if node.op == "Identity" else x
    if node.op == "Dropout" and len(node.outputs) > 1:
        return kept, c.wrap(c.tf.ones_like(tensor, dtype=c.tf.bool), last)
    return kept


@operator("Cast", "CastLike")
def _cast(c: Context, node: Node, x: Value, like: Value | None = None) -> Value:
    import onnx

    if like is not None:
        dtype = c.first(like).dtype
    else:
        dtype = c.tf.as_dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attributes["to"])))
    return unary(c, lambda t: c.tf.cast(t, dtype), x)


@operator("Clip")
def _clip(c: Context, node: Node, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    tf = c.tf
    tensor, last = c.native(x)
    if node.version < 11:
        bounds = [node.attributes.get("min"), node.attributes.get("max")]
        low, high = (None if b is None else Value(constant=np.asarray(b, tensor.dtype.as_numpy_dtype)) for b in bounds)
    known = [c.known(low), c.known(high)]
    if known[0] is not None and known[1] is not None and float(known[0]) == 0.0 and float(known[1]) == 6.0:
        return c.wrap(tf.nn.relu6(tensor), last)  # the form that TensorFlow fuses into a convolution
    if known[0] is not None and float(known[0]) == 0.0 and high is None:
        return c.wrap(tf.nn.relu(tensor), last)
    if low is not None:
        tensor = tf.maximum(tensor, c.first(low))
    if high is not None:
        tensor = tf.minimum(tensor, c.first(high))
    return c.wrap(tensor, last)


@operator("LeakyRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "HardSigmoid", "Gelu", "Swish")
def _activation(c: Context, node: Node, x: Value) -> Value:
    tf, given = c.tf, node.attributes
    alpha = given.get("alpha")

    def apply(t: Tensor) -> Tensor:
        if node.op == "LeakyRelu":
            return tf.nn.leaky_relu(t, 0.01 if alpha is None else alpha)
        if node.op == "Elu":
            return tf.nn.elu(t) if alpha in {None, 1.0} else tf.where(t < 0, alpha * tf.math.expm1(t), t)
        if node.op == "Celu":
            a = 1.0 if alpha is None else alpha
            return tf.maximum(t, 0.0) + tf.minimum(a * tf.math.expm1(t / a), 0.0)
        if node.op == "Selu":
            a = 1.67326319217681884765625 if alpha is None else alpha
            gamma = given.get("gamma", 1.05070102214813232421875)
            return gamma * tf.where(t > 0, t, a * tf.math.expm1(t))
        if node.op == "ThresholdedRelu":
            return tf.where(t > (1.0 if alpha is None else alpha), t, tf.zeros_like(t))
        if node.op == "HardSigmoid":
            return tf.clip_by_value((0.2 if alpha is None else alpha) * t + given.get("beta", 0.5), 0.0, 1.0)
        if node.op == "Swish":
            return t * tf.sigmoid((1.0 if alpha is None else alpha) * t)
        return tf.nn.gelu(t, approximate=given.get("approximate", "none") == "tanh")

    return unary(c, apply, x)
