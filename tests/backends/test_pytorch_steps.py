"""Running PyTorch modules operator by operator."""

from __future__ import annotations

import threading
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.errors import SessionError, UnsupportedModelError
from mlscope_lab.testing import StepperContract

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class ConvNet(nn.Module):
    """Convolutions with a residual, an activation in place, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(x)
        return self.fc(self.drop(self.pool(x).flatten(1)))


class Shared(nn.Module):
    """One layer called twice, several outputs of several operators, integers and booleans."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        y = self.fc(torch.relu(self.fc(x)))
        a, b = y.split(4, 1)
        first, *_ = y.unbind(1)
        values, order = torch.topk(y, 3)
        mask = a > b
        positions = torch.arange(4).to(torch.float32)
        mixed = torch.where(mask, a * positions, b)
        return {"mixed": mixed, "first": first, "order": order, "values": values, "mask": mask}


class InPlace(nn.Module):
    """Views of memory that is written to through others."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 2.0))

    def forward(self, x):
        y = x * self.scale
        rows = y.view(-1)
        tail = y[:, 3:]
        y[:, 0] = 5.0
        y[:, 1:3].mul_(-1)
        tail.add_(1)
        flipped = y.t()
        buffer = torch.zeros(4, 6)
        buffer[1] = rows[:6]
        buffer[2:].copy_(y[:2])
        x.add_(1)
        buffer.transpose_(0, 1)
        return buffer @ y + flipped.sum() + x.sum() + rows.max()


class Attention(nn.Module):
    """A transformer encoder: PyTorch's fused path, and the same layer unfused."""

    def __init__(self):
        super().__init__()
        self.fused = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.query = nn.Linear(16, 48)

    def forward(self, x):
        x = self.fused(x)
        q, k, v = self.query(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + attended.transpose(1, 2).reshape(x.shape)


class Recurrent(nn.Module):
    """Recurrent layers, whose operators return several tensors."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0][:, -1]


class HalfInside(nn.Module):
    """bfloat16, float16, complex and double values on the way."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6).to(torch.bfloat16)

    def forward(self, x):
        y = self.fc(x.to(torch.bfloat16)).half().double()
        z = torch.fft.fft(y.float())
        return (z * z.conj()).real + z.abs()


MODULES = {
    "convolutions": (ConvNet, (2, 3, 8, 8)),
    "shared": (Shared, (4, 8)),
    "in place": (InPlace, (4, 6)),
    "attention": (Attention, (2, 5, 16)),
    "recurrent": (Recurrent, (2, 7, 4)),
    "types": (HalfInside, (3, 6)),
}


def make(build):
    torch.manual_seed(0)
    return build().eval()


class Contract(StepperContract):
    @pytest.fixture
    def backend(self):
        return PyTorchBackend()


class TestEager(Contract):
    @pytest.fixture(params=MODULES)
    def live(self, request):
        build, shape = MODULES[request.param]
        return make(build), {"x": array(*shape)}


class TestExported(Contract):
    @pytest.fixture(params=["convolutions", "shared", "attention"], scope="class")
    @classmethod
    def live(cls, request):
        build, shape = MODULES[request.param]
        feeds = {"x": array(*shape)}
        return torch.export.export(make(build), (torch.from_numpy(feeds["x"]),)).module(), feeds


class TestScripted(Contract):
    @pytest.fixture(params=["convolutions", "in place", "recurrent"], scope="class")
    @classmethod
    def live(cls, request):
        build, shape = MODULES[request.param]
        return scripted(make(build)), {"x": array(*shape)}


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


def opened(module, feeds, **options):
    return PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, **options))


def run(stepper, feeds):
    """Run once; returns the graph and copies of the values."""
    arrays = {}
    graph = stepper.run(feeds, lambda index, value: arrays.__setitem__(index, value.copy()))
    return graph, arrays


def stepped(module, feeds):
    """Run once and compare with a plain run, bit by bit; returns the graph, the values and the notes."""
    with opened(module, feeds) as session, session.open_stepper() as stepper:
        graph, arrays = run(stepper, feeds)
        for name, want in session.predict(feeds).items():
            np.testing.assert_array_equal(arrays[graph.outputs[name]], want, err_msg=name)
        return graph, arrays, list(stepper.notes)


