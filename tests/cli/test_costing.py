from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlscope_lab.cli.app import app

onnx = pytest.importorskip("onnx")
MODEL = str(Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx")
runner = CliRunner()


def open_batch(folder: Path) -> str:
    """Write a model whose batch and sequence are open."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "graph",
        [helper.make_tensor_value_info("x", 1, ["n", "sequence", 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [helper.make_tensor("w", 1, [4, 2], [0.0] * 8)],
    )  # fmt: skip
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return str(path)


def test_json_has_totals_layers_and_conventions() -> None:
    result = runner.invoke(app, ["cost", MODEL, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["totals"]["macs"] == 349_151_936
    assert found["totals"]["parameters"] == 1_235_496
    assert found["not_counted"] == {}
    assert sum(layer["macs"] for layer in found["layers"]) == 349_151_936
    assert found["layers"][0]["type"] == "Conv"
    assert found["layers"][0]["counted"] is True
    assert found["conventions"]
    assert set(found) == {"model", "source", "symbols", "peak_layer", "not_counted", "notes", "conventions", "totals",
                          "layers"}  # fmt: skip


def test_text_says_what_is_counted() -> None:
    result = runner.invoke(app, ["cost", MODEL, "--layers", "3"])
    assert result.exit_code == 0, result.output
    assert "349,151,936" in result.stdout
    assert "a multiply-add is 2 FLOPs" in result.stdout.replace("\n", "").replace("  ", " ")
    assert "Largest of 66 layers" in result.stdout


def test_symbols(tmp_path: Path) -> None:
    path = open_batch(tmp_path)
    found = json.loads(runner.invoke(app, ["cost", path, "--symbolic", "--json"]).stdout)
    assert found["symbols"] == ["batch", "sequence"]
    assert found["totals"]["macs"] == "8*batch*sequence"
    assert "arithmetic_intensity" not in found["layers"][0]
    given = ["cost", path, "--batch-size", "2", "--symbol", "sequence=7", "--json"]
    assert json.loads(runner.invoke(app, given).stdout)["totals"]["macs"] == 112
    assert "8*batch*sequence" in runner.invoke(app, ["cost", path, "--symbolic"]).stdout


def test_errors_are_one_message() -> None:
    result = runner.invoke(app, ["cost", "nowhere.onnx", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["type"] == "InputError"
    result = runner.invoke(app, ["cost", MODEL, "--batch-size", "3"])
    assert result.exit_code == 1
    assert "fixes the batch" in result.stderr
