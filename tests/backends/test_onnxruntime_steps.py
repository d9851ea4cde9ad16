"""ONNX Runtime's stepper: against the contract, on real models fused and not, and on what ONNX allows."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.errors import InputError, SessionError, UnsupportedModelError
from mlscope_lab.testing import StepperContract

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from tests.backends.onnx_models import (  # noqa: E402
    captured,
    constant,
    floats,
    light,
    noise,
    published,
    save,
    sound,
    squeeze_and_excite,
    value,
    weight,
)

ONE = SessionOptions(threads=1)
STATM, PAGE = Path("/proc/self/statm"), resource.getpagesize()
RAW = SessionOptions(threads=1, graph_optimization="none")


def opened(files, options=ONE):
    return OnnxRuntimeBackend().open(files, options)


def stepped(files, feeds=None, options=ONE):
    """Return graph, values, and plain outputs; stepped outputs are the plain ones, bit by bit."""
    with opened(files, options) as session, session.open_stepper() as stepper:
        feeds = noise(session) if feeds is None else feeds(session) if callable(feeds) else feeds
        plain = session.predict(feeds)
        graph, kept = captured(stepper, feeds)
        assert sorted(kept) == list(range(len(graph.values)))
        for name, array in plain.items():
            np.testing.assert_array_equal(kept[graph.outputs[name]], array, err_msg=name)
        for position, operation in enumerate(graph.operations):
            found = stepper.replay([position], {i: kept[i] for i in operation.inputs}, operation.outputs)
            for index, array in found.items():
                np.testing.assert_array_equal(array, kept[index], err_msg=operation.name)
    return graph, {graph.values[i].name: array for i, array in kept.items()}, plain


class TestContract(StepperContract):
    """A network with blocked layouts, 20 channels: more than fill a block, and not a multiple of one."""

    @pytest.fixture
    def backend(self):
        return OnnxRuntimeBackend()

    @pytest.fixture
    def model_files(self, tmp_path):
        return squeeze_and_excite(tmp_path, 20)

    @pytest.fixture
    def feeds(self):
        return {"x": np.random.default_rng(7).normal(size=(2, 3, 12, 12)).astype(np.float32)}


class TestContractUnfused(TestContract):
    """The same as its file has it."""

    options = SessionOptions(threads=1, graph_optimization="none")


class TestContractTwoThreads(TestContract):
    """The same with two threads."""

    options = SessionOptions(threads=2)


class TestBlockedLayout:
    """Values in NCHWc are shown as the published graph has them."""

    @pytest.mark.parametrize("channels", [32, 24, 20, 6])
    def test_values_are_those_of_the_unfused_graph(self, channels, tmp_path):
        files = squeeze_and_excite(tmp_path, channels)
        feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 12, 12)).astype(np.float32)}
        _, plain, _ = stepped(files, feeds, RAW)
        graph, fused, _ = stepped(files, feeds)
        by_source = {}
        for operation in graph.operations:
            if not operation.type.startswith("Reorder"):
                by_source[(operation.sources or (operation.name,))[-1]] = fused[graph.values[operation.outputs[0]].name]
        assert {"bend", "deep", "gate", "bend2", "last"} <= set(by_source)
        for node, tensor in (("bend", "r1"), ("deep", "cd"), ("gate", "sg"), ("bend2", "hs"), ("last", "c4")):
            assert by_source[node].shape == plain[tensor].shape
            np.testing.assert_allclose(by_source[node], plain[tensor], rtol=1e-4, atol=1e-5, err_msg=node)

    def test_fused_kinds_and_sources(self, tmp_path):
        with opened(squeeze_and_excite(tmp_path, 20)) as session, session.open_stepper() as stepper:
            graph, _ = captured(stepper, noise(session))
            assert stepper.notes == ()
        found = {operation.sources: operation.kinds for operation in graph.operations}
        assert found["stem", "bend"] == ("convolution", "activation")
        assert found["project", "around", "bend2"] == ("convolution", "addition", "activation")
        assert found[("deep",)] == ("convolution",)
        assert all(o.kinds == ("layout",) for o in graph.operations if o.type.startswith("Reorder"))

    def test_concatenation_in_blocks(self):
        graph, fused, _ = stepped(light("squeezenet"))
        _, plain, _ = stepped(light("squeezenet"), options=RAW)
        (last,) = [o for o in graph.operations if o.type == "ReorderOutput"]
        joined = [o for o in graph.operations if o.type == "Concat"]
        assert len(joined) == 8
        assert last.kinds == ("layout",)
        first = fused[graph.values[joined[0].outputs[0]].name]
        assert first.shape == plain["r9"].shape
        np.testing.assert_allclose(first, plain["r9"], rtol=1e-4, atol=1e-6)


class TestOrder:
    """The order of operations is that of the published graph, each time."""

    def test_it_is_the_same_each_time(self):
        graphs = []
        for _ in range(3):
            with opened(light("shufflenet")) as session, session.open_stepper() as stepper:
                graphs.append(captured(stepper, noise(session))[0])
        assert graphs[0] == graphs[1] == graphs[2]

    def test_constants_are_no_values(self):
        graph, values, _ = stepped(light("squeezenet"), options=RAW)
        assert not any(operation.type == "ConstantOfShape" for operation in graph.operations)
        assert "conv1_w_0" not in values
        first = graph.operations[0]
        assert (first.type, first.parameter_count) == ("Conv", 64 * 3 * 3 * 3 + 64)


@pytest.fixture(scope="module")
def models():
    """Published models, fetched and converted in the user's own cache."""
    names = ("efficientnet-lite0", "basic-pitch", "magika", "mtcnn-pnet", "silero-vad")
    return {name: published(name) for name in names}


