"""A run as a trace that Perfetto and chrome://tracing open, in the categories and arguments that Kineto uses.

Host events lie on their threads, device work on its streams, passes with their iterations and layers on tracks of their
own; launches are flow arrows, memory and power are counters. Times are decimal microseconds with all their nanoseconds:
they count from ``baseTimeNanoseconds``, because a viewer's floating point numbers could not hold nanoseconds since
1970.

References
----------
Trace Event Format (Google, 2016); libkineto's ``output_json.cpp``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema
from mlscope_lab.trace.exporters.steps import steps_of
from mlscope_lab.trace.exporters.timeline import (
    PassSpan,
    lanes,
    layer_names,
    opened_and_closed,
    pass_slices,
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
_TRACKS = 1_000_000_000
"""Process numbers from here on are ours: no process has one so high."""
_SIZES = r"(?:(?:0|-?[1-9]\d*)(?:,(?:0|-?[1-9]\d*))*)?"
_TENSOR = re.compile(rf"([^\[(]*)(?:\[({_SIZES})\]|\(((?:\[{_SIZES}\](?:,\[{_SIZES}\])*)?)\))")
_UNBOUND = 1 << 40
"""Numbers of arrows from here on are no correlations."""
# Categories by which a reader of Kineto's traces knows the group; anything else is an operator's.
_CATEGORIES = {
    schema.OPERATORS: (),
    schema.RUNTIME: ("cuda_runtime", "cuda_driver", "cuda_sync", "hip_runtime", "xpu_runtime", "xpu_driver"),
    schema.KERNELS: ("kernel", "gpu_memcpy", "gpu_memset", "concurrent_kernel"),
    schema.ANNOTATIONS: ("user_annotation", "gpu_user_annotation", "Trace", "overhead"),
}  # fmt: skip
_TAKEN = frozenset(text for known in _CATEGORIES.values() for text in known)
_DEFAULT = {schema.OPERATORS: "cpu_op", schema.RUNTIME: "cuda_runtime", schema.KERNELS: "kernel",
            schema.ANNOTATIONS: "user_annotation"}  # fmt: skip
_SAMPLED = {
    # {group: {column: (name of the counter, unit)}}
    schema.MEMORY: {"allocated_bytes": ("memory allocated", "B"), "reserved_bytes": ("memory reserved", "B")},
    schema.POWER: {"power_watts": ("power", "W"), "energy_joules": ("energy", "J"), "sm_clock_hz": ("SM clock", "Hz"),
                   "memory_clock_hz": ("memory clock", "Hz"), "temperature_celsius": ("temperature", "degC"),
                   "utilization": ("utilization", "share"), "throttle_reasons": ("throttle reasons", "mask")},
}  # fmt: skip
_NUMBERS = {
    # {group: {column: name of the argument}}; -1 is left out
    schema.OPERATORS: {"correlation": "External id", "sequence": "Sequence number", "flops": "flops",
                       "allocated_bytes": "Allocated bytes", "input_bytes": "Input bytes",
                       "output_bytes": "Output bytes", "parameter_bytes": "Parameter bytes"},
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
        return [_us_of(t) for t in times.tolist()]
    return [f"{t // 1000}.{t % 1000:03d}" for t in times.tolist()]


def _quoted(texts: Iterable[str]) -> list[str]:
    """Return texts as JSON, with "" for the code -1 at the end."""
    return [*map(json.dumps, texts), '""']


def _us_of(time: int) -> str:
    return f"{'-' if time < 0 else ''}{abs(time) // 1000}.{abs(time) % 1000:03d}"


def _identity(text: str) -> str:
    """Return a process or thread as JSON: a number where it is one."""
    return text if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else json.dumps(text)


def _kineto_device(text: str) -> str:
    """Return the arguments by which PyTorch's profiler tells a device, "" for what is none of its devices."""
    kind, _, number = text.partition(":")
    known = {"cpu": 0, "cuda": 1}.get(kind)
    place = int(number) if number.isdecimal() and len(number) < 6 else -1
    return "" if known is None else f'"Device Type":{known},"Device Id":{place},'


