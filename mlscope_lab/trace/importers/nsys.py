"""An SQLite export of Nsight Systems (``nsys export --type sqlite``) as a run.

A database is a program to whoever opens it carelessly. It is opened read-only and never written beside; views, virtual
tables, generated columns, functions and triggers of its own are never reached: only columns of plain tables are read,
and an authorizer refuses everything else. Tables and columns differ between versions; what is absent is left out and
named.

References
----------
Nsight Systems, "SQLite Schema Reference".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema
from mlscope_lab.trace.attribution import launches
from mlscope_lab.trace.importers.base import MAX_BYTES, Head, Importer
from mlscope_lab.trace.importers.texts import Texts
from mlscope_lab.trace.records import EventTable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NSYS"]

_INT = npt.NDArray[np.int64]
_Columns = dict[str, _INT]
_MAGIC = b"SQLite format 3\0"
_MOST_ROWS = 10_000_000
_MOST_TEXT = 256 << 20
_LONGEST_TEXT = 1 << 18
_LATEST_NS = 1 << 62
_PROCESS = ~0xFFFFFF
"""What of a global thread id names the process, as Nsight's own reports mask it."""
_COPIES = {
    0: "Unknown", 1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD", 9: "HtoH",
    10: "PtoP",
}  # fmt: skip
_SYNCHRONISATIONS = {1: "Event", 2: "Stream wait event", 3: "Stream", 4: "Context"}
_MARK, _RANGES = 34, (59, 60)
"""Kinds of NVTX events: a mark; ranges pushed and popped, and started and ended."""


class _Database:
    """The plain tables of an export."""

    def __init__(self, path: Path) -> None:
        # immutable: no lock, no journal and no write-ahead log of the database is looked for beside it
        self.path = path
        self.connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        self.tables: dict[str, str] = {}
        self.left = _MOST_ROWS
        try:
            self._restrict()
        except BaseException:
            self.connection.close()
            raise

    def _restrict(self) -> None:
        """Switch off whatever may run, then look which plain tables there are."""
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_TEXT)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1 << 20)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self.connection.execute("PRAGMA trusted_schema = OFF")
        self.connection.execute("PRAGMA cell_size_check = ON")
        self.connection.execute("PRAGMA mmap_size = 0")
        self.connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        self.connection.set_authorizer(_allowed)
        # a view cannot be told from a table by its name, and a virtual table has no page of its own
        rows = self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0")
        self.tables = {str(name).lower(): str(name) for (name,) in rows.fetchmany(5000)}

    def columns(self, table: str) -> dict[str, str]:
        """Return {lower-case name: name} of the stored columns of a table, {} if there is no such table."""
        if table.lower() not in self.tables:
            return {}
        # table_info names no generated columns, whose values would be computed
        rows = self.connection.execute(f"PRAGMA table_info({_quoted(self.tables[table.lower()])})").fetchmany(5000)
        return {str(row[1]).lower(): str(row[1]) for row in rows}

    def rows(self, table: str, wanted: Sequence[str], *, texts: bool = False) -> Iterator[list[tuple[Any, ...]]]:
        """Yield rows some at a time, fewer where they hold texts; a column that the table lacks is None."""
        known = self.columns(table)
        if not known:
            return
        chosen = ", ".join(_quoted(known[name.lower()]) if name.lower() in known else "NULL" for name in wanted)
        cursor = self.connection.execute(f"SELECT {chosen} FROM {_quoted(self.tables[table.lower()])}")  # noqa: S608
        # a crafted file may tell one long text in every row
        while part := cursor.fetchmany(400 if texts else 20_000):
            self.left -= len(part)
            if self.left < 0:
                raise InputError(f"{self.path} holds more than {_MOST_ROWS:,} events; profile a shorter range")
            yield part

    def integers(self, table: str, wanted: Sequence[str]) -> _Columns:
        """Return columns of integers, -1 where the table has none or nothing."""
        parts: dict[str, list[_INT]] = {name: [np.zeros(0, dtype=np.int64)] for name in wanted}
        for rows in self.rows(table, wanted):
            for name, values in zip(wanted, zip(*rows, strict=True), strict=True):
                parts[name].append(self._integers(values, table, name))
        return {name: np.concatenate(part) for name, part in parts.items()}

    def _integers(self, values: Sequence[Any], table: str, name: str) -> _INT:
        for value in values:
            if value is not None and type(value) is not int:
                raise InputError(f"{self.path}: column {name} of {table} holds {str(value)[:40]!r}, not an integer")
        return np.array([-1 if value is None else value for value in values], dtype=np.int64)

    def texts(self, table: str, key: str, text: str) -> dict[int, str]:
        """Return {key: text} of a small table."""
        found: dict[int, str] = {}
        room = _MOST_TEXT
        for rows in self.rows(table, (key, text), texts=True):
            for number, value in rows:
                if type(number) is int and isinstance(value, str):
                    room -= len(value)
                    if room < 0:
                        raise InputError(f"{self.path}: {table} holds more text than {_MOST_TEXT:,} characters")
                    found[number] = value
        return found


