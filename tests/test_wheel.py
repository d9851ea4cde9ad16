"""The wheel, installed outside the checkout, holds all it needs and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from mlscope_lab.demo import BACKENDS

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=900)
    (path,) = folder.glob("mlscope_lab-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A new environment with the wheel; what the wheel depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, timeout=600)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    # a plain path line: the .pth files in there, an editable install's among them, are not read
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONUTF8": "1"}
    command = [str(python.parent / "mlscope"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8",
                          timeout=1700, check=False)  # fmt: skip


def test_the_wheel_holds_what_is_not_code(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shared = "/data/share/jupyter/mlscope_lab/"
    for wanted in (
        "mlscope_lab/py.typed",
        "mlscope_lab/report/page.css",
        "mlscope_widgets/__init__.py",
        f"{shared}manifests/models/image-classification/efficientnet-lite0.yaml",
        f"{shared}notebooks/tour/01-first-look.ipynb",
    ):
        assert any(name.endswith(wanted) for name in names), wanted
    assert not [n for n in names if n.startswith(("tests/", "binder/")) or n.endswith((".pyc", ".onnx"))]


def test_the_catalogue_is_found_outside_the_checkout(python, tmp_path):
    done = _run(python, "models", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"efficientnet-lite0", "light-resnet50"} <= {m["name"] for m in json.loads(done.stdout)}
    where = subprocess.run(
        [str(python), "-c", "import mlscope_lab; print(mlscope_lab.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(ROOT) not in where.stdout


def test_it_measures_outside_the_checkout(python, tmp_path):
    pytest.importorskip("onnxruntime")
    done = _run(
        python, "profile", "light-squeezenet", "--backend", "onnxruntime", "--iterations", "5", "--level", "layer",
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "complete"
    assert found["layers"]["count"] > 10


@pytest.mark.timeout(1800)
def test_the_demo_names_the_cat_on_every_backend(python, tmp_path):
    for module in ("torch", "onnxruntime", "tensorflow", "skimage"):
        pytest.importorskip(module)
    done = _run(python, "demo", "--output", str(tmp_path / "out"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert set(said) == {
        "model", "answers", "differences", "largest_difference", "tolerance", "agree", "runs", "left_out", "report",
        "prepare_s", "seconds",
    }  # fmt: skip
    named = {(a["backend"], a["picture"]): (a["index"], a["label"]) for a in said["answers"]}
    for backend in BACKENDS:
        assert named[backend, "cat"] == (285, "Egyptian cat")
        assert "espresso" in named[backend, "coffee"][1]
        run = said["runs"][backend]
        assert run["summary"]["stages"]["predict"]["low_ns"] > 0
        assert len(run["layers"]["slowest"]) == 5
    assert len(said["differences"]) == 3
    assert 0 < said["largest_difference"] < said["tolerance"]
    assert said["left_out"] == {}
    page = Path(said["report"])
    assert page.parent == tmp_path / "out"
    assert all(run["run_id"] in page.read_text(encoding="utf-8") for run in said["runs"].values())
