"""PyTorch's profiler as columns: every event that Kineto recorded, read through its raw records.

``prof.events()`` builds a Python object with forty attributes for each event; here each attribute that is needed is
read in one sweep over all events, and text is interned. What runs on a device is read from Kineto's own activities,
whose arguments are those of a Chrome trace, so that the same code is tested on recorded traces.

The CUDA part is tested on recorded traces alone and is unverified on a device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import SessionError

__all__ = [
    "DEVICE_WORK",
    "Allocations",
    "Profiler",
    "TraceColumns",
    "allocations_of",
    "columns_of",
    "device_columns",
    "input_texts",
    "profiler_reason",
    "watch_contexts",
]

_INT = npt.NDArray[np.int64]

DEVICE_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset", "cuda_sync"})
"""Categories of what a device did; Kineto's names."""
_DEVICE = DEVICE_WORK | {"gpu_user_annotation", "cuda_profiler_range"}
_MEMORY = "[memory]"
_USER_SCOPE = 7  # torch's RecordScope.USER_SCOPE
_DTYPES = {"float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16",
           "long int": "int64", "long": "int64", "int": "int32", "short": "int16", "signed char": "int8",
           "unsigned char": "uint8", "bool": "bool"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TraceColumns:
    """The events of a trace, one row an event, on the trace's own clock.

    Attributes
    ----------
    names, name
        The distinct names, and for each row the position of its own, int32 (N,).
    categories, category
        Likewise; "cpu_op", "user_annotation", "cuda_runtime", "kernel", ... as Kineto calls them.
    start_ns, duration_ns
        int64 (N,).
    device
        Number of the device, -1 on the host.
    thread
        The system's number of the thread on the host, the stream's on a device.
    correlation
        What a call and the device work that it launched share, -1 where there is none.
    operator
        Number of the operator: its own where the row is one, else of the one that made the call; -1 for none.
    flow
        What a forward operator and its backward share, 0 where there is none.
    arguments
        {row: arguments} as in a Chrome trace, for device work.
    """

    names: tuple[str, ...]
    name: npt.NDArray[np.int32]
    categories: tuple[str, ...]
    category: npt.NDArray[np.int32]
    start_ns: _INT
    duration_ns: _INT
    device: _INT
    thread: _INT
    correlation: _INT
    operator: _INT
    flow: _INT
    arguments: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start_ns)

    def of(self, *categories: str) -> npt.NDArray[np.bool_]:
        """Return where rows are of one of the categories."""
        wanted = np.array([category in categories for category in (*self.categories, "")])
        return np.asarray(wanted[self.category])

    def named(self, test: Any) -> npt.NDArray[np.bool_]:
        """Return where the name passes a test, which is asked once a distinct name."""
        wanted = np.array([bool(test(name)) for name in (*self.names, "")])
        return np.asarray(wanted[self.name])


@dataclass(frozen=True, kw_only=True)
class Allocations:
    """Memory taken and given back, on the trace's own clock.

    Attributes
    ----------
    time_ns, thread
        int64 (M,).
    arguments
        As in a Chrome trace: "Bytes", "Total Allocated", "Total Reserved", "Addr", "Device Type", "Device Id".
    """

    time_ns: _INT
    thread: _INT
    arguments: Sequence[Mapping[str, Any]]


