"""A new ONNX file with a YAML manifest predicts and profiles from the command line, with no code."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import LABELS, Workspace

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

STAGE_KEYS = {"median_ns", "low_ns", "high_ns", "minimum_ns", "mean_ns"}
SUMMARY_KEYS = {"stages", "percentiles_ns", "throughput", "drift", "drifting", "iterations", "processes", "confidence",
                "unit_of_replication"}  # fmt: skip
LAYERS_KEYS = {"count", "pass_ns", "covered_ns", "unattributed_ns", "overlap_ns", "overhead", "slowest"}
LAYER_KEYS = {"layer", "type", "exclusive_ns", "low_ns", "high_ns", "duration_ns", "share", "calls"}
PROFILE_KEYS = {"run_id", "status", "model", "backend", "level", "summary", "levels", "layers"}


def test_predict_as_json(workspace: Workspace) -> None:
    found = workspace.json("predict", "tiny-classifier", "-i", workspace.red, "-i", workspace.green)
    assert set(found) == {"model", "backend", "samples", "outputs"}
    assert (found["model"], found["backend"]) == ("tiny-classifier", "onnxruntime")
    assert [sample[0]["index"] for sample in found["samples"]] == [0, 1]
    red = found["samples"][0]
    assert all(set(answer) == {"index", "label", "score"} for answer in red)
    assert {answer["label"] for answer in red} == set(LABELS)
    assert sum(answer["score"] for answer in red) == pytest.approx(1.0)
    assert found["outputs"] == [{"name": "scores", "dtype": "float32", "shape": [2, 4]}]


def test_predict_prints_labels_literally(workspace: Workspace) -> None:
    result = workspace.invoke("predict", "tiny-classifier", "--input", workspace.green, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.stderr
    assert "[red]not red[/red]" in result.stdout
    assert "esc\\x1b[31mape" in result.stdout
    assert "\x1b" not in result.stdout
    assert "naïve 猫" in result.stdout
    first = result.stdout.split(" label")[1].strip().splitlines()[0]
    assert "[red]not red[/red]" in first


def test_a_bare_file_answers_with_tensors(workspace: Workspace) -> None:
    np.save(workspace.home.parent / "x.npy", np.ones((3, 8, 8), dtype=np.float32))
    result = workspace.invoke(
        "predict", workspace.manifests / "tiny.onnx", "--input", workspace.home.parent / "x.npy", "-b", "onnxruntime"
    )
    assert result.exit_code == 0, result.stderr
    assert "float32[1, 4]" in result.stdout


def _error(workspace: Workspace, *arguments: Any, status: int = 1) -> dict[str, str]:
    result = workspace.invoke(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (status, "")
    assert "Traceback" not in result.stderr
    error: dict[str, str] = json.loads(result.stderr)["error"]
    assert {"type", "message"} <= set(error)
    return error


def test_bad_input_is_one_message(workspace: Workspace) -> None:
    missing = _error(workspace, "predict", "tiny-classifier", "--input", "no-such.png")
    assert missing == {"type": "InputError", "message": "no-such.png: there is no such file"}
    corrupt = workspace.home.parent / "corrupt.png"
    corrupt.write_bytes(workspace.red.read_bytes()[:40])
    for command in (["predict"], ["profile", "--on", "inline"]):
        error = _error(workspace, command[0], "tiny-classifier", "--input", corrupt, *command[1:])
        assert error["type"] == "InputError"
        assert "corrupt.png" in error["message"]
    unknown = _error(workspace, "predict", "tiny-clasifier", "--input", workspace.red)
    assert "Did you mean 'tiny-classifier'" in unknown["message"]
    backend = _error(workspace, "profile", "tiny-classifier", "--backend", "onnxrunntime")
    assert "Did you mean 'onnxruntime'" in backend["message"]
    level = _error(workspace, "profile", "tiny-classifier", "--level", "layers")
    assert "Did you mean 'layer'" in level["message"]
    assert not workspace.home.joinpath("runs").exists()


def test_without_a_network_the_message_says_so(workspace: Workspace) -> None:
    error = _error(workspace, "predict", "efficientnet-lite0", "--input", workspace.red, "--backend", "pytorch")
    assert error["type"] == "OfflineError"
    assert "MLSCOPE_OFFLINE" in error["message"]


def test_predict_needs_an_input_and_compare_two_backends(workspace: Workspace) -> None:
    assert workspace.invoke("predict", "tiny-classifier").exit_code == 2
    one = workspace.invoke("compare-latency", "tiny-classifier", "--backend", "onnxruntime")
    assert one.exit_code == 2
    assert "exactly two" in one.stderr
    size = workspace.invoke("profile", "tiny-classifier", "--memory-limit", "much")
    assert size.exit_code == 2


def test_profile_as_json(measured: tuple[Workspace, dict[str, Any]]) -> None:
    said = measured[1]
    assert set(said) == PROFILE_KEYS
    assert (said["status"], said["level"], said["backend"]) == ("complete", "layer", "onnxruntime")
    assert set(said["summary"]) == SUMMARY_KEYS
    assert set(said["summary"]["stages"]) == {"preprocess", "predict", "postprocess", "total"}
    for stage in said["summary"]["stages"].values():
        assert set(stage) == STAGE_KEYS
        assert 0 < stage["minimum_ns"] <= stage["median_ns"]
        assert stage["low_ns"] <= stage["median_ns"] <= stage["high_ns"]
    percentiles = said["summary"]["percentiles_ns"]
    assert set(percentiles) == {"90", "95", "97", "99", "99.9"}
    assert percentiles["90"] > 0
    assert percentiles["95"] is None
    assert (said["summary"]["iterations"], said["summary"]["processes"]) == (70, 1)
    assert set(said["layers"]) == LAYERS_KEYS
    assert set(said["layers"]["overhead"]) == {"ratio", "low", "high"}
    assert 0 < len(said["layers"]["slowest"]) <= 5
    costs = [layer["exclusive_ns"] for layer in said["layers"]["slowest"]]
    assert costs == sorted(costs, reverse=True)
    assert all(set(layer) == LAYER_KEYS for layer in said["layers"]["slowest"])


def test_a_run_without_layers_and_with_few_iterations_says_null(workspace: Workspace) -> None:
    said = workspace.json("profile", "tiny-classifier", "--on", "inline", "-n", "3", "-t", "1", "--batch-size", "2")
    assert said["layers"] is None
    assert said["summary"]["percentiles_ns"] is None
    assert said["summary"]["stages"]["predict"]["low_ns"] is None
    shown = workspace.invoke("open", said["run_id"])
    assert "(no interval)" in shown.stdout
    assert "too few iterations for any" in shown.stdout