@pytest.mark.network
class TestPublishedModels:
    """Published models, fused and as their files have them: bit by bit what the session computes."""

    @pytest.mark.parametrize("options", [ONE, RAW], ids=["fused", "unfused"])
    def test_efficientnet(self, models, options):
        graph, _, _ = stepped(models["efficientnet-lite0"], options=options)
        assert len(graph.operations) == (53 if options is ONE else 94)
        products = [o for o in graph.operations if {"convolution", "product"} & set(o.kinds)]
        assert len(products) == 50
        assert all(operation.scope for operation in products)
        if options is ONE:
            assert sum(o.kinds == ("convolution", "activation") for o in products) == 33
            assert sum(o.kinds == ("convolution", "addition") for o in products) == 9
            assert sum(len(o.sources) for o in graph.operations if o.type == "Conv") == 49 + 33 + 9

    @pytest.mark.parametrize("options", [ONE, RAW], ids=["fused", "unfused"])
    @pytest.mark.parametrize("name", ["basic-pitch", "magika", "mtcnn-pnet"])
    def test_others(self, models, name, options):
        feeds = None if name != "mtcnn-pnet" else {"input_1": noise_picture()}
        graph, _, _ = stepped(models[name], feeds, options=options)
        assert len(graph.operations) > 10

    @pytest.mark.parametrize("options", [ONE, RAW], ids=["fused", "unfused"])
    def test_silero_is_seen_into(self, models, options):
        graph, _, _ = stepped(models["silero-vad"], sound, options)
        types = [operation.type for operation in graph.operations]
        assert "If" not in types
        assert sum(o.kinds[0] == "convolution" for o in graph.operations) == 6
        assert types.count("LSTM") == 1
        fused = [o for o in graph.operations if o.type == "FusedConv"]
        assert [len(o.sources) for o in fused] == ([2] * 5 if options is ONE else [])
        assert all(o.sources in {(), (o.name,)} for o in graph.operations if o.type in {"Squeeze", "Identity", "LSTM"})
        slow, _, _ = stepped(models["silero-vad"], SLOW, options)
        names = [{o.name for o in g.operations} for g in (graph, slow)]
        assert any("then_branch" in name for name in names[0])
        assert not any("then_branch" in name for name in names[1])
        assert any("else_branch" in name for name in names[1])


SLOW = {
    "input": np.random.default_rng(0).normal(size=(1, 288)).astype(np.float32),
    "state": np.zeros((2, 1, 128), np.float32),
    "sr": np.array(8000, np.int64),
}


def noise_picture():
    return np.random.default_rng(0).normal(size=(1, 24, 24, 3)).astype(np.float32)


