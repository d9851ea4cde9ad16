"""Speedscope's format: what its published schema asks for, and what its reader checks besides."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlscope_lab.errors import InputError
from mlscope_lab.testing import synthetic_failed_run, synthetic_run
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.exporters.speedscope import export_speedscope
from mlscope_lab.trace.records import EventTable

# what https://www.speedscope.app/file-format-schema.json asks of an evented profile
EVENT = {
    "type": "object",
    "required": ["at", "frame", "type"],
    "properties": {"at": {"type": "number"}, "frame": {"type": "number"}, "type": {"enum": ["O", "C"]}},
}
PROFILE = {
    "type": "object",
    "required": ["endValue", "events", "name", "startValue", "type", "unit"],
    "properties": {
        "type": {"const": "evented"},
        "name": {"type": "string"},
        "unit": {"enum": ["bytes", "microseconds", "milliseconds", "nanoseconds", "none", "seconds"]},
        "startValue": {"type": "number"},
        "endValue": {"type": "number"},
        "events": {"type": "array", "items": EVENT},
    },
}
FRAME = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "file": {"type": "string"}, "line": {"type": "number"}},
}
SCHEMA = {
    "type": "object",
    "required": ["$schema", "profiles", "shared"],
    "properties": {
        "$schema": {"const": "https://www.speedscope.app/file-format-schema.json"},
        "activeProfileIndex": {"type": "number"},
        "exporter": {"type": "string"},
        "name": {"type": "string"},
        "profiles": {"type": "array", "items": PROFILE},
        "shared": {
            "type": "object",
            "required": ["frames"],
            "properties": {"frames": {"type": "array", "items": FRAME}},
        },
    },
}


def exported(run, folder):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    found = json.loads(export_speedscope(run, folder / "run.speedscope.json").read_bytes())
    jsonschema.validate(found, SCHEMA)
    return found


def check(profile, frames):
    """Check what the schema cannot say: every frame exists, times ascend, what opened last closes first."""
    stack, before, depth = [], profile["startValue"], 0
    for event in profile["events"]:
        assert profile["startValue"] <= before <= event["at"] <= profile["endValue"]
        assert 0 <= event["frame"] < frames
        before = event["at"]
        if event["type"] == "O":
            stack.append(event["frame"])
            depth = max(depth, len(stack))
        else:
            assert stack.pop() == event["frame"]
    assert not stack
    return depth


def test_a_run_has_a_profile_for_each_thread_stream_and_layer_pass(tmp_path):
    found = exported(synthetic_run(deep=True, processes=1), tmp_path)
    names = [profile["name"] for profile in found["profiles"]]
    assert names == [
        "iterations of the model pass, process 0", "layers of the layer pass, process 0",
        "layers of the kernel pass, process 0", "thread 4037/4037",
        "device 0, stream 7", "device 0, stream 9",
    ]  # fmt: skip
    depths = [check(profile, len(found["shared"]["frames"])) for profile in found["profiles"]]
    assert depths == [1, 2, 2, 4, 1, 1]  # blocks and layers; the iteration, two operators and a call
    assert found["exporter"].startswith("mlscope-lab@")


def test_time_in_a_profile_is_the_layers_time(tmp_path):
    run = synthetic_run(processes=1)
    profile = exported(run, tmp_path)["profiles"][1]
    frames = json.loads((tmp_path / "run.speedscope.json").read_bytes())["shared"]["frames"]
    opened, total = {}, dict.fromkeys((frame["name"] for frame in frames), 0)
    for event in profile["events"]:
        if event["type"] == "O":
            opened[event["frame"]] = event["at"]
        else:
            total[frames[event["frame"]]["name"]] += event["at"] - opened.pop(event["frame"])
    layers = run["layers"].dataset
    sums = dict(zip(layers["name"].values, layers["duration_ns"].values.sum(axis=0), strict=True))
    assert {name: total[name] for name in sums} == sums


def test_spans_that_overlap_get_a_profile_each(tmp_path):
    times = {"start_ns": np.array([0, 5, 12, 12]), "duration_ns": np.array([10, 10, 0, 0])}
    names = {"name_code": np.array([0, 1, -1, 2], dtype=np.int32), "thread_code": np.full(4, -1, dtype=np.int32)}
    table = EventTable(columns={**times, **names}, tables={"name": ('a"<\n', "b", "c"), "thread": ()})
    run = build_imported(
        attrs={"model": "m", "backend": "b"}, events={"operators": table}, wall_ns=15, level="operator"
    )
    found = exported(run, tmp_path)
    assert [profile["name"] for profile in found["profiles"]] == ["thread unknown", "thread unknown, overlapping 1"]
    for profile in found["profiles"]:
        check(profile, len(found["shared"]["frames"]))
    assert [frame["name"] for frame in found["shared"]["frames"]] == ['a"<\n', "b", "c", "unknown"]


def test_spans_that_overlap_without_end_are_refused(tmp_path):
    times = {"start_ns": np.arange(300), "duration_ns": np.full(300, 300)}
    run = build_imported(attrs={"model": "m", "backend": "b"}, events={"operators": EventTable(columns=times)},
                         wall_ns=600, level="operator")  # fmt: skip
    with pytest.raises(InputError, match="44 spans of thread unknown overlap so many others"):
        exported(run, tmp_path)


def test_what_cannot_be_shown_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.speedscope.json"
    samples = EventTable(columns={"time_ns": np.zeros(1, dtype=np.int64)})
    nothing = build_imported(
        attrs={"model": "m", "backend": "b"}, events={"memory": samples}, wall_ns=1, level="operator"
    )
    with pytest.raises(InputError, match=r"neither iterations nor layers nor events to show; measure it with --level"):
        export_speedscope(nothing, path)
    with pytest.raises(InputError, match="no passes"):
        export_speedscope(synthetic_failed_run(), path)
    monkeypatch.setattr("mlscope_lab.trace.exporters.speedscope._LARGEST", 100)
    with pytest.raises(InputError, match="--to perfetto"):
        export_speedscope(synthetic_run(deep=True), path)
    assert not list(tmp_path.iterdir())
