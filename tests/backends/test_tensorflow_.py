"""TensorFlow against the contract, and what only it has: SavedModels, .keras, TensorFlow Lite, live Keras models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.artifacts import digest_of
from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.errors import (
    BackendNotAvailableError,
    InputError,
    SessionError,
    UnsafeArtifactError,
    UnsupportedModelError,
)
from mlscope_lab.testing import BackendContract, check_layer_trace

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
keras = pytest.importorskip("keras")

pytestmark = [
    pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="keras does not run on tensorflow"),
    # TensorFlow's variables do not know numpy 2's copy keyword, which Keras meets when it saves
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]
ONE = SessionOptions(threads=1)
LAYERS = SessionOptions(threads=1, level="layer")
WEIGHTS = [np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((16, 32), (32,), (32, 5))]


def files_of(path: Path, kind: str) -> ModelFiles:
    return ModelFiles(name=path.stem, format=kind, path=path, digest=digest_of(path))


def classifier() -> tf.Module:
    module = tf.Module()
    module.w = [tf.Variable(w) for w in WEIGHTS]

    @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, name="x")])
    def serve(x):
        with tf.name_scope("first"):
            hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(x, module.w[0]), module.w[1]))
        with tf.name_scope("second"):
            logits = tf.matmul(hidden, module.w[2])
        with tf.name_scope("head"):
            return {"scores": tf.nn.softmax(logits), "logits": tf.identity(logits)}

    module.serve = serve
    return module


def reference(x: np.ndarray) -> dict[str, np.ndarray]:
    logits = np.maximum(x @ WEIGHTS[0] + WEIGHTS[1], 0) @ WEIGHTS[2]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return {"logits": logits, "scores": powers / powers.sum(-1, keepdims=True)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    module = classifier()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


def convolutional() -> keras.Model:
    keras.utils.set_random_seed(3)
    picture = keras.Input((12, 12, 3), name="picture")
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(picture)
    x = keras.layers.ReLU(name="bend")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(picture, keras.layers.Dense(4, activation="softmax", name="answer")(x), name="little")


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)}


class TestContract(BackendContract):
    """A small classifier of our own, its outputs computed by numpy."""

    @pytest.fixture
    def backend(self):
        return TensorFlowBackend()

    @pytest.fixture
    def model_files(self, saved):
        return files_of(saved, "saved_model")

    @pytest.fixture
    def feeds(self):
        return {"x": np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)}

    @pytest.fixture
    def expected(self, feeds):
        return reference(feeds["x"])

    @pytest.fixture
    def live(self):
        return convolutional(), {"picture": np.random.default_rng(2).random((2, 12, 12, 3), dtype=np.float32)}


class TestFormats:
    """Each form of file, against what the model gives live."""

    def test_order_of_outputs_is_that_of_the_manifest(self, saved, feeds):
        from dataclasses import replace

        from mlscope_lab.backends.base import TensorSpec

        declared = tuple(TensorSpec(name=n, dtype="float32", shape=("batch", 5)) for n in ("scores", "logits"))
        with TensorFlowBackend().open(replace(files_of(saved, "saved_model"), outputs=declared), ONE) as session:
            assert list(session.predict(feeds)) == ["scores", "logits"]
            assert session.outputs[0].shape == ("batch", 5)

    def test_keras_archive(self, tmp_path):
        model = convolutional()
        model.save(tmp_path / "little.keras")
        x = np.random.default_rng(0).random((2, 12, 12, 3), dtype=np.float32)
        with TensorFlowBackend().open(files_of(tmp_path / "little.keras", "keras"), ONE) as session:
            assert [s.describe() for s in session.inputs] == ["picture: float32[?, 12, 12, 3]"]
            (found,) = session.predict({"picture": x}).values()
        np.testing.assert_allclose(found, model(x, training=False).numpy(), rtol=1e-5, atol=1e-6)

    def test_keras_inputs_by_name(self, tmp_path):
        left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
        done = keras.layers.Subtract(name="difference")([left, right])
        keras.Model({"left": left, "right": right}, {"gap": done, "again": done * 2.0}).save(tmp_path / "two.keras")
        one, two = np.ones((1, 3), np.float32), np.full((1, 3), 5, np.float32)
        with TensorFlowBackend().open(files_of(tmp_path / "two.keras", "keras"), ONE) as session:
            found = session.predict({"right": two, "left": one})
        np.testing.assert_array_equal(found["gap"], one - two)
        np.testing.assert_array_equal(found["again"], 2 * (one - two))

    @pytest.mark.parametrize("batch", [1, 3])
    def test_tensorflow_lite(self, tmp_path, batch):
        module = classifier()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
        (tmp_path / "c.tflite").write_bytes(converter.convert())
        x = np.random.default_rng(1).normal(size=(batch, 16)).astype(np.float32)
        with TensorFlowBackend().open(files_of(tmp_path / "c.tflite", "tflite"), ONE) as session:
            assert session.inputs[0].name == "x"
            assert session.inputs[0].shape == (None, 16)
            found = session.predict({"x": x})
            assert session.threads == 1
            for name, want in reference(x).items():
                np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5)
            with pytest.raises(InputError, match="axis 1 must be 16"):
                session.predict({"x": np.zeros((1, 7), np.float32)})
        with pytest.raises(UnsupportedModelError, match="no times of its nodes"):
            TensorFlowBackend().open(files_of(tmp_path / "c.tflite", "tflite"), LAYERS)

    def test_saved_model_of_tensorflow_1(self, tmp_path):
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 16], "old_x")
            w = v1.get_variable("w", initializer=WEIGHTS[0], use_resource=False)
            y = tf.nn.relu(tf.matmul(x, w), name="old_y")
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": x}, {"y": y})
        x = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
        for options in (ONE, LAYERS):
            with TensorFlowBackend().open(files_of(tmp_path / "old", "saved_model"), options) as session:
                np.testing.assert_allclose(session.predict({"x": x})["y"], np.maximum(x @ WEIGHTS[0], 0), rtol=1e-4)

    def test_strings_come_and_go(self, tmp_path):
        module = tf.Module()
        module.f = tf.function(
            lambda words: {"length": tf.strings.length(words), "same": words},
            input_signature=[tf.TensorSpec([None], tf.string, "words")],
        )
        tf.saved_model.save(module, str(tmp_path / "s"), signatures={"serving_default": module.f})
        with TensorFlowBackend().open(files_of(tmp_path / "s", "saved_model"), ONE) as session:
            assert session.inputs[0].dtype == "str"
            found = session.predict({"words": np.array(["a", "bcd"])})
        assert found["length"].tolist() == [1, 3]
        assert found["same"].tolist() == [b"a", b"bcd"]

    def test_no_signature(self, tmp_path):
        tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
        with pytest.raises(UnsupportedModelError, match="no serving signature"):
            TensorFlowBackend().open(files_of(tmp_path / "none", "saved_model"), ONE)


class TestSafety:
    """Archives that would run code."""

    def test_lambda_layer_is_refused_and_does_not_run(self, tmp_path):
        trap = tmp_path / "sprung"
        code = f"lambda x: [__import__('pathlib').Path({str(trap)!r}).touch(), x][1]"
        inside = keras.Input((2,))
        model = keras.Model(inside, keras.layers.Lambda(eval(code), output_shape=(2,))(inside))
        model.save(tmp_path / "trap.keras")
        trap.unlink(missing_ok=True)
        with pytest.raises(UnsafeArtifactError, match="Lambda"):
            TensorFlowBackend().open(files_of(tmp_path / "trap.keras", "keras"), ONE)
        assert not trap.exists()

    def test_foreign_class_is_refused_and_does_not_run(self, tmp_path):
        convolutional().save(tmp_path / "good.keras")
        trap = tmp_path / "sprung"
        with zipfile.ZipFile(tmp_path / "good.keras") as good, zipfile.ZipFile(tmp_path / "bad.keras", "w") as bad:
            for name in good.namelist():
                data = good.read(name)
                if name == "config.json":
                    config = json.loads(data)
                    config["config"]["layers"][1] |= {"module": "os", "class_name": "system", "registered_name": None}
                    config["config"]["layers"][1]["config"] = {"command": f"touch {trap}"}
                    data = json.dumps(config).encode()
                bad.writestr(name, data)
        with pytest.raises((UnsafeArtifactError, UnsupportedModelError)):
            TensorFlowBackend().open(files_of(tmp_path / "bad.keras", "keras"), ONE)
        assert not trap.exists()

    def test_graph_that_reads_files_is_refused(self, tmp_path):
        module = tf.Module()
        module.f = tf.function(lambda x: {"y": tf.io.read_file(x)}, input_signature=[tf.TensorSpec([], tf.string, "x")])
        tf.saved_model.save(module, str(tmp_path / "r"), signatures={"serving_default": module.f})
        with pytest.raises(UnsafeArtifactError, match="ReadFile"):
            TensorFlowBackend().open(files_of(tmp_path / "r", "saved_model"), ONE)

    def test_other_keras_backend_is_named(self, tmp_path):
        pytest.importorskip("torch")
        convolutional().save(tmp_path / "little.keras")
        code = (
            "import pathlib, sys\n"
            "from mlscope_lab.backends.base import ModelFiles\n"
            "from mlscope_lab.backends.tensorflow_ import TensorFlowBackend\n"
            f"path = pathlib.Path({str(tmp_path / 'little.keras')!r})\n"
            "try:\n"
            "    TensorFlowBackend().open(ModelFiles(name='m', format='keras', path=path, digest='sha256:0'))\n"
            "except Exception as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600
        )
        assert "UnsupportedModelError Keras runs on 'torch'" in done.stdout, done.stderr


class TestLive:
    """Objects of this process."""

    def test_accepted(self):
        backend = TensorFlowBackend()
        function = tf.function(lambda x: x + 1)
        assert backend.accepts(function)
        assert backend.accepts(function.get_concrete_function(tf.TensorSpec([2])))
        assert backend.accepts(convolutional())
        assert not backend.accepts(lambda x: x)
        assert not backend.accepts(tf.Module())

    @pytest.mark.parametrize("level", ["model", "layer"])
    def test_function_and_concrete_function(self, level):
        function = tf.function(lambda a, b: (a - b, a * b))
        a, b = np.arange(3, dtype=np.float32), np.full(3, 2, np.float32)
        for obj in (function, function.get_concrete_function(tf.TensorSpec([3]), tf.TensorSpec([3]))):
            with TensorFlowBackend().wrap(obj, {"a": a, "b": b}, SessionOptions(threads=1, level=level)) as session:
                found = session.predict({"b": b, "a": a})
            np.testing.assert_array_equal(found["output_0"], a - b)
            np.testing.assert_array_equal(found["output_1"], a * b)

    def test_subclassed_keras_model(self):
        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.inner = keras.layers.Dense(2, name="inner")

            def call(self, x, training=False):
                return self.inner(x) if not training else x

        model, x = Own(), np.ones((2, 3), np.float32)
        want = model(x).numpy()
        with TensorFlowBackend().wrap(model, {"x": x}, ONE) as session:
            np.testing.assert_allclose(session.predict({"x": x})["output"], want, rtol=1e-5)

    def test_nothing_to_trace_with(self):
        with pytest.raises(InputError, match="example"):
            TensorFlowBackend().wrap(convolutional(), {}, ONE)


class TestLayers:
    """The executed nodes."""

    def test_keras_layers_are_scopes_and_fused_nodes_name_their_sources(self):
        model, x = convolutional(), np.random.default_rng(0).random((2, 12, 12, 3), dtype=np.float32)
        with TensorFlowBackend().wrap(model, {"picture": x}, LAYERS) as session:
            session.predict({"picture": x})
            session.begin_trace()
            for _ in range(3):
                (found,) = session.predict({"picture": x}).values()
            trace = session.end_trace()
            assert trace.executable_digest == session.executable_digest
        check_layer_trace(trace, iterations=3)
        np.testing.assert_allclose(found, model(x, training=False).numpy(), rtol=1e-5, atol=1e-6)
        table = trace.layers
        assert {"little/stem", "little/answer"} <= set(table.scope)
        conv = next(i for i, kind in enumerate(table.type) if "Conv2D" in kind)
        assert table.input_shapes[conv].startswith("float32[2,12,12,3];float32[3,3,3,8]")
        assert table.output_shapes[conv] == "float32[2,12,12,8]"
        assert table.activation_bytes[conv] == 2 * 12 * 12 * 8 * 4
        assert table.parameter_bytes[conv] >= 3 * 3 * 3 * 8 * 4
        if "Fused" in table.type[conv]:
            assert "Conv2D" in table.sources[conv]
            assert "Relu" in table.sources[conv]
        assert not {"Const", "NoOp", "_Arg", "Placeholder"} & set(table.type)

    def test_loop_gives_a_row_a_turn(self):
        @tf.function
        def turn(x):
            for _ in tf.range(3):
                x = tf.linalg.matmul(x, x, name="product") * 0.5
            return x

        x = np.eye(4, dtype=np.float32)
        with TensorFlowBackend().wrap(turn, {"x": x}, LAYERS) as session:
            session.begin_trace()
            found = session.predict({"x": x})["output"]
            trace = session.end_trace()
        np.testing.assert_allclose(found, x / 128)
        check_layer_trace(trace, iterations=1)
        products = [n for n, kind in zip(trace.layers.name, trace.layers.type, strict=True) if "MatMul" in kind]
        assert len(products) == 3
        assert products[2] == f"{products[0]}#3"

    def test_trace_times_lie_between_readings_of_our_clock(self, saved, feeds):
        import time

        with TensorFlowBackend().open(files_of(saved, "saved_model"), LAYERS) as session:
            session.predict(feeds)
            session.begin_trace()
            before = time.perf_counter_ns()
            session.predict(feeds)
            after = time.perf_counter_ns()
            trace = session.end_trace()
        check_layer_trace(trace, iterations=1, after_ns=before, before_ns=after)
        assert set(trace.layers.scope) >= {"first", "second", "head"}
        assert trace.clock_error_ns < 5_000_000


class TestSettings:
    """Devices, threads, environment."""

    def test_devices(self, saved):
        with pytest.raises(InputError, match="'cpu' or 'cuda:N'"):
            TensorFlowBackend().open(files_of(saved, "saved_model"), SessionOptions(device="tpu"))
        if not tf.config.list_physical_devices("GPU"):
            with pytest.raises(BackendNotAvailableError, match="sees 0 GPUs"):
                TensorFlowBackend().open(files_of(saved, "saved_model"), SessionOptions(device="cuda:0"))

    def test_threads_that_come_too_late_are_told(self, saved):
        tf.constant(1.0)  # the runtime has started, with whatever the first of this process's tests asked for
        wanted = tf.config.threading.get_intra_op_parallelism_threads() + 5
        with TensorFlowBackend().open(files_of(saved, "saved_model"), SessionOptions(threads=wanted)) as session:
            assert session.threads != wanted
            assert f"started with {session.threads} intra-operator" in session.warnings[0]

    def test_closed_session_is_refused(self, saved, feeds):
        session = TensorFlowBackend().open(files_of(saved, "saved_model"), ONE)
        session.close()
        with pytest.raises(SessionError, match="closed"):
            session.predict(feeds)

    def test_import_leaves_the_environment_alone_and_says_nothing(self):
        code = (
            "import os\nbefore = dict(os.environ)\n"
            "from mlscope_lab.backends.tensorflow_ import load_tensorflow\nload_tensorflow()\n"
            "ours = ('TF_CPP', 'GLOG', 'TF_ENABLE')\n"
            "print({k for k in os.environ if os.environ[k] != before.get(k) and k.startswith(ours)})"
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "GLOG"))}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600
        )
        assert done.stdout == "set()\n", done.stderr


def test_a_sequential_model_that_nobody_has_called_runs():
    import keras

    model = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
    x = np.ones((3, 5), dtype=np.float32)
    with TensorFlowBackend().wrap(model, {"x": x}, SessionOptions(threads=1)) as session:
        (answer,) = session.predict({"x": x}).values()
    np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-6)
