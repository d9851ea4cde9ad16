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
    ERROR_ROWS,
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
    LinearBins,
    ValueBins,
)  # fmt: skip
from mlscope_lab.numerics.layout import Layout, Piece
from mlscope_lab.numerics.totals import POWERS, Totals

__all__ = ["Counter", "split_difference"]

Array = npt.NDArray[Any]

_EXACT = frozenset(np.dtype(t) for t in ("f4", "f2", "i1", "u1", "i2", "u2", "?"))
"""Types all of whose values are float32, too."""
_COLUMN_BITS = REFERENCE_COLUMNS.bit_length() - 1
_FEW = 8
"""Values of b are counted by their difference from a's where at most one in this many is in another bin."""
_WIDE = 256
_SAFE = 400
"""Values whose exponent lies within this have squares, and sums of these, that are normal numbers of float64."""


class Counter:
    """Adds pieces to `Totals`; holds the buffers, so that each thread needs its own.

    Parameters
    ----------
    layout
        Of the tensors.
    values
        Bins of values.
    linear
        Bins of the histograms, where `values` do not fit them.
    room
        Elements of a piece at most.
    """

    def __init__(self, layout: Layout, values: ValueBins, linear: LinearBins | None, room: int) -> None:
        self.totals = Totals(values, linear, layout.channels)
        self._layout, self._bins, self._linear = layout, values, linear
        self._single = np.empty((4, room), dtype=np.float32)
        self._double = np.empty((5, room), dtype=np.float64)
        self._codes = np.empty((4, room), dtype=np.int32)
        self._index = np.empty(room, dtype=np.int64)
        self._mask = np.empty(room, dtype=np.bool_)
        # numpy's maximum of an array and a number is not vectorised, that of two arrays is
        self._lowest = np.full((3, room), [[values.lowest], [LOWEST_REFERENCE], [LOWEST_ERROR]], dtype=np.float32)
        self._one_clip = values.lowest <= LOWEST_REFERENCE and not values.prescale

    def add(self, piece: Piece, a: Array, b: Array) -> None:
        """Add a piece.

        Parameters
        ----------
        piece
            Where it is.
        a, b
            (piece.rows, piece.width), of any type that float32 or float64 holds.
        """
        n = piece.size
        if not (a.dtype in _EXACT and b.dtype in _EXACT):
            self._add_any(piece, a, b)
            return
        one, other = _flat(a, self._single[0]), _flat(b, self._single[1])
        lows = float(np.minimum.reduce(one)), float(np.minimum.reduce(other))
        highs = float(np.maximum.reduce(one)), float(np.maximum.reduce(other))
        if not np.isfinite(sum(lows) + sum(highs)) or self._bins.prescale:
            self._add_any(piece, a, b)
            return
        a64, b64 = self._double[0, :n], self._double[1, :n]
        np.copyto(a64, one)
        np.copyto(b64, other)
        total = self.totals
        total.count += n
        for side in (0, 1):
            total.finite[side] += n
            total.add_range(side, lows[side], highs[side])
        error = np.subtract(b64, a64, out=self._double[2, :n])
        sums = self._sums(a64, b64, error)
        sums[of.OWN_A], sums[of.OWN_AA] = np.add.reduce(a64), sums[of.AA]
        sums[of.OWN_B], sums[of.OWN_BB] = np.add.reduce(b64), sums[of.BB]
        squares = self._channel_squares(piece, error)
        sums[of.SQUARE] = squares.sum()
        size = np.abs(error, out=error)
        sums[of.ABS] = np.add.reduce(size)
        shift = total.shift_for(0)
        largest = self._channel_largest(piece, size)
        self._to_channels(piece, largest, np.ldexp(squares, 2 * shift) if shift else squares)
        total.comparable += n
        found = float(largest.max())
        if found > total.worst[0]:
            at = int(size.argmax())
            total.add_worst(found, piece.place(at, self._layout), float(a64[at]), float(b64[at]))
        sums[of.REL] = self._relative(a64, size, zeros=lows[0] <= 0.0 <= highs[0])
        total.sums += np.ldexp(sums, POWERS * shift) if shift else sums
        self._sketch(one, other, size, lows, highs, found)

    def _sums(self, a: Array, b: Array, error: Array) -> Array:
        sums = np.zeros(len(POWERS), dtype=np.float64)
        sums[of.AA], sums[of.BB], sums[of.AB] = np.vecdot(a, a), np.vecdot(b, b), np.vecdot(a, b)
        return sums

    def _relative(self, a: Array, size: Array, *, zeros: bool) -> float:
        """Return the sum of relative errors of elements whose reference is not zero; take their number and largest."""
        n, total = a.size, self.totals
        reference = np.abs(a, out=self._double[3, :n])
        absent = 0
        if zeros:
            mask = np.equal(reference, 0.0, out=self._mask[:n])
            absent = int(np.count_nonzero(mask))
            if absent:
                np.putmask(reference, mask, np.inf)  # an error over it is 0, and adds nothing
        if absent < n:
            relative = np.divide(size, reference, out=reference)
            total.relative += n - absent
            total.max_rel = max(total.max_rel, float(np.maximum.reduce(relative)))
            return float(np.add.reduce(relative))
        return 0.0

    def _channel_squares(self, piece: Piece, error: Array) -> Array:
        """Return the sum of squares of each row, or of each column where these are channels."""
        table = error.reshape(piece.rows, piece.width)
        if not self._layout.across:
            return np.asarray(np.vecdot(table, table))
        square = np.multiply(error, error, out=self._double[4, : error.size]).reshape(table.shape)
        return _folded(square, np.add)

    def _channel_largest(self, piece: Piece, size: Array) -> Array:
        table = size.reshape(piece.rows, piece.width)
        if not self._layout.across:
            return np.asarray(np.maximum.reduce(table, axis=1))
        copy = self._double[4, : size.size].reshape(table.shape)
        np.copyto(copy, table)
        return _folded(copy, np.maximum)

    def _to_channels(self, piece: Piece, largest: Array, squares: Array, count: Array | int | None = None) -> None:
        total = self.totals
        if self._layout.across:
            where: Any = np.s_[piece.column : piece.column + piece.width]
            np.maximum(total.channel_max[where], largest, out=total.channel_max[where])
            total.channel_square[where] += squares
            total.channel_count[where] += piece.rows if count is None else count
            return
        where = np.arange(piece.row, piece.row + piece.rows) % self._layout.channels
        np.maximum.at(total.channel_max, where, largest)
        np.add.at(total.channel_square, where, squares)
        np.add.at(total.channel_count, where, piece.width if count is None else count)

    def _sketch(
        self, a: Array, b: Array, size: Array, lows: tuple[float, float], highs: tuple[float, float], largest: float
    ) -> None:
        """Count elements by bins; `a`, `b` float32, finite; `size` of the error, float64."""
        n, total = a.size, self.totals
        codes, single, index = self._codes, self._single, self._index[:n]
        plain = np.abs(a, out=single[2, :n])
        most = max(abs(lows[0]), abs(highs[0]))
        one, reference = self._value_codes(a, plain, lows[0], most, 0)
        # where a reference is, in its bits; then the row of the error beside it
        if reference is None:
            np.abs(a, out=plain)
            np.maximum(plain, self._lowest[1, :n], out=plain)
            if most > HIGHEST_REFERENCE:
                np.minimum(plain, np.float32(HIGHEST_REFERENCE), out=plain)
            reference = plain
        column = np.right_shift(reference.view(np.int32), REFERENCE_SHIFT, out=codes[2, :n])
        error = single[3, :n]
        with np.errstate(over="ignore"):
            np.copyto(error, size, casting="same_kind")
        nonzero = int(np.count_nonzero(np.not_equal(size, 0.0, out=self._mask[:n])))
        np.maximum(error, self._lowest[2, :n], out=error)
        if largest > HIGHEST_ERROR:
            np.minimum(error, np.float32(HIGHEST_ERROR), out=error)
        row = np.right_shift(error.view(np.int32), ERROR_SHIFT, out=codes[3, :n])
        np.left_shift(row, _COLUMN_BITS, out=row)
        np.add(row, column, out=row)
        np.subtract(row, np.int32((ERROR_OFFSET << _COLUMN_BITS) + REFERENCE_OFFSET), out=index)
        counts = np.bincount(index, minlength=ERROR_ROWS * REFERENCE_COLUMNS).reshape(ERROR_ROWS, REFERENCE_COLUMNS)
        self._add_joint(counts, n - nonzero, size, index)
        two, _ = self._value_codes(b, single[2, :n], lows[1], max(abs(lows[1]), abs(highs[1])), 1)
        self._count_values(one, two)
        if self._linear is not None:
            total.linear[0] += self._linear.count(a)
            total.linear[1] += self._linear.count(b)

    def _value_codes(self, x: Array, size: Array, low: float, most: float, slot: int) -> tuple[Array, Array | None]:
        """Return the counter of each value, and its clipped size where that also tells the bin of the reference."""
        n, bins = x.size, self._bins
        if slot:
            np.abs(x, out=size)
        np.maximum(size, self._lowest[0, :n], out=size)
        clipped = most > bins.highest
        if clipped:
            np.minimum(size, np.float32(bins.highest), out=size)
        code = np.right_shift(size.view(np.int32), bins.SHIFT, out=self._codes[slot, :n])
        if low >= 0.0:
            np.subtract(code, np.int32(bins.offset - bins.size), out=code)
        else:
            np.subtract(code, np.int32(bins.offset), out=code)
            sign = np.right_shift(x.view(np.int32), 31, out=self._codes[2, :n])
            np.bitwise_xor(code, sign, out=code)  # i for a positive one, -1 - i for a negative one
            np.add(code, np.int32(bins.size), out=code)
        fits = self._one_clip and most <= HIGHEST_REFERENCE and not clipped
        return code, size if fits else None

    def _count_values(self, one: Array, two: Array) -> None:
        total, n = self.totals, one.size
        first = np.bincount(one, minlength=self._bins.count)
        total.values[0] += first
        total.values[1] += first
        moved = np.flatnonzero(np.not_equal(one, two, out=self._mask[:n]))
        if moved.size * _FEW > n:
            total.values[1] += np.bincount(two, minlength=self._bins.count) - first
        elif moved.size:
            np.subtract.at(total.values[1], one[moved], 1)
            np.add.at(total.values[1], two[moved], 1)

    def _add_joint(self, counts: Array, zeros: int, size: Array, index: Array) -> None:
        """Add joint counts, whose zero errors are still among those too small for a bin."""
        if zeros:
            if int(counts[ROW_UNDER].sum()) == zeros:
                counts[ROW_ZERO], counts[ROW_UNDER] = counts[ROW_UNDER], 0
            else:
                there = index[size == 0.0] - REFERENCE_COLUMNS * ROW_UNDER
                equal = np.bincount(there, minlength=REFERENCE_COLUMNS)
                counts[ROW_ZERO] += equal
                counts[ROW_UNDER] -= equal
        self.totals.joint += counts

    def _add_any(self, piece: Piece, a: Array, b: Array) -> None:
        """Add a piece of whatever numbers: NaN, Inf, integers, values whose squares overflow."""
        total, n = self.totals, piece.size
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
        for side, x in enumerate((one, other)):
            total.finite[side] += own[side].size
            total.nan[side] += int(np.count_nonzero(np.isnan(x)))
            total.inf[side] += int(np.count_nonzero(np.isinf(x)))
            if own[side].size:
                total.add_range(side, float(own[side].min()), float(own[side].max()))
        total.comparable += n - int(np.count_nonzero(apart))
        most = max((float(np.abs(x).max()) for x in own if x.size), default=0.0)
        power = int(np.frexp(most)[1])
        power = 0 if abs(power) < _SAFE or not most else power
        clean = [np.where(both, np.ldexp(x, -power), 0.0) for x in (one, other)]
        # errors, too, in units of 2 ** power, so that none overflows
        scaled = clean[1] - clean[0] if power else np.where(both, error, 0.0)
        sums = self._sums(clean[0], clean[1], scaled)
        for side, (plain, square) in enumerate(((of.OWN_A, of.OWN_AA), (of.OWN_B, of.OWN_BB))):
            mine = np.ldexp(own[side], -power)
            sums[plain], sums[square] = mine.sum(), np.vecdot(mine, mine)
        squares = self._channel_squares(piece, scaled)
        sums[of.SQUARE] = squares.sum()
        size = np.abs(scaled)
        sums[of.ABS] = size.sum()
        shift = total.shift_for(power)
        shown = np.where(apart, np.inf, size)
        table = apart.reshape(piece.rows, piece.width)
        good = table.shape[0 if self._layout.across else 1] - table.sum(axis=0 if self._layout.across else 1)
        with np.errstate(over="ignore"):
            largest = np.ldexp(self._channel_largest(piece, shown), power)
            self._to_channels(piece, largest, np.ldexp(squares, 2 * shift), good)
            at = int(shown.argmax())
            total.add_worst(
                float(np.ldexp(shown[at], power)), piece.place(at, self._layout), float(one[at]), float(other[at])
            )
            sums[of.REL] = self._relative_any(one[both], other[both], error[both])
            total.sums += np.ldexp(sums, POWERS * shift)
        if apart.any():
            total.max_rel = np.inf
        self._sketch_any(one, other, np.where(both, np.abs(error), 0.0), both, agree)

    def _relative_any(self, a: Array, b: Array, error: Array) -> float:
        there = a != 0.0
        if not there.any():
            return 0.0
        a, b, error = a[there], b[there], error[there]
        relative = np.abs(error) / np.abs(a)
        over = np.isinf(error)
        if over.any():  # two finite values further apart than float64 can say
            relative[over] = np.abs(b[over] / 2 - a[over] / 2) / np.abs(a[over] / 2)
        self.totals.relative += a.size
        self.totals.max_rel = max(self.totals.max_rel, float(relative.max()))
        return float(relative.sum())

    def _sketch_any(self, a: Array, b: Array, size: Array, both: Array, agree: Array) -> None:
        """Count elements by bins, one kind of them after the other."""
        total, bins = self.totals, self._bins
        apart = ~both & ~agree
        total.joint[ROW_ZERO, -1] += int(np.count_nonzero(agree))
        with np.errstate(over="ignore", under="ignore"):
            plain = np.abs(a)
            clipped = np.where(np.isfinite(plain), np.clip(plain, LOWEST_REFERENCE, HIGHEST_REFERENCE), np.inf)
            column = (_bits(np.minimum(clipped, HIGHEST_REFERENCE)) >> REFERENCE_SHIFT) - REFERENCE_OFFSET
            row = (_bits(np.clip(size, LOWEST_ERROR, HIGHEST_ERROR)) >> ERROR_SHIFT) - ERROR_OFFSET
        row[size == 0.0] = ROW_ZERO
        row[apart] = ROW_INF
        index = (row * REFERENCE_COLUMNS + column)[~agree]
        total.joint += np.bincount(index, minlength=total.joint.size).reshape(total.joint.shape)
        for side, x in enumerate((a, b)):
            mine = x[np.isfinite(x)]
            with np.errstate(over="ignore", under="ignore"):
                scaled = np.ldexp(mine, bins.prescale)
            distance = (_bits(np.clip(np.abs(scaled), bins.lowest, bins.highest)) >> bins.SHIFT) - bins.offset
            code = np.where(scaled < 0, -1 - distance, distance) + bins.size
            total.values[side] += np.bincount(code, minlength=bins.count)
            if self._linear is not None:
                total.linear[side] += self._linear.count(mine)


def _flat(x: Array, buffer: Array) -> Array:
    """Return a piece as contiguous float32: itself where it is that, else a copy in the buffer."""
    if x.dtype == np.float32 and x.flags.c_contiguous:
        return x.reshape(-1)
    copy = buffer[: x.size]
    np.copyto(copy.reshape(x.shape), x)
    return copy


def _bits(x: Array) -> Array:
    """Return the bits of numbers as float32."""
    single: npt.NDArray[np.float32] = np.asarray(x, dtype=np.float32)
    return single.view(np.int32)


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
