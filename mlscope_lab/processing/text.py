"""Steps for bytes and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step
from mlscope_lab.processing.sources import read_bytes, source_name

__all__ = ["ByteWindows"]


@dataclass(frozen=True, kw_only=True)
class ByteWindows(Step):
    """Take the first and the last bytes of a file as integers, as Magika does.

    White space at the outer ends is dropped within the first and the last `block` bytes; what is missing is filled
    with `padding`, after the first bytes and before the last ones.

    Parameters
    ----------
    beginning, end
        How many bytes from either end.
    block
        How many bytes are looked at from either end.
    padding
        Stands for "no byte".
    minimum
        Fewest bytes, after leading white space, for which the model was made.
    strip
        Drop white space at the outer ends.

    References
    ----------
    Fratantonio et al., "Magika: AI-Powered Content-Type Detection", arXiv 2409.13768; the rule is that of the feature
    extraction in the Python package magika 1.0.3.
    """

    beginning: int = 1024
    end: int = 1024
    block: int = 4096
    padding: int = 256
    minimum: int = 8
    strip: bool = True

    def __post_init__(self) -> None:
        for name in ("beginning", "end", "minimum"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.beginning + self.end < 1:
            raise InputError("beginning and end must not both be 0")
        if self.block < max(self.beginning, self.end):
            raise InputError(f"block ({self.block}) must be at least as long as beginning and end")

    def __call__(self, value: Any) -> npt.NDArray[np.int32]:
        """Return int32 (beginning + end,)."""
        data = read_bytes(value)
        head, tail = data[: self.block], data[-self.block :]
        if self.strip:
            head, tail = head.lstrip(), tail.rstrip()
        if len(head) < self.minimum:
            raise InputError(
                f"{source_name(value)} holds {len(head)} bytes without leading white space, fewer than the "
                f"{self.minimum} that the model needs; give a longer file"
            )
        windows = np.full(self.beginning + self.end, self.padding, dtype=np.int32)
        first = head[: self.beginning]
        last = tail[len(tail) - min(len(tail), self.end) :]
        windows[: len(first)] = np.frombuffer(first, dtype=np.uint8)
        windows[windows.size - len(last) :] = np.frombuffer(last, dtype=np.uint8)
        return windows