class TestQuantized:
    """Integer tensors tell their scale."""

    def test_values_of_a_quantized_model(self, tmp_path):
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s1", "z1"], ["xq"], name="in"),
            helper.make_node("Transpose", ["xq"], ["xt"], perm=[1, 0], name="turn"),
            helper.make_node("QLinearMatMul", ["xt", "s1", "z1", "w", "s2", "z2", "s3", "z3"], ["yq"], name="product"),
            helper.make_node("DequantizeLinear", ["yq", "s3", "z3"], ["y"], name="out"),
            helper.make_node("DynamicQuantizeLinear", ["y"], ["q", "qs", "qz"], name="dynamic"),
        ]
        scales = {"s1": 0.5, "s2": 0.25, "s3": 2.0}
        zeros = {"z1": 7, "z2": 0, "z3": 100}
        files = save(
            tmp_path, nodes, [floats("x", 4, 3)], [floats("y"), value("q", TensorProto.UINT8, None)],
            initializers=[
                *(constant(n, np.float32(s)) for n, s in scales.items()),
                *(constant(n, np.uint8(z)) for n, z in zeros.items()),
                constant("w", np.arange(8, dtype=np.uint8).reshape(4, 2)),
            ],
        )  # fmt: skip
        feeds = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
        graph, values, _ = stepped(files, feeds, RAW)
        found = {v.name: v.quantization for v in graph.values}
        assert found["xq"] == found["xt"] == (0.5, 7)
        assert found["yq"] == (2.0, 100)
        assert found["y"] is None
        assert found["q"] == (pytest.approx(float(values["qs"])), int(values["qz"]))
        real = (values["yq"].astype(float) - 100) * 2.0
        np.testing.assert_allclose(real, values["y"])


