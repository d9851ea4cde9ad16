"""Kernels by layer: what each layer has the device do (A11, A12, A13 and A14 of XSP, arXiv 1908.06869).

Kernels belong to the layer of the call that launched them. Those of no layer are a row of their own, "(no layer)", the
last one, and never spread. `mlscope_lab.analysis.kernels` says what is summed and from which pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.counters import counter_names
from mlscope_lab.analysis.intervals import sum_by_group, union_by_group
from mlscope_lab.analysis.kernels import per_iteration, totals, work_attrs
from mlscope_lab.analysis.layers import layer_data, remainder
from mlscope_lab.analysis.metrics import Peaks, metric_totals, metric_work, roof_columns
from mlscope_lab.analysis.shapes import bytes_of
from mlscope_lab.analysis.statistics import median_bounds, medians_by_group
from mlscope_lab.analysis.tables import NO_LAYER, share_of, table, texts
from mlscope_lab.analysis.work import Work, cells_of, work_of
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["device_and_host_by_layer", "kernels_by_layer", "layer_roofline", "metrics_by_layer"]


def _by_layer(work: Work) -> tuple[npt.NDArray[np.int64], int]:
    """Return the row of each kernel in a table of all layers and none, and how many rows that has."""
    last = len(work.layers) - 1
    return np.where(work.layer >= 0, work.layer, last).astype(np.int64), last + 1


def _busy(work: Work, group: npt.NDArray[np.int64], groups: int) -> npt.NDArray[np.int64]:
    """Return the union of the intervals by iteration and group, so that what runs at once counts once."""
    place = np.where(work.iteration >= 0, work.iteration * groups + group, -1)
    cells = cells_of(work.iterations, groups)
    return union_by_group(work.start, work.length, place, cells).reshape(work.iterations, groups)


def _types(run: xr.DataTree) -> npt.NDArray[np.object_]:
    node = run.children.get(schema.LAYERS)
    return texts([*(() if node is None else node.dataset["type"].values), NO_LAYER])


def kernels_by_layer(
    run: xr.DataTree, *, peak_flops: float | None = None, peak_bandwidth: float | None = None
) -> xr.Dataset:
    """Sum the kernels of each layer: A11, the GPU kernel information aggregated by layer.

    Parameters
    ----------
    run
        A run at level "operator" or deeper, or an imported trace.
    peak_flops, peak_bandwidth
        Of the device, flop/s and byte/s; they decide what is memory-bound.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in order of execution, "(no layer)" last: ``type``, ``kernels`` (in an iteration, mean),
        ``duration_ns`` (sum of their durations in an iteration, median over iterations) with 95 % bounds ``low_ns``
        and ``high_ns``, ``busy_ns`` (the union, in which what runs at once counts once), ``share`` of all kernel time,
        and the metrics of `mlscope_lab.analysis.kernels.kernels_by_name`.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work, columns, sources = _kernel_columns(run, Peaks.of(peak_flops, peak_bandwidth), roof=False)
    return table("layer", work.layers, columns, attrs=work_attrs(run, work, **sources))


def _kernel_columns(run: xr.DataTree, peaks: Peaks, *, roof: bool) -> tuple[Work, dict[str, Any], dict[str, str]]:
    work = work_of(run)
    group, groups = _by_layer(work)
    inside = np.where(work.iteration >= 0, group, -1)
    count = sum_by_group(np.ones(len(work), dtype=np.int64), inside, groups)
    columns: dict[str, Any] = {"type": _types(run), "kernels": count / work.iterations}
    columns |= totals(per_iteration(work, work.duration, group, groups))
    columns["busy_ns"] = np.median(_busy(work, group, groups), axis=0)
    columns["share"] = share_of(columns["duration_ns"])
    metrics = metric_totals(run, work, by="layer", groups=groups)
    columns |= metrics.means
    columns |= roof_columns(metrics.means, columns["duration_ns"], peaks, roof=roof)
    return work, columns, dict(metrics.sources)


