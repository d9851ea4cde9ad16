"""`mlscope_lab.roofline`: a run's layers under the roofs of the machine that it was measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mlscope_lab.config import Settings, load_settings
from mlscope_lab.errors import InputError, ManifestNotFoundError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["roofline"]


def roofline(
    run: xr.DataTree,
    *,
    model: Any = None,
    cost: xr.Dataset | None = None,
    peaks: xr.Dataset | None = None,
    system: str | None = None,
    settings: Settings | None = None,
) -> xr.Dataset:
    """Return where each layer stands under the machine's roofs, by level of cache and element type.

    Parameters
    ----------
    run
        A run with layers.
    model
        What the run is of, for its static cost: a name, a path or a live object, see `mlscope_lab.cost`; default the
        published model that the run names.
    cost
        That cost, where it is known already.
    peaks
        What the machine can do; default what `mlscope_lab.calibrate` measured for the run's threads, measuring it now
        where that has not been done.
    system
        Name of a system manifest whose peaks count instead.
    settings
        Default: what the environment says.

    Returns
    -------
    xarray.Dataset
        See `mlscope_lab.analysis.roofline.roofline`; ``matched_flops_ratio`` tells how much of the model's work the
        layers account for.

    Raises
    ------
    InputError
        If the run names no published model and none is given, or it was measured on another machine or device and
        neither `peaks` nor `system` is given.
    SchemaError
        If the run has no layers.
    """
    from mlscope_lab.analysis.roofline import roofline as under_roofs
    from mlscope_lab.analysis.static import attach

    resolved = settings or load_settings()
    roofs = peaks if peaks is not None else _peaks(run, system, resolved)
    joined = attach(run, cost if cost is not None else _cost(run, model, resolved))
    found = under_roofs(run, joined, roofs)
    return found.assign(matched_flops_ratio=joined["matched_flops_ratio"])


def _cost(run: xr.DataTree, model: Any, settings: Settings) -> xr.Dataset:
    from mlscope_lab.costing import cost

    attrs = run.attrs
    batch_size: int | Literal["given"] = attrs.get("batch_size") or "given"
    symbols = {name: n for name, n in (attrs.get("symbols") or {}).items() if isinstance(n, int) and name != "batch"}
    try:
        return cost(
            attrs["model"] if model is None else model, backend=attrs["backend"], batch_size=batch_size,
            symbols=symbols, settings=settings, progress=False,
        )  # fmt: skip
    except ManifestNotFoundError as error:
        raise InputError(
            f"No published model is called '{attrs['model']}', so the cost of its layers is not known: give model= (a "
            "path or a live object), or cost= (from mlscope_lab.cost)"
        ) from error


def _peaks(run: xr.DataTree, system: str | None, settings: Settings) -> xr.Dataset:
    device, threads = str(run.attrs.get("device", "cpu")), run.attrs.get("threads")
    if system is not None:
        from mlscope_lab.calibration.peaks import peaks_from_system
        from mlscope_lab.catalog import load_catalog

        return peaks_from_system(load_catalog(settings).system(system).manifest, device=device)
    from mlscope_lab.calibration.stored import calibrate, machine_identity

    here, there = machine_identity(threads or 1, device), run.attrs.get("environment") or {}
    facts: tuple[str, ...] = ("cpu", "architecture", "cores_logical") if device == "cpu" else ("gpus",)
    if any(there.get(name, here[name]) != here[name] for name in facts):
        raise InputError(
            f"The run was measured on another machine ({there.get('cpu')}), whose peaks cannot be measured here: give "
            "system= (the name of a system manifest) or peaks= (of a calibration made there)"
        )
    return calibrate(threads=threads if device == "cpu" else None, device=device, settings=settings)
