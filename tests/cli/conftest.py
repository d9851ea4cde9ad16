"""A folder with a small model of its own, published by a YAML file and no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

LABELS = ("plain", "[red]not red[/red]", "esc\x1b[31mape", "naïve 猫")

MANIFEST = """\
kind: model
name: tiny-classifier
version: 1.2.0
task: image-classification
description: Four classes [bold]by colour[/bold].
license: Apache-2.0
inputs:
  - name: image
    dtype: float32
    shape: [batch, 3, 8, 8]
    layout: NCHW
    preprocess:
      - {{step: decode_image, color: RGB}}
      - {{step: resize, height: 8, width: 8, interpolation: nearest}}
      - {{step: convert, dtype: float32, scale: 0.00392156862745098}}
      - {{step: layout, source: HWC, target: CHW}}
outputs:
  - name: scores
    dtype: float32
    shape: [batch, 4]
    postprocess:
      - {{step: softmax}}
      - {{step: top_k, k: 4}}
labels: {{names: {labels}}}
sources:
  - format: onnx
    location: {{from: file, path: tiny.onnx}}
"""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Folders of one test, and the command line on them."""

    home: Path
    manifests: Path
    red: Path
    green: Path

    @property
    def environ(self) -> dict[str, str]:
        """Variables of the command."""
        return {"MLSCOPE_HOME": str(self.home), "MLSCOPE_PATH": str(self.manifests), "MLSCOPE_OFFLINE": "1",
                "MLSCOPE_LOCK": f"{self.home}.lock", "COLUMNS": "120"}  # fmt: skip

    def invoke(self, *arguments: str | Path, answer: str | None = None, **environ: str) -> Result:
        """Run a command in this process."""
        from mlscope_lab.cli.app import app

        return CliRunner().invoke(app, [str(a) for a in arguments], input=answer, env={**self.environ, **environ})

    def json(self, *arguments: str | Path) -> Any:
        """Run a command with --json in this process and return what it prints."""
        result = self.invoke(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def spawn(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the real command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "mlscope_lab.cli", *(str(a) for a in arguments)], capture_output=True, text=True,
            encoding="utf-8", env={**os.environ, **self.environ, "PYTHONUTF8": "1", **environ}, timeout=900,
            check=False,
        )  # fmt: skip


def _save_model(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # class 0 wants red, class 1 green, class 2 blue, class 3 none of them
    weights = np.array([[8, -4, -4], [-4, 8, -4], [-4, -4, 8], [-2, -2, -2]], dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "weights"], ["scores"], name="dense", transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)


def _make(root: Path) -> Workspace:
    from PIL import Image

    manifests = root / "manifests"
    manifests.mkdir()
    _save_model(manifests / "tiny.onnx")
    (manifests / "tiny.yaml").write_text(MANIFEST.format(labels=json.dumps(LABELS)), encoding="utf-8")
    pictures = {"red": (250, 5, 5), "green": (5, 250, 5)}
    for name, color in pictures.items():
        Image.new("RGB", (16, 12), color).save(root / f"{name}.png")
    return Workspace(home=root / "home", manifests=manifests, red=root / "red.png", green=root / "green.png")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a fresh folder with a model and no runs."""
    pytest.importorskip("onnx")
    return _make(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any]]:
    """Return a folder with one run at layer level, and what profile --json said of it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    made = _make(tmp_path_factory.mktemp("measured"))
    said = made.json("profile", "tiny-classifier", "-i", made.red, "--level", "layer", "--iterations", "70", "-t", "1",
                     "--on", "inline")  # fmt: skip
    return made, said
