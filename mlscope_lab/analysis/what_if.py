"""What the model would take if a layer were faster."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import union_by_group
from mlscope_lab.analysis.latency import predict_interval
from mlscope_lab.analysis.layers import layer_data, leaf_layers
from mlscope_lab.analysis.statistics import median_interval, medians_by_group
from mlscope_lab.analysis.tables import run_attrs, table, texts
from mlscope_lab.errors import InputError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["what_if"]

_EACH = 0.975
"""Confidence of each of the two intervals that are combined, so that both hold at once with 95 % (Bonferroni)."""


def what_if(
    run: xr.DataTree, *, factor: float = 2.0, layer: str | None = None, layer_type: str | None = None
) -> xr.Dataset:
    """Bound the model's latency if a layer were so many times as fast.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.
    factor
        How many times as fast; ``inf`` takes the layer out.
    layer
        Label of the one layer; default each layer for itself, the one that would gain most first.
    layer_type
        All layers of this type at once, instead of one.

    Returns
    -------
    xarray.Dataset
        Along ``layer`` (for a type one row of its name): ``latency_ns`` that the model would take, with bounds
        ``low_ns`` and ``high_ns``, ``saved_ns``, ``speedup`` of the model, ``share`` (the layer's exclusive time over
        the traced predict) and ``alone_share`` (the part of it during which no other layer runs).

    Raises
    ------
    InputError
        If the factor is not above 0, or no layer is called so.
    SchemaError
        If the run has no layers.

    Notes
    -----
    Amdahl's law on the untraced latency, the layer's share taken from each traced predict. What runs beside another
    layer may save nothing, so the upper bound lets only the time alone shrink. Both bounds combine the interval of
    the latency with that of the share. A faster layer may also leave other data in the caches; that is not in them.
    """
    if not (isinstance(factor, int | float) and factor > 0):
        raise InputError(f"factor must be above 0, such as 2, not {factor!r}")
    data = layer_data(run)
    names, types = data["name"].values, data["type"].values
    if layer is not None and layer_type is not None:
        raise InputError("give layer or layer_type, not both")
    if layer is not None and layer not in names:
        raise InputError(f"No layer is called '{layer}'.{nearest(layer, [str(n) for n in names])}")
    if layer_type is not None and layer_type not in types:
        known = sorted({str(t) for t in types})
        raise InputError(f"No layer is of type '{layer_type}'. Types: {', '.join(known)}.{nearest(layer_type, known)}")
    whole = data["pass_duration_ns"].values
    ran = data["start_ns"].values >= 0
    exclusive = np.where(ran, data["exclusive_ns"].values, 0)
    alone = np.minimum(_alone(data), exclusive)
    if layer_type is not None:
        chosen = types == layer_type
        labels = texts([layer_type])
        exclusive, alone = exclusive[:, chosen].sum(axis=1)[:, None], alone[:, chosen].sum(axis=1)[:, None]
    else:
        chosen = np.ones(len(names), dtype=bool) if layer is None else names == layer
        labels, exclusive, alone = names[chosen], exclusive[:, chosen], alone[:, chosen]
    base = np.where(whole > 0, whole, 1)[:, None]
    shares, of_alone = np.minimum(exclusive / base, 1.0), np.minimum(alone / base, 1.0)
    n = len(labels)
    index = np.broadcast_to(np.arange(n), shares.shape).ravel()
    share, _, share_high, _ = medians_by_group(shares.ravel(), index, n, _EACH)
    single, single_low, _, _ = medians_by_group(of_alone.ravel(), index, n, _EACH)
    gain = 1.0 - 1.0 / factor
    now, bounds = predict_interval(run), predict_interval(run, _EACH)
    if math.isnan(now.centre):  # an imported trace: the traced predict is all that is known
        now, bounds = median_interval(whole), median_interval(whole, _EACH)
    latency = now.centre * (1.0 - share * gain)
    if gain >= 0:
        low, high = bounds.low * (1.0 - share_high * gain), bounds.high * (1.0 - single_low * gain)
    else:  # slower, not faster: what runs beside another layer may cost nothing
        low, high = bounds.low * (1.0 - single_low * gain), bounds.high * (1.0 - share_high * gain)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns: dict[str, npt.NDArray[np.float64]] = {
            "latency_ns": latency, "low_ns": low, "high_ns": high, "saved_ns": now.centre - latency,
            "speedup": now.centre / latency, "share": share, "alone_share": single,
        }  # fmt: skip
    order = np.argsort(-columns["saved_ns"], kind="stable") if gain >= 0 else np.argsort(columns["saved_ns"])
    return table("layer", texts(labels[order]), {name: values[order] for name, values in columns.items()},
                 scalars={"now_ns": now.centre, "now_low_ns": bounds.low, "now_high_ns": bounds.high},
                 attrs=run_attrs(run, factor=float(factor), confidence=0.95))  # fmt: skip


def _alone(data: xr.Dataset) -> npt.NDArray[np.int64]:
    """Return for how long each layer runs while none but those that enclose it do, (iterations, layers)."""
    start, duration = data["start_ns"].values, data["duration_ns"].values
    iterations = len(start)
    leaf = leaf_layers(data)
    ran = start >= 0
    everything = ran & leaf
    row = np.broadcast_to(np.arange(iterations)[:, None], start.shape)
    total = union_by_group(start[everything], duration[everything], row[everything], iterations)
    summed = np.where(everything, duration, 0).sum(axis=1)
    if (total == summed).all():  # nothing overlaps: each runs alone, all of its own time
        return np.where(ran, data["exclusive_ns"].values, 0)
    found = np.where(ran & ~leaf, data["exclusive_ns"].values, 0)
    for iteration in range(iterations):
        at = np.flatnonzero(everything[iteration])
        found[iteration, at] = _covered_once(start[iteration, at], duration[iteration, at])
    return found


def _covered_once(start: npt.NDArray[np.int64], duration: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how long each of some intervals is the only one."""
    end = start + duration
    times = np.unique(np.concatenate([start, end]))
    first, last = np.searchsorted(times, start), np.searchsorted(times, end)
    depth = np.zeros(len(times) + 1, dtype=np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, last, -1)
    single = np.cumsum(depth[:-1]) == 1
    lengths = np.where(single[:-1], np.diff(times), 0)
    before = np.concatenate([[0], np.cumsum(lengths)])
    return np.asarray(before[last] - before[first], dtype=np.int64)
