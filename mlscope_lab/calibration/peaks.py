"""Peaks as a dataset, whether they were measured here or are those of a system manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.calibration.measuring import MEMORY
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

    from mlscope_lab.manifest.system import SystemManifest

__all__ = ["LEAST_SHARE", "peaks_from_samples", "peaks_from_system"]

LEAST_SHARE = 0.95
"""Processor time over wall time from which on a repeat counts as undisturbed."""
_FEWEST = 3
_DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")


def _estimate(kernel: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return centre, low and high of a kernel's rate, and the share of its repeats that were undisturbed."""
    rates, shares = np.array(kernel["rates"], dtype=np.float64), np.array(kernel["shares"], dtype=np.float64)
    alone = shares >= LEAST_SHARE
    if alone.sum() >= _FEWEST:
        kept = rates[alone]
        return float(np.median(kept)), float(kept.min()), float(kept.max()), float(alone.mean())
    # what it did while others ran, and what it would have done without them: the truth lies between
    best = np.argsort(-shares, kind="stable")[:_FEWEST]
    without = rates[best] / np.maximum(shares[best], 1e-3)
    return float(np.median(without)), float(rates[best].min()), float(without.max()), float(alone.mean())


def _best(kernels: Sequence[Mapping[str, Any]], target: str) -> tuple[str, tuple[float, float, float, float]]:
    found = {k["name"]: _estimate(k) for k in kernels if k["target"] == target and k["rates"]}
    if not found:
        return "", (np.nan, np.nan, np.nan, np.nan)
    name = max(found, key=lambda n: found[n][0])
    return name, found[name]


def _texts(values: Sequence[str]) -> npt.NDArray[Any]:
    texts = np.empty(len(values), dtype=object)
    texts[:] = list(values)
    return texts


def _dataset(
    levels: Mapping[str, tuple[float, str, tuple[float, float, float]]],
    dtypes: Mapping[str, tuple[str, tuple[float, float, float]]],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    import xarray as xr

    rows, columns = list(levels.values()), list(dtypes.values())
    variables: dict[str, Any] = {
        "capacity_bytes": ("level", np.array([r[0] for r in rows], dtype=np.float64), {"units": "byte"}),
        "bandwidth_kernel": ("level", _texts([r[1] for r in rows])),
        "throughput_kernel": ("dtype", _texts([c[0] for c in columns])),
    }
    for place, suffix in enumerate(("", "_low", "_high")):
        of_level = np.array([r[2][place] for r in rows], dtype=np.float64)
        of_dtype = np.array([c[1][place] for c in columns], dtype=np.float64)
        variables[f"bandwidth{suffix}"] = ("level", of_level, {"units": "byte/s"})
        variables[f"throughput{suffix}"] = ("dtype", of_dtype, {"units": "1/s"})
    coords = {"level": _texts(list(levels)), "dtype": _texts(list(dtypes))}
    return xr.Dataset(variables, coords=coords, attrs=dict(attrs))


def peaks_from_samples(
    kernels: Sequence[Mapping[str, Any]], capacities: Mapping[str, float], attrs: Mapping[str, Any]
) -> xr.Dataset:
    """Return the peaks that repeated measurements show.

    Parameters
    ----------
    kernels
        Name, target, rates and shares of each, see `mlscope_lab.calibration.repeats.Samples`.
    capacities
        {level: bytes that the threads have there together}, the fastest first; infinity for memory.
    attrs
        Of the dataset.

    Returns
    -------
    xarray.Dataset
        Along ``level``: ``bandwidth`` (byte/s), the best kernel's median over its undisturbed repeats, with
        ``bandwidth_low`` and ``bandwidth_high``, the smallest and the largest of them (what a further repeat may show,
        not how well the median is known); ``capacity_bytes``; ``bandwidth_kernel``, its name; ``triad``, the median of
        STREAM's triad alone, NaN where not measured. Along ``dtype``: ``throughput`` (operations a second) with bounds
        and kernel alike. Attribute ``disturbed``: levels and types of which too few repeats had the processors to
        themselves; their bounds reach from what was seen to what it would have been.
    """
    levels, dtypes, disturbed = {}, {}, []
    for level, capacity in capacities.items():
        name, (*rate, share) = _best(kernels, level)
        levels[level] = (float(capacity), name, (rate[0], rate[1], rate[2]))
        if share * len(next((k["rates"] for k in kernels if k["target"] == level), ())) < _FEWEST:
            disturbed.append(level)
    for dtype in _DTYPES:
        name, (*rate, share) = _best(kernels, dtype)
        if name:
            dtypes[dtype] = (name, (rate[0], rate[1], rate[2]))
            if share * len(next(k["rates"] for k in kernels if k["target"] == dtype)) < _FEWEST:
                disturbed.append(dtype)
    peaks = _dataset(levels, dtypes, {**attrs, "disturbed": disturbed})
    triads = {k["target"]: _estimate(k)[0] for k in kernels if k["name"] == "numpy triad"}
    return peaks.assign(triad=("level", np.array([triads.get(level, np.nan) for level in levels]), {"units": "byte/s"}))


def peaks_from_system(system: SystemManifest, *, device: str = "cpu") -> xr.Dataset:
    """Return the peaks of a system manifest: memory alone, without caches and without error.

    Parameters
    ----------
    system
        The manifest.
    device
        "cpu" or "cuda": the processors that count. Of several kinds the first; of one of which the machine has
        several, one accelerator, but all CPU packages together.

    Raises
    ------
    InputError
        If the manifest has no such processor, or tells no bandwidth.
    """
    processor = next((p for p in system.processors if p.device == device.partition(":")[0]), None)
    if processor is None or processor.memory_bandwidth is None:
        have = ", ".join(f"{p.name} ({p.device})" for p in system.processors)
        raise InputError(
            f"System '{system.name}' tells no memory_bandwidth of a processor with device '{device}'. It has: {have}"
        )
    times = processor.count if processor.device == "cpu" else 1
    bandwidth = processor.memory_bandwidth * times
    return _dataset(
        {MEMORY: (np.inf, "", (bandwidth, bandwidth, bandwidth))},
        {name: ("", (flops * times,) * 3) for name, flops in processor.peak_flops.items()},
        {"source": "system manifest", "system": system.name, "processor": processor.name, "disturbed": []},
    )
