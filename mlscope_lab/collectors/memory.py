"""Peak memory of this process."""

from __future__ import annotations

import sys

__all__ = ["peak_resident_bytes"]


def peak_resident_bytes() -> int:
    """Return the peak resident set size of this process in bytes, or -1 where the system does not tell.

    Linux's ``VmHWM`` belongs to the address space and starts anew with a program; ``ru_maxrss`` would carry over
    what the parent held when it forked.
    """
    system: str = sys.platform
    if system == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return -1
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if system == "darwin" else peak * 1024
