"""The real command in processes of its own: what reaches which stream, and with which status."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import mlscope_lab
from tests.cli.conftest import Workspace


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from mlscope_lab.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'numpy', 'pandas', 'xarray', 'pydantic', 'yaml', 'torch', 'tensorflow', 'onnxruntime', 'plotly',\n"
        "         'scipy', 'zarr', 'rich', 'psutil', 'tqdm', 'requests'}\n"
        "print(','.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_version_and_usage(workspace: Workspace) -> None:
    version = workspace.spawn("--version")
    assert (version.returncode, version.stdout) == (0, f"mlscope-lab {mlscope_lab.__version__}\n")
    wrong = workspace.spawn("predict")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_profile_in_a_fresh_process_then_a_run_that_hangs(workspace: Workspace) -> None:
    pytest.importorskip("onnxruntime")
    done = workspace.spawn("profile", "tiny-classifier", "--input", workspace.red, "-n", "20", "-t", "1", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["status"] == "complete"
    assert workspace.json("open")["isolation"] == "subprocess"

    late = workspace.spawn("profile", "tiny-classifier", "-n", "1000000000", "--timeout", "0.01", "--json")
    assert (late.returncode, late.stdout) == (3, "")
    assert "Traceback" not in late.stderr
    error = json.loads(late.stderr)["error"]
    assert (error["type"], error["kind"]) == ("RunError", "timeout")
    found = workspace.json("open", error["run_id"])
    assert found["status"] == "failed"
    assert found["failure"]["kind"] == "timeout"
    assert found["summary"] is None
    shown = workspace.invoke("open", error["run_id"])
    assert "Failed (timeout)" in shown.stdout
    assert [r["status"] for r in workspace.json("runs", "--status", "failed")] == ["failed"]


def test_compare_latency(workspace: Workspace) -> None:
    pytest.importorskip("onnxruntime")
    found = workspace.json("compare-latency", "tiny-classifier", "-b", "onnxruntime", "-b", "onnxruntime", "-p", "1",
                           "-n", "10", "-t", "1")  # fmt: skip
    assert set(found) == {
        "model", "a", "b", "verdict", "reason", "sentence", "ratio", "low", "high", "confidence", "detectable_ratio",
        "processes_a", "processes_b",
    }  # fmt: skip
    assert set(found["a"]) == {"backend", "run_id"}
    assert found["verdict"] == "undecided"
    assert "one process a side" in found["reason"]
    assert found["low"] is None
    assert {r["run_id"] for r in workspace.json("runs")} == {found["a"]["run_id"], found["b"]["run_id"]}