def types(graph):
    return [operation.type for operation in graph.operations]


def net(forward, **members):
    """Return a module with members and a forward."""
    module = type("Net", (nn.Module,), {"forward": forward})()
    for name, member in members.items():
        setattr(module, name, member)
    return module.eval()


X = {"x": array(2, 6)}
X_AT_0 = {0: X["x"]}


# -- what is an operation ---------------------------------------------------------------------------------------


def test_names_scopes_kinds_and_parameters():
    graph, _, notes = stepped(make(ConvNet), {"x": array(2, 3, 8, 8)})
    found = [(o.name, o.type, o.kinds, o.parameter_count) for o in graph.operations]
    assert found == [
        ("stem.0/conv2d", "aten::conv2d", ("convolution",), 3 * 3 * 3 * 8 + 8),
        ("stem.1/batch_norm", "aten::batch_norm", ("normalization",), 4 * 8),
        ("stem.2/hardtanh_", "aten::hardtanh_", ("activation",), 0),
        ("body/conv2d", "aten::conv2d", ("convolution",), 8 * 3 * 3 * 8 + 8),
        ("add", "aten::add", ("addition",), 0),
        ("pool/adaptive_avg_pool2d", "aten::adaptive_avg_pool2d", ("pooling",), 0),
        ("flatten", "aten::flatten", ("reshaping",), 0),
        ("fc/linear", "aten::linear", ("product",), 8 * 5 + 5),
    ]
    assert [o.scope for o in graph.operations][:2] == ["stem.0", "stem.1"]
    assert graph.values[0].name == "x"
    assert graph.values[graph.outputs["output"]].name == "fc/linear:0"
    assert notes == []
    residual = graph.operations[4]
    assert residual.inputs == (graph.operations[2].outputs[0], graph.operations[3].outputs[0])


def test_exported_operators_have_the_scopes_of_their_source():
    feeds = {"x": array(2, 3, 8, 8)}
    module = torch.export.export(make(ConvNet), (torch.from_numpy(feeds["x"]),)).module()
    graph, _, _ = stepped(module, feeds)
    eager, _, _ = stepped(make(ConvNet), feeds)
    assert [(o.scope, o.type) for o in graph.operations] == [(o.scope, o.type) for o in eager.operations]


def test_scripted_operators_have_no_scopes_and_a_note_says_so():
    graph, _, notes = stepped(scripted(make(ConvNet)), {"x": array(2, 3, 8, 8)})
    assert {operation.scope for operation in graph.operations} == {""}
    assert any("TorchScript" in note for note in notes)


def test_a_layer_called_twice_and_several_outputs():
    graph, arrays, _ = stepped(make(Shared), {"x": array(4, 8)})
    assert [o.name for o in graph.operations if o.scope == "fc"] == ["fc/linear", "fc/linear#2"]
    split = next(o for o in graph.operations if o.type == "aten::split")
    assert len(split.outputs) == 2
    assert len(next(o for o in graph.operations if o.type == "aten::unbind").outputs) == 8
    positions = next(o for o in graph.operations if o.type == "aten::arange")
    assert positions.inputs == ()
    np.testing.assert_array_equal(arrays[positions.outputs[0]], np.arange(4))
    assert graph.values[graph.outputs["mask"]].dtype == "bool"
    assert graph.values[graph.outputs["order"]].dtype == "int64"


def test_what_does_nothing_is_no_operation():
    graph, _, _ = stepped(net(lambda _, x: nn.functional.dropout(x.contiguous(), 0.5, False).to(torch.float32) + 1), X)
    assert types(graph) == ["aten::add"]


def test_views_of_weights_are_constants_and_what_is_computed_of_them_is_a_value():
    module = net(lambda self, x: x @ self.w.t() + (self.w * 2).sum(), w=nn.Parameter(torch.ones(3, 6)))
    graph, _, _ = stepped(module, X)
    assert types(graph) == ["aten::matmul", "aten::mul", "aten::sum", "aten::add"]
    assert [o.parameter_count for o in graph.operations] == [18, 18, 0, 0]
    assert [o.inputs for o in graph.operations][:2] == [(0,), ()]


