"""The commands about comparisons: what they read, what they print, and with which status they end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from mlscope_lab.cli.comparing import _models_and_files, side_from
from mlscope_lab.config import load_settings
from mlscope_lab.divergence.stored import store_of
from mlscope_lab.errors import InputError
from mlscope_lab.testing import synthetic_comparison
from tests.cli.conftest import Workspace


def keep(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, **given: Any) -> str:
    """Put a synthetic comparison into the workspace's store and return its id."""
    for name, value in workspace.environ.items():
        monkeypatch.setenv(name, value)
    return store_of(load_settings()).save(synthetic_comparison(**given))


def test_a_side_is_a_backend_or_pairs_of_keys_and_values(tmp_path: Path) -> None:
    assert side_from(None, "--a") == {}
    assert side_from("pytorch", "--a") == {"backend": "pytorch"}
    assert side_from("onnxruntime, precision=float16,threads=2", "--a") == {
        "backend": "onnxruntime", "precision": "float16", "threads": 2,
    }  # fmt: skip
    steps = tmp_path / "steps.yaml"
    steps.write_text("image:\n  - {step: resize, height: 8, width: 8}\n")
    assert side_from(f"preprocess={steps}", "--b") == {
        "preprocess": {"image": [{"step": "resize", "height": 8, "width": 8}]}
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("precison=float16", "Did you mean 'precision'"), ("threads=0", "at least 1"), ("threads=two", "whole number"),
        ("backend=", "not KEY=VALUE"), ("pytorch,backend=onnxruntime", "given twice"),
    ],
)  # fmt: skip
def test_a_malformed_side_says_what_is_wanted(text: str, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        side_from(text, "--a")


def test_steps_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be read"):
        side_from(f"preprocess={tmp_path / 'none.yaml'}", "--a")


def test_a_second_model_is_told_from_input_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.pt2", "cat.png", "resnet50"):
        Path(name).touch()
    Path("saved").mkdir()
    assert _models_and_files(["a.onnx", "b.pt2", "cat.png"]) == (["a.onnx", "b.pt2"], ["cat.png"])
    assert _models_and_files(["a.onnx", "cat.png", "b.pt2"]) == (["a.onnx"], ["cat.png", "b.pt2"])
    assert _models_and_files(["a.onnx", "saved"]) == (["a.onnx", "saved"], [])
    assert _models_and_files(["a.onnx", "light-squeezenet@1.0"]) == (["a.onnx", "light-squeezenet@1.0"], [])
    # a file is a file whatever it is called, and a misspelt one is no model
    assert _models_and_files(["a.onnx", "resnet50"]) == (["a.onnx"], ["resnet50"])
    assert _models_and_files(["a.onnx", "cat.jgp"]) == (["a.onnx"], ["cat.jgp"])


def test_nothing_that_differs_is_wrong_usage(workspace: Workspace) -> None:
    done = workspace.invoke("compare", "tiny-classifier", workspace.red)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "say what differs" in done.stderr


def test_a_missing_file_is_named_before_anything_runs(workspace: Workspace) -> None:
    done = workspace.invoke("compare", "tiny-classifier", "cat.jgp", "--a", "threads=1", "--b", "threads=2")
    assert done.exit_code == 1
    assert "cat.jgp: there is no such file" in done.stderr


def test_a_stored_divergence_is_shown_and_ends_with_4(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = keep(workspace, monkeypatch, fault_at=20, samples=2)
    done = workspace.invoke("judge", run_id)
    assert done.exit_code == 4, done.stderr
    assert "parts from pytorch at Clip /blocks.3.expand_act/Clip" in done.stdout
    assert "makes it: fed the reference's own inputs" in done.stdout
    assert "beyond, injects" in done.stdout
    assert "without a partner      /tail/Erf (b)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_a_narrow_terminal_keeps_layer_and_error(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(workspace, monkeypatch, fault_at=20)
    done = workspace.invoke("judge", COLUMNS="50")
    assert max(map(len, done.stdout.splitlines())) <= 50
    assert re.search(r"^ *# +layer \(b\) .*error", done.stdout, re.MULTILINE)


def test_json_says_all_of_it_and_stands_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = keep(workspace, monkeypatch, fault_at=20, samples=2)
    done = workspace.invoke("judge", "latest", "--json", "--worst", "3", "--html", workspace.home / "page.html")
    assert done.exit_code == 4
    said = json.loads(done.stdout)
    assert said["run_id"] == run_id
    assert said["diverges"] is True
    assert said["first_divergent"]["pair"] == said["culprit"]["pair"] == said["worst"][0]["position"] == 20
    assert said["culprit"]["injects"] == 1
    assert len(said["worst"]) == 3
    assert (said["pairs"], said["judged"], said["beyond"]) == (60, 60, 40)
    assert [side["backend"] for side in said["sides"]] == ["pytorch", "onnxruntime"]
    assert [row["status"] for row in said["samples"]] == ["compared", "compared", "left out"]
    assert Path(said["page"]).read_text().startswith("<!doctype html>")


def test_sides_that_agree_end_with_0(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(workspace, monkeypatch)
    done = workspace.invoke("judge")
    assert done.exit_code == 0
    assert "agrees with pytorch: of 60 values none is out of its tolerance" in done.stdout
    assert "Pairs nearest to their tolerance" in done.stdout


def test_a_side_that_failed_ends_with_3(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = {"side": "b", "label": "onnxruntime", "message": "Side b (onnxruntime) failed: out of memory"}
    keep(workspace, monkeypatch, status="failed", failure=failure)
    done = workspace.invoke("judge")
    assert done.exit_code == 3
    assert "Side b (onnxruntime) failed: out of memory" in done.stdout


def test_comparisons_are_listed_written_and_deleted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "mlscope compare" in workspace.invoke("comparisons").stderr
    ids = [keep(workspace, monkeypatch, seed=seed) for seed in (1, 2)]
    assert [row["run_id"] for row in workspace.json("comparisons")] == ids[::-1]
    assert len(workspace.json("comparisons", "--limit", "1")) == 1
    assert "pytorch, onnxruntime" in workspace.invoke("comparisons").stdout
    # an id is found among runs and comparisons; 'latest' is a run unless it is said
    assert workspace.json("report", ids[0], "-o", tmp_path / "a.html")["run_id"] == ids[0]
    assert workspace.json("report", "latest", "--comparison", "-o", tmp_path / "b.html")["run_id"] == ids[1]
    assert workspace.invoke("report", "latest", "-o", tmp_path / "c.html").exit_code == 1
    assert f"mlscope judge {ids[0]}" in workspace.invoke("open", ids[0]).stderr
    assert workspace.json("delete", ids[0], "--yes")["deleted"] == ids[0]
    assert [row["run_id"] for row in workspace.json("comparisons")] == ids[1:]
    assert workspace.invoke("judge", ids[0]).exit_code == 1


def two_files(folder: Path, *, wrong: float) -> tuple[Path, Path, Path]:
    """Write a network of three layers, a copy whose second one adds `wrong`, and an input; return their paths."""
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(5)
    weights = {n: random.normal(size=(16, 16)).astype(np.float32) / 4 for n in ("w1", "w2", "w3")}
    paths = []
    for name, bias in (("clean", 0.0), ("broken", wrong)):
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
            helper.make_node("Relu", ["h1"], ["r1"], name="first_act"),
            helper.make_node("Gemm", ["r1", "w2", "bias"], ["h2"], name="second"),
            helper.make_node("Relu", ["h2"], ["r2"], name="second_act"),
            helper.make_node("MatMul", ["r2", "w3"], ["scores"], name="third"),
        ]
        graph = helper.make_graph(
            nodes, name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 16])],
            [numpy_helper.from_array(w, n) for n, w in weights.items()]
            + [numpy_helper.from_array(np.full(16, bias, dtype=np.float32), "bias")],
        )  # fmt: skip
        paths.append(folder / f"{name}.onnx")
        onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), paths[-1])
    np.save(folder / "x.npy", random.normal(size=(1, 16)).astype(np.float32))
    return paths[0], paths[1], folder / "x.npy"


