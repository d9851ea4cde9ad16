"""Calibrate a machine once and keep what came out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.calibration.caches import find_caches
from mlscope_lab.calibration.measuring import MEMORY, working_sets
from mlscope_lab.calibration.peers import installed_peers
from mlscope_lab.collectors.environment import available_cores, describe
from mlscope_lab.config import Settings, load_settings
from mlscope_lab.errors import InputError, RunError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["calibrate", "machine_identity"]

_FORMAT = 2
_ROUNDS, _SECONDS, _BUDGET_S = 15, 0.002, 14.0
_TIMEOUT_S = 300.0
_LIBRARIES = ("numpy", "torch", "onnxruntime", "onnxruntime-gpu")
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def machine_identity(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what a calibration depends on: processor, cores, caches, threads and the libraries whose kernels ran.

    Of a CUDA device it is the name and memory of the machine's devices, its driver and the libraries.
    """
    environment, _ = describe(libraries=())
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if device != "cpu":
        return {"device": device, "gpus": environment.get("gpus", []), "libraries": versions}
    return {
        "cpu": environment["cpu"],
        "architecture": platform.machine(),
        "cores_logical": environment["cores_logical"],
        "cores_available": environment["cores_available"],
        "memory_bytes": environment["memory_bytes"],
        "caches": [[c.name, c.bytes, c.instances] for c in find_caches()],
        "threads": threads,
        "libraries": versions,
    }


def _file(settings: Settings, identity: Mapping[str, Any]) -> Path:
    text = json.dumps([_FORMAT, identity], sort_keys=True)
    return settings.home / "calibration" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _stored(file: Path) -> dict[str, Any] | None:
    """Return what was kept, or None where there is nothing to trust."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        datetime.fromisoformat(found["created_at"])
        if not all(isinstance(k["name"], str) and isinstance(k["target"], str) for k in found["kernels"]):
            raise ValueError("a kernel has no name")
        if not all(len(k["rates"]) == len(k["shares"]) and min(k["rates"]) > 0 for k in found["kernels"]):
            raise ValueError("a kernel has no rates")
        dict(found["capacities"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"The calibration in {file} is damaged and made anew: {error}", stacklevel=3)
        return None
    return dict(found)


def _keep(file: Path, found: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".tmp-", suffix=".json")
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        json.dump(found, sink)
    Path(name).replace(file)


def _measured(identity: Mapping[str, Any], task: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """Measure in a fresh process, without the frameworks if one of them takes it down."""
    from mlscope_lab.launchers.lock import measuring
    from mlscope_lab.launchers.subprocess_ import Limits, TaskFailure, run_in_subprocess

    measured: dict[str, Any] = {}
    notes: list[str] = []

    def listen(message: dict[str, Any], arrays: dict[str, Any]) -> None:
        if message["type"] == "note":
            report(str(message["text"]))
        elif message["type"] == "peaks":
            measured.update(sets=message["sets"], kernels=message["kernels"])

    environment = {**dict.fromkeys(_ONE_THREAD, "1"), "OMP_NUM_THREADS": str(task["threads"])}
    with measuring(report):
        begin = datetime.now(UTC)
        attempts: list[list[str]] = [task["peers"], []] if task["peers"] else [[]]
        for peers in attempts:
            try:
                run_in_subprocess(
                    {**task, "peers": peers}, limits=Limits(timeout_s=_TIMEOUT_S), on_message=listen,
                    environment=environment,
                )  # fmt: skip
                break
            except TaskFailure as failure:
                if not peers:
                    raise RunError(f"The machine could not be calibrated: {failure.message}") from failure
                notes.append(f"Calibrated without {', '.join(peers)}: {failure.message}")
    return {
        "identity": identity,
        "created_at": begin.isoformat(timespec="seconds"),
        "seconds": (datetime.now(UTC) - begin).total_seconds(),
        "notes": notes,
        **measured,
    }


def calibrate(
    *,
    threads: int | None = None,
    device: str = "cpu",
    again: bool = False,
    settings: Settings | None = None,
    report: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Return this machine's measured peaks, measuring them first where that has not been done.

    Parameters
    ----------
    threads
        Threads that compute; default every core this process may use. Peaks hold for this number alone.
    device
        "cpu", or a CUDA device such as "cuda:0", whose peaks PyTorch's kernels measure (unverified on a device).
    again
        Measure even if there is a calibration of this machine.
    settings
        Default: what the environment says. Calibrations are kept in the home folder, by processor, cores, caches,
        threads and versions of the libraries whose kernels ran.
    report
        Called with sentences about what is being done.

    Returns
    -------
    xarray.Dataset
        See `mlscope_lab.calibration.peaks.peaks_from_samples`; for `mlscope_lab.analysis.roofline`. Attributes:
        ``source`` "measured", ``device``, ``threads``, ``created_at``, ``age_s``, ``seconds`` (that it took),
        ``machine`` (what identifies it), ``notes``, ``working_sets`` and ``disturbed``.

    Raises
    ------
    InputError
        If there is no such device.
    RunError
        If the measuring process fails.
    """
    import psutil

    from mlscope_lab.calibration.peaks import peaks_from_samples

    resolved, count = settings or load_settings(), threads or available_cores()
    identity = machine_identity(count, device)
    if device != "cpu" and not identity["gpus"]:
        raise InputError(f"Device '{device}' cannot be calibrated: NVML tells of no device here")
    file = _file(resolved, identity)
    found = None if again else _stored(file)
    if found is None:
        caches = find_caches()
        sets = working_sets(caches, count, int(psutil.virtual_memory().available)) if device == "cpu" else {}
        task = {
            "kind": "calibrate", "device": device, "threads": count, "sets": sets,
            "peers": installed_peers() if device == "cpu" else [], "rounds": _ROUNDS, "seconds": _SECONDS,
            "budget_s": _BUDGET_S,
        }  # fmt: skip
        found = _measured(identity, task, report or (lambda text: None))
        found["capacities"] = (
            {cache.name: cache.capacity(count) for cache in caches} if device == "cpu"
            else {level: 2 * total for level, total in found["sets"].items() if level != MEMORY}
        )  # fmt: skip
        _keep(file, found)
    age = datetime.now(UTC) - datetime.fromisoformat(found["created_at"])
    attrs = {
        "source": "measured", "device": device, "threads": count if device == "cpu" else None,
        "created_at": found["created_at"], "age_s": max(0.0, age.total_seconds()), "seconds": found["seconds"],
        "machine": identity, "notes": list(found["notes"]), "working_sets": dict(found["sets"]),
    }  # fmt: skip
    return peaks_from_samples(found["kernels"], {**found["capacities"], MEMORY: float("inf")}, attrs)
