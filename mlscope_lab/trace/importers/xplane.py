"""An XPlane profile of TensorFlow or JAX as a run: host threads as operators, device streams as kernels."""

from __future__ import annotations

import contextlib
import gzip
import mmap
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema
from mlscope_lab.trace.attribution import enclosing, iteration_at, launches, nest
from mlscope_lab.trace.importers.base import MAX_BYTES, Head, Importer
from mlscope_lab.trace.importers.texts import Texts
from mlscope_lab.trace.importers.xspace import Line, Plane, Statistics, WireError, planes_of
from mlscope_lab.trace.records import EventTable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["XPLANE"]

_INT = npt.NDArray[np.int64]
_LARGEST = 2 << 30
"""Bytes: protobuf itself writes no larger message."""
_NUMBERS = frozenset({"step_num", "correlation_id", "context_id", "profile_start_time"})
_TEXTS = frozenset({"kernel_details", "memcpy_details", "memset_details"})
_DEVICE = re.compile(r"/device:(?:[A-Z_]+):(\d{1,6})")
# lines that a profiler derives from others: counting them would count the same time twice
_DERIVED = frozenset({
    "Steps", "XLA Modules", "XLA Ops", "XLA TraceMe", "TensorFlow Ops", "TensorFlow Name Scope", "Framework Ops",
    "Framework Name Scope", "Source code", "Source", "Launch Stats", "Sparse Core Steps",
})  # fmt: skip
_DETAIL = re.compile(r"(\w+):(\d{1,18}(?:,\d{1,18}){0,2})")
_LATEST_NS = 1 << 62


class _Group:
    """Events of one group, line by line."""

    def __init__(self) -> None:
        self.parts: dict[str, list[npt.NDArray[Any]]] = {}
        self.texts: dict[str, Texts] = {}

    def add(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        for name, values in columns.items():
            self.parts.setdefault(name, []).append(values)

    def codes(self, table: str, names: list[str]) -> npt.NDArray[np.int32]:
        texts = self.texts.setdefault(table, Texts(f"{table}s"))
        return np.array([texts.code(name) for name in names], dtype=np.int32)

    def column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.parts.get(name, [])])

    def __len__(self) -> int:
        return sum(map(len, self.parts.get("start_ns", [])))

    def table(self, **more: npt.NDArray[Any]) -> EventTable:
        columns = {name: self.column(name) for name in self.parts if name != "track"} | more
        small = {name: v.astype(np.int32) for name, v in columns.items() if name.endswith(("_code", "_index"))}
        return EventTable(columns=columns | small, tables={name: texts.table for name, texts in self.texts.items()})


