"""TensorFlow's stepper: against the contract, and on real models and control flow."""

from __future__ import annotations

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends import tensorflow_steps
from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.errors import SessionError
from mlscope_lab.testing import StepperContract

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="keras does not run on tensorflow")

ONE = SessionOptions(threads=1)
RAW = SessionOptions(threads=1, graph_optimization="none")


def residual() -> keras.Model:
    keras.utils.set_random_seed(3)
    picture = keras.Input((12, 12, 3), name="picture")
    x = keras.layers.ZeroPadding2D(1, name="frame")(picture)
    x = keras.layers.Conv2D(8, 3, name="stem")(x)
    before = x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="bend")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
    x = keras.layers.Add(name="around")([x, before])
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    answer = keras.layers.Dense(4, activation="softmax", name="answer")(pooled)
    model = keras.Model(picture, {"answer": answer, "map": x}, name="little")
    model.get_layer("norm").set_weights([np.full(8, v, np.float32) for v in (1.5, 0.1, 0.2, 2.0)])
    return model


@pytest.fixture(scope="module")
def little() -> keras.Model:
    return residual()


class Two(keras.Model):
    """A subclassed model with two inputs."""

    def __init__(self):
        super().__init__(name="two")
        self.first, self.second = keras.layers.Dense(5, name="first"), keras.layers.Dense(5, name="second")

    def call(self, tensors):
        left, right = tensors
        return tf.nn.relu(self.first(left)) * self.second(right), left


def pictures(count: int = 2) -> dict[str, np.ndarray]:
    return {"picture": np.random.default_rng(2).random((count, 12, 12, 3), dtype=np.float32)}


def captured(stepper, feeds):
    kept = {}
    graph = stepper.run(feeds, lambda index, array: kept.__setitem__(index, np.array(array)))
    return graph, kept


class TestContract(StepperContract):
    """A small residual model with everything fused that can be."""

    rtol, atol = 1e-5, 1e-6  # freezing lets TensorFlow fold weights that the concrete function reads from variables

    @pytest.fixture
    def backend(self):
        return TensorFlowBackend()

    @pytest.fixture
    def live(self, little):
        return little, pictures()


class TestNames:
    """What operations are called, and where they come from."""

    def test_fused(self, little):
        with TensorFlowBackend().wrap(little, pictures(), ONE) as session, session.open_stepper() as stepper:
            graph, _ = captured(stepper, pictures())
        found = {operation.type: operation for operation in graph.operations}
        assert found["_FusedConv2D"].kinds == ("convolution", "addition")
        assert found["_FusedConv2D"].scope == "little/stem"
        assert found["_FusedConv2D"].sources
        assert found["MatMul"].kinds == ("product",)  # its bias is zero, which Grappler sees once it is a constant
        assert found["MatMul"].parameter_count == 8 * 4
        assert list(graph.outputs) == ["answer", "map"]
        assert "Grappler" in stepper.method

    def test_not_fused(self, little):
        with TensorFlowBackend().wrap(little, pictures(), RAW) as session, session.open_stepper() as stepper:
            graph, _ = captured(stepper, pictures())
        types = [operation.type for operation in graph.operations]
        assert {"Pad", "Conv2D", "BiasAdd", "Mul", "Relu", "DepthwiseConv2dNative"} <= set(types)
        assert not any(name.startswith("_") for name in types)
        assert all(len(operation.kinds) == 1 for operation in graph.operations)
        scopes = {o.scope.removesuffix("/convolution") for o in graph.operations if o.type in {"Conv2D", "Pad", "Mul"}}
        assert scopes == {"little/frame", "little/stem", "little/norm/batchnorm"}

    def test_subclassed_with_two_inputs_and_one_passed_through(self):
        rng = np.random.default_rng(0)
        feeds = {n: rng.normal(size=(3, 4)).astype(np.float32) for n in ("left", "right")}
        with TensorFlowBackend().wrap(Two(), feeds, ONE) as session, session.open_stepper() as stepper:
            plain = session.predict(feeds)
            graph, kept = captured(stepper, feeds)
        assert list(graph.inputs) == ["left", "right"]
        assert {o.scope for o in graph.operations if "product" in o.kinds} == {"two/first", "two/second"}
        for name, array in plain.items():
            np.testing.assert_allclose(kept[graph.outputs[name]], array, rtol=1e-5, atol=1e-6)


