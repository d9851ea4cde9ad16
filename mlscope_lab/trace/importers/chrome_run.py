"""Put the columns of a trace in Chrome's format together: who encloses, who launched, which step; then the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.trace.attribution import enclosing, iteration_at, launches, nest
from mlscope_lab.trace.importers.chrome_columns import Intake, group_of
from mlscope_lab.trace.importers.chrome_layers import module_layers
from mlscope_lab.trace.importers.chrome_pairs import flow_links, paired
from mlscope_lab.trace.importers.chrome_tables import event_tables
from mlscope_lab.trace.importers.chrome_texts import decoded

if TYPE_CHECKING:
    import xarray as xr

    from mlscope_lab.trace.records import LayerTrace

__all__ = ["run_of"]

_Columns = dict[str, npt.NDArray[Any]]
_INT = npt.NDArray[np.int64]
_STEP = re.compile(r"ProfilerStep#\d+")
_MAX_HEADER = 20_000
_MAX_KEYS = 200
_MAX_DEPTH = 20


class _Assembly:
    """The groups of the run while they are put together; columns leave the intake one by one."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._names = list(intake.names)
        self._categories = list(intake.categories)
        self._opened, self.unfinished = paired(intake.tables["begins"])
        self.warnings: list[str] = []
        none = np.zeros(0, dtype=np.int64)
        self.steps: tuple[_INT, _INT] = (none, none)
        self.kinds: tuple[str, ...] = ()
        self.single_flows = 0
        self.layers: LayerTrace | None = None
        self.no_layers = ""

    def groups(self) -> dict[str, _Columns]:
        """Return the columns of every group."""
        intake = self._intake
        annotations, instants = self._whole("annotations"), self._whole("instants")
        annotations = {name: np.concatenate([values, instants[name]]) for name, values in annotations.items()}
        self._find_steps(annotations)
        operators, runtime, kernels = (self._whole(kind) for kind in ("operators", "runtime", "kernels"))
        memory = self._whole("memory")
        spans = (operators["start_ns"], operators["duration_ns"], operators["track"])
        operators["parent_index"] = nest(*spans)
        for columns in (runtime, memory):
            columns["operator_index"] = enclosing(columns["start_ns"], columns["track"], *spans)
        for columns in (operators, runtime, annotations, memory):
            columns["iteration"] = iteration_at(columns["start_ns"], *self.steps)
        self.layers, operators["layer_index"], self.no_layers = module_layers(operators, self._names, self.steps)
        self._attribute(kernels, runtime)
        for columns in (kernels, memory):
            columns["layer_index"] = np.append(operators["layer_index"], np.int32(-1))[columns["operator_index"]]
        found = {"operators": operators, "runtime": runtime, "kernels": kernels, "annotations": annotations,
                 "counters": self._whole("counters"), "series": self._whole("series"), "memory": memory}  # fmt: skip
        found["links"], self.kinds, self.single_flows = flow_links(intake.tables["flows"], self._categories, found)
        return found

    def _whole(self, kind: str) -> _Columns:
        """Return the columns of a table, with the pairs of begin and end that belong there behind."""
        table = self._intake.tables[kind]
        columns = {name: table.take(name) for name in table.names()}
        for name, dtype in (("start_ns", np.int64), ("track", np.int32), ("name_code", np.int32),
                            ("category_code", np.int32)):  # fmt: skip
            columns.setdefault(name, np.zeros(0, dtype=dtype))
        columns.setdefault("duration_ns", np.zeros(len(columns["start_ns"]), dtype=np.int64))
        own = np.array([group_of(c) == kind for c in self._categories] or [False], dtype=np.bool_)
        mine = own[self._opened["category_code"].astype(np.int64)]
        if not mine.any():
            return columns
        if kind == "kernels":
            for name in ("device", "stream"):
                columns.setdefault(name, np.zeros(0, dtype=np.int32))
        for name, values in columns.items():
            absent = np.nan if values.dtype.kind == "f" else -1
            more = self._opened[name][mine] if name in self._opened else np.full(int(mine.sum()), absent)
            columns[name] = np.concatenate([values, more.astype(values.dtype)])
        return columns

    def _find_steps(self, annotations: _Columns) -> None:
        is_step = np.array([_STEP.fullmatch(name) is not None for name in self._names] or [False], dtype=np.bool_)
        on_host = np.array([c != "gpu_user_annotation" for c in self._categories] or [False], dtype=np.bool_)
        rows = np.flatnonzero(is_step[annotations["name_code"]] & on_host[annotations["category_code"]])
        rows = rows[np.argsort(annotations["start_ns"][rows], kind="stable")]
        starts, durations = annotations["start_ns"][rows], annotations["duration_ns"][rows]
        if (starts[1:] < (starts + durations)[:-1]).any():
            self.warnings.append("The steps that the trace marks overlap, so no event is said to belong to one")
        else:
            self.steps = starts, durations

    def _attribute(self, kernels: _Columns, runtime: _Columns) -> None:
        """Give work of the device to what launched it."""
        none = np.zeros(0, dtype=np.int64)
        calls = runtime.get("correlation", none)
        if len(calls):  # the device's side of a synchronisation has the correlation of the host's
            waits = np.array([c == "cuda_sync" for c in self._categories], dtype=np.bool_)
            calls = np.where(waits[runtime["category_code"]], -1, calls)
        correlation = kernels.get("correlation", np.full(len(kernels["start_ns"]), -1, dtype=np.int64))
        kernels["runtime_index"] = call = launches(correlation, calls)
        for name in ("operator_index", "iteration"):
            kernels[name] = np.append(runtime[name], np.int32(-1))[call]
        told = np.sort(calls[calls >= 0])
        if doubled := int((told[1:] == told[:-1]).sum()):
            self.warnings.append(f"{doubled} calls share their correlation with an earlier one, which counts")
        if lost := int((call < 0).sum()):
            self.warnings.append(
                f"{lost} of {len(call)} pieces of device work have no launch in the trace and belong to no operator"
            )


