"""Whole runs from synthetic records: complete ones with layers and answers, and failed ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.testing.events import synthetic_events
from mlscope_lab.testing.synthetic import synthetic_pass

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["synthetic_environment", "synthetic_failed_run", "synthetic_ranking", "synthetic_run"]

_ENVIRONMENT = {
    "cpu": "Synthetic CPU @ 2.50GHz", "architecture": "x86_64", "cores_logical": 4, "cores_available": 2,
    "memory_bytes": 8 * 2**30, "memory_available_bytes": 6 * 2**30, "system": "Linux-6.1-x86_64", "python": "3.11.7",
    "libraries": {"numpy": "2.4.6", "xarray": "2026.9.0"}, "virtualized": True, "load_average": [0.1, 0.2, 0.1],
}  # fmt: skip

_LABELS = ("Egyptian cat", "tabby, tabby cat", "tiger cat", "lynx, catamount", "Persian cat", "window screen")


def synthetic_environment() -> dict[str, Any]:
    """Return the facts of a machine that does not exist."""
    return dict(_ENVIRONMENT)


def _attributes(**changes: Any) -> dict[str, Any]:
    """Return the attributes of a complete run."""
    return {
        "run_id": "20261122T003000Z-1a2b3c4d", "created_at": "2026-11-22T00:30:00.000+00:00", "status": "complete",
        "model": "efficientnet-lite0", "model_version": "1.0.0", "task": "image-classification",
        "model_digest": "sha256:" + "a" * 64, "manifest_digest": "sha256:" + "b" * 64, "derived_from": {},
        "backend": "onnxruntime", "backend_version": "1.31.1", "device": "cpu", "precision": "float32",
        "batch_size": 1, "level": "layer", "seed": 0, "threads": 2, "isolation": "subprocess",
        "execution_mode": "graph", "executable_digest": "sha256:" + "5" * 64,
        "clock_anchor_unix_ns": 1_795_000_000_000_000_000, "input": "given", "environment": _ENVIRONMENT,
        "recipe": {
            "inputs": [{"name": "input", "dtype": "float32", "shape": [1, 3, 224, 224],
                        "steps": [{"step": "decode", "mode": "RGB"}, {"step": "resize", "size": 256}]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 1000], "steps": [{"step": "softmax"}]}],
        },
        "warnings": ["The machine was busy: load average 1.9 on 2 cores"],
        "unavailable": {"governor": "the system shows no cpufreq governor (usual in virtual machines)"},
    } | changes  # fmt: skip


def synthetic_ranking(*, shift: float = 0.0, label: str | None = None) -> xr.Dataset:
    """Return ranked classes of one picture with the raw scores that they come from."""
    import xarray as xr

    names = np.array([[label or _LABELS[0], *_LABELS[1:]]], dtype=object)
    scores = np.array([[0.381, 0.259, 0.081, 0.012, 0.004, 0.002]]) + shift
    return xr.Dataset({
        "index": (("sample", "rank"), np.array([[285, 281, 282, 287, 283, 904]])),
        "label": (("sample", "rank"), names),
        "score": (("sample", "rank"), scores),
        "output_0": (("output_0_axis_0", "output_0_axis_1"), np.linspace(-4, 9, 12, dtype=np.float32)[None] + shift,
                     {"name": "logits"}),
    })  # fmt: skip


def synthetic_run(
    *,
    layers: int = 12,
    iterations: int = 20,
    processes: int = 2,
    mean_ns: int = 5_000_000,
    seed: int = 0,
    rename: Mapping[int, str] | None = None,
    outputs: xr.Dataset | None = None,
    deep: bool = False,
    **changes: Any,
) -> xr.DataTree:
    """Return a run with a layer pass in every process.

    Parameters
    ----------
    layers
        Rows of the layer table; 0 leaves the layer pass out.
    iterations, processes, mean_ns, seed
        As for `synthetic_pass`; the seed also moves the run's time, so that runs of different seeds lie in turns.
    rename
        {row: label} for layers with labels of the caller's choosing; their types hold it, too.
    outputs
        The ``/outputs`` group, default `synthetic_ranking`.
    deep
        Add a kernel pass with every group of events, see `synthetic_events`.
    **changes
        Attributes of the root that differ from the default ones.
    """
    from mlscope_lab.trace.build import build_run

    passes = []
    for process in range(processes):
        anchor = 1_000_000_000 + process * 60_000_000_000 + seed * 20_000_000_000
        common: dict[str, Any] = {"process": process, "seed": seed, "mean_ns": mean_ns, "anchor_ns": anchor}
        passes.append(synthetic_pass(iterations=iterations, **common))
        if layers:
            traced = synthetic_pass(level="layer", iterations=8, layers=layers, overhead=1.06, **common)
            if rename:
                assert traced.layers is not None
                table = traced.layers.layers
                names = tuple(rename.get(row, name) for row, name in enumerate(table.name))
                types = tuple(f"Conv{rename[row]}" if row in rename else t for row, t in enumerate(table.type))
                table = dataclasses.replace(table, name=names, type=types, scope=names)
                traced = dataclasses.replace(traced, layers=dataclasses.replace(traced.layers, layers=table))
            passes.append(traced)
            if deep:
                events = synthetic_events(layers=layers, anchor_ns=anchor, seed=seed + process)
                assert traced.layers is not None
                passes.append(
                    dataclasses.replace(
                        traced, level="kernel", layers=dataclasses.replace(traced.layers, events=events)
                    )
                )
    level = "kernel" if deep else "layer" if layers else "model"
    run_id = f"20261122T0030{seed:02d}Z-1a2b3c{seed:02x}"
    attrs = _attributes(**{"level": level, "processes": processes, "run_id": run_id} | changes)
    return build_run(attrs=attrs, passes=passes, outputs=synthetic_ranking() if outputs is None else outputs)


def synthetic_failed_run(message: str = "The process was killed by signal 9.", **changes: Any) -> xr.DataTree:
    """Return a run whose process died before its first pass was through."""
    from mlscope_lab.trace.build import build_run

    failure = {"kind": "crash", "message": message, "log": ["loading the model", f"last words: {message}"]}
    return build_run(attrs=_attributes(status="failed", failure=failure, **changes), passes=[])
