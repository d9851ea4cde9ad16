"""Chrome's format as people, other tools and nobody well-meaning write it."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlscope_lab.errors import InputError, MlscopeError
from mlscope_lab.store import Store
from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.importers import detect_format, formats, import_trace, json_text
from mlscope_lab.trace.validate import validate

EVENTS = [
    {"ph": "X", "cat": "cpu_op", "name": "a },{ b", "pid": 1, "tid": 2, "ts": 10, "dur": 100,
     "args": {"External id": 1}},
    {"ph": "X", "cat": "cpu_op", "name": 'q "}, {" \\', "pid": 1, "tid": 2, "ts": 20.5, "dur": 10.25,
     "args": {"list": [{"a": 1}, {"b": [{}, {}]}], "Input Dims": [[1, 2], [], [[3], [4, 5]]],
              "Input type": ["float", "Scalar", "TensorList"]}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 2, "ts": 21, "dur": 5,
     "args": {"correlation": 7}},
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": "stream 7", "ts": 40, "dur": 50,
     "args": {"correlation": 7, "grid": [4, 2, 1], "est. achieved occupancy %": 25}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "thread 2 (python)"}},
    {"ph": "i", "name": "mark", "pid": 1, "tid": 2, "ts": 30, "s": "t"},
]  # fmt: skip


def write(folder, text, name="trace.json"):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    return path


def load(folder, events, **options):
    text = events if isinstance(events, str | bytes) else json.dumps({"traceEvents": events})
    return import_trace(write(folder, text), format="chrome", **options)


def rows(run, group):
    if group not in run.children:
        return []
    data = run[group].to_dataset()
    dim = data["pass_index"].dims[0]
    columns = {str(n): v.values.tolist() for n, v in data.data_vars.items() if v.dims == (dim,)}
    columns |= {n[:-5]: table_of(data, n[:-5]) for n in list(columns) if n.endswith("_code")}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def shape(run):
    """What of a run does not depend on how its file is written."""
    return {group: rows(run, group) for group in run.children if group != "passes"}, run["passes"]["wall_ns"].values


FORMS = {
    "pretty": lambda events: json.dumps({"schemaVersion": 1, "traceEvents": events}, indent=2),
    "minified": lambda events: json.dumps({"traceEvents": events}, separators=(",", ":")),
    "events first": lambda events: json.dumps({"traceEvents": events, "other": {"x": [1, {"traceEvents": []}]}}),
    "events last": lambda events: json.dumps({"a": '"traceEvents": [', "b": [[{}]], "c": 1.5, "traceEvents": events}),
    "keys turned round": lambda events: json.dumps(
        {"traceEvents": [dict(reversed(e.items())) for e in events]}, sort_keys=False
    ),
    "a list": json.dumps,
    "a list that is not closed": lambda events: json.dumps(events)[:-1] + ",\n",
    "a mark of the byte order": lambda events: "\ufeff" + json.dumps(events),
    "escaped": lambda events: json.dumps(events).replace("cudaLaunchKernel", "\\u0063udaLaunchKernel"),
    "spaces": lambda events: " \n[\t" + " ,\r\n ".join(json.dumps(e, indent=1) for e in events) + "  \n] ",
}


@pytest.mark.parametrize("block", [16, 100, 2 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_it_gives_the_same_run(form, block, tmp_path, monkeypatch):
    want = shape(load(tmp_path, EVENTS))
    monkeypatch.setattr(json_text, "BLOCK_BYTES", block)
    found = shape(import_trace(write(tmp_path, FORMS[form](EVENTS), "other.json"), format="chrome"))
    assert found == want
    found = shape(import_trace(write(tmp_path, FORMS[form](EVENTS), "other.json.gz")))
    assert found == want


def test_what_the_events_mean(tmp_path):
    run = load(tmp_path, EVENTS)
    outer, inner = rows(run, "operators")
    (call,), (kernel,), (mark,) = rows(run, "runtime"), rows(run, "kernels"), rows(run, "annotations")
    assert (outer["parent_index"], inner["parent_index"], call["operator_index"]) == (-1, 0, 1)
    assert (inner["start_ns"], inner["duration_ns"], inner["thread"]) == (10_500, 10_250, "1/2")
    assert inner["shapes"] == "float[1,2];Scalar;TensorList([3],[4,5])"
    assert (kernel["operator_index"], kernel["runtime_index"], kernel["stream"], kernel["device"]) == (1, 0, 7, 0)
    assert (kernel["grid_x"], kernel["grid_y"], kernel["occupancy"]) == (4, 2, 0.25)
    assert (mark["name"], mark["duration_ns"], mark["start_ns"]) == ("mark", 0, 20_000)
    assert run["operators"].attrs["thread_names"] == {"1/2": "thread 2 (python)"}
    assert run.attrs["backend"] == "chrome"
    assert run["passes"]["dropped_events"].values.tolist() == [0]


def x(name="a", ts=0, dur=1, **more):
    return {"ph": "X", "cat": "c", "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, **more}


def b(name, ts, phase="B", tid=1):
    return {"ph": phase, "cat": "c", "name": name, "pid": 1, "tid": tid, "ts": ts}


def test_begins_and_ends_are_paired_by_thread(tmp_path):
    run = load(tmp_path, [b("end", 0, "E"), b("outer", 1), b("other", 2, tid=2), b("inner", 3), b("", 5, "E"),
                          b("", 9, "E"), b("other", 8, "E", tid=2), b("open", 10)])  # fmt: skip
    found = {row["name"]: row for row in rows(run, "operators")}
    assert {name: (r["start_ns"], r["duration_ns"]) for name, r in found.items()} == {
        "outer": (0, 8000), "inner": (2000, 2000), "other": (1000, 6000),
    }  # fmt: skip
    assert run.attrs["trace"]["dropped"] == {"begin without an end, or end without a begin": 2}
    assert run["passes"]["dropped_events"].values.tolist() == [2]
    assert "2 events begin without an end" in run.attrs["warnings"][0]


def test_counters_and_memory(tmp_path):
    memory = {"ph": "i", "s": "t", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1}
    run = load(tmp_path, [
        x(dur=100),
        {"ph": "C", "name": "load", "pid": 1, "ts": 1, "args": {"busy/s": 2.5, "start_ns": 1, "word": "x"}},
        {"ph": "C", "name": "load", "pid": 1, "ts": 2, "args": {"busy/s": 3}},
        {**memory, "ts": 5, "args": {"Bytes": -512, "Total Allocated": 1024, "Addr": 2**62 + 1, "Device Type": 0,
                                     "Device Id": -1}},
        {**memory, "ts": 6, "args": {"Bytes": 8, "Total Allocated": 8, "Total Reserved": 9, "Device Type": 1,
                                     "Device Id": 0}},
    ])  # fmt: skip
    first, second = rows(run, "counters")
    assert (first["busy_s"], first["start_ns counter"], first["name"]) == (2.5, 1.0, "load")
    assert second["busy_s"] == 3.0
    assert np.isnan(second["start_ns counter"])
    assert run["counters"]["busy_s"].attrs["long_name"] == "busy/s"
    assert (run.attrs["level"], run.attrs["device"]) == ("operator", "unknown")
    freed, allocated = rows(run, "memory")
    assert (freed["bytes"], freed["allocated_bytes"], freed["address"], freed["device"]) == (
        -512,
        1024,
        2**62 + 1,
        "cpu",
    )
    assert (allocated["device"], allocated["reserved_bytes"], allocated["operator_index"]) == ("cuda:0", 9, 0)


def test_steps_are_iterations(tmp_path):
    step = {"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 1, "dur": 10}
    run = load(tmp_path, [{**step, "name": "ProfilerStep#3", "ts": 0}, {**step, "name": "ProfilerStep#4", "ts": 10},
                          x(ts=5), x(ts=10), x(ts=25)])  # fmt: skip
    assert [row["iteration"] for row in rows(run, "operators")] == [0, 1, -1]
    assert run["passes"]["measured_iterations"].values.tolist() == [2]
    overlapping = load(tmp_path, [{**step, "name": f"ProfilerStep#{n}", "ts": n} for n in range(2)] + [x()])
    assert [row["iteration"] for row in rows(overlapping, "operators")] == [-1]
    assert "overlap" in overlapping.attrs["warnings"][0]


def test_the_unix_time_of_the_first_event(tmp_path):
    text = json.dumps({"baseTimeNanoseconds": 1_700_000_000_000_000_000, "traceEvents": [x(ts=1.5)]})
    run = load(tmp_path, text)
    assert run["passes"]["anchor_ns"].values[0] + run.attrs["clock_anchor_unix_ns"] == 1_700_000_000_000_001_500


def test_flows_of_any_kind(tmp_path):
    flow = {"cat": "mine", "name": "mine", "pid": 1, "tid": 1}
    run = load(tmp_path, [x(ts=0), x(ts=5), x(ts=9), {**flow, "ph": "s", "id": "0xff", "ts": 0},
                          {**flow, "ph": "t", "id": "0xff", "ts": 5}, {**flow, "ph": "f", "id": "0xff", "ts": 9},
                          {**flow, "ph": "s", "id": 3, "ts": 0}])  # fmt: skip
    assert [(r["kind"], r["source_index"], r["target_index"]) for r in rows(run, "links")] == [
        ("flow", 0, 1), ("flow", 1, 2),
    ]  # fmt: skip
    assert run.attrs["trace"]["single_flows"] == 1


def test_what_has_no_place_is_counted(tmp_path):
    run = load(tmp_path, [x(), {"ph": "b", "id": 1, "ts": 0}, {"ph": "e", "id": 1, "ts": 1}, {"ph": "e", "ts": 1}])
    assert run.attrs["trace"]["left_out"] == {"b": 1, "e": 2}
    assert "2 of phase 'e'" in run.attrs["warnings"][0]


BAD = {
    "null": "null", "a number": "3", "a list": "[[{}]]", "a string": '"},{"', "no phase": '{"ts": 1}',
    "no time": '{"ph":"X","name":"a","dur":1}', "no duration": '{"ph":"X","name":"a","ts":1}',
    "a negative duration": '{"ph":"X","ts":1,"dur":-1}', "a time of another kind": '{"ph":"X","ts":[1,\n2],"dur":1}',
    "a time that is no number": '{"ph":"X","ts":"soon","dur":1}', "not finite": '{"ph":"X","ts":NaN,"dur":1}',
    "infinite": '{"ph":"X","ts":1,"dur":Infinity}', "beyond 64 bits": '{"ph":"X","ts":1e30,"dur":1}',
    "deep": '{"ph":"X","ts":1,"dur":1,"args":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}",
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("block", [64, 2 << 20])
def test_a_malformed_event_is_counted_and_the_others_stay(what, block, tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "BLOCK_BYTES", block)
    good = json.dumps(x("good"))
    run = load(tmp_path, f'{{"traceEvents": [{good}, {BAD[what]}, {good},{good}], "last": 1}}')
    assert [row["name"] for row in rows(run, "operators")] == ["good"] * 3
    assert run["passes"]["dropped_events"].values.tolist() == [1]
    assert run.attrs["trace"]["events"] == 4
    assert len(run.attrs["warnings"]) == 1


def test_odd_values_of_a_sound_event_do_not_cost_it(tmp_path):
    odd = b"""[{"ph":"X","cat":"kernel","name":"\xff\xfe","pid":1.5,"tid":null,"ts":1,"dur":2,"args":{"correlation":
        123456789012345678901234567890,"stream":"7","grid":[1,"x"],"est. achieved occupancy %":NaN,"bytes":1e400}},
        {"ph":"X","cat":"kernel","name":3,"ts":"1.5","dur":1e0,"args":"none"},
        {"ph":"X","cat":"kernel","name":"inf, NaN","ts":1,"ts":2,"dur":1,"args":{"stream":-5,"x":-Infinity,
         "device":99999999999}}]"""
    run = load(tmp_path, odd)
    first, second, third = rows(run, "kernels")
    assert (first["name"], first["stream"], first["correlation"]) == ("\ufffd\ufffd", 7, -1)
    assert (second["name"], second["start_ns"], second["duration_ns"]) == ("3", 500, 1000)
    assert (third["name"], third["start_ns"], third["device"]) == ("inf, NaN", 1000, -1)
    assert run["passes"]["dropped_events"].values.tolist() == [0]
    assert run.attrs["trace"]["rounded_times"] == 2


@pytest.mark.parametrize("name", ["plain", "inf, NaN", ': inf,"nan": nan', "back\\slash", 'quo"te: inf, "'])
def test_infinities_do_not_touch_names(name, tmp_path):
    event = {**x(name), "cat": "kernel", "args": {"memory bandwidth (GB/s)": "#", "stream": 3, "x": ["#"]}}
    text = json.dumps([event] * 3).replace('"#"', "inf", 3).replace('"#"', "-Infinity", 2).replace('"#"', "NaN")
    run = load(tmp_path, text)
    assert [(row["name"], row["stream"]) for row in rows(run, "kernels")] == [(name, 3)] * 3


def test_halves_of_surrogate_pairs_are_replaced(tmp_path):
    text = '[{"ph":"X","name":"a\\ud800b","cat":"c","ts":0,"dur":1},{"ph":"X","name":"\\ud83d\\ude00","ts":0,"dur":1}]'
    run = load(tmp_path, text)
    assert [row["name"] for row in rows(run, "operators")] == ["a?b", "\U0001f600"]
    store = Store(tmp_path / "runs")
    store.save(run)


def test_identifiers_that_collide(tmp_path):
    call = {"ph": "X", "cat": "cuda_runtime", "name": "launch", "pid": 1, "tid": 1, "dur": 1}
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "dur": 1}
    five = {"args": {"correlation": 5}}
    run = load(tmp_path, [{**call, "ts": 0, **five}, {**call, "ts": 9, **five}, {**kernel, "ts": 3, **five},
                          {**kernel, "ts": 12, "args": {}}])  # fmt: skip
    assert [row["runtime_index"] for row in rows(run, "kernels")] == [0, -1]
    assert run.attrs["warnings"] == [
        "1 calls share their correlation with an earlier one, which counts",
        "1 of 2 pieces of device work have no launch in the trace and belong to no operator",
    ]


def test_graphs_drivers_and_synchronisations(tmp_path):
    def host(name, ts, correlation, cat="cuda_runtime", dur=2):
        return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 9, "ts": ts, "dur": dur,
                "args": {"correlation": correlation}}  # fmt: skip

    def device(name, ts, correlation, cat="kernel", stream=7):
        return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": ts, "dur": 3,
                "args": {"correlation": correlation, "stream": stream, "device": 0}}  # fmt: skip

    flow = {"cat": "ac2g", "name": "ac2g", "id": 1}
    run = load(tmp_path, [
        {**x("aten::mm", 0, 9), "pid": 9, "tid": 9},
        host("cudaGraphLaunch", 1, 1), host("cuLaunchKernelEx", 4, 2, "cuda_driver"),
        device("Stream Sync", 20, 3, "cuda_sync"), host("cudaStreamSynchronize", 12, 3, dur=20),
        device("first", 12, 1), device("second", 16, 1), device("triton", 11, 2, stream=8),
        {**flow, "ph": "s", "pid": 9, "tid": 9, "ts": 1}, {**flow, "ph": "f", "pid": 0, "tid": 7, "ts": 16, "bp": "e"},
        {"ph": "X", "cat": "overhead", "name": "Buffer Flush", "pid": -1, "tid": 0, "ts": 30, "dur": 1},
    ])  # fmt: skip
    kernels, calls = rows(run, "kernels"), rows(run, "runtime")
    assert [(k["name"], calls[k["runtime_index"]]["name"], k["operator_index"]) for k in kernels] == [
        ("first", "cudaGraphLaunch", 0), ("second", "cudaGraphLaunch", 0), ("triton", "cuLaunchKernelEx", 0),
    ]  # fmt: skip
    assert [(c["name"], c["category"], c["operator_index"]) for c in calls[2:]] == [
        ("Stream Sync", "cuda_sync", -1), ("cudaStreamSynchronize", "cuda_runtime", -1),
    ]  # fmt: skip
    assert [(link["source_index"], link["target_index"]) for link in rows(run, "links")] == [(0, 1)]
    assert [row["category"] for row in rows(run, "annotations")] == ["overhead"]
    assert run.attrs["warnings"] == []


def refused(folder, text, name="trace.json", **options):
    with pytest.raises(InputError) as caught:
        import_trace(write(folder, text, name), format="chrome", **options)
    return str(caught.value)


def test_files_that_are_no_traces_say_what_they_are(tmp_path):
    whole = json.dumps({"a": {"b": "c"}, "traceEvents": EVENTS}, indent=1)
    assert "begins with neither" in refused(tmp_path, "hello")
    assert "begins with neither" in refused(tmp_path, "")
    assert "no list traceEvents" in refused(tmp_path, "{}")
    assert "no list traceEvents" in refused(tmp_path, '{"traceEvents": {"a": []}}')
    assert "no events" in refused(tmp_path, "[]")
    assert "no events" in refused(tmp_path, '{"traceEvents": [ ]}')
    assert "1 have no phase" in refused(tmp_path, "[{}]")
    assert "twice" in refused(tmp_path, '{"traceEvents": [], "traceEvents": []}')
    assert "colon" in refused(tmp_path, '{"traceEvents" []}')
    assert "a key was expected" in refused(tmp_path, "{traceEvents: []}")
    assert "event was expected" in refused(tmp_path, '{"traceEvents": [}')
    for cut in range(5, len(whole) - 1, 29):
        assert "truncated" in refused(tmp_path, whole[:cut]), cut


def test_a_list_may_end_anywhere(tmp_path):
    whole = json.dumps(EVENTS)
    for cut in range(whole.index("}}") + 2, len(whole) - 1, 31):
        run = load(tmp_path, whole[:cut])
        assert run["passes"]["dropped_events"].values[0] in {0, 1}
        assert rows(run, "operators")[0]["name"] == "a },{ b"


def test_damaged_gzip_files(tmp_path):
    packed = gzip.compress(json.dumps(EVENTS).encode())
    assert "truncated" in refused(tmp_path, packed[:-20])
    broken = bytearray(packed)
    broken[30] ^= 255
    assert "damaged gzip" in refused(tmp_path, bytes(broken))
    halves = json.dumps(EVENTS).encode()
    members = gzip.compress(halves[:100]) + gzip.compress(halves[100:]) + b"\0" * 100
    path = write(tmp_path, members)
    assert shape(import_trace(path)) == shape(load(tmp_path, EVENTS))


def test_size_is_bounded(tmp_path, monkeypatch):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(b"[")
    for _ in range(64):
        bomb += packer.compress(b" " * (1 << 20))
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(bomb + packer.flush())
    with pytest.raises(InputError, match="max_bytes="):
        import_trace(path, format="chrome", max_bytes=1 << 20)
    monkeypatch.setattr(json_text, "MAX_EVENT_BYTES", 1 << 16)
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 1 << 12)
    with pytest.raises(InputError, match="an event of more than"):
        import_trace(write(tmp_path, json.dumps([x("n" * (1 << 20))])), format="chrome")
    assert "more than 1,000 events" in refused(tmp_path, json.dumps([{}] * 1001), max_bytes=10_000)
    beside = json.dumps({"large": ["x" * 3_000_000], "traceEvents": [x()], "deep": 1})
    assert "large" not in load(tmp_path, beside).attrs["environment"]
    deep = '{"deep": ' + "[" * 200_000 + "]" * 200_000 + f', "traceEvents": [{json.dumps(x())}]}}'
    assert rows(load(tmp_path, deep), "operators")
    deep = '{"deep": ' + "[" * 300 + "1" + "]" * 300 + f', "small": [[1]], "traceEvents": [{json.dumps(x())}]}}'
    assert load(tmp_path, deep).attrs["environment"] == {"small": [[1]]}


def test_too_many_names_are_refused(tmp_path, monkeypatch):
    from mlscope_lab.trace.importers import chrome_columns

    monkeypatch.setattr(chrome_columns, "_MAX_TEXT_BYTES", 1000)
    assert "distinct threads" in refused(tmp_path, json.dumps([x(tid="t" * 400 + str(i)) for i in range(3)]))
    assert "distinct names" in refused(tmp_path, json.dumps([x(f"n{i}") for i in range(20)]))


def test_counters_are_bounded_and_their_names_are_safe(tmp_path):
    names = [
        "../../up",
        "/",
        "..",
        "",
        "a\0b",
        "zarr.json",
        "name_code",
        "x" * 500,
        "\ud800",
        "é",
        "stream",
        "read_bytes",
        "iteration",
    ]
    events = [{"ph": "C", "name": "n", "ts": i, "args": {name: i}} for i, name in enumerate(names)]
    events += [{"ph": "C", "name": "n", "ts": 1, "args": {f"c{i}": 1}} for i in range(400)]
    run = load(tmp_path, [x(), *events])
    store = Store(tmp_path / "runs")
    opened = store.open(store.save(run))
    found = {str(v.attrs["long_name"]): str(n) for n, v in opened["counters"].data_vars.items()}
    assert set(names) - {"\ud800"} <= set(found)
    assert len(run["counters"].data_vars) < 270
    assert run["passes"]["dropped_events"].values[0] > 100
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "trace.json"}


def test_formats_are_told_by_content(tmp_path):
    assert detect_format(write(tmp_path, json.dumps([x()]))) == "chrome"
    assert detect_format(write(tmp_path, json.dumps(EVENTS))) == "kineto"
    assert detect_format(write(tmp_path, json.dumps({"traceEvents": EVENTS}), "x.gz")) == "kineto"
    assert detect_format(write(tmp_path, json.dumps({"schemaVersion": 1, "traceEvents": EVENTS}))) == "kineto"
    with pytest.raises(InputError, match="known format"):
        detect_format(write(tmp_path, "no"))
    with pytest.raises(InputError, match="no such file"):
        import_trace(tmp_path / "none")
    with pytest.raises(InputError, match="Did you mean 'kineto'"):
        import_trace(write(tmp_path, "[]"), format="kinto")
    with pytest.raises(InputError, match="positive"):
        import_trace(write(tmp_path, "[]"), max_bytes=0)
    assert formats()[-2:] == ["kineto", "chrome"]


def test_progress_is_told(tmp_path):
    told = []
    load(tmp_path, EVENTS, progress=lambda done, size: told.append((done, size)))
    assert told[-1][0] == told[-1][1] > 0


PHASES = st.sampled_from(["X"] * 6 + ["B", "E", "s", "t", "f", "i", "C", "M", "b", ""])
CATEGORIES = st.sampled_from(["cpu_op", "cuda_runtime", "kernel", "gpu_memcpy", "user_annotation", "ac2g", "odd"])
RANDOM = st.fixed_dictionaries(
    {"ph": PHASES, "cat": CATEGORIES, "name": st.sampled_from(["a", "ProfilerStep#1", "[memory]", "é"]),
     "pid": st.integers(0, 1), "tid": st.integers(0, 2), "ts": st.integers(0, 30), "dur": st.integers(-1, 12),
     "id": st.integers(0, 3)},
    optional={"args": st.fixed_dictionaries({}, optional={"correlation": st.integers(-1, 4),
                                                          "External id": st.integers(0, 3),
                                                          "Total Allocated": st.integers(-5, 5),
                                                          "stream": st.integers(0, 2)})},
)  # fmt: skip


@hypothesis_settings(max_examples=40, deadline=None)
@given(events=st.lists(RANDOM, max_size=25), seed=st.integers(0, 9))
def test_any_events_give_a_valid_run_or_a_clear_error(events, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    try:
        run = load(folder, events)
    except MlscopeError as error:
        said = str(error)
        run = None
    if run is None:
        assert "no events that could be imported" in said
        return
    validate(run)
    good = [e for e in events if e["ph"] == "X" and e["dur"] >= 0]
    assert sum(row["duration_ns"] for row in rows(run, "kernels")) == 1000 * sum(
        e["dur"] for e in good if e["cat"] in {"kernel", "gpu_memcpy"}
    )
    assert run.attrs["trace"]["events"] == len(events)
    random.Random(seed).shuffle(events)
    again = load(folder, [e for e in events if e["ph"] == "X"]) if good else None
    if again is not None:
        validate(again)


def module(name, ts, dur, **more):
    return x(f"nn.Module: {name}", ts, dur, **more)


def test_calls_of_modules_are_layers(tmp_path):
    step = {"ph": "X", "cat": "user_annotation", "pid": 1, "tid": 1, "dur": 100}
    calls = [[module("Net_0", t, 50), module("Relu_0", t + 1, 5), x("op", t + 2, 1), module("Linear_0", t + 10, 20),
              module("Relu_0", t + 40, 5), x("op", t + 60, 1)] for t in (0, 100)]  # fmt: skip
    launch = {"ph": "X", "cat": "cuda_runtime", "name": "l", "pid": 1, "tid": 1, "ts": 12, "dur": 1,
              "args": {"correlation": 1}}  # fmt: skip
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 180, "dur": 1,
              "args": {"correlation": 1}}  # fmt: skip
    run = load(tmp_path, [{**step, "name": "ProfilerStep#1", "ts": 0}, {**step, "name": "ProfilerStep#2", "ts": 100},
                          *calls[0], *calls[1][:-2], launch, kernel])  # fmt: skip
    layers = run["layers"].to_dataset()
    assert layers["name"].values.tolist() == ["Net_0", "Relu_0", "Linear_0", "Relu_0#2"]
    assert layers["type"].values.tolist() == ["Net", "Relu", "Linear", "Relu"]
    assert layers["scope"].values.tolist() == ["Net_0", "Net_0.Relu_0", "Net_0.Linear_0", "Net_0.Relu_0"]
    assert layers["parent"].values.tolist() == [-1, 0, 0, 0]
    assert (layers["exclusive_ns"].values // 1000).tolist() == [[20, 5, 20, 5], [25, 5, 20, -1]]
    assert [row["layer_index"] for row in rows(run, "operators")] == [0, 1, 1, 2, 3, -1, 0, 1, 1, 2]
    (work,) = rows(run, "kernels")
    assert (work["layer_index"], work["iteration"]) == (2, 0)
    alone = load(tmp_path, [module("Net_0", 0, 1)])
    assert "layers" not in alone.children
    assert "marks no steps" in alone.attrs["unavailable"]["layers"]


RECORD = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
with torch.profiler.profile(
    activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True, with_modules=True, record_shapes=True,
    profile_memory=True, schedule=torch.profiler.schedule(wait=0, warmup=1, active=2, repeat=1),
    on_trace_ready=lambda profile: profile.export_chrome_trace(sys.argv[1]),
) as profile:
    for _ in range(3):
        model(torch.ones(3, 4)).sum().backward()
        profile.step()
"""


def test_a_trace_that_pytorch_writes_today(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "trace.json.gz"
    # in a process of its own: PyTorch's tracer of Python calls does not survive pytest's stack
    subprocess.run([sys.executable, "-c", RECORD, str(path)], check=True, capture_output=True)
    run = import_trace(path)
    validate(run)
    assert run.attrs["backend"] == "kineto"
    assert run.attrs["warnings"] == []
    assert abs(run["passes"]["anchor_ns"].values[0] + run.attrs["clock_anchor_unix_ns"] - time.time_ns()) < 600e9
    layers = run["layers"].to_dataset()
    assert layers["type"].values.tolist() == ["Sequential", "Linear", "ReLU", "Linear"]
    assert layers.sizes["layer_iteration"] == 2
    operators = rows(run, "operators")
    inside = [row["shapes"] for row in operators if row["name"] == "aten::linear" and row["layer_index"] == 1]
    assert inside == ["float[3,4];float[4,4];float[4]"] * 2
    assert {row["kind"] for row in rows(run, "links")} == {"forward_backward"}
    assert {row["device"] for row in rows(run, "memory")} == {"cpu"}
