"""Time a piece of work several times, and tell how much of the processors it had meanwhile.

As STREAM does, a repeat reports its fastest batch: a batch of a millisecond or two can pass between two interruptions
even on a busy machine, and what a machine can do is not what others leave of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["BATCHES", "Kernel", "Samples", "sample", "sized"]

BATCHES = 8
_OVERLAP = 0.9
_TRIALS = 4
_SYSTEM: str = sys.platform
_THREAD_CLOCK = 0b110  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A piece of work of known size.

    Attributes
    ----------
    name
        Of the library and the operation, "numpy add".
    target
        What it measures: a level ("L2", "memory") or an element type ("float32").
    work
        One function a thread, run side by side; a single one that has threads of its own.
    amount
        Bytes or operations of all functions together.
    threads
        Threads that compute; 0 for a device, which has the processor's attention for nothing but waiting.
    """

    name: str
    target: str
    work: Sequence[Callable[[], object]]
    amount: float
    threads: int


@dataclass(kw_only=True)
class Samples:
    """The repeats of one kernel.

    Attributes
    ----------
    name, target
        As in `Kernel`.
    rates
        Amount a second of the fastest batch of each repeat.
    shares
        Processor time over wall time and threads of that batch: 1 where nothing else ran.
    """

    name: str
    target: str
    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def sample(kernel: Kernel, *, batches: int = BATCHES) -> tuple[float, float]:
    """Run a kernel some times.

    Returns
    -------
    rate, share
        As in `Samples`.
    """
    if len(kernel.work) > 1:
        return max(_side_by_side(kernel, batches))
    found, clock = [], _processor_clock()
    for _ in range(batches):
        processor, begin = clock(), time.perf_counter()
        kernel.work[0]()
        wall = time.perf_counter() - begin
        busy = clock() - processor
        share = min(1.0, busy / (wall * kernel.threads)) if kernel.threads else 1.0
        found.append((kernel.amount / wall, share))
    return max(found)


def _processor_clock() -> Callable[[], float]:
    """Return what reads the processor time of this process, up to the moment.

    Linux's clock of a process knows of threads on other processors only what they had used at the last tick, some
    milliseconds ago; the clock of a thread is exact. Its number follows from the thread's, see clock_getcpuclockid(3).
    """
    if _SYSTEM != "linux":
        return time.process_time
    clocks = [(~int(name) << 3) | _THREAD_CLOCK for name in os.listdir("/proc/self/task")]

    def read() -> float:
        total = 0.0
        for clock in clocks:
            with contextlib.suppress(OSError):  # the thread has ended
                total += time.clock_gettime(clock)
        return total

    return read


def _side_by_side(kernel: Kernel, batches: int) -> list[tuple[float, float]]:
    """Run the functions on threads of their own, which meet before each batch."""
    count = len(kernel.work)
    together = threading.Barrier(count)
    spans: list[list[tuple[float, float, float]]] = [[] for _ in range(batches)]

    def run(work: Callable[[], object]) -> None:
        try:
            for batch in spans:
                together.wait()
                processor, begin = time.thread_time(), time.perf_counter()
                work()
                end = time.perf_counter()
                batch.append((begin, end, time.thread_time() - processor))
        except threading.BrokenBarrierError:
            pass  # another thread failed
        except Exception:
            together.abort()
            raise

    threads = [threading.Thread(target=run, args=(work,)) for work in kernel.work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(len(batch) < count for batch in spans):
        raise RuntimeError(f"{kernel.name} failed in one of its threads")
    return [_rate(batch, kernel.amount) for batch in spans]


def _rate(spans: Sequence[tuple[float, float, float]], amount: float) -> tuple[float, float]:
    """Return rate and share of a batch from begin, end and processor time of each thread.

    Threads that ran side by side count each with its own time, though they may have been woken a little apart. Those
    that did not count with the time from the first's begin to the last's end, of which each had but a share.
    """
    begins, ends, busy = zip(*spans, strict=True)
    whole = max(ends) - min(begins)
    shared = min(ends) - max(begins)
    walls = [max(end - begin, 1e-9) for begin, end in zip(begins, ends, strict=True)]
    share = min(1.0, *(b / wall for b, wall in zip(busy, walls, strict=True)))
    if shared >= _OVERLAP * whole:
        return sum(amount / len(spans) / wall for wall in walls), share
    return amount / whole, share * sum(walls) / (len(spans) * whole)


def sized(once: Callable[[], object], seconds: float) -> int:
    """Return how often to run something so that it takes about so many seconds, by the fastest of a few runs."""
    fastest = float("inf")
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        once()
        fastest = min(fastest, time.perf_counter() - begin)
    return max(1, round(seconds / max(fastest, 1e-7)))