class _Profile:
    """What the planes hold, by group."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.groups = {
            name: _Group() for name in (schema.OPERATORS, schema.RUNTIME, schema.KERNELS, schema.ANNOTATIONS)
        }
        self.ignored: dict[str, int] = {}
        self.dropped = 0
        self.started_ns = 0

    def read(self, plane: Plane) -> None:
        began = plane.stats.get("profile_start_time", 0)
        if not self.started_ns and isinstance(began, int) and 0 < began < _LATEST_NS:
            self.started_ns = began
        device = _DEVICE.match(plane.name)
        if device is not None:
            self._device(plane, int(device[1]))
        elif plane.name in {"/host:CUPTI", "/host:ROCTRACER"}:
            for line in plane.lines:
                self._runtime(plane, line)
        elif plane.name == "/host:python-tracer":
            for line in plane.lines:
                self._add(schema.ANNOTATIONS, plane, line, lambda key: (plane.events.get(key, ""), "python"))
        elif plane.name.startswith("/host:CPU"):
            for line in plane.lines:
                self._host(plane, line)
        elif events := sum(len(line.metadata) for line in plane.lines):
            self.ignored[plane.name] = self.ignored.get(plane.name, 0) + events

    def _times(self, line: Line) -> tuple[_INT, _INT, npt.NDArray[np.intp]]:
        """Return start, duration (ns) and rows of the events that have possible times."""
        offset = np.array(line.offset_ps, dtype=np.int64)
        duration = np.array(line.duration_ps, dtype=np.int64)
        fits = (duration >= 0) & (np.abs(offset) < _LATEST_NS) & (duration < _LATEST_NS)
        fits &= abs(line.timestamp_ns) < _LATEST_NS // 2
        rows = np.flatnonzero(fits)
        self.dropped += len(fits) - len(rows)
        offset, duration = offset[rows], duration[rows]
        # start and end are rounded, not the duration, so that what lies inside stays inside
        start, end = _rounded(offset), _rounded(offset + duration)
        return start + line.timestamp_ns, end - start, rows

    def _add(
        self, group: str, plane: Plane, line: Line, describe: Callable[[int], tuple[str, str]],
        keep: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.intp]:  # fmt: skip
        """Add a line's events and return their rows in it."""
        start, duration, rows = self._times(line)
        if keep is not None:
            kept = keep[rows]
            start, duration, rows = start[kept], duration[kept], rows[kept]
        target = self.groups[group]
        keys, place = np.unique(np.array(line.metadata, dtype=np.int64)[rows], return_inverse=True)
        described = [describe(key) for key in keys.tolist()]
        columns: dict[str, npt.NDArray[Any]] = {
            "name_code": target.codes("name", [name for name, _ in described])[place],
            "category_code": target.codes("category", [category for _, category in described])[place],
            "start_ns": start,
            "duration_ns": duration,
        }
        if group != schema.KERNELS:
            thread = target.codes("thread", [line.name or str(line.id)])
            columns |= {"thread_code": np.repeat(thread, len(rows)), "track": np.full(len(rows), line.id, np.int64)}
        target.add(columns)
        return rows

    def _host(self, plane: Plane, line: Line) -> None:
        steps = np.array(line.column("step_num"), dtype=np.int64) >= 0
        if steps.any():
            self._add(schema.ANNOTATIONS, plane, line, lambda key: (plane.events.get(key, ""), "step"), steps)
        rows = self._add(schema.OPERATORS, plane, line, lambda key: _operator(plane, key), ~steps)
        target = self.groups[schema.OPERATORS]
        keys, place = np.unique(np.array(line.metadata, dtype=np.int64)[rows], return_inverse=True)
        target.add({"type_code": target.codes("type", [plane.labels.get(key, "") for key in keys.tolist()])[place]})

    def _runtime(self, plane: Plane, line: Line) -> None:
        rows = self._add(schema.RUNTIME, plane, line, lambda key: (plane.events.get(key, ""), "cuda_runtime"))
        self.groups[schema.RUNTIME].add({"correlation": _stat(line, rows, "correlation_id")})

    def _device(self, plane: Plane, device: int) -> None:
        streams = [line for line in plane.lines if line.name.startswith("Stream")]
        if not streams:  # of a TPU the operations themselves are the only lines that are not derived
            operations = [line for line in plane.lines if line.name in {"XLA Ops", "Async XLA Ops"}]
            streams = operations or [line for line in plane.lines if line.name not in _DERIVED]
        for number, line in enumerate(streams):
            rows = self._add(schema.KERNELS, plane, line, lambda key: (plane.events.get(key, ""), "kernel"))
            stream = re.search(r"#(\d{1,9})", line.name)
            details = self._details(plane, line, rows)
            target = self.groups[schema.KERNELS]
            copies = details.pop("kind")
            kinds = target.codes("category", ["kernel", "gpu_memcpy"])
            target.parts["category_code"][-1] = kinds[(copies >= 0).astype(np.intp)]
            target.add({
                "device": np.full(len(rows), device, dtype=np.int32),
                "stream": np.full(len(rows), int(stream[1]) if stream else number, dtype=np.int32),
                "correlation": _stat(line, rows, "correlation_id"),
                "context": _stat(line, rows, "context_id"),
                **details,
            })  # fmt: skip

    def _details(self, plane: Plane, line: Line, rows: npt.NDArray[np.intp]) -> dict[str, npt.NDArray[Any]]:
        """Return what the texts of kernels and copies say, a column each; each text is read once."""
        told = [np.array(line.texts.get(name, ()), dtype=np.int64) for name in sorted(_TEXTS)]
        codes = [column[rows] if len(column) else np.full(len(rows), -1) for column in told]
        keys = np.stack([np.array(line.metadata, dtype=np.int64)[rows], *codes], axis=1)
        distinct, place = np.unique(keys, axis=0, return_inverse=True)
        texts = (*self.statistics.table.table, "")
        found = []
        for key, *numbers in distinct.tolist():
            shared = plane.details.get(key, {})
            words = (str(texts[n] or shared.get(name, "")) for n, name in zip(numbers, sorted(_TEXTS), strict=True))
            found.append(_details(*words))
        return {
            name: np.array([one.get(name, -1) for one in found], dtype=dtype)[place.reshape(-1)]
            for name, dtype in (*_DETAILS.items(), ("kind", np.int64))
        }


