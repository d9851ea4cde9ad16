"""Operators that move, cut and join: what they copy is what they were given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.operators_reduction import axes_of
from mlscope_lab.conversion.onnx_tf.values import Context, Value, first_axes, last_axes, operator
from mlscope_lab.errors import ConversionError

__all__: list[str] = []

Tensor = Any


def _ordered(c: Context, x: Value) -> Tensor:
    """Return a tensor whose elements lie in ONNX's order, not necessarily in its shape; transpose if it must."""
    if x.first is None and x.last is not None and all(d == 1 for d in x.dims[2:]):
        return x.last  # [N, 1, 1, C] and [N, C, 1, 1] are the same bytes
    return c.first(x)


def _ints(c: Context, value: Value) -> Any:
    """Return a shape operand as a list of numbers, or as an int32 tensor."""
    known = c.known(value)
    return [int(v) for v in known.reshape(-1)] if known is not None else c.tf.cast(c.first(value), c.tf.int32)


@operator("Reshape")
def _reshape(c: Context, node: Node, x: Value, shape: Value | None = None) -> Value:
    tf = c.tf
    target: Any = node.ints("shape") if shape is None else _ints(c, shape)
    if isinstance(target, list) and not node.attributes.get("allowzero"):
        zeros = [i for i, d in enumerate(target) if d == 0]
        dims = x.dims
        if any(dims[i] is None for i in zeros):
            if len(zeros) == 1 and -1 not in target and sum(d is None for d in dims) == 1:
                target = [-1 if d == 0 else d for d in target]
            else:
                own = tf.shape(c.first(x))
                target = tf.stack([own[i] if d == 0 else d for i, d in enumerate(target)])
        else:
            target = [dims[i] if d == 0 else d for i, d in enumerate(target)]
    elif not isinstance(target, list) and not node.attributes.get("allowzero"):
        length = target.shape[0]
        if length is not None and length <= x.rank:
            target = tf.where(target == 0, tf.shape(c.first(x))[:length], target)
    return c.wrap(tf.reshape(_ordered(c, x), target))


@operator("Flatten")
def _flatten(c: Context, node: Node, x: Value) -> Value:
    tf, axis = c.tf, int(node.attributes.get("axis", 1))
    axis = axis + x.rank if axis < 0 else axis
    dims = x.dims
    head, tail = (None if None in part else math.prod(d or 0 for d in part) for part in (dims[:axis], dims[axis:]))
    if tail:
        return c.wrap(tf.reshape(_ordered(c, x), [-1, tail]))
    if head:
        return c.wrap(tf.reshape(_ordered(c, x), [head, -1]))
    tensor = c.first(x)
    return c.wrap(tf.reshape(tensor, tf.stack([tf.reduce_prod(tf.shape(tensor)[:axis]), -1])))


@operator("Transpose")
def _transpose(c: Context, node: Node, x: Value) -> Value:
    rank = x.rank
    axes = node.ints("perm", list(range(rank))[::-1])
    tensor, last = c.native(x)
    if last:
        axes = [last_axes(rank).index(a) for a in axes]
    if axes == list(range(rank)):
        return c.wrap(tensor)
    if rank >= 3 and not last and axes == first_axes(rank):
        return Value(last=tensor, native_last=True)  # what was given as NHWC becomes NCHW: only the label changes
    return c.wrap(c.tf.transpose(tensor, axes))


@operator("Concat")
def _concat(c: Context, node: Node, *parts: Value) -> Value:
    rank, axis = parts[0].rank, int(node.attributes["axis"])
    last = rank >= 3 and any(p.native_last for p in parts)
    tensors = [c.last(p) if last else c.first(p) for p in parts]
    return c.wrap(c.tf.concat(tensors, c.axis(axis, rank, last)) if len(tensors) > 1 else tensors[0], last)


