"""The machine and its software, as they were when a run was made."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["available_cores", "describe", "noise_warnings"]

_LIBRARIES = (
    "mlscope-lab", "numpy", "pillow", "xarray", "zarr", "torch", "onnx", "onnxruntime", "onnxruntime-gpu",
    "onnxscript", "tensorflow", "tensorflow-cpu", "keras", "safetensors", "nvidia-ml-py",
)  # fmt: skip


def available_cores() -> int:
    """Return how many cores this process may use (affinity, and a container's CPU quota where one is set)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, -(-int(quota[0]) // int(quota[1]))))
    return max(1, cores)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or platform.machine()


def _turbo() -> str | None:
    no_turbo = _read("/sys/devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo in {"0", "1"}:
        return "off" if no_turbo == "1" else "on"
    boost = _read("/sys/devices/system/cpu/cpufreq/boost")
    return {"0": "off", "1": "on"}.get(boost)


def _gpus() -> tuple[list[dict[str, Any]], str]:
    try:
        import pynvml
    except ImportError:
        return [], "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                {
                    "name": str(pynvml.nvmlDeviceGetName(handle)),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    "driver": str(driver),
                }
            )
        return found, ""
    finally:
        pynvml.nvmlShutdown()


def describe(libraries: Sequence[str] = _LIBRARIES) -> tuple[dict[str, Any], dict[str, str]]:
    """Describe the machine.

    Parameters
    ----------
    libraries
        Distributions whose versions are recorded where installed; none is imported.

    Returns
    -------
    environment
        JSON-able facts: CPU, cores, governor, turbo, load averages, RAM, operating system, Python, versions, GPUs.
    unavailable
        What this machine does not tell: {what: reason}.
    """
    import psutil

    versions = {}
    for name in libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    unavailable: dict[str, str] = {}
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores_logical": os.cpu_count() or 0,
        "cores_available": available_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "memory_available_bytes": int(psutil.virtual_memory().available),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "libraries": versions,
        "virtualized": "hypervisor" in _read("/proc/cpuinfo"),
    }
    physical = psutil.cpu_count(logical=False)
    if physical:
        facts["cores_physical"] = physical
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        facts["governor"] = governor
    else:
        unavailable["governor"] = "the system shows no cpufreq governor (usual in virtual machines)"
    turbo = _turbo()
    if turbo is None:
        unavailable["turbo"] = "the system does not show whether turbo is on"
    else:
        facts["turbo"] = turbo
    if hasattr(os, "getloadavg"):
        facts["load_average"] = [round(x, 2) for x in os.getloadavg()]
    gpus, reason = _gpus()
    if gpus:
        facts["gpus"] = gpus
    else:
        unavailable["gpu"] = reason or "no device"
    return facts, unavailable


def noise_warnings(environment: dict[str, Any]) -> list[str]:
    """Return sentences about what makes this machine's timings noisy; nothing is changed."""
    found = []
    load, cores = environment.get("load_average", [0.0])[0], environment.get("cores_available", 1)
    if load > 0.5 * cores:
        found.append(f"The machine was busy: load average {load:g} on {cores} cores")
    if environment.get("governor") in {"powersave", "ondemand", "conservative", "schedutil"}:
        found.append(f"The CPU governor is '{environment['governor']}': clock speed follows load")
    return found