class TestWhatOnnxAllows:
    """Graphs that are valid, and rare."""

    def test_left_out_inputs_and_shared_constants(self, tmp_path):
        nodes = [
            helper.make_node("Resize", ["x", "", "scales"], ["big"], name="grow", mode="nearest"),
            helper.make_node("Clip", ["big", "", "top"], ["low"], name="cut"),
            helper.make_node("Add", ["low", "top"], ["a"]),
            helper.make_node("Mul", ["a", "a"], ["y"]),
        ]
        files = save(
            tmp_path, nodes, [floats("x", 1, 1, 2, 2)], [floats("y")],
            initializers=[constant("scales", np.float32([1, 1, 2, 2])), constant("top", np.float32(0.25))],
        )  # fmt: skip
        graph, _, _ = stepped(files, options=RAW)
        assert [o.name for o in graph.operations] == ["grow", "cut", "a", "y"]
        assert [len(o.inputs) for o in graph.operations] == [1, 1, 1, 2]
        assert [o.parameter_count for o in graph.operations] == [4, 1, 1, 0]

    def test_several_outputs_some_left_out(self, tmp_path):
        nodes = [
            helper.make_node("TopK", ["x", "k"], ["best", "at"], name="top"),
            helper.make_node("Split", ["best"], ["left", "right"], name="parts", axis=1),
            helper.make_node("LSTM", ["seq", "w", "r"], ["", "last"], name="memory", hidden_size=2),
        ]
        files = save(
            tmp_path, nodes, [floats("x", 2, 6), floats("seq", 3, 1, 4)],
            [value("at", TensorProto.INT64, None), floats("left"), floats("right"), floats("last")],
            initializers=[constant("k", np.int64([4])), weight("w", 1, 8, 4), weight("r", 1, 8, 2)], opset=13,
        )  # fmt: skip
        graph, _, _ = stepped(files)
        assert {o.name: len(o.outputs) for o in graph.operations} == {"top": 2, "parts": 2, "memory": 1}

    def test_sequences_are_carried_and_not_shown(self, tmp_path):
        nodes = [
            helper.make_node("SplitToSequence", ["x"], ["parts"], name="split", axis=0),
            helper.make_node("ConcatFromSequence", ["parts"], ["y"], name="join", axis=1),
        ]
        files = save(tmp_path, nodes, [floats("x", 3, 2)], [floats("y")])
        feeds = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
        with opened(files, RAW) as session, session.open_stepper() as stepper:
            graph, kept = captured(stepper, feeds)
            assert [v.name for v in graph.values] == ["x", "y"]
            np.testing.assert_array_equal(kept[1], session.predict(feeds)["y"])
            assert "seq(tensor(float))" in stepper.notes[0]
            with pytest.raises(SessionError, match="'join' reads 'parts', which is no array"):
                stepper.replay([1], {}, [1])
            np.testing.assert_array_equal(stepper.replay([0, 1], {0: feeds["x"]}, [1])[1], kept[1])

    def test_text(self, tmp_path):
        nodes = [
            helper.make_node("Identity", ["words"], ["same"], name="same"),
            helper.make_node("Concat", ["same", "words"], ["both"], name="both", axis=0),
            helper.make_node(
                "LabelEncoder", ["both"], ["y"], name="number", domain="ai.onnx.ml",
                keys_strings=["a", "b"], values_int64s=[1, 2], default_int64=0,
            ),
        ]  # fmt: skip
        words = value("words", TensorProto.STRING, ["n"])
        files = save(
            tmp_path, nodes, [words], [value("y", TensorProto.INT64, None)], domains={"ai.onnx.ml": 2}, opset=15
        )
        with opened(files, RAW) as session, session.open_stepper() as stepper:
            graph, kept = captured(stepper, {"words": np.array(["b", "c", "a"], dtype=object)})
            assert kept[graph.outputs["y"]].tolist() == [2, 0, 1, 2, 0, 1]
            both = [v.name for v in graph.values].index("both")
            assert graph.values[both].dtype == "str"
            assert stepper.replay([2], {both: kept[both]}, [graph.outputs["y"]])[graph.outputs["y"]].tolist()[0] == 2

    def test_bfloat16(self, tmp_path):
        nodes = [
            helper.make_node("Cast", ["x"], ["half"], name="narrow", to=TensorProto.BFLOAT16),
            helper.make_node("Cast", ["half"], ["y"], name="wide", to=TensorProto.FLOAT),
        ]
        files = save(tmp_path, nodes, [floats("x", 5)], [floats("y")])
        feeds = {"x": np.float32([1.0, 1 / 3, -1e30, np.inf, np.nan])}
        graph, values, plain = stepped(files, feeds, RAW)
        assert {v.name: v.dtype for v in graph.values}["half"] == "bfloat16"
        assert values["half"].dtype == np.float32
        np.testing.assert_array_equal(values["half"], plain["y"])

    def test_branches_are_laid_out_and_loops_are_one(self, tmp_path):
        deep = helper.make_graph(
            [helper.make_node("Neg", ["t"], ["turned"], name="turn")], "deep", [], [floats("turned")]
        )  # fmt: skip
        flat = helper.make_graph([helper.make_node("Abs", ["t"], ["u"], name="size")], "flat", [], [floats("u")])
        branch = helper.make_graph(
            [
                helper.make_node("Mul", ["x", "w"], ["scaled"], name="scale"),
                helper.make_node("Add", ["scaled", "own"], ["t"], name="shift"),
                helper.make_node("If", ["deeper"], ["e"], name="inner", then_branch=deep, else_branch=flat),
            ],
            "then", [], [floats("e"), floats("t")], initializer=[constant("own", np.float32([1, 1, 1]))],
        )  # fmt: skip
        other = helper.make_graph(
            [helper.make_node("Sub", ["r", "own"], ["scaled"], name="down")], "else", [],
            [floats("scaled"), floats("own")], initializer=[constant("own", np.float32([2, 2, 2]))],
        )  # fmt: skip
        body = helper.make_graph(
            [
                helper.make_node("Add", ["state", "chosen"], ["next"]),
                helper.make_node("Identity", ["going"], ["still"]),
            ],
            "body",
            [value("i", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), floats("state", 3)],
            [value("still", TensorProto.BOOL, []), floats("next", 3)],
        )
        nodes = [
            helper.make_node("Relu", ["x"], ["r"], name="bend"),
            helper.make_node("If", ["flag"], ["chosen", "too"], name="branch", then_branch=branch, else_branch=other),
            helper.make_node("Loop", ["times", "", "x"], ["y"], name="loop", body=body),
        ]
        flags = [value(name, TensorProto.BOOL, []) for name in ("flag", "deeper")]
        files = save(
            tmp_path, nodes, [floats("x", 3), *flags], [floats("y"), floats("too")],
            initializers=[constant("times", np.int64(3)), constant("w", np.float32([1, 2, 3]))],
        )  # fmt: skip
        expected = {
            (True, True): ["Relu", "Mul", "Add", "Neg", "Loop"],
            (True, False): ["Relu", "Mul", "Add", "Abs", "Loop"],
            (False, True): ["Relu", "Sub", "Identity", "Loop"],
        }
        for (flag, deeper), types in expected.items():
            feeds = {"x": np.float32([-1, 2, 3]), "flag": np.array(flag), "deeper": np.array(deeper)}
            graph, values, plain = stepped(files, feeds, RAW)
            assert sorted(o.type for o in graph.operations) == sorted(types)
            read = {o.name: {graph.values[i].name for i in o.inputs} for o in graph.operations}
            assert read["loop"] == {"chosen", "x"}
            shifted = feeds["x"] * np.float32([1, 2, 3]) + 1
            too = shifted if flag else np.full(3, 2)
            chosen = (-shifted if deeper else np.abs(shifted)) if flag else np.maximum(feeds["x"], 0) - 2
            np.testing.assert_allclose(values["chosen"], chosen)
            np.testing.assert_allclose(plain["too"], too)
            np.testing.assert_allclose(values["y"], feeds["x"] + 3 * chosen)
        with opened(files, RAW) as session, session.open_stepper() as stepper:
            with pytest.raises(SessionError, match="The graph branches"):
                stepper.graph_file()
            captured(stepper, feeds)
            names = [node.name for node in onnx.load(stepper.graph_file()).graph.node]
            assert sorted(names) == ["bend", "down", "loop", "too chosen"]

    def test_an_output_may_be_an_input_or_a_constant(self, tmp_path):
        nodes = [helper.make_node("Relu", ["x"], ["y"], name="bend")]
        files = save(
            tmp_path, nodes, [floats("x", 2)], [floats("y", 2), floats("x", 2), floats("k", 2)],
            initializers=[constant("k", np.float32([5, 6]))],
        )  # fmt: skip
        feeds = {"x": np.float32([-1, 1])}
        graph, _, plain = stepped(files, feeds, RAW)
        assert graph.outputs["x"] == graph.inputs["x"]
        assert plain["k"].tolist() == [5, 6]
        assert [o.type for o in graph.operations if not o.inputs] == ["Constant"]

    def test_initializers_that_are_inputs(self, tmp_path):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
        for ir in (3, 9):
            files = save(
                tmp_path, nodes, [floats("x", 2, 3), floats("w", 3, 2)], [floats("y")],
                initializers=[weight("w", 3, 2)], ir=ir, opset=9, name=f"ir{ir}",
            )  # fmt: skip
            graph, _, _ = stepped(files, {"x": np.ones((2, 3), np.float32)})
            assert list(graph.inputs) == ["x"]

    def test_external_data_stays_outside(self, tmp_path):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Add", ["h", "b"], ["y"], name="bias"),
        ]
        files = save(
            tmp_path, nodes, [floats("x", 2, 300)], [floats("y")],
            initializers=[weight("w", 300, 300), weight("b", 300)], external=True,
        )  # fmt: skip
        stepped(files, options=RAW)
        stepped(files)

    def test_random_numbers_are_noted(self, tmp_path):
        nodes = [
            helper.make_node("RandomNormal", [], ["n"], name="dice", shape=[3]),
            helper.make_node("Add", ["x", "n"], ["y"], name="shift"),
        ]
        files = save(tmp_path, nodes, [floats("x", 3)], [floats("y")])
        with opened(files, RAW) as session, session.open_stepper() as stepper:
            graph, kept = captured(stepper, {"x": np.zeros(3, np.float32)})
            assert [o.name for o in graph.operations] == ["dice", "shift"]
            assert np.abs(kept[graph.outputs["y"]]).min() > 0
            assert stepper.notes == ("'dice' draws random numbers, others than in the session",)

    def test_unnamed_nodes_go_by_what_they_write(self, tmp_path):
        nodes = [helper.make_node("Relu", ["x"], ["a"], name="y"), helper.make_node("Neg", ["a"], ["y"])]
        graph, _, _ = stepped(save(tmp_path, nodes, [floats("x", 2)], [floats("y")]), options=RAW)
        assert [o.name for o in graph.operations] == ["y", "y#2"]

    def test_dynamic_shapes_change_between_runs(self, tmp_path):
        with opened(squeeze_and_excite(tmp_path, 20)) as session, session.open_stepper() as stepper:
            for batch in (1, 3, 2):
                feeds = noise(session, batch)
                graph, kept = captured(stepper, feeds)
                np.testing.assert_array_equal(kept[graph.outputs["y"]], session.predict(feeds)["y"])

    @pytest.mark.skipif(not STATM.exists(), reason="no /proc/self/statm: resident memory is not known here")
    def test_only_what_is_still_read_is_held(self, tmp_path):
        nodes = [helper.make_node("Add", [f"v{i}", "one"], [f"v{i + 1}"], name=f"n{i}") for i in range(120)]
        files = save(tmp_path, nodes, [floats("v0", 1 << 21)], [floats("v120")], initializers=[weight("one", 1)])
        with opened(files, RAW) as session, session.open_stepper() as stepper:
            resident = []
            stepper.run(
                {"v0": np.zeros(1 << 21, np.float32)},
                lambda *_: resident.append(int(STATM.read_text().split()[1]) * PAGE),
            )
        assert max(resident) - resident[0] < 400e6  # of 121 values of 8 MiB

    def test_a_thousand_nodes(self, tmp_path):
        nodes = [
            helper.make_node("Add", [f"v{i}", f"v{i - 1}" if i % 3 == 2 else "one"], [f"v{i + 1}"], name=f"n{i}")
            for i in range(1000)
        ]
        files = save(tmp_path, nodes, [floats("v0", 4)], [floats("v1000")], initializers=[weight("one", 4)])
        with opened(files, SessionOptions(threads=4, graph_optimization="none")) as session:
            feeds = {"v0": np.zeros(4, np.float32)}
            with session.open_stepper() as stepper:
                graph, kept = captured(stepper, feeds)
            np.testing.assert_array_equal(kept[graph.outputs["v1000"]], session.predict(feeds)["v1000"])
        assert len(graph.operations) == 1000