@operator("Split")
def _split(c: Context, node: Node, x: Value, sizes: Value | None = None) -> tuple[Value, ...]:
    tensor, last = c.native(x)
    axis = c.axis(int(node.attributes.get("axis", 0)), x.rank, last)
    count = len(node.outputs)
    if sizes is not None:
        parts: Any = _ints(c, sizes)
    elif "split" in node.attributes:
        parts = node.ints("split")
    else:
        length = tensor.shape[axis]
        if length is None or length % count == 0:
            parts = count
        else:  # opset 18: all parts equal but a shorter last one
            size = -(-int(length) // count)
            parts = [size] * (count - 1) + [int(length) - size * (count - 1)]
    return tuple(c.wrap(t, last) for t in c.tf.split(tensor, parts, axis, num=count))


@operator("Slice")
def _slice(
    c: Context, node: Node, x: Value, starts: Value | None = None, ends: Value | None = None,
    axes: Value | None = None, steps: Value | None = None,
) -> Value:  # fmt: skip
    rank = x.rank
    if starts is None or ends is None:
        begin: Any = node.ints("starts")
        end: Any = node.ints("ends")
        chosen = node.ints("axes", list(range(len(begin))))
        stride = [1] * len(begin)
    else:
        begin, end = _ints(c, starts), _ints(c, ends)
        count = len(begin) if isinstance(begin, list) else begin.shape[0]
        if count is None:
            raise ConversionError(f"{c.file}: Slice '{node.name}' cuts a number of axes known only while running")
        chosen = list(range(count)) if axes is None else [int(a) for a in c.constant(axes, node, "the axes")]
        stride = [1] * count if steps is None else [int(s) for s in c.constant(steps, node, "the steps")]
    tensor, last = c.native(x)
    cuts: list[Any] = [slice(None)] * rank
    for i, axis in enumerate(chosen):
        low, high, step = begin[i], end[i], stride[i]
        if step < 0 and isinstance(high, int):
            length = x.dims[axis % rank]
            if high < -(length if length is not None else 1 << 30):
                high = None  # to the very beginning, which no index names
        elif isinstance(high, int) and high >= 2**31 - 1:
            high = None
        if isinstance(low, int) and abs(low) >= 2**31 - 1:
            low = None
        cuts[c.axis(axis, rank, last)] = slice(low, high, step)
    return c.wrap(tensor[tuple(cuts)], last)


@operator("Pad")
def _pad(
    c: Context, node: Node, x: Value, pads: Value | None = None, fill: Value | None = None, axes: Value | None = None
) -> Value:
    tf, rank = c.tf, x.rank
    amounts = node.ints("pads") or node.ints("paddings") if pads is None else _ints(c, pads)
    chosen = list(range(rank)) if axes is None else [int(a) % rank for a in c.constant(axes, node, "the axes")]
    tensor, last = c.native(x)
    table: list[list[Any]] = [[0, 0] for _ in range(rank)]
    cuts: list[Any] = [slice(None)] * rank
    for i, axis in enumerate(chosen):
        where = c.axis(axis, rank, last)
        low, high = amounts[i], amounts[i + len(chosen)]
        if isinstance(low, int) and (low < 0 or high < 0):
            cuts[where] = slice(max(-low, 0) or None, min(high, 0) or None)
            low, high = max(low, 0), max(high, 0)
        table[where] = [low, high]
    if any(cut != slice(None) for cut in cuts):
        tensor = tensor[tuple(cuts)]
    mode = node.attributes.get("mode", "constant")
    if mode == "constant":
        value = (
            tf.reshape(c.first(fill), [])
            if fill is not None
            else tf.cast(node.attributes.get("value", 0), tensor.dtype)
        )
        return c.wrap(tf.pad(tensor, table, constant_values=value), last)
    if mode == "reflect":
        return c.wrap(tf.pad(tensor, table, mode="REFLECT"), last)
    for axis, (low, high) in enumerate(table):  # edge and wrap: gather the rows wanted along each axis in turn
        if isinstance(low, int) and isinstance(high, int) and low == high == 0:
            continue
        length = c.length(tensor, axis)
        rows = tf.range(-low, length + high)
        rows = tf.math.floormod(rows, length) if mode == "wrap" else tf.clip_by_value(rows, 0, length - 1)
        tensor = tf.gather(tensor, rows, axis=axis)
    return c.wrap(tensor, last)


@operator("Squeeze")
def _squeeze(c: Context, node: Node, x: Value, axes: Value | None = None) -> Value:
    rank = x.rank
    chosen = axes_of(c, node, axes, None)
    if chosen is None:
        chosen = [i for i, d in enumerate(x.dims) if d == 1]
    gone = {a % rank for a in chosen}
    tensor, last = c.native(x)
    left = [a for a in last_axes(rank) if a not in gone] if last else []
    if last and left != sorted(left):
        tensor, last = c.first(x), False
    where = [c.axis(a, rank, last) for a in sorted(gone)]
    return c.wrap(c.tf.squeeze(tensor, where) if where else tensor)


@operator("Unsqueeze")
def _unsqueeze(c: Context, node: Node, x: Value, axes: Value | None = None) -> Value:
    chosen = axes_of(c, node, axes, []) or []
    rank = x.rank + len(chosen)
    tensor = c.first(x)
    for axis in sorted(a % rank for a in chosen):
        tensor = c.tf.expand_dims(tensor, axis)
    return c.wrap(tensor)


@operator("Shape")
def _shape(c: Context, node: Node, x: Value) -> Value:
    tf, dims = c.tf, x.dims
    first, stop = int(node.attributes.get("start", 0)), node.attributes.get("end")
    window = slice(first, None if stop is None else int(stop))
    if None not in dims[window]:
        return Value(constant=np.asarray(dims[window], np.int64))
    tensor, last = c.native(x)
    shape = tf.shape(tensor, out_type=tf.int64)
    if last:
        shape = tf.gather(shape, first_axes(x.rank))
    return c.wrap(tf.stack([shape[i] if d is None else d for i, d in enumerate(dims)])[window])


@operator("Size")
def _size(c: Context, node: Node, x: Value) -> Value:
    return c.wrap(c.tf.size(c.native(x)[0], out_type=c.tf.int64))


@operator("Constant")
def _constant(c: Context, node: Node) -> Value:
    given = node.attributes
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                        ("value_ints", np.int64)):  # fmt: skip
        if name in given:
            return Value(constant=np.asarray(given[name], dtype))
    for name in ("value_string", "value_strings"):
        if name in given:
            return Value(constant=np.asarray(given[name], object))
    return Value(constant=given["value"])


