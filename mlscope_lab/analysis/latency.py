"""Latency: the headline of a run, and the comparison of two configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.analysis.statistics import (
    CONFIDENCE,
    PERCENTILE_FLOORS,
    Interval,
    compare_medians,
    drift,
    geometric_interval,
    median_interval,
    percentile,
)
from mlscope_lab.analysis.tables import table, texts
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare_latency", "model_information", "predict_interval", "process_medians", "summarize"]

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


def predict_interval(run: xr.DataTree, confidence: float = CONFIDENCE) -> Interval:
    """Return the untraced predict time of a run with its interval, ns; NaN where the run has no untraced iterations.

    The interval is over processes where there are several, else within the only one.
    """
    node = run.children.get(schema.LATENCY)
    if node is None or not node.dataset.sizes.get("latency_iteration"):
        return median_interval(np.zeros(0), confidence)
    medians = process_medians(run)
    if len(medians) > 1:
        return geometric_interval(medians.clip(min=1.0), confidence)
    return median_interval(node.dataset["predict_ns"].values, confidence)


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


def model_information(runs: Sequence[xr.DataTree]) -> xr.Dataset:
    """Return latency and throughput over batch sizes: A1, the model information table.

    Parameters
    ----------
    runs
        Of one model or several, best at several batch sizes; runs of one configuration are rows of their own.

    Returns
    -------
    xarray.Dataset
        Along ``run`` (run ids), by model, backend, device and batch size: these, ``precision``, ``threads``,
        ``latency_ns`` (untraced predict, median) with 95 % bounds ``low_ns`` and ``high_ns`` (over processes where
        there are several, else within the only one), ``throughput`` in samples/s with ``throughput_low`` and
        ``throughput_high``, ``iterations``, ``processes``, and ``optimal``: 1 for the batch size with the highest
        throughput among the runs of its configuration, else 0.

    Raises
    ------
    SchemaError
        If a run has no untraced latency.
    InputError
        If there are no runs.
    """
    if not runs:
        raise InputError("model_information needs at least one run")
    for run in runs:
        _latency(run)

    def key(run: xr.DataTree) -> tuple[Any, ...]:
        return (*(str(run.attrs.get(n)) for n in ("model", "backend", "device", "precision", "threads")),
                run.attrs.get("batch_size") or 0)  # fmt: skip

    ordered = sorted(runs, key=key)
    found = [predict_interval(run) for run in ordered]
    batch = np.array([run.attrs.get("batch_size") or np.nan for run in ordered], dtype=np.float64)
    median, low, high = (np.array([getattr(f, n) for f in found], dtype=np.float64) for n in ("centre", "low", "high"))
    throughput = batch / median * 1e9
    best: dict[tuple[Any, ...], int] = {}
    for row, run in enumerate(ordered):
        at = best.setdefault(key(run)[:-1], row)
        if throughput[row] > throughput[at]:
            best[key(run)[:-1]] = row
    described = {
        name: texts([str(run.attrs.get(name)) for run in ordered])
        for name in ("model", "backend", "device", "precision", "threads")
    }
    return table(
        "run", [str(run.attrs["run_id"]) for run in ordered],
        {
            **described, "batch_size": batch, "latency_ns": median, "low_ns": low, "high_ns": high,
            "throughput": throughput, "throughput_low": batch / high * 1e9, "throughput_high": batch / low * 1e9,
            "iterations": np.array([len(_latency(run)["predict_ns"]) for run in ordered]),
            "processes": np.array([len(process_medians(run)) for run in ordered]),
            "optimal": np.array([int(row in best.values()) for row in range(len(ordered))], dtype=np.int8),
        },
        attrs={"confidence": CONFIDENCE},
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
