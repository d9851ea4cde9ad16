"""The stepper of TensorFlow Lite files: against the contract, quantised, recurrent, and on a published model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.artifacts import digest_of, fetch
from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.backends.tensorflow_lite_parts import read_lite
from mlscope_lab.config import load_settings
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.manifest.common import WheelLocation
from mlscope_lab.testing import StepperContract

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
ONE = SessionOptions(threads=1)
RNG = np.random.default_rng(4)
KERNELS = [RNG.normal(size=s).astype(np.float32) * 0.3 for s in ((3, 3, 3, 8), (3, 3, 8, 1), (8, 4))]
BIAS = RNG.normal(size=8).astype(np.float32)


def residual(x):
    with tf.name_scope("stem"):
        y = before = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, KERNELS[0], 1, "SAME"), BIAS))
    with tf.name_scope("deep"):
        y = tf.nn.depthwise_conv2d(y, KERNELS[1], [1, 1, 1, 1], "SAME")
    pooled = tf.reduce_mean(tf.nn.relu6(y) + before, [1, 2])
    return {"answer": tf.nn.softmax(tf.matmul(pooled, KERNELS[2])), "map": y}


def converted(folder: Path, function, *shapes, **settings) -> ModelFiles:
    signature = [tf.TensorSpec(shape, tf.float32, f"x{i}") for i, shape in enumerate(shapes)]
    concrete = tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], concrete)
    for name, value in settings.items():
        setattr(converter, name, value)
    path = folder / "made.tflite"
    path.write_bytes(converter.convert())
    return ModelFiles(name="made", format="tflite", path=path, digest=digest_of(path))


def captured(stepper, feeds):
    kept = {}
    graph = stepper.run(feeds, lambda index, array: kept.__setitem__(index, np.array(array)))
    return graph, kept


def pictures(count: int = 1) -> np.ndarray:
    return np.random.default_rng(2).random((count, 12, 12, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def plain_files(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("plain"), residual, (None, 12, 12, 3))


class TestContract(StepperContract):
    """A small residual model, bit by bit as the whole."""

    @pytest.fixture
    def backend(self):
        return TensorFlowBackend()

    @pytest.fixture
    def model_files(self, plain_files):
        return plain_files

    @pytest.fixture
    def feeds(self):
        return {"x0": pictures()}


def test_operators(plain_files):
    with TensorFlowBackend().open(plain_files, ONE) as session, session.open_stepper() as stepper:
        graph, _ = captured(stepper, {"x0": pictures()})
        again, _ = captured(stepper, {"x0": pictures(3)})
        names = [spec.name for spec in session.outputs]
    found = {operation.type: operation for operation in graph.operations}
    assert found["CONV_2D"].kinds == ("convolution", "activation")
    assert found["CONV_2D"].scope == "stem"
    assert {"stem/Relu", "stem/BiasAdd", "stem/Conv2D"} <= set(found["CONV_2D"].sources)
    assert found["DEPTHWISE_CONV_2D"].name == "DEPTHWISE_CONV_2D"  # the file names outputs after the whole function
    assert found["CONV_2D"].parameter_count == 3 * 3 * 3 * 8 + 8
    assert all(value.shape[0] == 3 for value in again.values)
    assert list(graph.outputs) == names


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs:UserWarning")
def test_quantised_values_say_how(tmp_path):
    samples = [pictures() for _ in range(3)]
    files = converted(
        tmp_path, residual, (1, 12, 12, 3), optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([s] for s in samples),
    )  # fmt: skip
    with TensorFlowBackend().open(files, ONE) as session, session.open_stepper() as stepper:
        plain = session.predict({"x0": pictures()})
        graph, kept = captured(stepper, {"x0": pictures()})
    assert graph.operations[0].kinds == ("quantization",)
    quantised = {i: v for i, v in enumerate(graph.values) if v.dtype == "int8"}
    assert len(quantised) >= 5
    scale, zero = next(iter(quantised.values())).quantization
    real = (kept[next(iter(quantised))].astype(np.float32) - zero) * scale
    assert np.abs(real - pictures()).max() <= scale
    assert next(o for o in graph.operations if o.type == "CONV_2D").parameter_count == 3 * 3 * 3 * 8 + 8
    for name, array in plain.items():
        np.testing.assert_array_equal(kept[graph.outputs[name]], array)


def test_branches_keep_their_bodies(tmp_path):
    def branching(x):
        y = tf.cond(tf.reduce_sum(x) > 0, lambda: tf.tanh(x * 2.0), lambda: x - KERNELS[2][:4, 0])
        return tf.nn.relu(y)

    files = converted(tmp_path, branching, (4,))
    with TensorFlowBackend().open(files, ONE) as session, session.open_stepper() as stepper:
        for sign in (1, -1):
            feeds = {"x0": np.float32(sign) * np.array([1, 2, -0.5, 0.25], np.float32)}
            (plain,) = session.predict(feeds).values()
            graph, kept = captured(stepper, feeds)
            np.testing.assert_array_equal(kept[next(iter(graph.outputs.values()))], plain)
    assert ("control",) in [o.kinds for o in graph.operations]
    assert any("Not seen into" in note for note in stepper.notes)


def test_weights_in_half_precision_are_no_values(tmp_path):
    spec = tf.lite.TargetSpec(supported_types=[tf.float16])
    files = converted(
        tmp_path, residual, (1, 12, 12, 3), optimizations=[tf.lite.Optimize.DEFAULT], target_spec=spec
    )  # fmt: skip
    with TensorFlowBackend().open(files, ONE) as session, session.open_stepper() as stepper:
        plain = session.predict({"x0": pictures()})
        graph, kept = captured(stepper, {"x0": pictures()})
    assert "DEQUANTIZE" not in {o.type for o in graph.operations}
    assert next(o for o in graph.operations if o.type == "CONV_2D").parameter_count == 3 * 3 * 3 * 8 + 8
    for name, array in plain.items():
        np.testing.assert_array_equal(kept[graph.outputs[name]], array)


def test_without_a_delegate(plain_files):
    digests = set()
    for choice in ("none", "all", None):
        with TensorFlowBackend().open(plain_files, SessionOptions(threads=1, graph_optimization=choice)) as session:
            plain = session.predict({"x0": pictures()})
            digests.add(session.executable_digest)
            with session.open_stepper() as stepper:
                graph, kept = captured(stepper, {"x0": pictures()})
            for name, array in plain.items():
                np.testing.assert_array_equal(kept[graph.outputs[name]], array)
    assert len(digests) == 2


def test_types_of_a_file_are_fixed(plain_files):
    with pytest.raises(UnsupportedModelError, match="whose types are fixed"):
        TensorFlowBackend().open(plain_files, SessionOptions(precision="float64"))


def test_state_outside_the_graph(tmp_path):
    module = tf.Module()
    module.total = tf.Variable(tf.zeros(3))

    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32)])
    def count(x):
        return module.total.assign_add(x)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([count.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    path = tmp_path / "counting.tflite"
    path.write_bytes(converter.convert())
    files = ModelFiles(name="counting", format="tflite", path=path, digest=digest_of(path))
    with (
        TensorFlowBackend().open(files, ONE) as session,
        pytest.raises(UnsupportedModelError, match="keeps its state outside the graph"),
    ):
        session.open_stepper()


def test_broken_file(tmp_path, plain_files):
    path = tmp_path / "broken.tflite"
    path.write_bytes(plain_files.path.read_bytes()[:600])
    with pytest.raises(UnsupportedModelError, match=r"broken.tflite cannot be taken apart"):
        read_lite(path, [("x0", 0)], "tensorflow")


@pytest.mark.network
def test_basic_pitch_is_as_the_whole():
    location = WheelLocation(
        project="basic-pitch",
        version="0.4.0",
        member="basic_pitch/saved_models/icassp_2022/nmp.tflite",
        sha256="3db297d54af8e01c6e5618245c956b1d71b6a2b978cb2dedb527173186552676",
        **{"from": "wheel"},
    )
    path = fetch(location, settings=load_settings()).path
    files = ModelFiles(name="basic-pitch", format="tflite", path=path, digest="sha256:" + location.sha256)
    feeds = {"input_2": np.random.default_rng(0).normal(size=(1, 43844, 1)).astype(np.float32)}
    with TensorFlowBackend().open(files, ONE) as session, session.open_stepper() as stepper:
        plain = session.predict(feeds)
        graph, kept = captured(stepper, feeds)
        for position in range(0, len(graph.operations), 4):
            operation = graph.operations[position]
            found = stepper.replay([position], {i: kept[i] for i in operation.inputs}, operation.outputs)
            for index, array in found.items():
                np.testing.assert_array_equal(array, kept[index], err_msg=operation.name)
    for name, array in plain.items():
        np.testing.assert_array_equal(kept[graph.outputs[name]], array)
    assert len(graph.operations) == 222
