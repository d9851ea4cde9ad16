"""Synthetic events below the layers: every group of the schema, consistent in time and in its indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlscope_lab.trace.records import EventTable

__all__ = ["synthetic_events"]

_OPERATORS = ("aten::conv2d", "aten::convolution", "aten::batch_norm", "aten::relu_", "aten::add")
_KERNELS = ("implicit_gemm_128x64", "bn_fw_inf_1C11", "vectorized_elementwise_kernel", "Memcpy HtoD")


def synthetic_events(
    *, layers: int = 12, iterations: int = 8, anchor_ns: int = 0, layer_ns: int = 100_000, seed: int = 0
) -> dict[str, EventTable]:
    """Make the events of one pass on a device, one layer after another.

    Each layer of each iteration calls an operator that calls another one; the inner one launches a kernel, which starts
    on stream 7 when the launch is over and the kernel before it is done. Every fourth layer copies first, on stream 9.

    Parameters
    ----------
    layers, iterations
        How many there are; ``layer_index`` counts from 0.
    anchor_ns
        Time at which the pass starts.
    layer_ns
        Time between the starts of two layers.
    seed
        Same seed, same events.

    Returns
    -------
    dict
        {group: events} for every group of `mlscope_lab.trace.schema.EVENT_DIMS`.
    """
    random = np.random.default_rng(seed)
    operators: list[tuple[int, ...]] = []
    calls: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    annotations: list[tuple[int, ...]] = []
    busy = {7: 0, 9: 0}
    for iteration in range(iterations):
        begin = anchor_ns + iteration * (layers + 2) * layer_ns
        annotations.append((iteration, 0, begin, (layers + 1) * layer_ns))
        for layer in range(layers):
            start = begin + layer * layer_ns
            kind = layer % len(_OPERATORS)
            outer = len(operators)
            operators.append((iteration, kind, start, layer_ns * 8 // 10, -1, layer))
            inner = (kind + 1) % len(_OPERATORS)
            operators.append((iteration, inner, start + layer_ns // 10, layer_ns // 2, outer, layer))
            for copy in (True, False) if layer % 4 == 0 else (False,):
                stream, correlation = (9 if copy else 7), len(calls) + 1
                at = start + layer_ns // 8 + (0 if copy else layer_ns // 8)
                calls.append((iteration, int(copy), at, layer_ns // 20, correlation, outer + 1))
                launched = max(at + layer_ns // 20, busy[stream])
                length = int(layer_ns * random.uniform(0.2, 1.0)) // (4 if copy else 1)
                code = 3 if copy else layer % 3
                kernels.append(
                    (
                        iteration,
                        code,
                        int(copy),
                        launched,
                        length,
                        stream,
                        correlation,
                        len(calls) - 1,
                        outer + 1,
                        layer,
                    )
                )
                busy[stream] = launched + length
    end = max(kernel[3] + kernel[4] for kernel in kernels) if kernels else anchor_ns
    samples = np.linspace(anchor_ns, end, 20).astype(np.int64)
    watts = 60 + 30 * random.random(len(samples))
    steps = np.diff(samples, prepend=samples[:1]) * 1e-9
    device_kernels = _columns(
        kernels, ("iteration", "name_code", "category_code", "start_ns", "duration_ns", "stream", "correlation",
                  "runtime_index", "operator_index", "layer_index")
    )  # fmt: skip
    n = len(kernels)
    device_kernels |= {
        "device": np.zeros(n, dtype=np.int32),
        "grid_x": np.full(n, 128, dtype=np.int32),
        "block_x": np.full(n, 256, dtype=np.int32),
        "registers": np.full(n, 64, dtype=np.int32),
        "occupancy": np.full(n, 0.5),
        "flop_count_sp": device_kernels["duration_ns"] * 4000.0,
        "dram_read_bytes.sum": device_kernels["duration_ns"] * 300.0,
        "dram_write_bytes.sum": device_kernels["duration_ns"] * 100.0,
    }
    timed = ("iteration", "name_code", "start_ns", "duration_ns")
    thread = {"thread": ("4037/4037",)}
    return {
        "operators": EventTable(
            columns=_threaded(_columns(operators, (*timed, "parent_index", "layer_index"))),
            tables={"name": _OPERATORS, "category": ("cpu_op",), **thread},
        ),
        "runtime": EventTable(
            columns=_threaded(_columns(calls, (*timed, "correlation", "operator_index"))),
            tables={"name": ("cudaLaunchKernel", "cudaMemcpyAsync"), "category": ("cuda_runtime",), **thread},
        ),
        "kernels": EventTable(columns=device_kernels, tables={"name": _KERNELS, "category": ("kernel", "memcpy")}),
        "annotations": EventTable(
            columns=_threaded(_columns(annotations, timed)),
            tables={"name": ("iteration",), "category": ("user_annotation",), **thread},
        ),
        "links": EventTable(
            columns={
                "kind_code": np.zeros(n, dtype=np.int32),
                "source_index": device_kernels["runtime_index"],
                "target_index": np.arange(n, dtype=np.int32),
            },
            tables={"kind": ("launch",)},
        ),
        "counters": EventTable(
            columns={
                "name_code": device_kernels["name_code"],
                "start_ns": device_kernels["start_ns"],
                "duration_ns": device_kernels["duration_ns"],
                "correlation": device_kernels["correlation"],
                "kernel_index": np.arange(n, dtype=np.int32),
                "smsp__inst_executed.sum": device_kernels["duration_ns"] * 10.0,
            },
            tables={"name": _KERNELS},
        ),
        "memory": EventTable(
            columns={
                "device_code": np.zeros(len(samples), dtype=np.int32),
                "time_ns": samples,
                "bytes": np.full(len(samples), 1024, dtype=np.int64),
                "allocated_bytes": 1024 * np.arange(1, len(samples) + 1, dtype=np.int64),
            },
            tables={"device": ("cpu",)},
        ),
        "power": EventTable(
            columns={
                "device_code": np.zeros(len(samples), dtype=np.int32),
                "time_ns": samples,
                "power_watts": watts,
                "energy_joules": np.cumsum(watts * steps),
                "temperature_celsius": np.full(len(samples), 55.0),
            },
            tables={"device": ("cuda:0",)},
        ),
    }


def _columns(rows: list[tuple[int, ...]], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the columns of rows in the dtypes of the schema."""
    wide = {"start_ns", "duration_ns", "correlation"}
    table = np.array(rows, dtype=np.int64).reshape(-1, len(names))
    return {name: table[:, i].astype(np.int64 if name in wide else np.int32) for i, name in enumerate(names)}


def _threaded(columns: dict[str, Any]) -> dict[str, Any]:
    n = len(columns["start_ns"])
    return columns | {"thread_code": np.zeros(n, dtype=np.int32), "category_code": np.zeros(n, dtype=np.int32)}