def test_one_model_run_in_two_ways_agrees(workspace: Workspace) -> None:
    pytest.importorskip("onnxruntime")
    said = workspace.json("compare", "tiny-classifier", workspace.red, "--a", "onnxruntime", "--b",
                          "graph_optimization=none,threads=1")  # fmt: skip
    assert said["diverges"] is False
    assert said["alignment"]["paired_a"] == said["alignment"]["compute_a"] > 0
    assert said["samples"][0]["sample"] == "red.png"
    assert workspace.json("comparisons")[0]["run_id"] == said["run_id"]


def test_a_wrong_layer_of_another_file_is_named_and_judged_anew(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    clean, broken, x = two_files(tmp_path, wrong=0.5)
    done = workspace.invoke("compare", clean, broken, x, "--json", "--html", tmp_path / "page.html", "--repro",
                            tmp_path / "repro")  # fmt: skip
    assert done.exit_code == 4, done.stderr
    said = json.loads(done.stdout)
    assert "second" in said["first_divergent"]["operations_b"]
    assert said["culprit"]["pair"] == said["first_divergent"]["pair"]
    assert said["culprit"]["max_abs_error"] == pytest.approx(0.5, rel=1e-5)
    assert said["repro"]["max_abs"] == pytest.approx(0.5, rel=1e-5)
    assert (tmp_path / "repro").is_dir()
    page = (tmp_path / "page.html").read_text()
    assert "mlscope compare" in page
    assert str(tmp_path / "repro") in page
    assert workspace.invoke("judge", said["run_id"], "--tolerance", "atol=100").exit_code == 0
    assert workspace.invoke("judge", said["run_id"], "--tolerance", "atol=1e-6").exit_code == 4
    malformed = workspace.invoke("judge", said["run_id"], "--tolerance", "atol=wide")
    assert malformed.exit_code == 1
    assert "must be a number" in malformed.stderr


def test_models_of_other_inputs_are_bad_input(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    clean, _, x = two_files(tmp_path, wrong=0.0)
    done = workspace.invoke("compare", clean, workspace.manifests / "tiny.onnx", x)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Unexpected" not in done.stderr
    assert done.stderr.startswith("Error: ")


def test_bisect_finds_the_layer_that_must_stay(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    clean, broken, x = two_files(tmp_path, wrong=5.0)
    said = workspace.json("bisect", clean, broken, x)
    assert said["holds"] is True
    assert ["second" in layer["operations"] for layer in said["must_stay"]] == [True]
    assert said["error_all"] > said["limit"] >= said["error_result"]
    shown = workspace.invoke("bisect", clean, broken, x)
    assert shown.exit_code == 0
    assert "Must stay on a" in shown.stdout