def _allowed(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """Allow reading, and asking for the columns of a table; nothing that came with the database may run."""
    if trigger is not None:  # the access comes from a view or a trigger
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_PRAGMA and first == "table_info"):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_OK if action == sqlite3.SQLITE_READ else sqlite3.SQLITE_DENY


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _codes(texts: Texts, numbers: _INT, name: Callable[[int], str]) -> npt.NDArray[np.int32]:
    """Return the codes of what numbers are called."""
    distinct, place = np.unique(numbers, return_inverse=True)
    return np.array([texts.code(name(number)) for number in distinct.tolist()], dtype=np.int32)[place]


class _Export:
    """What an export holds, by group."""

    def __init__(self, data: _Database) -> None:
        self.data = data
        self.dropped = 0
        self.strings = data.texts("StringIds", "id", "value")

    def _timed(self, table: str, wanted: Sequence[str]) -> _Columns:
        """Return columns of the rows that have a start and an end."""
        if table.lower() not in self.data.tables:
            return {}
        lacking = [name for name in ("start", "end") if name not in self.data.columns(table)]
        if lacking:
            raise InputError(f"{self.data.path}: {table} has no column {lacking[0]}; export it anew with nsys export")
        columns = self.data.integers(table, ("start", "end", *wanted))
        fits = (columns["start"] >= 0) & (columns["end"] >= columns["start"]) & (columns["end"] < _LATEST_NS)
        self.dropped += int((~fits).sum())
        kept = {name: values[fits] for name, values in columns.items()}
        return kept if len(kept["start"]) else {}

    def _string(self, number: int) -> str:
        return self.strings.get(number, f"string {number}" if number >= 0 else "unknown")

    def calls(self) -> tuple[EventTable, _INT, _INT] | None:
        """Return the calls, the process of each and its thread."""
        found = self._timed("CUPTI_ACTIVITY_KIND_RUNTIME", ("nameId", "correlationId", "globalTid", "eventClass"))
        if not found:
            return None
        names, threads, categories = Texts("names"), Texts("threads"), Texts("categories")
        columns: dict[str, npt.NDArray[Any]] = {
            # a version suffix tells how the function's arguments are laid out, which is nobody's matter here
            "name_code": _codes(names, found["nameId"], lambda n: self._string(n).partition("_v")[0]),
            "category_code": _codes(categories, found["eventClass"], _call_category),
            "thread_code": _codes(threads, found["globalTid"], _thread),
            "start_ns": found["start"],
            "duration_ns": found["end"] - found["start"],
            "correlation": found["correlationId"],
        }
        tables = {"name": names.table, "category": categories.table, "thread": threads.table}
        return EventTable(columns=columns, tables=tables), found["globalTid"] & _PROCESS, found["globalTid"]

    def kernels(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, tuple[str, ...]], _INT] | None:
        """Return columns, tables and the process of each piece of device work."""
        names, categories = Texts("names"), Texts("categories")
        parts: list[dict[str, npt.NDArray[Any]]] = []
        found = self._timed("CUPTI_ACTIVITY_KIND_KERNEL", (
            "demangledName", "shortName", "deviceId", "contextId", "streamId", "correlationId", "globalPid",
            "registersPerThread", "staticSharedMemory", "dynamicSharedMemory", "gridX", "gridY", "gridZ", "blockX",
            "blockY", "blockZ",
        ))  # fmt: skip
        if found:
            named = np.where(found["demangledName"] >= 0, found["demangledName"], found["shortName"])
            shared = np.maximum(found["staticSharedMemory"], 0) + np.maximum(found["dynamicSharedMemory"], 0)
            unknown = (found["staticSharedMemory"] < 0) & (found["dynamicSharedMemory"] < 0)
            parts.append(
                self._device(found, _codes(names, named, self._string), categories, "kernel")
                | {"registers": _small(found["registersPerThread"])}
                | {"shared_memory_bytes": np.where(unknown, -1, shared)}
                | {
                    f"{name}_{axis}": _small(found[f"{name}{axis.upper()}"])
                    for name in ("grid", "block")
                    for axis in "xyz"
                }
            )
        copies = self.data.texts("ENUM_CUDA_MEMCPY_OPER", "id", "label")
        for table, category, title in (
            ("CUPTI_ACTIVITY_KIND_MEMCPY", "gpu_memcpy", lambda n: f"Memcpy {_COPIES.get(n) or copies.get(n) or n}"),
            ("CUPTI_ACTIVITY_KIND_MEMSET", "gpu_memset", lambda n: "Memset"),
        ):
            found = self._timed(
                table, ("copyKind", "deviceId", "contextId", "streamId", "correlationId", "globalPid", "bytes")
            )
            if found:
                part = self._device(found, _codes(names, found["copyKind"], title), categories, category)
                parts.append(part | {"size_bytes": found["bytes"]})
        if not parts:
            return None
        lengths = [len(part["start_ns"]) for part in parts]
        every = list(dict.fromkeys(name for part in parts for name in part))
        columns = {
            name: np.concatenate([
                part.get(name, np.full(length, -1, dtype=np.int64)) for part, length in zip(parts, lengths, strict=True)
            ])
            for name in every
        }  # fmt: skip
        order = np.argsort(columns["start_ns"], kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        return columns, {"name": names.table, "category": categories.table}, columns.pop("process")

    def _device(
        self, found: _Columns, names: npt.NDArray[np.int32], categories: Texts, category: str
    ) -> dict[str, npt.NDArray[Any]]:
        return {
            "name_code": names,
            "category_code": _codes(categories, np.zeros(len(names), dtype=np.int64), lambda _: category),
            "start_ns": found["start"],
            "duration_ns": found["end"] - found["start"],
            "device": _small(found["deviceId"]),
            "context": found["contextId"],
            "stream": _small(found["streamId"]),
            "correlation": found["correlationId"],
            "process": found["globalPid"] & _PROCESS,
        }

    def annotations(self) -> EventTable | None:
        """Return NVTX ranges and marks, and what waited for the device."""
        names, categories, threads = Texts("names"), Texts("categories"), Texts("threads")
        parts: list[dict[str, npt.NDArray[Any]]] = []
        found = self._ranges(names)
        if found:
            parts.append(found | {
                "category_code": _codes(categories, found["kind"], lambda n: "nvtx_mark" if n == _MARK else "nvtx"),
                "thread_code": _codes(threads, found["thread"], _thread),
            })  # fmt: skip
        waits = self._timed("CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", ("syncType", "streamId", "globalPid"))
        if waits:
            kinds = self.data.texts("ENUM_CUPTI_SYNC_TYPE", "id", "label")
            parts.append({
                "name_code": _codes(names,
                    waits["syncType"], lambda n: f"{_SYNCHRONISATIONS.get(n) or kinds.get(n) or n} synchronization"
                ),
                "category_code": _codes(categories, np.zeros(len(waits["start"]), np.int64), lambda _: "cuda_sync"),
                "thread_code": np.full(len(waits["start"]), -1, dtype=np.int32),
                "start_ns": waits["start"],
                "duration_ns": waits["end"] - waits["start"],
            })  # fmt: skip
        if not parts:
            return None
        kept = ("name_code", "category_code", "thread_code", "start_ns", "duration_ns")
        columns = {name: np.concatenate([part[name] for part in parts]) for name in kept}
        order = np.argsort(columns["start_ns"], kind="stable")
        return EventTable(
            columns={name: values[order] for name, values in columns.items()},
            tables={"name": names.table, "category": categories.table, "thread": threads.table},
        )

    def _ranges(self, names: Texts) -> dict[str, npt.NDArray[Any]]:
        """Return NVTX events; their text is in the row, or a number of StringIds."""
        wanted = ("start", "end", "eventType", "textId", "globalTid", "text")
        starts, ends, kinds, threads, codes = [], [], [], [], []
        for rows in self.data.rows("NVTX_EVENTS", wanted, texts=True):
            for start, end, kind, number, thread, text in rows:
                if kind is not None and kind not in {_MARK, *_RANGES}:
                    continue  # names of categories and domains
                finish = start if end is None and kind == _MARK else end
                if type(start) is not int or type(finish) is not int or not 0 <= start <= finish < _LATEST_NS:
                    self.dropped += 1  # a range that never ended
                    continue
                name = text if isinstance(text, str) else self._string(number if type(number) is int else -1)
                codes.append(names.code(name))
                starts.append(start)
                ends.append(finish)
                kinds.append(kind if type(kind) is int else _RANGES[0])
                threads.append(thread if type(thread) is int else -1)
        if not starts:
            return {}
        start_ns = np.array(starts, dtype=np.int64)
        return {
            "name_code": np.array(codes, dtype=np.int32),
            "start_ns": start_ns,
            "duration_ns": np.array(ends, dtype=np.int64) - start_ns,
            "kind": np.array(kinds, dtype=np.int64),
            "thread": np.array(threads, dtype=np.int64),
        }


def _launches(work: _INT, of_work: _INT, call: _INT, of_call: _INT) -> npt.NDArray[np.int32]:
    """Return the call of each piece of work; the same correlation in another process is another launch."""
    found = np.full(len(work), -1, dtype=np.int32)
    told = len(of_work) and len(of_call) and min(int(of_work.min()), int(of_call.min())) >= 0
    for pid in np.unique(of_work).tolist() if told else [None]:
        mine = np.flatnonzero(of_work == pid) if pid is not None else np.arange(len(work))
        theirs = np.flatnonzero(of_call == pid) if pid is not None else np.arange(len(call))
        found[mine] = np.append(theirs, -1)[launches(work[mine], call[theirs])]
    return found


def _small(values: _INT) -> npt.NDArray[np.int32]:
    """Return values as int32; what does not fit is not known."""
    return np.where(np.abs(values) < 2**31, values, -1).astype(np.int32)


def _call_category(event_class: int) -> str:
    return "cuda_driver" if event_class == 1 else "cuda_runtime"


def _thread(number: int) -> str:
    """Return ``process/thread`` of a global thread id."""
    return f"{(number >> 24) & 0xFFFFFF}/{number & 0xFFFFFF}" if number >= 0 else "unknown"


def _load(
    path: Path, *, max_bytes: int = MAX_BYTES, progress: Callable[[int, int | None], None] | None = None
) -> xr.DataTree:
    """Read an export; see `mlscope_lab.trace.importers.base.Importer`."""
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(f"{path} holds {size:,} bytes, more than {max_bytes:,}; if that is meant, raise max_bytes")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path} is no SQLite database; convert a report with: nsys export --type sqlite FILE")
    try:
        data = _Database(path)
        with closing(data.connection):
            run = _run(path, data)
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged, or not an export of Nsight Systems: {error}") from error
    if progress is not None:
        progress(size, size)
    return run


