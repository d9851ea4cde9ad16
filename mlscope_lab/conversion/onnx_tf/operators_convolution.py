"""Convolutions and poolings, all with the channels last, the only order in which TensorFlow convolves on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.values import Context, Value, operator
from mlscope_lab.conversion.onnx_tf.windows import Window, pads_of, same, window_of
from mlscope_lab.errors import ConversionError

__all__: list[str] = []

Tensor = Any


def _weights(c: Context, w: Value, groups: int, *, depthwise: bool = False) -> Tensor:
    """Return ONNX's [out, in/groups, *kernel] as TensorFlow's [*kernel, in/groups, out], or depthwise's form."""
    rank = w.rank
    spatial = list(range(2, rank))
    if depthwise:  # [groups*m, 1, *kernel] -> [*kernel, groups, m]
        lengths = [d if d is not None else -1 for d in w.dims]
        shape = [groups, lengths[0] // groups, *lengths[2:]]
        axes = [*(a for a in spatial), 0, 1]
        if w.constant is not None:
            return c.tensor(np.ascontiguousarray(w.constant.reshape(shape).transpose(axes)))
        return c.tf.transpose(c.tf.reshape(c.first(w), shape), axes)
    axes = [*spatial, 1, 0]
    if w.constant is not None:
        return c.tensor(np.ascontiguousarray(w.constant.transpose(axes)))
    return c.tf.transpose(c.first(w), axes)


def _two_dimensional(c: Context, x: Tensor, w: Tensor, window: Window, depthwise: bool) -> Tensor:
    tf = c.tf
    padding: Any = "VALID"
    if window.padded:
        padding = "SAME" if same(c, window, x) else pads_of(window)
    if depthwise:
        if not isinstance(padding, str):  # TensorFlow 2.21 aborts on a depthwise convolution with explicit padding
            x, padding = tf.pad(x, padding), "VALID"
        return tf.nn.depthwise_conv2d(x, w, [1, *window.strides, 1], padding, dilations=list(window.dilations))
    return tf.nn.conv2d(x, w, list(window.strides), padding, dilations=list(window.dilations))


def _n_dimensional(c: Context, x: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    tf = c.tf
    if window.padded:
        x = tf.pad(x, pads_of(window))

    def one(part: Tensor, kernel: Tensor) -> Tensor:
        return tf.nn.convolution(
            part, kernel, strides=list(window.strides), padding="VALID", dilations=list(window.dilations)
        )

    if groups == 1:
        return one(x, w)
    return tf.concat([one(a, b) for a, b in zip(tf.split(x, groups, -1), tf.split(w, groups, -1), strict=True)], -1)


@operator("Conv")
def _conv(c: Context, node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    tf, groups = c.tf, int(node.attributes.get("group", 1))
    tensor, kernel = c.last(x), [d for d in w.dims[2:] if d is not None]
    spatial = len(kernel)
    if spatial != w.rank - 2:
        raise ConversionError(f"{c.file}: the kernel size of Conv '{node.name}' is not known before the model runs")
    if spatial not in {1, 2, 3}:
        raise ConversionError(f"{c.file}: Conv '{node.name}' has {spatial} spatial axes; TensorFlow has 1 to 3")
    window = window_of(c, node, tensor, kernel)
    if spatial == 1:  # a row of a picture: groups, strides and dilations then all work
        tensor = tf.expand_dims(tensor, 1)
        window = Window(
            kernel=(1, *window.kernel),
            strides=(window.strides[0], *window.strides),
            dilations=(1, *window.dilations),
            pads=((0, 0), *window.pads),
            excess=(0, *window.excess),
        )
    if spatial == 3:
        if max(window.dilations) > 1 and max(window.strides) > 1:
            raise ConversionError(
                f"{c.file}: Conv '{node.name}' has strides and dilations in 3 dimensions; TensorFlow does one of them"
            )
        done = _n_dimensional(c, tensor, _weights(c, w, groups), window, groups)
    else:
        if not window.static:
            tensor = tf.pad(tensor, pads_of(window))
            zero = ((0, 0), (0, 0))
            window = Window(
                kernel=window.kernel, strides=window.strides, dilations=window.dilations, pads=zero, excess=(0, 0)
            )
        even = window.strides[0] == window.strides[1]
        plain = window.dilations == (1, 1) or (window.strides == (1, 1) and window.dilations[0] == window.dilations[1])
        depthwise = groups > 1 and groups == x.dims[1] and even and plain
        weights = _weights(c, w, groups, depthwise=depthwise)
        if spatial == 1:
            weights = tf.expand_dims(weights, 0)
        done = _two_dimensional(c, tensor, weights, window, depthwise)
    if spatial == 1:
        done = tf.squeeze(done, [1])
    if bias is not None:
        done = tf.nn.bias_add(done, c.first(bias))
    return c.wrap(done, last=True)


def _dilated(kernel: Any, dilations: list[int]) -> Any:
    """Spread a kernel [in, out, *spatial] with zeros, so that it needs no dilation."""
    size = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    wide = np.zeros((*kernel.shape[:2], *size), kernel.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = kernel
    return wide


@operator("ConvTranspose")
def _conv_transpose(c: Context, node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    tf, groups = c.tf, int(node.attributes.get("group", 1))
    tensor, kernel = c.last(x), c.constant(w, node, "the kernel")
    spatial = kernel.ndim - 2
    if spatial not in {1, 2, 3}:
        raise ConversionError(
            f"{c.file}: ConvTranspose '{node.name}' has {spatial} spatial axes; TensorFlow has 1 to 3"
        )
    strides = node.ints("strides", [1] * spatial)
    kernel = _dilated(kernel, node.ints("dilations", [1] * spatial))
    sizes = list(kernel.shape[2:])
    extra = node.ints("output_padding", [0] * spatial)
    lengths = [c.length(tensor, a + 1) for a in range(spatial)]
    pads = node.ints("pads", [0] * 2 * spatial)
    begins: list[Any] = list(pads[:spatial])
    auto = node.attributes.get("auto_pad", "NOTSET")
    wanted: list[Any] = [
        strides[a] * (lengths[a] - 1) + extra[a] + sizes[a] - pads[a] - pads[a + spatial] for a in range(spatial)
    ]
    if "output_shape" in node.attributes or auto in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = list(node.ints("output_shape")) or [n * s for n, s in zip(lengths, strides, strict=True)]
        for a in range(spatial):
            total = strides[a] * (lengths[a] - 1) + extra[a] + sizes[a] - wanted[a]
            begins[a] = total // 2 if auto == "SAME_UPPER" else total - total // 2
    full = [strides[a] * (lengths[a] - 1) + max(sizes[a], strides[a]) for a in range(spatial)]
    # TensorFlow's [*kernel, out, in] of each group; the transposed convolution is that of VALID padding, then cropped
    parts = tf.split(tensor, groups, -1) if groups > 1 else [tensor]
    kernels = np.split(kernel, groups, 0)
    batch = c.length(tensor, 0)
    done = []
    for part, one in zip(parts, kernels, strict=True):
        shape = tf.stack([batch, *full, one.shape[1]])
        weights = c.tensor(np.ascontiguousarray(one.transpose(*range(2, spatial + 2), 1, 0)))
        done.append(tf.nn.conv_transpose(part, weights, shape, strides, padding="VALID"))
    whole = done[0] if groups == 1 else tf.concat(done, -1)
    missing = [begins[a] + wanted[a] - full[a] for a in range(spatial)]
    if not all(isinstance(m, int) and m <= 0 for m in missing) or any(isinstance(b, int) and b < 0 for b in begins):
        after = [max(m, 0) if isinstance(m, int) else tf.maximum(m, 0) for m in missing]
        before = [max(-b, 0) if isinstance(b, int) else tf.maximum(-b, 0) for b in begins]
        whole = tf.pad(whole, [[0, 0], *([b, a] for b, a in zip(before, after, strict=True)), [0, 0]])
        begins = [b + p for b, p in zip(begins, before, strict=True)]
    crop = tuple(slice(b, b + n) for b, n in zip(begins, wanted, strict=True))
    whole = whole[(slice(None), *crop, slice(None))]
    return c.wrap(whole if bias is None else tf.nn.bias_add(whole, c.first(bias)), last=True)


def _pooled(c: Context, node: Node, tensor: Tensor, window: Window, kind: str, padding: Any) -> Tensor:
    if max(window.dilations) > 1 and max(window.strides) > 1:
        raise ConversionError(
            f"{c.file}: {node.op} '{node.name}' has strides and dilations; TensorFlow does one of them"
        )
    if max(window.dilations) == 1:  # unlike tf.nn.pool these take strides that exceed the window
        pool = c.tf.nn.max_pool if kind == "MAX" else c.tf.nn.avg_pool
        return pool(tensor, list(window.kernel), list(window.strides), padding)
    return c.tf.nn.pool(
        tensor, list(window.kernel), kind, list(window.strides), padding, dilations=list(window.dilations)
    )


def _indices(node: Node) -> str:
    if len([o for o in node.outputs if o]) > 1:
        return "indices as output"
    return "column-major storage" if node.attributes.get("storage_order") else ""


@operator("MaxPool", refuse=_indices)
def _max_pool(c: Context, node: Node, x: Value) -> Value:
    tf, tensor = c.tf, c.last(x)
    window = window_of(c, node, tensor, node.ints("kernel_shape"))
    if window.static and len(window.kernel) == 2 and window.dilations == (1, 1) and tensor.dtype.is_floating:
        padding: Any = pads_of(window) if window.padded else "VALID"
        return c.wrap(tf.nn.max_pool2d(tensor, list(window.kernel), list(window.strides), padding), last=True)
    dtype = tensor.dtype
    if window.padded:
        lowest = -np.inf if dtype.is_floating else dtype.min
        tensor = tf.pad(tensor, pads_of(window), constant_values=tf.constant(lowest, dtype))
    if dtype.is_integer and len(window.kernel) != 2:
        raise ConversionError(f"{c.file}: MaxPool '{node.name}' pools integers along {len(window.kernel)} axes")
    return c.wrap(_pooled(c, node, tensor, window, "MAX", "VALID"), last=True)


@operator("AveragePool")
def _average_pool(c: Context, node: Node, x: Value) -> Value:
    tf, tensor = c.tf, c.last(x)
    window = window_of(c, node, tensor, node.ints("kernel_shape"))
    if not window.padded:
        return c.wrap(_pooled(c, node, tensor, window, "AVG", "VALID"), last=True)
    count_padding = bool(node.attributes.get("count_include_pad"))
    if not count_padding and same(c, window, tensor):
        return c.wrap(_pooled(c, node, tensor, window, "AVG", "SAME"), last=True)
    spatial = [c.length(tensor, a + 1) for a in range(len(window.kernel))]
    done = _pooled(c, node, tf.pad(tensor, pads_of(window)), window, "AVG", "VALID")
    if count_padding and window.static and not any(window.excess):
        return c.wrap(done, last=True)
    # the share of each window that counts; dividing by it turns the padded average into that of the counted part
    ones = tf.ones(tf.stack([1, *spatial, 1]), tensor.dtype)
    inner = [[0, 0], *([b, a] for b, a in window.pads), [0, 0]]
    outer = [[0, 0], *([0, e] for e in window.excess), [0, 0]]
    mask = tf.pad(tf.pad(ones, inner, constant_values=1 if count_padding else 0), outer)
    return c.wrap(done / _pooled(c, node, mask, window, "AVG", "VALID"), last=True)


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global(c: Context, node: Node, x: Value) -> Value:
    reduce = c.tf.reduce_mean if node.op == "GlobalAveragePool" else c.tf.reduce_max
    return c.wrap(reduce(c.last(x), list(range(1, x.rank - 1)), keepdims=True), last=True)