class TestFailures:
    """What goes wrong is told by the operation's name."""

    @pytest.fixture
    def gathering(self, tmp_path):
        nodes = [
            helper.make_node("Relu", ["x"], ["r"], name="bend"),
            helper.make_node("Gather", ["r", "at"], ["g"], name="pick"),
            helper.make_node("Neg", ["g"], ["y"], name="minus"),
        ]
        return save(tmp_path, nodes, [floats("x", 3), value("at", TensorProto.INT64, ["n"])], [floats("y")])

    def test_a_failing_node_is_named_and_what_ran_is_kept(self, gathering, capfd):
        with opened(gathering, RAW) as session, session.open_stepper() as stepper:
            received = []
            feeds = {"x": np.ones(3, np.float32), "at": np.array([7])}
            with pytest.raises(SessionError, match=r"'pick' \(Gather\) of model 'model' failed in ONNX Runtime"):
                stepper.run(feeds, lambda index, _: received.append(index))
            partial = stepper.partial()
            assert [v.name for v in partial.values] == ["x", "at", "r"]
            assert [o.name for o in partial.operations] == ["bend"]
            assert received == [0, 1, 2]
            with pytest.raises(SessionError, match="ran yet"):
                stepper.replay([0], {0: feeds["x"]}, [2])
            graph, _ = captured(stepper, {**feeds, "at": np.array([1, 0])})
            assert len(graph.operations) == 3
        capfd.readouterr()  # ONNX Runtime tells on standard error, too

    def test_a_failing_replay_is_named(self, gathering, capfd):
        with opened(gathering, RAW) as session, session.open_stepper() as stepper:
            captured(stepper, {"x": np.ones(3, np.float32), "at": np.array([1, 0])})
            with pytest.raises(SessionError, match="'pick'"):
                stepper.replay([1], {2: np.ones(3, np.float32), 1: np.array([7, 0])}, [3])
            with pytest.raises(InputError, match=r"'r' is float32\[3\], not float64\[3\]"):
                stepper.replay([1], {2: np.ones(3), 1: np.array([1, 0])}, [3])
        capfd.readouterr()

    def test_files_are_gone_after_close(self, gathering):
        with opened(gathering, RAW) as session:
            stepper = session.open_stepper()
            path = stepper.graph_file()
            assert [n.name for n in onnx.load(path).graph.node] == ["bend", "pick", "minus"]
            stepper.close()
            assert not path.exists()
            with pytest.raises(SessionError, match="closed"):
                stepper.graph_file()


class TestGraphOptimization:
    """The optimisation level is the user's, and part of what ran."""

    def test_levels(self, tmp_path):
        files = squeeze_and_excite(tmp_path, 20)
        digests, counts = {}, {}
        for level in (None, "all", "basic", "none"):
            with opened(files, SessionOptions(threads=1, graph_optimization=level)) as session:
                digests[level] = session.executable_digest
                with session.open_stepper() as stepper:
                    counts[level] = len(captured(stepper, noise(session))[0].operations)
        assert digests[None] == digests["all"]
        assert len(set(digests.values())) == 3
        assert counts["none"] == 14
        assert counts["all"] != counts["none"]

    def test_unknown_level(self, tmp_path):
        files = squeeze_and_excite(tmp_path, 20)
        with pytest.raises(InputError, match="graph_optimization"):
            opened(files, SessionOptions(graph_optimization="some"))
        assert OnnxRuntimeBackend.graph_optimizations == ("none", "basic", "all")
        with pytest.raises(UnsupportedModelError, match="convolution, pooling or LSTM in double"):
            opened(files, SessionOptions(precision="float64"))