def _run(path: Path, data: _Database) -> xr.DataTree:
    from mlscope_lab.trace.build import build_imported

    export = _Export(data)
    calls, kernels, notes = export.calls(), export.kernels(), export.annotations()
    if calls is None and kernels is None and notes is None:
        raise InputError(
            f"{path} holds none of CUPTI_ACTIVITY_KIND_KERNEL, _MEMCPY, _RUNTIME and NVTX_EVENTS; profile with "
            "nsys profile --trace=cuda,nvtx"
        )
    events: dict[str, EventTable] = {}
    if notes is not None:
        events[schema.ANNOTATIONS] = notes
    if calls is not None:
        events[schema.RUNTIME] = calls[0]
    if kernels is not None:
        columns, tables, process = kernels
        launch = np.full(len(process), -1, dtype=np.int32)
        if calls is not None:
            launch = _launches(columns["correlation"], process, calls[0].columns["correlation"], calls[1])
        events[schema.KERNELS] = EventTable(columns=columns | {"runtime_index": launch}, tables=tables)
        known = np.flatnonzero(launch >= 0)
        if len(known):
            events[schema.LINKS] = EventTable(
                columns={"kind_code": np.zeros(len(known), np.int32), "source_index": launch[known],
                         "target_index": known.astype(np.int32)},
                tables={"kind": ("launch",)},
            )  # fmt: skip
    timed = [table.columns for name, table in events.items() if name != schema.LINKS]
    start = min(int(c["start_ns"].min()) for c in timed)
    end = max(int((c["start_ns"] + c["duration_ns"]).max()) for c in timed)
    gpus = data.texts("TARGET_INFO_GPU", "id", "name")
    began = data.integers("TARGET_INFO_SESSION_START_TIME", ("utcEpochNs",))["utcEpochNs"]
    unavailable = {
        "latency": "a profile holds traced work only",
        "layers": "Nsight Systems does not tell layers; name them with NVTX ranges",
        "operators": "Nsight Systems does not tell a framework's operators",
    }
    warnings = [f"{export.dropped} events without a start or an end were left out"] if export.dropped else []
    return build_imported(
        attrs={
            "model": path.name,
            "backend": "nsight-systems",
            "source_format": "nsys",
            "device": "cuda",
            "clock_anchor_unix_ns": int(began[0]) if len(began) == 1 and 0 < began[0] < _LATEST_NS else 0,
            "environment": {"gpus": list(gpus.values())} if gpus else {},
            "warnings": warnings,
            "unavailable": unavailable,
        },
        events=events,
        anchor_ns=start,
        wall_ns=end - start,
        level="kernel",
        dropped_events=export.dropped,
    )


def _recognises(head: Head) -> bool:
    return head.data.startswith(_MAGIC) and not head.compressed


NSYS = Importer(title="SQLite export of Nsight Systems", recognises=_recognises, load=_load)
