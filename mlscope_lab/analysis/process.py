"""What collectors recorded of the whole process: counters and energy, by pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.tables import run_attrs, texts
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema
from mlscope_lab.trace.events import attrs_of_pass, table_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["energy", "process_counters"]

Floats = npt.NDArray[np.float64]
_RATIOS = {
    # name: (numerator, denominator, words)
    "instructions_per_cycle": ("instructions", "cycles", "retired instructions for each processor cycle"),
    "cache_miss_share": ("cache_misses", "cache_references", "share of cache accesses that missed"),
    "llc_miss_share": ("llc_load_misses", "llc_loads", "share of last-level cache loads that missed"),
    "branch_miss_share": ("branch_misses", "branch_instructions", "share of branches that were mispredicted"),
    "cores_busy": ("task_clock_ns", "duration_ns", "processors in use, mean over the measured part"),
}


def _missing(run: xr.DataTree, what: str, collectors: tuple[str, ...]) -> SchemaError:
    reasons = run.attrs.get("unavailable") or {}
    said = [f"{key}: {reason}" for key, reason in reasons.items() if key.split()[0] in collectors]
    why = " ".join(said) or "it was recorded above level 'hardware'; profile again with level='hardware'"
    return SchemaError(f"Run {run.attrs.get('run_id', '?')} has no {what}: {why}")


def _of_passes(run: xr.DataTree, rows: npt.NDArray[np.int32]) -> dict[str, Any]:
    passes = run[schema.PASSES].to_dataset()
    return {name: passes[name].values[rows] for name in ("level", "process", "measured_iterations", "wall_ns")}


def process_counters(run: xr.DataTree) -> xr.Dataset:
    """Return the counters of the whole process over each watched pass, and the ratios that they tell.

    Parameters
    ----------
    run
        A run at level "hardware".

    Returns
    -------
    xarray.Dataset
        Along ``range``, one a pass: ``level``, ``process``, ``duration_ns``, and of ``instructions_per_cycle``,
        ``cache_miss_share``, ``llc_miss_share``, ``branch_miss_share`` and ``cores_busy`` those whose counters there
        are. Along ``range`` and ``counter``: ``count`` over the measured part and ``per_iteration``.

    Raises
    ------
    SchemaError
        If the run has no such counters, with the reasons.
    """
    import xarray as xr

    collectors = ("perf_events",)
    if schema.COUNTERS not in run.children:
        raise _missing(run, "counters of the process", collectors)
    data = run[schema.COUNTERS].to_dataset()
    rows = np.flatnonzero(np.array(table_of(data, "category"), dtype=object) == "process")
    if not len(rows):
        raise _missing(run, "counters of the process", collectors)
    data = data.isel(range=rows)
    fixed = {*schema.GROUPS[schema.COUNTERS], *schema.OPTIONAL[schema.COUNTERS]}
    names = [
        str(name) for name, variable in data.variables.items()
        if variable.dims == ("range",) and name not in fixed and np.isfinite(variable.values).any()
    ]  # fmt: skip
    about = _of_passes(run, data["pass_index"].values)
    counts = np.stack([data[name].values for name in names], axis=1)
    iterations = np.maximum(about["measured_iterations"], 1)[:, None]
    values = {name: data[name].values.astype(np.float64) for name in [*names, "duration_ns"]}
    variables: dict[str, Any] = {
        "level": ("range", about["level"], {"units": "1"}),
        "process": ("range", about["process"], {"units": "1"}),
        "duration_ns": ("range", data["duration_ns"].values, {"units": "ns"}),
        "count": (("range", "counter"), counts, {"units": "1", "long_name": "over the measured part"}),
        "per_iteration": (("range", "counter"), counts / iterations, {"units": "1", "long_name": "count an iteration"}),
    }
    for name, (top, bottom, words) in _RATIOS.items():
        if top in values and bottom in values:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(values[bottom] > 0, values[top] / values[bottom], np.nan)
            variables[name] = ("range", ratio, {"units": "1", "long_name": words})
    return xr.Dataset(variables, coords={"counter": texts(names)}, attrs=run_attrs(run))


def energy(run: xr.DataTree) -> xr.Dataset:
    """Return the energy of each watched pass by device, with what the device would have used at rest.

    Parameters
    ----------
    run
        A run at level "hardware" of a machine that tells power or energy.

    Returns
    -------
    xarray.Dataset
        Along ``row``, one a pass and device: ``level``, ``process``, ``device``, ``duration_ns`` (of the measured
        part), ``energy_joules`` over it, ``energy_per_iteration_joules``, ``power_watts`` (the mean), ``idle_watts``
        (measured before the warm-up, NaN where it was not), ``energy_above_idle_joules``, and ``source``: "counter"
        where the device counts energy itself, "power" where samples of its power were added up. Parts of a package
        ("package-0/core") are contained in it.

    Raises
    ------
    SchemaError
        If the run has no power samples, with the reasons.
    """
    import xarray as xr

    if schema.POWER not in run.children:
        raise _missing(run, "power samples", ("nvml", "rapl"))
    data = run[schema.POWER].to_dataset()
    devices, pass_index = np.array(table_of(data, "device"), dtype=object), data["pass_index"].values
    rows: list[dict[str, Any]] = []
    for number in np.unique(pass_index):
        idle = attrs_of_pass(data, int(number)).get("idle_watts", {})
        for device in dict.fromkeys(devices[pass_index == number]):
            own = data.isel(power_sample=np.flatnonzero((pass_index == number) & (devices == device)))
            rows.append({"pass": number, "device": device, "idle_watts": idle.get(device, np.nan), "samples": own})
    about = _of_passes(run, np.array([row["pass"] for row in rows], dtype=np.int32))
    seconds = about["wall_ns"] / 1e9
    used, sources = zip(*(_used(row["samples"], wall) for row, wall in zip(rows, about["wall_ns"], strict=True)),
                        strict=True)  # fmt: skip
    joules, idle_watts = np.array(used, dtype=np.float64), np.array([row["idle_watts"] for row in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        columns: dict[str, tuple[Any, str]] = {
            "level": (about["level"], "1"),
            "process": (about["process"], "1"),
            "device": (texts([str(row["device"]) for row in rows]), "1"),
            "duration_ns": (about["wall_ns"], "ns"),
            "energy_joules": (joules, "J"),
            "energy_per_iteration_joules": (joules / np.maximum(about["measured_iterations"], 1), "J"),
            "power_watts": (joules / seconds, "W"),
            "idle_watts": (idle_watts, "W"),
            "energy_above_idle_joules": (joules - idle_watts * seconds, "J"),
            "source": (texts(list(sources)), "1"),
        }
    return xr.Dataset(
        {name: ("row", values, {"units": units}) for name, (values, units) in columns.items()},
        coords={"row": np.arange(len(rows))},
        attrs=run_attrs(run),
    )


def _used(samples: xr.Dataset, wall_ns: int) -> tuple[float, str]:
    """Return the joules between 0 and `wall_ns`, and where they come from."""
    times = samples["time_ns"].values.astype(np.float64)
    ends = np.array([0.0, float(wall_ns)])
    if "energy_joules" in samples:
        counter = samples["energy_joules"].values
        known = np.isfinite(counter)
        if known.sum() >= 2:
            at = np.interp(ends, times[known], counter[known])
            return float(at[1] - at[0]), "counter"
    watts = samples["power_watts"].values
    known = np.isfinite(watts)
    if not known.any():
        return float("nan"), "power"
    inside = times[known & (times > ends[0]) & (times < ends[1])]
    grid = np.concatenate([ends[:1], inside, ends[1:]])
    values = np.interp(grid, times[known], watts[known])
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(grid)) / 1e9), "power"
