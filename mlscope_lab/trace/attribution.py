"""To whom an event belongs: the iteration, the enclosing event, the launch. With numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["iteration_at"]


def iteration_at(
    times: npt.NDArray[Any], starts: npt.NDArray[np.int64], durations: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Return the iteration during which each event happened, -1 for none.

    Parameters
    ----------
    times
        (N,) times of the events, ns.
    starts, durations
        (I,) of the iterations, on the same clock, ascending and disjoint.

    Examples
    --------
    >>> iteration_at(np.array([5, 15, 25]), np.array([10, 20]), np.array([8, 2])).tolist()
    [-1, 0, -1]
    """
    if not len(starts):
        return np.full(len(times), -1, dtype=np.int32)
    found = np.searchsorted(starts, times, side="right") - 1
    inside = (found >= 0) & (times < (starts + durations)[found])
    return np.where(inside, found, -1).astype(np.int32)
