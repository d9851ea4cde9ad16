"""Giving memory that was freed back to the system while values come and go."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any, Final

__all__ = ["Freed"]

_ENOUGH: Final = 256 << 20


class Freed:
    """Counts what was freed, and every 256 MiB asks the C library to give it back.

    GNU's malloc keeps freed memory, and once it has put something small into a gap, the next value, which is as large
    as the one before, no longer fits there. A run that holds two values at a time would so take memory for all of them.
    """

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, count: int) -> None:
        """Note that so many bytes were freed."""
        self._bytes += count
        if self._bytes >= _ENOUGH:
            self._bytes = 0
            trim = _trim()
            if trim is not None:
                trim(0)


@cache
def _trim() -> Any:
    """Return GNU's malloc_trim, None where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
