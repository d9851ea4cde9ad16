"""Two networks as PyTorch modules with random weights, where no package carries them for PyTorch.

References
----------
Iandola et al., "SqueezeNet", arXiv 1602.07360 (version 1.1 of the authors' repository). Huang et al., "Densely
Connected Convolutional Networks", arXiv 1608.06993 (DenseNet-121: growth 32, blocks of 6, 12, 24 and 16).
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["densenet121", "squeezenet"]


class _Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, taken: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(taken, squeezed, 1), nn.ReLU())
        self.small = nn.Sequential(nn.Conv2d(squeezed, expanded, 1), nn.ReLU())
        self.large = nn.Sequential(nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x)
        return torch.cat([self.small(x), self.large(x)], dim=1)


def squeezenet() -> nn.Module:
    """Return SqueezeNet 1.1 for pictures of 3 x 224 x 224 and 1000 classes."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(),
        _Fire(64, 16, 64), _Fire(128, 16, 64), pool(),
        _Fire(128, 32, 128), _Fire(256, 32, 128), pool(),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
        nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip


class _DenseLayer(nn.Module):
    """Add channels that are made from all channels so far."""

    def __init__(self, taken: int, growth: int) -> None:
        super().__init__()
        inner = 4 * growth
        self.body = nn.Sequential(
            nn.BatchNorm2d(taken), nn.ReLU(), nn.Conv2d(taken, inner, 1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def densenet121() -> nn.Module:
    """Return DenseNet-121 for pictures of 3 x 224 x 224 and 1000 classes."""
    growth, channels = 32, 64
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]  # fmt: skip
    for number, count in enumerate((6, 12, 24, 16)):
        if number:
            halved = channels // 2
            layers.append(
                nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, halved, 1, bias=False),
                              nn.AvgPool2d(2))
            )  # fmt: skip
            channels = halved
        for _ in range(count):
            layers.append(_DenseLayer(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers).eval()