def metrics_by_layer(run: xr.DataTree) -> xr.Dataset:
    """Sum each hardware counter over the kernels of each layer: A12, the GPU metrics aggregated by layer.

    Parameters
    ----------
    run
        A run with hardware counters, or with operators that say their flops.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in order of execution, "(no layer)" last: ``kernels`` with counters in an iteration, and one
        variable a counter, under the name that the tool gives it: what an iteration adds up to, mean over iterations.
        A counter that is a percentage or an average by its name is the mean, weighted by time; ``attrs["weighted"]``
        lists these. Flops, traffic and occupancy as XSP has them stand beside them under their own names.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    work = work_of(run)
    _, groups = _by_layer(work)
    found = metric_work(run, work)
    if found is None:
        reasons = run.attrs.get("unavailable") or {}
        reason = reasons.get("counters", reasons.get("hardware", "no counter was recorded"))
        columns: dict[str, Any] = {"type": _types(run), "kernels": np.zeros(groups)}
        attrs = work_attrs(run, work, metrics_source=f"unavailable: {reason}")
        return table("layer", work.layers, columns, attrs=attrs)
    source, _ = found
    group, _ = _by_layer(source)
    inside = np.where(source.iteration >= 0, group, -1)
    count = sum_by_group(np.ones(len(source), dtype=np.int64), inside, groups)
    columns = {"type": _types(run), "kernels": count / source.iterations}
    columns |= metric_totals(run, work, by="layer", groups=groups).means
    weighted = []
    for name in counter_names(source.rows):
        if name in columns:
            continue
        values = source.rows.column(name)
        known = np.isfinite(values)
        at = np.where(known, inside, -1)
        some = sum_by_group(known.astype(np.int64), inside, groups) > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            if _is_mean(name):
                weighted.append(name)
                weight = np.where(known, source.duration, 0).astype(np.float64)
                sums = sum_by_group(np.where(known, values, 0.0) * weight, at, groups)
                columns[name] = np.where(some, sums / sum_by_group(weight, at, groups), np.nan)
            else:
                sums = sum_by_group(np.where(known, values, 0.0), at, groups)
                columns[name] = np.where(some, sums / source.iterations, np.nan)
    said = f"{source.rows.level} pass, group /{source.group}"
    return table("layer", work.layers, columns, attrs=work_attrs(run, work, metrics_source=said, weighted=weighted))


def _is_mean(counter: str) -> bool:
    """Tell whether the sum of a counter over kernels means nothing."""
    parts = counter.lower().split(".")
    return parts[-1].startswith(("pct", "ratio")) or "avg" in parts or "max" in parts or "min" in parts or any(
        word in counter.lower() for word in ("occupancy", "efficiency", "utilization", "_rate", "throughput")
    )  # fmt: skip


def device_and_host_by_layer(run: xr.DataTree) -> xr.Dataset:
    """Split the latency of each layer: A13, GPU against non-GPU latency.

    Parameters
    ----------
    run
        A run with layers, at level "operator" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in order of execution, "(no layer)" last: ``layer_ns`` (exclusive latency of the layer in the
        passes that trace least; what belongs to no layer in the last row), ``device_ns`` (union of its kernels'
        intervals in an iteration, median, with bounds ``low_ns`` and ``high_ns``), ``host_ns`` (the latency less
        that, not below 0) and ``device_share`` (device over latency, at most 1). ``attrs["exceeding"]`` counts the
        layers whose kernels take longer than the layer: a launch returns before its kernel ends.

    Raises
    ------
    SchemaError
        If the run has no layers, or neither kernels nor operators.
    """
    data = layer_data(run)
    work = work_of(run)
    group, groups = _by_layer(work)
    device = _busy(work, group, groups)
    low, high = median_bounds(device)
    middle = np.median(device, axis=0)
    ran = data["start_ns"].values >= 0
    rows, layers = np.nonzero(ran)
    exclusive, _, _, _ = medians_by_group(data["exclusive_ns"].values[rows, layers], layers, groups - 1)
    _, rest, _ = remainder(data)
    latency = np.append(exclusive, np.median(rest[:, 0]) if len(rest) else np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(latency > 0, np.minimum(middle / latency, 1.0), np.nan)
    columns = {
        "type": _types(run), "layer_ns": latency, "device_ns": middle, "low_ns": low, "high_ns": high,
        "host_ns": np.maximum(latency - middle, 0), "device_share": share,
    }  # fmt: skip
    return table("layer", work.layers, columns,
                 attrs=work_attrs(run, work, exceeding=int((middle > latency).sum())))  # fmt: skip


def layer_roofline(
    run: xr.DataTree, *, peak_flops: float | None = None, peak_bandwidth: float | None = None
) -> xr.Dataset:
    """Return where each layer stands on the roofline: A14, the layer roofline.

    Parameters
    ----------
    run
        A run with the flops of its kernels or operators.
    peak_flops, peak_bandwidth
        Of the device, flop/s and byte/s; without them there is no roof, only the points.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, those whose flops are known and not 0: ``type``, ``flops``, ``dram_read_bytes`` and
        ``dram_write_bytes``, ``duration_ns`` (of its kernels), ``arithmetic_intensity``, ``achieved_flops``, and with
        both peaks ``memory_bound``, ``roof`` and ``roof_share``. Where no traffic was measured, it is what a layer must
        move at least, its weights and inputs read and its outputs written once; ``attrs["traffic_source"]`` says so.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators.
    """
    peaks = Peaks.of(peak_flops, peak_bandwidth)
    work, columns, sources = _kernel_columns(run, peaks, roof=True)
    flops = columns.get("flops")
    if flops is None:
        attrs = work_attrs(run, work, **peaks.attrs(), flops_source="unavailable: no kernel or operator says its flops")
        empty = {name: np.zeros(0) for name in ("flops", "duration_ns", "achieved_flops")}
        return table("layer", [], empty, attrs=attrs)
    traffic = "hardware counters"
    if "dram_read_bytes" not in columns or "dram_write_bytes" not in columns:
        columns |= _least_traffic(run, len(work.layers))
        columns |= roof_columns(columns, columns["duration_ns"], peaks, roof=True)
        traffic = "analytic: weights and inputs read once, outputs written once"
    rows = np.flatnonzero(np.nan_to_num(flops) > 0)
    attrs = work_attrs(run, work, **sources, **peaks.attrs(), traffic_source=traffic)
    return table("layer", work.layers[rows], {name: v[rows] for name, v in columns.items()}, attrs=attrs)


def _least_traffic(run: xr.DataTree, groups: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return the bytes that each layer reads and writes at least, NaN where unknown."""
    node = run.children.get(schema.LAYERS)
    if node is None:
        return {name: np.full(groups, np.nan) for name in ("dram_read_bytes", "dram_write_bytes")}
    data = node.dataset
    inputs, outputs = (bytes_of(data[f"{side}_shapes"].values) for side in ("input", "output"))
    weights = data["parameter_bytes"].values.astype(np.float64)
    weights[weights < 0] = np.nan
    return {"dram_read_bytes": np.append(inputs + weights, np.nan), "dram_write_bytes": np.append(outputs, np.nan)}
