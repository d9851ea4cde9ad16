"""Profiles as ONNX Runtime writes them, whole, cut off, spaced otherwise and spoiled."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.backends.onnxruntime_graph import Outline
from mlscope_lab.backends.onnxruntime_profile import Clock, to_layer_trace
from mlscope_lab.errors import SessionError
from mlscope_lab.testing import check_layer_trace

START = 5_000_000_000
CLOCK = Clock(start_ns=START, error_ns=100)


def event(cat, name, ts, dur, args="{}", *, spaced=True):
    if not spaced:
        return json.dumps({"name": name, "cat": cat, "ts": ts, "dur": dur, "args": json.loads(args)})
    return (
        f'{{"cat" : "{cat}","pid" :7,"tid" :7,"dur" :{dur},"ts" :{ts},"ph" : "X",'
        f'"name" :"{json.dumps(name)[1:-1]}","args" : {args}}}'
    )


def kernel(name, ts, dur, op="Relu", index=0, **kwargs):
    args = (
        f'{{"op_name" : "{op}","node_index" : "{index}","provider" : "CPUExecutionProvider","output_size" : "48",'
        f'"parameter_size" : "8","input_type_shape" : [{{"float":[1,3]}},{{"int64":[]}}],'
        f'"output_type_shape" : [{{"double":[2]}},{{"string":[1]}}]}}'
    )
    return event("Node", name + "_kernel_time", ts, dur, args, **kwargs)


def run_of(ts, nodes, dur=None, **kwargs):
    """Return the events of one run: nodes are (name, offset, duration, op)."""
    last = max(at + took for _, at, took, _ in nodes) + 5
    lines = [kernel(n, ts + at, took, op, i, **kwargs) for i, (n, at, took, op) in enumerate(nodes)]
    lines.append(event("Session", "SequentialExecutor::Execute", ts + 1, last - 2, **kwargs))
    lines.append(event("Session", "model_run", ts, dur or last, **kwargs))
    return lines


def write(path, lines):
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return path


def predicts(*starts, dur=100):
    return [(START + 1000 * ts - 3000, 1000 * dur + 6000) for ts in starts]


NODES = [("a", 5, 10, "Conv"), ("b", 20, 30, "Relu"), ("b", 60, 5, "Relu")]


@pytest.mark.parametrize("spaced", [True, False])
def test_rows_times_and_arguments(tmp_path, spaced):
    path = write(tmp_path / "p.json", [*run_of(1000, NODES, spaced=spaced), *run_of(2000, NODES, spaced=spaced)])
    trace = to_layer_trace(path, CLOCK, predicts(1000, 2000), Outline(), "sha256:0")
    check_layer_trace(trace, iterations=2)
    assert trace.layers.name == ("a", "b", "b#2")
    assert trace.layers.type == ("Conv", "Relu", "Relu")
    assert trace.layers.input_shapes[0] == "float32[1,3];int64[]"
    assert trace.layers.output_shapes[0] == "float64[2];str[1]"
    assert (trace.layers.parameter_bytes[0], trace.layers.activation_bytes[0]) == (8, 48)
    assert trace.start_ns[1].tolist() == [START + 1000 * t for t in (2005, 2020, 2060)]
    assert trace.duration_ns[0].tolist() == [10_000, 30_000, 5_000]
    assert trace.dropped_events == 0
    assert trace.unavailable == {}


def test_runs_around_and_between_the_traced_ones_are_left_out(tmp_path):
    lines = [line for ts in (1000, 2000, 3000, 4000, 5000) for line in run_of(ts, NODES)]
    trace = to_layer_trace(write(tmp_path / "p.json", lines), CLOCK, predicts(2000, 4000), Outline(), "")
    assert trace.start_ns[:, 0].tolist() == [START + 2_005_000, START + 4_005_000]


NESTED = [
    ("before", 0, 10, "Relu"), ("inner", 12, 5, "Relu"), ("deep", 21, 3, "Exp"), ("if", 20, 8, "If"),
    ("loop", 11, 20, "Loop"), ("after", 40, 10, "Relu"),
]  # fmt: skip


def test_events_in_the_order_of_their_start_give_the_same_trace(tmp_path):
    lines = [*run_of(1000, NESTED), *run_of(2000, NESTED), *run_of(3000, NESTED)]
    times = [json.loads(text) for text in lines]
    started = [lines[i] for i in sorted(range(len(lines)), key=lambda i: (times[i]["ts"], -times[i]["dur"]))]
    ended, other = (
        to_layer_trace(write(tmp_path / f"{n}.json", some), CLOCK, predicts(1000, 2000, 3000), Outline(), "")
        for n, some in enumerate((lines, started))
    )
    check_layer_trace(other, iterations=3)
    assert other.layers == ended.layers
    assert other.layers.parent == (-1, -1, 1, 1, 3, -1)
    for name in ("start_ns", "duration_ns", "exclusive_ns"):
        assert (getattr(other, name) == getattr(ended, name)).all()


def test_a_failed_run_leaves_nothing_behind(tmp_path):
    failed = [kernel("a", 1905, 10, "Conv", 0), kernel("b", 1920, 30, "Relu", 1)]
    lines = [*run_of(1000, NODES), *failed, *run_of(2000, [*NODES, ("loop", 2, 80, "Loop")])]
    trace = to_layer_trace(write(tmp_path / "p.json", lines), CLOCK, predicts(1000, 2000), Outline(), "")
    check_layer_trace(trace, iterations=2)
    assert (trace.start_ns[1] >= START + 2_000_000).sum() == 4


def test_bodies_follow_containment_and_zero_durations(tmp_path):
    nodes = [
        ("before", 0, 10, "Relu"),
        ("inner", 10, 0, "Relu"),  # begins in the microsecond in which the Loop begins
        ("inner", 15, 5, "Relu"),
        ("loop", 10, 20, "Loop"),
        ("zero", 30, 0, "Relu"),  # begins in the microsecond in which the Loop ends
        ("after", 30, 10, "Relu"),
    ]
    trace = to_layer_trace(write(tmp_path / "p.json", run_of(1000, nodes)), CLOCK, predicts(1000), Outline(), "")
    check_layer_trace(trace, iterations=1)
    table = trace.layers
    parents = {n: table.name[p] if p >= 0 else "" for n, p in zip(table.name, table.parent, strict=True)}
    # the second pass of the body has another node index here, so it is a call site of its own
    assert parents == {"before": "", "loop": "", "inner": "loop", "inner#2": "loop", "zero": "", "after": ""}
    assert trace.exclusive_ns[0, table.name.index("loop")] == 15_000


def test_lost_events_are_counted_and_told(tmp_path):
    lines = [line for ts in (1000, 2000, 3000) for line in run_of(ts, NODES)]
    path = write(tmp_path / "p.json", lines[:7])  # the buffer was full within the second run
    trace = to_layer_trace(path, CLOCK, predicts(1000, 2000, 3000), Outline(), "")
    check_layer_trace(trace, iterations=1)
    assert trace.dropped_events == 2 * 5
    assert "2 of 3 iterations" in trace.unavailable["layers"]
    with pytest.raises(SessionError, match="none of the 1 traced"):
        to_layer_trace(path, CLOCK, predicts(3000), Outline(), "")


def test_no_predicts_give_an_empty_trace(tmp_path):
    path = write(tmp_path / "p.json", run_of(1000, NODES))
    check_layer_trace(to_layer_trace(path, CLOCK, [], Outline(), ""), iterations=0)


def test_a_spoiled_line_is_named(tmp_path):
    path = write(tmp_path / "p.json", [*run_of(1000, NODES)[:2], '{"cat" : "Node", "pid" :', *run_of(2000, NODES)])
    with pytest.raises(SessionError, match=r"line 4 of p\.json"):
        to_layer_trace(path, CLOCK, predicts(1000), Outline(), "")


@pytest.mark.parametrize("name", ['we"ird', "back\\slash", "a/b.c:0", "", "näme", "tab\there", "x_kernel_time"])
def test_names_survive(tmp_path, name):
    path = write(tmp_path / "p.json", run_of(1000, [(name, 5, 10, "Relu")]))
    table = to_layer_trace(path, CLOCK, predicts(1000), Outline(), "").layers
    assert table.name == (name or "unnamed",)
    assert table.output_shapes == ("float64[2];str[1]",)


def test_an_unescaped_name_is_read_all_the_same(tmp_path):
    """Older versions wrote names as they were, which is no JSON once a name holds a quote."""
    lines = [line.replace("plain", 'a"b') for line in run_of(1000, [("plain", 5, 10, "Relu")])]
    table = to_layer_trace(write(tmp_path / "p.json", lines), CLOCK, predicts(1000), Outline(), "").layers
    assert table.name == ('a"b',)
    assert table.type == ("Relu",)
    assert table.output_shapes == ("",)


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=8),
        min_size=1,
        max_size=12,
    ),
    runs=st.integers(1, 4),
)
def test_any_names_give_a_valid_trace(tmp_path_factory, names, runs):
    nodes = [(name, 5 + 10 * i, 7, "Relu") for i, name in enumerate(names)]
    lines = [line for k in range(runs) for line in run_of(1000 * (k + 1), nodes)]
    path = write(tmp_path_factory.getbasetemp() / "named.json", lines)
    starts = [1000 * (k + 1) for k in range(runs)]
    trace = to_layer_trace(path, CLOCK, predicts(*starts, dur=200), Outline(), "")
    check_layer_trace(trace, iterations=runs)
    assert len(trace.layers) == len(names)
    assert len(set(trace.layers.name)) == len(names)


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, 2000))
def test_a_file_cut_anywhere_gives_a_trace_or_our_error(tmp_path_factory, cut):
    whole = "[\n" + ",\n".join([*run_of(1000, NODES), *run_of(2000, NODES)])
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_text(whole[:cut], encoding="utf-8")
    try:
        trace = to_layer_trace(path, CLOCK, predicts(1000, 2000), Outline(), "")
    except SessionError:
        return
    check_layer_trace(trace)