_DETAILS = {
    "registers": np.int32, "shared_memory_bytes": np.int64, "grid_x": np.int32, "grid_y": np.int32,
    "grid_z": np.int32, "block_x": np.int32, "block_y": np.int32, "block_z": np.int32, "size_bytes": np.int64,
}  # fmt: skip


def _rounded(picoseconds: _INT) -> _INT:
    """Return ns, halves to even."""
    whole, rest = picoseconds // 1000, picoseconds % 1000
    up: _INT = whole + ((rest > 500) | ((rest == 500) & (whole % 2 == 1)))
    return up


def _operator(plane: Plane, key: int) -> tuple[str, str]:
    """Return name and category of a host event: an operation is called ``node:Type`` and shown as ``Type``."""
    name, label = plane.events.get(key, ""), plane.labels.get(key, "")
    if label and name.endswith(f":{label}"):
        return name[: -len(label) - 1], "tf_op"
    if name.startswith("$"):  # a call of Python's, as "$file.py:12 function"
        return name[1:], "python_function"
    return name, "host"


def _stat(line: Line, rows: npt.NDArray[np.intp], name: str) -> _INT:
    values = np.array(line.column(name), dtype=np.int64)[rows]
    return np.where(values >= 0, values, -1)


def _details(kernel: str, copied: str, filled: str) -> dict[str, int]:
    """Return what a kernel's or a copy's text says: ``regs:32 static_shared:0 grid:1,1,1`` or ``kind:HtoD size:64``."""
    found: dict[str, int] = {}
    for name, value in _DETAIL.findall(kernel):
        numbers = [min(int(v), 2**31 - 1) for v in value.split(",")]
        if name == "regs":
            found["registers"] = numbers[0]
        elif name in {"static_shared", "dynamic_shared"}:
            found["shared_memory_bytes"] = found.get("shared_memory_bytes", 0) + numbers[0]
        elif name in {"grid", "block"} and len(numbers) == 3:
            found |= {f"{name}_{axis}": number for axis, number in zip("xyz", numbers, strict=True)}
    if copied or filled:
        size = re.search(r"(?:size|num_bytes):(\d{1,18})", copied or filled)
        found |= {"kind": 0, "size_bytes": int(size[1]) if size else -1}
    return found


@contextlib.contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[mmap.mmap | bytes]:
    """Map a file, decompressed if it is gzip."""
    limit = min(max_bytes, _LARGEST)
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if file.read(2) == b"\x1f\x8b":
            plain = stack.enter_context(tempfile.TemporaryFile())
            with gzip.open(path) as packed:
                shutil.copyfileobj(_Limited(packed, limit, path), plain)
            plain.flush()
            file = plain
        size = file.seek(0, 2)
        if size > limit:
            raise InputError(f"{path} holds {size:,} bytes, more than {limit:,}; profile fewer steps")
        yield stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else b""


class _Limited:
    """A stream that refuses to give more than it may."""

    def __init__(self, stream: Any, limit: int, path: Path) -> None:
        self.stream, self.left, self.path = stream, limit, path

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.stream.read(min(size, 1 << 20) if size >= 0 else 1 << 20)
        self.left -= len(data)
        if self.left < 0:
            raise InputError(f"{self.path} holds more bytes than are allowed once decompressed")
        return data


def _file(path: Path) -> Path:
    """Return the profile that a path names: a file, or a folder that TensorFlow wrote."""
    if path.is_file():
        return path
    found = sorted(path.rglob("*.xplane.pb"))
    if not found:
        raise InputError(f"{path} holds no .xplane.pb file; tf.profiler writes it to LOGDIR/plugins/profile/TIME/")
    newest = max(file.parent for file in found)
    latest = [file for file in found if file.parent == newest]
    if len(latest) > 1:
        names = ", ".join(file.name for file in latest[:5])
        raise InputError(f"{newest} holds profiles of {len(latest)} hosts ({names}, ...); import them one by one")
    return latest[0]


