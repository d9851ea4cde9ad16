"""Take readings at a steady pace beside the measured part, in memory of a fixed size."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["THREAD_NAME", "Sampler", "sampling_threads"]

THREAD_NAME = "mlscope-sampler"


def sampling_threads() -> frozenset[int]:
    """Return the system's numbers of the threads that sample in this process, so that they are not counted as work."""
    return frozenset(
        thread.native_id
        for thread in threading.enumerate()
        if thread.name == THREAD_NAME and thread.native_id is not None
    )


class Sampler:
    """A thread that calls `read` every `period_s` seconds, and once at the start and at the end.

    Parameters
    ----------
    read
        Returns one number a column; NaN where a value is not known.
    width
        Number of columns.
    period_s
        Seconds between readings. When the buffer is full, every second reading is dropped and the period doubles, so
        that a measurement of any length fits; `period_s` then tells the new one.
    capacity
        Readings that the buffer holds, at least 4.

    Attributes
    ----------
    period_s
        Seconds between the readings that were kept.
    error
        Why the readings ended early, "" if they did not. A reading that raises `OSError` ends them.
    """

    def __init__(
        self, read: Callable[[], Sequence[float]], width: int, *, period_s: float, capacity: int = 16384
    ) -> None:
        self._read = read
        self._times = np.empty(capacity, dtype=np.int64)
        self._values = np.empty((capacity, width), dtype=np.float64)
        self._n = 0
        self.period_s = period_s
        self.error = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """Take the first reading and start.

        Raises
        ------
        OSError
            If the first reading fails.
        """
        self._take()
        self._thread.start()

    def stop(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Take the last reading and stop.

        Returns
        -------
        times
            int64 (N,) of `perf_counter_ns`.
        values
            float64 (N, width).
        """
        self._ending.set()
        self._thread.join()
        if not self.error:
            self._try()
        return self._times[: self._n].copy(), self._values[: self._n].copy()

    def _run(self) -> None:
        while not self._ending.wait(self.period_s) and self._try():
            pass

    def _try(self) -> bool:
        try:
            self._take()
        except OSError as error:
            self.error = str(error)
            return False
        return True

    def _take(self) -> None:
        if self._n == len(self._times):
            self._n = (self._n + 1) // 2
            self._times[: self._n] = self._times[::2]
            self._values[: self._n] = self._values[::2]
            self.period_s *= 2
        # the reading stands for the moment at which it was asked for
        now = time.perf_counter_ns()
        self._values[self._n] = self._read()
        self._times[self._n] = now
        self._n += 1
