"""What alignment remembers of a value: statistics that no layout changes, and one profile for each axis.

Two frameworks hold the same tensor with its axes in another order, so that nothing that depends on positions can be
compared. Moments and extremes of the multiset of elements do not depend on it; equal to rounding in five of them at
once, two tensors are the same but for the order of their elements. The mean along each axis then tells which axis of
one is which of the other, also where two are of one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["STATISTICS", "ValueSketch", "sketch"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

STATISTICS: Final = ("mean", "root_mean_square", "cube_root_of_mean_cube", "minimum", "maximum")
_PROFILE: Final = 1024
"""A longer axis is pooled to so many bins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueSketch:
    """Statistics of one value, a few kilobytes at most; non-finite elements are counted and count as 0 in the rest.

    Attributes
    ----------
    shape
        Of the array that was sketched.
    count, nan, inf
        Elements, and how many of them are NaN or infinite.
    statistics
        float64[len(STATISTICS)], in the unit of the elements.
    profiles
        For each axis of `shape` the mean of the others at each of its positions (float64, pooled where long); empty for
        axes of length 1, and for all of them where fewer than two are longer.
    """

    shape: tuple[int, ...]
    count: int
    nan: int
    inf: int
    statistics: Floats
    profiles: tuple[Floats, ...]

    @property
    def constant(self) -> bool:
        """Whether all elements are one number, so that equality says little."""
        return bool(self.statistics[3] == self.statistics[4])

    def dequantized(self, scale: float, zero_point: int) -> ValueSketch:
        """Return the sketch of the real values of a quantised tensor: (value - zero point) * scale."""
        mean, rms, root, low, high = (float(v) for v in self.statistics)
        z = float(zero_point)
        square = max(rms**2 - 2 * z * mean + z * z, 0.0)
        cube = root**3 - 3 * z * rms**2 + 3 * z * z * mean - z**3
        moved = np.array([mean - z, np.sqrt(square), np.cbrt(cube), low - z, high - z]) * scale
        profiles = tuple((p - z) * scale for p in self.profiles)
        return ValueSketch(
            shape=self.shape, count=self.count, nan=self.nan, inf=self.inf, statistics=moved, profiles=profiles
        )


def sketch(array: Array) -> ValueSketch:
    """Return the sketch of a value.

    Parameters
    ----------
    array
        Numbers or bool of any shape; of complex ones the magnitude is taken.

    Notes
    -----
    float32 is summed by BLAS in float32, whose relative error of some 1e-6 lies below the differences of two
    frameworks; where that overflows, and for all other types but float16, float64 is used.
    """
    shape = array.shape
    if array.dtype.kind == "c":
        array = np.abs(array)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype != np.float32:
        array = array.astype(np.float64)
    flat = np.ascontiguousarray(array).reshape(-1)
    count = flat.size
    if not count:
        empty = tuple(np.empty(0) for _ in shape)
        return ValueSketch(
            shape=shape, count=0, nan=0, inf=0, statistics=np.zeros(len(STATISTICS)), profiles=empty
        )  # fmt: skip
    nan = inf = 0
    with np.errstate(all="ignore"):
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            nan, inf = int(np.isnan(flat).sum()), int(np.isinf(flat).sum())
            flat = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
            low, high = float(flat.min()), float(flat.max())
        square, cube = float(np.dot(flat, flat)), float(np.dot(flat * flat, flat))
        if not (np.isfinite(square) and np.isfinite(cube)):
            flat = flat.astype(np.float64)
            square, cube = float(np.dot(flat, flat)), float(np.dot(flat * flat, flat))
        total, profiles = _profiles(flat, shape)
        statistics = np.array(
            [total / count, np.sqrt(square / count), np.cbrt(cube / count), low, high], dtype=np.float64
        )
    return ValueSketch(
        shape=shape, count=count, nan=nan, inf=inf, statistics=np.nan_to_num(statistics), profiles=profiles
    )


def _profiles(flat: Array, shape: tuple[int, ...]) -> tuple[float, tuple[Floats, ...]]:
    """Return the sum, and the mean at each position of each axis; the array is read once for each end."""
    long = [axis for axis, length in enumerate(shape) if length > 1]
    if len(long) < 2:
        return float(flat.sum(dtype=np.float64)), tuple(np.empty(0) for _ in shape)
    made = [np.empty(0) for _ in shape]
    last = shape[long[-1]]
    rows = flat.reshape(-1, last)
    made[long[-1]] = (np.ones(len(rows), flat.dtype) @ rows).astype(np.float64) / len(rows)
    rest = (rows @ np.ones(last, flat.dtype)).astype(np.float64).reshape([shape[axis] for axis in long[:-1]])
    for position, axis in enumerate(long[:-1]):
        others = tuple(i for i in range(rest.ndim) if i != position)
        made[axis] = rest.sum(axis=others) * (shape[axis] / flat.size)
    return float(rest.sum()), tuple(_pooled(profile) for profile in made)


def _pooled(profile: Floats) -> Floats:
    if len(profile) <= _PROFILE:
        return profile
    edges = np.linspace(0, len(profile), _PROFILE + 1).astype(np.int64)
    return np.asarray(np.add.reduceat(profile, edges[:-1]) / np.diff(edges))
