"""Energy of the processor as it counts it itself (RAPL), read from Linux's files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlscope_lab.collectors.base import Collector
from mlscope_lab.collectors.power import Floats, energy_used, mean_power, power_table
from mlscope_lab.collectors.sampling import Sampler
from mlscope_lab.trace.records import EventTable

__all__ = ["Domain", "Rapl", "find_domains"]

_MICRO = 1e-6


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Something whose energy is counted.

    Attributes
    ----------
    name
        "package-0"; a part of it as "package-0/core".
    file
        Holds the counter, microjoules.
    limit_uj
        Largest value of the counter, after which it starts again; None where the system does not tell.
    """

    name: str
    file: Path
    limit_uj: float | None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _powercap(root: Path) -> list[Domain]:
    """Return the domains of the powercap tree: ``intel-rapl:0``, its parts ``intel-rapl:0:0``, ... (also on AMD)."""
    zones = sorted(p for p in root.glob("intel-rapl*:*") if (p / "energy_uj").exists())
    # the same packages may be there twice, by register and by memory-mapped register
    by_register = [p for p in zones if not p.name.startswith("intel-rapl-mmio")]
    zones = by_register or zones
    names = {p.name: _text(p / "name") or p.name for p in zones}
    found = []
    for zone in zones:
        parent = zone.name.rpartition(":")[0]
        name = f"{names[parent]}/{names[zone.name]}" if parent in names else names[zone.name]
        limit = _text(zone / "max_energy_range_uj")
        found.append(Domain(name=name, file=zone / "energy_uj", limit_uj=float(limit) if limit.isdigit() else None))
    return found


def _hwmon(root: Path) -> list[Domain]:
    """Return the sockets of AMD's driver ``amd_energy``; its cores are parts of them and left out."""
    found = []
    for folder in sorted(root.glob("hwmon*")):
        if _text(folder / "name") != "amd_energy":
            continue
        for file in sorted(folder.glob("energy*_input")):
            label = _text(folder / file.name.replace("_input", "_label"))
            if label.startswith("Esocket"):
                found.append(Domain(name=f"package-{label.removeprefix('Esocket')}", file=file, limit_uj=None))
    return found


def find_domains(powercap: Path, hwmon: Path) -> list[Domain]:
    """Return what counts energy here, powercap's domains if there are any, else AMD's; readable or not."""
    return _powercap(powercap) or _hwmon(hwmon)


class Rapl(Collector):
    """Samples the energy counters of the processor packages into ``/power``.

    Parameters
    ----------
    powercap, hwmon
        Folders of the system's files.
    period_s
        Seconds between samples; the counters themselves move about every millisecond.
    idle_s
        Seconds over which the power at rest is measured, before the warm-up.

    Notes
    -----
    The counters are of whole packages: what other processes use is in them. ``power_watts`` is the mean since the
    sample before. Parts ("package-0/core") are contained in their package; do not add them to it.
    """

    name = "rapl"
    records = ("energy and power of the processor",)

    def __init__(
        self,
        *,
        powercap: Path = Path("/sys/class/powercap"),
        hwmon: Path = Path("/sys/class/hwmon"),
        period_s: float = 0.05,
        idle_s: float = 0.5,
    ) -> None:
        super().__init__()
        self._folders = powercap, hwmon
        self._period_s, self._idle_s = period_s, idle_s
        self._idle: dict[str, float] = {}
        self._files: list[tuple[Domain, int]] = []
        self._open = ExitStack()

    def unavailable(self, device: str) -> Mapping[str, str]:  # noqa: D102 - as in the base class
        powercap, hwmon = self._folders
        domains = find_domains(powercap, hwmon)
        if not domains:
            return {
                self.name: f"neither {powercap}/intel-rapl:* nor an amd_energy sensor in {hwmon}: the kernel has no "
                "energy counters (usual in virtual machines); on bare metal load the module intel_rapl_msr"
            }
        refused = {}
        for domain in domains:
            try:
                domain.file.read_bytes()
            except PermissionError:
                refused[f"{self.name} {domain.name}"] = (
                    f"{domain.file} may be read by root alone; allow it with: sudo chmod a+r {domain.file}"
                )
            except OSError as error:
                refused[f"{self.name} {domain.name}"] = f"{domain.file}: {error.strerror}"
        if len(refused) == len(domains):
            return {self.name: next(iter(refused.values()))}
        return refused

    def _read(self) -> list[float]:
        return [_number(os.pread(descriptor, 32, 0)) for _, descriptor in self._files]

    def _open_files(self) -> None:
        if self._files:
            return
        for domain in find_domains(*self._folders):
            try:
                descriptor = os.open(domain.file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # `unavailable` has said so
            self._open.callback(os.close, descriptor)
            self._files.append((domain, descriptor))

    def prepare(self, device: str) -> None:  # noqa: D102
        self._open_files()
        sampler = Sampler(self._read, len(self._files), period_s=self._period_s)
        sampler.start()
        time.sleep(self._idle_s)
        times, values = sampler.stop()
        for number, (domain, _) in enumerate(self._files):
            watts = _joules(values[:, number], domain)[-1] / (float(times[-1] - times[0]) / 1e9)
            if np.isfinite(watts):
                self._idle[domain.name] = float(watts)

    def start(self, device: str) -> None:  # noqa: D102
        self._open_files()
        self._sampler = Sampler(self._read, len(self._files), period_s=self._period_s)
        self._sampler.start()

    def stop(self) -> Mapping[str, EventTable]:  # noqa: D102
        times, values = self._sampler.stop()
        self._open.close()
        if self._sampler.error:
            self.missing[self.name] = f"the samples end early: {self._sampler.error}"
        columns = {}
        for number, (domain, _) in enumerate(self._files):
            joules = _joules(values[:, number], domain)
            columns[domain.name] = {"power_watts": mean_power(times, joules), "energy_joules": joules}
        self._files = []
        period_s = self._sampler.period_s
        return {"power": power_table(times, columns, source=self.name, period_s=period_s, idle_watts=self._idle)}


def _number(text: bytes) -> float:
    if not text.strip().isdigit():
        raise OSError(f"an energy counter reads {text!r}")
    return float(text)


def _joules(counter: Floats, domain: Domain) -> Floats:
    limit = None if domain.limit_uj is None else domain.limit_uj * _MICRO
    return energy_used(counter * _MICRO, limit)
