"""A run as a trace that Perfetto and chrome://tracing open, in the categories and arguments that Kineto uses.

Host events lie on their threads, device work on its streams, layers and passes on tracks of their own; launches are
flow arrows, memory and power are counters. Times are decimal microseconds with all their nanoseconds: they count from
``baseTimeNanoseconds``, because a viewer's floating point numbers could not hold nanoseconds since 1970.

References
----------
Trace Event Format (Google, 2016); libkineto's ``output_json.cpp``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema
from mlscope_lab.trace.exporters.timeline import (
    PassSpan,
    lanes,
    layer_names,
    passes_of,
    slices_of,
    texts_of,
    tool,
    written,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["export_chrome"]

_Columns = dict[str, npt.NDArray[Any]]
_THREAD = re.compile(r"(\d{1,18})/(\d{1,18})")
_TRACKS = 1_000_000_000
"""Track numbers from here on are ours: no thread has one so high."""
# Categories by which a reader of Kineto's traces knows the group.
_CATEGORIES = {
    schema.OPERATORS: ("cpu_op",),
    schema.RUNTIME: ("cuda_runtime", "cuda_driver"),
    schema.KERNELS: ("kernel", "gpu_memcpy", "gpu_memset"),
    schema.ANNOTATIONS: ("user_annotation", "gpu_user_annotation", "python_function"),
}
_NUMBERS = {
    # {group: {column: name of the argument}}; -1 is left out
    schema.OPERATORS: {"correlation": "External id", "sequence": "Sequence number", "flops": "flops",
                       "allocated_bytes": "Allocated bytes", "output_bytes": "Output bytes"},
    schema.RUNTIME: {"correlation": "correlation"},
    schema.KERNELS: {"device": "device", "context": "context", "stream": "stream", "correlation": "correlation",
                     "registers": "registers per thread", "shared_memory_bytes": "shared memory",
                     "size_bytes": "bytes"},
    schema.ANNOTATIONS: {},
}  # fmt: skip
_FLOWS = {"launch": "ac2g", "forward_backward": "fwdbwd", "flow": "flow"}


def export_chrome(run: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a run as a Chrome trace.

    Parameters
    ----------
    run
        A run, opened lazily or not; its events are read and written some at a time.
    path
        The file; one that ends in ``.gz`` is compressed. An existing one is replaced once the new one is whole.

    Raises
    ------
    InputError
        If the run has no passes.
    StoreError
        If the file cannot be written.
    """
    passes = passes_of(run)
    with written(path, "Chrome trace") as out:
        _Trace(run, passes, out).write()
    return Path(path)


def _us(times: npt.NDArray[np.int64]) -> list[str]:
    """Return ns as decimal microseconds, exactly."""
    if times.size and int(times.min()) < 0:
        return [f"{'-' if t < 0 else ''}{abs(t) // 1000}.{abs(t) % 1000:03d}" for t in times.tolist()]
    return [f"{t // 1000}.{t % 1000:03d}" for t in times.tolist()]


def _quoted(texts: Iterable[str]) -> list[str]:
    """Return texts as JSON, with "" for the code -1 at the end."""
    return [*map(json.dumps, texts), '""']


def _numbers(values: npt.NDArray[Any], name: str) -> list[str]:
    """Return an argument for each value, "" for those that are not known."""
    label = json.dumps(name)
    if values.dtype.kind == "f":
        return [f"{label}:{v!r}," if math.isfinite(v) else "" for v in values.tolist()]
    if values.size and int(values.max()) < 0:
        return [""] * len(values)
    return [f"{label}:{v}," if v >= 0 else "" for v in values.tolist()]


