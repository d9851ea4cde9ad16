"""One measurement at a time on a machine: two that overlap would both be wrong."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["lock_path", "measuring"]


def lock_path() -> Path:
    """Return the machine-wide lock file (``MLSCOPE_LOCK`` overrides it, for tests and containers that share a host)."""
    return Path(os.environ.get("MLSCOPE_LOCK") or Path(tempfile.gettempdir()) / "mlscope-lab-measuring.lock")


@contextmanager
def measuring(notify: Callable[[str], None] | None = None) -> Iterator[int]:
    """Hold the lock; yields the nanoseconds spent waiting for it.

    Parameters
    ----------
    notify
        Called once with a sentence if another measurement is running.
    """
    from filelock import FileLock, Timeout

    begin = time.perf_counter_ns()
    # Every user of the machine must be able to take it, hence the mode; the file is never read.
    lock = FileLock(lock_path(), mode=0o666)
    try:
        lock.acquire(timeout=0.05)
    except Timeout:
        if notify is not None:
            notify(f"Another measurement is running on this machine; waiting for {lock_path().name}")
        lock.acquire()
    try:
        yield time.perf_counter_ns() - begin
    finally:
        lock.release()
