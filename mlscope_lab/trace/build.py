"""Put the records of a measurement together into one run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema
from mlscope_lab.trace.comparison import compare_outputs, median_ratio
from mlscope_lab.trace.events import PassEvents, datasets_of
from mlscope_lab.trace.joining import join_tables
from mlscope_lab.trace.records import EventTable, PassRecord
from mlscope_lab.trace.tables import TEXT_COLUMNS, unite

if TYPE_CHECKING:
    import xarray as xr

    from mlscope_lab.trace.records import LayerTrace

__all__ = ["build_imported", "build_run", "new_run_id", "plain", "texts_as_objects"]

_INT = npt.NDArray[np.int64]
_ANALYTIC = frozenset({"parameter_bytes", "activation_bytes"})
_DERIVED = frozenset(
    {"overhead_ratio", "overhead_low", "overhead_high", "outputs_equal", "max_output_difference", "exclusive_ns"}
)
_LONG_NAMES = {
    "activation_bytes": "size of the layer's outputs (-1: unknown)",
    "anchor_ns": "monotonic clock of the measuring process at the start of the pass",
    "clock_error_ns": "bound on the error of mapping the source's clock onto the pass's",
    "depth": "number of enclosing calls",
    "dropped_events": "events that the tracing source lost",
    "duration_ns": "inclusive duration (-1: did not run)",
    "exclusive_ns": "duration less what enclosed calls cover (-1: did not run)",
    "executable_digest": "digest of what ran",
    "first_predict_ns": "duration of the first predict of the session (-1: unknown)",
    "input_shapes": "element types and shapes of the inputs",
    "iteration_start_ns": "start of the traced predict since the start of its pass",
    "level": "trace level of the pass",
    "lock_wait_ns": "time spent waiting for the machine-wide measuring lock",
    "max_output_difference": "largest absolute difference from the untraced pass's outputs",
    "measured_iterations": "iterations that count",
    "name": "label of the call site",
    "open_ns": "duration of opening the session (-1: unknown)",
    "output_shapes": "element types and shapes of the outputs",
    "outputs_equal": "outputs equal those of the untraced pass (1 yes, 0 no, -1 unknown)",
    "overhead_high": "upper 95 % bound of overhead_ratio",
    "overhead_low": "lower 95 % bound of overhead_ratio",
    "overhead_ratio": "median predict time over that of the pass one level above; of a pass in which the framework was "
    "not traced, over the untraced one",
    "parameter_bytes": "size of the layer's own weights (-1: unknown)",
    "parent": "index of the enclosing call (-1: none)",
    "pass_duration_ns": "duration of the traced predict",
    "pass_index": "index into /passes",
    "peak_bytes": "peak resident set size of the measuring process (-1: unknown)",
    "postprocess_ns": "duration of postprocessing",
    "predict_ns": "duration of the predict",
    "preprocess_ns": "duration of preprocessing",
    "process": "number of the measuring process",
    "resolution_ns": "smallest step of the source's clock",
    "scope": "qualified name of the module or source node",
    "sources": "original layers that a fused layer stands for",
    "start_ns": "start since the start of the pass (-1: did not run)",
    "type": "operator or class name",
    "wall_ns": "duration of the measured part",
    "warmup_iterations": "iterations before those that count",
}


def new_run_id() -> str:
    """Return a fresh run id: the UTC time to the second and 8 random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def plain(value: Any, where: str = "attrs") -> Any:
    """Return `value` as JSON would give it back: dicts, lists, str, int, float, bool and None.

    Parameters
    ----------
    value
        Nested mappings and sequences of scalars; numpy scalars and arrays, paths and dates are converted. A float
        that is not finite, which JSON cannot hold, becomes None.
    where
        Path for the message.

    Raises
    ------
    SchemaError
        If something has no JSON form.
    """
    import os
    from datetime import date

    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}['{key}']") for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(items)]
    raise SchemaError(f"{where} is a {type(value).__name__}, which a run cannot store; give text, numbers or lists")


def _variable(group: str, name: str, values: Any) -> tuple[tuple[str, ...], npt.NDArray[Any], dict[str, str]]:
    """Return dims, data and attrs of one variable of the schema."""
    dims = schema.GROUPS[group][name]
    if schema.is_text(name):
        data = np.empty(len(values), dtype=object)
        data[:] = list(values)
        units = ""
    else:
        data = np.asarray(values, dtype=schema.dtype_of(group, name))
        units = schema.units_of(name) or "1"
    provenance = "analytic" if name in _ANALYTIC else "derived" if name in _DERIVED else "measured"
    return dims, data, {"units": units, "long_name": _LONG_NAMES[name], "provenance": provenance}


