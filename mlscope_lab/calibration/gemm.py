"""Arithmetic with numpy's matrix product: a product of its own on each thread, with a BLAS that has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.calibration.repeats import Kernel, sized

__all__ = ["SIDE", "gemm_kernels"]

SIDE = 512
"""Rows and columns: large enough for blocking to pay, done within a few milliseconds."""


def gemm_kernels(threads: int, *, seconds: float) -> Iterator[Kernel]:
    """Return the products that numpy's BLAS does: float32 and float64.

    Parameters
    ----------
    threads
        How many products run side by side; BLAS itself must be limited to one thread (by its environment variable,
        before numpy is imported).
    seconds
        How long a repeat should take.
    """
    for dtype in ("float32", "float64"):
        operands = [_operands(dtype) for _ in range(threads)]
        times = sized(_product(*operands[0], 1), seconds)
        yield Kernel(
            name="numpy matmul",
            target=dtype,
            work=[_product(*own, times) for own in operands],
            amount=2.0 * SIDE**3 * times * threads,
            threads=threads,
        )


def _operands(dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((SIDE, SIDE)).astype(dtype) for _ in range(2))
    return a, b, np.empty_like(a)


def _product(
    a: npt.NDArray[Any], b: npt.NDArray[Any], out: npt.NDArray[Any], times: int
) -> Callable[[], object]:  # fmt: skip
    def run() -> None:
        for _ in range(times):
            np.matmul(a, b, out=out)

    return run
