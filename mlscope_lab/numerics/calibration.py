"""A tolerance for each value from what arithmetic alone does to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError

__all__ = ["FACTOR", "FLOOR_ULPS", "calibrated", "unit_in_last_place"]

Array = npt.NDArray[Any]

FACTOR: Final = 4.0
"""How many times the noise of both sides together two faultless sides may be apart.

The noise is the largest deviation in a few random runs that move inputs and results by a unit roundoff. Faultless pairs
of frameworks differ by some tenths of it up to about as much, nearly the same from the first layer to the last
(`python -m tests.faults` shows it for its clean pairs); what is left is for kernels that compute other intermediate
values (Winograd, FFT)."""

FLOOR_ULPS: Final = 16.0
"""No tolerance is below this many units in the last place of the value's root mean square: what a value's largest
elements, several times that, are rounded by."""

_ULP: Final = {"float64": 2.0**-52, "complex128": 2.0**-52, "float32": 2.0**-23, "complex64": 2.0**-23,
               "float16": 2.0**-10, "bfloat16": 2.0**-7, "int8": 2.0**-7, "uint8": 2.0**-7}  # fmt: skip


def unit_in_last_place(dtype: str) -> float:
    """Return the distance of 1 to the next number of a type.

    For 8-bit integers, which stand for quantised values, it is their step over half their range; 0 for other integers
    and bool, which are exact.

    Examples
    --------
    >>> unit_in_last_place("float16") == 2**-10, unit_in_last_place("int64")
    (True, 0.0)
    """
    return _ULP.get(dtype, 0.0)


def calibrated(
    noise_a: Array,
    noise_b: Array,
    rms: Array,
    dtype_a: Sequence[str] | Array,
    dtype_b: Sequence[str] | Array,
    *,
    factor: float = FACTOR,
    floor_ulps: float = FLOOR_ULPS,
) -> Array:
    """Return an absolute tolerance for each pair from the noise of its two sides.

    Parameters
    ----------
    noise_a, noise_b
        float64, (pairs,) in the order of computation: largest absolute deviation of the value under rounding, other
        thread counts or double precision; NaN where it is unknown. Unknown ones are interpolated, as noise over rms, in
        its logarithm, between the nearest known ones before and after (beyond the ends: that of the nearest); a side of
        which nothing is known has the other side's.
    rms
        float64, (pairs,): root mean square of the reference's value; NaN where it has no finite element.
    dtype_a, dtype_b
        Types of the values.
    factor
        See `FACTOR`.
    floor_ulps
        See `FLOOR_ULPS`.

    Returns
    -------
    numpy.ndarray
        float64, (pairs,): ``factor * (noise_a + noise_b)``, at least ``floor_ulps`` units in the last place of rms in
        the coarser of both types.

    Raises
    ------
    InputError
        If nothing is known of either side.

    References
    ----------
    N. J. Higham, T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41 (2019).
    B. Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks",
    ACM Trans. Math. Softw. 46 (2020).
    """
    one, other, scale = (np.asarray(x, dtype=np.float64) for x in (noise_a, noise_b, rms))
    if not one.size:
        return np.zeros(0)
    if not (np.isfinite(one).any() or np.isfinite(other).any()):
        raise InputError(
            "Nothing is known of what rounding does on either side, so that no tolerance can be calibrated; give one, "
            "such as tolerance='atol=1e-5,rtol=1e-3'"
        )
    scale = np.where(np.isfinite(scale), scale, 0.0)
    sides = [_filled(noise, scale) for noise in (one, other)]
    known = [side for side in sides if side is not None]
    noise = known[0] + known[-1]
    ulp = [max(unit_in_last_place(str(a)), unit_in_last_place(str(b))) for a, b in zip(dtype_a, dtype_b, strict=True)]
    return np.asarray(np.maximum(factor * noise, floor_ulps * np.array(ulp) * scale), dtype=np.float64)


def _filled(noise: Array, scale: Array) -> Array | None:
    """Return noise with the unknown interpolated; None if all is unknown."""
    known = np.flatnonzero(np.isfinite(noise))
    if not known.size:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.log(noise[known] / scale[known])
    usable = np.isfinite(relative)
    if not usable.any():  # exact, or of values that are all zero
        guessed = np.zeros_like(noise)
    else:
        guessed = np.exp(np.interp(np.arange(noise.size), known[usable], relative[usable])) * scale
    return np.where(np.isfinite(noise), noise, guessed)
