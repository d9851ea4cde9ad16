"""Notebooks are small, committed without outputs, and run from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
TOUR = [p for p in NOTEBOOKS if p.parent.name == "tour"]
GPU_TRACE = ROOT.parent / "shared/data/cuda-traces/ns_resolution_rank0.pt.trace.json.gz"
# what each notebook shows at least: figures, and words of its output
SHOWN = {
    "01-first-look": (3, ["Egyptian cat"]),
    "02-where-time-goes": (3, ["untraced predict", "operators: no device kernels in this run", "throughput"]),
    "03-read-any-trace": (0, ["aten::conv2d", "the same operators to the nanosecond"]),
    "04-why-do-they-differ": (3, ["No value is out of its tolerance", "Injected by Clip", "(x - 127) / 128"]),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_a_tour():
    assert "notebooks/tour/01-first-look.ipynb" in map(name_of, TOUR)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"cell {cell['id']} has outputs: clear them before committing"
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 15, f"cell {cell['id']} holds logic: move it into a package"
            assert "def " not in cell.source, f"cell {cell['id']} defines a function: move it into a package"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("path", TOUR, ids=name_of)
def test_tour_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    if "import torch" in path.read_text(encoding="utf-8"):
        pytest.importorskip("torch", reason="torch is not installed")
    from nbclient import NotebookClient

    # the kernel starts elsewhere, so both packages must be importable by name
    paths = [str(ROOT), str(ROOT / "widgets"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("MLSCOPE_PATH", str(ROOT / "manifests"))
    if GPU_TRACE.is_file():
        monkeypatch.setenv("MLSCOPE_TOUR_TRACE", str(GPU_TRACE))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )  # fmt: skip
    client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    figures = [output for output in shown if "application/vnd.plotly.v1+json" in output.get("data", {})]
    least, words = SHOWN.get(path.stem, (0, []))
    assert len(figures) >= least
    text = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in shown
    )
    for word in words:
        assert word in text
    assert not list(tmp_path.iterdir())
