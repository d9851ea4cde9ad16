"""Metrics of kernels by call site, name or layer, and where they stand on a roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.counters import METRICS
from mlscope_lab.analysis.intervals import sum_by_group
from mlscope_lab.analysis.sites import Sites, match, sites_of
from mlscope_lab.analysis.work import Work, events_of, work_of
from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MetricTotals", "Peaks", "metric_totals", "metric_work", "roof_columns"]


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a device can do at most.

    Attributes
    ----------
    flops
        flop/s, NaN if unknown.
    bandwidth
        byte/s of its memory, NaN if unknown.
    """

    flops: float
    bandwidth: float

    @classmethod
    def of(cls, flops: float | None, bandwidth: float | None) -> Peaks:
        """Check what a user gave.

        Raises
        ------
        InputError
            If one is not positive.
        """
        for name, value in (("peak_flops", flops), ("peak_bandwidth", bandwidth)):
            if value is not None and not (isinstance(value, int | float) and value > 0 and math.isfinite(value)):
                unit = "flop/s" if name == "peak_flops" else "byte/s"
                raise InputError(f"{name} must be a positive number of {unit}, such as 1e12, not {value!r}")
        return cls(
            flops=math.nan if flops is None else float(flops),
            bandwidth=math.nan if bandwidth is None else float(bandwidth),
        )

    @property
    def ridge(self) -> float:
        """Arithmetic intensity at which both limit alike, flop/byte."""
        return self.flops / self.bandwidth

    def attrs(self) -> dict[str, float]:
        """Return what is known, for a dataset's attributes."""
        found = {"peak_flops": self.flops, "peak_bandwidth": self.bandwidth, "ridge": self.ridge}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def roof_columns(
    metrics: Mapping[str, npt.NDArray[Any]], duration_ns: npt.NDArray[Any], peaks: Peaks, *, roof: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """Return what follows from flops, traffic and time.

    Parameters
    ----------
    metrics
        With ``flops``, ``dram_read_bytes`` and ``dram_write_bytes`` where known.
    duration_ns
        Of the same rows.
    peaks
        Of the device.
    roof
        Add what the peaks allow.

    Returns
    -------
    dict
        ``achieved_flops`` where flops are known; ``arithmetic_intensity`` where the traffic is, too; ``memory_bound``
        where the peaks are; on wish ``roof`` and ``roof_share``.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    flops = metrics.get("flops")
    if flops is None:
        return found
    with np.errstate(divide="ignore", invalid="ignore"):
        found["achieved_flops"] = np.where(duration_ns > 0, flops / duration_ns * 1e9, np.nan)
        if "dram_read_bytes" not in metrics or "dram_write_bytes" not in metrics:
            return found
        traffic = metrics["dram_read_bytes"] + metrics["dram_write_bytes"]
        intensity = found["arithmetic_intensity"] = np.where(traffic > 0, flops / traffic, np.nan)
        if not math.isnan(peaks.ridge):
            bound = (intensity < peaks.ridge).astype(np.int8)
            found["memory_bound"] = np.where(np.isnan(intensity), np.int8(-1), bound)
            if roof:
                found["roof"] = np.minimum(peaks.flops, intensity * peaks.bandwidth)
                found["roof_share"] = found["achieved_flops"] / found["roof"]
    return found


@dataclass(frozen=True, kw_only=True)
class MetricTotals:
    """Metrics of groups of kernels.

    Attributes
    ----------
    means
        {metric: (groups,)}: what an iteration adds up to, mean over iterations; occupancy is weighted by time. NaN
        where no kernel of the group has it. Absent where none has.
    sources
        {"metrics_source": words} if they come from another pass or group than the times, else {}.
    """

    means: Mapping[str, npt.NDArray[np.float64]]
    sources: Mapping[str, str]


def metric_work(run: xr.DataTree, work: Work) -> tuple[Work, dict[str, str]] | None:
    """Return the work that metrics come from, which may be that of another pass, and what to say of it."""
    if work.metrics:
        return work, {}
    for group in (schema.KERNELS, schema.COUNTERS) if work.group != schema.OPERATORS else (schema.OPERATORS,):
        if events_of(run, group) is None:
            continue
        other = work_of(run, group=group, deepest=True)
        if other.metrics:
            what = f"{other.rows.level} pass, group /{group}; times are from the {work.rows.level} pass"
            return other, {"metrics_source": what}
    return None


def metric_totals(
    run: xr.DataTree, work: Work, *, sites: Sites | None = None, by: str = "site", groups: int = 0
) -> MetricTotals:
    """Sum the metrics of kernels by group.

    Parameters
    ----------
    run
        A run.
    work
        Its work.
    sites
        The call sites of `work`, for ``by="site"``.
    by
        "site", "name" (of `work`), "layer" (the last group being no layer) or "all".
    groups
        How many there are; call sites are counted.
    """
    found = metric_work(run, work)
    if found is None:
        return MetricTotals(means={}, sources={})
    source, said = found
    if by == "site":
        if sites is None:
            raise ValueError("metrics by call site need the sites")
        groups = len(sites)
        if source is work:
            group = sites.site
        else:
            theirs = sites_of(source)
            group = np.append(match(sites, work, theirs, source), -1)[theirs.site]
    elif by == "name":
        group, labels = source.groups
        if source.group != work.group:  # another table of names
            known = {name: code for code, name in enumerate(work.groups[1])}
            group = np.array([known.get(name, -1) for name in labels], dtype=np.int64)[group]
    elif by == "layer":
        group = np.where(source.layer >= 0, source.layer, groups - 1).astype(np.int64)
    else:
        group = np.zeros(len(source), dtype=np.int64)
    group = np.where(source.iteration >= 0, group, -1)
    means: dict[str, npt.NDArray[np.float64]] = {}
    ones = np.ones(len(source), dtype=np.int64)
    runs = np.maximum(sum_by_group(ones, group, groups), 1) if by == "site" else np.full(groups, source.iterations)
    for metric in METRICS:
        if metric not in source.metrics:
            continue
        values = source.metrics[metric]
        known_ = np.isfinite(values)
        at = np.where(known_, group, -1)
        weight = np.where(known_, source.duration, 0).astype(np.float64)
        clean = np.where(known_, values, 0.0)
        some = sum_by_group(ones, at, groups) > 0
        if metric == "occupancy":
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = sum_by_group(clean * weight, at, groups) / sum_by_group(weight, at, groups)
        else:
            mean = sum_by_group(clean, at, groups) / runs
        if some.any():
            means[metric] = np.where(some, mean, np.nan)
    return MetricTotals(means=means, sources=said)
