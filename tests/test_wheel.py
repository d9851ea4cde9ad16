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
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python.parent / "mlscope"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)


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
