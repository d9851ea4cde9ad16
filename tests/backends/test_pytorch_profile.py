"""Operators, primitives and allocations of live PyTorch sessions: each in its layer, and nothing made up."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.errors import SessionError
from mlscope_lab.testing import check_layer_trace
from tests.backends.pytorch_traces import Net, check_operators, layer_name, operators, vector

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn


def image():
    return {"x": np.random.default_rng(0).random((1, 16, 64, 64), dtype=np.float32)}


def open_live(module, feeds, level):
    return PyTorchBackend().wrap(module.eval(), feeds, SessionOptions(threads=1, level=level))


def trace_of(module, *feeds, level="operator", warm=True):
    """Trace one predict for each of `feeds`, and check what holds for every trace."""
    with open_live(module, feeds[0], level) as session:
        if warm:
            session.predict(feeds[0])
        session.begin_trace()
        after = time.perf_counter_ns()
        for each in feeds:
            session.predict(each)
        before = time.perf_counter_ns()
        trace = session.end_trace()
    check_layer_trace(trace, iterations=len(feeds), after_ns=after, before_ns=before)
    check_operators(trace)
    assert not any("forward" in part.__dict__ for part in module.modules())
    return trace


def outer_operators(trace, iteration=0):
    table = trace.events["operators"]
    columns = table.columns
    rows = np.flatnonzero((columns["iteration"] == iteration) & (columns["parent_index"] < 0))
    found = [
        (
            table.tables["name"][columns["name_code"][r]].removeprefix("aten::"),
            layer_name(trace, columns["layer_index"][r]),
        )
        for r in rows
    ]
    return [pair for pair in found if pair[1]]


def test_operators_carry_the_layer_that_called_them():
    trace = trace_of(Net(), vector(), vector())
    for iteration in range(2):
        assert outer_operators(trace, iteration) == [
            ("linear", "block.0"), ("relu", "block.1"), ("linear", "fc"), ("tanh", "Net.functional"),
            ("mul", "Net.functional"),
        ]  # fmt: skip
    assert ("aten::addmm", "block.0") in operators(trace)
    assert trace.layers.output_shapes[trace.layers.name.index("fc")] == "float32[2,3]"
    table = trace.events["operators"]
    shapes = {
        (table.tables["name"][n], table.tables["shapes"][s] if s >= 0 else "")
        for n, s in zip(table.columns["name_code"], table.columns["shapes_code"], strict=True)
    }
    assert ("aten::linear", "float32[2,4];float32[8,4];float32[8]") in shapes
    # what is around the model belongs to the iteration and to no layer
    assert any(name == "aten::detach" and not layer for name, layer in operators(trace))


def test_no_mark_of_ours_is_an_operator():
    trace = trace_of(Net(), vector())
    assert not any("mlscope" in name for name in trace.events["operators"].tables["name"])
    assert "annotations" not in trace.events


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.inner = nn.Sequential(self.shared, self.shared)

    def forward(self, x):
        return self.inner(self.shared(self.shared(x)))


def test_each_call_of_a_shared_module_has_its_own_operators():
    found = outer_operators(trace_of(Twice(), vector()))
    assert found == [("linear", name) for name in ("shared", "shared#2", "shared#3", "shared#4")]


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = nn.Linear(4, 4)

    def forward(self, x, depth: int = 2):
        x = self.step(x) + depth
        return self(x, depth - 1) if depth else x


def test_module_that_calls_itself():
    assert outer_operators(trace_of(Recursive(), vector())) == [
        ("linear", "step"), ("add", "Recursive.functional"), ("linear", "step#2"), ("add", "Recursive#2.functional"),
        ("linear", "step#3"), ("add", "Recursive#3.functional"),
    ]  # fmt: skip


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        return self.high(x) if x.mean() > 0 else self.low(x)


@pytest.mark.parametrize("warm", [True, False])
def test_control_flow(warm):
    trace = trace_of(Branches(), vector(-1), vector(1), vector(-1), warm=warm)
    assert ("linear", "low") in outer_operators(trace, 0)
    assert ("tanh", "high.1") in outer_operators(trace, 1)
    assert ("linear", "high.0") not in outer_operators(trace, 2)
    columns = trace.events["operators"].columns
    known = {i: (columns["shapes_code"][columns["iteration"] == i] >= 0).any() for i in range(3)}
    # the untimed run, on the first feeds here, took the same way in the first and the third
    assert known == {0: True, 1: False, 2: True}


def test_shapes_are_not_taken_from_a_run_on_other_inputs():
    trace = trace_of(Net(), vector(n=2), vector(n=3), vector(n=2))
    columns = trace.events["operators"].columns
    assert [(columns["shapes_code"][columns["iteration"] == i] >= 0).any() for i in range(3)] == [True, False, True]


class Fails(nn.Module):
    def __init__(self, caught):
        super().__init__()
        self.bad, self.after = nn.Sequential(nn.ReLU(), nn.Unflatten(1, (3, 3))), nn.Tanh()
        self.caught = caught

    def forward(self, x):
        if x.mean() > 0:
            try:
                x = self.bad(x)
            except RuntimeError:
                if not self.caught:
                    raise
        return self.after(x)


def test_exception_in_a_child_that_is_caught():
    found = outer_operators(trace_of(Fails(caught=True), vector(), vector()), 1)
    assert ("relu", "bad.0") in found
    assert ("tanh", "after") in found


def test_operators_of_a_predict_that_raises_belong_to_no_iteration():
    with open_live(Fails(caught=False), vector(), "operator") as session:
        session.begin_trace()
        session.predict(vector(-1))
        with pytest.raises(SessionError, match="RuntimeError"):
            session.predict(vector(1))
        session.predict(vector(-1))
        trace = session.end_trace()
    check_layer_trace(trace, iterations=2)
    check_operators(trace)
    table = trace.events["operators"]
    relu = table.columns["name_code"] == table.tables["name"].index("aten::relu")
    assert relu.any()
    assert (table.columns["iteration"][relu] == -1).all()
    assert (table.columns["layer_index"][relu] == -1).all()
    assert "bad.0" not in trace.layers.name


class Threaded(nn.Module):
    """Calls one child here and the other in a thread of its own."""

    def __init__(self):
        super().__init__()
        self.here, self.there = nn.Linear(4, 4), nn.Sequential(nn.Tanh())

    def forward(self, x):
        found = []

        def work():
            with torch.inference_mode():
                found.append(self.there(x))

        thread = threading.Thread(target=work)
        thread.start()
        y = self.here(x)
        thread.join()
        return y + found[0]


@pytest.mark.parametrize("level", ["operator", "kernel"])
def test_operators_of_other_threads_are_rows_without_a_layer(level):
    trace = trace_of(Threaded(), vector(), vector(), level=level)
    assert set(trace.layers.name) == {"Threaded", "Threaded.functional", "here"}
    assert ("aten::tanh", "") in operators(trace, 1)
    assert len(trace.events["operators"].tables["thread"]) >= 2
    assert "there" in trace.unavailable["layers of other threads"]
    assert ("allocations" in trace.unavailable) == (level == "kernel")
    assert "memory" not in trace.events


def test_a_session_may_predict_in_another_thread_than_it_was_opened_in():
    with open_live(Net(), vector(), "operator") as session:
        session.predict(vector())
        session.begin_trace()
        thread = threading.Thread(target=session.predict, args=(vector(),))
        thread.start()
        thread.join()
        trace = session.end_trace()
    check_layer_trace(trace, iterations=1)
    assert ("linear", "fc") in outer_operators(trace)


def test_allocations_are_of_the_thread_that_began_the_trace():
    caught = []

    def predict():
        try:
            session.predict(vector())
        except SessionError as error:
            caught.append(str(error))

    with open_live(Net(), vector(), "kernel") as session:
        session.predict(vector())
        session.begin_trace()
        thread = threading.Thread(target=predict)
        thread.start()
        thread.join()
        session.predict(vector())
        check_layer_trace(session.end_trace(), iterations=1)
    assert "one thread alone" in caught[0]


class Gradient(nn.Module):
    """Runs a backward pass of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        with torch.inference_mode(False), torch.enable_grad():
            y = torch.ones(2, 4, requires_grad=True)
            self.fc(y).sum().backward()
        return x + y.grad


