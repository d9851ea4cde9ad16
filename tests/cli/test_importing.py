from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import mlscope_lab as ml
from tests.cli.conftest import Workspace

EVENTS = [
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 0, "dur": 10},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": 2, "dur": 3,
     "args": {"correlation": 4}},
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 6, "dur": 9, "args": {"correlation": 4}},
    {"ph": "X", "cat": "cpu_op", "name": "lost", "pid": 1, "tid": 1, "dur": 10},
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path) -> Workspace:
    return Workspace(home=tmp_path / "home", manifests=tmp_path, red=tmp_path, green=tmp_path)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"schemaVersion": 1, "traceEvents": EVENTS}).encode()))
    return path


def test_import_stores_a_run(here: Workspace, trace: Path) -> None:
    said = here.json("import", trace)
    assert said == {"run_id": said["run_id"], "format": "kineto", "events": 4, "operators": 1, "kernels": 1,
                    "dropped": 1}  # fmt: skip
    (row,) = here.json("runs")
    assert (row["run_id"], row["backend"], row["model"]) == (said["run_id"], "kineto", "trace.json.gz")
    result = here.invoke("import", trace, "--format", "chrome")
    assert result.exit_code == 0
    assert "kernels    1" in result.stdout
    assert "Warning: 1 events have no readable time" in result.stderr


def test_import_refuses_what_it_cannot_read(here: Workspace, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_text("no")
    for arguments, words in (
        (("no.txt",), "not a trace in a known format"), (("none.json",), "no such file"),
        (("trace.json.gz", "--format", "chrom"), "Did you mean 'chrome'"),
        (("trace.json.gz", "--max-size", "100"), "max_bytes="),
    ):  # fmt: skip
        result = here.invoke("import", tmp_path / arguments[0], *arguments[1:], "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in json.loads(result.stderr)["error"]["message"]
    assert here.invoke("import", trace, "--max-size", "many").exit_code == 2
    assert here.json("runs") == []


def test_a_notebook_imports_without_storing(trace: Path) -> None:
    run = ml.import_trace(trace, save=False)
    assert len(ml.runs()) == 0
    assert run["kernels"].sizes["kernel"] == 1
    stored = ml.import_trace(trace, progress=True)
    assert ml.runs().index.tolist() == [stored.attrs["run_id"]]
    assert stored["kernels"]["operator_index"].values.tolist() == [0]