def _dataset(group: str, columns: Mapping[str, Any], attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset({name: _variable(group, name, columns[name]) for name in schema.GROUPS[group]}, attrs=attrs)


def _traced(record: PassRecord) -> LayerTrace | None:
    return record.layers if record.level != "model" else None


def _above(passes: Sequence[PassRecord], record: PassRecord) -> list[PassRecord]:
    """Return the passes one level above: those of the same process, or of all where it has none.

    Above a pass in which the framework was not traced, because only the process was watched, is the untraced one.
    """
    depth = schema.LEVELS.index(record.level) if record.layers is not None else 1
    shallower = [other for other in passes if schema.LEVELS.index(other.level) < depth]
    near = [other for other in shallower if other.process == record.process] or shallower
    deepest = max((schema.LEVELS.index(other.level) for other in near), default=-1)
    return [other for other in near if schema.LEVELS.index(other.level) == deepest]


def _plain(passes: Sequence[PassRecord], process: int) -> PassRecord | None:
    """Return the untraced pass of a process."""
    return next((other for other in passes if other.level == "model" and other.process == process), None)


def _join(arrays: Sequence[_INT]) -> _INT:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays]).astype(np.int64)


def _pass_columns(passes: Sequence[PassRecord]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in schema.GROUPS[schema.PASSES]}
    for record in passes:
        trace = _traced(record)
        overhead, same = (np.nan, np.nan, np.nan), (-1, np.nan)
        if record.level != "model":
            overhead = median_ratio(record.predict_ns, _join([a.predict_ns for a in _above(passes, record)]))
            untraced = _plain(passes, record.process)
            same = compare_outputs(record.outputs, untraced.outputs if untraced is not None else None)
        row = {
            "level": record.level,
            "process": record.process,
            "warmup_iterations": record.warmup_iterations,
            "measured_iterations": len(record.predict_ns),
            "wall_ns": record.wall_ns,
            "executable_digest": trace.executable_digest if trace and trace.executable_digest else
                                 record.executable_digest,
            "overhead_ratio": overhead[0],
            "overhead_low": overhead[1],
            "overhead_high": overhead[2],
            "lock_wait_ns": record.lock_wait_ns,
            "clock_error_ns": trace.clock_error_ns if trace else 0,
            "resolution_ns": trace.resolution_ns if trace else 1,
            "outputs_equal": same[0],
            "max_output_difference": same[1],
            "anchor_ns": record.anchor_ns,
            "open_ns": record.open_ns,
            "first_predict_ns": record.first_predict_ns,
            "peak_bytes": record.peak_bytes,
            "dropped_events": trace.dropped_events if trace else 0,
        }  # fmt: skip
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _latency(passes: Sequence[PassRecord]) -> xr.Dataset:
    untraced = [(index, record) for index, record in enumerate(passes) if record.level == "model"]
    columns: dict[str, Any] = {
        name: _join([np.asarray(getattr(record, name)) for _, record in untraced])
        for name in ("start_ns", "preprocess_ns", "predict_ns", "postprocess_ns")
    }
    columns["process"] = _join([np.full(len(record.predict_ns), record.process) for _, record in untraced])
    columns["pass_index"] = _join([np.full(len(record.predict_ns), index) for index, record in untraced])
    return _dataset(schema.LATENCY, columns)


def _relative(absolute: _INT, anchor_ns: int, ran: npt.NDArray[np.bool_]) -> _INT:
    """Return times since the anchor; mapping a coarse clock may put a start just before it, which becomes 0."""
    return np.where(ran, np.maximum(absolute - anchor_ns, 0), -1).astype(np.int64)


