"""Adding one piece of two tensors to the totals: in as few passes as numpy allows, over buffers that stay in the cache.

Numbers are float32 where they only choose a bin, and float64 in every sum and extreme.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.numerics import totals as of
from mlscope_lab.numerics.bins import (
    ERROR_OFFSET,
    ERROR_SHIFT,
    HIGHEST_ERROR,
    HIGHEST_REFERENCE,
    LOWEST_ERROR,
    LOWEST_REFERENCE,
    REFERENCE_COLUMNS,
    REFERENCE_OFFSET,
    REFERENCE_SHIFT,
    ROW_INF,
    ROW_UNDER,
    ROW_ZERO,
    VALUE_SHIFT,
    LinearBins,
)  # fmt: skip
from mlscope_lab.numerics.layout import PIECE, Layout, Piece
from mlscope_lab.numerics.totals import POWERS, Totals, scaled_sums

__all__ = ["Counter", "Workspace", "is_single", "split_difference"]

Array = npt.NDArray[Any]

_SINGLE = frozenset(np.dtype(t) for t in ("f4", "f2", "i1", "u1", "i2", "u2", "?"))
_COLUMN_BITS = REFERENCE_COLUMNS.bit_length() - 1
_FEW = 8
"""Values of b are counted by what moved to another bin than a's where that is at most one in this many."""
_WIDE = 256
_UNTHREADED = 1 << 13
_SAFE = 400
"""Values whose exponent lies within this have squares, and sums of these, that are normal numbers of float64."""
_LARGE = 1e38
_LARGEST = float(np.finfo(np.float32).max)
_ONE = np.int64(1)
_IMMENSE = 1e250
"""An error of float32, from 1e-45 to 1e38, over this is a normal number, and less than `_NEXT_TO_NOTHING`."""
_NEXT_TO_NOTHING = 1e-200
"""Less than any error of float32 over any other number of float32 but zero."""


def is_single(dtype: np.dtype[Any]) -> bool:
    """Tell whether all values of a type are numbers of float32."""
    return dtype in _SINGLE


class Workspace:
    """Buffers for pieces of up to `PIECE` elements; each thread needs its own."""

    def __init__(self) -> None:
        self.single = np.empty((4, PIECE), dtype=np.float32)
        self.double = np.empty((4, PIECE), dtype=np.float64)
        self.codes = np.empty((3, PIECE), dtype=np.int32)
        self.index = np.empty(PIECE, dtype=np.int64)
        self.mask = np.empty(PIECE, dtype=np.bool_)
        # numpy's maximum of an array and a number is not vectorised, that of two arrays is
        self.lowest = np.repeat(np.array([[LOWEST_REFERENCE], [LOWEST_ERROR]], dtype=np.float32), PIECE, axis=1)


