"""What a run on a CUDA device must show, as figures: each with what it is held to and whether that was kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from mlscope_lab.trace.events import table_of

__all__ = ["Figure", "figures_of"]

ATTRIBUTED = 0.99
"""Share of the kernel time that must be attributed to layers."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: what was found, in words, and whether it is enough (None where it is only told)."""

    what: str
    found: str
    kept: bool | None


def figures_of(run: xr.DataTree) -> list[Figure]:
    """Return the figures of a run at level "full" on a CUDA device.

    Parameters
    ----------
    run
        Of any device; what is absent is a figure that was not kept.
    """
    return [*_kernels(run), _layer_times(run), _energy(run), _counters(run), *_reasons(run)]


def _group(run: xr.DataTree, name: str) -> xr.Dataset | None:
    data = run[name].to_dataset() if name in run.children else None
    return data if data is not None and any(size for size in data.sizes.values()) else None


def _kernels(run: xr.DataTree) -> list[Figure]:
    kernels = _group(run, "kernels")
    if kernels is None:
        return [Figure(what="kernels", found="none recorded", kept=False)]
    category = np.array(table_of(kernels, "category"))
    found = [
        Figure(what=f"device work of category {each}", found=f"{(category == each).sum():,}", kept=None)
        for each in dict.fromkeys(category.tolist())
    ]
    # copies of inputs and outputs belong to no layer, and waiting is no work
    of_kernels = category == "kernel"
    time = kernels["duration_ns"].values[of_kernels]
    total = max(int(time.sum()), 1)
    for what, column, least in (
        ("kernel time with its launch", "runtime_index", None),
        ("kernel time with its operator", "operator_index", None),
        ("kernel time with its layer", "layer_index", ATTRIBUTED),
    ):
        share = float(time[kernels[column].values[of_kernels] >= 0].sum() / total)
        found.append(Figure(what=what, found=f"{share:.2%}", kept=None if least is None else share >= least))
    return found


def _layer_times(run: xr.DataTree) -> Figure:
    """Compare the layers' time in the layer pass, from CUDA events, with that of their kernels in the kernel pass."""
    what = "time of layers over time of their kernels"
    kernels, layers = _group(run, "kernels"), _group(run, "layers")
    if kernels is None or layers is None:
        return Figure(what=what, found="no layers or no kernels", kept=False)
    level = run["passes"]["level"].values
    rows = np.flatnonzero(level[layers["pass_index"].values] == "layer")
    if not len(rows):
        return Figure(what=what, found="no layer pass", kept=False)
    resolution = int(run["passes"]["resolution_ns"].values[layers["pass_index"].values[rows[0]]])
    spent = layers["exclusive_ns"].values[rows]
    by_layer = float(np.median(np.where(spent >= 0, spent, 0).sum(axis=1)))
    of_kernels = np.array(table_of(kernels, "category")) == "kernel"
    own = of_kernels & (kernels["layer_index"].values >= 0) & (kernels["iteration"].values >= 0)
    passes = kernels["pass_index"].values[own]
    time = kernels["duration_ns"].values[own]
    first = passes == passes.min(initial=0) if len(passes) else own[own]
    iterations = len(np.unique(kernels["iteration"].values[own][first]))
    by_kernel = time[first].sum() / max(iterations, 1)
    if not by_kernel:
        return Figure(what=what, found="no kernels of layers", kept=False)
    # events lie around a layer's kernels and hold the gaps between them too; host times would be far off on short ones
    found = f"{by_layer / by_kernel:.2f} (from events that resolve {resolution} ns)"
    return Figure(what=what, found=found, kept=resolution > 1 and by_layer >= 0.9 * by_kernel)


def _energy(run: xr.DataTree) -> Figure:
    power = _group(run, "power")
    if power is None or "energy_joules" not in power:
        return Figure(what="energy (NVML)", found="none recorded", kept=False)
    energy = power["energy_joules"].values
    used = float(np.nanmax(energy) - np.nanmin(energy)) if np.isfinite(energy).any() else 0.0
    return Figure(what="energy (NVML)", found=f"{used:.1f} J, {len(energy)} samples", kept=used > 0)


def _counters(run: xr.DataTree) -> Figure:
    counters = _group(run, "counters")
    if counters is None:
        return Figure(what="hardware counters", found="none recorded", kept=False)
    names = [str(name) for name, values in counters.data_vars.items() if values.dtype == np.float64]
    found = f"{len(names)} counters of {counters.sizes['range']} kernels: {', '.join(names)}"
    return Figure(what="hardware counters", found=found, kept=bool(names))


def _reasons(run: xr.DataTree) -> list[Figure]:
    return [
        Figure(what=f"unavailable: {what}", found=reason, kept=None)
        for what, reason in run.attrs["unavailable"].items()
    ]
