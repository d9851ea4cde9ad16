"""Judging stored measures: which share of a pair's elements is out of tolerance, and whether any is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Judged", "judge", "shares_out"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A judgement of each pair.

    Attributes
    ----------
    share_out_low, share_out_high
        float64, (pairs,): between these is the share of elements that are out of tolerance; NaN where nothing was
        compared or there is no tolerance.
    diverges
        int8, (pairs,): 1 if an element is out of tolerance, 0 if none is, -1 where that is not known: nothing was
        compared, there is no tolerance, or a relative tolerance falls inside the bins that decide.
    """

    share_out_low: Array
    share_out_high: Array
    diverges: Array


def shares_out(
    joint: Array,
    error_edges: Array,
    reference_edges: Array,
    atol: Array,
    rtol: Array,
    *,
    largest_error: Array,
    largest_reference: Array,
) -> tuple[Array, Array]:
    """Return how many elements of each pair are out of tolerance at least, and at most.

    Parameters
    ----------
    joint
        Counts, (pairs, error bins, reference bins), as in `mlscope_lab.numerics.measures.PairMeasures`.
    error_edges, reference_edges
        Edges of the bins. The first error bin is of elements without any error; the last one, of those without a size,
        is always out.
    atol, rtol
        (pairs,), no NaN.
    largest_error, largest_reference
        (pairs,), exact; NaN where they are not known.

    Returns
    -------
    tuple
        Two int64 arrays, (pairs,).
    """
    pairs, rows, columns = joint.shape
    cells = np.flatnonzero(joint.reshape(-1) != 0)  # twice as fast as on the numbers
    pair, cell = np.divmod(cells, rows * columns)
    row, column = np.divmod(cell, columns)
    count = joint.reshape(-1)[cells]
    absolute, relative = atol[pair], rtol[pair]
    low, high = error_edges[row], np.fmin(error_edges[row + 1], largest_error[pair])
    high[row == 0] = 0.0
    with np.errstate(invalid="ignore"):
        far = relative * np.fmin(reference_edges[column + 1], largest_reference[pair])
        near = relative * reference_edges[column]
    far[np.isnan(far)] = 0.0  # nothing times Inf: no relative tolerance
    without_size = row == rows - 1
    surely = (low > absolute + far) | without_size
    perhaps = (high > absolute + near) | without_size
    return tuple(  # type: ignore[return-value]
        np.bincount(pair[mask], weights=count[mask], minlength=pairs).astype(np.int64) for mask in (surely, perhaps)
    )


def judge(
    columns: Mapping[str, Array], joint: Array, error_edges: Array, reference_edges: Array, atol: Array, rtol: Array
) -> Judged:
    """Judge pairs by what is stored of them.

    Parameters
    ----------
    columns
        Of ``/pairs``: ``count``, ``max_abs_error``, ``worst_a``, ``min_a`` and ``max_a``.
    joint, error_edges, reference_edges
        As in ``/sketches``.
    atol, rtol
        float64, (pairs,); NaN for none.

    Returns
    -------
    Judged
        By ``|b - a| > atol + rtol * |a|``. Exact for ``rtol = 0``; else the element with the largest error, which is
        known exactly, is judged beside the bins.
    """
    count, error = np.asarray(columns["count"]), np.asarray(columns["max_abs_error"], dtype=np.float64)
    atol, rtol = np.asarray(atol, dtype=np.float64), np.asarray(rtol, dtype=np.float64)
    known = (count > 0) & ~np.isnan(atol) & ~np.isnan(rtol) & ~np.isnan(error)
    absolute, relative = np.where(known, atol, 0.0), np.where(known, rtol, 0.0)
    reference = np.fmax(np.abs(columns["min_a"]), np.abs(columns["max_a"]))
    if joint.size:
        low, high = shares_out(
            joint, error_edges, reference_edges, absolute, relative, largest_error=error, largest_reference=reference
        )
    else:
        low, high = np.zeros_like(count), count.copy()
    worst = np.abs(np.asarray(columns["worst_a"], dtype=np.float64))
    with np.errstate(invalid="ignore"):
        # a reference that is NaN or Inf has no tolerance: its element has no error, or one without a size
        out = error > absolute + np.where(np.isfinite(worst), relative * worst, 0.0)
    out |= np.isposinf(error)
    low = np.maximum(low, out)
    high = np.where(error <= absolute, 0, np.maximum(high, low))
    diverges = np.where(low > 0, 1, np.where(high == 0, 0, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [np.where(known, share / np.maximum(count, 1), np.nan) for share in (low, high)]
    return Judged(
        share_out_low=shares[0], share_out_high=shares[1], diverges=np.where(known, diverges, -1).astype(np.int8)
    )
