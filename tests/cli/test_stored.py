from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Workspace

Measured = tuple[Workspace, dict[str, Any]]

RUN_KEYS = {"run_id", "created_at", "model", "backend", "backend_version", "status", "level", "device", "precision",
            "batch_size", "threads", "isolation", "predict_median_ns"}  # fmt: skip
OPEN_KEYS = {"run_id", "status", "model", "backend", "level", "summary", "levels", "layers", "created_at",
             "model_version", "backend_version", "device", "precision", "batch_size", "threads", "isolation",
             "execution_mode", "environment", "warnings", "unavailable", "failure"}  # fmt: skip


def test_runs_are_listed_and_filtered(measured: Measured) -> None:
    workspace, said = measured
    (row,) = workspace.json("runs")
    assert set(row) == RUN_KEYS
    assert row["run_id"] == said["run_id"]
    assert row["predict_median_ns"] == pytest.approx(said["summary"]["stages"]["predict"]["median_ns"])
    assert len(workspace.json("runs", "--model", "tiny-classifier", "--backend", "onnxruntime", "-n", "5")) == 1
    assert workspace.json("runs", "--status", "failed") == []
    assert said["run_id"] in workspace.invoke("runs").stdout
    assert "Did you mean 'failed'" in workspace.invoke("runs", "--status", "faild").stderr


def test_open_shows_what_profile_said(measured: Measured) -> None:
    workspace, said = measured
    found = workspace.json("open", said["run_id"][:17], "--slowest", "2")
    assert set(found) == OPEN_KEYS
    assert found["summary"] == said["summary"]
    assert found["layers"]["slowest"] == said["layers"]["slowest"][:2]
    assert found["failure"] is None
    assert found["isolation"] == "inline"
    shown = workspace.invoke("open")
    assert f"Run {said['run_id']}" in shown.stdout
    assert "median [95% interval]" in shown.stdout
    assert said["layers"]["slowest"][0]["layer"] in shown.stdout
    assert "of the untraced predict" in shown.stdout
    assert "over the level above [interval]" in shown.stdout


def test_an_unknown_run(measured: Measured) -> None:
    result = measured[0].invoke("open", "1999", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr)["error"]["type"] == "RunNotFoundError"


def test_exports(measured: Measured, tmp_path: Path) -> None:
    workspace, said = measured
    found = workspace.json("export", "latest", tmp_path / "run.nc", "--to", "netcdf")
    assert found == {"run_id": said["run_id"], "format": "netcdf", "files": [str(tmp_path / "run.nc")]}
    assert (tmp_path / "run.nc").read_bytes()[1:4] == b"HDF"
    tables = workspace.json("export", said["run_id"], tmp_path / "tables", "--to", "parquet")["files"]
    assert tables
    assert all(Path(file).is_file() for file in tables)
    assert workspace.invoke("export", "latest", tmp_path / "x", "--to", "csv").exit_code == 2


@pytest.mark.parametrize("form", ["perfetto", "chrome", "speedscope"])
def test_exports_for_viewers(measured: Measured, tmp_path: Path, form: str) -> None:
    workspace, said = measured
    path = tmp_path / "run.json"
    found = workspace.json("export", "latest", path, "--to", form)
    assert found == {"run_id": said["run_id"], "format": form, "files": [str(path)]}
    text = path.read_text(encoding="utf-8")
    assert json.loads(text)
    assert said["layers"]["slowest"][0]["layer"] in text
    assert workspace.invoke("export", "latest", path, "--to", form).stdout == f"{path}\n"


def test_an_export_that_cannot_be_says_why(measured: Measured, tmp_path: Path) -> None:
    workspace = measured[0]
    for place, form, words in (
        (tmp_path, "perfetto", "is a folder; name a file"),
        (tmp_path / "absent" / "x.json", "speedscope", "cannot be written"),
        ("x.json", "otlp", "is not the address of a collector"),
        ("http://127.0.0.1:1", "otlp", "Nothing answers at 127.0.0.1:1"),
    ):
        result = workspace.invoke("export", "latest", place, "--to", form)
        assert result.exit_code == 1
        assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_report_is_one_page(measured: Measured, tmp_path: Path) -> None:
    workspace, said = measured
    found = workspace.json("report", "latest", "--output", tmp_path / "run.html")
    assert found == {"run_id": said["run_id"], "path": str(tmp_path / "run.html")}
    assert said["run_id"] in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_delete_asks(workspace: Workspace) -> None:
    pytest.importorskip("onnxruntime")
    run_id = workspace.json("profile", "tiny-classifier", "--on", "inline", "-n", "3", "-t", "1")["run_id"]
    kept = workspace.invoke("delete", "latest", answer="n\n")
    assert kept.exit_code == 1
    assert f"Delete run {run_id} (tiny-classifier on onnxruntime, complete)?" in kept.stderr
    assert workspace.invoke("delete", "latest", "--json").exit_code == 2
    assert len(workspace.json("runs")) == 1
    assert workspace.json("delete", run_id, "--yes") == {"deleted": run_id}
    assert workspace.json("runs") == []