class Counter:
    """Adds the pieces of two tensors to totals.

    Parameters
    ----------
    layout
        Of the tensors.
    totals
        What to add to.
    linear
        Bins of the histograms, where these have to be counted apart from the bins of values.
    space
        Buffers.
    """

    def __init__(self, layout: Layout, totals: Totals, linear: LinearBins | None, space: Workspace) -> None:
        self._layout, self._total, self._linear, self._space = layout, totals, linear, space
        rows, width = layout.table
        # of each row, or of each column where these are channels; folded into channels at the end
        lines = width if layout.across else rows
        self._largest = np.zeros(lines, dtype=np.float64)
        self._squares = np.zeros(lines, dtype=np.float64)
        self._counts = np.zeros(lines, dtype=np.int64)

    def close(self) -> None:
        """Add what is known by channel to the totals."""
        total, channels = self._total, self._layout.channels
        for mine, all_, operation in (
            (self._largest, total.channel_max, np.maximum),
            (self._squares, total.channel_square, np.add),
            (self._counts, total.channel_count, np.add),
        ):
            operation(all_, operation.reduce(mine.reshape(-1, channels), axis=0), out=all_)

    def add(self, piece: Piece, a: Array, b: Array) -> None:
        """Add a piece whose values are all numbers of float32.

        Parameters
        ----------
        piece
            Where it is.
        a, b
            (piece.rows, piece.width).
        """
        n, space, total = piece.size, self._space, self._total
        one, other = _flat(a, space.single[0]), _flat(b, space.single[1])
        lows = float(np.minimum.reduce(one)), float(np.minimum.reduce(other))
        highs = float(np.maximum.reduce(one)), float(np.maximum.reduce(other))
        most = max(-lows[0], -lows[1], highs[0], highs[1])
        if not most < _LARGE or lows[0] != lows[0] or lows[1] != lows[1]:
            self.add_any(piece, a, b)
            return
        a64, b64, error = space.double[0, :n], space.double[1, :n], space.double[2, :n]
        np.copyto(a64, one)
        np.copyto(b64, other)
        np.subtract(b64, a64, out=error)
        total.count += n
        total.comparable += n
        for side in (0, 1):
            total.finite[side] += n
            total.add_range(side, lows[side], highs[side])
        sums = np.zeros(POWERS.shape[1], dtype=np.float64)
        sums[of.AA], sums[of.BB], sums[of.AB] = _dot(a64, a64), _dot(b64, b64), _dot(a64, b64)
        sums[of.OWN_A], sums[of.OWN_AA] = np.add.reduce(a64), sums[of.AA]
        sums[of.OWN_B], sums[of.OWN_BB] = np.add.reduce(b64), sums[of.BB]
        squares = self._line_squares(piece, error)
        sums[of.SQUARE] = np.add.reduce(squares)
        size = np.abs(error, out=error)
        sums[of.ABS] = np.add.reduce(size)
        lines = self._line_largest(piece, size)
        largest = float(np.maximum.reduce(lines))
        if largest > total.worst[0]:
            at = int(size.argmax())
            total.add_worst(largest, piece.place(at, self._layout), float(one[at]), float(other[at]))
        sums[of.REL] = self._relative(a64, size, zeros=lows[0] <= 0.0 <= highs[0])
        self._add_sums(piece, sums, (0, 0), lines, squares, None)
        self._count_joint(one, size, max(-lows[0], highs[0]), largest)
        self._count_values(one, other)
        if self._linear is not None:
            total.linear[0] += self._linear.count(one)
            total.linear[1] += self._linear.count(other)

    def _add_sums(
        self,
        piece: Piece,
        sums: Array,
        exponents: tuple[int, int],
        lines: Array,
        squares: Array,
        counts: Array | None,
    ) -> None:
        """Add sums in units of these exponents, and what is known of lines; `counts` None where all are comparable."""
        before = self._total.exponents
        shift = self._total.shift_for(exponents)
        if before is not None and before[1] < exponents[1]:
            self._squares = np.ldexp(self._squares, 2 * (before[1] - exponents[1]))
        self._total.sums += scaled_sums(sums, shift)
        across = self._layout.across
        first, size = (piece.column, piece.width) if across else (piece.row, piece.rows)
        where = slice(first, first + size)
        np.maximum(self._largest[where], lines, out=self._largest[where])
        self._squares[where] += np.ldexp(squares, 2 * shift[1]) if shift[1] else squares
        self._counts[where] += (piece.rows if across else piece.width) if counts is None else counts

    def _relative(self, a: Array, size: Array, *, zeros: bool) -> float:
        """Return the sum of relative errors of elements whose reference is not zero; take their number and largest."""
        n, total = a.size, self._total
        reference = np.abs(a, out=self._space.double[1, :n])
        absent = 0
        if zeros:
            mask = np.equal(a, 0.0, out=self._space.mask[:n])
            absent = int(np.count_nonzero(mask))
            if absent:
                # an error over such a number adds nothing to any other; writing by a mask would take ten times as long
                np.add(reference, np.multiply(mask, _IMMENSE, out=self._space.double[3, :n]), out=reference)
        if absent == n:
            return 0.0
        relative = np.divide(size, reference, out=reference)
        total.relative += n - absent
        largest = float(np.maximum.reduce(relative))
        if largest < _NEXT_TO_NOTHING:  # only errors over zeros, if any
            largest = float(np.maximum.reduce(relative, where=a != 0.0, initial=0.0))
            if not largest:
                total.max_rel = max(total.max_rel, 0.0)
                return 0.0
        total.max_rel = max(total.max_rel, largest)
        return float(np.add.reduce(relative))

    def _line_squares(self, piece: Piece, error: Array) -> Array:
        table = error.reshape(piece.rows, piece.width)
        if not self._layout.across:
            return np.asarray(_row_dots(table))
        square = np.multiply(error, error, out=self._space.double[3, : error.size]).reshape(table.shape)
        return _folded(square, np.add)

    def _line_largest(self, piece: Piece, size: Array) -> Array:
        table = size.reshape(piece.rows, piece.width)
        if not self._layout.across:
            return np.asarray(np.maximum.reduce(table, axis=1))
        copy = self._space.double[3, : size.size].reshape(table.shape)
        np.copyto(copy, table)
        return _folded(copy, np.maximum)

    def _count_joint(self, a: Array, size: Array, most: float, largest: float) -> None:
        """Count finite elements by the size of the error, float64, and of the reference, float32."""
        n, space, joint = a.size, self._space, self._total.joint
        reference = np.abs(a, out=space.single[2, :n])
        np.maximum(reference, space.lowest[0, :n], out=reference)
        if most > HIGHEST_REFERENCE:
            np.minimum(reference, np.float32(HIGHEST_REFERENCE), out=reference)
        column = np.right_shift(reference.view(np.int32), REFERENCE_SHIFT, out=space.codes[0, :n])
        error = space.single[3, :n]
        np.copyto(error, size, casting="same_kind")
        np.maximum(error, space.lowest[1, :n], out=error)
        if largest > HIGHEST_ERROR:
            np.minimum(error, np.float32(HIGHEST_ERROR), out=error)
        row = np.right_shift(error.view(np.int32), ERROR_SHIFT, out=space.codes[1, :n])
        np.left_shift(row, _COLUMN_BITS, out=row)
        np.add(row, column, out=row)
        np.subtract(row, np.int32((ERROR_OFFSET << _COLUMN_BITS) + REFERENCE_OFFSET), out=row)
        index = space.index[:n]
        np.copyto(index, row)
        before = joint[ROW_UNDER].copy()
        np.add.at(joint.reshape(-1), index, _ONE)
        # errors of zero are among those too small for a bin still
        under = joint[ROW_UNDER] - before
        here = int(under.sum())
        if not here:
            return
        zeros = n - int(np.count_nonzero(np.not_equal(size, 0.0, out=space.mask[:n])))
        if zeros < here:
            there = index[size == 0.0] - REFERENCE_COLUMNS * ROW_UNDER
            under = np.bincount(there, minlength=REFERENCE_COLUMNS)
        joint[ROW_ZERO] += under
        joint[ROW_UNDER] -= under

    def _count_values(self, a: Array, b: Array) -> None:
        """Count finite values, float32, by their upper bits."""
        n, space, values = a.size, self._space, self._total.values
        codes = space.codes.view(np.uint32)
        one = np.right_shift(a.view(np.uint32), VALUE_SHIFT, out=codes[0, :n])
        two = np.right_shift(b.view(np.uint32), VALUE_SHIFT, out=codes[1, :n])
        index = space.index[:n]
        np.copyto(index, one)
        np.add.at(values[0], index, _ONE)
        apart = np.not_equal(one, two, out=space.mask[:n])
        number = int(np.count_nonzero(apart))
        if number * _FEW > n:
            np.subtract.at(values[1], index, _ONE)
            np.copyto(index, two)
            np.add.at(values[1], index, _ONE)
        elif number:
            moved = np.flatnonzero(apart)
            np.subtract.at(values[1], index[moved], _ONE)
            np.add.at(values[1], two[moved], _ONE)

    def add_any(self, piece: Piece, a: Array, b: Array) -> None:
        """Add a piece of whatever numbers: NaN, Inf, 64-bit integers, values whose squares overflow."""
        total, n, across = self._total, piece.size, self._layout.across
        exact = split_difference(a, b)
        with np.errstate(all="ignore"):
            one, other = (x.astype(np.float64).reshape(-1) for x in (a, b))
            error = other - one if exact is None else exact.reshape(-1)
        fine = np.isfinite(one), np.isfinite(other)
        both = fine[0] & fine[1]
        agree = ~both & ((np.isnan(one) & np.isnan(other)) | (one == other))
        apart = ~both & ~agree
        own = [x[mask] for x, mask in zip((one, other), fine, strict=True)]
        total.count += n
        total.comparable += n - int(np.count_nonzero(apart))
        for side, x in enumerate((one, other)):
            total.finite[side] += own[side].size
            total.nan[side] += int(np.count_nonzero(np.isnan(x)))
            total.inf[side] += int(np.count_nonzero(np.isinf(x)))
            if own[side].size:
                total.add_range(side, float(own[side].min()), float(own[side].max()))
        with np.errstate(all="ignore"):
            size = np.where(both, np.abs(error), 0.0)
            # two finite values may be further apart than float64 can say
            part, doublings = (other / 2 - one / 2, 1) if np.isinf(size).any() else (error, 0)
            exponents = _exponent(*own), _exponent(part[both]) + doublings
            clean = [np.where(both, np.ldexp(x, -exponents[0]), 0.0) for x in (one, other)]
            scaled = np.where(both, np.ldexp(part, doublings - exponents[1]), 0.0)
            sums = np.zeros(POWERS.shape[1], dtype=np.float64)
            sums[of.AA], sums[of.BB], sums[of.AB] = (
                _dot(clean[0], clean[0]), _dot(clean[1], clean[1]), _dot(clean[0], clean[1])
            )  # fmt: skip
            for side, (plain, square) in enumerate(((of.OWN_A, of.OWN_AA), (of.OWN_B, of.OWN_BB))):
                mine = np.ldexp(own[side], -exponents[0])
                sums[plain], sums[square] = mine.sum(), _dot(mine, mine)
            squares = self._line_squares(piece, scaled)
            sums[of.SQUARE] = squares.sum()
            sums[of.ABS] = np.abs(scaled).sum()
            sums[of.REL] = self._relative_any(one[both], part[both], doublings)
            shown = np.where(apart, np.inf, size)
            at = int(shown.argmax())
            total.add_worst(float(shown[at]), piece.place(at, self._layout), float(one[at]), float(other[at]))
            table = apart.reshape(piece.rows, piece.width)
            counts = (piece.rows if across else piece.width) - table.sum(axis=0 if across else 1)
            self._add_sums(piece, sums, exponents, self._line_largest(piece, shown), squares, counts)
            if apart.any():
                total.max_rel = np.inf
            self._sketch_any(one, other, size, agree, apart)

    def _relative_any(self, a: Array, part: Array, doublings: int) -> float:
        """Return the sum of relative errors, as `_relative` does; an error is `part`, doubled so often."""
        there = a != 0.0
        if not there.any():
            return 0.0
        relative = np.ldexp(np.abs(part[there]) / np.abs(a[there]), doublings)
        self._total.relative += relative.size
        self._total.max_rel = max(self._total.max_rel, float(relative.max()))
        return float(relative.sum())

    def _sketch_any(self, a: Array, b: Array, size: Array, agree: Array, apart: Array) -> None:
        """Count elements by bins; an error is one of finite values, or 0."""
        total = self._total
        reference = np.where(np.isfinite(a), np.clip(np.abs(a), LOWEST_REFERENCE, HIGHEST_REFERENCE), HIGHEST_REFERENCE)
        column = (_bits(reference) >> REFERENCE_SHIFT) - REFERENCE_OFFSET
        row = (_bits(np.clip(size, LOWEST_ERROR, HIGHEST_ERROR)) >> ERROR_SHIFT) - ERROR_OFFSET
        row[size == 0.0] = ROW_ZERO
        row[apart] = ROW_INF
        total.joint += np.bincount(row * REFERENCE_COLUMNS + column, minlength=total.joint.size).reshape(
            total.joint.shape
        )
        for side, x in enumerate((a, b)):
            mine = x[np.isfinite(x)]
            code = _bits(np.clip(mine, -_LARGEST, _LARGEST)).view(np.uint32) >> VALUE_SHIFT
            np.add.at(total.values[side], code, _ONE)
            if side == 0:
                np.subtract.at(total.values[1], code, _ONE)
            if self._linear is not None:
                total.linear[side] += self._linear.count(mine)


