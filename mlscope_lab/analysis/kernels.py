"""Kernels: each one, by name, on the roofline, and of the whole model (A8, A9, A10 and A15 of XSP).

Where a run holds no device kernels these work on what stands for them; ``attrs["source"]`` says on what
(`mlscope_lab.analysis.work`). Times come from the passes that trace least, counters from those that hold them: reading
counters slows a kernel down. Only what happens in a measured iteration counts, and what does not is said.

References
----------
XSP, arXiv 1908.06869. Williams, Waterman and Patterson, "Roofline", CACM 52 (2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import sum_by_group
from mlscope_lab.analysis.metrics import Peaks, metric_totals, roof_columns
from mlscope_lab.analysis.sites import Sites, sites_of
from mlscope_lab.analysis.statistics import median_bounds
from mlscope_lab.analysis.tables import run_attrs, share_of, table, texts
from mlscope_lab.analysis.work import KINDS, Work, cells_of, work_of
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["kernel_information", "kernel_roofline", "kernels_by_model", "kernels_by_name", "per_iteration",
           "work_attrs"]  # fmt: skip

_TOTALS = ("duration_ns", "low_ns", "high_ns")


def per_iteration(work: Work, values: npt.NDArray[Any], group: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    """Return the sum of values by iteration and group, (iterations, groups); what lies outside iterations is left out.

    Parameters
    ----------
    work
        Kernels.
    values, group
        (N,), one an entry of `work`; groups below 0 are left out.
    groups
        How many there are.
    """
    place = np.where((work.iteration >= 0) & (group >= 0), work.iteration * groups + group, -1)
    return sum_by_group(values, place, cells_of(work.iterations, groups)).reshape(work.iterations, groups)


def totals(sums: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return medians over iterations with 95 % bounds, by the names of a table's columns."""
    low, high = median_bounds(sums)
    return dict(zip(_TOTALS, (np.median(sums, axis=0), low, high), strict=True))


def work_attrs(run: xr.DataTree, work: Work, **more: Any) -> dict[str, Any]:
    """Return the attributes of an analysis of kernels: where they come from and what was left out."""
    outside = work.iteration < 0
    found = {"source": work.source, "level": work.rows.level, "iterations": work.iterations, "confidence": 0.95}
    if not work.marked:
        found["iterations_marked"] = "no iteration is marked: the whole counts as one"
    if outside.any():
        found["outside_iterations"] = int(outside.sum())
        found["outside_iterations_ns"] = int(work.duration[outside].sum())
    return run_attrs(run, **found, **more)


def _kernels(run: xr.DataTree) -> tuple[Work, Sites, dict[str, Any]]:
    """Return the work, its call sites, and the columns that describe these."""
    work = work_of(run)
    sites = sites_of(work)
    median, low, high, calls = sites.medians(work.duration)
    columns: dict[str, Any] = {
        "name": work.names[sites.name],
        "layer_name": work.layers[sites.layer],
        "layer_index": sites.layer,
        "kind": texts(KINDS)[sites.of_first(work.kind)],
        "duration_ns": median,
        "low_ns": low,
        "high_ns": high,
        # one that runs in some iterations only counts in proportion
        "share": share_of(median * calls),
        "calls": calls,
    }
    return work, sites, columns


def _information(
    run: xr.DataTree, peaks: Peaks, *, roofline: bool
) -> tuple[Work, dict[str, Any], Mapping[str, str]]:  # fmt: skip
    work, sites, columns = _kernels(run)
    metrics = metric_totals(run, work, sites=sites)
    columns |= metrics.means
    columns |= roof_columns(metrics.means, columns["duration_ns"], peaks, roof=roofline)
    return work, columns, metrics.sources


def kernel_information(
    run: xr.DataTree, *, peak_flops: float | None = None, peak_bandwidth: float | None = None
) -> xr.Dataset:
    """Return every kernel call of an iteration: A8, the GPU kernel information table.

    Parameters
    ----------
    run
        A run at level "operator" or deeper, or an imported trace.
    peak_flops, peak_bandwidth
        Of the device, flop/s and byte/s; they decide what is memory-bound.

    Returns
    -------
    xarray.Dataset
        Along ``kernel``, in order of first start. The n-th call of a kernel in a layer is one row for all iterations:
        ``name``, ``layer_name``, ``layer_index``, ``kind``, ``duration_ns`` with 95 % bounds ``low_ns`` and
        ``high_ns``, ``share`` of all, ``calls`` (iterations in which it ran), and where counters were recorded
        ``flops``, ``dram_read_bytes``, ``dram_write_bytes``, ``occupancy``, ``arithmetic_intensity``,
        ``achieved_flops`` and, with both peaks, ``memory_bound``.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work, columns, sources = _information(run, Peaks.of(peak_flops, peak_bandwidth), roofline=False)
    labels = np.arange(len(columns["name"]))
    return table("kernel", labels, columns, attrs=work_attrs(run, work, **sources))


def kernel_roofline(
    run: xr.DataTree, *, peak_flops: float | None = None, peak_bandwidth: float | None = None
) -> xr.Dataset:
    """Return where each kernel stands on the roofline: A9, the GPU kernel roofline.

    Parameters
    ----------
    run
        A run with flops and memory traffic of its kernels.
    peak_flops, peak_bandwidth
        Of the device, flop/s and byte/s; without them there is no roof, only the points.

    Returns
    -------
    xarray.Dataset
        As from `kernel_information`, the kernels whose arithmetic intensity is known, with ``roof`` (flop/s that the
        peaks allow there), ``roof_share`` (achieved over that), ``memory_bound``, and in ``attrs`` the peaks and the
        ridge. How many kernels have no place there is ``attrs["without_metrics"]``.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    peaks = Peaks.of(peak_flops, peak_bandwidth)
    work, columns, sources = _information(run, peaks, roofline=True)
    intensity = columns.get("arithmetic_intensity")
    known = np.zeros(len(columns["name"]), dtype=bool) if intensity is None else np.isfinite(intensity)
    rows = np.flatnonzero(known)
    attrs = work_attrs(run, work, **sources, **peaks.attrs(), without_metrics=int((~known).sum()))
    return table("kernel", rows, {name: values[rows] for name, values in columns.items()}, attrs=attrs)


