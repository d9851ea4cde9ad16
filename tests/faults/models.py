"""The three models in which faults are planted, in three frameworks each, and pictures to feed them.

- efficientnet-lite0: published weights. In PyTorch its own module, with batch normalisation; as ONNX and in TensorFlow
  the exporter's graph, in which that is folded into the convolutions.
- light-squeezenet: concatenations, biases, no normalisation.
- light-shufflenet: batch normalisation, grouped convolutions, channel shuffles, sums and concatenations.

The two networks of the onnx package come with one constant in all places of a weight, which makes all channels of a
layer equal, so that many faults could not show. They get seeded weights (He's initialisation), and batch normalisation
the statistics that real pictures have under these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

import mlscope_lab as ml
from mlscope_lab.backends.base import ModelFiles
from mlscope_lab.processing.base import Pipeline

__all__ = ["BACKENDS", "MODELS", "PICTURES", "Base", "load_base", "picture", "save_onnx", "to_tensorflow"]

BACKENDS = ("pytorch", "onnxruntime", "tensorflow")
MODELS = ("efficientnet-lite0", "light-squeezenet", "light-shufflenet")
PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
_STEPS = (
    {"step": "resize", "shorter_side": 256, "interpolation": "bicubic"},
    {"step": "crop", "height": 224, "width": 224},
    {"step": "convert", "dtype": "float32", "scale": 1 / 255},
    {"step": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"step": "layout", "source": "HWC", "target": "CHW"},
)
_CALIBRATION_PICTURES = 4


def picture(name: str, random: np.random.Generator) -> np.ndarray:
    """Return a picture of scikit-image, cropped, mirrored and lit at random, as float32[1, 3, 224, 224]."""
    import skimage.data

    pixels = np.asarray(getattr(skimage.data, name)())[..., :3]
    height, width = pixels.shape[:2]
    side = int(min(height, width) * random.uniform(0.6, 1.0))
    top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
    pixels = pixels[top : top + side, left : left + side]
    if random.integers(2):
        pixels = pixels[:, ::-1]
    pixels = np.clip(pixels * random.uniform(0.7, 1.2), 0, 255).astype(np.uint8)
    return np.asarray(Pipeline.from_specs(_STEPS)(np.ascontiguousarray(pixels)))[None]


@dataclass(kw_only=True)
class Base:
    """A model without a fault.

    Attributes
    ----------
    name
        One of `MODELS`.
    graph
        Its ONNX graph; every node has a name.
    module
        A torch module of its own, or None where `tests.faults.twin.Twin` of the graph serves.
    folder
        Where its files are written.
    """

    name: str
    graph: ModelProto
    folder: Path
    module: Any = None
    _sides: dict[str, Any] = field(default_factory=dict)

    def side(self, backend: str) -> Any:
        """Return the model as `mlscope_lab.compare` takes it: a path or a module."""
        from tests.faults.twin import Twin

        if backend not in self._sides:
            if backend == "pytorch":
                self._sides[backend] = Twin(self.graph) if self.module is None else self.module
            else:
                path = save_onnx(self.graph, self.folder / f"{self.name}.onnx")
                self._sides[backend] = to_tensorflow(path) if backend == "tensorflow" else path
        return self._sides[backend]


def save_onnx(graph: ModelProto, path: Path) -> Path:
    """Write a graph."""
    onnx.save(graph, path)
    return path


def to_tensorflow(path: Path) -> Path:
    """Convert an ONNX file to a SavedModel beside it."""
    from mlscope_lab.conversion.onnx_to_tensorflow import convert

    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    target = path.with_suffix("")
    files = ModelFiles(name=path.stem, format="onnx", path=path, digest=digest)
    name = next(i.name for i in onnx.load(path).graph.input)
    convert(files, target, example={name: np.zeros((1, 3, 224, 224), np.float32)})
    return target


def load_base(name: str, folder: Path) -> Base:
    """Make one of the models ready; its files go to `folder`."""
    if name == "efficientnet-lite0":
        graph, module = _efficientnet()
        return Base(name=name, graph=graph, module=module, folder=folder)
    return Base(name=name, graph=_seeded(name), folder=folder)


@cache
def _efficientnet() -> tuple[ModelProto, Any]:
    from mlscope_lab.backends.pytorch_load import load_module

    with ml.load(MODELS[0], backend="onnxruntime") as model:
        graph = onnx.load(model.subject.files.path)
    with ml.load(MODELS[0], backend="pytorch") as model:
        module = load_module(model.subject.files)
    for node in graph.graph.node:
        del node.metadata_props[:]
    del graph.graph.value_info[:]
    return graph, module


@cache
def _seeded(name: str) -> ModelProto:
    """Return a network of the onnx package with seeded weights in place of its constants."""
    short = name.removeprefix("light-")
    model = onnx.load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{short}.onnx")
    graph, random = model.graph, np.random.default_rng(2026)
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    shapes = {n.output[0]: constants[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    made: dict[str, np.ndarray] = {}
    kept = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    for index, node in enumerate(kept):
        node.name = f"node_{index}"
        for position, weight in enumerate(node.input):
            if weight in shapes and weight not in made:
                made[weight] = _weight(node.op_type, position, [int(d) for d in shapes[weight]], random)
    # one tensor may serve several nodes in the file; each gets its own, so that a fault touches one
    used: dict[str, int] = {}
    for node in kept:
        for position, weight in enumerate(node.input):
            if weight in made:
                used[weight] = used.get(weight, 0) + 1
                if used[weight] > 1:
                    node.input[position] = f"{weight}_{used[weight]}"
                    made[node.input[position]] = _weight(node.op_type, position, list(made[weight].shape), random)
    read = {i for n in kept for i in n.input}
    fed = next(i for i in graph.input if i.name not in constants)
    initializers = [numpy_helper.from_array(a, n) for n, a in made.items()]
    initializers += [i for i in graph.initializer if i.name in read]
    del graph.node[:], graph.input[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.input.append(fed)
    model.ir_version = 8  # before 4 every weight had to be an input too
    graph.initializer.extend(initializers)
    if any(n.op_type == "BatchNormalization" for n in kept):
        _calibrate(model)
    onnx.checker.check_model(model)
    return model


def _weight(op: str, position: int, shape: list[int], random: np.random.Generator) -> np.ndarray:
    if op == "BatchNormalization":
        low, high = {1: (0.6, 1.4), 2: (-0.4, 0.4), 3: (0.0, 0.0), 4: (1.0, 1.0)}[position]
        return random.uniform(low, high, shape).astype(np.float32)
    if position == 2:
        return random.uniform(-0.2, 0.2, shape).astype(np.float32)
    gain = np.sqrt(2 / np.prod(shape[1:])) if op == "Conv" else 3 / np.sqrt(shape[1])
    return (gain * random.standard_normal(shape)).astype(np.float32)


def _calibrate(model: ModelProto) -> None:
    """Set the statistics of batch normalisation to those of a few pictures."""
    import torch

    from tests.faults.twin import Twin

    twin, random = Twin(model), np.random.default_rng(0)
    norms = {n: m for n, m in twin.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for module in norms.values():
        module.train()
        module.momentum = None  # the plain mean over the pictures
        module.reset_running_stats()
    with torch.no_grad():
        for name in PICTURES[:_CALIBRATION_PICTURES]:
            twin(torch.from_numpy(picture(name, random)))
    found = {}
    for node in model.graph.node:
        if node.name in norms:
            found[node.input[3]], found[node.input[4]] = norms[node.name].running_mean, norms[node.name].running_var
    for item in model.graph.initializer:
        if item.name in found:
            item.CopyFrom(numpy_helper.from_array(found[item.name].numpy().copy(), item.name))