def _shapes(text: str) -> str:
    """Return the arguments by which Kineto tells inputs, for ``float[1,3];Scalar;float([2],[3])``."""
    dims, kinds = [], []
    for part in text.split(";"):
        found = _TENSOR.fullmatch(part)
        if found is None:  # no list at all, unless the type alone tells that the list is empty
            dims.append("[]" if part in {"", "Scalar", "ScalarList"} else '""')
            kinds.append(json.dumps(part))
        else:
            dims.append(f"[{found[2] if found[2] is not None else found[3]}]")
            kinds.append(json.dumps(found[1]))
    return f'"Input Dims":[{",".join(dims)}],"Input type":[{",".join(kinds)}]'


def _numbers(values: npt.NDArray[Any], name: str, *, everything: bool = False) -> list[str]:
    """Return an argument for each value, "" for those that are not known."""
    label = json.dumps(name)
    if everything:
        return [f"{label}:{v}," for v in values.tolist()]
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
        self.threads_by_name: dict[str, int] = {}
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
        for span in self.passes:
            self._pass(span)
        self._steps()
        for group in (schema.ANNOTATIONS, schema.OPERATORS, schema.RUNTIME, schema.KERNELS):
            self._spans(group)
        self._counters()
        self._flows()
        self._samples(schema.MEMORY)
        self._samples(schema.POWER)
        self._tracks()
        self.out.write("\n]}\n")

    def _lines(self, lines: list[str]) -> None:
        if lines:
            self.out.write(("" if self.first else ",\n") + ",\n".join(lines))
            self.first = False

    def times(self, columns: _Columns, name: str) -> npt.NDArray[np.int64]:
        times: npt.NDArray[np.int64] = columns[name] + self.offsets[columns["pass_index"]]
        return times

    def _home(self, process: int) -> int:
        """Return the process number under which what has no thread of its own is shown."""
        pid = _TRACKS + process
        self.processes.setdefault(pid, f"mlscope process {process}")
        return pid

    def threads(self, group: str) -> list[str]:
        """Return ``"pid":1,"tid":2`` for each thread of a group, and one for the unknown thread at the end."""
        found = []
        home = self._home(0)
        for text in texts_of(self.run, group).get("thread", []):
            process, slash, thread = text.partition("/")
            if slash:
                found.append(f'"pid":{_identity(process)},"tid":{_identity(thread)}')
            else:
                # a thread of one name is one thread, whatever it does
                number = self.threads_by_name.setdefault(text, _TRACKS + 2 + len(self.threads_by_name))
                self.names[home, number] = text
                found.append(f'"pid":{home},"tid":{number}')
        return [*found, f'"pid":{home},"tid":0']

    def _pass(self, span: PassSpan) -> None:
        """Write a pass, its iterations and layers as slices that do not belong to a thread."""
        slices = pass_slices(self.run, span)
        start = slices.start + int(self.offsets[span.index])
        end = start + slices.duration
        lane, pid, named = lanes(start, end), self._home(span.process), _quoted(slices.names)
        told = [f',"args":{{"type":{json.dumps(text)}}}' if text else "" for text in slices.types]
        for number in range(int(lane.max()) + 1):
            here = np.flatnonzero(lane == number)
            names = slices.name[here].tolist()
            common = f'"cat":"mlscope","id":"{span.index}.{number}","pid":{pid},"tid":0'
            lines: list[str] = []
            for row, at in opened_and_closed(start[here], end[here]):
                name = names[row if row >= 0 else ~row]
                head = f'{{"ph":"{"b" if row >= 0 else "e"}","name":{named[name]},{common},"ts":{_us_of(at)}'
                lines.append(f"{head}{told[name] if row >= 0 else ''}}}")
                if len(lines) >= 20_000:
                    self._lines(lines)
                    lines = []
            self._lines(lines)

    def _steps(self) -> None:
        """Mark iterations as PyTorch's profiler does; a trace of it that was imported marks them itself."""
        start, end = steps_of(self.run, self.passes)
        home = self._home(0)
        if len(start):
            self.names[home, _TRACKS] = "steps"
        self._lines([
            f'{{"ph":"X","cat":"user_annotation","name":"ProfilerStep#{number}","pid":{home},"tid":{_TRACKS},"ts":{ts},'
            f'"dur":{dur},"args":{{}}}}'
            for number, (ts, dur) in enumerate(zip(_us(start - self.base), _us(end - start), strict=True))
        ])  # fmt: skip

    def _spans(self, group: str) -> None:
        texts = texts_of(self.run, group)
        names, default = _quoted(texts.get("name", [])), _DEFAULT[group]
        given = [*texts.get("category", []), default]
        fits = [t in _CATEGORIES[group] if group != schema.OPERATORS else bool(t) and t not in _TAKEN for t in given]
        fits[-1] = True
        categories = [json.dumps(t if fit else default) for t, fit in zip(given, fits, strict=True)]
        foreign = ["" if fit else f'"category":{json.dumps(t)},' for t, fit in zip(given, fits, strict=True)]
        threads = self.threads(group) if group != schema.KERNELS else []
        for columns in slices_of(self.run, group):
            where = self.streams(columns) if group == schema.KERNELS else [threads[c] for c in columns["thread_code"]]
            arguments = list(self._arguments(group, columns, texts))
            if not all(fits):
                arguments.append([foreign[code] for code in columns["category_code"]])
            codes, durations = columns["category_code"].tolist(), columns["duration_ns"].tolist()
            heads = [f'"X","cat":{categories[code]}' for code in codes]
            if group == schema.ANNOTATIONS and not all(fits):
                # a moment may be of any category
                heads = [
                    f'"i","s":"t","cat":{json.dumps(given[code])}' if not fits[code] and not length else head
                    for code, length, head in zip(codes, durations, heads, strict=True)
                ]
            self._lines([
                f'{{"ph":{head},"name":{names[name]},{place},"ts":{ts},"dur":{dur},"args":{{{"".join(parts)[:-1]}}}}}'
                for head, name, place, ts, dur, *parts in zip(
                    heads, columns["name_code"].tolist(), where, _us(self.times(columns, "start_ns")),
                    _us(columns["duration_ns"]), *arguments, strict=True,
                )
            ])  # fmt: skip

    def streams(self, columns: _Columns) -> list[str]:
        """Return the track of each kernel: its device as the process, its stream as the thread."""
        pairs = np.stack([columns["device"], columns["stream"]], axis=1)
        distinct, place = np.unique(pairs, axis=0, return_inverse=True)
        tracks = []
        for device, stream in distinct.tolist():
            if device >= 0:
                self.processes.setdefault(device, f"GPU {device}")
            if device >= 0 and stream >= 0:
                self.names[device, stream] = f"stream {stream}"
            pid = device if device >= 0 else '"device"'
            tracks.append(f'"pid":{pid},"tid":{stream if stream >= 0 else json.dumps("no stream")}')
        return [tracks[number] for number in place.reshape(-1).tolist()]

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
            shapes = [*(f"{_shapes(text)}," for text in texts.get("shapes", [])), ""]
            yield [shapes[code] for code in columns["shapes_code"].tolist()]
        if "type_code" in columns:
            types = [*(f'"type":{json.dumps(text)},' if text else "" for text in texts.get("type", [])), ""]
            yield [types[code] for code in columns["type_code"].tolist()]
        for name in ("grid", "block"):
            axes = [columns[f"{name}_{axis}"].tolist() for axis in "xyz" if f"{name}_{axis}" in columns]
            if axes:
                yield [f'"{name}":{list(sizes)},' if sizes[0] >= 0 else "" for sizes in zip(*axes, strict=True)]
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
            arguments = [_numbers(columns[name], name) for name in _counter_names(schema.COUNTERS, columns)]
            self._lines([
                f'{{"ph":"X","cat":"cuda_profiler_range","name":{names[name]},"pid":{home},"tid":{_TRACKS + 1},'
                f'"ts":{ts},"dur":{dur},"args":{{{"".join(parts)[:-1]}}}}}'
                for name, ts, dur, *parts in zip(
                    columns["name_code"].tolist(), _us(self.times(columns, "start_ns")),
                    _us(columns["duration_ns"]), *arguments, strict=True,
                )
            ])  # fmt: skip

    def _flows(self) -> None:
        kinds = texts_of(self.run, schema.LINKS).get("kind", [])
        known = [kind in _FLOWS for kind in kinds]
        ends = {group: _Ends(self, group) for kind in kinds if kind in _FLOWS for group in schema.LINK_KINDS[kind]}
        serial = _UNBOUND
        for columns in slices_of(self.run, schema.LINKS):
            lines = []
            for code, source, target in zip(
                columns["kind_code"].tolist(), columns["source_index"].tolist(), columns["target_index"].tolist(),
                strict=True,
            ):  # fmt: skip
                if code < 0 or not known[code] or source < 0 or target < 0:
                    continue  # an arrow needs both its ends
                name, (of, to) = _FLOWS[kinds[code]], schema.LINK_KINDS[kinds[code]]
                serial += 1
                # a reader of Kineto's traces takes the number of a launch for its correlation
                number = ends[to].correlation(target) if kinds[code] == "launch" else -1
                common = f'"id":{number if number >= 0 else serial},"cat":"{name}","name":"{name}"'
                lines.append(f'{{"ph":"s",{common},{ends[of].place(source)}}}')
                lines.append(f'{{"ph":"f","bp":"e",{common},{ends[to].place(target)}}}')
            self._lines(lines)

    def _samples(self, group: str) -> None:
        devices = [*texts_of(self.run, group).get("device", []), ""]
        kineto = [_kineto_device(text) if group == schema.MEMORY else "" for text in devices]
        threads = self._threads_of_operators() if any(kineto) else np.zeros(0, dtype=np.int32)
        places = self.threads(schema.OPERATORS)
        home = self._home(0)
        for columns in slices_of(self.run, group):
            times = _us(self.times(columns, "time_ns"))
            codes = columns["device_code"].tolist()
            for name, (title, unit) in _SAMPLED[group].items():
                if name not in columns:
                    continue
                heads = [
                    f'"cat":"mlscope{"_memory" if known else ""}","name":{json.dumps(f"{title} {text}".strip())}'
                    for text, known in zip(devices, kineto, strict=True)
                ]
                self._lines(
                    [
                        f'{{"ph":"C",{heads[code]},"pid":{home},"tid":0,"ts":{ts},"args":{{{value[:-1]}}}}}'
                        for code, ts, value in zip(codes, times, _numbers(columns[name], unit), strict=True)
                        if value
                    ]
                )
            if any(kineto):
                operators = columns.get("operator_index", np.full(len(times), -1, dtype=np.int32))
                where = [places[code] for code in np.append(threads, np.int32(-1))[operators].tolist()]
                self._allocations(columns, kineto, where, times)

    def _threads_of_operators(self) -> npt.NDArray[np.int32]:
        none = np.zeros(0, dtype=np.int32)
        return np.concatenate([none, *(columns["thread_code"] for columns in slices_of(self.run, schema.OPERATORS))])

    def _allocations(self, columns: _Columns, kineto: list[str], where: list[str], times: list[str]) -> None:
        """Write memory events as PyTorch's profiler does, which has them on the thread that allocates."""
        arguments = [
            _numbers(columns[name], label, everything=name == "bytes")
            for name, label in (("bytes", "Bytes"), ("allocated_bytes", "Total Allocated"),
                                ("reserved_bytes", "Total Reserved"), ("address", "Addr")) if name in columns
        ]  # fmt: skip
        self._lines([
            f'{{"ph":"i","s":"t","cat":"cpu_instant_event","name":"[memory]",{place},"ts":{ts},'
            f'"args":{{{(kineto[code] + "".join(parts))[:-1]}}}}}'
            for code, place, ts, *parts in zip(columns["device_code"].tolist(), where, times, *arguments, strict=True)
            if kineto[code]
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


class _Ends:
    """Where the events of a group are, for arrows that end there."""

    def __init__(self, trace: _Trace, group: str) -> None:
        number: dict[str, int] = {}
        starts, codes, told = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        threads = trace.threads(group) if group != schema.KERNELS else []
        for columns in slices_of(trace.run, group):
            starts.append(trace.times(columns, "start_ns"))
            where = trace.streams(columns) if group == schema.KERNELS else [threads[c] for c in columns["thread_code"]]
            codes.append(np.array([number.setdefault(place, len(number)) for place in where], dtype=np.int32))
            if group == schema.KERNELS:
                told.append(columns["correlation"])
        self._places = list(number)
        self._starts, self._codes, self._told = np.concatenate(starts), np.concatenate(codes), np.concatenate(told)

    def place(self, index: int) -> str:
        return f'{self._places[self._codes[index]]},"ts":{_us_of(int(self._starts[index]))}'

    def correlation(self, index: int) -> int:
        return int(self._told[index])


def _counter_names(group: str, columns: _Columns) -> list[str]:
    known = {*schema.GROUPS[group], *schema.OPTIONAL[group]}
    return [name for name in columns if name not in known and columns[name].dtype.kind == "f"]
