"""Events of a trace in Chrome's format, sorted by what they tell and turned into columns block by block.

Objects of a block live until the block is done; what stays is numpy arrays, and one copy of each distinct text.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers.chrome_events import (
    NOTHING,
    Arguments,
    Event,
    event_texts,
    lenient_event,
    plain_arguments,
    typed_events,
)
from mlscope_lab.trace.importers.decimal_ns import to_ns

__all__ = ["Codes", "Intake", "Table", "group_of"]

_MAX_TEXT_BYTES = 128 << 20
_MAX_TITLES = 10_000
_MAX_TITLE = 200
_MAX_COUNTERS = 256
_NO_ARGUMENTS = Arguments()
_GROUPS = {
    "kernel": "kernels", "gpu_memcpy": "kernels", "gpu_memset": "kernels", "Kernel": "kernels", "Memcpy": "kernels",
    "Memset": "kernels", "concurrent_kernel": "kernels",
    "cuda_runtime": "runtime", "cuda_driver": "runtime", "cuda_sync": "runtime", "Runtime": "runtime",
    "hip_runtime": "runtime", "xpu_runtime": "runtime", "xpu_driver": "runtime", "privateuse1_runtime": "runtime",
    "privateuse1_driver": "runtime", "mtia_runtime": "runtime",
    "user_annotation": "annotations", "gpu_user_annotation": "annotations", "Trace": "annotations",
    "overhead": "annotations",
    "cuda_profiler_range": "counters",
}  # fmt: skip
"""What a complete event of a category is; any other category is an operator's."""


def group_of(category: str) -> str:
    """Return the group of complete events of a category."""
    return _GROUPS.get(category, "operators")


