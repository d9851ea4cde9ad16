"""The same work with the kernels of PyTorch and ONNX Runtime, where installed: the fastest one is the roof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from mlscope_lab.calibration.gemm import SIDE
from mlscope_lab.calibration.repeats import Kernel, sized

__all__ = ["installed_peers", "peer_kernels"]

_SLOWEST_SECONDS = 0.025
"""A product that takes longer than this is done by plain loops: no roof, so a small one will do."""
_TRIAL_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class _Convolution:
    """A 3 by 3 convolution with padding; frameworks do some of these faster than any matrix product."""

    inputs: int
    outputs: int
    side: int

    def __str__(self) -> str:
        return f"{self.inputs}x{self.side}x{self.side} to {self.outputs}"

    @property
    def flops(self) -> float:
        """Operations as a layer's are counted, those on padding included."""
        return 2.0 * 9 * self.inputs * self.outputs * self.side**2


_CONVOLUTIONS = (
    _Convolution(inputs=128, outputs=32, side=56),
    _Convolution(inputs=128, outputs=128, side=28),
    _Convolution(inputs=256, outputs=256, side=14),
)


def installed_peers() -> list[str]:
    """Return the frameworks whose kernels can be measured here; imports none."""
    needed = {"pytorch": ("torch",), "onnxruntime": ("onnxruntime", "onnx")}
    return [name for name, modules in needed.items() if all(find_spec(module) is not None for module in modules)]


def peer_kernels(peer: str, threads: int, sets: dict[str, int], *, seconds: float) -> Iterator[Kernel]:
    """Return the kernels of a framework.

    Parameters
    ----------
    peer
        One of `installed_peers`.
    threads
        Threads within an operator.
    sets
        Working set in bytes of each level whose bandwidth is measured.
    seconds
        How long a repeat should take.
    """
    makers = {"pytorch": _pytorch, "onnxruntime": _onnxruntime}
    yield from makers[peer](threads, sets, seconds)


def _repeat(once: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            once()

    return run


def _kernel(
    name: str, target: str, once: Callable[[], object], amount: float, threads: int, seconds: float
) -> Kernel:  # fmt: skip
    times = sized(once, seconds)
    return Kernel(name=name, target=target, work=[_repeat(once, times)], amount=amount * times, threads=threads)


def _pytorch(threads: int, sets: dict[str, int], seconds: float) -> Iterator[Kernel]:
    import torch

    torch.set_num_threads(threads)
    for level, total in sets.items():
        elements = total // 3 // 4
        a, b, c = (torch.ones(elements) for _ in range(3))
        operations: dict[str, tuple[Callable[[], object], int]] = {
            "add": (lambda a=a, b=b, c=c: torch.add(a, b, out=c), 3),  # type: ignore[misc]
            "relu": (lambda a=a, c=c: torch.clamp_min(a, 0.0, out=c), 2),  # type: ignore[misc]
        }
        for name, (once, streams) in operations.items():
            yield _kernel(f"pytorch {name}", level, once, 4.0 * elements * streams, threads, seconds)
    for size in _CONVOLUTIONS:
        image, weight = torch.rand(1, size.inputs, size.side, size.side), torch.rand(size.outputs, size.inputs, 3, 3)
        convolve = partial(torch.conv2d, image, weight, padding=1)
        yield _kernel(f"pytorch conv2d {size}", "float32", convolve, size.flops, threads, seconds)
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        kind = getattr(torch, dtype)

        def product(side: int, kind: Any = kind) -> Callable[[], object]:
            a, b = (torch.rand(side, side).to(kind) for _ in range(2))
            out = torch.empty(side, side, dtype=kind)
            return lambda: torch.mm(a, b, out=out)

        yield from _product("pytorch mm", dtype, product, threads, seconds)
    if hasattr(torch, "_int_mm"):

        def integers(side: int) -> Callable[[], object]:
            a, b = (torch.randint(-128, 127, (side, side), dtype=torch.int8) for _ in range(2))
            return lambda: torch._int_mm(a, b)

        yield from _product("pytorch _int_mm", "int8", integers, threads, seconds)


def _onnxruntime(threads: int, sets: dict[str, int], seconds: float) -> Iterator[Kernel]:
    for size in _CONVOLUTIONS:
        image = np.random.default_rng(0).random((1, size.inputs, size.side, size.side), dtype=np.float32)
        convolve = partial(_convolution_session(size, threads).run, None, {"x": image})
        yield _kernel(f"onnxruntime Conv {size}", "float32", convolve, size.flops, threads, seconds)
    types = {"float32": (np.float32, np.float32), "float64": (np.float64, np.float64),
             "float16": (np.float16, np.float16), "int8": (np.uint8, np.int8)}  # fmt: skip
    for dtype, (left, right) in types.items():

        def product(side: int, left: Any = left, right: Any = right) -> Callable[[], object]:
            session = _product_session(left, right, side, threads)
            random = np.random.default_rng(0)
            feeds = {
                name: random.integers(-8, 8, (side, side)).astype(kind) for name, kind in (("a", left), ("b", right))
            }
            return lambda: session.run(None, feeds)

        name = "onnxruntime MatMulInteger" if dtype == "int8" else "onnxruntime MatMul"
        yield from _product(name, dtype, product, threads, seconds)


def _product(
    name: str, dtype: str, make: Callable[[int], Callable[[], object]], threads: int, seconds: float
) -> Iterator[Kernel]:
    """Return a matrix product, unless the framework has none for the type, or a slow one."""
    try:
        trial = make(_TRIAL_SIDE)
        times = sized(trial, seconds)
    except Exception:  # each framework has its own ways to say that it lacks a kernel for a type here
        return
    if seconds / times * (SIDE / _TRIAL_SIDE) ** 3 > _SLOWEST_SECONDS:
        yield _kernel(name, dtype, trial, 2.0 * _TRIAL_SIDE**3, threads, seconds)
    else:
        yield _kernel(name, dtype, make(SIDE), 2.0 * SIDE**3, threads, seconds)


def _convolution_session(size: _Convolution, threads: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).random((size.outputs, size.inputs, 3, 3), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size.inputs, size.side, size.side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size.outputs, size.side, size.side])],
        [numpy_helper.from_array(weight, "w")],
    )
    return _session(graph, threads)


def _product_session(left: Any, right: Any, side: int, threads: int) -> Any:
    import onnx
    from onnx import helper

    integer = np.dtype(left).kind in "iu"
    result = onnx.TensorProto.INT32 if integer else helper.np_dtype_to_tensor_dtype(np.dtype(left))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integer else "MatMul", ["a", "b"], ["c"])],
        "product",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [side, side])
            for name, kind in (("a", left), ("b", right))
        ],
        [helper.make_tensor_value_info("c", result, [side, side])],
    )
    return _session(graph, threads)


def _session(graph: Any, threads: int) -> Any:
    import onnxruntime
    from onnx import helper

    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
