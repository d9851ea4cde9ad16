"""Hardware and software counters of this process from Linux's perf events, through the system call itself.

No ``perf`` program is needed. Counters cover every thread of the process that exists when the measured part begins,
and those that such threads start meanwhile; the threads that sample for other collectors are left out.

References
----------
perf_event_open(2) of the Linux man-pages, for the layout of the attribute and of what is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.collectors.base import Collector
from mlscope_lab.collectors.sampling import sampling_threads
from mlscope_lab.trace.records import EventTable

__all__ = ["EVENTS", "Event", "PerfEvents", "scaled"]

_SYSTEM: str = sys.platform
_SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5, known to every kernel since 4.1
_DISABLED, _INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 0, 1 << 1, 1 << 5, 1 << 6
_TIMES = 0b11  # PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING
_CLOEXEC = 8
_PR_DISABLE, _PR_ENABLE = 31, 32  # PR_TASK_PERF_EVENTS_*
_SPARE_FILES = 128
_HARDWARE, _SOFTWARE, _CACHE = 0, 1, 3
_LLC_READ, _LLC_READ_MISS = 0x000002, 0x010002


@dataclass(frozen=True, kw_only=True)
class Event:
    """One counter.

    Attributes
    ----------
    name
        Column in ``/counters``: perf's name for it, with underscores.
    type, config
        Of the system call.
    group
        Counters of one group are counted over the same stretches of time where the hardware has too few registers for
        all; -1 for a software event, which never waits for one.
    kernel
        Count what happens inside the kernel too; else user space alone.
    long_name
        In words.
    """

    name: str
    type: int
    config: int
    group: int
    kernel: bool
    long_name: str


def _hardware(name: str, config: int, group: int, long_name: str) -> Event:
    return Event(name=name, type=_HARDWARE, config=config, group=group, kernel=False, long_name=long_name)


def _software(name: str, config: int, long_name: str, *, kernel: bool = False) -> Event:
    return Event(name=name, type=_SOFTWARE, config=config, group=-1, kernel=kernel, long_name=long_name)


EVENTS = (
    _hardware("cycles", 0, 0, "processor cycles"),
    _hardware("instructions", 1, 0, "retired instructions"),
    _hardware("branch_instructions", 4, 0, "retired branches"),
    _hardware("branch_misses", 5, 0, "mispredicted branches"),
    _hardware("cache_references", 2, 1, "cache accesses, last level on most processors"),
    _hardware("cache_misses", 3, 1, "cache misses, last level on most processors"),
    Event(name="llc_loads", type=_CACHE, config=_LLC_READ, group=1, kernel=False, long_name="last-level cache loads"),
    Event(name="llc_load_misses", type=_CACHE, config=_LLC_READ_MISS, group=1, kernel=False,
          long_name="last-level cache load misses"),
    _software("task_clock_ns", 1, "processor time of all threads"),
    # both happen inside the kernel, so that counting user space alone would see none
    _software("context_switches", 3, "context switches", kernel=True),
    _software("cpu_migrations", 4, "moves of a thread to another processor", kernel=True),
    _software("page_faults_minor", 5, "page faults served from memory"),
    _software("page_faults_major", 6, "page faults served from disk"),
)  # fmt: skip


def scaled(readings: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """Sum one counter over threads.

    Parameters
    ----------
    readings
        (value, time enabled, time running) of each thread; times in ns.

    Returns
    -------
    count
        Each value extended from the time in which it was counted to that in which it should have been; NaN if a
        thread ran but was never counted.
    share
        Of the enabled time the part that was counted, 1 where nothing was enabled.

    Examples
    --------
    >>> scaled([(100, 50, 25), (7, 10, 10)])
    (207.0, 0.5833333333333334)
    """
    total, enabled_all, running_all = 0.0, 0, 0
    for value, enabled, running in readings:
        enabled_all, running_all = enabled_all + enabled, running_all + running
        if running:
            total += value * (enabled / running)
        elif enabled:
            total = float("nan")
    return total, running_all / enabled_all if enabled_all else 1.0


def _reason(code: int) -> str:
    """Say what an error of the system call means, and the way out."""
    name = errno.errorcode.get(code, str(code))
    if code in {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}:
        return f"{name}: this processor, or the virtual machine on it, offers no such counter"
    if code in {errno.EACCES, errno.EPERM}:
        try:
            paranoid = _PARANOID.read_text(encoding="ascii").strip()
        except OSError:
            paranoid = "unknown"
        return (
            f"{name}: perf_event_paranoid is {paranoid} and this process may not count; allow it with: sudo sysctl "
            "kernel.perf_event_paranoid=2, and in a container with --cap-add PERFMON and a seccomp profile that lets "
            "perf_event_open through"
        )
    if code == errno.ENOSYS:
        return f"{name}: this kernel was built without perf events"
    if code == errno.EMFILE:
        return f"{name}: too many open files for one counter a thread; raise the limit with: ulimit -n 8192"
    return f"{name}: {os.strerror(code)}"


class _Kernel:
    """The system calls."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._number = _SYSCALL[platform.machine()]

    def open(self, event: Event, thread: int, leader: int) -> int:
        """Return a descriptor of a disabled counter; raises `OSError`."""
        flags = _DISABLED | _INHERIT | _EXCLUDE_HV | (0 if event.kernel else _EXCLUDE_KERNEL)
        attribute = struct.pack("=IIQQQQQ", event.type, _ATTR_SIZE, event.config, 0, 0, _TIMES, flags)
        buffer = ctypes.create_string_buffer(attribute.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
        descriptor = self._c.syscall(
            ctypes.c_long(self._number), buffer, ctypes.c_int(thread), ctypes.c_int(-1), ctypes.c_int(leader),
            ctypes.c_ulong(_CLOEXEC),
        )  # fmt: skip
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(descriptor)

    def switch(self, on: bool) -> None:
        """Enable or disable all counters that the calling thread opened."""
        self._c.prctl(_PR_ENABLE if on else _PR_DISABLE, 0, 0, 0, 0)


def _threads() -> list[int]:
    """Return this process's threads, samplers left out."""
    return sorted({int(name) for name in os.listdir("/proc/self/task")} - sampling_threads())


def _affordable(threads: int) -> int:
    """Return how many counters of each thread may be open, so that enough files are left for what is measured."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return len(EVENTS)
    return max(0, (limit - len(os.listdir("/proc/self/fd")) - _SPARE_FILES) // max(1, threads))


class PerfEvents(Collector):
    """Counts processor events over the measured part into ``/counters``, as one range named "pass".

    Notes
    -----
    One variable a counter, summed over threads. A group that shared the hardware's registers with another is scaled
    from the time in which it was counted; the variable's attribute ``counted_share`` tells how much that was.
    """

    name = "perf_events"
    records = tuple(event.name for event in EVENTS)

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, list[int]] = {}
        self._refused: dict[str, str] | None = None

    def unavailable(self, device: str) -> Mapping[str, str]:  # noqa: D102 - as in the base class
        if _SYSTEM != "linux":
            return {self.name: f"perf events are of Linux, and this is {_SYSTEM}"}
        if platform.machine() not in _SYSCALL:
            return {self.name: f"the system call's number on {platform.machine()} is not known here"}
        self._refused = self._tried()
        if len(self._refused) == len(EVENTS):
            return {self.name: next(iter(self._refused.values()))}
        return {f"{self.name} {name}": reason for name, reason in self._refused.items()}

    @staticmethod
    def _tried() -> dict[str, str]:
        """Return the counters that do not open here, with the reasons."""
        kernel, refused = _Kernel(), {}
        for event in EVENTS:
            try:
                os.close(kernel.open(event, 0, -1))
            except OSError as error:
                refused[event.name] = _reason(error.errno or 0)
        return refused

    def start(self, device: str) -> None:  # noqa: D102
        kernel, threads = _Kernel(), _threads()
        refused = self._refused if self._refused is not None else self._tried()
        events = [event for event in EVENTS if event.name not in refused]
        for event in events[_affordable(len(threads)) :]:
            self._give_up(event, OSError(errno.EMFILE, ""))
        events = events[: _affordable(len(threads))]
        self._open = {event.name: [] for event in events}
        leaders: dict[tuple[int, int], int] = {}
        for thread in threads:
            for event in events:
                leader = leaders.get((thread, event.group), -1) if event.group >= 0 else -1
                try:
                    descriptor = kernel.open(event, thread, leader)
                except OSError as error:
                    if error.errno == errno.ESRCH:
                        break  # the thread has ended meanwhile
                    self._give_up(event, error)
                    continue
                leaders.setdefault((thread, event.group), descriptor)
                self._open[event.name].append(descriptor)
        self._kernel = kernel
        kernel.switch(True)
        self._begin = time.perf_counter_ns()

    def _give_up(self, event: Event, error: OSError) -> None:
        """Drop a counter that some thread refuses: a sum over the others would be no count of the process."""
        self.missing.setdefault(f"{self.name} {event.name}", _reason(error.errno or 0))

    def stop(self) -> Mapping[str, EventTable]:  # noqa: D102
        self._kernel.switch(False)
        end = time.perf_counter_ns()
        columns: dict[str, npt.NDArray[Any]] = {
            "name_code": np.zeros(1, dtype=np.int32),
            "category_code": np.zeros(1, dtype=np.int32),
            "start_ns": np.array([self._begin], dtype=np.int64),
            "duration_ns": np.array([end - self._begin], dtype=np.int64),
        }
        attrs: dict[str, dict[str, str]] = {}
        whole = len(columns)
        for event in EVENTS:
            descriptors = self._open.get(event.name, [])
            readings = [struct.unpack("=QQQ", os.read(descriptor, 24)) for descriptor in descriptors]
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            if not readings or f"{self.name} {event.name}" in self.missing:
                continue
            count, share = scaled([(r[0], r[1], r[2]) for r in readings])
            columns[event.name] = np.array([count], dtype=np.float64)
            attrs[event.name] = {
                "units": "ns" if event.name.endswith("_ns") else "1",
                "long_name": event.long_name + ("" if event.kernel or event.group < 0 else ", user space"),
                "counted_share": f"{share:.4f}",
            }
        self._open = {}
        if len(columns) == whole:
            return {}
        tables = {"name": ("pass",), "category": ("process",)}
        return {"counters": EventTable(columns=columns, tables=tables, variable_attrs=attrs)}