class Codes(dict[Any, int]):
    """Codes of distinct texts, or tuples of them, in order of first appearance.

    Parameters
    ----------
    what
        What they are, for the message when they are too many.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._left = _MAX_TEXT_BYTES

    def __missing__(self, text: Any) -> int:
        parts = text if isinstance(text, tuple) else (text,)
        self._left -= 100 + sum(len(part) for part in parts if isinstance(part, str | bytes))
        if self._left < 0:
            raise InputError(
                f"The trace holds too many distinct {self._what} ({len(self)}) to number them; "
                "leave what makes them differ out of the recording"
            )
        code = self[text] = len(self)
        return code


class _Threads(dict[Any, "_OfProcess"]):
    """Codes of threads by process and thread: two look-ups cost half of what making a pair for each event does."""

    def __init__(self, tracks: Codes) -> None:
        super().__init__()
        self._tracks = tracks

    def __missing__(self, process: Any) -> _OfProcess:
        found = self[process] = _OfProcess(process, self._tracks)
        return found


class _OfProcess(dict[Any, int]):
    def __init__(self, process: Any, tracks: Codes) -> None:
        super().__init__()
        self._process, self._tracks = process, tracks

    def __missing__(self, thread: Any) -> int:
        code = self[thread] = self._tracks[self._process, thread]
        return code


class Table:
    """Columns that grow block by block."""

    def __init__(self) -> None:
        self._parts: dict[str, list[npt.NDArray[Any]]] = {}
        self.rows = 0

    def add(self, columns: dict[str, npt.NDArray[Any]], keep: npt.NDArray[np.bool_] | None) -> None:
        """Append rows, those that `keep` marks if it is given."""
        count = 0
        for name, values in columns.items():
            kept = values if keep is None else values[keep]
            self._parts.setdefault(name, []).append(kept)
            count = len(kept)
        self.rows += count

    def take(self, name: str) -> npt.NDArray[Any]:
        """Return a whole column and forget it."""
        parts = self._parts.pop(name, [])
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def names(self) -> list[str]:
        """Return the names of the columns that are left."""
        return list(self._parts)


class Intake:
    """Takes events in and counts what cannot be taken.

    Parameters
    ----------
    max_events
        The most events to take.

    Attributes
    ----------
    tables
        {"operators", "runtime", "kernels", "annotations", "counters", "instants", "series", "begins", "flows",
        "memory"}: a table for each kind of event. Times are the trace's own, ns; ``track`` is a code of `tracks`.
    names, categories, tracks, shapes
        Codes of names, categories, (process, thread) and (dimensions, types).
    cells
        {table: {argument: (rows, values)}} of "counters" and "series", whose numeric arguments are values.
    titles
        (process, thread, what the trace calls it); the thread is None for what it calls the process itself.
    events
        Objects seen.
    dropped
        Objects that could not be read, by reason.
    left_out
        Events of kinds that a run has no place for, by phase.
    uncommon_times
        Times that were quoted, had an exponent or more than three decimals.
    """

    def __init__(self, *, max_events: int = 1 << 24) -> None:
        self._max_events = max_events
        kinds = ("operators", "runtime", "kernels", "annotations", "counters", "instants", "series", "begins", "flows",
                 "memory")  # fmt: skip
        self.tables = {kind: Table() for kind in kinds}
        self.names, self.categories = Codes("names"), Codes("categories")
        self.tracks, self.shapes = Codes("threads"), Codes("shapes")
        self.identities = Codes("identifiers")
        self._threads = _Threads(self.tracks)
        self.cells: dict[str, dict[str, tuple[array[int], array[float]]]] = {"counters": {}, "series": {}}
        self.titles: list[tuple[Any, Any, str]] = []
        self.events = 0
        self.dropped: dict[str, int] = {}
        self.left_out: dict[str, int] = {}
        self.uncommon_times = 0

    def take_text(self, text: memoryview) -> bool:
        """Take the events in the text of a list; False, with nothing taken, if it does not parse."""
        found = typed_events(text)
        if found is None:
            return False
        events, whole = found
        rows: list[Any] = []

        def text_of(row: int) -> bytes:
            if not rows:
                rows.extend(event_texts(whole))
            return bytes(rows[row])

        self._take(events, text_of)
        return True

    def take_each(self, texts: list[bytes]) -> None:
        """Take the elements of a list of events, any of which may be malformed."""
        events, whole = [], []
        for text in texts:
            event = lenient_event(text)
            if event is None:
                self.events += 1
                self.drop("are no JSON objects")
            else:
                events.append(event)
                whole.append(text)
        self._take(events, whole.__getitem__)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count objects that could not be read."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _take(self, events: list[Event], text_of: Callable[[int], bytes]) -> None:
        self.events += len(events)
        if self.events > self._max_events:
            raise InputError(
                f"The trace holds more than {self._max_events:,} events; record fewer steps, or allow more with "
                "max_bytes="
            )
        sorted_: dict[str, list[Event]] = {}
        given: dict[str, list[dict[str, Any]]] = {}
        complete: dict[str, Callable[[Event], None]] = {}
        flows: list[Event] = []
        for row, event in enumerate(events):
            phase = event.ph
            if phase == "X":
                try:
                    complete[event.cat](event)
                except KeyError:
                    kind = group_of(event.cat)
                    sorted_.setdefault(kind, []).append(event)
                    if kind in _WITH_VALUES:
                        given.setdefault(kind, []).append(plain_arguments(text_of(row)))
                    else:
                        complete[event.cat] = sorted_[kind].append
            elif phase in _FLOWS:
                flows.append(event)
            elif phase == "M":
                self._title(event, text_of(row))
            elif kind := self._kind(event):
                sorted_.setdefault(kind, []).append(event)
                if kind in _WITH_VALUES:
                    given.setdefault(kind, []).append(plain_arguments(text_of(row)))
        if flows:
            sorted_["flows"] = flows
        for kind, found in sorted_.items():
            self._add(kind, found, given.get(kind, []))

    def _title(self, event: Event, text: bytes) -> None:
        """Keep what a metadata event calls its process or thread."""
        if event.name not in {"process_name", "thread_name"} or len(self.titles) >= _MAX_TITLES:
            return
        title = plain_arguments(text).get("name")
        if isinstance(title, str) and len(str(event.pid)) + len(str(event.tid)) < _MAX_TITLE:
            thread = event.tid if event.name == "thread_name" else None
            self.titles.append((event.pid, thread, title.strip()[:_MAX_TITLE]))

    def _kind(self, event: Event) -> str:
        """Return the table of an event that is no complete one, "" for none; count those."""
        kind = _PHASES.get(event.ph, "")
        if kind == "instants" and event.name == "[memory]":
            return "memory"
        if kind == "series" and event.cat == "mlscope_memory":
            return ""  # a trace that was exported here draws its memory events so, too
        if not event.ph:
            self.drop("have no phase")
        elif not kind:
            phase = event.ph[:20]
            if phase in self.left_out or len(self.left_out) < 50:
                self.left_out[phase] = self.left_out.get(phase, 0) + 1
        return kind

    def _add(self, kind: str, events: list[Event], given: list[dict[str, Any]]) -> None:
        """Append events of one kind to their table, with all arguments where they are values."""
        names, categories, threads = self.names, self.categories, self._threads
        columns: dict[str, npt.NDArray[Any]] = {
            "track": np.array([threads[e.pid][e.tid] for e in events], dtype=np.int32)
        }
        times, keep = self._times([e.ts for e in events], "have no readable time")
        columns["start_ns"] = times
        if kind in _WITH_DURATION:
            durations, readable = self._times([e.dur for e in events], "have no readable duration")
            keep = _both(keep, readable)
            if len(durations) and int(durations.min()) < 0:
                positive = durations >= 0
                self.drop("have a negative duration", int((~positive).sum()))
                keep = _both(keep, positive)
            columns["duration_ns"] = durations
        if kind == "flows":
            columns["phase"] = np.array([_FLOWS[e.ph] for e in events], dtype=np.int8)
            columns["identity"] = self._identities([e.id for e in events])
            columns["category_code"] = np.array([categories[e.cat or e.name] for e in events], dtype=np.int32)
        else:
            columns["name_code"] = np.array([names[e.name] for e in events], dtype=np.int32)
            columns["category_code"] = np.array([categories[e.cat] for e in events], dtype=np.int32)
        if kind == "begins":
            columns["opens"] = np.array([e.ph == "B" for e in events], dtype=np.bool_)
        elif kind in {"operators", "runtime", "kernels"}:
            self._arguments(kind, [e.args or _NO_ARGUMENTS for e in events], columns)
        elif kind == "memory":
            for name, key in _MEMORY.items():
                columns[name] = _integers([row.get(key, -1) for row in given])
        elif kind in self.cells:
            kept = given if keep is None else [row for row, good in zip(given, keep.tolist(), strict=True) if good]
            self._values(kind, kept)
        self.tables[kind].add(columns, keep)

    def _values(self, kind: str, given: list[dict[str, Any]]) -> None:
        """Append the numeric arguments of the rows that come next."""
        cells = self.cells[kind]
        for row, arguments in enumerate(given, start=self.tables[kind].rows):
            for name, value in arguments.items():
                if isinstance(value, bool | str):
                    continue
                if name not in cells:
                    if len(cells) >= _MAX_COUNTERS:
                        self.drop(f"have more than {_MAX_COUNTERS} counters")
                        continue
                    cells[name] = array("q"), array("d")
                try:
                    cells[name][1].append(value)
                except OverflowError:
                    continue
                cells[name][0].append(row)

    def _arguments(self, kind: str, given: list[Arguments], columns: dict[str, npt.NDArray[Any]]) -> None:
        if kind == "operators":
            columns["correlation"] = _integers([a.external for a in given])
            columns["sequence"] = _integers([a.sequence for a in given])
            columns["shapes_code"] = np.array(
                [-1 if a.dims is NOTHING else self.shapes[bytes(a.dims), bytes(a.types)] for a in given],
                dtype=np.int32,
            )
            return
        columns["correlation"] = _integers([a.correlation for a in given])
        if kind == "runtime":
            return
        columns["device"] = _integers([a.device for a in given], np.int32)
        columns["stream"] = _integers([a.stream for a in given], np.int32)
        columns["context"] = _integers([a.context for a in given])
        columns["registers"] = _integers([a.registers for a in given], np.int32)
        columns["shared_memory_bytes"] = _integers([a.shared_memory for a in given])
        columns["size_bytes"] = _integers([a.bytes for a in given])
        columns["occupancy"] = np.array([np.nan if a.occupancy is None else a.occupancy / 100 for a in given])
        for name in ("grid", "block"):
            triples = [getattr(a, name) or () for a in given]
            for axis, letter in enumerate("xyz"):
                values = [t[axis] if len(t) > axis else -1 for t in triples]
                columns[f"{name}_{letter}"] = _integers(values, np.int32)

    def _times(self, raws: list[Any], reason: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
        text = b"\n".join(raws) + b"\n"
        if text.count(b"\n") != len(raws):  # a list or an object instead of a number
            text = b"\n".join(raw if b"\n" not in raw else b"" for raw in map(bytes, raws)) + b"\n"
        values, bad, uncommon = to_ns(text)
        self.uncommon_times += uncommon
        if bad is None:
            return values, None
        self.drop(reason, int(bad.sum()))
        return values, ~bad

    def _identities(self, given: list[Any]) -> npt.NDArray[np.int64]:
        """Return identifiers as numbers: numbers as they are, texts numbered from -2 downwards."""
        try:
            return np.array(given, dtype=np.int64)
        except (OverflowError, TypeError, ValueError):
            small = (i if isinstance(i, int) and -1 <= i < 1 << 62 else -2 - self.identities[str(i)] for i in given)
            return np.fromiter(small, dtype=np.int64, count=len(given))


_FLOWS = {"s": 0, "t": 1, "f": 2}
_PHASES = {"B": "begins", "E": "begins", "C": "series", "i": "instants",
           "I": "instants", "R": "instants"}  # fmt: skip
_MEMORY = {"bytes": "Bytes", "allocated_bytes": "Total Allocated", "reserved_bytes": "Total Reserved",
           "address": "Addr", "device_type": "Device Type", "device": "Device Id"}  # fmt: skip
_WITH_VALUES = frozenset({"counters", "series", "memory"})
_WITH_DURATION = frozenset({"operators", "runtime", "kernels", "annotations", "counters"})


def _both(first: npt.NDArray[np.bool_] | None, second: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _integers(given: list[Any], dtype: type[np.integer[Any]] = np.int64) -> npt.NDArray[Any]:
    """Return whole numbers, -1 for what is none or does not fit."""
    try:
        values = np.array(given, dtype=np.int64)
    except (OverflowError, TypeError, ValueError):
        values = np.array([_integer(item) for item in given], dtype=np.int64)
    if dtype is np.int64:
        return values
    limits = np.iinfo(dtype)
    if len(values) and not (limits.min <= int(values.min()) and int(values.max()) <= limits.max):
        values = np.where((values >= limits.min) & (values <= limits.max), values, -1)
    return values.astype(dtype)


def _integer(item: Any) -> int:
    if isinstance(item, str):
        digits = item.rpartition(" ")[2]  # "stream 7"
        item = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1
    if isinstance(item, float):
        item = int(item) if item.is_integer() else -1
    return item if isinstance(item, int) and -(1 << 63) <= item < 1 << 63 else -1