class TestSegments:
    """How values are kept few, and what a failure leaves."""

    def test_the_same_in_segments_of_any_size(self, little, monkeypatch):
        with TensorFlowBackend().wrap(little, pictures(), ONE) as session:
            with session.open_stepper() as stepper:
                graph, kept = captured(stepper, pictures())
                assert stepper.executors == 1
            monkeypatch.setattr(tensorflow_steps, "_SEGMENT_BYTES", 10_000)
            monkeypatch.setattr(tensorflow_steps, "_EXECUTORS", 3)
            with session.open_stepper() as stepper:
                small, again = captured(stepper, pictures())
                assert stepper.executors == 3
                assert captured(stepper, pictures(5))[0].values[-1].shape[0] == 5
        assert small == graph
        for index, array in kept.items():
            np.testing.assert_array_equal(again[index], array)

    def test_what_ran_before_a_failure_is_told(self):
        def failing(x):
            twice = tf.multiply(x, 2.0, name="twice")
            shape = tf.cast(tf.reduce_sum(twice), tf.int32)
            return tf.nn.relu(tf.reshape(twice, [shape], name="never"))

        good, bad = {"x": np.full(2, 0.5, np.float32)}, {"x": np.ones(2, np.float32)}
        with TensorFlowBackend().wrap(tf.function(failing), good, ONE) as session, session.open_stepper() as stepper:
            assert stepper.run(good, lambda *_: None).outputs
            received = []
            with pytest.raises(SessionError, match=r"'never' \(Reshape\) failed: .*values"):
                stepper.run(bad, lambda index, _: received.append(index))
            partial = stepper.partial()
        assert received == list(range(len(partial.values)))
        assert partial.operations[0].type == "Mul"
        assert partial.outputs == {}

    def test_shapes_that_do_not_go_together(self, tmp_path):
        module = tf.Module()

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def serve(x):
            return {"y": tf.nn.relu(tf.reshape(tf.tanh(x, name="before"), [2, 4], name="two"))}

        module.serve = serve
        tf.saved_model.save(module, str(tmp_path / "two"), signatures={"serving_default": serve})
        files = ModelFiles(name="two", format="saved_model", path=tmp_path / "two", digest="sha256:" + "0" * 64)
        with TensorFlowBackend().open(files, ONE) as session, session.open_stepper() as stepper:
            for count in (2, 3, 2):
                feeds = {"x": np.full((count, 4), 0.5, np.float32)}
                if count == 2:
                    graph, kept = captured(stepper, feeds)
                    np.testing.assert_array_equal(kept[graph.outputs["y"]], session.predict(feeds)["y"])
                    continue
                with pytest.raises(SessionError, match=r"'two' \(Reshape\) failed"):
                    stepper.run(feeds, lambda *_: None)
                assert "Tanh" in {o.type for o in stepper.partial().operations}


class TestControlFlow:
    """Loops and branches."""

    def test_loop_is_one_operation(self):
        def looping(x):
            return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y * 2.0)), (0, x + 1.0))[1] * 3.0

        feeds = {"x": np.linspace(-1, 1, 6, dtype=np.float32)}
        with TensorFlowBackend().wrap(tf.function(looping), feeds, ONE) as session, session.open_stepper() as stepper:
            (plain,) = session.predict(feeds).values()
            graph, kept = captured(stepper, feeds)
            loop = next(i for i, o in enumerate(graph.operations) if o.kinds == ("control",))
            operation = graph.operations[loop]
            found = stepper.replay([loop], {i: kept[i] for i in operation.inputs}, operation.outputs)
        assert any("not seen into" in note for note in stepper.notes)
        np.testing.assert_allclose(kept[next(iter(graph.outputs.values()))], plain, rtol=1e-6)
        for index, array in found.items():
            np.testing.assert_array_equal(array, kept[index])

    def test_loops_and_branches_of_tensorflow_1(self, tmp_path):
        v1 = tf.compat.v1
        v1.disable_control_flow_v2()
        try:
            with tf.Graph().as_default() as graph, v1.Session(graph=graph) as writer:
                x = v1.placeholder(tf.float32, [4], "x")
                big = v1.cond(tf.reduce_sum(x) > 0, lambda: x * 2.0, lambda: tf.ones(4))
                done = v1.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * y), (0, big + 0.5))[1]
                v1.saved_model.simple_save(writer, str(tmp_path / "old"), {"x": x}, {"y": done + 1.0})
        finally:
            v1.enable_control_flow_v2()
        files = ModelFiles(name="old", format="saved_model", path=tmp_path / "old", digest="sha256:" + "0" * 64)
        feeds = {"x": np.array([0.5, -0.25, 1, 2], np.float32)}
        with TensorFlowBackend().open(files, RAW) as session, session.open_stepper() as stepper:
            for sign in (1, -1):
                fed = {"x": feeds["x"] * np.float32(sign)}
                (plain,) = session.predict(fed).values()
                graph, kept = captured(stepper, fed)
                np.testing.assert_allclose(kept[next(iter(graph.outputs.values()))], plain, rtol=1e-6)
        types = [o.type for o in graph.operations]
        assert {"Merge", "Exit"} <= set(types)
        assert not {"Switch", "Enter", "NextIteration", "LoopCond"} & set(types)
        assert any("TensorFlow 1" in note for note in stepper.notes)

    def test_recurrent_layer_passes_values_that_cannot_be_shown(self):
        keras.utils.set_random_seed(1)
        sound = keras.Input((5, 3), name="sound")
        model = keras.Model(sound, keras.layers.Dense(2, name="end")(keras.layers.LSTM(4, name="memory")(sound)))
        feeds = {"sound": np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)}
        with TensorFlowBackend().wrap(model, feeds, ONE) as session, session.open_stepper() as stepper:
            (plain,) = session.predict(feeds).values()
            graph, kept = captured(stepper, feeds)
        np.testing.assert_allclose(kept[next(iter(graph.outputs.values()))], plain, rtol=1e-5, atol=1e-6)
        assert any("variant" in note for note in stepper.notes)
        stack = next(o for o in graph.operations if o.type == "TensorListStack")
        assert stack.kinds == ("control",)  # its variants come out of the loop, which runs again with it
        assert len(stack.inputs) >= 1


