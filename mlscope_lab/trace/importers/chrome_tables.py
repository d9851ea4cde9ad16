"""The groups of a run out of the columns of a trace in Chrome's format: names for numbers, numbers for names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema
from mlscope_lab.trace.importers.chrome_columns import Intake
from mlscope_lab.trace.importers.chrome_texts import counter_names, shape_text
from mlscope_lab.trace.records import EventTable

__all__ = ["event_tables"]

_Columns = dict[str, npt.NDArray[Any]]
_MAX_CELLS = 1 << 24


def event_tables(groups: dict[str, _Columns], kinds: tuple[str, ...], intake: Intake) -> dict[str, EventTable]:
    """Return the groups that have rows.

    Parameters
    ----------
    groups
        Columns by group, "series" for counters that are samples; taken out one by one, so that memory is freed.
    kinds
        Texts of the links' ``kind_code``.
    intake
        Where the codes and counters come from.
    """
    tracks = list(intake.tracks)
    threads = [f"{process}/{thread}" for process, thread in tracks]
    texts: dict[str, Sequence[str]] = {
        "name": list(intake.names), "category": list(intake.categories), "thread": threads, "kind": kinds,
    }  # fmt: skip
    counters = _counters(groups.pop("counters"), groups.pop("series"), intake)
    found: dict[str, EventTable] = {}
    for group in ("operators", "runtime", "kernels", "annotations", "links", "memory"):
        columns = groups.pop(group)
        if not columns or not len(next(iter(columns.values()))):
            continue
        track = columns.pop("track", None)
        if group == "kernels" and track is not None:
            _places(columns, track, tracks)
        elif group == "memory":
            columns = _memory(columns, texts)
        elif track is not None:
            columns["thread_code"] = track
        if group == "operators" and "shapes_code" in columns:
            if (columns["shapes_code"] >= 0).any():
                texts["shapes"] = [shape_text(*pair) for pair in intake.shapes]
            else:
                del columns["shapes_code"]
        for name in schema.OPTIONAL[group]:
            if name in columns and not _tells(columns[name]):
                del columns[name]
        found[group] = _table(columns, texts, _thread_names(intake, threads) if "thread_code" in columns else {})
    if counters is not None:
        columns, attrs = counters
        found[schema.COUNTERS] = _table(columns, texts, {}, attrs)
    return found


def _tells(values: npt.NDArray[Any]) -> bool:
    """Tell whether an optional column holds anything."""
    return bool((~np.isnan(values)).any() if values.dtype.kind == "f" else (values != -1).any())


def _table(
    columns: _Columns, texts: Mapping[str, Sequence[str]], attrs: Mapping[str, Any],
    variable_attrs: Mapping[str, Mapping[str, str]] | None = None,
) -> EventTable:  # fmt: skip
    """Return a table whose codes number only the texts that it uses."""
    tables: dict[str, tuple[str, ...]] = {}
    for column in [name for name in columns if name.endswith("_code")]:
        name = column.removesuffix("_code")
        used = np.zeros(len(texts[name]) + 1, dtype=np.bool_)
        used[columns[column]] = True  # -1 marks the last one, which stands for none
        used[-1] = False
        place = np.append((np.cumsum(used) - 1)[:-1], -1).astype(np.int32)
        columns[column] = place[columns[column]]
        whole = texts[name]
        tables[name] = tuple(whole[code] for code in np.flatnonzero(used).tolist())
    return EventTable(columns=columns, tables=tables, attrs=attrs, variable_attrs=variable_attrs or {})


def _places(columns: _Columns, track: npt.NDArray[Any], tracks: Sequence[tuple[Any, Any]]) -> None:
    """Fill in device and stream where the arguments lack them: Kineto has them as process and thread, too."""
    for name, part in (("device", 0), ("stream", 1)):
        missing = columns[name] < 0
        if missing.any():
            number = np.array([_number(pair[part]) for pair in tracks], dtype=np.int32)
            columns[name] = np.where(missing, number[track], columns[name]).astype(np.int32)


def _number(value: Any) -> int:
    if isinstance(value, str):
        last = value.rpartition(" ")[2]  # "stream 7"
        value = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else -1
    return value if 0 <= value < 1 << 31 else -1


def _memory(columns: _Columns, texts: dict[str, Sequence[str]]) -> _Columns:
    """Return samples of allocated memory; PyTorch numbers the types of devices."""
    kinds, codes = np.unique(np.stack([columns["device_type"], columns["device"]]), axis=1, return_inverse=True)
    names = {0: "cpu", 1: "cuda"}
    texts["device"] = [
        "cpu" if kind == 0 else f"{names.get(int(kind), f'type {int(kind)}')}:{max(int(number), 0)}"
        for kind, number in kinds.T
    ]
    found: _Columns = {"device_code": codes.reshape(-1).astype(np.int32), "time_ns": columns["start_ns"]}
    kept = ("iteration", "layer_index", "bytes", "allocated_bytes", "reserved_bytes", "address", "operator_index")
    return found | {name: columns[name] for name in kept if name in columns}


def _thread_names(intake: Intake, threads: Sequence[str]) -> dict[str, Any]:
    """Return what the trace calls its processes and threads."""
    known = set(threads)
    found: dict[str, dict[str, str]] = {"thread_names": {}, "process_names": {}}
    for process, thread, title in intake.titles:
        if thread is None:
            found["process_names"][str(process)] = title
        elif f"{process}/{thread}" in known:
            found["thread_names"][f"{process}/{thread}"] = title
    return {key: value for key, value in found.items() if value}


def _counters(ranges: _Columns, series: _Columns, intake: Intake) -> tuple[_Columns, dict[str, dict[str, str]]] | None:
    """Return counters measured over ranges and sampled ones, a variable for each argument."""
    count, samples = len(ranges["start_ns"]), len(series["start_ns"])
    if not count + samples:
        return None
    columns: _Columns = {
        "start_ns": np.concatenate([ranges["start_ns"], series["start_ns"]]),
        "duration_ns": np.concatenate([ranges["duration_ns"], np.zeros(samples, dtype=np.int64)]),
        **{name: np.concatenate([ranges[name], series[name]]) for name in ("name_code", "category_code")},
    }
    wanted = {**dict.fromkeys(intake.cells["counters"]), **dict.fromkeys(intake.cells["series"])}
    names = counter_names(wanted)
    attrs: dict[str, dict[str, str]] = {}
    for name in wanted:
        if (len(attrs) + 1) * (count + samples) > _MAX_CELLS and attrs:
            intake.drop("hold counters beyond what a run keeps", len(wanted) - len(attrs))
            break
        values = np.full(count + samples, np.nan)
        for kind, offset in (("counters", 0), ("series", count)):
            rows, cells = intake.cells[kind].pop(name, ((), ()))
            values[np.array(rows, dtype=np.int64) + offset] = np.array(cells, dtype=np.float64)
        columns[names[name]] = values
        attrs[names[name]] = {"long_name": name, "units": "1"}
    return columns, attrs
