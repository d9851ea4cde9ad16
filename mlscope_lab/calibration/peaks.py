"""Peaks as a dataset, whether they were measured here or are those of a system manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class _Rate:
    """A kernel's rate: centre, low and high; and whether enough of its repeats were undisturbed."""

    kernel: str = ""
    bounds: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    alone: bool = True


def _estimate(kernel: Mapping[str, Any]) -> _Rate:
    rates, shares = np.array(kernel["rates"], dtype=np.float64), np.array(kernel["shares"], dtype=np.float64)
    alone = shares >= LEAST_SHARE
    if alone.sum() >= _FEWEST:
        kept = rates[alone]
        return _Rate(kernel=kernel["name"], bounds=(float(np.median(kept)), float(kept.min()), float(kept.max())))
    # the most that it was seen to do although others ran, and what it would have done without them
    best = np.argsort(-rates, kind="stable")[:_FEWEST]
    without = float(np.median(rates[best] / np.maximum(shares[best], 1e-3)))
    most = float(rates.max())
    return _Rate(kernel=kernel["name"], bounds=(most, float(rates[best].min()), max(most, without)), alone=False)


def _best(kernels: Sequence[Mapping[str, Any]], target: str) -> _Rate:
    own = [kernel for kernel in kernels if kernel["target"] == target]
    best = max((_estimate(kernel) for kernel in own), key=lambda rate: rate.bounds[0], default=_Rate())
    if not own:
        return best
    # what any of them was once seen to do the machine can do
    centre, low, high = best.bounds
    return replace(best, bounds=(centre, low, max(high, *(max(kernel["rates"]) for kernel in own))))


def _texts(values: Sequence[str]) -> npt.NDArray[Any]:
    texts = np.empty(len(values), dtype=object)
    texts[:] = list(values)
    return texts


def _dataset(
    capacities: Mapping[str, float], levels: Sequence[_Rate], dtypes: Mapping[str, _Rate], attrs: Mapping[str, Any]
) -> xr.Dataset:
    import xarray as xr

    variables: dict[str, Any] = {
        "capacity_bytes": ("level", np.array(list(capacities.values()), dtype=np.float64), {"units": "byte"})
    }
    measured = (("bandwidth", "level", levels, "byte/s"), ("throughput", "dtype", [*dtypes.values()], "flop/s"))
    for name, dim, rates, units in measured:
        variables[f"{name}_kernel"] = (dim, _texts([rate.kernel for rate in rates]))
        for place, suffix in enumerate(("", "_low", "_high")):
            values = np.array([rate.bounds[place] for rate in rates], dtype=np.float64)
            variables[f"{name}{suffix}"] = (dim, values, {"units": units})
    coords = {"level": _texts(list(capacities)), "dtype": _texts(list(dtypes))}
    disturbed = [name for name, rate in zip([*capacities, *dtypes], [*levels, *dtypes.values()], strict=True)
                 if not rate.alone]  # fmt: skip
    return xr.Dataset(variables, coords=coords, attrs={**attrs, "disturbed": disturbed})


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
        ``bandwidth_low``, the smallest of them, and ``bandwidth_high``, the most that any kernel was seen to do (what a
        further repeat may show, not how well the median is known); ``capacity_bytes``; ``bandwidth_kernel``, its name;
        ``triad``, the median of STREAM's triad alone, NaN where not measured. Along ``dtype``: ``throughput``
        (operations a second) with bounds and kernel alike. Attribute ``disturbed``: levels and types of which too few
        repeats had the processors to themselves: their peak is the most that was seen, and the upper bound what it
        would have been alone.
    """
    levels = [_best(kernels, level) for level in capacities]
    dtypes = {dtype: rate for dtype in _DTYPES if (rate := _best(kernels, dtype)).kernel}
    peaks = _dataset(capacities, levels, dtypes, attrs)
    triads = {k["target"]: _estimate(k).bounds[0] for k in kernels if k["name"] == "numpy triad"}
    of_level = np.array([triads.get(level, np.nan) for level in capacities])
    return peaks.assign(triad=("level", of_level, {"units": "byte/s"}))


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
    dtypes = {name: _Rate(bounds=(flops * times,) * 3) for name, flops in processor.peak_flops.items()}
    attrs = {"source": "system manifest", "system": system.name, "processor": processor.name,
             "device": processor.device}  # fmt: skip
    return _dataset({MEMORY: np.inf}, [_Rate(bounds=(bandwidth,) * 3)], dtypes, attrs)
