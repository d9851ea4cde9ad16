"""Run all kernels in turns, several rounds long: what drifts meanwhile is seen by all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlscope_lab.calibration.caches import CacheLevel
from mlscope_lab.calibration.gemm import gemm_kernels
from mlscope_lab.calibration.peers import peer_kernels
from mlscope_lab.calibration.repeats import BATCHES, Kernel, Samples, sample
from mlscope_lab.calibration.stream import bandwidth_kernels

__all__ = ["MEMORY", "measure_peaks", "working_sets"]

MEMORY = "memory"
_MEMORY_FACTOR = 4
_UNKNOWN_CACHE_BYTES = 64 * 2**20
_LARGE_BYTES = 4 * 2**20
_LEAST_ROUNDS = 3


def working_sets(caches: Sequence[CacheLevel], threads: int, available_bytes: int) -> dict[str, int]:
    """Return the bytes over which each level is measured: part of a cache, and four times the last one for memory.

    Parameters
    ----------
    caches
        From `find_caches`.
    threads
        That share them.
    available_bytes
        Of memory; no more than a quarter of it is used.
    """
    shares = [0.75, *([0.5] * len(caches))]
    sets = {cache.name: int(cache.capacity(threads) * share) for cache, share in zip(caches, shares, strict=False)}
    last = max((cache.capacity(threads) for cache in caches), default=_UNKNOWN_CACHE_BYTES)
    return {**sets, MEMORY: min(_MEMORY_FACTOR * last, available_bytes // 4)}


def measure_peaks(task: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Measure every kernel; runs in a process of its own.

    Parameters
    ----------
    task
        ``device``, "cpu" or one that PyTorch names; for "cpu" ``threads``, ``sets`` {level: bytes} and ``peers``, names
        of frameworks; ``rounds``; ``seconds`` a repeat; and ``budget_s``, after which no further round begins (three
        are made in any case).
    note
        Called with a sentence about what is being done.

    Returns
    -------
    dict
        ``sets``, the working sets; ``kernels``, a list of name, target, rates and shares of each kernel, see
        `mlscope_lab.calibration.repeats.Samples`.
    """
    begin = time.monotonic()
    sets, kernels = _kernels(task, note)
    found = [Samples(name=kernel.name, target=kernel.target) for kernel in kernels]
    budget, batches = float(task["budget_s"]), BATCHES
    for number in range(int(task["rounds"])):
        started = time.monotonic()
        if number >= _LEAST_ROUNDS and started - begin > budget:
            break
        note(f"Round {number + 1} of {task['rounds']}")
        for kernel, samples in zip(kernels, found, strict=True):
            rate, share = sample(kernel, batches=batches)
            samples.rates.append(rate)
            samples.shares.append(share)
        # on a busy machine shorter rounds rather than too few of them
        left = max(0.0, budget - (time.monotonic() - begin)) / max(1, _LEAST_ROUNDS - number - 1)
        if number + 1 < _LEAST_ROUNDS and (took := time.monotonic() - started) > left:
            batches = max(2, int(batches * left / took))
    samples_of = [{"name": s.name, "target": s.target, "rates": s.rates, "shares": s.shares} for s in found]
    return {"sets": sets, "kernels": samples_of}


def _kernels(task: Mapping[str, Any], note: Callable[[str], None]) -> tuple[dict[str, int], list[Kernel]]:
    seconds, device = float(task["seconds"]), str(task["device"])
    if device != "cpu":
        from mlscope_lab.calibration.accelerator import device_kernels, device_sets

        note(f"Preparing the kernels of {device}")
        sets = device_sets(device)
        return sets, list(device_kernels(device, sets, seconds=seconds))
    threads, sets = int(task["threads"]), dict(task["sets"])
    kernels: list[Kernel] = []
    for level, total in sets.items():
        large = total // threads >= _LARGE_BYTES
        kernels += bandwidth_kernels(level, total, threads, seconds=seconds, large=large)
    kernels += gemm_kernels(threads, seconds=seconds)
    for peer in task["peers"]:
        note(f"Preparing the kernels of {peer}")
        beyond = {level: total for level, total in sets.items() if total >= _LARGE_BYTES}
        kernels += peer_kernels(peer, threads, beyond, seconds=seconds)
    return sets, kernels
