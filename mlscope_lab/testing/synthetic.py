"""Valid measurement records of any size, from a seed: no framework, no clock, the same on every machine."""

from __future__ import annotations

import numpy as np

from mlscope_lab.trace.records import LayerTable, LayerTrace, PassRecord

__all__ = ["synthetic_layer_trace", "synthetic_pass"]

_TYPES = ("Conv", "Relu", "Add", "MaxPool", "Gemm")


def synthetic_layer_trace(
    *,
    layers: int = 12,
    iterations: int = 5,
    seed: int = 0,
    start_ns: int = 1_000_000,
    mean_layer_ns: int = 50_000,
    block: int = 4,
    missing: bool = False,
    executable_digest: str = "sha256:" + "5" * 64,
) -> LayerTrace:
    """Make a layer trace: blocks of leaves, each block under a container of its own.

    Parameters
    ----------
    layers
        Rows, containers included.
    iterations
        Traced predicts.
    seed
        Same seed, same trace.
    start_ns
        Clock reading at the first iteration.
    mean_layer_ns
        Mean duration of a leaf.
    block
        Rows of a block: a container and ``block - 1`` leaves. 1 gives a flat trace.
    missing
        Leave the last leaf out of every odd iteration (-1), as a branch not taken does.
    executable_digest
        Digest to carry.

    Returns
    -------
    LayerTrace
        It passes `check_layer_trace`.
    """
    random = np.random.default_rng(seed)
    container = [block > 1 and row % block == 0 and row + 1 < layers for row in range(layers)]
    parent = [-1 if block == 1 or container[row] or row % block == 0 else row - row % block for row in range(layers)]
    leaf = [row for row in range(layers) if not container[row]]
    start = np.full((iterations, layers), -1, dtype=np.int64)
    duration = start.copy()
    exclusive = start.copy()
    begin = np.zeros(iterations, dtype=np.int64)
    length = np.zeros(iterations, dtype=np.int64)
    base = random.uniform(0.5, 1.5, size=layers)
    now = start_ns
    for i in range(iterations):
        begin[i] = now
        now += 2_000
        own = {}
        for row in range(layers):
            if missing and leaf and row == leaf[-1] and i % 2 and sum(p == parent[row] for p in parent) > 1:
                continue
            start[i, row] = now
            took = int(mean_layer_ns * base[row] * random.lognormal(0.0, 0.05))
            if container[row]:
                own[row] = took // 10
                now += own[row]
            else:
                now += took
                duration[i, row] = exclusive[i, row] = took
            enclosing = parent[row] if parent[row] >= 0 else row
            if container[enclosing]:
                duration[i, enclosing] = now - start[i, enclosing]
                exclusive[i, enclosing] = own[enclosing]
        now += 3_000
        length[i] = now - begin[i]
        now += 10_000
    return LayerTrace(
        layers=LayerTable(
            name=tuple(
                f"block{row // block}" + ("" if container[row] else f".layer{row % block}") for row in range(layers)
            ),
            type=tuple("Block" if container[row] else _TYPES[row % len(_TYPES)] for row in range(layers)),
            scope=tuple(f"block{row // block}" for row in range(layers)),
            parent=tuple(parent),
            depth=tuple(0 if p < 0 else 1 for p in parent),
            input_shapes=("float32[1,8,16,16]",) * layers,
            output_shapes=("float32[1,8,16,16]",) * layers,
            parameter_bytes=tuple(0 if container[row] else 4 * (row + 1) * 64 for row in range(layers)),
            activation_bytes=(4 * 8 * 16 * 16,) * layers,
            sources=("",) * layers,
        ),
        start_ns=start,
        duration_ns=duration,
        exclusive_ns=exclusive,
        iteration_start_ns=begin,
        iteration_duration_ns=length,
        executable_digest=executable_digest,
    )


def synthetic_pass(
    *,
    level: str = "model",
    iterations: int = 20,
    layers: int = 12,
    process: int = 0,
    seed: int = 0,
    mean_ns: int = 5_000_000,
    anchor_ns: int = 1_000_000_000,
    overhead: float = 1.0,
    missing: bool = False,
    executable_digest: str = "sha256:" + "5" * 64,
) -> PassRecord:
    """Make the record of one pass.

    Parameters
    ----------
    level
        "model", or "layer" for a pass with a layer trace.
    iterations
        Measured iterations.
    layers
        Rows of the layer trace.
    process
        Number of the measuring process; it shifts the mean by some per cent, as real processes differ.
    seed
        Same seed (and process), same record. The outputs depend on the seed alone.
    mean_ns
        Mean of the predict time, before `overhead`.
    anchor_ns
        Clock reading at the start of the pass.
    overhead
        Factor on the predict time, as tracing has one.
    missing
        As in `synthetic_layer_trace`.
    executable_digest
        Digest to carry.
    """
    random = np.random.default_rng([seed, process, 0 if level == "model" else 1])
    shift = float(random.lognormal(0.0, 0.03))
    before = random.integers(20_000, 40_000, size=iterations)
    after = random.integers(5_000, 9_000, size=iterations)
    trace = None
    if level == "layer":
        trace = synthetic_layer_trace(
            layers=layers,
            iterations=iterations,
            seed=seed + 1000 * process,
            start_ns=anchor_ns + 60_000,
            mean_layer_ns=max(1, int(mean_ns * shift * overhead / max(layers, 1))),
            missing=missing,
            executable_digest=executable_digest,
        )
        # the trace's iterations are 10 us apart, so what is around them must fit in between
        before = np.full(iterations, 4_000)
        after = np.full(iterations, 3_000)
        predict = trace.iteration_duration_ns.copy()
        start = (trace.iteration_start_ns - anchor_ns - before).astype(np.int64)
    else:
        predict = np.maximum(1, mean_ns * shift * overhead * random.lognormal(0.0, 0.04, size=iterations))
        predict = predict.astype(np.int64)
        start = np.zeros(iterations, dtype=np.int64)
        np.cumsum((before + predict + after + 200)[:-1], out=start[1:])
    scores = np.random.default_rng(seed).normal(size=(1, 10)).astype(np.float32)
    return PassRecord(
        level=level,
        process=process,
        warmup_iterations=5,
        start_ns=start,
        preprocess_ns=before.astype(np.int64),
        predict_ns=predict,
        postprocess_ns=after.astype(np.int64),
        wall_ns=int(start[-1] + before[-1] + predict[-1] + after[-1]) if iterations else 0,
        anchor_ns=anchor_ns,
        open_ns=80_000_000,
        first_predict_ns=3 * mean_ns,
        executable_digest=executable_digest,
        layers=trace,
        outputs={"scores": scores},
        peak_bytes=100 * 2**20,
    )
