"""Tensors as tables: cut into pieces that stay in the cache, each row or column belonging to one channel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PIECE", "Layout", "Piece", "layout_of", "pieces"]

Array = npt.NDArray[Any]

PIECE = 1 << 16
"""Elements a piece at most: a dozen buffers of it fit the second-level cache."""
_WIDE = 32


@dataclass(frozen=True)
class Layout:
    """How a tensor is a table of ``rows`` by ``width``.

    Attributes
    ----------
    shape
        Of the tensor: outer axes, channels, inner axes, each group as one.
    across
        Whether a column is a channel; else a row is, the channels following each other over and over.
    """

    shape: tuple[int, int, int]
    across: bool

    @property
    def table(self) -> tuple[int, int]:
        """Rows and width."""
        outer, channels, inner = self.shape
        return (outer, channels) if self.across else (outer * channels, inner)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[1]


@dataclass(frozen=True)
class Piece:
    """A block of a table: rows and columns from where to where."""

    row: int
    rows: int
    column: int
    width: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows * self.width

    def place(self, index: int, layout: Layout) -> int:
        """Return the position in the flat tensor of an element of the flat piece."""
        width = layout.table[1]
        return (self.row + index // self.width) * width + self.column + index % self.width


def layout_of(shape: tuple[int, ...], channel_axis: int | None) -> Layout:
    """Return the layout of a tensor; without a channel axis all of it is one channel."""
    if channel_axis is None or not shape:
        return Layout((1, 1, math.prod(shape)), across=False)
    axis = channel_axis % len(shape)
    outer, channels, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    return Layout((outer, channels, inner), across=inner == 1)


def _blocks(rows: int, width: int, offset: int, room: int, wide: bool) -> Iterator[Piece]:
    """Cut rows of a table, `wide` ones so that a piece has many rows even if they are long."""
    step = max(1, min(rows, room // max(width, 1), rows))
    if wide:
        step = max(step, min(rows, _WIDE))
    across = max(1, min(width, room // step))
    for row in range(0, rows, step):
        for column in range(0, width, across):
            yield Piece(offset + row, min(step, rows - row), column, min(across, width - column))


def pieces(layout: Layout, a: Array, b: Array, room: int = PIECE) -> Iterator[tuple[Piece, Array, Array]]:
    """Yield pieces of two tensors of one layout, each as a table; views where that is possible.

    A tensor that is only seen through a transposition is read in blocks of many channels, so that whole lines of the
    cache are used.
    """
    outer, channels, inner = layout.shape
    rows, width = layout.table
    if not rows * width:
        return
    flat = a.flags.c_contiguous and b.flags.c_contiguous
    if flat or layout.across or channels == 1:
        one, other = a.reshape(rows, width), b.reshape(rows, width)
        for piece in _blocks(rows, width, 0, room, wide=False):
            block = np.s_[piece.row : piece.row + piece.rows, piece.column : piece.column + piece.width]
            yield piece, one[block], other[block]
        return
    solid, loose = a.reshape(layout.shape), b.reshape(layout.shape)
    for index in range(outer):
        for piece in _blocks(channels, inner, index * channels, room, wide=True):
            first = piece.row - index * channels
            part = np.s_[index, first : first + piece.rows, piece.column : piece.column + piece.width]
            yield piece, solid[part], loose[part]
