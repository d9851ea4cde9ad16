"""What a CUDA device can do at most, by PyTorch's kernels; unverified on a device, tested on the processor.

Work is queued for as long as a repeat takes and waited for at its end, so that launches do not count. Layers of element
type float32 may use TF32, as cuDNN's convolutions do unless told otherwise: products with and without it are measured,
and the faster one is the roof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mlscope_lab.calibration.repeats import Kernel, sized

__all__ = ["device_kernels", "device_sets"]

_SIDE = 4096
_MEMORY_BYTES = 2**30
_DTYPES = ("float64", "float32", "bfloat16", "float16")


def device_sets(device: str) -> dict[str, int]:
    """Return the working set in bytes of each level: half the second-level cache, and enough to be beyond it."""
    import torch

    if not device.startswith("cuda"):
        return {"memory": _MEMORY_BYTES // 16}
    properties = torch.cuda.get_device_properties(device)
    cache = int(getattr(properties, "L2_cache_size", 0))
    memory = min(max(_MEMORY_BYTES, 4 * cache), int(properties.total_memory) // 8)
    return {**({"L2": cache // 2} if cache else {}), "memory": memory}


def device_kernels(device: str, sets: dict[str, int], *, seconds: float, side: int = _SIDE) -> Iterator[Kernel]:
    """Return the kernels of a device.

    Parameters
    ----------
    device
        As PyTorch names it.
    sets
        From `device_sets`.
    seconds
        How long a repeat should take.
    side
        Rows and columns of the products.
    """
    import torch

    def finish() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    def kernel(name: str, target: str, once: Callable[[], object], amount: float) -> Iterator[Kernel]:
        def run(times: int) -> None:
            for _ in range(times):
                once()
            finish()

        try:
            run(1)
        except (RuntimeError, NotImplementedError):  # the device has no such kernel, which is no roof either
            return
        # a single launch waited for is mostly the wait: ten show what one takes
        times = max(1, 10 * sized(lambda: run(10), seconds))
        yield Kernel(name=f"pytorch {name}", target=target, work=[lambda: run(times)], amount=amount * times, threads=0)

    for level, total in sets.items():
        for name, streams in (("add", 3), ("triad", 3), ("copy", 2), ("read", 1)):
            arrays = [torch.ones(total // streams // 4, device=device) for _ in range(streams)]
            yield from kernel(name, level, _moving(torch, name, arrays), 4.0 * arrays[0].numel() * streams)
    matmul = torch.backends.cuda.matmul
    for dtype in _DTYPES:
        a, b = (torch.rand(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        for tf32 in (False, True) if dtype == "float32" and device.startswith("cuda") else (False,):

            def product(a: Any = a, b: Any = b, out: Any = out, tf32: bool = tf32) -> None:
                before, matmul.allow_tf32 = matmul.allow_tf32, tf32
                torch.mm(a, b, out=out)
                matmul.allow_tf32 = before

            yield from kernel("mm, TF32" if tf32 else "mm", dtype, product, 2.0 * side**3)
    if hasattr(torch, "_int_mm"):
        left, right = (torch.randint(-128, 127, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        yield from kernel("_int_mm", "int8", lambda: torch._int_mm(left, right), 2.0 * side**3)


def _moving(torch: Any, name: str, arrays: list[Any]) -> Callable[[], object]:
    first, out = arrays[0], arrays[-1]
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: torch.add(first, arrays[1], out=out),
        "triad": lambda: torch.add(first, arrays[1], alpha=3.0, out=out),
        "copy": lambda: out.copy_(first),
        "read": lambda: torch.sum(first),
    }
    return calls[name]
