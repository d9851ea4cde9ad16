"""ONNX Runtime's stepper: against the contract, and on real models, fused and not."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.testing import StepperContract

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.backends.test_onnxruntime_ import save, value  # noqa: E402


def weight(name, *shape, seed=0, dtype=np.float32):
    return numpy_helper.from_array((np.random.default_rng(seed).normal(size=shape) * 0.2).astype(dtype), name)


def squeeze_and_excite(folder, channels):
    """Return a network whose channels fill no block, with everything that ONNX Runtime blocks or fuses."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="bend"),
        helper.make_node("Conv", ["r1", "wd"], ["cd"], name="deep", pads=[1, 1, 1, 1], group=channels),
        helper.make_node("GlobalAveragePool", ["cd"], ["p"], name="squeeze"),
        helper.make_node("Conv", ["p", "w2", "b2"], ["c2"], name="excite"),
        helper.make_node("Sigmoid", ["c2"], ["sg"], name="gate"),
        helper.make_node("Mul", ["cd", "sg"], ["m"], name="scale"),
        helper.make_node("Concat", ["m", "r1"], ["cc"], name="join", axis=1),
        helper.make_node("Conv", ["cc", "w3"], ["c3"], name="project"),
        helper.make_node("Add", ["c3", "r1"], ["ad"], name="around"),
        helper.make_node("Relu", ["ad"], ["hs"], name="bend2"),
        helper.make_node("MaxPool", ["hs"], ["mp"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["mp", "w4"], ["c4"], name="last"),
        helper.make_node("ReduceMean", ["c4"], ["y"], axes=[2, 3], keepdims=0, name="mean"),
    ]
    return save(
        folder,
        nodes,
        [value("x", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [value("y", TensorProto.FLOAT, None), value("sg", TensorProto.FLOAT, None)],
        initializers=[
            weight("w1", channels, 3, 3, 3), weight("b1", channels), weight("wd", channels, 1, 3, 3, seed=1),
            weight("w2", channels, channels, 1, 1, seed=2), weight("b2", channels, seed=3),
            weight("w3", channels, 2 * channels, 1, 1, seed=4), weight("w4", 5, channels, 1, 1, seed=5),
        ],
        name=f"se{channels}",
    )  # fmt: skip


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
