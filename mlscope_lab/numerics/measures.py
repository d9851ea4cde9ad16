"""How far apart two tensors are: exact extremes, means and norms, sketches, and where the difference is."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.numerics import totals as of
from mlscope_lab.numerics.bins import (
    ERROR_EDGES,
    REFERENCE_EDGES,
    LinearBins,
    divergences,
    fold_joint,
    merged_values,
    quantiles,
)  # fmt: skip
from mlscope_lab.numerics.counting import Counter, Workspace, is_single
from mlscope_lab.numerics.layout import layout_of, pieces
from mlscope_lab.numerics.totals import Totals

__all__ = ["QUANTILES", "PairAccumulator", "PairMeasures"]

Array = npt.NDArray[Any]

QUANTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)
"""Which quantiles of the absolute error are kept."""


@dataclass(frozen=True, kw_only=True)
class PairMeasures:
    """How far apart a pair of tensors is; e = b - a is the error, a the reference, n the number of elements.

    NaN in the same place on both sides, and the same infinity on both, agree: their error is 0. NaN or Inf on one side
    alone (or infinities of either sign) has no size: it makes the maxima, and the quantiles that it reaches, Inf, is
    counted, and stays out of every sum. Sums of products of both sides are over elements that are finite on both;
    what concerns one side is over that side's finite elements. What nothing remains for is NaN.

    Attributes
    ----------
    count
        n.
    max_abs_error, mean_abs_error, rms_error
        Largest and mean ``|e|``, root of the mean of ``e**2``, exact but for the rounding of float64.
    max_rel_error, mean_rel_error
        Of ``|e| / |a|`` over elements whose reference is not zero, as `numpy.testing.assert_allclose` reports it.
    l2_relative
        ``||e|| / ||a||``; where a is all zero: 0 if e is, else Inf.
    cosine
        ``a.b / (||a|| ||b||)``; where one is all zero 0, where both are 1.
    sqnr_db
        ``10 log10(sum a**2 / sum e**2)`` in dB; Inf without an error.
    psnr_db
        ``10 log10(peak**2 / mean e**2)`` in dB, the peak being the reference's range, max_a - min_a.
    kl_divergence, js_divergence, hellinger
        Of the distributions of finite values, in nats, from bins of a thirty-second octave; see
        `mlscope_lab.numerics.bins.divergences` for smoothing and error.
    nan_a, nan_b, inf_a, inf_b
        How many elements are NaN and how many are infinite, by side.
    min_a, max_a, mean_a, rms_a, min_b, max_b, mean_b, rms_b
        Of the finite values of a side.
    worst_position, worst_a, worst_b
        Index of the element with the largest error in a's layout ("0,3,17,5"), the first of equal ones, and its values.
    error_quantiles
        float64, one for each of `QUANTILES`, of ``|e|``: within a ninth, see `mlscope_lab.numerics.bins.quantiles`.
    joint
        int64, (error bins, reference bins): elements by ``|e|`` and ``|a|``; see
        `mlscope_lab.numerics.tolerances.shares_out`.
    error_edges, reference_edges
        Edges of these bins, the same for every pair.
    histogram_a, histogram_b, bin_low, bin_high
        int64, (64,): finite values in bins of equal width from bin_low to bin_high; values beyond are in the end bins.
        Where these come from the finer logarithmic bins, a value that is negative and less than 2^-24 of the range
        counts as zero, and one that is exactly a negative edge counts below it.
    channel_max_abs_error, channel_rms_error
        float32, one for each channel; empty without channels.
    """

    count: int
    max_abs_error: float
    mean_abs_error: float
    rms_error: float
    max_rel_error: float
    mean_rel_error: float
    l2_relative: float
    cosine: float
    sqnr_db: float
    psnr_db: float
    kl_divergence: float
    js_divergence: float
    hellinger: float
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int
    min_a: float
    max_a: float
    mean_a: float
    rms_a: float
    min_b: float
    max_b: float
    mean_b: float
    rms_b: float
    worst_position: str
    worst_a: float
    worst_b: float
    error_quantiles: Array
    joint: Array
    error_edges: Array
    reference_edges: Array
    histogram_a: Array
    histogram_b: Array
    bin_low: float
    bin_high: float
    channel_max_abs_error: Array
    channel_rms_error: Array


class PairAccumulator:
    """Measures a pair of tensors, one sample or part after the other.

    Memory does not grow with the tensors: they are read in pieces of some thousand elements. One thread does it, for a
    quarter of the time goes into counting, which holds the interpreter's lock: two took longer.

    Parameters
    ----------
    low, high
        Smallest and largest expected value of both sides, which the bins of the histograms are laid out by; values
        beyond are counted in the end bins. NaN, or both 0: the range of what is added, with bins of at least a
        thirty-second of its largest value.
    channel_axis
        Axis of the channels, for errors by channel; None for tensors that have none.

    Examples
    --------
    >>> import numpy as np
    >>> pair = PairAccumulator(low=0.0, high=4.0)
    >>> pair.add(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    >>> pair.add(np.array([4.0]), np.array([4.0]))
    >>> found = pair.result()
    >>> found.max_abs_error, found.worst_position, found.count
    (0.5, '1', 3)
    """

    def __init__(
        self,
        *,
        low: float = math.nan,
        high: float = math.nan,
        channel_axis: int | None = None,
    ) -> None:
        known = math.isfinite(low) and math.isfinite(high) and (low != 0.0 or high != 0.0)
        self._linear = LinearBins(float(low), float(high)) if known else None
        self._channel_axis = channel_axis
        self._counted = None if self._linear is None or self._linear.folds else self._linear
        self._total: Totals | None = None
        self._worst_shape: tuple[int, ...] = ()

    def add(self, a: Array, b: Array) -> None:
        """Add a sample, or a part of one.

        Parameters
        ----------
        a, b
            Two arrays of one shape and layout: floats, integers or bool, of the same type or not; float16 and bfloat16
            are measured as float32. Of complex numbers real and imaginary parts are elements of their own. Their
            channels have to be as many as before.

        Raises
        ------
        InputError
            If the shapes differ, or the arrays hold no numbers.
        """
        one, other = _numbers(a), _numbers(b)
        if one.shape != other.shape:
            raise InputError(f"A pair has the shapes {one.shape} and {other.shape}; bring b into a's layout first")
        if one.dtype.kind == "c" or other.dtype.kind == "c":
            one, other = _parts(one), _parts(other)
        if not one.size:
            return
        axis = self._channel_axis
        if axis is not None and not -one.ndim <= axis < one.ndim:
            axis = None
        layout = layout_of(one.shape, axis)
        if self._total is not None and axis is not None and len(self._total.channel_max) != layout.channels:
            raise InputError(
                f"Axis {axis} has {layout.channels} channels, and had {len(self._total.channel_max)} in what was added "
                "before; measure tensors of other shapes apart"
            )
        if self._total is None:
            self._total = Totals(layout.channels)
        before = self._total.worst
        counter = Counter(layout, self._total, self._counted, _workspace())
        count = counter.add if is_single(one.dtype) and is_single(other.dtype) else counter.add_any
        for piece in pieces(layout, one, other):
            count(*piece)
        counter.close()
        if self._total.worst is not before:
            self._worst_shape = one.shape

    def result(self) -> PairMeasures:
        """Return the measures of all that was added."""
        total = self._total or Totals(0)
        sums, (power, error_power) = total.sums, total.exponents or (0, 0)
        square, aa, bb, ab = (float(sums[i]) for i in (of.SQUARE, of.AA, of.BB, of.AB))
        error, place, worst_a, worst_b = total.worst
        error = error if total.count else math.nan
        ends = [(x if n else math.nan) for n, low, high in zip(total.finite, total.low, total.high, strict=True)
                for x in (low, high)]  # fmt: skip
        finite = [x for x in ends if not math.isnan(x)] or [0.0]
        linear = self._linear or LinearBins(min(finite), max(finite), coarse=True)
        one, other, middles = merged_values((total.values[0], total.values[0] + total.values[1]), max(map(abs, finite)))
        histograms = [linear.fold(m, middles) for m in (one, other)] if linear.folds else total.linear
        kl, js, hellinger = divergences(one, other)
        rms = _root(square, total.comparable)
        peak = _scaled(ends[1] / 2 - ends[0] / 2, -error_power)  # half of it, for the whole may overflow
        with np.errstate(all="ignore"):
            shown = slice(None if self._channel_axis is not None and self._worst_shape else 0)
            root = np.sqrt(total.channel_square[shown] / total.channel_count[shown])
            channel_rms = np.ldexp(root, error_power).astype(np.float32)
            channel_max = total.channel_max[shown].astype(np.float32)
        return PairMeasures(
            count=total.count,
            max_abs_error=error,
            mean_abs_error=_scaled(_over(float(sums[of.ABS]), total.comparable), error_power),
            rms_error=_scaled(rms, error_power),
            max_rel_error=total.max_rel if total.max_rel >= 0 else math.nan,
            mean_rel_error=_over(float(sums[of.REL]), total.relative),
            l2_relative=_scaled(_norm_ratio(square, aa), error_power - power) if total.comparable else math.nan,
            cosine=_cosine(aa, bb, ab) if total.comparable else math.nan,
            sqnr_db=_decibel(_scaled(math.sqrt(aa), power - error_power), math.sqrt(square))
            if total.comparable else math.nan,
            psnr_db=_decibel(peak, rms / 2) if total.comparable and total.finite[0] else math.nan,
            kl_divergence=kl, js_divergence=js, hellinger=hellinger,
            nan_a=total.nan[0], nan_b=total.nan[1], inf_a=total.inf[0], inf_b=total.inf[1],
            min_a=ends[0], max_a=ends[1], min_b=ends[2], max_b=ends[3],
            mean_a=_scaled(_over(float(sums[of.OWN_A]), total.finite[0]), power),
            mean_b=_scaled(_over(float(sums[of.OWN_B]), total.finite[1]), power),
            rms_a=_scaled(_root(float(sums[of.OWN_AA]), total.finite[0]), power),
            rms_b=_scaled(_root(float(sums[of.OWN_BB]), total.finite[1]), power),
            worst_position=_position(place, self._worst_shape),
            worst_a=worst_a, worst_b=worst_b,
            error_quantiles=quantiles(total.joint.sum(axis=1), QUANTILES, error),
            joint=fold_joint(total.joint), error_edges=ERROR_EDGES, reference_edges=REFERENCE_EDGES,
            histogram_a=histograms[0], histogram_b=histograms[1], bin_low=linear.low, bin_high=linear.high,
            channel_max_abs_error=channel_max, channel_rms_error=channel_rms,
        )  # fmt: skip


_LOCAL = threading.local()


def _workspace() -> Workspace:
    """Return this thread's buffers."""
    if not hasattr(_LOCAL, "space"):
        _LOCAL.space = Workspace()
    space: Workspace = _LOCAL.space
    return space


def _numbers(given: Any) -> Array:
    """Return an array of numbers that numpy calculates with."""
    array = np.asarray(given)
    if array.dtype.kind in "biufc":
        return array.astype(np.complex128) if array.dtype.kind == "c" and array.dtype.itemsize > 16 else array
    if array.dtype.name.startswith(("bfloat16", "float8")):
        return array.astype(np.float32)
    raise InputError(f"Numbers can be measured, not an array of {array.dtype}")


def _parts(array: Array) -> Array:
    """Return real and imaginary parts along a new last axis."""
    return np.stack([array.real, array.imag], axis=-1)


def _over(total: float, count: int) -> float:
    return total / count if count else math.nan


def _root(total: float, count: int) -> float:
    return math.sqrt(total / count) if count else math.nan


def _scaled(value: float, power: int) -> float:
    """Return value * 2 ** power, Inf where that is too large."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(value, power))


def _norm_ratio(square: float, aa: float) -> float:
    if not aa:
        return math.inf if square else 0.0
    return math.sqrt(square / aa)


def _cosine(aa: float, bb: float, ab: float) -> float:
    if not aa or not bb:
        return float(not aa and not bb)
    return max(-1.0, min(1.0, ab / (math.sqrt(aa) * math.sqrt(bb))))


def _decibel(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    # a difference of logarithms, for the ratio itself may be too small or too large for a float
    return 20 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def _position(place: int, shape: tuple[int, ...]) -> str:
    if place < 0:
        return ""
    return ",".join(str(int(i)) for i in np.unravel_index(place, shape)) if shape else ""