def test_outputs_that_no_operation_wrote():
    module = net(lambda self, x: {"same": x, "own": self.w, "number": 3, "sum": x.sum()}, w=nn.Parameter(torch.ones(2)))
    graph, arrays, _ = stepped(module, X)
    assert graph.outputs["same"] == 0
    np.testing.assert_array_equal(arrays[graph.outputs["own"]], np.ones(2))
    assert arrays[graph.outputs["number"]] == 3
    assert types(graph) == ["aten::sum", "constant", "constant"]


def test_memory_as_it_came_is_cleared_so_that_runs_are_the_same():
    def forward(_, x):
        torch.empty(1000, 10)
        return torch.empty_like(x).copy_(x) * 2

    graph, arrays, _ = stepped(net(forward), X)
    assert types(graph) == ["aten::empty", "aten::empty_like", "aten::copy_", "aten::mul"]
    assert not arrays[graph.operations[0].outputs[0]].any()


def test_control_flow_of_an_exported_program_is_one_operation():
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.fc(x) + 1, lambda x: self.fc(x) - 1, (x,))

    module = torch.export.export(net(forward, fc=nn.Linear(6, 4)), (torch.from_numpy(X["x"]),)).module()
    graph, _, _ = stepped(module, X)
    assert types(graph) == ["aten::sum", "aten::gt", "higher_order::cond"]
    assert graph.operations[-1].kinds == ("control",)


def test_a_fused_transformer_layer_stays_fused():
    graph, _, _ = stepped(make(Attention), {"x": array(2, 5, 16)})
    assert types(graph)[0] == "aten::_transformer_encoder_layer_fwd"
    assert "attention" in graph.operations[0].kinds


def test_a_compiled_module_shows_no_operations():
    module = torch.compile(nn.Linear(6, 4).eval(), backend="eager")
    with opened(module, X) as session, pytest.raises(UnsupportedModelError, match="compile"):
        session.open_stepper()


# -- memory that is written to ----------------------------------------------------------------------------------


def test_a_write_through_a_view_makes_its_base_a_new_value():
    def forward(_, x):
        y = x * 1
        y[:, 0] = 7.0
        return y + 0

    graph, arrays, _ = stepped(net(forward), X)
    assert types(graph) == ["aten::mul", "aten::select", "aten::fill_", "aten::alias", "aten::add"]
    fill, alias = graph.operations[2:4]
    assert alias.inputs == (graph.operations[0].outputs[0], fill.outputs[0])
    np.testing.assert_array_equal(arrays[graph.operations[0].outputs[0]], X["x"])
    np.testing.assert_array_equal(arrays[alias.outputs[0]][:, 0], 7)


def test_a_write_elsewhere_in_a_memory_leaves_a_value_alone():
    def forward(_, x):
        y = x.clone()
        first, second = y[0], y[1]
        first.add_(1)
        return second * 2

    graph, _, _ = stepped(net(forward), X)
    assert "aten::alias" not in types(graph)


def test_a_whole_value_written_through_another_name_is_that_value():
    def forward(_, x):
        y = x.clone()
        z = y.detach()
        z.mul_(2)
        return y + 1

    graph, _, _ = stepped(net(forward), X)
    assert types(graph) == ["aten::clone", "aten::detach", "aten::mul_", "aten::add"]
    assert graph.operations[-1].inputs == graph.operations[2].outputs


PLACES = {
    "all": lambda t: t,
    "row": lambda t: t[1:2],
    "column": lambda t: t[:, 1:3],
    "transposed": lambda t: t.t(),
    "flat": lambda t: t.reshape(-1),
    "detached": lambda t: t.detach(),
    "wide": lambda t: t[:, :1].expand(4, 4),
}


