"""Resize and Upsample: nearest and linear, for the ways of placing samples that occur in published models."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.values import Context, Value, operator
from mlscope_lab.errors import ConversionError

__all__: list[str] = []

_PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def _refuse(node: Node) -> str:
    given = node.attributes
    mode = given.get("mode", "nearest")
    if mode not in {"nearest", "linear"}:
        return f"mode={mode}"
    place = given.get("coordinate_transformation_mode", "half_pixel")
    if place not in _PLACES:
        return f"coordinate_transformation_mode={place}"
    if given.get("antialias"):
        return "antialias=1"
    policy = given.get("keep_aspect_ratio_policy", "stretch")
    return "" if policy == "stretch" else f"keep_aspect_ratio_policy={policy}"


def _positions(c: Context, place: str, length: Any, wanted: Any, scale: Any) -> Any:
    """Return where each sample of an axis lies in the source (float32)."""
    tf = c.tf
    index = tf.cast(tf.range(wanted), tf.float32)
    if place == "align_corners":
        steps = tf.cast(tf.maximum(wanted - 1, 1), tf.float32)
        return index * (tf.cast(length - 1, tf.float32) / steps)
    if place == "asymmetric":
        return index / scale
    at = (index + 0.5) / scale - 0.5
    return tf.where(wanted > 1, at, tf.zeros_like(at)) if place == "pytorch_half_pixel" else at


def _rounded(c: Context, at: Any, mode: str) -> Any:
    tf = c.tf
    if mode == "floor":
        return tf.floor(at)
    if mode == "ceil":
        return tf.math.ceil(at)
    return tf.math.ceil(at - 0.5) if mode == "round_prefer_floor" else tf.floor(at + 0.5)


def _along(c: Context, node: Node, tensor: Any, axis: int, wanted: Any, scale: Any) -> Any:
    """Resize one axis."""
    tf, length = c.tf, c.length(tensor, axis)
    old = node.op == "Upsample" or node.version < 11
    place = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    at = _positions(c, place, length, wanted, scale)
    if node.attributes.get("mode", "nearest") == "nearest":
        how = "floor" if old else node.attributes.get("nearest_mode", "round_prefer_floor")
        rows = tf.clip_by_value(tf.cast(_rounded(c, at, how), tf.int32), 0, length - 1)
        return tf.gather(tensor, rows, axis=axis)
    at = tf.clip_by_value(at, 0.0, tf.cast(length - 1, tf.float32))
    low = tf.floor(at)
    share = tf.cast(at - low, tensor.dtype)
    rows = tf.cast(low, tf.int32)
    share = tf.reshape(share, [-1 if a == axis else 1 for a in range(tensor.shape.rank)])
    near, far = tf.gather(tensor, rows, axis=axis), tf.gather(tensor, tf.minimum(rows + 1, length - 1), axis=axis)
    return near + (far - near) * share


@operator("Resize", "Upsample", refuse=_refuse)
def _resize(c: Context, node: Node, x: Value, *operands: Value | None) -> Value:
    tf, rank = c.tf, x.rank
    sizes = operands[2] if len(operands) > 2 else None
    scales = operands[1] if len(operands) > 1 else None
    if node.op == "Upsample" or node.version < 11:
        scales = operands[0] if operands else Value(constant=np.asarray(node.attributes["scales"], np.float32))
    tensor, last = c.native(x)
    axes = [a % rank for a in node.ints("axes", list(range(rank)))]
    if sizes is not None:
        known_sizes, known_scales = c.known(sizes), None
    elif scales is not None and c.known(scales) is not None:
        known_sizes, known_scales = None, c.known(scales)
    else:
        raise ConversionError(f"{c.file}: the scales of {node.op} '{node.name}' are computed while the model runs")
    for i, axis in enumerate(axes):
        where = c.axis(axis, rank, last)
        length = c.length(tensor, where)
        if known_scales is not None:
            scale: Any = float(known_scales[i])
            if scale == 1.0:
                continue
            wanted: Any = (
                int(np.floor(length * scale))
                if isinstance(length, int)
                else tf.cast(tf.floor(tf.cast(length, tf.float32) * scale), tf.int32)
            )
        else:
            wanted = int(known_sizes[i]) if known_sizes is not None else tf.cast(c.first(sizes)[i], tf.int32)  # type: ignore[arg-type]
            if wanted is length or (isinstance(wanted, int) and wanted == length):
                continue
            scale = tf.cast(wanted, tf.float32) / tf.cast(length, tf.float32)
        tensor = _along(c, node, tensor, where, wanted, scale)
    return c.wrap(tensor, last)
