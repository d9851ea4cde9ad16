"""Reductions, searches and softmax: operators along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.values import Context, Value, last_axes, operator

__all__ = ["axes_of"]

Tensor = Any


def axes_of(c: Context, node: Node, operand: Value | None, default: list[int] | None) -> list[int] | None:
    """Return the axes of a node: an attribute in older opsets, an operand in newer ones."""
    if operand is not None:
        return [int(a) for a in c.constant(operand, node, "the axes").reshape(-1)]
    return node.ints("axes") if "axes" in node.attributes else default


_REDUCE: dict[str, Callable[[Any], Callable[..., Tensor]]] = {
    "ReduceL1": lambda tf: lambda x, a, k: tf.reduce_sum(tf.abs(x), a, k),
    "ReduceL2": lambda tf: lambda x, a, k: tf.sqrt(tf.reduce_sum(tf.square(x), a, k)),
    "ReduceLogSum": lambda tf: lambda x, a, k: tf.math.log(tf.reduce_sum(x, a, k)),
    "ReduceLogSumExp": lambda tf: tf.reduce_logsumexp,
    "ReduceMax": lambda tf: tf.reduce_max,
    "ReduceMean": lambda tf: tf.reduce_mean,
    "ReduceMin": lambda tf: tf.reduce_min,
    "ReduceProd": lambda tf: tf.reduce_prod,
    "ReduceSum": lambda tf: tf.reduce_sum,
    "ReduceSumSquare": lambda tf: lambda x, a, k: tf.reduce_sum(tf.square(x), a, k),
}


@operator(*_REDUCE)
def _reduce(c: Context, node: Node, x: Value, axes: Value | None = None) -> Value:
    rank, keep = x.rank, bool(node.attributes.get("keepdims", 1))
    chosen = axes_of(c, node, axes, None)
    if not chosen:
        if node.attributes.get("noop_with_empty_axes"):
            return x
        chosen = list(range(rank))
    chosen = sorted({a % rank for a in chosen})
    tensor, last = c.native(x)
    if last and not keep:
        left = [a for a in last_axes(rank) if a not in chosen]
        if left != sorted(left):  # the channels would stay behind the remaining spatial axes
            tensor, last = c.first(x), False
    axes_in_memory = [c.axis(a, rank, last) for a in chosen]
    return c.wrap(_REDUCE[node.op](c.tf)(tensor, axes_in_memory, keep), last and keep)


def _last_index(node: Node) -> str:
    return "select_last_index=1" if node.attributes.get("select_last_index") else ""


@operator("ArgMax", "ArgMin", refuse=_last_index)
def _arg(c: Context, node: Node, x: Value) -> Value:
    tf, tensor = c.tf, c.first(x)
    axis = int(node.attributes.get("axis", 0)) % x.rank
    search = tf.argmax if node.op == "ArgMax" else tf.argmin
    found = search(tensor, axis, output_type=tf.int64)
    return c.wrap(tf.expand_dims(found, axis) if node.attributes.get("keepdims", 1) else found)


@operator("TopK")
def _top_k(c: Context, node: Node, x: Value, k: Value | None = None) -> tuple[Value, ...]:
    tf, tensor = c.tf, c.first(x)
    axis = int(node.attributes.get("axis", -1)) % x.rank
    if k is None:
        count: Any = int(node.attributes["k"])
    else:
        known = c.known(k)
        count = int(known.reshape(-1)[0]) if known is not None else tf.cast(tf.reshape(c.first(k), []), tf.int32)
    swap = [a for a in range(x.rank) if a != axis] + [axis]
    back = [int(a) for a in np.argsort(swap)]
    moved = tensor if axis == x.rank - 1 else tf.transpose(tensor, swap)
    largest = bool(node.attributes.get("largest", 1))
    if largest:
        values, indices = tf.math.top_k(moved, count, sorted=True)
    elif moved.dtype.is_integer:
        # negation overflows at the smallest integer; the bitwise complement reverses the order of all of them
        _, indices = tf.math.top_k(tf.bitwise.invert(moved), count, sorted=True)
        values = tf.gather(moved, indices, batch_dims=x.rank - 1, axis=-1)
    else:
        values, indices = tf.math.top_k(-moved, count, sorted=True)
        values = -values
    if axis != x.rank - 1:
        values, indices = tf.transpose(values, back), tf.transpose(indices, back)
    return c.wrap(values), c.wrap(tf.cast(indices, tf.int64))


@operator("Softmax", "LogSoftmax")
def _softmax(c: Context, node: Node, x: Value) -> Value:
    tf = c.tf
    function = tf.nn.softmax if node.op == "Softmax" else tf.nn.log_softmax
    if node.version >= 13:
        tensor, last = c.native(x)
        return c.wrap(function(tensor, axis=c.axis(int(node.attributes.get("axis", -1)), x.rank, last)), last)
    # before opset 13 all axes from `axis` on are one
    axis = int(node.attributes.get("axis", 1)) % x.rank
    tensor = c.first(x)
    if all(d == 1 for d in x.dims[axis + 1 :]):
        return c.wrap(function(tensor, axis=axis))
    lead = tf.reduce_prod(tf.shape(tensor)[:axis])
    return c.wrap(tf.reshape(function(tf.reshape(tensor, tf.stack([lead, -1])), axis=-1), c.shape_of(tensor)))


@operator("CumSum")
def _cumsum(c: Context, node: Node, x: Value, axis: Value) -> Value:
    where = int(c.constant(axis, node, "the axis").reshape(-1)[0])
    given = node.attributes
    return c.wrap(
        c.tf.cumsum(c.first(x), where, exclusive=bool(given.get("exclusive")), reverse=bool(given.get("reverse")))
    )
