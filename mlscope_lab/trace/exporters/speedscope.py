"""A run in speedscope's format: a profile for each thread, stream and layer pass, what encloses what kept.

References
----------
https://www.speedscope.app/file-format-schema.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.trace import schema
from mlscope_lab.trace.exporters.timeline import (
    PassSpan,
    lanes,
    layer_names,
    opened_and_closed,
    passes_of,
    texts_of,
    tool,
    written,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["export_speedscope"]

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_LARGEST = 5_000_000
"""Events: speedscope holds all of a file in the browser's memory, and gives up above some hundred megabytes."""
_INT = npt.NDArray[np.int64]


def export_speedscope(run: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a run for https://www.speedscope.app (or a copy of it that needs no network).

    Parameters
    ----------
    run
        A run, opened lazily or not.
    path
        The file, by custom ``NAME.speedscope.json``; one that ends in ``.gz`` is compressed.

    Raises
    ------
    InputError
        If the run has neither layers nor events, or more events than speedscope can open.
    StoreError
        If the file cannot be written.
    """
    passes = passes_of(run)
    total = sum(int(run[group].sizes[schema.EVENT_DIMS[group]]) for group in _GROUPS if group in run.children)
    if total > _LARGEST:
        raise InputError(
            f"Run {run.attrs.get('run_id')} has {total:,} events, and speedscope opens some {_LARGEST:,} at most; "
            "export it for Perfetto instead (--to perfetto)"
        )
    frames = _Frames()
    profiles = [
        *_latency_profiles(run, passes, frames),
        *_layer_profiles(run, passes, frames),
        *_event_profiles(run, passes, frames),
    ]
    if not profiles:
        raise InputError(
            f"Run {run.attrs.get('run_id')} has neither iterations nor layers nor events to show; measure it with "
            "--level layer or deeper"
        )
    with written(path, "speedscope profile") as out:
        _write(out, run, frames, profiles)
    return Path(path)


_GROUPS = (schema.ANNOTATIONS, schema.OPERATORS, schema.RUNTIME, schema.KERNELS)


class _Frames:
    """The names that all profiles share."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, texts: list[str]) -> npt.NDArray[np.int64]:
        """Return the number of each text, and of "unknown" at the end."""
        return np.array([self.numbers.setdefault(t, len(self.numbers)) for t in [*texts, "unknown"]], dtype=np.int64)


class _Spans:
    """The spans of one profile; those of a profile lie apart or inside each other."""

    def __init__(self, name: str, start: _INT, end: _INT, frame: _INT) -> None:
        self.name = name
        self.start, self.end, self.frame = start, end, frame

    def events(self) -> Iterator[str]:
        """Yield what opens and closes, in order."""
        base, frames = int(self.start.min()), self.frame.tolist()
        for row, at in opened_and_closed(self.start, self.end):
            opens = row >= 0
            yield f'{{"type":"{"O" if opens else "C"}","at":{at - base},"frame":{frames[row if opens else ~row]}}}'

    @property
    def length(self) -> int:
        return int(self.end.max() - self.start.min())


def _profiles(name: str, start: _INT, duration: _INT, frame: _INT) -> Iterator[_Spans]:
    """Yield a profile for each lane that overlapping spans need."""
    end = start + duration
    lane = lanes(start, end)
    if (lane < 0).any():
        raise InputError(
            f"{int((lane < 0).sum()):,} spans of {name} overlap so many others that speedscope could not show them; "
            "export the run for Perfetto instead (--to perfetto)"
        )
    for number in range(int(lane.max(initial=-1)) + 1):
        here = lane == number
        title = name if not number else f"{name}, overlapping {number}"
        yield _Spans(title, start[here], end[here], frame[here])


def _latency_profiles(run: xr.DataTree, passes: list[PassSpan], frames: _Frames) -> Iterator[_Spans]:
    if schema.LATENCY not in run.children:
        return
    data = run[schema.LATENCY].dataset
    names = ("preprocess", "predict", "postprocess")
    numbers = frames.of(list(names))
    of_row = data["pass_index"].values
    for span in passes:
        rows = np.flatnonzero(of_row == span.index)
        if len(rows):
            duration = np.stack([data[f"{name}_ns"].values[rows] for name in names], axis=1)
            start = data["start_ns"].values[rows][:, None] + np.cumsum(duration, axis=1) - duration
            frame = np.broadcast_to(numbers[:-1], duration.shape)
            name = f"iterations of the {span.level} pass, process {span.process}"
            yield from _profiles(name, start.reshape(-1), duration.reshape(-1), frame.reshape(-1))


def _layer_profiles(run: xr.DataTree, passes: list[PassSpan], frames: _Frames) -> Iterator[_Spans]:
    if schema.LAYERS not in run.children:
        return
    data = run[schema.LAYERS].dataset
    numbers = frames.of(layer_names(run))
    of_row = data["pass_index"].values
    for span in passes:
        rows = np.flatnonzero(of_row == span.index)
        if not len(rows):
            continue
        start, duration = data["start_ns"].values[rows], data["duration_ns"].values[rows]
        ran = np.nonzero(start >= 0)
        if len(ran[0]):
            name = f"layers of the {span.level} pass, process {span.process}"
            yield from _profiles(name, start[ran], duration[ran], numbers[ran[1]])


def _event_profiles(run: xr.DataTree, passes: list[PassSpan], frames: _Frames) -> Iterator[_Spans]:
    """Yield the threads of the host, everything that runs on one of them together, and the streams of the devices."""
    offsets = np.array([p.start_ns - passes[0].start_ns for p in passes], dtype=np.int64)
    threads: dict[str, list[tuple[_INT, _INT, _INT]]] = {}
    for group in _GROUPS:
        if group not in run.children or not run[group].sizes[schema.EVENT_DIMS[group]]:
            continue
        data, texts = run[group].dataset, texts_of(run, group)
        start = data["start_ns"].values + offsets[data["pass_index"].values]
        duration, frame = data["duration_ns"].values, frames.of(texts["name"])[data["name_code"].values]
        if group == schema.KERNELS:
            tracks = np.stack([data["device"].values, data["stream"].values], axis=1)
            distinct, track = np.unique(tracks, axis=0, return_inverse=True)
            names = [f"device {device}, stream {stream}" for device, stream in distinct.tolist()]
        else:
            track = data["thread_code"].values
            names = [f"thread {text}" for text in [*texts["thread"], "unknown"]]
            track = np.where(track < 0, len(names) - 1, track)
        track = track.reshape(-1)
        for number, name in enumerate(names):
            here = track == number
            if here.any():
                threads.setdefault(name, []).append((start[here], duration[here], frame[here]))
    for name, parts in threads.items():
        start, duration, frame = (np.concatenate([part[i] for part in parts]) for i in range(3))
        yield from _profiles(name, start, duration, frame)


def _write(out: IO[str], run: xr.DataTree, frames: _Frames, profiles: list[_Spans]) -> None:
    head: dict[str, Any] = {
        "$schema": _SCHEMA,
        "name": f"{run.attrs.get('model')} on {run.attrs.get('backend')}",
        "exporter": tool(run)["exporter"],
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames.numbers]},
    }
    out.write(json.dumps(head)[:-1] + ', "profiles": [')
    for number, spans in enumerate(profiles):
        about = {"type": "evented", "name": spans.name, "unit": "nanoseconds", "startValue": 0,
                 "endValue": spans.length}  # fmt: skip
        out.write(("," if number else "") + "\n" + json.dumps(about)[:-1] + ', "events": [')
        separator = "\n"
        batch: list[str] = []
        for event in spans.events():
            batch.append(event)
            if len(batch) == 10_000:
                out.write(separator + ",\n".join(batch))
                separator, batch = ",\n", []
        if batch:
            out.write(separator + ",\n".join(batch))
        out.write("\n]}")
    out.write("\n]}\n")
