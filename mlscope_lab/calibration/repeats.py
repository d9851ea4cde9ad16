"""Time a piece of work several times, and tell how much of the processors it had meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Kernel", "Samples", "sample", "sized"]


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
        Amount a second of each repeat.
    shares
        Processor time over wall time and threads of each repeat: 1 where nothing else ran.
    """

    name: str
    target: str
    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def sample(kernel: Kernel) -> tuple[float, float]:
    """Run a kernel once.

    Returns
    -------
    rate, share
        As in `Samples`.
    """
    if len(kernel.work) == 1:
        processor, begin = time.process_time(), time.perf_counter()
        kernel.work[0]()
        wall = time.perf_counter() - begin
        busy = time.process_time() - processor
        return kernel.amount / wall, min(1.0, busy / (wall * kernel.threads)) if kernel.threads else 1.0
    together = threading.Barrier(len(kernel.work))
    spans: list[tuple[float, float, float]] = []

    def run(work: Callable[[], object]) -> None:
        together.wait()
        processor, begin = time.thread_time(), time.perf_counter()
        work()
        end = time.perf_counter()
        spans.append((begin, end, (time.thread_time() - processor) / max(end - begin, 1e-9)))

    threads = [threading.Thread(target=run, args=(work,)) for work in kernel.work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(spans) < len(threads):
        raise RuntimeError(f"{kernel.name} failed in {len(threads) - len(spans)} of its threads")
    wall = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
    return kernel.amount / wall, min(1.0, *(share for _, _, share in spans))


def sized(once: Callable[[], object], seconds: float) -> int:
    """Return how often to run something so that it takes about so many seconds; runs it twice, the first to warm."""
    once()
    begin = time.perf_counter()
    once()
    return max(1, round(seconds / max(time.perf_counter() - begin, 1e-7)))