def _interned(texts: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Return the distinct texts in order of appearance, and the position of each text among them."""
    table = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    return tuple(table), np.fromiter(map(table.__getitem__, texts), dtype=np.int32, count=len(texts))


def profiler_reason() -> str | None:
    """Return why this PyTorch's profiler cannot be read, None if it can."""
    import torch
    from torch.autograd import _KinetoEvent, _ProfilerResult

    needed = (
        (_KinetoEvent, "activity_type"),
        (_KinetoEvent, "device_resource_id"),
        (_ProfilerResult, "trace_activities"),
    )
    if all(hasattr(cls, method) for cls, method in needed):
        return None
    return f"the profiler of PyTorch {torch.__version__} does not tell enough of its events; 2.13 does"


def watch_contexts() -> None:
    """Start and stop the profiler before there is a CUDA context: counters are only measured in contexts seen to begin.

    Does nothing where there is no device, or a context already.
    """
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        Profiler(cuda=True).stop()


class Profiler:
    """One run of PyTorch's profiler, over all threads unless it records allocations.

    Parameters
    ----------
    cuda
        Record the device too.
    shapes
        Record the shapes of inputs.
    memory
        Record allocations, which PyTorch does for the thread alone that starts the profiler.
    counters
        Hardware counters to measure for each kernel, by CUPTI's names.
    """

    def __init__(
        self, *, cuda: bool = False, shapes: bool = False, memory: bool = False, counters: Sequence[str] = ()
    ) -> None:
        from torch._C._profiler import _ExperimentalConfig
        from torch.autograd import _profiler_enabled
        from torch.autograd.profiler import profile

        # the library below the profiler prints to stderr at each start and stop
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        if _profiler_enabled():
            raise SessionError(
                "PyTorch's profiler is running in this process already, and there can be only one: stop it before you "
                "trace below layers"
            )
        options: dict[str, Any] = {"profile_all_threads": not memory}
        if counters:
            options |= {"profiler_metrics": list(counters), "profiler_measure_per_kernel": True}
        if cuda:
            options["enable_cuda_sync_events"] = True
        self._cuda = cuda
        self._profile: Any = profile(
            use_kineto=True, use_device="cuda" if cuda else None, record_shapes=shapes, profile_memory=memory,
            experimental_config=_ExperimentalConfig(**options),
        )  # fmt: skip
        self._profile.__enter__()

    def stop(self) -> Any:
        """Stop and return Kineto's results, None if it was stopped before."""
        profile, self._profile = self._profile, None
        if profile is None:
            return None
        profile.__exit__(None, None, None)
        return profile.kineto_results


def columns_of(results: Any, *, cuda: bool = False) -> TraceColumns:
    """Read Kineto's results.

    Parameters
    ----------
    results
        ``kineto_results`` of a profiler that has stopped, or None of one that never ran.
    cuda
        Whether a device was recorded.
    """
    events = results.events() if results is not None else []
    n = len(events)
    event: Any = type(events[0]) if n else None

    def integers(method: str) -> _INT:
        return np.fromiter(map(getattr(event, method), events), dtype=np.int64, count=n) if n else np.zeros(0, np.int64)

    def texts(method: str) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        return _interned(list(map(getattr(event, method), events)) if n else [])

    none = np.full(n, -1, dtype=np.int64)
    names, name = texts("name")
    if cuda:
        categories, category = texts("activity_type")
    else:  # on the host ranges of users are told apart by their scope, which is cheaper to read than text
        categories = ("cpu_op", "user_annotation")
        category = (integers("scope") == _USER_SCOPE).astype(np.int32)
    backward = any(text.startswith("autograd::engine::") for text in names)
    host = TraceColumns(
        names=names, name=name, categories=categories, category=category, start_ns=integers("start_ns"),
        duration_ns=np.maximum(integers("duration_ns"), 0), device=none, thread=integers("device_resource_id"),
        correlation=none, operator=none, flow=integers("flow_id") if backward else np.zeros(n, dtype=np.int64),
    )  # fmt: skip
    if backward:  # the flow of a launch has another type
        host = replace(host, flow=np.where(integers("flow_type") == 1, host.flow, 0))
    if not cuda or results is None:
        return host
    is_call = host.of(*(c for c in categories if c.endswith(("_runtime", "_driver"))))
    own, linked = integers("correlation_id"), integers("linked_correlation_id")
    host = replace(
        host,
        correlation=np.where(is_call, own, -1),
        operator=np.where(is_call, np.where(linked > 0, linked, -1), own),
    )
    return _join(_take(host, ~host.of(*_DEVICE)), device_columns(results.trace_activities()))


def device_columns(activities: Iterable[Any]) -> TraceColumns:
    """Read what ran on devices, with its arguments, from Kineto's activities."""
    found = [activity for activity in activities if activity.type() in _DEVICE]
    names, name = _interned([activity.name() for activity in found])
    categories, category = _interned([activity.type() for activity in found])

    def integers(method: str) -> _INT:
        return np.array([getattr(activity, method)() for activity in found], dtype=np.int64)

    correlation, linked = integers("correlation_id"), integers("linked_correlation_id")
    return TraceColumns(
        names=names, name=name, categories=categories, category=category, start_ns=integers("timestamp"),
        duration_ns=np.maximum(integers("duration"), 0), device=integers("device_id"), thread=integers("resource_id"),
        correlation=np.where(correlation > 0, correlation, -1), operator=np.where(linked > 0, linked, -1),
        flow=np.zeros(len(found), dtype=np.int64),
        arguments=dict(enumerate(_arguments([activity.metadata_json() for activity in found]))),
    )  # fmt: skip


def _arguments(texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the arguments of activities, which come as the inside of a JSON object each."""
    try:
        found = json.loads("[" + ",".join("{" + text + "}" for text in texts) + "]")
        if len(found) == len(texts):
            return list(found)
    except ValueError:  # kernels of other tools may put there what they like
        pass
    if len(texts) == 1:
        return [{}]
    half = len(texts) // 2
    return [*_arguments(texts[:half]), *_arguments(texts[half:])]


def allocations_of(results: Any) -> Allocations:
    """Return the memory taken and given back, which Kineto's activities alone tell in full."""
    activities = results.trace_activities() if results is not None else ()
    found = [activity for activity in activities if activity.name() == _MEMORY]
    return Allocations(
        time_ns=np.array([activity.timestamp() for activity in found], dtype=np.int64),
        thread=np.array([activity.resource_id() for activity in found], dtype=np.int64),
        arguments=_arguments([activity.metadata_json() for activity in found]),
    )


def input_texts(results: Any, rows: npt.NDArray[np.intp]) -> tuple[str, ...]:
    """Return the types and shapes of the inputs of host events, as ``float32[1,3];list([2],[3])``."""
    events = results.events()
    return tuple(_input_text(events[row]) for row in rows.tolist())


def _input_text(event: Any) -> str:
    found = []
    for dims, kind in zip(event.structured_input_shapes(), event.dtypes(), strict=False):
        if kind in _DTYPES:
            found.append(f"{_DTYPES[kind]}{_dims(dims)}")
        elif kind == "TensorList":  # whose element types are not told
            found.append(f"list({','.join(map(_dims, dims))})")
    return ";".join(found)


def _dims(lengths: Any) -> str:
    return f"[{','.join(map(str, lengths))}]"


_ROWS = ("name", "category", "start_ns", "duration_ns", "device", "thread", "correlation", "operator", "flow")


def _take(columns: TraceColumns, rows: npt.NDArray[np.bool_]) -> TraceColumns:
    return replace(columns, **{column: getattr(columns, column)[rows] for column in _ROWS})


def _join(host: TraceColumns, device: TraceColumns) -> TraceColumns:
    """Put the rows of the device below those of the host."""
    table = {text: position for position, text in enumerate(dict.fromkeys((*host.names, *device.names)))}
    kinds = {text: position for position, text in enumerate(dict.fromkeys((*host.categories, *device.categories)))}
    names = np.array([table[text] for text in device.names], dtype=np.int32)
    categories = np.array([kinds[text] for text in device.categories], dtype=np.int32)
    moved = replace(device, name=names[device.name], category=categories[device.category])
    joined = {column: np.concatenate([getattr(host, column), getattr(moved, column)]) for column in _ROWS}
    arguments = {row + len(host): found for row, found in device.arguments.items()}
    return TraceColumns(names=tuple(table), categories=tuple(kinds), arguments=arguments, **joined)