@operator("ConstantOfShape")
def _constant_of_shape(c: Context, node: Node, shape: Value) -> Value:
    fill = node.attributes.get("value", np.zeros(1, np.float32)).reshape(-1)[0]
    known = c.known(shape)
    if known is not None:
        return Value(constant=np.full([int(d) for d in known], fill))
    return c.wrap(c.tf.fill(c.first(shape), fill))


@operator("Range")
def _range(c: Context, node: Node, start: Value, limit: Value, delta: Value) -> Value:
    return c.wrap(c.tf.range(*(c.tf.reshape(c.first(v), []) for v in (start, limit, delta))))


@operator("Expand")
def _expand(c: Context, node: Node, x: Value, shape: Value) -> Value:
    tf, tensor = c.tf, c.first(x)
    target = _ints(c, shape)
    if isinstance(target, list):
        dims = [None] * (len(target) - x.rank) + x.dims
        known = [1] * (x.rank - len(target)) + target
        if all(t != 1 or d == 1 for t, d in zip(known, dims, strict=True) if d is not None or t == 1):
            return c.wrap(tf.broadcast_to(tensor, known))
    # both directions broadcast, so the length is the larger of the two
    return c.wrap(tf.broadcast_to(tensor, tf.broadcast_dynamic_shape(tf.shape(tensor), tf.cast(target, tf.int32))))


@operator("Tile")
def _tile(c: Context, node: Node, x: Value, repeats: Value) -> Value:
    return c.wrap(c.tf.tile(c.first(x), _ints(c, repeats)))


def _modes(node: Node) -> str:
    return "" if node.attributes.get("reduction", "none") == "none" else f"reduction={node.attributes['reduction']}"


def _positive(c: Context, indices: Tensor, length: Any) -> Tensor:
    """Count negative indices from the end."""
    return c.tf.where(indices < 0, indices + c.tf.cast(length, indices.dtype), indices)


@operator("Gather")
def _gather(c: Context, node: Node, x: Value, indices: Value) -> Value:
    axis = int(node.attributes.get("axis", 0)) % x.rank
    tensor = c.first(x)
    length = c.length(tensor, axis)
    if indices.constant is not None and isinstance(length, int):
        rows: Any = np.where(indices.constant < 0, indices.constant + length, indices.constant)
    elif indices.constant is not None and (indices.constant >= 0).all():
        rows = indices.constant
    else:
        rows = _positive(c, c.first(indices), length)
    if isinstance(rows, np.ndarray) and rows.ndim == 0:  # a plain index, which keeps shapes known to TensorFlow
        return c.wrap(tensor[(*([slice(None)] * axis), int(rows))])
    return c.wrap(c.tf.gather(tensor, rows, axis=axis))