def _flat(x: Array, buffer: Array) -> Array:
    """Return a piece as contiguous float32: itself where it is that, else a copy in the buffer."""
    if x.dtype == np.float32 and x.flags.c_contiguous:
        return x.reshape(-1)
    copy = buffer[: x.size]
    np.copyto(copy.reshape(x.shape), x)
    return copy


def _exponent(*values: Array) -> int:
    """Return the exponent of the largest value, 0 where squares of such are normal numbers."""
    largest = max((float(np.abs(x).max()) for x in values if x.size), default=0.0)
    exponent = int(np.frexp(largest)[1]) if np.isfinite(largest) else 0
    return 0 if abs(exponent) < _SAFE else exponent


def _bits(x: Array) -> Array:
    """Return the bits of numbers as float32."""
    single: npt.NDArray[np.float32] = np.asarray(x, dtype=np.float32)
    return single.view(np.int32)


def _dot(one: Array, other: Array) -> float:
    """Return the inner product, by parts too short for the linear algebra library to start threads."""
    even = one.size - one.size % _UNTHREADED
    found = float(np.vecdot(one[even:], other[even:]))
    if even:
        parts = (-1, _UNTHREADED)
        found += float(np.add.reduce(np.vecdot(one[:even].reshape(parts), other[:even].reshape(parts))))
    return found


