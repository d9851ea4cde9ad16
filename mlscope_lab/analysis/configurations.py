"""Layers that many models share, and what a model would take that is made of them.

A configuration is what two layers have in common that cost alike: type, shapes and the size of the weights. Layers
that enclose others are none: their time is that of what is inside.

References
----------
DLBricks, "Composable Benchmark Generation to Reduce Deep Learning Benchmarking Effort on CPUs", arXiv 1911.07967: most
layers of most models repeat, so that timing each configuration once predicts the latency of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.latency import predict_interval
from mlscope_lab.analysis.layers import layer_data, leaf_layers
from mlscope_lab.analysis.statistics import Interval, geometric_interval, medians_by_group
from mlscope_lab.analysis.tables import share_of, table, texts
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["layer_statistics", "predict_latency"]

_KEY = ("type", "input_shapes", "output_shapes", "parameter_bytes")
_ENVIRONMENT = ("backend", "device", "precision", "threads")
Key = tuple[str, str, str, int]


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """The layers of one run that enclose no others, and what the run took."""

    run: xr.DataTree
    keys: list[Key]
    median: npt.NDArray[np.float64]  # exclusive ns of each
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    latency: Interval  # untraced

    @property
    def environment(self) -> tuple[Any, ...]:
        return tuple(self.run.attrs.get(name) for name in _ENVIRONMENT)


def _timed(run: xr.DataTree) -> _Timed:
    data = layer_data(run)
    of = np.flatnonzero(leaf_layers(data))
    columns = [data[name].values[of] for name in _KEY]
    keys = [(str(a), str(b), str(c), int(d)) for a, b, c, d in zip(*columns, strict=True)]
    ran = data["start_ns"].values[:, of] >= 0
    rows, layers = np.nonzero(ran)
    exclusive = data["exclusive_ns"].values[:, of]
    # one that runs in some iterations only counts in proportion
    weight = ran.mean(axis=0) if len(ran) else np.zeros(len(of))
    median, low, high, _ = medians_by_group(exclusive[rows, layers], layers, len(of))
    return _Timed(run=run, keys=keys, median=np.nan_to_num(median) * weight, low=low * weight, high=high * weight,
                  latency=predict_interval(run))  # fmt: skip


def layer_statistics(runs: Sequence[xr.DataTree]) -> xr.Dataset:
    """Tell which layers are common among models.

    Parameters
    ----------
    runs
        Of several models, at level "layer" or deeper. Several runs of one model count as one for ``models``.

    Returns
    -------
    xarray.Dataset
        Along ``configuration``, most frequent first: ``type``, ``input_shapes``, ``output_shapes``,
        ``parameter_bytes``, ``count`` of layers of all runs, ``runs`` and ``models`` in which it occurs,
        ``exclusive_ns`` (median over these layers' medians), ``low_ns`` and ``high_ns`` (its 95 % bounds),
        ``total_ns`` (sum) and ``share`` of all runs' layer time. Scalars: ``layers`` (of all runs), ``configurations``,
        and ``repeated_share``, the share of the layers whose configuration occurs more than once.

    Raises
    ------
    SchemaError
        If a run has no layers.
    InputError
        If there are no runs.
    """
    if not runs:
        raise InputError("layer_statistics needs at least one run")
    number: dict[Key, int] = {}
    group, times, of_run = [], [], []
    models = [str(run.attrs.get("model")) for run in runs]
    for index, run in enumerate(runs):
        found = _timed(run)
        group += [number.setdefault(key, len(number)) for key in found.keys]
        times.append(found.median)
        of_run += [index] * len(found.keys)
    groups = len(number)
    at, values = np.array(group, dtype=np.int64), np.concatenate([np.zeros(0), *times])
    median, low, high, count = medians_by_group(values, at, groups)
    seen: list[set[int]] = [set() for _ in range(groups)]
    for place, run_number in zip(group, of_run, strict=True):
        seen[place].add(run_number)
    total = np.bincount(at, weights=values, minlength=groups)
    order = np.argsort(-count, kind="stable")
    keys = list(number)
    columns: dict[str, Any] = {
        **{name: texts([str(keys[i][n]) for i in order]) for n, name in enumerate(_KEY[:-1])},
        "parameter_bytes": np.array([keys[i][-1] for i in order], dtype=np.int64),
        "count": count[order],
        "runs": np.array([len(seen[i]) for i in order], dtype=np.int64),
        "models": np.array([len({models[r] for r in seen[i]}) for i in order], dtype=np.int64),
        "exclusive_ns": median[order], "low_ns": low[order], "high_ns": high[order], "total_ns": total[order],
        "share": share_of(total)[order],
    }  # fmt: skip
    layers = len(group)
    repeated = float(count[count > 1].sum()) / layers if layers else np.nan
    return table("configuration", np.arange(groups), columns,
                 scalars={"layers": layers, "configurations": groups, "repeated_share": repeated},
                 attrs={"confidence": 0.95, "runs": len(runs), "models": len(set(models))})  # fmt: skip


def predict_latency(runs: Sequence[xr.DataTree], *, same_model: bool = True) -> xr.Dataset:
    """Predict each run's latency from the layers of the others, and compare with what was measured.

    Parameters
    ----------
    runs
        Of several models (or sizes of one), measured with the same backend, device, precision and threads, at level
        "layer" or deeper. Only runs of an equal environment predict each other.
    same_model
        Whether other runs of the same model count, too.

    Returns
    -------
    xarray.Dataset
        Along ``run`` (run ids): ``model``, ``predicted_ns`` with ``low_ns`` and ``high_ns``, ``measured_ns`` (untraced
        predict) with ``measured_low_ns`` and ``measured_high_ns``, ``error`` (predicted over measured less 1),
        ``inside`` (1 if the two intervals meet), ``layers``, ``known_layers`` (those whose configuration another run
        has) and ``known_share`` (of the run's own layer time). A prediction with layers missing is a lower bound, and
        has ``complete`` 0; without any it is NaN. Scalar ``median_error`` is the median of the absolute errors of
        complete predictions.

    Raises
    ------
    SchemaError
        If a run has no layers.
    InputError
        With fewer than two runs.

    Notes
    -----
    The layers' medians are summed, and scaled by what the runs that they come from took untraced over the sum of their
    layers: tracing makes layers longer, and a model does more than its layers. Error bars add up the bounds of the
    layers, as if these were off together (the machine's speed is the same for all), and those of the scale: over runs
    where there are several, else none, so that they are too narrow then.
    """
    if len(runs) < 2:
        raise InputError("predict_latency needs at least two runs: one to predict, and one whose layers are timed")
    timed = [_timed(run) for run in runs]
    rows = [_predicted(target, _known_to(target, timed, same_model)) for target in timed]
    columns: dict[str, Any] = {
        "model": texts([str(run.attrs.get("model")) for run in runs]),
        **{name: np.array([row[name] for row in rows]) for name in rows[0]},
    }
    errors = np.abs(columns["error"][(columns["complete"] == 1) & np.isfinite(columns["error"])])
    return table("run", [str(run.attrs["run_id"]) for run in runs], columns,
                 scalars={"median_error": float(np.median(errors)) if len(errors) else np.nan},
                 attrs={"confidence": 0.95})  # fmt: skip


def _known_to(target: _Timed, timed: Sequence[_Timed], same_model: bool) -> list[_Timed]:
    """Return the runs whose layers may predict another one."""
    model = target.run.attrs.get("model")
    return [
        other
        for other in timed
        if other is not target
        and other.environment == target.environment
        and (same_model or other.run.attrs.get("model") != model)
    ]


def _predicted(target: _Timed, others: Sequence[_Timed]) -> dict[str, float]:
    samples: dict[Key, list[tuple[float, float, float]]] = {}
    for other in others:
        for key, *values in zip(other.keys, other.median, other.low, other.high, strict=True):
            samples.setdefault(key, []).append((values[0], values[1], values[2]))
    cached = {key: _cached(found) for key, found in samples.items()}
    known = [key in cached for key in target.keys]
    sums = np.sum([cached[key] for key in target.keys if key in cached], axis=0) if any(known) else np.full(3, np.nan)
    scale = _scale(others)
    predicted, low, high = sums * np.array([scale.centre, scale.low, scale.high])
    measured = target.latency
    own = float(target.median.sum())
    return {
        "predicted_ns": predicted, "low_ns": low, "high_ns": high, "measured_ns": measured.centre,
        "measured_low_ns": measured.low, "measured_high_ns": measured.high,
        "error": predicted / measured.centre - 1.0,
        "inside": float(low <= measured.high and high >= measured.low),
        "complete": int(all(known) and bool(known)), "layers": len(known), "known_layers": sum(known),
        "known_share": float(target.median[np.array(known, dtype=bool)].sum()) / own if own > 0 else np.nan,
    }  # fmt: skip


def _cached(found: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return time, low and high of a configuration: the spread over its samples, or the interval of the only one."""
    values = np.array(found)
    middle = float(np.median(values[:, 0]))
    bounds = values[:, 1:] if np.isfinite(values[:, 1:]).all() else values[:, [0, 0]]
    return middle, float(bounds[:, 0].min()), float(bounds[:, 1].max())


def _scale(others: Sequence[_Timed]) -> Interval:
    """Return what runs take untraced over the sum of their layers; 1 where that is unknown."""
    ratios = np.array([o.latency.centre / o.median.sum() for o in others if o.median.sum() > 0])
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if len(ratios) > 1:
        return geometric_interval(ratios)
    centre = float(ratios[0]) if len(ratios) else 1.0
    return Interval(centre=centre, low=centre, high=centre, confidence=0.95, n=len(ratios))
