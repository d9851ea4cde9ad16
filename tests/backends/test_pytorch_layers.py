"""Layer traces of PyTorch modules: every call in its place, and sums that are whole."""

from __future__ import annotations

import threading
import time
import warnings

import numpy as np
import pytest

from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.errors import SessionError
from mlscope_lab.testing import check_layer_trace

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn


def vector(value=1.0):
    return {"x": np.full((2, 4), value, np.float32)}


def open_live(module, feeds):
    return PyTorchBackend().wrap(module.eval(), feeds, SessionOptions(threads=1, level="layer"))


def trace_of(module, *feeds, warm=True):
    """Trace one predict for each of `feeds`, and check what holds for every trace."""
    with open_live(module, feeds[0]) as session:
        if warm:
            session.predict(feeds[0])
        session.begin_trace()
        after = time.perf_counter_ns()
        for each in feeds:
            session.predict(each)
        before = time.perf_counter_ns()
        trace = session.end_trace()
    check_layer_trace(trace, iterations=len(feeds), after_ns=after, before_ns=before)
    assert_whole(trace)
    return trace


def assert_whole(trace):
    """Check that exclusive times of all rows, and durations of all leaves, are the root's time to the nanosecond."""
    layers = trace.layers
    ran = trace.start_ns >= 0
    roots = np.array(layers.parent) < 0
    leaves = ~np.isin(np.arange(len(layers)), layers.parent)
    total = np.where(ran, trace.duration_ns, 0)[:, roots].sum(1)
    np.testing.assert_array_equal(np.where(ran, trace.exclusive_ns, 0).sum(1), total)
    np.testing.assert_array_equal(np.where(ran, trace.duration_ns, 0)[:, leaves].sum(1), total)


def rows(trace):
    """Return {name: (type, parent's name, depth)}."""
    layers = trace.layers
    return {
        name: (kind, layers.name[parent] if parent >= 0 else "", depth)
        for name, kind, parent, depth in zip(layers.name, layers.type, layers.parent, layers.depth, strict=True)
    }


def untouched(module):
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    return not hooked and not any("forward" in m.__dict__ for m in module.modules())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.fc = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.tanh(self.fc(self.block(x))) * self.scale


def test_rows_of_a_small_network():
    trace = trace_of(Net(), vector(), vector())
    assert rows(trace) == {
        "Net": ("Net", "", 0),
        "Net.functional": ("functional", "Net", 1),
        "block": ("Sequential", "Net", 1),
        "block.functional": ("functional", "block", 2),
        "block.0": ("Linear", "block", 2),
        "block.1": ("ReLU", "block", 2),
        "fc": ("Linear", "Net", 1),
    }
    at = {name: index for index, name in enumerate(trace.layers.name)}
    layers = trace.layers
    assert layers.scope[at["Net"]] == ""
    assert layers.scope[at["block.0"]] == "block.0"
    assert layers.input_shapes[at["block.0"]] == "float32[2,4]"
    assert layers.output_shapes[at["fc"]] == "float32[2,3]"
    assert layers.activation_bytes[at["block.1"]] == 2 * 8 * 4
    assert layers.parameter_bytes[at["block.0"]] == (4 * 8 + 8) * 4
    assert layers.parameter_bytes[at["Net"]] == 0
    assert layers.parameter_bytes[at["Net.functional"]] == 3 * 4
    total = sum(p.numel() * p.element_size() for p in Net().parameters())
    assert sum(layers.parameter_bytes) == total
    assert (trace.exclusive_ns[:, at["block"]] == 0).all()
    assert (trace.start_ns[:, at["block.functional"]] == trace.start_ns[:, at["block"]]).all()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.inner = nn.Sequential(self.shared, self.shared)

    def forward(self, x):
        return self.inner(self.shared(self.shared(x)))


def test_each_call_of_a_shared_module_is_a_row():
    found = rows(trace_of(Twice(), vector()))
    assert [name for name in found if name.startswith("shared")] == ["shared", "shared#2", "shared#3", "shared#4"]
    assert found["shared#2"][1:] == ("Twice", 1)
    assert found["shared#4"][1:] == ("inner", 2)


class Clash(nn.Module):
    """Names that our own labels might collide with."""

    def __init__(self):
        super().__init__()
        self.functional = nn.ReLU()
        self.Clash = nn.Sequential(nn.ReLU())
        self.Clash.functional = nn.Tanh()

    def forward(self, x):
        return self.Clash.functional(self.functional(self.Clash(self.functional(x))))