@pytest.fixture(scope="module")
def efficientnet():
    with ml.load("efficientnet-lite0", backend="tensorflow", threads=1) as model:
        yield model.session


@pytest.fixture(scope="module")
def squeezenet():
    with ml.load("light-squeezenet", backend="tensorflow", threads=1) as model:
        yield model.session


@pytest.fixture(scope="module")
def pitch_model():
    with ml.load("basic-pitch", backend="tensorflow", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def pitch(pitch_model):
    return pitch_model.session


def noise_for(session, batch=1):
    rng = np.random.default_rng(0)
    shapes = {s.name: [d if isinstance(d, int) else batch for d in s.shape] for s in session.inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.network
class TestRealModels:
    """Published models: stepped against plain, and nodes again on what they read."""

    @pytest.mark.parametrize(
        ("name", "atol"),
        [("squeezenet", 1e-9), ("pitch", 5e-6), pytest.param("efficientnet", 1e-5, marks=pytest.mark.slow)],
    )
    def test_observer_effect(self, name, atol, request):
        session = request.getfixturevalue(name)
        feeds = noise_for(session)
        plain = session.predict(feeds)
        with session.open_stepper() as stepper:
            graph, kept = captured(stepper, feeds)
            assert stepper.executors <= 2
            for position in range(0, len(graph.operations), 5):
                operation = graph.operations[position]
                found = stepper.replay([position], {i: kept[i] for i in operation.inputs}, operation.outputs)
                for index, array in found.items():
                    np.testing.assert_array_equal(array, kept[index], err_msg=operation.name)
        assert "_FusedConv2D" in {operation.type for operation in graph.operations}
        assert list(graph.outputs) == list(plain)
        for output, array in plain.items():
            np.testing.assert_allclose(kept[graph.outputs[output]], array, rtol=0, atol=atol)

    @pytest.mark.slow
    def test_scopes_of_a_converted_model_are_nodes_of_its_file(self, efficientnet):
        with efficientnet.open_stepper() as stepper:
            graph, _ = captured(stepper, noise_for(efficientnet))
        heavy = [o for o in graph.operations if o.kinds[0] in {"convolution", "product"}]
        assert len(heavy) == 50
        assert len({o.scope for o in heavy}) == 50
        assert sum(o.parameter_count for o in heavy) == pytest.approx(4.6e6, rel=0.02)

    def test_variables_that_the_graph_makes_by_name_are_frozen(self, pitch_model):
        assert not pitch_model.session._opened.function.captured_inputs
        with pitch_model.subject.open(SessionOptions(threads=1, graph_optimization="none")) as session:
            found = session.predict(noise_for(session))
            with session.open_stepper() as stepper:
                graph, _ = captured(stepper, noise_for(session))
        for name, array in pitch_model.session.predict(noise_for(session)).items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=5e-6)
        assert sum(o.parameter_count for o in graph.operations if o.type == "FusedBatchNormV3") > 0

    def test_assertions_do_not_call_for_the_input_again(self, pitch, monkeypatch):
        monkeypatch.setattr(tensorflow_steps, "_SEGMENT_BYTES", 1 << 20)
        with pitch.open_stepper() as stepper:
            graph, kept = captured(stepper, noise_for(pitch))
            assert stepper.executors > 5
        for name, array in pitch.predict(noise_for(pitch)).items():
            np.testing.assert_allclose(kept[graph.outputs[name]], array, rtol=0, atol=5e-6)