@operator("GatherElements")
def _gather_elements(c: Context, node: Node, x: Value, indices: Value) -> Value:
    tf, rank = c.tf, x.rank
    axis = int(node.attributes.get("axis", 0)) % rank
    tensor, rows = c.first(x), c.first(indices)
    rows = tf.cast(_positive(c, rows, c.length(tensor, axis)), tf.int64)
    shape = tf.shape(rows, out_type=tf.int64)
    grid = tf.meshgrid(*(tf.range(shape[a]) for a in range(rank)), indexing="ij")
    grid[axis] = rows
    return c.wrap(tf.gather_nd(tensor, tf.stack(grid, -1)))


def _wrapped(c: Context, tensor: Tensor, indices: Tensor, batch: int) -> Tensor:
    lengths = c.tf.shape(tensor, out_type=indices.dtype)[batch : batch + indices.shape[-1]]
    return c.tf.where(indices < 0, indices + lengths, indices)


@operator("GatherND")
def _gather_nd(c: Context, node: Node, x: Value, indices: Value) -> Value:
    batch, tensor = int(node.attributes.get("batch_dims", 0)), c.first(x)
    return c.wrap(c.tf.gather_nd(tensor, _wrapped(c, tensor, c.first(indices), batch), batch_dims=batch))


@operator("ScatterND", refuse=_modes)
def _scatter_nd(c: Context, node: Node, x: Value, indices: Value, updates: Value) -> Value:
    tensor = c.first(x)
    return c.wrap(c.tf.tensor_scatter_nd_update(tensor, _wrapped(c, tensor, c.first(indices), 0), c.first(updates)))


@operator("NonZero")
def _non_zero(c: Context, node: Node, x: Value) -> Value:
    tf, tensor = c.tf, c.first(x)
    return c.wrap(tf.transpose(tf.where(tensor if tensor.dtype == tf.bool else tf.not_equal(tensor, 0))))


@operator("OneHot")
def _one_hot(c: Context, node: Node, indices: Value, depth: Value, values: Value) -> Value:
    tf, pair, rows = c.tf, c.first(values), c.first(indices)
    count = tf.cast(tf.reshape(c.first(depth), []), tf.int32)
    rows = tf.cast(rows, tf.int64)
    rows = tf.where(rows < 0, rows + tf.cast(count, tf.int64), rows)
    axis = int(node.attributes.get("axis", -1))
    return c.wrap(tf.one_hot(rows, count, pair[1], pair[0], axis=axis))


@operator("Trilu")
def _trilu(c: Context, node: Node, x: Value, k: Value | None = None) -> Value:
    tf, tensor = c.tf, c.first(x)
    shift = 0 if k is None else int(c.constant(k, node, "k").reshape(-1)[0])
    rows = tf.range(c.length(tensor, -2))[:, None]
    columns = tf.range(c.length(tensor, -1))[None, :]
    kept = columns - rows >= shift if node.attributes.get("upper", 1) else columns - rows <= shift
    return c.wrap(tf.where(kept, tensor, tf.zeros_like(tensor)))


@operator("DepthToSpace", "SpaceToDepth")
def _depth_space(c: Context, node: Node, x: Value) -> Value:
    tf, block = c.tf, int(node.attributes["blocksize"])
    if node.op == "SpaceToDepth":
        return c.wrap(tf.nn.space_to_depth(c.last(x), block), last=True)
    if node.attributes.get("mode", "DCR") == "DCR":
        return c.wrap(tf.nn.depth_to_space(c.last(x), block), last=True)
    tensor = c.first(x)  # CRD: the block's place varies fastest within a channel
    n, depth, h, w = (c.length(tensor, a) for a in range(4))
    apart = tf.reshape(tensor, tf.stack([n, depth // block**2, block, block, h, w]))
    moved = tf.transpose(apart, [0, 1, 4, 2, 5, 3])
    return c.wrap(tf.reshape(moved, tf.stack([n, depth // block**2, h * block, w * block])))
