"""Power, energy, clocks, temperature and throttling of an NVIDIA device, through NVML (nvidia-ml-py).

Unverified on a device: it was written where none is, and tested on recorded readings.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mlscope_lab.collectors.base import Collector
from mlscope_lab.collectors.power import energy_used, mean_power, power_table
from mlscope_lab.collectors.sampling import Sampler
from mlscope_lab.trace.records import EventTable

__all__ = ["COLUMNS", "DeviceReader", "Nvml", "open_nvml"]

COLUMNS = ("power_watts", "energy_joules", "sm_clock_hz", "memory_clock_hz", "temperature_celsius", "utilization",
           "throttle_reasons")  # fmt: skip
_INSTALL = "pip install nvidia-ml-py"


class DeviceReader(Protocol):
    """Where readings come from.

    Attributes
    ----------
    columns
        Those of `COLUMNS` that the device tells.
    lacking
        {column: reason} for the others.
    """

    columns: tuple[str, ...]
    lacking: dict[str, str]

    def read(self) -> Sequence[float]:
        """Return one value a column, "energy_joules" counted from whenever; raises `OSError`."""
        ...

    def close(self) -> None:
        """Let the device go."""
        ...


class _NvmlReader:
    """Readings of one device from the driver."""

    def __init__(self, pynvml: Any, ordinal: int) -> None:
        self._nvml = pynvml
        handle = _handle(pynvml, ordinal)
        reasons = getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        calls: dict[str, Callable[[], float]] = {
            "power_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "energy_joules": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            "sm_clock_hz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
            "temperature_celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            # newer drivers call throttling clock events
            "throttle_reasons": lambda: (reasons or pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle),
        }
        self.lacking: dict[str, str] = {}
        self._calls: list[Callable[[], float]] = []
        columns = []
        for column, call in calls.items():
            try:
                call()
            except pynvml.NVMLError as error:
                self.lacking[column] = f"NVML: {error}"
            else:
                columns.append(column)
                self._calls.append(call)
        self.columns = tuple(columns)

    def read(self) -> list[float]:
        try:
            return [float(call()) for call in self._calls]
        except self._nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    def close(self) -> None:
        self._nvml.nvmlShutdown()


def _handle(pynvml: Any, ordinal: int) -> Any:
    """Return NVML's handle of what CUDA calls device `ordinal`: the two number devices each in its own order."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
        if not (cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), ordinal)
                or cuda.cuDeviceGetPCIBusId(address, len(address), device)):  # fmt: skip
            return pynvml.nvmlDeviceGetHandleByPciBusId(address.value)
    except (OSError, AttributeError):
        pass  # no driver to ask: the numbers that the environment leaves visible
    visible = [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    if ordinal < len(visible) and visible[ordinal].startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(visible[ordinal].encode("ascii"))
    number = int(visible[ordinal]) if ordinal < len(visible) and visible[ordinal].isdigit() else ordinal
    return pynvml.nvmlDeviceGetHandleByIndex(number)


def open_nvml(device: str) -> DeviceReader:
    """Open a device such as "cuda:0" through NVML.

    Raises
    ------
    OSError
        If there is no NVML or no such device, with the reason.
    """
    try:
        import pynvml
    except ImportError as error:
        raise OSError(f"nvidia-ml-py is not installed. Install with: {_INSTALL}") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}; it comes with the NVIDIA driver") from error
    try:
        return _NvmlReader(pynvml, int(device.partition(":")[2] or 0))
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        raise OSError(f"NVML on '{device}': {error}") from error


class Nvml(Collector):
    """Samples a CUDA device into ``/power``; unverified on a device.

    Parameters
    ----------
    period_s
        Seconds between samples; the driver's own values move every 20 to 100 ms.
    idle_s
        Seconds over which the power at rest is measured before the warm-up, with the model loaded.
    open_reader
        Opens a device; default the driver's NVML.

    Notes
    -----
    ``energy_joules`` comes from the device's own energy counter where it has one (Volta and later). Boards differ in
    what "power" averages over, so that energy over a loop of less than a few hundred milliseconds is rough.
    """

    name = "nvml"
    records = ("power", "energy", "clocks", "temperature", "utilization", "throttling")

    def __init__(
        self,
        *,
        period_s: float = 0.05,
        idle_s: float = 1.0,
        open_reader: Callable[[str], DeviceReader] = open_nvml,
    ) -> None:
        super().__init__()
        self._period_s, self._idle_s, self._open_reader = period_s, idle_s, open_reader
        self._idle: dict[str, float] = {}

    def unavailable(self, device: str) -> Mapping[str, str]:  # noqa: D102 - as in the base class
        if not device.startswith("cuda"):
            return {self.name: f"it watches CUDA devices, and the model runs on '{device}'"}
        try:
            reader = self._open_reader(device)
        except OSError as error:
            return {self.name: str(error)}
        reader.close()
        return {f"{self.name} {column}": reason for column, reason in reader.lacking.items()}

    def prepare(self, device: str) -> None:  # noqa: D102
        reader = self._open_reader(device)
        try:
            sampler = Sampler(reader.read, len(reader.columns), period_s=self._period_s)
            sampler.start()
            time.sleep(self._idle_s)
            times, values = sampler.stop()
        finally:
            reader.close()
        own = dict(zip(reader.columns, values.T, strict=True))
        if "power_watts" in own:
            watts = float(np.mean(own["power_watts"]))
        elif "energy_joules" in own and times[-1] > times[0]:
            watts = float(own["energy_joules"][-1] - own["energy_joules"][0]) / (float(times[-1] - times[0]) / 1e9)
        else:
            return
        if math.isfinite(watts):
            self._idle[device] = watts

    def start(self, device: str) -> None:  # noqa: D102
        self._device = device
        self._reader = self._open_reader(device)
        self._sampler = Sampler(self._reader.read, len(self._reader.columns), period_s=self._period_s)
        try:
            self._sampler.start()
        except OSError:
            self._reader.close()
            raise

    def stop(self) -> Mapping[str, EventTable]:  # noqa: D102
        times, values = self._sampler.stop()
        self._reader.close()
        if self._sampler.error:
            self.missing[self.name] = f"the samples end early: {self._sampler.error}"
        own: dict[str, Any] = dict(zip(self._reader.columns, values.T, strict=True))
        if "energy_joules" in own:
            own["energy_joules"] = energy_used(own["energy_joules"], None)
            own.setdefault("power_watts", mean_power(times, own["energy_joules"]))
        own.setdefault("power_watts", np.full(len(times), np.nan))
        if "throttle_reasons" in own:
            own["throttle_reasons"] = own["throttle_reasons"].astype(np.int64)
        table = power_table(
            times, {self._device: own}, source=self.name, period_s=self._sampler.period_s, idle_watts=self._idle
        )
        return {"power": table}