def test_labels_stay_unique():
    found = rows(trace_of(Clash(), vector()))
    assert len(found) == 9
    assert {"Clash", "Clash#2", "functional", "functional#2"} <= set(found)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
        self.last = nn.ReLU()

    def forward(self, x):
        return self.last(self.high(x) if x.mean() > 0 else self.low(x))


@pytest.mark.parametrize("warm", [True, False])
def test_control_flow_makes_the_union_of_rows(warm):
    trace = trace_of(Branches(), vector(-1), vector(1), vector(-1), warm=warm)
    found = rows(trace)
    assert {"low", "high", "high.0", "high.functional", "last", "Branches.functional"} < set(found)
    assert found["last"] == ("ReLU", "Branches", 1)
    at = {name: index for index, name in enumerate(trace.layers.name)}
    assert (trace.start_ns[:, at["low"]] >= 0).tolist() == [True, False, True]
    assert (trace.start_ns[:, at["high.0"]] >= 0).tolist() == [False, True, False]
    assert (trace.exclusive_ns[:, at["high.functional"]] >= 0).tolist() == [False, True, False]


def test_a_branch_of_the_untimed_run_alone_is_no_row():
    module = Branches()
    with open_live(module, vector()) as session:
        session.predict(vector(1))
        session.begin_trace()
        session.predict(vector(-1))
        trace = session.end_trace()
    assert not {"high", "high.0"} & set(trace.layers.name)
    assert "low" in trace.layers.name


class SometimesAlone(nn.Module):
    """Calls its child for positive input only: a container in one iteration, a leaf in the other."""

    def __init__(self):
        super().__init__()
        self.child = nn.ReLU()

    def forward(self, x):
        return self.child(x) if x.mean() > 0 else x + 1


def test_container_without_calls_is_all_functional():
    trace = trace_of(nn.Sequential(SometimesAlone()), {"input": vector()["x"]}, {"input": vector(-1)["x"]})
    at = {name: index for index, name in enumerate(trace.layers.name)}
    assert trace.duration_ns[1, at["0.functional"]] == trace.duration_ns[1, at["0"]]


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = nn.Linear(4, 4)

    def forward(self, x, depth: int = 2):
        x = self.step(x)
        return self(x, depth - 1) if depth else x


def test_module_that_calls_itself():
    found = rows(trace_of(Recursive(), vector()))
    assert found["Recursive#3"] == ("Recursive", "Recursive#2", 2)
    assert found["step#3"] == ("Linear", "Recursive#3", 3)


def test_lstm_and_nested_outputs():
    lstm = nn.LSTM(4, 5, batch_first=True)
    trace = trace_of(lstm, {"input": np.zeros((1, 3, 4), np.float32)})
    assert trace.layers.output_shapes == ("float32[1,3,5];float32[1,1,5];float32[1,1,5]",)
    assert trace.layers.parameter_bytes[0] == sum(p.numel() * 4 for p in lstm.parameters())


class Fails(nn.Module):
    """Fails inside a child, and with `caught` goes on as if nothing had been."""

    def __init__(self, caught):
        super().__init__()
        self.before, self.bad, self.after = nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Unflatten(1, (3, 3))), nn.Tanh()
        self.caught = caught

    def forward(self, x):
        x = self.before(x)
        if x.mean() > 0:
            try:
                x = self.bad(x)
            except RuntimeError:
                if not self.caught:
                    raise
        return self.after(x)


def test_exception_in_a_child_that_is_caught():
    found = rows(trace_of(Fails(caught=True), vector(), vector()))
    assert found["bad.1"] == ("Unflatten", "bad", 2)
    assert found["after"] == ("Tanh", "Fails", 1)


def test_predict_that_raises_is_no_iteration():
    module = Fails(caught=False)
    with open_live(module, vector()) as session:
        session.begin_trace()
        session.predict(vector(-1))
        with pytest.raises(SessionError, match="RuntimeError"):
            session.predict(vector(1))
        session.predict(vector(-1))
        trace = session.end_trace()
        check_layer_trace(trace, iterations=2)
        assert_whole(trace)
        assert "bad" not in trace.layers.name
        assert untouched(module)


