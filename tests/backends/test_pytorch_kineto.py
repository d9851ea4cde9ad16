"""Kineto's raw records as columns: equal to what the profiler's own, slower, reading gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlscope_lab.backends.pytorch_kineto import (
    Profiler,
    allocations_of,
    columns_of,
    device_columns,
    input_texts,
    profiler_reason,
)
from tests.gpu.recorded import load_recorded

torch = pytest.importorskip("torch", reason="needs PyTorch")


def profiled(work, **options):
    profiler = Profiler(**options)
    try:
        with torch.inference_mode():
            work()
    finally:
        results = profiler.stop()
    return results


def some_work():
    with torch.autograd.profiler.record_function("a range"):
        x = torch.ones(4, 4) @ torch.ones(4, 4)
    return torch.cat([x, x]).relu()


def test_columns_are_those_of_the_profilers_own_events():
    profile = torch.autograd.profiler.profile(use_kineto=True)
    with profile, torch.inference_mode():
        for _ in range(3):
            some_work()
    found = columns_of(profile.kineto_results)
    raw = profile.kineto_results.events()
    assert [found.names[code] for code in found.name] == [event.name() for event in raw]
    assert found.start_ns.tolist() == [event.start_ns() for event in raw]
    assert (found.start_ns + found.duration_ns).tolist() == [event.end_ns() for event in raw]
    assert [found.categories[code] for code in found.category] == [event.activity_type() for event in raw]
    theirs = {(e.name, round(e.time_range.elapsed_us() * 1000)) for e in profile.function_events}
    ours = set(zip((found.names[code] for code in found.name), found.duration_ns.tolist(), strict=True))
    assert theirs <= ours


def test_with_a_device_to_record_the_host_is_the_same():
    results = profiled(some_work)
    plain, device = columns_of(results), columns_of(results, cuda=True)
    assert len(plain) == len(device)
    for column in ("start_ns", "duration_ns", "thread", "device", "flow"):
        np.testing.assert_array_equal(getattr(plain, column), getattr(device, column))
    assert [plain.names[c] for c in plain.name] == [device.names[c] for c in device.name]
    assert [plain.categories[c] for c in plain.category] == [device.categories[c] for c in device.category]
    assert len(set(device.operator.tolist())) == len(device)  # each is known by a number of its own
    assert (device.correlation == -1).all()


def test_of_and_named():
    found = columns_of(profiled(some_work))
    assert [found.names[c] for c in found.name[found.of("user_annotation")]] == ["a range"]
    assert found.of("kernel", "gpu_memcpy").sum() == 0
    assert set(found.name[found.named(lambda name: name == "aten::relu")].tolist()) == {found.names.index("aten::relu")}


def test_shapes_of_inputs():
    results = profiled(some_work, shapes=True)
    found = columns_of(results)
    texts = input_texts(results, np.arange(len(found)))
    by_name = dict(zip((found.names[code] for code in found.name), texts, strict=True))
    assert by_name["aten::matmul"] == "float32[4,4];float32[4,4]"
    assert by_name["aten::relu"] == "float32[8,4]"
    assert by_name["aten::cat"] == "list([4,4],[4,4])"
    assert by_name["a range"] == ""


def test_allocations():
    found = allocations_of(profiled(lambda: torch.zeros(1000), memory=True))
    taken = [each["Bytes"] for each in found.arguments]
    assert 4000 in taken
    assert len(found.time_ns) == len(found.thread) == len(taken)


def test_nothing_recorded():
    assert len(columns_of(None)) == len(columns_of(None, cuda=True)) == 0
    assert len(allocations_of(None).time_ns) == 0


def test_this_profiler_can_be_read():
    assert profiler_reason() is None


class RecordedActivity:
    """An event of a recorded Chrome trace in the form in which Kineto hands activities out."""

    def __init__(self, event):
        self._event, self._args = event, event.get("args", {})

    def name(self):
        return self._event["name"]

    def type(self):
        return self._event["cat"]

    def timestamp(self):
        return int(self._event["ts"] * 1000)

    def duration(self):
        return int(self._event["dur"] * 1000)

    def device_id(self):
        return self._event["pid"]

    def resource_id(self):
        return self._event["tid"]

    def correlation_id(self):
        return self._args.get("correlation", 0)

    def linked_correlation_id(self):
        return self._args.get("External id", 0)

    def metadata_json(self):
        return json.dumps(self._args, default=float)[1:-1]


@pytest.mark.parametrize("name", ["ns_resolution_rank0.pt.trace.json.gz", "cupti_counters.pt.trace.json.gz"])
def test_device_activities(name):
    try:
        trace, events = load_recorded(name)
    except FileNotFoundError as error:
        pytest.skip(f"there is no {error.filename}")
    wanted = trace.of("kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation", "cuda_profiler_range")
    found = device_columns([RecordedActivity(event) for event in events if event["ph"] == "X" and "cat" in event])
    assert len(found) == wanted.sum() > 0
    for column in ("start_ns", "duration_ns", "device", "thread", "correlation", "operator"):
        np.testing.assert_array_equal(getattr(found, column), getattr(trace, column)[wanted], err_msg=column)
    assert list(found.arguments.values()) == [trace.arguments[row] for row in np.flatnonzero(wanted).tolist()]


@pytest.mark.parametrize("odd", ['"grid": [1, 2', '"a": 1}, {"b": 2', "}", "1", ""])
def test_arguments_that_are_no_json_are_left_out(odd):
    class Odd(RecordedActivity):
        def metadata_json(self):
            return odd if self._args == {} else super().metadata_json()

    kernel = {"name": "k", "cat": "kernel", "ts": 1, "dur": 1, "pid": 0, "tid": 7}
    events = [{**kernel, "args": {"correlation": n}} for n in range(1, 6)]
    events.insert(2, kernel)
    found = device_columns([Odd(event) for event in events])
    assert list(found.arguments.values()) == [
        {"correlation": 1},
        {"correlation": 2},
        {},
        *({"correlation": n} for n in (3, 4, 5)),
    ]
    assert found.correlation.tolist() == [1, 2, -1, 3, 4, 5]
    assert (found.operator == -1).all()