class Random(nn.Module):
    """A program drawn at random: new tensors, views, views of views, and writes in place through any of them."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.register_buffer("state", torch.arange(16.0).view(4, 4))

    def forward(self, x):
        pool = [x * 1, self.state, x]
        for kind, first, second, place in self.steps:
            one, other = pool[first % len(pool)], pool[second % len(pool)]
            if kind == "new":
                pool.append(one.reshape(-1)[:4].sum() + other * 0.5)
            elif kind == "view" and one.dim() == 2 and tuple(one.shape) == (4, 4):
                pool.append(PLACES[place](one))
            elif kind == "write" and 0 not in one.stride():
                one.add_(0.25).mul_(1.5)
            elif kind == "copy" and one.shape == other.shape and 0 not in one.stride() and one is not other:
                one.copy_(other + 1)
        return sum(tensor.reshape(-1)[:4].sum() for tensor in pool), pool[-1]


@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from(["new", "view", "view", "write", "copy"]), st.integers(0, 7), st.integers(0, 7),
            st.sampled_from(sorted(PLACES)),
        ),
        min_size=1, max_size=12,
    )
)  # fmt: skip
@hypothesis.settings(deadline=None)
def test_random_programs_of_views_and_writes(steps):
    feeds = {"x": array(4, 4)}
    contract = StepperContract()
    with opened(Random(steps).eval(), feeds) as session, session.open_stepper() as stepper:
        given = (session, stepper)
        graph, arrays = run(stepper, feeds)
        with opened(Random(steps).eval(), feeds) as other:
            for name, want in other.predict(feeds).items():
                np.testing.assert_array_equal(arrays[graph.outputs[name]], want, err_msg=name)
        contract.test_two_runs_are_the_same(given, feeds)
        contract.test_replay_of_each_operation(given, feeds)
        contract.test_replay_of_a_chain(given, feeds)
        contract.test_replacing_by_itself_changes_nothing(given, feeds)


def again(module, feeds):
    """Run single operations and the chain of all again, and put each value in its own place."""
    contract = StepperContract()
    with opened(module, feeds) as session, session.open_stepper() as stepper:
        contract.test_replay_of_each_operation((session, stepper), feeds)
        contract.test_replay_of_a_chain((session, stepper), feeds)
        contract.test_replacing_by_itself_changes_nothing((session, stepper), feeds)


def test_strides_of_ones_own():
    module = net(
        lambda _, x: (x * 1).transpose(0, 1).as_strided((2, 3), (6, 2), 1) + x.unfold(1, 3, 3).sum((1, 2))[:, None]
    )
    graph, _, _ = stepped(module, X)
    assert "aten::as_strided" in types(graph)
    again(module, X)


def test_strides_out_of_a_value_run_but_not_again():
    module = net(lambda _, x: (x * 1)[:, 1:].as_strided((2, 3), (6, 1), 0) + 1)
    stepped(module, X)
    with opened(module, X) as session, session.open_stepper() as stepper:
        graph, arrays = run(stepper, X)
        position = types(graph).index("aten::as_strided")
        given = {value: arrays[value] for value in graph.operations[position].inputs}
        with pytest.raises(SessionError, match="memory around the value"):
            stepper.replay([position], given, graph.operations[position].outputs)


def test_sparse_values_are_shown_dense_and_stay_inside_a_chain():
    module = net(lambda self, x: x.relu().to_sparse() @ self.w, w=nn.Parameter(torch.ones(6, 3)))
    graph, arrays, _ = stepped(module, X)
    sparse = graph.operations[1].outputs[0]
    np.testing.assert_array_equal(arrays[sparse], np.maximum(X["x"], 0))
    with opened(module, X) as session, session.open_stepper() as stepper:
        graph, arrays = run(stepper, X)
        answer = graph.outputs["output"]
        np.testing.assert_array_equal(stepper.replay([0, 1, 2], X_AT_0, [answer])[answer], arrays[answer])
        with pytest.raises(SessionError, match="sparse"):
            stepper.replay([2], {sparse: arrays[sparse]}, [answer])


def autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.part(x)


def differentiated(self, x):
    with torch.inference_mode(False), torch.enable_grad():
        y = x.clone().requires_grad_()
        return torch.autograd.grad(self.part(y).square().sum(), y)[0]


def into_lists(_, x):
    parts = [x * 1, x * 2]
    torch._foreach_mul_(parts, 3)
    return torch.add(parts[0], parts[1], out=torch.empty_like(x))


@pytest.mark.parametrize(
    "forward",
    [
        autocast,
        differentiated,
        into_lists,
        lambda self, x: torch.vmap(lambda row: self.part(row) * row.sum())(x),
        lambda self, x: torch.einsum("ij,kj->ik", x, x).sort(-1)[0] + self.part(x)[:, :2],
        lambda self, x: self.part(x.t().contiguous().t()),
        lambda self, x: torch.stack(list(self.part(x).chunk(3, -1))).tril(),
    ],
    ids=["autocast", "autograd", "lists and out=", "vmap", "einsum", "strided", "chunk"],
)
def test_other_ways_to_compute(forward):
    module = net(forward, part=nn.Linear(6, 6))
    stepped(module, X)
    again(module, X)


def test_a_scripted_module_inside_an_eager_one():
    module = net(lambda self, x: self.part(x) + 1, part=scripted(nn.Sequential(nn.Linear(6, 4), nn.ReLU())))
    graph, _, notes = stepped(module, X)
    assert [(o.type, o.scope) for o in graph.operations] == [
        ("aten::linear", "part"), ("aten::relu", "part"), ("aten::add", "")
    ]  # fmt: skip
    assert notes == []


def test_replaced_views_of_memory_that_is_written_to_later_need_a_first_run():
    def forward(_, x):
        y = x * 1
        head = y[:, :3]
        head.add_(1)
        return y.sum() + head

    def double(index, value):
        return value * 2 if index == 2 else None

    with opened(net(forward), X) as session:
        with session.open_stepper() as stepper, pytest.raises(SessionError, match="run once without replacing"):
            stepper.run(X, double)
        with session.open_stepper() as stepper:
            graph, _ = run(stepper, X)
            arrays = {}

            def receive(index, value):
                arrays[index] = value.copy()
                return double(index, value)

            stepper.run(X, receive)
            head = X["x"][:, :3] * 2 + 1
            whole = np.concatenate([head, X["x"][:, 3:]], 1)
            np.testing.assert_allclose(arrays[graph.outputs["output"]], whole.sum() + head, rtol=1e-5)


def test_a_replaced_view_leaves_its_base_alone():
    def forward(_, x):
        y = x * 1
        flat = y.view(-1)
        return y + 1, flat + 0

    module = net(forward)
    with opened(module, X) as session, session.open_stepper() as stepper:
        graph, plain = run(stepper, X)
        view = graph.operations[1].outputs[0]
        arrays = {}

        def receive(index, value):
            arrays[index] = value.copy()
            return np.zeros_like(value) if index == view else None

        stepper.run(X, receive)
    base, of_view = graph.operations[2].outputs[0], graph.operations[3].outputs[0]
    np.testing.assert_array_equal(arrays[base], plain[base])
    assert not arrays[of_view].any()
    assert plain[of_view].any()


# -- state, chance and what is not seen -------------------------------------------------------------------------


class Remembering(nn.Module):
    """Keeps state in every way: an attribute, a list, a dictionary, an assigned buffer and one written in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(6))
        self.register_buffer("mean", torch.zeros(6))
        self.last = None
        self.cache = []
        self.table = {}

    def forward(self, x):
        self.count.add_(1)
        self.mean = self.mean + x.mean(0)
        if self.last is not None:
            x = x + self.last
        self.last = x * 0.5
        self.cache.append(x)
        self.table["x"] = x
        return x + self.count + self.mean + len(self.cache)