def _row_dots(table: Array) -> Any:
    """Return the sum of squares of each row, likewise."""
    if table.shape[1] <= _UNTHREADED:
        return np.vecdot(table, table)
    if len(table) == 1:
        return np.array([_dot(table[0], table[0])])
    parts = [table[:, i : i + _UNTHREADED] for i in range(0, table.shape[1], _UNTHREADED)]
    return sum(np.vecdot(part, part) for part in parts)


def _folded(table: Array, operation: Any) -> Array:
    """Reduce the rows of a table to one, and overwrite it; narrow tables by halves, since numpy goes row by row."""
    rows = table.shape[0]
    if table.shape[1] >= _WIDE:
        return np.asarray(operation.reduce(table, axis=0))
    while rows > 1:
        half = rows // 2
        operation(table[:half], table[half : 2 * half], out=table[:half])
        if rows % 2:
            operation(table[0], table[rows - 1], out=table[0])
        rows = half
    return np.asarray(table[0].copy())


def split_difference(a: Array, b: Array) -> Array | None:
    """Return b - a of 64-bit integers, rounded once to float64; None for other types, whose float64 are exact.

    High and low halves are subtracted apart: neither difference overflows or is rounded.
    """
    if not (a.dtype.kind in "iu" and b.dtype.kind in "iu" and max(a.dtype.itemsize, b.dtype.itemsize) == 8):
        return None
    high = [(x >> np.array(32, dtype=x.dtype)).astype(np.float64) for x in (a, b)]
    low = [(x & np.array(0xFFFFFFFF, dtype=np.int64).astype(x.dtype)).astype(np.float64) for x in (a, b)]
    return np.asarray((high[1] - high[0]) * 2.0**32 + (low[1] - low[0]), dtype=np.float64)