def _layers(passes: Sequence[PassRecord]) -> tuple[xr.Dataset, list[str], dict[int, npt.NDArray[np.intp]]]:
    """Return the layers, warnings, and for each traced pass the rows that its own layers have here."""
    traced = [(index, record, trace) for index, record in enumerate(passes) if (trace := _traced(record)) is not None]
    table, positions, warnings = unite([(record.process, trace.layers) for _, record, trace in traced])
    rows: dict[str, list[_INT]] = {name: [] for name in ("start_ns", "duration_ns", "exclusive_ns")}
    along: dict[str, list[_INT]] = {
        name: [] for name in ("pass_index", "process", "iteration_start_ns", "pass_duration_ns")
    }
    for (index, record, trace), position in zip(traced, positions, strict=True):
        iterations = len(trace.iteration_start_ns)
        ran = (trace.start_ns >= 0) & (trace.duration_ns >= 0)
        if (early := int(np.max(record.anchor_ns - trace.start_ns[ran], initial=0))) > trace.clock_error_ns:
            warnings.append(f"Pass {index}: a layer starts {early} ns before its pass; the source's clock was mapped "
                            f"with an error of at most {trace.clock_error_ns} ns")  # fmt: skip
        for name, values in (
            ("start_ns", _relative(trace.start_ns, record.anchor_ns, ran)),
            ("duration_ns", np.where(ran, trace.duration_ns, -1)),
            ("exclusive_ns", np.where(ran, trace.exclusive_ns, -1)),
        ):
            whole = np.full((iterations, len(table)), -1, dtype=np.int64)
            whole[:, position] = values
            rows[name].append(whole)
        along["pass_index"].append(np.full(iterations, index))
        along["process"].append(np.full(iterations, record.process))
        along["iteration_start_ns"].append(np.maximum(trace.iteration_start_ns - record.anchor_ns, 0))
        along["pass_duration_ns"].append(trace.iteration_duration_ns)
    columns: dict[str, Any] = {name: np.concatenate(parts) for name, parts in rows.items()}
    columns |= {name: _join(parts) for name, parts in along.items()}
    columns |= {name: getattr(table, name) for name in (*TEXT_COLUMNS, "parent", "depth", "parameter_bytes",
                                                         "activation_bytes")}  # fmt: skip
    place = {index: position for (index, _, _), position in zip(traced, positions, strict=True)}
    return _dataset(schema.LAYERS, columns), warnings, place


def _events(passes: Sequence[PassRecord], place: Mapping[int, npt.NDArray[np.intp]]) -> dict[str, xr.Dataset]:
    found = []
    for index, record in enumerate(passes):
        groups = dict(record.layers.events) if record.layers is not None else {}
        for name, table in record.events.items():
            groups[name] = join_tables([groups[name], table]) if name in groups else table
        found.append(
            PassEvents(pass_index=index, anchor_ns=record.anchor_ns, groups=groups, layer_positions=place.get(index))
        )
    return datasets_of(found)


def _check_records(passes: Sequence[PassRecord]) -> None:
    for index, record in enumerate(passes):
        if record.level not in schema.RECORDED_LEVELS:
            raise SchemaError(
                f"passes[{index}].level must be one of {', '.join(schema.RECORDED_LEVELS)}, not {record.level!r}"
            )
        if record.level not in {"model", "hardware"} and record.layers is None:
            raise SchemaError(f"passes[{index}] has level '{record.level}' but no layer trace; give layers=")
        if record.level == "model" and record.layers is not None:
            raise SchemaError(f"passes[{index}] has level 'model' but a layer trace; call it level 'layer'")
        n = len(record.predict_ns)
        for name in ("start_ns", "preprocess_ns", "predict_ns", "postprocess_ns"):
            if np.shape(getattr(record, name)) != (n,):
                raise SchemaError(f"passes[{index}].{name} has shape {np.shape(getattr(record, name))}, not ({n},)")


def texts_as_objects(outputs: xr.Dataset) -> xr.Dataset:
    """Return a copy whose strings are object arrays, whatever kind pandas or numpy made them."""
    return outputs.assign({
        name: variable.astype(object)
        for name, variable in outputs.variables.items()
        if getattr(variable.dtype, "kind", "O") in "UT" or str(variable.dtype) in {"string", "str", "category"}
    })  # fmt: skip