class _Trace:
    """One file being written."""

    def __init__(self, run: xr.DataTree, passes: list[PassSpan], out: IO[str]) -> None:
        self.run = run
        self.passes = passes
        self.out = out
        self.base = min(p.start_ns for p in passes)
        self.offsets = np.array([p.start_ns - self.base for p in passes], dtype=np.int64)
        self.layers = _quoted(layer_names(run))
        self.names: dict[tuple[int, int], str] = {}
        self.processes: dict[int, str] = {}
        self.first = True

    def write(self) -> None:
        head: dict[str, Any] = {
            "schemaVersion": 1,
            "displayTimeUnit": "ns",
            "baseTimeNanoseconds": self.base,
            "traceName": str(self.run.attrs.get("model")),
            "mlscope": dict(tool(self.run)),
        }
        self.out.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
        self._passes()
        self._layers()
        for group in (schema.ANNOTATIONS, schema.OPERATORS, schema.RUNTIME, schema.KERNELS):
            self._spans(group)
        self._counters()
        self._flows()
        self._samples(schema.MEMORY, "memory")
        self._samples(schema.POWER, "power")
        self._tracks()
        self.out.write("\n]}\n")

    def _lines(self, lines: list[str]) -> None:
        if lines:
            self.out.write(("" if self.first else ",\n") + ",\n".join(lines))
            self.first = False

    def _times(self, columns: _Columns, name: str) -> npt.NDArray[np.int64]:
        times: npt.NDArray[np.int64] = columns[name] + self.offsets[columns["pass_index"]]
        return times

    def _home(self, process: int) -> int:
        """Return the process number under which what has no thread of its own is shown."""
        pid = _TRACKS + process
        self.processes.setdefault(pid, f"mlscope process {process}")
        return pid

    def _threads(self, group: str) -> list[str]:
        """Return ``"pid":1,"tid":2`` for each thread of a group, and one for the unknown thread at the end."""
        found = []
        for number, text in enumerate(texts_of(self.run, group).get("thread", [])):
            known = _THREAD.fullmatch(text)
            pid, tid = (int(known[1]), int(known[2])) if known else (_TRACKS, _TRACKS + number)
            if known is None:
                self._home(0)
                self.names[pid, tid] = text
            found.append(f'"pid":{pid},"tid":{tid}')
        home = self._home(0)
        return [*found, f'"pid":{home},"tid":0']

    def _passes(self) -> None:
        lines = []
        for p in self.passes:
            pid, tid = self._home(p.process), _TRACKS
            self.names[pid, tid] = "passes"
            start, length = _us(np.array([p.start_ns - self.base, p.wall_ns]))
            lines.append(f'{{"ph":"X","cat":"mlscope_pass","name":{json.dumps(f"{p.level} pass")},"pid":{pid},'
                         f'"tid":{tid},"ts":{start},"dur":{length},"args":{{"pass":{p.index}}}}}')  # fmt: skip
        self._lines(lines)

    def _layers(self) -> None:
        if schema.LAYERS not in self.run.children:
            return
        data = self.run[schema.LAYERS].dataset
        types = _quoted(str(text) for text in data["type"].values)
        of_row = data["pass_index"].values
        for row in range(data.sizes["layer_iteration"]):
            span = self.passes[int(of_row[row])]
            start, duration = data["start_ns"][row].values, data["duration_ns"][row].values
            ran = np.flatnonzero(start >= 0)
            begin = start[ran] + self.offsets[span.index]
            lane = lanes(begin, begin + duration[ran])
            pid, first = self._home(span.process), _TRACKS + 1000 * (1 + span.index)
            for number in np.unique(lane).tolist():
                extra = f", overlapping {number}" if number else ""
                self.names[pid, first + number] = f"layers of the {span.level} pass{extra}"
            self._lines([
                f'{{"ph":"X","cat":"mlscope_layer","name":{self.layers[layer]},"pid":{pid},"tid":{first + on},'
                f'"ts":{ts},"dur":{dur},"args":{{"type":{types[layer]},"iteration":{row},"pass":{span.index}}}}}'
                for layer, on, ts, dur in zip(ran.tolist(), lane.tolist(), _us(begin), _us(duration[ran]), strict=True)
            ])  # fmt: skip

    def _spans(self, group: str) -> None:
        texts = texts_of(self.run, group)
        names, known = _quoted(texts.get("name", [])), _CATEGORIES[group]
        categories = [json.dumps(t if t in known else known[0]) for t in texts.get("category", [])]
        categories.append(json.dumps(known[0]))
        foreign = ["" if t in known else f'"category":{json.dumps(t)},' for t in [*texts.get("category", []), known[0]]]
        threads = self._threads(group) if group != schema.KERNELS else []
        for columns in slices_of(self.run, group):
            where = self._streams(columns) if group == schema.KERNELS else [threads[c] for c in columns["thread_code"]]
            arguments = list(self._arguments(group, columns, texts))
            if any(foreign):
                arguments.append([foreign[code] for code in columns["category_code"]])
            self._lines([
                f'{{"ph":"X","cat":{categories[category]},"name":{names[name]},{place},"ts":{ts},"dur":{dur},'
                f'"args":{{{"".join(parts)[:-1]}}}}}'
                for category, name, place, ts, dur, *parts in zip(
                    columns["category_code"].tolist(), columns["name_code"].tolist(), where,
                    _us(self._times(columns, "start_ns")), _us(columns["duration_ns"]), *arguments, strict=True,
                )
            ])  # fmt: skip

    def _streams(self, columns: _Columns) -> list[str]:
        """Return the track of each kernel: its device as the process, its stream as the thread."""
        for device, stream in np.unique(np.stack([columns["device"], columns["stream"]]), axis=1).T.tolist():
            self.processes.setdefault(max(device, 0), f"GPU {max(device, 0)}")
            self.names[max(device, 0), max(stream, 0)] = f"stream {max(stream, 0)}"
        pairs = zip(columns["device"].tolist(), columns["stream"].tolist(), strict=True)
        return [f'"pid":{max(device, 0)},"tid":{max(stream, 0)}' for device, stream in pairs]

    def _arguments(self, group: str, columns: _Columns, texts: dict[str, list[str]]) -> Iterator[list[str]]:
        """Yield for each argument one text an event; each ends in a comma or is empty."""
        for column, name in _NUMBERS[group].items():
            if column in columns:
                yield _numbers(columns[column], name)
        if "layer_index" in columns:
            layers = [*(f'"layer":{name},' for name in self.layers[:-1]), ""]
            yield [layers[code] for code in columns["layer_index"].tolist()]
        yield _numbers(columns["iteration"], "iteration")
        if "shapes_code" in columns:
            shapes = [*(f'"shapes":{json.dumps(text)},' for text in texts.get("shapes", [])), ""]
            yield [shapes[code] for code in columns["shapes_code"].tolist()]
        for name in ("grid", "block"):
            axes = [columns[f"{name}_{axis}"].tolist() for axis in "xyz" if f"{name}_{axis}" in columns]
            if len(axes) == 3:
                yield [f'"{name}":[{x},{y},{z}],' if x >= 0 else "" for x, y, z in zip(*axes, strict=True)]
        if "occupancy" in columns:
            # rounded, because a per cent times 0.01 times 100 is not always that per cent
            yield _numbers(np.round(columns["occupancy"] * 100, 10), "est. achieved occupancy %")
        for name in _counter_names(group, columns):
            yield _numbers(columns[name], name)

    def _counters(self) -> None:
        names = _quoted(texts_of(self.run, schema.COUNTERS).get("name", []))
        home = self._home(0)
        for columns in slices_of(self.run, schema.COUNTERS):
            self.names[home, _TRACKS + 1] = "counter ranges"
            arguments = [_numbers(columns["correlation"], "correlation")]
            arguments += [_numbers(columns[name], name) for name in _counter_names(schema.COUNTERS, columns)]
            self._lines([
                f'{{"ph":"X","cat":"cuda_profiler_range","name":{names[name]},"pid":{home},"tid":{_TRACKS + 1},'
                f'"ts":{ts},"dur":{dur},"args":{{{"".join(parts)[:-1]}}}}}'
                for name, ts, dur, *parts in zip(
                    columns["name_code"].tolist(), _us(self._times(columns, "start_ns")), _us(columns["duration_ns"]),
                    *arguments, strict=True,
                )
            ])  # fmt: skip

    def _flows(self) -> None:
        kinds = texts_of(self.run, schema.LINKS).get("kind", [])
        ends = {group: self._ends(group) for kind in kinds for group in schema.LINK_KINDS.get(kind, ())}
        serial = 0
        for columns in slices_of(self.run, schema.LINKS):
            lines = []
            for code, source, target in zip(
                columns["kind_code"].tolist(), columns["source_index"].tolist(), columns["target_index"].tolist(),
                strict=True,
            ):  # fmt: skip
                serial += 1
                if kinds[code] not in schema.LINK_KINDS or source < 0 or target < 0:
                    continue  # an arrow needs both its ends
                name, (of, to) = _FLOWS[kinds[code]], schema.LINK_KINDS[kinds[code]]
                common = f'"id":{serial},"cat":"{name}","name":"{name}"'
                lines.append(f'{{"ph":"s",{common},{ends[of](source)}}}')
                lines.append(f'{{"ph":"f","bp":"e",{common},{ends[to](target)}}}')
            self._lines(lines)

    def _ends(self, group: str) -> Callable[[int], str]:
        """Return what tells where an arrow to or from an event of a group ends."""
        places: list[str] = []
        starts: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        codes: list[npt.NDArray[Any]] = [np.zeros(0, dtype=np.int32)]
        number: dict[str, int] = {}
        threads = self._threads(group) if group != schema.KERNELS else []
        for columns in slices_of(self.run, group):
            starts.append(self._times(columns, "start_ns"))
            where = self._streams(columns) if group == schema.KERNELS else [threads[c] for c in columns["thread_code"]]
            codes.append(np.array([number.setdefault(place, len(number)) for place in where], dtype=np.int32))
        places = list(number)
        all_starts, all_codes = np.concatenate(starts), np.concatenate(codes)

        def end(index: int) -> str:
            return f'{places[all_codes[index]]},"ts":{_us(all_starts[index : index + 1])[0]}'

        return end

    def _samples(self, group: str, title: str) -> None:
        devices = texts_of(self.run, group).get("device", [])
        tracks = [json.dumps(f"{title} {text}".strip()) for text in [*devices, ""]]
        home = self._home(0)
        for columns in slices_of(self.run, group):
            skipped = {"pass_index", "device_code", "time_ns", "iteration", "layer_index", "operator_index", "address"}
            values = [_numbers(columns[name], name) for name in columns if name not in skipped and name != "bytes"]
            self._lines([
                f'{{"ph":"C","name":{tracks[device]},"pid":{home},"tid":0,"ts":{ts},'
                f'"args":{{{"".join(parts)[:-1]}}}}}'
                for device, ts, *parts in zip(
                    columns["device_code"].tolist(), _us(self._times(columns, "time_ns")), *values, strict=True
                )
            ])  # fmt: skip

    def _tracks(self) -> None:
        lines = [
            f'{{"ph":"M","name":"process_name","pid":{pid},"tid":0,"ts":0,"args":{{"name":{json.dumps(name)}}}}}'
            for pid, name in self.processes.items()
        ]
        lines += [
            f'{{"ph":"M","name":"thread_name","pid":{pid},"tid":{tid},"ts":0,"args":{{"name":{json.dumps(name)}}}}}'
            for (pid, tid), name in self.names.items()
        ]
        self._lines(lines)


def _counter_names(group: str, columns: _Columns) -> list[str]:
    known = {*schema.GROUPS[group], *schema.OPTIONAL[group]}
    return [name for name in columns if name not in known and columns[name].dtype.kind == "f"]
