"""The data caches of this machine's processor."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CacheLevel", "find_caches"]

_SYSTEM: str = sys.platform
_SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, kw_only=True)
class CacheLevel:
    """One level of cache.

    Attributes
    ----------
    name
        "L1", "L2", ...
    bytes
        Size of one cache of this level.
    instances
        How many of them the processors have that this process may run on.
    """

    name: str
    bytes: int
    instances: int

    def capacity(self, threads: int) -> int:
        """Return the bytes that so many threads can have in this level at most."""
        return self.bytes * min(self.instances, threads)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _size(text: str) -> int:
    factor = _SUFFIXES.get(text[-1:].upper(), 1)
    digits = text.rstrip("KMGkmg")
    return int(digits) * factor if digits.isdigit() else 0


def _from_files(root: Path, processors: Iterable[int]) -> list[CacheLevel]:
    """Read Linux's files; caches that several processors share are counted once."""
    found: dict[int, dict[str, int]] = {}
    for processor in processors:
        for folder in sorted((root / f"cpu{processor}" / "cache").glob("index*")):
            level, size = _text(folder / "level"), _size(_text(folder / "size"))
            if level.isdigit() and size and _text(folder / "type") in {"Data", "Unified"}:
                shared = _text(folder / "shared_cpu_list") or str(processor)
                found.setdefault(int(level), {})[shared] = size
    return [
        CacheLevel(name=f"L{level}", bytes=max(caches.values()), instances=len(caches))
        for level, caches in sorted(found.items())
    ]


def _sysctl(name: str) -> int:
    """Return a number of macOS's sysctl, 0 where there is none."""
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return 0
    return 0 if failed else int(value.value)


def _from_sysctl() -> list[CacheLevel]:
    """Ask macOS for the caches of its fastest cores; what shares the second level is told by cores."""
    cores = _sysctl("hw.perflevel0.logicalcpu") or _sysctl("hw.logicalcpu") or 1
    together = _sysctl("hw.perflevel0.cpusperl2") or 1
    levels = (("l1dcachesize", cores), ("l2cachesize", -(-cores // together)), ("l3cachesize", 1))
    found = []
    for number, (name, instances) in enumerate(levels, start=1):
        size = _sysctl(f"hw.perflevel0.{name}") or _sysctl(f"hw.{name}")
        if size:
            found.append(CacheLevel(name=f"L{number}", bytes=size, instances=instances))
    return found


def find_caches(
    root: Path = Path("/sys/devices/system/cpu"), processors: Iterable[int] | None = None
) -> list[CacheLevel]:
    """Return the levels of data cache, the smallest first; none where the system does not tell.

    Parameters
    ----------
    root
        Folder of Linux's processor files.
    processors
        Numbers of the processors that count; default those that this process may run on.
    """
    if _SYSTEM == "darwin":
        return _from_sysctl()
    if processors is None:
        have = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        processors = sorted(have)
    return _from_files(root, processors)