def kernels_by_name(
    run: xr.DataTree, *, peak_flops: float | None = None, peak_bandwidth: float | None = None
) -> xr.Dataset:
    """Sum the kernels of one name: A10, the GPU kernel information aggregated by name.

    Parameters
    ----------
    run
        A run at level "operator" or deeper, or an imported trace.
    peak_flops, peak_bandwidth
        Of the device, flop/s and byte/s.

    Returns
    -------
    xarray.Dataset
        Along ``name`` (of operators the type, where the tool tells one), longest first: ``kind``, ``kernels`` (calls in
        an iteration, mean), ``duration_ns`` (sum in an iteration, median over iterations) with its bounds, ``share``,
        and the metrics of `kernel_information`: flops and traffic are sums in an iteration, occupancy is weighted by
        time.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    group, labels = work.groups
    names = len(labels)
    inside = np.where(work.iteration >= 0, group, -1)
    count = sum_by_group(np.ones(len(work), dtype=np.int64), inside, names)
    columns: dict[str, Any] = {"kernels": count / work.iterations}
    columns |= totals(per_iteration(work, work.duration, group, names))
    first = np.zeros(names, dtype=np.int64)
    first[group[::-1]] = np.arange(len(work))[::-1]
    columns["kind"] = texts(KINDS)[work.kind[first]]
    columns["share"] = share_of(columns["duration_ns"])
    metrics = metric_totals(run, work, by="name", groups=names)
    columns |= metrics.means
    columns |= roof_columns(metrics.means, columns["duration_ns"], Peaks.of(peak_flops, peak_bandwidth))
    rows = np.flatnonzero(count)
    rows = rows[np.argsort(-columns["duration_ns"][rows], kind="stable")]
    return table("name", labels[rows], {name: values[rows] for name, values in columns.items()},
                 attrs=work_attrs(run, work, **metrics.sources))  # fmt: skip


def kernels_by_model(
    runs: Sequence[xr.DataTree], *, peak_flops: float | None = None, peak_bandwidth: float | None = None
) -> xr.Dataset:
    """Sum all kernels of a model: A15, the GPU kernel information aggregated by model, and its roofline.

    Parameters
    ----------
    runs
        One or several, such as those of a model at several batch sizes.
    peak_flops, peak_bandwidth
        Of the device, flop/s and byte/s.

    Returns
    -------
    xarray.Dataset
        Along ``run`` (run ids): ``model``, ``backend``, ``batch_size``, ``source``, ``kernels`` in an iteration,
        ``duration_ns`` (their sum in an iteration, median) with its bounds, ``busy_ns`` (its union, so that what runs
        at once counts once), ``latency_ns`` (untraced predict, NaN for an imported trace), ``kernel_share`` (busy time
        over the latency), the metrics of `kernels_by_name`, and with both peaks ``roof`` and ``memory_bound``.

    Raises
    ------
    SchemaError
        If a run has neither kernels nor operators.
    """
    peaks = Peaks.of(peak_flops, peak_bandwidth)
    if not runs:
        raise InputError("kernels_by_model needs at least one run")
    rows = [_model_row(run, peaks) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name, np.nan) for row in rows]
        columns[name] = texts(values) if isinstance(values[0], str) else np.array(values)
    return table("run", [str(run.attrs["run_id"]) for run in runs], columns,
                 attrs={**peaks.attrs(), "confidence": 0.95})  # fmt: skip


def _model_row(run: xr.DataTree, peaks: Peaks) -> dict[str, Any]:
    from mlscope_lab.analysis.intervals import union_by_group
    from mlscope_lab.analysis.latency import predict_interval

    work = work_of(run)
    everything = np.zeros(len(work), dtype=np.int64)
    sums = totals(per_iteration(work, work.duration, everything, 1))
    busy = float(np.median(union_by_group(work.start, work.length, work.iteration, work.iterations)))
    latency = predict_interval(run).centre
    metrics = metric_totals(run, work, by="all", groups=1)
    values = {**metrics.means, **roof_columns(metrics.means, sums["duration_ns"], peaks, roof=True)}
    batch = run.attrs.get("batch_size")
    return {
        "model": str(run.attrs.get("model")),
        "backend": str(run.attrs.get("backend")),
        "source": work.source,
        "batch_size": np.nan if batch is None else batch,
        "kernels": int((work.iteration >= 0).sum()) / work.iterations,
        **{name: float(value[0]) for name, value in sums.items()},
        "busy_ns": busy,
        "latency_ns": latency,
        "kernel_share": busy / latency,
        **{name: value[0] for name, value in values.items()},
    }
