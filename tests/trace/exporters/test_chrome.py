"""Runs as Chrome traces: exact, well formed whatever names hold, and the same once imported again."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import InputError, StoreError
from mlscope_lab.store import Store
from mlscope_lab.testing import synthetic_failed_run, synthetic_run
from mlscope_lab.trace import schema
from mlscope_lab.trace.attribution import nest
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.events import intern_texts, table_of
from mlscope_lab.trace.exporters import EXPORTERS, export_trace
from mlscope_lab.trace.exporters.chrome import export_chrome
from mlscope_lab.trace.importers import import_trace
from mlscope_lab.trace.records import EventTable

TRACES = Path(__file__).resolve().parents[3].parent / "shared/data/cuda-traces"


@pytest.fixture(scope="module")
def run():
    return synthetic_run(deep=True, processes=1)


def exported(run, folder, name="trace.json"):
    path = export_chrome(run, folder / name)
    text = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    return json.loads(text)


def columns_of(run, group):
    """Every column of a group in comparable form: text for codes, times since 1970."""
    data = run[group].dataset
    origin = run["passes"]["anchor_ns"].values[data["pass_index"].values] + (run.attrs["clock_anchor_unix_ns"] or 0)
    found = {}
    for name, variable in data.variables.items():
        if name.endswith("_code"):
            found[name] = np.array(table_of(data, name[:-5]), dtype=object)
        elif variable.dims == (schema.EVENT_DIMS[group],):
            found[name] = variable.values + origin if name in {"start_ns", "time_ns"} else variable.values
    return found


def assert_equal(one, other, group, *, but=()):
    first, second = columns_of(one, group), columns_of(other, group)
    assert first.keys() - set(but) == second.keys() - set(but)
    for name in first.keys() - set(but):
        np.testing.assert_array_equal(first[name], second[name], err_msg=f"/{group} {name}")


def test_a_trace_comes_back_with_equal_tables(run, tmp_path):
    back = import_trace(export_chrome(run, tmp_path / "trace.json"))
    # Chrome's format has no layers and passes; iterations are steps of PyTorch's profiler there
    beyond = {"pass_index", "layer_index"}
    for group in ("operators", "runtime", "links", "memory"):
        assert_equal(run, back, group, but=beyond | ({"iteration"} if group == "memory" else set()))
    steps = np.char.startswith(np.array(table_of(back["annotations"].dataset, "name")), "ProfilerStep#")
    assert steps.sum() == 8
    back["annotations"] = back["annotations"].isel(annotation=~steps).to_dataset()
    assert_equal(run, back, "annotations", but=beyond)
    counters = {"dram_read_bytes.sum", "dram_write_bytes.sum", "flop_count_sp"}
    assert_equal(run, back, "kernels", but=beyond | counters | {"category_code"})
    ranges = back["counters"].isel(range=np.flatnonzero(back["counters"]["duration_ns"].values > 0))
    for name in ("start_ns", "duration_ns", "smsp__inst_executed.sum"):
        shift = int(ranges["start_ns"].values[0] - run["counters"]["start_ns"].values[0]) if name == "start_ns" else 0
        np.testing.assert_array_equal(ranges[name].values - shift, run["counters"][name].values)


@pytest.mark.parametrize(
    "name", ["ns_resolution_rank0.pt.trace.json.gz", "cupti_counters.pt.trace.json.gz", "two_ranks_rank0.json.gz"]
)
def test_a_recorded_trace_comes_back_with_equal_tables(name, tmp_path):
    if not (TRACES / name).is_file():
        pytest.skip(f"{name} is not here")
    run = import_trace(TRACES / name)
    store = Store(tmp_path / "runs")
    opened = store.open(store.save(run))
    back = import_trace(export_chrome(opened, tmp_path / "trace.json.gz"))
    groups = [group for group in schema.EVENT_GROUPS if group in run.children]
    assert groups == [group for group in schema.EVENT_GROUPS if group in back.children]
    for group in groups:
        assert_equal(run, back, group)


TIMES = st.tuples(st.integers(0, 10**15), st.integers(0, 10**6), st.sampled_from(["1/1", "1/2", "Spans/a b", "7/1"]),
                  st.text(st.characters(codec="utf-8"), max_size=6))  # fmt: skip


@given(rows=st.lists(TIMES, min_size=1, max_size=30))
def test_any_operators_come_back_with_equal_tables(tmp_path_factory, rows):
    start, duration, threads, names = (list(column) for column in zip(*rows, strict=True))
    tables, codes = {"category": ("cpu_op",)}, {"category_code": np.zeros(len(rows), dtype=np.int32)}
    for name, texts in (("thread", threads), ("name", names)):
        codes[f"{name}_code"], tables[name] = intern_texts(texts)
    times = {"start_ns": np.array(start, dtype=np.int64), "duration_ns": np.array(duration, dtype=np.int64)}
    parents = nest(times["start_ns"], times["duration_ns"], codes["thread_code"])
    table = EventTable(columns={**times, **codes, "parent_index": parents}, tables=tables)
    run = build_imported(attrs={"model": "m", "backend": "b"}, events={"operators": table}, level="operator",
                         wall_ns=2 * 10**15, anchor_ns=min(start))  # fmt: skip
    back = import_trace(export_chrome(run, tmp_path_factory.mktemp("any") / "trace.json"))
    assert_equal(run, back, "operators", but={"correlation", "sequence"})
    assert not back.attrs["trace"]["dropped"]


def test_times_are_exact_and_small_enough_for_a_viewer(run, tmp_path):
    trace = exported(run, tmp_path)
    base = trace["baseTimeNanoseconds"]
    starts = columns_of(run, "kernels")["start_ns"]
    found = [e for e in trace["traceEvents"] if e.get("cat") in {"kernel", "gpu_memcpy"}]
    # a double holds microseconds with three decimals up to 2**53 ns: a hundred days of trace
    assert [base + round(e["ts"] * 1000) for e in found] == starts.tolist()
    assert [round(e["dur"] * 1000) for e in found] == run["kernels"]["duration_ns"].values.tolist()
    assert all("." in line.split('"ts":')[1][:20] for line in (tmp_path / "trace.json").read_text().splitlines()[1:9])


def test_every_kind_of_event_has_its_place(run, tmp_path):
    events = exported(run, tmp_path)["traceEvents"]
    phases = defaultdict(list)
    for event in events:
        phases[event["ph"]].append(event)
        assert isinstance(event["name"], str)
        assert {"pid", "ts"} <= event.keys()
    kernels = [e for e in phases["X"] if e["cat"] == "kernel"]
    assert {(e["pid"], e["tid"]) for e in kernels} == {(0, 7), (0, 9)}
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in phases["M"] if e["name"] == "thread_name"}
    assert named[0, 7] == "stream 7"
    assert kernels[1]["args"]["layer"] == "block0"
    flows = {e["id"]: e for e in phases["s"]}
    calls = {(e["pid"], e["tid"], e["ts"]) for e in phases["X"] if e["cat"] == "cuda_runtime"}
    for finish in phases["f"]:
        start = flows[finish["id"]]
        assert (start["pid"], start["tid"], start["ts"]) in calls
        assert start["ts"] <= finish["ts"]
        assert finish["bp"] == "e"
    counters = {e["name"] for e in phases["C"]}
    assert counters == {"memory allocated cpu", "power cuda:0", "energy cuda:0", "temperature cuda:0"}
    assert all(len(e["args"]) == 1 for e in phases["C"])


def test_layers_are_slices_of_their_pass_that_nest(run, tmp_path):
    events = exported(run, tmp_path)["traceEvents"]
    stacks, most, opened = defaultdict(list), 0, []
    for event in [e for e in events if e["ph"] in "be"]:
        stack = stacks[event["pid"], event["id"]]
        if event["ph"] == "b":
            assert not stack or stack[-1]["ts"] <= event["ts"]
            stack.append(event)
            opened.append([e["name"] for e in stack])
        else:
            assert stack.pop()["name"] == event["name"]
        most = max(most, len(stack))
    assert not any(stacks.values())
    assert most == 4
    assert ["layer pass 1", "iteration 0", "block0", "block0.layer1"] in opened
    assert ["model pass 0", "iteration 19", "predict"] in opened


NASTY = ['say "hi"\n', "</script><script>alert(1)</script>", "back\\slash", "\x00\x1f\u2028", "été 🐈", ""]


def test_names_survive_whatever_they_hold(tmp_path):
    n = len(NASTY)
    times = {"start_ns": np.arange(n, dtype=np.int64) * 10, "duration_ns": np.full(n, 7, dtype=np.int64)}
    table = EventTable(
        columns={"name_code": np.arange(n, dtype=np.int32), "thread_code": np.zeros(n, np.int32), **times},
        tables={"name": tuple(NASTY), "thread": ('a "b"/c\n',)},
    )
    run = build_imported(
        attrs={"model": NASTY[0], "backend": NASTY[1]}, events={"operators": table}, wall_ns=80, level="operator"
    )
    for name in ("trace.json", "trace.json.gz"):
        found = [e for e in exported(run, tmp_path, name)["traceEvents"] if e["ph"] == "X"]
        assert [e["name"] for e in found] == NASTY
        assert {(e["pid"], e["tid"]) for e in found} == {('a "b"', "c\n")}


def test_a_thread_that_has_only_a_name_is_one_thread_in_every_group(tmp_path):
    def table(names):
        n = len(names)
        times = {"start_ns": np.arange(n, dtype=np.int64) * 10, "duration_ns": np.full(n, 5, dtype=np.int64)}
        return EventTable(columns={**times, "thread_code": np.arange(n, dtype=np.int32)}, tables={"thread": names})

    groups = {"operators": table(("python", "worker")), "runtime": table(("worker",))}
    run = build_imported(attrs={"model": "m", "backend": "b"}, events=groups, wall_ns=15, level="operator")
    events = exported(run, tmp_path)["traceEvents"]
    named = {e["args"]["name"]: (e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert [(e["pid"], e["tid"]) for e in events if e["ph"] == "X"] == [
        named["python"], named["worker"], named["worker"],
    ]  # fmt: skip


def test_what_is_not_known_is_left_out(tmp_path):
    table = EventTable(columns={"start_ns": np.array([5]), "duration_ns": np.array([3])})
    run = build_imported(attrs={"model": "m", "backend": "b"}, events={"kernels": table}, wall_ns=8, level="kernel")
    event = next(e for e in exported(run, tmp_path)["traceEvents"] if e["ph"] == "X")
    assert event == {"ph": "X", "cat": "kernel", "name": "", "pid": "device", "tid": "no stream", "ts": 0.005,
                     "dur": 0.003, "args": {}}  # fmt: skip
    back = import_trace(tmp_path / "trace.json")
    assert back["kernels"]["device"].values.tolist() == back["kernels"]["stream"].values.tolist() == [-1]


def test_a_file_is_whole_or_not_there(run, tmp_path, monkeypatch):
    (tmp_path / "trace.json").write_text("the old one")
    monkeypatch.setattr("mlscope_lab.trace.exporters.chrome._Trace._flows", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_chrome(run, tmp_path / "trace.json")
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    assert (tmp_path / "trace.json").read_text() == "the old one"


def test_places_that_cannot_be_written_are_named(run, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        export_chrome(run, tmp_path)
    with pytest.raises(StoreError, match=r"absent.*cannot be written as Chrome trace"):
        export_chrome(run, tmp_path / "absent" / "trace.json")
    with pytest.raises(InputError, match="no passes to export"):
        export_chrome(synthetic_failed_run(), tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'perfetto'"):
        export_trace(run, tmp_path / "x", "perfeto")
    assert EXPORTERS["perfetto"] == EXPORTERS["chrome"]
