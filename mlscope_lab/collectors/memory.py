"""Resident memory of this process: its peak, and how it changed while a pass was measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

import numpy as np

from mlscope_lab.collectors.base import Collector
from mlscope_lab.collectors.sampling import Sampler
from mlscope_lab.trace.records import EventTable

__all__ = ["ResidentMemory", "peak_resident_bytes"]

_SYSTEM: str = sys.platform
_STATM = "/proc/self/statm"


def peak_resident_bytes() -> int:
    """Return the peak resident set size of this process in bytes, or -1 where the system does not tell.

    Linux's ``VmHWM`` belongs to the address space and starts anew with a program; ``ru_maxrss`` would carry over
    what the parent held when it forked.
    """
    if _SYSTEM == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return -1
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if _SYSTEM == "darwin" else peak * 1024


def _page_faults() -> tuple[int, int]:
    """Return this process's minor and major page faults so far."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt, used.ru_majflt


class ResidentMemory(Collector):
    """Samples the resident set size of the process into ``/memory``, as device "process".

    Parameters
    ----------
    period_s
        Seconds between samples. A sample takes a few microseconds of one core.

    Notes
    -----
    ``allocated_bytes`` is the resident set at the sample and ``bytes`` its change since the one before. The attributes
    are ``process_period_s``, ``process_peak_bytes`` (the largest sample), and ``page_faults_minor`` and
    ``page_faults_major`` of all threads over the measured part. What comes and goes between two samples is not seen;
    the process's own peak is ``peak_bytes`` in ``/passes``.
    """

    name = "memory"
    records = ("resident memory", "page faults")

    def __init__(self, *, period_s: float = 0.01) -> None:
        super().__init__()
        self._period_s = period_s
        self._close: Callable[[], None] = lambda: None

    def start(self, device: str) -> None:  # noqa: D102 - as in the base class
        read, self._close = _reader()
        self._sampler = Sampler(lambda: (read(),), 1, period_s=self._period_s)
        self._faults = _page_faults()
        self._sampler.start()

    def stop(self) -> Mapping[str, EventTable]:  # noqa: D102
        times, values = self._sampler.stop()
        minor, major = _page_faults()
        self._close()
        resident = values[:, 0].astype(np.int64)
        table = EventTable(
            columns={
                "device_code": np.zeros(len(times), dtype=np.int32),
                "time_ns": times,
                "bytes": np.diff(resident, prepend=resident[:1]),
                "allocated_bytes": resident,
            },
            tables={"device": ("process",)},
            attrs={
                "process_period_s": self._sampler.period_s,
                "process_peak_bytes": int(resident.max(initial=-1)),
                "page_faults_minor": minor - self._faults[0],
                "page_faults_major": major - self._faults[1],
            },
        )
        return {"memory": table}


def _reader() -> tuple[Callable[[], float], Callable[[], None]]:
    """Return what reads the resident set size, and what ends the reading."""
    if _SYSTEM != "linux":
        import psutil

        process = psutil.Process()
        return lambda: float(process.memory_info().rss), lambda: None
    page = os.sysconf("SC_PAGE_SIZE")
    descriptor = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
    # the second field; reading at 0 asks the kernel anew
    return lambda: float(int(os.pread(descriptor, 128, 0).split()[1]) * page), lambda: os.close(descriptor)
