"""Bandwidth of caches and memory with numpy's own loops, a thread a core.

The bytes counted are those that STREAM counts: what the kernel reads and writes, each once. A processor that fetches a
line before writing it (write-allocate) moves more than that; it is not counted, here or for the layers.

numpy releases the interpreter's lock inside its loops, so plain threads run side by side. Within a cache a call would
take longer than the work: there the arrays are views whose outer axis has stride 0, so that one call goes over the
same few kilobytes many times. In a first-level cache a compiled loop is still 1.7 times faster, because numpy spends
some ten nanoseconds on each time over the set; no framework's operator comes near either figure there.

References
----------
McCalpin, "Memory bandwidth and machine balance in current high performance computers", IEEE TCCA Newsletter (1995).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from mlscope_lab.calibration.repeats import Kernel, sized

__all__ = ["bandwidth_kernels"]

_DTYPE = np.dtype(np.float32)
_PAGE = 4096
_SHIFT = 1024
_SLACK = 8 * _PAGE
_BLOCK_BYTES = 128 * 1024
"""Of an array in the triad over large sets: three blocks stay in a second-level cache between its two steps."""
_SMALLEST_BUFFER = 16

Array = npt.NDArray[Any]


def _arrays(room: Array, streams: int) -> tuple[Array, ...]:
    """Divide a thread's room into arrays of one length, each a little further into its page than the one before.

    Arrays that begin at the same place of a page compete for the same sets of a cache.
    """
    elements = max(64, (len(room) - _SLACK) // streams // _DTYPE.itemsize // 16 * 16)
    begin, found = -room.ctypes.data % _PAGE, []
    for number in range(streams):
        found.append(room[begin : begin + elements * _DTYPE.itemsize].view(_DTYPE))
        found[-1][:] = 1
        begin = begin + elements * _DTYPE.itemsize
        begin += -begin % _PAGE + (number + 1) * _SHIFT
    return tuple(found)


def _repeated(array: Array, times: int) -> Array:
    return as_strided(array, (times, len(array)), (0, _DTYPE.itemsize))


def _in_cache(operation: str, arrays: tuple[Array, ...], times: int) -> Callable[[], object]:
    views = [_repeated(array, times) for array in arrays]
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: np.add(views[0], views[1], out=views[2]),
        "scale": lambda: np.negative(views[0], out=views[1]),
        "read": lambda: np.maximum.reduce(views[0], axis=1),
    }
    call = calls[operation]

    def run() -> None:
        # with a larger buffer numpy gathers short rows in it first, which halves the speed
        before = np.setbufsize(_SMALLEST_BUFFER)
        try:
            call()
        finally:
            np.setbufsize(before)

    return run


def _large(operation: str, arrays: tuple[Array, ...], times: int) -> Callable[[], object]:
    a, out = arrays[0], arrays[-1]
    block, scalar = _BLOCK_BYTES // _DTYPE.itemsize, _DTYPE.type(3)
    side = int(len(a) ** 0.5)
    square, vector = a[: side * side].reshape(side, side), a[:side]

    def triad() -> None:
        for at in range(0, len(a), block):
            part = out[at : at + block]
            np.multiply(a[at : at + block], scalar, out=part)
            np.add(part, arrays[1][at : at + block], out=part)

    calls: dict[str, Callable[[], object]] = {
        "triad": triad,
        "add": lambda: np.add(a, arrays[1], out=out),
        "scale": lambda: np.negative(a, out=out),
        "copy": lambda: np.copyto(out, a),
        "read": lambda: np.maximum.reduce(a),
        "gemv": lambda: np.matmul(square, vector),
    }
    call = calls[operation]

    def run() -> None:
        for _ in range(times):
            call()

    return run


_STREAMS = {"triad": 3, "add": 3, "scale": 2, "copy": 2, "read": 1, "gemv": 1}
"""Arrays of each kernel, each read or written once."""


def bandwidth_kernels(level: str, total_bytes: int, threads: int, *, seconds: float, large: bool) -> Iterator[Kernel]:
    """Return the kernels of one level.

    Parameters
    ----------
    level
        Its name.
    total_bytes
        Working set of all threads together; each kernel's arrays fill it.
    threads
        How many.
    seconds
        How long a repeat should take.
    large
        Whether a call takes long enough to be made once for each time over the set; else one call goes over it many
        times.
    """
    share = total_bytes // threads
    rooms = [np.zeros(share + _SLACK, dtype=np.uint8) for _ in range(threads)]
    for operation in ("triad", "add", "scale", "copy", "read", "gemv") if large else ("add", "scale", "read"):
        make = _large if large else _in_cache
        sets = [_arrays(room, _STREAMS[operation]) for room in rooms]
        elements = len(sets[0][0])
        moved = (int(elements**0.5) ** 2 if operation == "gemv" else elements * _STREAMS[operation]) * _DTYPE.itemsize
        # one pass alone would be over before it is timed well
        trial = 1 if large else max(1, 4_000_000 // moved)
        times = trial * sized(make(operation, sets[0], trial), seconds)
        yield Kernel(
            name=f"numpy {operation}",
            target=level,
            work=[make(operation, arrays, times) for arrays in sets],
            amount=float(moved) * times * threads,
            threads=threads,
        )