def test_runs_start_from_the_state_that_was_found_and_leave_the_present_one():
    module = Remembering().eval()
    with opened(module, X) as session, session.open_stepper() as stepper:
        first = session.predict(X)["output"]
        second = session.predict(X)["output"]
        results = []
        for _ in range(2):
            graph, arrays = run(stepper, X)
            results.append(arrays[graph.outputs["output"]])
        third = session.predict(X)["output"]
        notes = " ".join(stepper.notes)
        again = opened(Remembering().eval(), X)
        np.testing.assert_array_equal(first, again.predict(X)["output"])
        again.predict(X)
        np.testing.assert_array_equal(third, again.predict(X)["output"])
        again.close()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(results[0], results[1])
    assert "keeps state" in notes
    assert "'count'" in notes
    for tensor in (module.count, module.mean, module.last, *module.cache):
        assert not vars(tensor)


def test_replays_know_what_memory_held_before_the_run():
    def forward(self, x):
        y = x + self.total
        self.total.add_(1)
        return y * self.total

    module = net(forward)
    module.register_buffer("total", torch.zeros(6))
    with opened(module, X) as session, session.open_stepper() as stepper:
        graph, arrays = run(stepper, X)
        session.predict(X)
        assert module.total.tolist() == [1] * 6
        assert replayed(stepper, graph, arrays) == []