def _load(
    path: Path, *, max_bytes: int = MAX_BYTES, progress: Callable[[int, int | None], None] | None = None
) -> xr.DataTree:
    """Read a profile; see `mlscope_lab.trace.importers.base.Importer`."""
    from mlscope_lab.trace.build import build_imported

    file = _file(path)
    statistics = Statistics(_NUMBERS, _TEXTS)
    found = _Profile(statistics)
    try:
        with _opened(file, max_bytes) as data:
            planes, notes = planes_of(data, statistics)
            if progress is not None:
                progress(len(data), len(data))
    except (WireError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is not an XPlane profile, or was cut off: {error}") from error
    for plane in planes:
        found.read(plane)
    sizes = {name: len(group) for name, group in found.groups.items()}
    if not any(sizes.values()):
        raise InputError(
            f"{file} holds no events of a host or a device (planes: "
            f"{', '.join(p.name for p in planes[:10]) or 'none'}); trace at least one step"
        )
    warnings = [*notes, *(f"{n} events of the plane {name} were left out" for name, n in found.ignored.items())]
    filled = [group for group in found.groups.values() if len(group)]
    start = min(int(group.column("start_ns").min()) for group in filled)
    end = max(int((group.column("start_ns") + group.column("duration_ns")).max()) for group in filled)
    device = sizes[schema.KERNELS] > 0
    unavailable = {"latency": "a profile holds traced steps only", "layers": "an XPlane profile does not tell layers"}
    if not device:
        unavailable["kernels"] = "the profile has no device plane"
    return build_imported(
        attrs={
            "model": file.name.removesuffix(".gz"),
            "backend": "tensorflow",
            "source_format": "xplane",
            "device": "cuda" if device else "cpu",
            # its own times count from the start of the profile, unless they are since 1970 already
            "clock_anchor_unix_ns": found.started_ns if start < 10**17 else 0,
            "warnings": warnings,
            "unavailable": unavailable,
        },
        events=_events(found.groups),
        anchor_ns=start,
        wall_ns=end - start,
        level="kernel" if device else "operator",
        dropped_events=found.dropped,
        iterations=len(_steps(found.groups)[0]),
    )


def _steps(groups: dict[str, _Group]) -> tuple[_INT, _INT]:
    """Return start and duration of the steps; none where they overlap."""
    notes = groups[schema.ANNOTATIONS]
    texts = notes.texts.get("category")
    code = texts.find("step") if texts is not None else -1
    here = notes.column("category_code") == code
    start, duration = notes.column("start_ns")[here], notes.column("duration_ns")[here]
    order = np.argsort(start, kind="stable")
    start, duration = start[order], duration[order]
    if np.any(start[1:] < (start + duration)[:-1]):
        none = np.zeros(0, dtype=np.int64)
        return none, none
    return start, duration


def _events(groups: dict[str, _Group]) -> dict[str, EventTable]:
    steps = _steps(groups)
    found: dict[str, EventTable] = {}
    operators, calls, kernels = groups[schema.OPERATORS], groups[schema.RUNTIME], groups[schema.KERNELS]
    start, duration, track = (operators.column(name) for name in ("start_ns", "duration_ns", "track"))
    iteration = iteration_at(start, *steps)
    if len(operators):
        found[schema.OPERATORS] = operators.table(parent_index=nest(start, duration, track), iteration=iteration)
    owner = np.full(len(calls), -1, dtype=np.int32)
    if len(calls):
        owner = enclosing(calls.column("start_ns"), calls.column("track"), start, duration, track)
        found[schema.RUNTIME] = calls.table(
            operator_index=owner, iteration=iteration_at(calls.column("start_ns"), *steps)
        )
    if len(kernels):
        launch = launches(kernels.column("correlation"), calls.column("correlation"))
        operator = np.append(owner, np.int32(-1))[launch]
        of_call = np.append(iteration_at(calls.column("start_ns"), *steps), np.int32(-1))
        found[schema.KERNELS] = kernels.table(runtime_index=launch, operator_index=operator, iteration=of_call[launch])
        known = np.flatnonzero(launch >= 0)
        found[schema.LINKS] = EventTable(
            columns={"kind_code": np.zeros(len(known), np.int32), "source_index": launch[known],
                     "target_index": known.astype(np.int32)},
            tables={"kind": ("launch",)},
        )  # fmt: skip
    notes = groups[schema.ANNOTATIONS]
    if len(notes):
        found[schema.ANNOTATIONS] = notes.table(iteration=iteration_at(notes.column("start_ns"), *steps))
    return found


def _recognises(head: Head) -> bool:
    if head.path.is_dir():
        return next(head.path.rglob("*.xplane.pb"), None) is not None
    if head.path.name.removesuffix(".gz").endswith(".xplane.pb"):
        return True
    # the first plane's name is near its beginning
    return head.data[:1] == b"\x0a" and any(name in head.data[:64] for name in (b"/host:", b"/device:"))


XPLANE = Importer(title="XPlane profile of TensorFlow or JAX", recognises=_recognises, load=_load)
