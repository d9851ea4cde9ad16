"""Arithmetic of sliding windows: how much padding a convolution or pooling of ONNX means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.conversion.onnx_tf.values import Context
from mlscope_lab.errors import ConversionError

__all__ = ["Window", "pads_of", "same", "window_of"]

Length = Any  # int, or an int32 scalar tensor where the length is dynamic


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window over the spatial axes.

    Attributes
    ----------
    kernel, strides, dilations
        Per spatial axis.
    pads
        Per spatial axis what ONNX pads before and after.
    excess
        Per spatial axis what ceil_mode adds after that; never counted by an average.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[Length, Length], ...]
    excess: tuple[Length, ...]

    @property
    def static(self) -> bool:
        """True if every number is known at conversion."""
        return all(isinstance(n, int) for pair in self.pads for n in pair) and all(
            isinstance(n, int) for n in self.excess
        )

    @property
    def total(self) -> list[list[Length]]:
        """Padding per spatial axis, the excess included."""
        return [[before, after + more] for (before, after), more in zip(self.pads, self.excess, strict=True)]

    @property
    def padded(self) -> bool:
        """True if anything is padded."""
        return not self.static or any(n for pair in self.total for n in pair)


def _at_least_zero(c: Context, length: Length) -> Length:
    return max(length, 0) if isinstance(length, int) else c.tf.maximum(length, 0)


def window_of(c: Context, node: Node, tensor: Any, kernel: Sequence[int]) -> Window:
    """Return the window of a convolution or pooling over a channels-last tensor.

    References
    ----------
    ONNX operator schemas of Conv, MaxPool and AveragePool (auto_pad, ceil_mode).
    """
    rank = len(kernel)
    strides = node.ints("strides", [1] * rank)
    dilations = node.ints("dilations", [1] * rank)
    given = node.ints("pads", [0] * 2 * rank)
    auto = node.attributes.get("auto_pad", "NOTSET")
    pads: list[tuple[Length, Length]] = []
    excess: list[Length] = []
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        stride, size = strides[axis], c.length(tensor, axis + 1)
        before, after, more = given[axis], given[axis + rank], 0
        if auto in {"SAME_UPPER", "SAME_LOWER"}:
            total = _at_least_zero(c, (-(-size // stride) - 1) * stride + reach - size)
            half = total // 2
            before, after = (half, total - half) if auto == "SAME_UPPER" else (total - half, half)
        elif auto == "VALID":
            before = after = 0
        if node.attributes.get("ceil_mode") and auto in {"NOTSET", "VALID"}:
            span = size + before + after - reach
            steps = -(-span // stride)
            overshoot = steps * stride - span
            # a last window that would begin beyond the input and its leading padding is left out
            if isinstance(steps, int):
                more = overshoot if steps * stride < size + before else 0
            else:
                more = c.tf.where(steps * stride < size + before, overshoot, 0)
        pads.append((before, after))
        excess.append(more)
    if any(isinstance(n, int) and n < 0 for pair in pads for n in pair):
        raise ConversionError(f"{c.file}: {node.op} '{node.name}' has negative padding")
    return Window(
        kernel=tuple(kernel),
        strides=tuple(strides),
        dilations=tuple(dilations),
        pads=tuple(pads),
        excess=tuple(excess),
    )


def pads_of(window: Window) -> list[list[Length]]:
    """Return the padding of a channels-last tensor, batch and channels included."""
    return [[0, 0], *window.total, [0, 0]]


def same(c: Context, window: Window, tensor: Any) -> bool:
    """Tell whether the padding is what TensorFlow calls SAME for a tensor of this static size."""
    if not window.static or any(window.excess):
        return False
    for axis, (stride, reach) in enumerate(
        (s, (k - 1) * d + 1) for s, k, d in zip(window.strides, window.kernel, window.dilations, strict=True)
    ):
        size = c.length(tensor, axis + 1)
        if not isinstance(size, int):
            return False
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        if window.pads[axis] != (total // 2, total - total // 2):
            return False
    return True