def test_the_first_run_of_a_fresh_stateful_module_is_its_first_prediction():
    graph, _, _ = stepped(Remembering().eval(), X)
    assert len(graph.operations) > 4


def test_state_of_a_scripted_module_starts_anew_as_well():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.total = torch.zeros(6)

        def forward(self, x):
            self.total = self.total + x.sum(0)
            return x + self.total

    module = scripted(Counting())
    with opened(module, X) as session, session.open_stepper() as stepper:
        first, second = session.predict(X)["output"], session.predict(X)["output"]
        found = [arrays[graph.outputs["output"]] for graph, arrays in (run(stepper, X) for _ in range(2))]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_array_equal(found[1], first)


def test_random_operators_draw_alike_in_runs_and_in_replays():
    module = net(lambda _, x: nn.functional.dropout(x, 0.5, True) + torch.rand(6))
    with opened(module, X) as session, session.open_stepper() as stepper:
        state = torch.get_rng_state()
        graph, arrays = run(stepper, X)
        _, again = run(stepper, X)
        for position, operation in enumerate(graph.operations):
            given = {value: arrays[value] for value in operation.inputs}
            for value, have in stepper.replay([position], given, operation.outputs).items():
                np.testing.assert_array_equal(have, arrays[value])
        assert torch.equal(torch.get_rng_state(), state)
        np.testing.assert_array_equal(session.predict(X)["output"], arrays[graph.outputs["output"]])
    assert types(graph) == ["aten::dropout", "aten::rand", "aten::add"]
    np.testing.assert_array_equal(again[graph.outputs["output"]], arrays[graph.outputs["output"]])


def test_a_way_through_numpy_is_noted_where_it_happens():
    inner = net(lambda _, x: torch.from_numpy(np.sin(x.numpy())))
    graph, _, notes = stepped(net(lambda self, x: self.part(x * 1) + 1, part=inner), X)
    lifted = next(o for o in graph.operations if o.type == "aten::lift_fresh")
    assert lifted.inputs == ()
    assert lifted.scope == "part"
    assert any("'part'" in note and "numpy" in note for note in notes)


def test_another_thread_is_noted_where_it_happens():
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(6, 6)

        def forward(self, x):
            found = []

            def work():
                with torch.inference_mode():
                    found.append(self.part(x))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return found[0] + 1

    graph, _, notes = stepped(make(Threaded), X)
    assert types(graph) == ["unseen", "aten::add"]
    assert any("'part' runs in another thread" in note for note in notes)
    assert any("no operation made" in note for note in notes)


def test_numbers_taken_out_of_values_are_noted():
    _, _, notes = stepped(net(lambda _, x: x * x.max().item()), X)
    assert any("takes numbers out of values" in note for note in notes)


def test_a_failing_operator_tells_what_ran_before():
    module = net(lambda self, x: self.fc(torch.relu(x)) @ torch.ones(7, 3), fc=nn.Linear(6, 4))
    with opened(module, X) as session, session.open_stepper() as stepper:
        received = []
        with pytest.raises(SessionError, match="shape"):
            stepper.run(X, lambda index, _: received.append(index))
        assert types(stepper.partial())[:2] == ["aten::relu", "aten::linear"]
        assert received == list(range(len(stepper.partial().values)))


