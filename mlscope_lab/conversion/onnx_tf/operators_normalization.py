"""Normalisations: over the batch, an instance, a group, a layer, across channels."""

from __future__ import annotations

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.operators_elementwise import broadcast
from mlscope_lab.conversion.onnx_tf.values import Context, Value, operator

__all__: list[str] = []


def _training(node: Node) -> str:
    return "training_mode=1" if node.attributes.get("training_mode") or len([o for o in node.outputs if o]) > 1 else ""


def _channels(c: Context, value: Value, rank: int) -> Value:
    """Return a per-channel vector as [C, 1, ...], which broadcasts on axis 1."""
    if value.constant is not None:
        return Value(constant=value.constant.reshape(-1, *([1] * (rank - 2))))
    return c.wrap(c.tf.reshape(c.first(value), [-1, *([1] * (rank - 2))]))


@operator("BatchNormalization", refuse=_training)
def _batch(c: Context, node: Node, x: Value, scale: Value, offset: Value, mean: Value, variance: Value) -> Value:
    tf, epsilon = c.tf, float(node.attributes.get("epsilon", 1e-5))
    if x.rank == 4:
        vectors = [c.first(v) for v in (scale, offset, mean, variance)]
        # the fused form is what TensorFlow's optimiser joins with the convolution before it
        done, _, _ = tf.compat.v1.nn.fused_batch_norm(c.last(x), *vectors, epsilon=epsilon, is_training=False)
        return c.wrap(done, last=True)
    parts = [p.constant for p in (scale, offset, mean, variance)]
    if all(p is not None for p in parts):
        s, b, m, v = (np.asarray(p, np.float64) for p in parts)
        factor = s / np.sqrt(v + epsilon)
        dtype = parts[0].dtype  # type: ignore[union-attr]
        terms = [Value(constant=t.astype(dtype)) for t in (factor, b - m * factor)]
    else:
        t = [c.first(v) for v in (scale, offset, mean, variance)]
        factor_t = t[0] * tf.math.rsqrt(t[3] + epsilon)
        terms = [c.wrap(factor_t), c.wrap(t[1] - t[2] * factor_t)]
    wide = [_channels(c, term, x.rank) if x.rank > 2 else term for term in terms]
    return broadcast(c, lambda a, f, o: a * f + o, x, *wide)


@operator("InstanceNormalization")
def _instance(c: Context, node: Node, x: Value, scale: Value, offset: Value) -> Value:
    tf, tensor = c.tf, c.last(x)
    mean, variance = tf.nn.moments(tensor, list(range(1, x.rank - 1)), keepdims=True)
    factor = tf.math.rsqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    return c.wrap((tensor - mean) * factor * c.first(scale) + c.first(offset), last=True)


@operator("GroupNormalization")
def _group(c: Context, node: Node, x: Value, scale: Value, offset: Value) -> Value:
    tf, tensor = c.tf, c.first(x)
    groups, shape = int(node.attributes["num_groups"]), c.shape_of(tensor)
    flat = tf.reshape(tensor, tf.stack([c.length(tensor, 0), groups, -1]))
    mean, variance = tf.nn.moments(flat, [2], keepdims=True)
    flat = (flat - mean) * tf.math.rsqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    ones = [1] * (x.rank - 2)
    scales, offsets = c.first(scale), c.first(offset)
    if node.version < 21:  # opset 18 to 20 gave one factor a group; 21 gives one a channel
        channels = x.dims[1]
        repeat = 1 if channels is None else channels // groups
        scales, offsets = tf.repeat(scales, repeat), tf.repeat(offsets, repeat)
    done = tf.reshape(flat, shape) * tf.reshape(scales, [-1, *ones]) + tf.reshape(offsets, [-1, *ones])
    return c.wrap(done)


def _only_first(node: Node) -> str:
    return "mean and deviation as outputs" if len([o for o in node.outputs if o]) > 1 else ""


@operator("LayerNormalization", refuse=_only_first)
def _layer(c: Context, node: Node, x: Value, scale: Value, offset: Value | None = None) -> Value:
    tf, tensor = c.tf, c.first(x)
    axis = int(node.attributes.get("axis", -1))
    axes = list(range(axis % x.rank, x.rank))
    mean, variance = tf.nn.moments(tensor, axes, keepdims=True)
    done = (tensor - mean) * tf.math.rsqrt(variance + float(node.attributes.get("epsilon", 1e-5))) * c.first(scale)
    return c.wrap(done if offset is None else done + c.first(offset))


@operator("LRN")
def _lrn(c: Context, node: Node, x: Value) -> Value:
    size, given = int(node.attributes["size"]), node.attributes
    alpha, beta, bias = (float(given.get(k, d)) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    if x.rank == 4 and size % 2 == 1:
        # ONNX divides alpha by the window, TensorFlow does not
        done = c.tf.nn.local_response_normalization(
            c.last(x), depth_radius=size // 2, bias=bias, alpha=alpha / size, beta=beta
        )
        return c.wrap(done, last=True)
    tf, tensor = c.tf, c.first(x)
    low, high = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = tf.pad(tf.square(tensor), [[0, 0], [low, high], *([[0, 0]] * (x.rank - 2))])
    count = c.length(tensor, 1)
    total = tf.add_n([squares[:, i : i + count] for i in range(size)])
    return c.wrap(tensor / tf.pow(bias + alpha / size * total, beta))


@operator("LpNormalization")
def _lp(c: Context, node: Node, x: Value) -> Value:
    tensor, last = c.native(x)
    axis = c.axis(int(node.attributes.get("axis", -1)), x.rank, last)
    order = 1 if int(node.attributes.get("p", 2)) == 1 else "euclidean"
    return c.wrap(c.tf.math.divide_no_nan(tensor, c.tf.norm(tensor, ord=order, axis=axis, keepdims=True)), last)