def test_backward_operators_are_linked_to_their_forward():
    trace = trace_of(Gradient(), vector(), vector())
    links = trace.events["links"]
    assert links.tables["kind"] == ("forward_backward",)
    table = trace.events["operators"]
    names = [table.tables["name"][c] for c in table.columns["name_code"]]
    pairs = {
        (names[s], names[t]) for s, t in zip(links.columns["source_index"], links.columns["target_index"], strict=True)
    }
    assert ("aten::addmm", "AddmmBackward0") in pairs
    # on a CPU it runs on the thread that asked for it, within that layer
    assert ("AddmmBackward0", "Gradient.functional") in operators(trace)


class Annotated(nn.Module):
    def forward(self, x):
        with torch.autograd.profiler.record_function("my range"):
            return x + 1


def test_ranges_of_users_are_annotations():
    trace = trace_of(nn.Sequential(Annotated()), {"input": vector()["x"]})
    assert trace.events["annotations"].tables["name"] == ("my range",)
    assert outer_operators(trace) == [("add", "0")]
    columns = trace.events["annotations"].columns
    assert columns["iteration"].tolist() == [0]


def test_compiled_modules_are_refused():
    module = torch.compile(Net(), backend="eager")
    with open_live(module, vector(), "operator") as session, pytest.raises(SessionError, match="compiled"):
        session.begin_trace()


