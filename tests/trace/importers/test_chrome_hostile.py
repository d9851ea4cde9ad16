"""Chrome's format as nobody well-meaning writes it."""

from __future__ import annotations

import gzip
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlscope_lab.errors import InputError, MlscopeError
from mlscope_lab.store import Store
from mlscope_lab.trace.importers import import_trace, json_text
from mlscope_lab.trace.validate import validate
from tests.trace.importers.chrome_files import EVENTS, load, rows, shape, write, x

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
