"""What a measuring process hands over: plain dataclasses and numpy arrays, before they become a DataTree.

They cross a process boundary and are built where memory counts, so this module imports numpy alone. Times are int64
nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EventTable", "LayerTable", "LayerTrace", "PassRecord"]


@dataclass(frozen=True, kw_only=True)
class EventTable:
    """The events of one group (`mlscope_lab.trace.schema.EVENT_DIMS`) in one pass.

    Attributes
    ----------
    columns
        Arrays of one length, by the names and dtypes of the schema, ``pass_index`` excepted. Times are on the measuring
        process's `perf_counter_ns` clock. Indices refer to the tables of the same pass, -1 where there is none. Of the
        schema's columns only times are needed; what is absent becomes -1, or NaN in a column of floats. In "kernels"
        and "counters" any further float64 column is a hardware counter of that name.
    tables
        For each column ``X_code`` under the name ``X`` the distinct texts that its codes number, e.g.
        ``{"name": ("aten::conv2d", "aten::relu")}``.
    attrs
        Of the group.
    variable_attrs
        {column: {attribute: value}}, e.g. the unit of a counter.
    """

    columns: Mapping[str, npt.NDArray[Any]]
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    variable_attrs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self)
        for column, values in self.columns.items():
            if values.shape != (n,):
                raise ValueError(f"EventTable.columns['{column}'] has shape {values.shape}, not ({n},)")
            if column.endswith("_code"):
                limit = len(self.tables.get(column.removesuffix("_code"), ()))
                if n and not (values.min() >= -1 and values.max() < limit):
                    raise ValueError(f"EventTable.columns['{column}'] has codes outside its table of {limit} texts")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The layers of a trace: one entry a call site, in order of first start.

    Attributes
    ----------
    name
        Unique label of the call site: the qualified name, ``#2`` appended for a second call of the same module.
    type
        The framework's operator or class name ("Conv2d", "Conv", "FusedConv2D", "functional").
    scope
        Qualified name of the module or source node; for a fused node the source scope where known, else "".
    parent
        Index of the enclosing call, or -1.
    depth
        0 for a root call.
    input_shapes, output_shapes
        Text as ``float32[1,3,224,224]``, several joined by ``;``; "" where unknown.
    parameter_bytes, activation_bytes
        Bytes of the layer's own weights and of its outputs, -1 where unknown.
    sources
        Names of the original layers that a fused layer stands for, joined by ``;``; "" where unknown or not fused.
    """

    name: tuple[str, ...]
    type: tuple[str, ...]
    scope: tuple[str, ...]
    parent: tuple[int, ...]
    depth: tuple[int, ...]
    input_shapes: tuple[str, ...]
    output_shapes: tuple[str, ...]
    parameter_bytes: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.name)
        for column in ("type", "scope", "parent", "depth", "input_shapes", "output_shapes", "parameter_bytes",
                       "activation_bytes", "sources"):  # fmt: skip
            if len(getattr(self, column)) != n:
                raise ValueError(f"LayerTable.{column} has {len(getattr(self, column))} entries, name has {n}")
        if len(set(self.name)) != n:
            raise ValueError("LayerTable.name holds the same label twice; append #2, #3 to repeated call sites")
        if any(not -1 <= p < n for p in self.parent):
            raise ValueError("LayerTable.parent points outside the table")

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """What a session recorded between `Session.begin_trace` and `Session.end_trace`.

    Attributes
    ----------
    layers
        The call sites, length L.
    start_ns, duration_ns, exclusive_ns
        int64 arrays (I, L) for I traced predicts, on the measuring process's `perf_counter_ns` clock; -1 where a layer
        did not run in that iteration. ``exclusive_ns`` is the duration less the part covered by enclosed calls, so that
        its sum over all rows counts nothing twice. Where a module's own work outside its children is a row of its own
        (type "functional", PyTorch), that row carries the exclusive time and the module's own row has 0.
    iteration_start_ns, iteration_duration_ns
        int64 arrays (I,): the traced predict itself.
    resolution_ns
        Smallest step of the source's clock (ONNX Runtime: 1000).
    clock_error_ns
        Bound on the error of mapping the source's clock onto `perf_counter_ns`.
    executable_digest
        Digest of what ran, equal to `Session.executable_digest` of the plain session if tracing changed nothing.
    dropped_events
        Events that the source lost, 0 if none.
    unavailable
        What could not be recorded: {what: reason}.
    events
        What was recorded below the layers, by group; ``layer_index`` refers to `layers`.
    """

    layers: LayerTable
    start_ns: npt.NDArray[np.int64]
    duration_ns: npt.NDArray[np.int64]
    exclusive_ns: npt.NDArray[np.int64]
    iteration_start_ns: npt.NDArray[np.int64]
    iteration_duration_ns: npt.NDArray[np.int64]
    resolution_ns: int = 1
    clock_error_ns: int = 0
    executable_digest: str = ""
    dropped_events: int = 0
    unavailable: Mapping[str, str] = field(default_factory=dict)
    events: Mapping[str, EventTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        want = (len(self.iteration_start_ns), len(self.layers))
        for column in ("start_ns", "duration_ns", "exclusive_ns"):
            if getattr(self, column).shape != want:
                raise ValueError(f"LayerTrace.{column} has shape {getattr(self, column).shape}, not {want}")


@dataclass(kw_only=True)
class PassRecord:
    """One pass: warm-up, then measured iterations, at one level, in one process.

    Attributes
    ----------
    level
        "model" (untraced), or the level that was traced.
    process
        Number of the measuring process, from 0.
    warmup_iterations
        Iterations before the measured ones.
    start_ns, preprocess_ns, predict_ns, postprocess_ns
        int64 arrays (I,) of the measured iterations; ``start_ns`` counts from the start of the pass. A layer pass has
        them too, but only those of untraced passes become headline latency.
    wall_ns
        Duration of the measured part.
    anchor_ns
        `perf_counter_ns` at the start of the pass, to which ``start_ns`` and the layer times are relative once built.
    open_ns, first_predict_ns
        Cold start: opening the session and the very first predict, or -1.
    lock_wait_ns
        Time spent waiting for the machine-wide measuring lock.
    executable_digest
        Digest of what ran.
    layers
        The layer trace of a traced pass, else None.
    outputs
        The outputs of the last iteration, by name.
    peak_bytes
        Peak resident set size of the process, -1 if unknown.
    warnings
        What the user should know.
    events
        What collectors of the whole process recorded, by group ("memory", "power"); those of the session are in
        `layers`.
    unavailable
        What they could not record: {what: reason}.
    """

    level: str
    process: int
    warmup_iterations: int
    start_ns: npt.NDArray[np.int64]
    preprocess_ns: npt.NDArray[np.int64]
    predict_ns: npt.NDArray[np.int64]
    postprocess_ns: npt.NDArray[np.int64]
    wall_ns: int
    anchor_ns: int
    open_ns: int = -1
    first_predict_ns: int = -1
    lock_wait_ns: int = 0
    executable_digest: str = ""
    layers: LayerTrace | None = None
    outputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    peak_bytes: int = -1
    warnings: tuple[str, ...] = ()
    events: Mapping[str, EventTable] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