def test_a_profiler_that_runs_already_is_named():
    with open_live(Net(), vector(), "operator") as session:
        session.predict(vector())
        with torch.profiler.profile(), pytest.raises(SessionError, match="profiler is running"):
            session.begin_trace()
        session.begin_trace()
        session.predict(vector())
        check_layer_trace(session.end_trace(), iterations=1)


def test_closing_while_tracing_leaves_nothing_behind():
    module = Net()
    session = open_live(module, vector(), "kernel")
    session.predict(vector())
    session.begin_trace()
    session.predict(vector())
    session.close()
    assert not torch.autograd._profiler_enabled()
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_a_trace_without_predicts():
    with open_live(Net(), vector(), "kernel") as session:
        session.begin_trace()
        trace = session.end_trace()
    check_layer_trace(trace, iterations=0)
    assert len(trace.events["operators"]) == len(trace.events["memory"]) == 0


def test_hardware_counters_need_a_device():
    backend = PyTorchBackend()
    assert "counts nothing on a CPU" in backend.level_reason("hardware", "cpu")
    assert backend.level_reason("hardware", "cuda:0") is None
    assert backend.level_reason("kernel", "cpu") is None
    backend.prepare_process(("model", "hardware"), "cuda:0")  # where there is no device there is nothing to prepare
    assert not torch.autograd._profiler_enabled()
    found = backend.capabilities()
    assert found.levels[:4] == ("model", "layer", "operator", "kernel")
    assert ("hardware" in found.levels) == (len(found.devices) > 1)
    assert "hardware" in found.levels or found.unavailable["hardware"]
    with open_live(Net(), vector(), "hardware") as session:
        session.predict(vector())
        if session.device == "cpu":
            with pytest.raises(SessionError, match="CPU"):
                session.begin_trace()


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, 3)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_primitives_and_allocations_at_level_kernel(capfd):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    trace = trace_of(Convolutions(), image(), image(), level="kernel")
    assert "onednn" not in capfd.readouterr().out
    if "oneDNN primitives" not in trace.unavailable:  # another test of this process may have begun its log
        found = operators(trace, 1, category="onednn_primitive")
        assert {layer for name, layer in found if name.startswith("onednn::convolution")} == {"first", "second"}
        table = trace.events["operators"]
        primitive = table.tables["category"].index("onednn_primitive")
        rows = table.columns["category_code"] == primitive
        parents = table.columns["name_code"][table.columns["parent_index"][rows]]
        assert {table.tables["name"][code] for code in parents} == {"aten::mkldnn_convolution"}
        assert table.attrs["onednn_resolution_ns"] == 1000
    memory = trace.events["memory"].columns
    first = trace.layers.name.index("first")
    taken = memory["bytes"][(memory["layer_index"] == first) & (memory["iteration"] == 1) & (memory["bytes"] > 0)]
    assert taken.sum() >= 32 * 62 * 62 * 4
    assert (np.cumsum(memory["bytes"]) == memory["allocated_bytes"]).all()
    assert (np.diff(memory["time_ns"]) >= 0).all()
    own = trace.events["operators"].columns
    assert own["allocated_bytes"][own["layer_index"] == first].max() >= 32 * 62 * 62 * 4