def test_an_operator_that_the_module_sees_fail_is_its_own_affair():
    def forward(_, x):
        try:
            return x @ x
        except RuntimeError:
            return x + 1

    graph, _, _ = stepped(net(forward), X)
    assert types(graph) == ["aten::add"]


def test_a_module_cannot_swallow_an_error_of_receive():
    def forward(_, x):
        try:
            return x + 1
        except ValueError:
            return x + 2

    def receive(index, _):
        if index == 1:
            raise ValueError("disk full")

    for module in (net(forward), scripted(nn.Sequential(nn.ReLU(), nn.Linear(6, 2)))):
        refused = pytest.raises(SessionError, match="ValueError: disk full")
        with opened(module, X) as session, session.open_stepper() as stepper, refused:
            stepper.run(X, receive)


def test_a_session_that_traces_or_is_closed_cannot_be_stepped():
    with opened(nn.Linear(6, 4).eval(), X, level="layer") as session:
        stepper = session.open_stepper()
        session.begin_trace()
        with pytest.raises(SessionError, match="tracing"):
            run(stepper, X)
        session.end_trace()
        run(stepper, X)
    with pytest.raises(SessionError, match="closed"):
        run(stepper, X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_values_come_from_a_cuda_device():
    module = make(ConvNet).cuda()
    feeds = {"x": array(2, 3, 8, 8)}
    with opened(module, feeds, device="cuda:0") as session, session.open_stepper() as stepper:
        graph, arrays = run(stepper, feeds)
        plain = session.predict(feeds)["output"]
        np.testing.assert_allclose(arrays[graph.outputs["output"]], plain, rtol=1e-4, atol=1e-5)
        for position, operation in enumerate(graph.operations):
            given = {value: arrays[value] for value in operation.inputs}
            for value, have in stepper.replay([position], given, operation.outputs).items():
                np.testing.assert_allclose(have, arrays[value], rtol=1e-4, atol=1e-5, err_msg=operation.name)


# -- published models -------------------------------------------------------------------------------------------


def replayed(stepper, graph, arrays):
    """Return the names of operations that do not write again, bit by bit, what they wrote."""
    return [
        operation.name
        for position, operation in enumerate(graph.operations)
        for value, have in stepper.replay(
            [position], {v: arrays[v] for v in operation.inputs}, operation.outputs
        ).items()
        if not np.array_equal(have, arrays[value], equal_nan=have.dtype.kind == "f")
    ]


def test_efficientnet_lite0():
    feeds = {"input": array(1, 3, 224, 224)}
    with ml.load("efficientnet-lite0", backend="pytorch", threads=1) as model, model.session.open_stepper() as stepper:
        graph, arrays = run(stepper, feeds)
        plain = model.session.predict(feeds)
        np.testing.assert_array_equal(arrays[graph.outputs["logits"]], plain["logits"])
        assert replayed(stepper, graph, arrays) == []
        assert list(stepper.notes) == []
    kinds = [operation.kinds for operation in graph.operations]
    assert kinds.count(("convolution",)) == 49
    assert kinds.count(("normalization",)) == 49
    assert kinds.count(("product",)) == 1
    assert ("other",) not in kinds
    assert graph.operations[1].scope == "_conv_stem"
    assert sum(operation.parameter_count for operation in graph.operations) >= 4_650_000


def test_silero_starts_each_run_from_the_state_in_which_it_was_found():
    feeds = {"x": array(1, 512), "sr": np.array(16000)}
    with (
        ml.load("silero-vad-torchscript", backend="pytorch", threads=1) as model,
        model.session.open_stepper() as stepper,
    ):
        first, second = (model.session.predict(feeds)["output"] for _ in range(2))
        graph, arrays = run(stepper, feeds)
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(arrays[graph.outputs["output"]], first)
        assert replayed(stepper, graph, arrays) == []
    assert ("recurrent",) in [operation.kinds for operation in graph.operations]
