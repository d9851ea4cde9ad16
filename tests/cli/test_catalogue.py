from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Workspace

MODEL_KEYS = {"name", "version", "task", "formats", "frameworks", "license", "description", "path", "digest"}


def test_models_as_json(workspace: Workspace) -> None:
    found = workspace.json("models", "--search", "tiny colour")
    assert [set(m) for m in found] == [MODEL_KEYS]
    assert found[0]["name"] == "tiny-classifier"
    assert found[0]["formats"] == ["onnx"]
    assert found[0]["path"] == str(workspace.manifests / "tiny.yaml")


def test_models_as_a_table_print_text_literally(workspace: Workspace) -> None:
    result = workspace.invoke("models", "--search", "tiny")
    assert result.exit_code == 0
    assert "Four classes [bold]by colour[/bold]." in result.stdout


def test_filters(workspace: Workspace) -> None:
    named = {m["name"] for m in workspace.json("models", "--task", "image-classification", "--format", "onnx")}
    assert "tiny-classifier" in named
    assert workspace.json("models", "--search", "tiny", "--format", "tflite") == []
    nothing = workspace.invoke("models", "--search", "no such thing")
    assert (nothing.exit_code, nothing.stdout) == (0, "")


def test_an_unknown_task_suggests_the_nearest(workspace: Workspace) -> None:
    result = workspace.invoke("models", "--task", "image-clasification")
    assert result.exit_code == 1
    assert "Did you mean 'image-classification'" in result.stderr


def test_a_broken_manifest_hides_no_other(workspace: Workspace) -> None:
    (workspace.manifests / "broken.yaml").write_text("kind: model\nname: [", encoding="utf-8")
    result = workspace.invoke("models", "--search", "tiny", "--json")
    assert result.exit_code == 0
    assert [m["name"] for m in json.loads(result.stdout)] == ["tiny-classifier"]
    assert "1 manifest could not be read" in result.stderr


def test_show_tells_who_opens_it(workspace: Workspace) -> None:
    found = workspace.json("show", "tiny-classifier@1.2.0")
    assert set(found) == {"manifest", "path", "digest", "backends"}
    assert found["manifest"]["sources"][0]["location"]["from"] == "file"
    assert found["backends"]["onnxruntime"]["opens"] == "onnx"
    assert found["backends"]["onnxruntime"]["how"] == "as published"
    shown = workspace.invoke("show", str(workspace.manifests / "tiny.yaml"))
    assert shown.exit_code == 0
    assert "float32[batch, 3, 8, 8]" in shown.stdout
    assert "softmax, top_k" in shown.stdout


def test_an_unknown_model_suggests_the_nearest(workspace: Workspace) -> None:
    result = workspace.invoke("show", "tiny-clasifier", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)["error"]
    assert error["type"] == "ManifestNotFoundError"
    assert "Did you mean 'tiny-classifier'" in error["message"]


@pytest.mark.parametrize("kind", ["model", "framework", "dataset", "system"])
def test_schemas_of_manifests(workspace: Workspace, kind: str) -> None:
    found = workspace.json("schema", kind)
    assert found["$schema"].endswith("2020-12/schema")
    assert found["properties"]["kind"]["const"] == kind


def test_the_schema_of_a_run(workspace: Workspace) -> None:
    found = workspace.json("schema", "run")
    assert found["groups"]["latency"]["predict_ns"] == {"dims": ["latency_iteration"], "dtype": "int64", "units": "ns"}
    assert found["groups"]["layers"]["name"]["dtype"] == "str"
    assert "run_id" in found["required_attrs"]


def test_an_unknown_schema(workspace: Workspace) -> None:
    result = workspace.invoke("schema", "modell")
    assert result.exit_code == 1
    assert "Did you mean 'model'" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["show"], ["models", "--no-such"], ["nonsense"], ["profile", "x", "--iterations", "0"]]
)
def test_wrong_usage_exits_with_2(workspace: Workspace, arguments: list[str]) -> None:
    result = workspace.invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
