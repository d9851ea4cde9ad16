"""EfficientNet-Lite 0 to 4, with the parameter names of the published PyTorch weights.

The Lite family drops squeeze-and-excitation, replaces swish by ReLU6, and leaves the stem, the head, and the number of
blocks in the first and last stage unscaled. Convolutions pad like TensorFlow's ``SAME``, for the input size that the
variant was trained at.

References
----------
Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946; and the
README of efficientnet/lite in tensorflow/tpu for what makes it Lite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mlscope_lab.errors import InputError, nearest

__all__ = ["RESOLUTIONS", "EfficientNetLite", "build"]

# variant: width factor, depth factor, input height and width, dropout
_VARIANTS = {
    "lite0": (1.0, 1.0, 224, 0.2),
    "lite1": (1.0, 1.1, 240, 0.2),
    "lite2": (1.1, 1.2, 260, 0.3),
    "lite3": (1.2, 1.4, 280, 0.3),
    "lite4": (1.4, 1.8, 300, 0.3),
}
# blocks, kernel size, stride of the first block, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280

RESOLUTIONS = {variant: size for variant, (_, _, size, _) in _VARIANTS.items()}


def _scaled_channels(channels: int, width: float) -> int:
    """Scale to the nearest multiple of 8 that is not more than 10 % below."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class _SameConv2d(nn.Conv2d):  # type: ignore[misc]
    """A convolution that pads like TensorFlow's SAME for a square input of `size`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, size: int, stride: int = 1, groups: int = 1) -> None:
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        super().__init__(inputs, outputs, kernel, stride, padding=total // 2, groups=groups, bias=False)
        # the convolution itself pads both sides alike; SAME puts an odd pixel at the bottom and the right
        self._odd = total % 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._odd:
            near, far = self.padding[0], self.padding[0] + 1
            x = functional.pad(x, (near, far, near, far))
            return functional.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):  # type: ignore[misc]
    """Mobile inverted bottleneck: expand, depthwise, project, and a skip where shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self._expands = expansion != 1
        self._skips = stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv = _SameConv2d(inputs, inner, 1, size=size)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, size=size, stride=stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _SameConv2d(inner, outputs, 1, size=math.ceil(size / stride))
        self._bn2 = _norm(outputs)
        self._activation = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self._expands:
            y = self._activation(self._bn0(self._expand_conv(y)))
        y = self._activation(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._skips else y


class EfficientNetLite(nn.Module):  # type: ignore[misc]
    """An image classifier: float32[batch, 3, size, size] to logits float32[batch, num_classes].

    Meant for inference: stochastic depth, a regulariser of training, is left out.

    Attributes
    ----------
    image_size
        Height and width in pixels that the padding is made for.
    """

    def __init__(self, *, width: float, depth: float, size: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        self.image_size = size
        self._activation = nn.ReLU6()
        self._conv_stem = _SameConv2d(3, _STEM, 3, size=size, stride=2)
        self._bn0 = _norm(_STEM)
        size = math.ceil(size / 2)
        channels = _STEM
        self._blocks = nn.ModuleList()
        for index, (repeats, kernel, stride, expansion, outputs) in enumerate(_STAGES):
            scaled = _scaled_channels(outputs, width)
            fixed = index in (0, len(_STAGES) - 1)
            for repeat in range(repeats if fixed else math.ceil(repeats * depth)):
                step = stride if repeat == 0 else 1
                self._blocks.append(
                    _Block(channels, scaled, kernel=kernel, stride=step, expansion=expansion, size=size)
                )
                channels, size = scaled, math.ceil(size / step)
        self._conv_head = _SameConv2d(channels, _HEAD, 1, size=size)
        self._bn1 = _norm(_HEAD)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(_HEAD, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = self._activation(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = self._activation(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(self._avg_pooling(x).flatten(1)))


def build(*, variant: str = "lite0", num_classes: int = 1000) -> Any:
    """Build the network with freshly initialised weights.

    Parameters
    ----------
    variant
        "lite0" to "lite4".
    num_classes
        Length of the last axis of the logits.

    Returns
    -------
    torch.nn.Module
        In training mode, as every new module.

    Raises
    ------
    InputError
        If the variant is unknown or `num_classes` is not positive.
    """
    if variant not in _VARIANTS:
        known = list(_VARIANTS)
        raise InputError(
            f"efficientnet_lite has no variant '{variant}'. Known: {', '.join(known)}.{nearest(variant, known)}"
        )
    if num_classes < 1:
        raise InputError(f"efficientnet_lite: num_classes must be positive, not {num_classes}")
    width, depth, size, dropout = _VARIANTS[variant]
    return EfficientNetLite(width=width, depth=depth, size=size, dropout=dropout, num_classes=num_classes)
