"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.values import Context, Value, operator

__all__: list[str] = []


@operator("MatMul")
def _matmul(c: Context, node: Node, a: Value, b: Value) -> Value:
    tf, x, y = c.tf, c.first(a), c.first(b)
    left, right = a.rank == 1, b.rank == 1
    if left:
        x = tf.expand_dims(x, 0)
    if right:
        y = tf.expand_dims(y, -1)
    done = tf.matmul(x, y)
    gone = [axis for axis, drop in ((-2, left), (-1, right)) if drop]
    return c.wrap(tf.squeeze(done, gone) if gone else done)


@operator("Gemm")
def _gemm(c: Context, node: Node, a: Value, b: Value, bias: Value | None = None) -> Value:
    tf, given = c.tf, node.attributes
    alpha, beta = float(given.get("alpha", 1.0)), float(given.get("beta", 1.0))
    turn = bool(given.get("transB"))
    if b.constant is not None:  # fold the transposition and the factor into the weights
        weights = b.constant.T if turn else b.constant
        weights = weights * np.asarray(alpha, weights.dtype) if alpha != 1.0 else weights
        y: Any = c.tensor(np.ascontiguousarray(weights))
        done = tf.matmul(c.first(a), y, transpose_a=bool(given.get("transA")))
    else:
        done = tf.matmul(c.first(a), c.first(b), transpose_a=bool(given.get("transA")), transpose_b=turn)
        done = done * tf.cast(alpha, done.dtype) if alpha != 1.0 else done
    if bias is None or beta == 0.0:
        return c.wrap(done)
    if beta == 1.0 and bias.rank == 1 and bias.dims[0] not in {1, None} and done.dtype.is_floating:
        return c.wrap(tf.nn.bias_add(done, c.first(bias)))  # the form that TensorFlow fuses into the product
    term = c.first(bias)
    return c.wrap(done + (term if beta == 1.0 else term * tf.cast(beta, term.dtype)))


@operator("Einsum")
def _einsum(c: Context, node: Node, *operands: Value) -> Value:
    return c.wrap(c.tf.einsum(node.attributes["equation"].replace(" ", ""), *(c.first(o) for o in operands)))
