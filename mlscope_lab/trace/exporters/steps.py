"""The iterations of a run's events as the steps that PyTorch's profiler marks, by which other tools know them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema
from mlscope_lab.trace.exporters.timeline import PassSpan, slices_of, texts_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["steps_of"]

_MARK = re.compile(r"ProfilerStep#\d+")
_MOST = 1_000_000
_NEVER = np.iinfo(np.int64).max


def steps_of(run: xr.DataTree, passes: list[PassSpan]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return start and end of each step, on the run's clock, in order.

    Parameters
    ----------
    run
        A run.
    passes
        Its passes.

    Returns
    -------
    start, end
        (S,) of what the host did in each iteration of each pass; none if the run marks steps itself, has no iterations,
        or has some that overlap.
    """
    none = np.zeros(0, dtype=np.int64)
    if any(_MARK.fullmatch(name) for name in texts_of(run, schema.ANNOTATIONS).get("name", [])):
        return none, none
    offsets = np.array([span.start_ns for span in passes], dtype=np.int64)
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for group in (schema.OPERATORS, schema.RUNTIME):
        for columns in slices_of(run, group):
            inside = columns["iteration"] >= 0
            index, iteration = columns["pass_index"][inside], columns["iteration"][inside]
            start = columns["start_ns"][inside] + offsets[index]
            end = start + columns["duration_ns"][inside]
            pairs, place = np.unique(np.stack([index, iteration], axis=1), axis=0, return_inverse=True)
            first, last = np.full(len(pairs), _NEVER), np.full(len(pairs), -_NEVER)
            np.minimum.at(first, place.reshape(-1), start)
            np.maximum.at(last, place.reshape(-1), end)
            for (p, i), begin, finish in zip(pairs.tolist(), first.tolist(), last.tolist(), strict=True):
                known = found.get((p, i), (begin, finish))
                found[p, i] = min(known[0], begin), max(known[1], finish)
            if len(found) > _MOST:
                return none, none
    spans = np.array([found[key] for key in sorted(found)], dtype=np.int64).reshape(-1, 2)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if (spans[1:, 0] < spans[:-1, 1]).any():
        return none, none
    return spans[:, 0], spans[:, 1]
