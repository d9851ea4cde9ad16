"""What the power collectors share: the table that they hand over, and counters that wrap around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace.records import EventTable

__all__ = ["Floats", "Times", "energy_used", "mean_power", "power_table"]

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]


def energy_used(counter: Floats, limit: float | None) -> Floats:
    """Return the energy since the first reading of a counter that starts again at 0 beyond a limit.

    Parameters
    ----------
    counter
        (N,) readings, any unit, less than one turn apart.
    limit
        The counter's largest value, or None if it does not wrap; then a reading below the one before it (the driver was
        loaded again) leaves what follows unknown, NaN.

    Examples
    --------
    >>> energy_used(np.array([90.0, 99.0, 5.0]), 100.0).tolist()
    [0.0, 9.0, 15.0]
    """
    steps = np.diff(counter)
    steps = np.where(steps < 0, np.nan if limit is None else steps + (limit or 0.0), steps)
    return np.concatenate([np.zeros(min(1, len(counter))), np.cumsum(steps)])


def mean_power(times: Times, energy: Floats) -> Floats:
    """Return for each reading the mean power since the one before it, NaN for the first.

    Parameters
    ----------
    times
        (N,) ns.
    energy
        (N,) joules since the first reading.

    Returns
    -------
    numpy.ndarray
        (N,) watts.
    """
    elapsed = np.diff(times) / 1e9
    watts = np.full(len(times), np.nan)
    np.divide(np.diff(energy), elapsed, out=watts[1:], where=elapsed > 0)
    return watts


def power_table(
    times: Times,
    columns: Mapping[str, Mapping[str, Floats | npt.NDArray[np.int64]]],
    *,
    source: str,
    period_s: float,
    idle_watts: Mapping[str, float],
) -> EventTable:
    """Return the samples of several devices as events of ``/power``.

    Parameters
    ----------
    times
        (N,) ns.
    columns
        {device: {column: (N,) values}}, the same columns for each device; "power_watts" among them. With
        "energy_joules" the attributes tell the energy used.
    source
        Name of the collector, under which its period stands in the attributes.
    period_s
        Seconds between samples.
    idle_watts
        Power at rest by device, measured before the warm-up; a device without it has no energy above idle.

    Returns
    -------
    EventTable
        Rows in order of time. Attributes: ``period_s`` {source: s}, and by device ``idle_watts``, ``energy_joules``
        (from the first sample to the last) and ``energy_above_idle_joules`` (less the idle power over that time).
    """
    devices = tuple(columns)
    wall_s = float(times[-1] - times[0]) / 1e9 if len(times) else 0.0
    total = {
        device: float(own["energy_joules"][-1])
        for device, own in columns.items()
        if len(times) and np.isfinite(own.get("energy_joules", np.full(1, np.nan))[-1])
    }
    attrs: dict[str, object] = {
        "period_s": {source: period_s},
        "idle_watts": dict(idle_watts),
        "energy_joules": total,
        "energy_above_idle_joules": {
            device: joules - idle_watts[device] * wall_s for device, joules in total.items() if device in idle_watts
        },
    }
    names: Sequence[str] = tuple(next(iter(columns.values()), {}))
    return EventTable(
        columns={
            "device_code": np.tile(np.arange(len(devices), dtype=np.int32), len(times)),
            "time_ns": np.repeat(times, len(devices)),
            **{name: np.stack([columns[device][name] for device in devices], axis=1).ravel() for name in names},
        },
        tables={"device": devices},
        attrs=attrs,
    )