def test_a_run_inline_down_to_kernels():
    run = ml.profile(Convolutions(), image(), level="kernel", on="inline", iterations=4, warmup=2, threads=1)
    passes = run["passes"].to_dataset()
    assert passes["level"].values.tolist() == ["model", "layer", "operator", "kernel"]
    assert (passes["outputs_equal"].values[1:] == 1).all()
    assert np.isfinite(passes["overhead_ratio"].values[1:]).all()
    assert len(set(passes["executable_digest"].values)) == 1
    found = run["operators"].to_dataset()
    assert set(found["pass_index"].values.tolist()) == {2, 3}
    names = run["layers"]["name"].values
    assert {"first", "second"} <= {str(names[i]) for i in np.unique(found["layer_index"].values) if i >= 0}


def test_a_run_in_a_process_of_its_own():
    run = ml.profile(Convolutions(), image(), level="kernel", on="subprocess", iterations=4, warmup=2, threads=1)
    assert run.attrs["status"] == "complete"
    assert run.attrs["execution_mode"] == "exported"
    found = run["operators"].to_dataset()
    assert (found["layer_index"].values >= 0).mean() > 0.5
    assert "onednn_primitive" in found["category_table"].values or "oneDNN primitives" in run.attrs["unavailable"]
    assert run["memory"].sizes["memory_sample"] > 0


def covered(intervals):
    """Return the length of the union of (start, end)."""
    total, until = 0, -1
    for start, end in sorted(intervals):
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total


@pytest.mark.parametrize("module", ["efficientnet", "branches"])
def test_layers_and_operators_never_cover_more_than_there_is(module):
    if module == "efficientnet":
        from mlscope_lab.architectures.efficientnet_lite import build

        network, feeds = build(), {"x": np.zeros((1, 3, 64, 64), np.float32)}
    else:
        network, feeds = Branches(), vector()
    trace = trace_of(network, feeds, feeds)
    columns = trace.events["operators"].columns
    leaf = ~np.isin(np.arange(len(trace.layers)), trace.layers.parent)
    leaf &= np.array(trace.layers.type) != "functional"
    for iteration in range(2):
        ran = np.flatnonzero(leaf & (trace.start_ns[iteration] >= 0))
        start = trace.start_ns[iteration, ran]
        layers = covered(zip(start.tolist(), (start + trace.duration_ns[iteration, ran]).tolist(), strict=True))
        assert 0 < layers <= trace.iteration_duration_ns[iteration]
        mine = (columns["iteration"] == iteration) & np.isin(columns["layer_index"], ran)
        ends = columns["start_ns"] + columns["duration_ns"]
        spans = covered(zip(columns["start_ns"][mine].tolist(), ends[mine].tolist(), strict=True))
        assert 0 < spans <= layers