def test_failing_untimed_run_leaves_nothing():
    module = Fails(caught=False)
    with open_live(module, vector()) as session:
        session.predict(vector(-1))
        session._feeds = vector(1)
        with pytest.raises(SessionError, match="untimed run"):
            session.begin_trace()
        assert untouched(module)
        session.predict(vector(-1))
        session.begin_trace()
        session.predict(vector(-1))
        check_layer_trace(session.end_trace(), iterations=1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_foreign_hook_that_raises(when):
    module = Net()

    def raises(*_):
        raise ValueError("a hook of somebody else")

    register = "register_forward_pre_hook" if when == "before" else "register_forward_hook"
    with open_live(module, vector()) as session:
        session.predict(vector())
        session.begin_trace()
        session.predict(vector())
        handle = getattr(module.fc, register)(raises)
        with pytest.raises(SessionError, match="somebody else"):
            session.predict(vector())
        handle.remove()
        session.predict(vector())
        trace = session.end_trace()
    check_layer_trace(trace, iterations=2)
    assert_whole(trace)


def test_time_stamps_go_with_the_trace_and_with_the_session():
    module = Net()
    session = open_live(module, vector())
    session.predict(vector())
    assert untouched(module)
    session.begin_trace()
    assert not untouched(module)
    session.end_trace()
    assert untouched(module)
    session.begin_trace()
    session.close()
    assert untouched(module)


def test_random_modules_give_the_same_numbers_when_traced():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    outputs = []
    for traced in (False, True):
        with open_live(Noise(), vector()) as session:
            session.predict(vector())
            if traced:
                session.begin_trace()
            outputs.append(session.predict(vector())["output"])
    np.testing.assert_array_equal(*outputs)


def test_durations_are_those_of_the_work():
    class Sleep(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.nap = Sleep()

        def forward(self, x):
            time.sleep(0.01)
            return self.nap(x)

    trace = trace_of(Root(), vector())
    at = {name: index for index, name in enumerate(trace.layers.name)}
    assert trace.duration_ns[0, at["nap"]] >= 20_000_000
    assert (
        10_000_000 <= trace.exclusive_ns[0, at["Root.functional"]] < trace.duration_ns[0, at["Root"]] - 20_000_000 + 1
    )


def test_attention_keeps_its_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    trace = trace_of(layer, {"src": np.zeros((1, 3, 8), np.float32)})
    assert trace.layers.name == ("TransformerEncoderLayer",)  # its parts run only off that path


def test_a_forward_that_the_module_set_itself_is_given_back():
    module = Net()
    own = module.fc.forward = lambda x: nn.functional.linear(x, module.fc.weight)
    trace = trace_of(module, vector())
    assert "fc" in trace.layers.name
    assert module.fc.__dict__["forward"] is own
    del module.fc.forward


def test_a_forward_called_past_call_is_a_row():
    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc.forward(x)

    assert rows(trace_of(Past(), vector()))["fc"] == ("Linear", "Past", 1)


class Threaded(nn.Module):
    """Calls one child here and the other in a thread of its own."""

    def __init__(self):
        super().__init__()
        self.here, self.there = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        found = []
        thread = threading.Thread(target=lambda: found.append(self.there(x)))
        thread.start()
        y = self.here(x)
        thread.join()
        return y + found[0]


def test_modules_in_other_threads_are_part_of_what_waits_for_them():
    trace = trace_of(Threaded(), vector(), vector())
    assert set(rows(trace)) == {"Threaded", "Threaded.functional", "here"}
    assert "there" in trace.unavailable["layers of other threads"]


@pytest.mark.parametrize("how", ["scripted", "compiled"])
def test_scripted_and_compiled_children_are_layers_of_one_row(how):
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        part = torch.jit.script(inner) if how == "scripted" else torch.compile(inner, backend="eager")
    trace = trace_of(nn.Sequential(part, nn.Tanh()), {"input": vector()["x"]})
    found = rows(trace)
    assert set(found) == {"Sequential", "Sequential.functional", "0", "1"}
    assert trace.layers.parameter_bytes[trace.layers.name.index("0")] == (4 * 4 + 4) * 4


def test_compiled_modules_record_no_layers():
    module = torch.compile(Net(), backend="eager")
    session = PyTorchBackend().wrap(module.eval(), vector(), SessionOptions(level="layer"))
    assert session.execution_mode == "compiled"
    with session, pytest.raises(SessionError, match="compiled"):
        session.begin_trace()
