"""Small models with manifests, and folders of labelled pictures for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

COLOURS = {"red": (230, 30, 40), "green": (40, 220, 60), "blue": (30, 50, 235), "gray": (120, 120, 120)}
FACES = ("face", "no face")

_MANIFEST = """\
kind: model
name: {name}
task: image-classification
inputs:
  - name: image
    dtype: float32
    shape: [{batch}, {size}, {size}, {channels}]
    preprocess:
      - {{step: decode_image, color: {color}}}
      - {{step: resize, height: {size}, width: {size}}}
      - {{step: normalize, mean: [127], std: [128]}}
outputs:
  - name: scores
    dtype: float32
    shape: [{batch}, {classes}]
    postprocess:
      - {{step: softmax}}
      - {{step: top_k, k: 2}}
labels: {{names: {labels}}}
sources:
  - format: onnx
    location: {{from: file, path: {name}.onnx}}
"""


def save_linear(
    folder: Path, name: str, weights: npt.NDArray[Any], labels: tuple[str, ...], *, size: int, color: str,
    batch: str = "batch",
) -> Path:  # fmt: skip
    """Write a model of one linear layer over all pixels, (size * size * channels + 1, classes), and its manifest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    channels = 1 if color == "GRAY" else 3
    shape: list[Any] = [batch if batch == "batch" else int(batch), size, size, channels]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["scores"])],
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], len(labels)])],
        [numpy_helper.from_array(weights[:-1].astype(np.float32), "w"),
         numpy_helper.from_array(weights[-1].astype(np.float32), "b")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]),
              folder / f"{name}.onnx")  # fmt: skip
    manifest = folder / f"{name}.yaml"
    manifest.write_text(
        _MANIFEST.format(name=name, size=size, channels=channels, color=color, classes=len(labels), batch=batch,
                         labels=list(labels)),
        encoding="utf-8",
    )  # fmt: skip
    return manifest


def save_colours(folder: Path, **options: Any) -> Path:
    """Write a model that names the colour of a picture of 8 x 8 pixels."""
    classes = (np.array(list(COLOURS.values())) - 127) / 128
    per_pixel = classes.T * 12 / 64
    bias = -6 * (classes**2).sum(axis=1)
    weights = np.vstack([np.tile(per_pixel, (64, 1)), bias])
    return save_linear(folder, "colours", weights, tuple(COLOURS), size=8, color="RGB", **options)


def save_colour_pictures(folder: Path, count: int = 3) -> Path:
    """Write pictures of each colour, with a little noise, into a subfolder a class."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.array(colour) + rng.normal(0, 12, (20, 26, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def faces() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the 200 pictures (25 x 25) of scikit-image's subset of Labeled Faces in the Wild, and their classes."""
    from skimage import data

    return np.round(data.lfw_subset() * 255).astype(np.uint8), np.repeat(np.arange(2), 100)


def face_weights() -> npt.NDArray[np.float64]:
    """Fit a linear classifier to every other face by ridge regression."""
    pictures, target = faces()
    x = np.hstack([(pictures.reshape(200, -1) - 127.0) / 128, np.ones((200, 1))])[::2]
    wanted = np.eye(2)[target][::2] * 2 - 1
    solved: npt.NDArray[np.float64] = np.linalg.solve(x.T @ x + 20 * np.eye(x.shape[1]), x.T @ wanted)
    return solved


def save_faces(folder: Path, name: str, bits: int | None = None) -> Path:
    """Write that classifier, its weights rounded to so many bits."""
    weights = face_weights()
    if bits is not None:
        scale = np.abs(weights).max() / (2 ** (bits - 1) - 1)
        weights = np.round(weights / scale) * scale
    return save_linear(folder, name, weights, FACES, size=25, color="GRAY")


def held_out() -> list[tuple[npt.NDArray[np.uint8], int]]:
    """Return the 100 faces that were not fitted, with their classes."""
    pictures, target = faces()
    return [(pictures[i], int(target[i])) for i in range(1, 200, 2)]