def build_run(
    *, attrs: Mapping[str, Any], passes: Sequence[PassRecord], outputs: xr.Dataset | None = None
) -> xr.DataTree:
    """Build the run of a measurement.

    Parameters
    ----------
    attrs
        Attributes of the root; everything in `schema.REQUIRED_ATTRS`, ``schema_version`` excepted. Warnings of the
        passes and what their traces could not record are added to ``warnings`` and ``unavailable``.
    passes
        All passes of all processes, in any order; their index is ``pass_index``. A failed run may have none.
    outputs
        The answer by task, stored as ``/outputs``.

    Returns
    -------
    xarray.DataTree
        Root with attributes only; ``/passes`` (pass), ``/latency`` (latency_iteration, untraced passes only),
        ``/layers`` (layer_iteration, layer) if there is a traced pass, the groups of events that were recorded,
        ``/outputs`` if given. Times are int64 ns since
        the start of their pass, -1 where a layer did not run. Layer tables that differ between processes are united
        by name.

    Raises
    ------
    SchemaError
        If an attribute is missing or malformed, or the records contradict each other.
    """
    import xarray as xr

    from mlscope_lab.trace.accessor import ensure_registered
    from mlscope_lab.trace.validate import validate

    ensure_registered()
    _check_records(passes)
    root = plain({"schema_version": schema.SCHEMA_VERSION, **attrs})
    warnings = [w for record in passes for w in record.warnings]
    groups: dict[str, xr.Dataset] = {}
    if passes:
        groups[schema.PASSES] = _dataset(schema.PASSES, _pass_columns(passes))
        groups[schema.LATENCY] = _latency(passes)
    place: dict[int, npt.NDArray[np.intp]] = {}
    if any(_traced(record) is not None for record in passes):
        groups[schema.LAYERS], differences, place = _layers(passes)
        warnings += differences
    groups |= _events(passes, place)
    if outputs is not None:
        groups[schema.OUTPUTS] = texts_as_objects(outputs)
    if isinstance(root.get("warnings"), list):
        root["warnings"] = list(dict.fromkeys([*root["warnings"], *warnings]))
    if isinstance(root.get("unavailable"), dict):
        for record in passes:
            root["unavailable"] |= plain(record.unavailable)
            if record.layers is not None:
                root["unavailable"] |= plain(record.layers.unavailable)
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=root), **{f"/{name}": data for name, data in groups.items()}})
    validate(tree)
    return tree


def build_imported(
    *,
    attrs: Mapping[str, Any],
    events: Mapping[str, EventTable],
    layers: LayerTrace | None = None,
    anchor_ns: int = 0,
    wall_ns: int,
    level: str,
    resolution_ns: int = 1,
    dropped_events: int = 0,
    iterations: int = 0,
) -> xr.DataTree:
    """Build the run of a trace that another tool made.

    Parameters
    ----------
    attrs
        What is known of it: ``model`` (the trace's name) and ``backend`` (the tool that made it) at least. What is not
        known of `schema.REQUIRED_ATTRS` becomes None.
    events
        Events by group.
    layers
        Layers where the trace tells them.
    anchor_ns
        The trace's own time at which it starts; times of the run count from there.
    wall_ns
        From its first event to the end of its last.
    level
        The deepest level that it holds.
    resolution_ns
        Smallest step of the trace's clock.
    dropped_events
        Events that the trace names as lost, or that could not be read.
    iterations
        Steps that it marks.

    Returns
    -------
    xarray.DataTree
        As from `build_run`, with ``origin`` "imported", one row in ``/passes`` and no ``/latency``: nobody knows what
        the model takes untraced.

    Raises
    ------
    SchemaError
        If the parts contradict each other.
    """
    import xarray as xr

    from mlscope_lab.trace.accessor import ensure_registered
    from mlscope_lab.trace.validate import validate

    ensure_registered()
    none = np.zeros(0, dtype=np.int64)
    record = PassRecord(
        level=level, process=0, warmup_iterations=-1, start_ns=none, preprocess_ns=none, predict_ns=none,
        postprocess_ns=none, wall_ns=wall_ns, anchor_ns=anchor_ns, layers=layers, lock_wait_ns=-1,
    )  # fmt: skip
    unknown: dict[str, Any] = dict.fromkeys(schema.REQUIRED_ATTRS)
    defaults = {
        "schema_version": schema.SCHEMA_VERSION, "run_id": new_run_id(), "status": "complete", "origin": "imported",
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"), "device": "unknown", "level": level,
        "isolation": "imported", "clock_anchor_unix_ns": 0, "environment": {}, "warnings": [], "unavailable": {},
    }  # fmt: skip
    root = plain({**unknown, **defaults, **attrs})
    columns = _pass_columns([record])
    columns |= {"measured_iterations": [iterations], "resolution_ns": [resolution_ns],
                "dropped_events": [dropped_events]}  # fmt: skip
    groups = {schema.PASSES: _dataset(schema.PASSES, columns)}
    place = None
    if layers is not None:
        groups[schema.LAYERS], _, places = _layers([record])
        place = places[0]
    here = PassEvents(pass_index=0, anchor_ns=anchor_ns, groups=events, layer_positions=place)
    groups |= datasets_of([here], provenance="imported")
    for data in groups.values():
        for variable in data.variables.values():
            if variable.attrs.get("provenance") == "measured":
                variable.attrs["provenance"] = "imported"
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=root), **{f"/{name}": data for name, data in groups.items()}})
    validate(tree)
    return tree
