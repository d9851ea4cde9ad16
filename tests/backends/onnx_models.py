"""ONNX models for the tests of ONNX Runtime's stepper and of what is cut out of graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlscope_lab.backends.base import ModelFiles
from mlscope_lab.config import load_settings
from mlscope_lab.subject import resolve

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def files_of(path, name=""):
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFiles(name=name or path.stem, format="onnx", path=path, digest=digest)


def light(name):
    """Return one of the published architectures with made-up weights that come with onnx."""
    return files_of(LIGHT / f"light_{name}.onnx")


def published(name):
    """Return the ONNX form of a published model."""
    return resolve(name, backend="onnxruntime", example=None, settings=load_settings()).files


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def floats(name, *shape):
    return value(name, TensorProto.FLOAT, shape or None)


def weight(name, *shape, seed=0, dtype=np.float32):
    return numpy_helper.from_array((np.random.default_rng(seed).normal(size=shape) * 0.2).astype(dtype), name)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def save(
    folder, nodes, inputs, outputs, *, initializers=(), name="model", opset=17, ir=9, domains=None, external=False
):
    """Write a model; return its files."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*pair) for pair in (domains or {}).items())]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir)
    path = folder / f"{name}.onnx"
    onnx.save(model, path, save_as_external_data=external, location=f"{name}.bin", size_threshold=0)
    return files_of(path)


def squeeze_and_excite(folder, channels):
    """Return a network whose channels fill no block, with much of what ONNX Runtime blocks and fuses."""
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
        [floats("x", "batch", 3, 12, 12)],
        [floats("y"), floats("sg")],
        initializers=[
            weight("w1", channels, 3, 3, 3), weight("b1", channels), weight("wd", channels, 1, 3, 3, seed=1),
            weight("w2", channels, channels, 1, 1, seed=2), weight("b2", channels, seed=3),
            weight("w3", channels, 2 * channels, 1, 1, seed=4), weight("w4", 5, channels, 1, 1, seed=5),
        ],
        name=f"se{channels}",
    )  # fmt: skip


def noise(session, batch=1, seed=0):
    """Return random feeds for a session: normal floats, bytes for integers."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in session.inputs:
        shape = [d if isinstance(d, int) else batch for d in spec.shape]
        feeds[spec.name] = (
            rng.normal(size=shape).astype(spec.dtype)
            if "float" in spec.dtype
            else rng.integers(0, 256, size=shape).astype(spec.dtype)
        )
    return feeds


def sound(session):
    """Return feeds for silero: 16 kHz, a chunk with its context, no state yet."""
    rng = np.random.default_rng(0)
    feeds = {"input": rng.normal(size=(1, 576)).astype(np.float32), "state": np.zeros((2, 1, 128), np.float32)}
    return {spec.name: feeds.get(spec.name, np.array(16000, np.int64)) for spec in session.inputs}


def captured(stepper, feeds):
    """Run a stepper; return its graph and copies of its values by position."""
    kept = {}

    def receive(index, array):
        assert index not in kept
        kept[index] = np.array(array)

    return stepper.run(feeds, receive), kept