def run_of(intake: Intake, name: str, beside: Mapping[str, bytes], *, cut_short: bool = False) -> xr.DataTree:
    """Build the run.

    Parameters
    ----------
    intake
        With all events of the trace.
    name
        Of the file.
    beside
        {key: text} of what stands beside the events.
    cut_short
        Whether the file ends within an event.
    """
    from mlscope_lab.trace.build import build_imported

    if cut_short:
        intake.drop("are cut off at the end of the file")
    assembly = _Assembly(intake)
    intake.drop("begin without an end, or end without a begin", assembly.unfinished)
    groups = assembly.groups()
    timed = [columns for columns in groups.values() if len(columns.get("start_ns", ()))]
    if not timed:
        reasons = "; ".join(f"{count} {reason}" for reason, count in intake.dropped.items())
        raise InputError(f"{name} holds no events that could be imported ({reasons or 'no event has a time'})")
    anchor = min(int(columns["start_ns"].min()) for columns in timed)
    end = max(int((columns["start_ns"] + columns["duration_ns"]).max()) for columns in timed)
    device, counted = _device(groups["kernels"], groups["runtime"]), len(groups["counters"]["start_ns"])
    tables = event_tables(groups, assembly.kinds, intake)
    header = {key: decoded(text) for key, text in beside.items()}
    base, version = header.get("baseTimeNanoseconds"), header.get("schemaVersion")
    is_kineto = version is not None or "deviceProperties" in header
    attrs = {
        "model": name,
        "backend": "kineto" if is_kineto else "chrome",
        "backend_version": None if version is None else str(version),
        "device": device or ("cpu" if is_kineto else "unknown"),
        "clock_anchor_unix_ns": base if isinstance(base, int) and 0 <= base < 1 << 62 else 0,
        "environment": _environment(beside, header),
        "warnings": [*assembly.warnings, *_warnings(intake, assembly.single_flows)],
        "unavailable": _unavailable(set(tables), len(assembly.steps[0]), assembly.no_layers),
        "trace": {
            "events": intake.events,
            "dropped": dict(intake.dropped),
            "left_out": dict(intake.left_out),
            "single_flows": assembly.single_flows,
            "rounded_times": intake.uncommon_times,
        },
    }
    level = "hardware" if counted else "kernel" if "kernels" in tables else "operator"
    return build_imported(
        attrs=attrs, events=tables, layers=assembly.layers, anchor_ns=anchor, wall_ns=end - anchor, level=level,
        dropped_events=sum(intake.dropped.values()), iterations=len(assembly.steps[0]),
    )  # fmt: skip


def _device(kernels: _Columns, runtime: _Columns) -> str:
    """Return the device, "" where nothing is said to run on one."""
    if not len(kernels["start_ns"]) and not len(runtime["start_ns"]):
        return ""
    devices = np.unique(kernels["device"]) if "device" in kernels else np.zeros(0, dtype=np.int64)
    return f"cuda:{int(devices[0])}" if len(devices) == 1 and devices[0] >= 0 else "cuda"


def _environment(beside: Mapping[str, bytes], header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trace says of its machine, as far as it is of a sensible size."""
    kept = [key for key, text in beside.items() if len(text) <= _MAX_HEADER and _depth(header[key]) < _MAX_DEPTH]
    return {key: header[key] for key in kept[:_MAX_KEYS] if header[key] is not None}


def _depth(value: Any) -> int:
    """Return how deep lists and objects nest, at most `_MAX_DEPTH`."""
    level, depth = [value], 0
    while depth < _MAX_DEPTH and (level := [v for v in level if isinstance(v, list | dict) and v]):
        level = [item for v in level for item in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


def _warnings(intake: Intake, single_flows: int) -> list[str]:
    found = [f"{count} events {reason} and are left out" for reason, count in intake.dropped.items()]
    if intake.left_out:
        kinds = ", ".join(f"{count} of phase {phase!r}" for phase, count in intake.left_out.items())
        found.append(f"A run has no place for some of the trace's events: {kinds}")
    if intake.uncommon_times:
        found.append(
            f"{intake.uncommon_times} times are quoted, have an exponent or more than three decimals; what is finer "
            "than a nanosecond is rounded half to even"
        )
    return found


def _unavailable(groups: set[str], steps: int, no_layers: str) -> dict[str, str]:
    found = {"latency": "a trace tells times under tracing only"}
    if no_layers:
        found["layers"] = no_layers
    if "kernels" not in groups:
        found["kernels"] = "the trace holds no work of a device"
    if not steps:
        found["iterations"] = "the trace marks no steps (ProfilerStep#N)"
    return found
