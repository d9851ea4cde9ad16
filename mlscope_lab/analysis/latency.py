"""Latency: the headline of a run, and the comparison of two configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.analysis.statistics import (
    PERCENTILE_FLOORS,
    compare_medians,
    drift,
    geometric_interval,
    median_interval,
    percentile,
)
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare_latency", "process_medians", "summarize"]

STAGES = ("preprocess", "predict", "postprocess", "total")
DRIFT_LIMIT = 1.05


def _latency(run: xr.DataTree) -> xr.Dataset:
    if schema.LATENCY not in run.children:
        name, status = run.attrs.get("run_id", "?"), run.attrs.get("status", "?")
        raise SchemaError(f"Run {name} has no /{schema.LATENCY} group (status: {status})")
    return run[schema.LATENCY].to_dataset()


def process_medians(run: xr.DataTree, stage: str = "predict") -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the median of a stage in each process, in nanoseconds, shape (processes,)."""
    data = _latency(run)
    values, process = _stage(data, stage), data["process"].values
    return np.array([np.median(values[process == p]) for p in np.unique(process)], dtype=np.float64)


def _stage(data: xr.Dataset, stage: str) -> np.ndarray[Any, Any]:
    if stage == "total":
        return np.asarray(sum(data[f"{s}_ns"].values for s in STAGES[:-1]))
    return np.asarray(data[f"{stage}_ns"].values)


def summarize(run: xr.DataTree) -> xr.Dataset:
    """Summarise the untraced latency of a run.

    Parameters
    ----------
    run
        A run with a ``/latency`` group.

    Returns
    -------
    xarray.Dataset
        Along ``stage`` (preprocess, predict, postprocess, total), in ns: ``median_ns``, its 95 % interval ``low_ns``
        and ``high_ns``, ``minimum_ns``, ``mean_ns``; along ``percentile``: ``percentile_ns`` (NaN below the sample
        floor, see ``floor``); scalars ``throughput`` (samples/s), ``drift``, ``iterations``, ``processes``. The
        attribute ``unit_of_replication`` says whether the interval is over processes or within the only one.
    """
    import xarray as xr

    data = _latency(run)
    process = data["process"].values
    processes = len(np.unique(process))
    rows = []
    for stage in STAGES:
        values = _stage(data, stage)
        if processes > 1:
            interval = geometric_interval(process_medians(run, stage).clip(min=1.0))
        else:
            interval = median_interval(values)
        rows.append((interval.centre, interval.low, interval.high, float(values.min()), float(values.mean())))
    columns = np.array(rows).T
    names = ("median_ns", "low_ns", "high_ns", "minimum_ns", "mean_ns")
    predict = _stage(data, "predict")
    batch = int(run.attrs.get("batch_size", 1))
    drifts = [drift(predict[process == p]) for p in np.unique(process)]
    finite = [d for d in drifts if not math.isnan(d)]
    worst = max(finite, key=lambda d: abs(math.log(d))) if finite else math.nan
    levels = list(PERCENTILE_FLOORS)
    return xr.Dataset(
        {
            **{name: ("stage", column, {"units": "ns"}) for name, column in zip(names, columns, strict=True)},
            "percentile_ns": (("stage", "percentile"),
                              [[percentile(_stage(data, s), p) for p in levels] for s in STAGES], {"units": "ns"}),
            "floor": ("percentile", list(PERCENTILE_FLOORS.values()), {"long_name": "fewest iterations needed"}),
            "throughput": ((), batch / columns[0][STAGES.index("predict")] * 1e9, {"units": "1/s"}),
            "drift": ((), worst, {"long_name": "last third over first third of the predict times, worst process"}),
            "iterations": ((), len(predict)),
            "processes": ((), processes),
        },
        coords={"stage": np.array(STAGES, dtype=object), "percentile": levels},
        attrs={
            "backend": run.attrs.get("backend"),
            "model": run.attrs.get("model"),
            "confidence": 0.95,
            "unit_of_replication": "process" if processes > 1 else "iteration (one process)",
            "interval": "t interval on log medians of processes" if processes > 1 else "interpolated order statistics",
            "drifting": bool(finite and abs(math.log(worst)) > math.log(DRIFT_LIMIT)),
        },
    )  # fmt: skip


def compare_latency(a: xr.DataTree | Sequence[xr.DataTree], b: xr.DataTree | Sequence[xr.DataTree]) -> xr.Dataset:
    """Tell whether b is faster or slower than a, the process being the unit.

    Parameters
    ----------
    a, b
        Runs of two configurations, best measured interleaved with five processes each (`mlscope_lab.compare_latency`
        does that). A sequence of runs of one configuration counts as one with all their processes.

    Returns
    -------
    xarray.Dataset
        Scalars ``ratio`` (median predict time of b over a), ``low``, ``high``, ``confidence``, ``detectable_ratio``,
        ``processes_a``, ``processes_b``; attributes ``verdict`` (of b against a), ``reason`` and ``sentence``.
    """
    import xarray as xr

    sides = [[s] if isinstance(s, xr.DataTree) else list(s) for s in (a, b)]
    medians = [np.concatenate([process_medians(run) for run in side]) for side in sides]
    names = [f"{side[0].attrs['model']} on {side[0].attrs['backend']}" for side in sides]
    found = compare_medians(*medians)
    values = {k: getattr(found, k) for k in ("ratio", "low", "high", "confidence", "detectable_ratio")}
    if found.verdict == "undecided":
        sentence = f"Undecided whether {names[1]} differs from {names[0]}: {found.reason}."
    elif found.verdict == "same":
        sentence = f"{names[1]} takes the same time as {names[0]}, within 5 %."
    else:
        factor = found.ratio if found.verdict == "slower" else 1 / found.ratio
        sentence = f"{names[1]} is {factor:.2f} times {found.verdict} than {names[0]}."
    if not math.isnan(found.low):
        sentence += (
            f" Ratio {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}] at {found.confidence:.0%}; a ratio of "
            f"{found.detectable_ratio:.3f} would have shown."
        )
    return xr.Dataset(
        {
            **{key: ((), value) for key, value in values.items()},
            "processes_a": ((), found.n_a),
            "processes_b": ((), found.n_b),
        },
        attrs={"verdict": found.verdict, "reason": found.reason, "sentence": sentence},
    )
