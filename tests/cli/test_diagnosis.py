from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlscope_lab import plugins
from mlscope_lab.config import load_settings
from mlscope_lab.diagnosis import diagnose
from tests.cli.conftest import Workspace

KEYS = {"mlscope_lab", "python", "settings", "folders", "store", "backends", "collectors", "packages", "manifests",
        "machine", "machine_unavailable", "warnings"}  # fmt: skip
BACKEND_KEYS = {"name", "title", "installed", "version", "reason", "install", "formats", "levels", "devices",
                "unavailable"}  # fmt: skip

DEADLY = """
from mlscope_lab.backends.base import Availability, Backend, Capabilities

class Deadly(Backend):
    name, title, formats = "deadly", "Deadly", ("onnx",)

    def availability(self):
        return Availability(ok=True, version="6.6.6")

    def capabilities(self):
        import os
        print("last words", flush=True)
        os.abort()

    def _open(self, model, options):
        raise RuntimeError
"""


@pytest.fixture
def few_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave two backends: Python itself, and one that aborts its process, as a package installed beside us."""
    package = tmp_path / "site"
    (package / "deadly-1.dist-info").mkdir(parents=True)
    (package / "deadly.py").write_text(DEADLY, encoding="utf-8")
    (package / "deadly-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1\n")
    (package / "deadly-1.dist-info" / "entry_points.txt").write_text("[mlscope_lab.backends]\ndeadly = deadly:Deadly\n")
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setitem(
        plugins.BUILTINS, "mlscope_lab.backends", {"python": plugins.BUILTINS["mlscope_lab.backends"]["python"]}
    )
    plugins.refresh()
    yield
    monkeypatch.undo()
    sys.modules.pop("deadly", None)
    plugins.refresh()


@pytest.mark.usefixtures("few_backends")
def test_doctor_survives_a_backend_that_crashes_and_names_every_problem(workspace: Workspace) -> None:
    (workspace.manifests / "broken.yaml").write_text("kind: model\nname: [", encoding="utf-8")
    found = workspace.json("doctor", "--rebuild")
    assert set(found) == KEYS
    backends = {b["name"]: b for b in found["backends"]}
    assert set(backends) == {"python", "deadly"}
    assert all(set(b) == BACKEND_KEYS for b in backends.values())
    assert backends["python"]["levels"]
    collectors = {c["name"]: c for c in found["collectors"]}
    assert {"memory", "nvml", "rapl", "perf_events"} <= set(collectors)
    assert collectors["memory"]["records"] == ["resident memory", "page faults"]
    for collector in collectors.values():
        assert bool(collector["records"]) != bool(collector["reason"])
    assert backends["python"]["reason"] == ""
    assert "SIGABRT" in backends["deadly"]["reason"]
    assert "last words" in backends["deadly"]["reason"]
    origins = {s["name"]: s["origin"] for s in found["settings"]}
    assert (origins["home"], origins["offline"], origins["index_url"]) == ("environment", "environment", "default")
    assert any("broken.yaml" in problem for problem in found["manifests"]["problems"])
    assert found["manifests"]["models"] >= 1
    assert (found["store"]["runs"], found["store"]["index"], found["store"]["rebuilt"]) == (0, "ok", True)
    assert all(f["free_bytes"] > 0 for f in found["folders"])
    assert found["machine"]["cores_available"] >= 1


@pytest.mark.usefixtures("few_backends")
def test_doctor_on_a_terminal(workspace: Workspace) -> None:
    plugins.BUILTINS["mlscope_lab.backends"]["absent"] = "mlscope_lab.no_such_module:Backend"
    result = workspace.invoke("doctor")
    assert result.exit_code == 0, result.stderr
    for text in (
        "Backends",
        "Collectors",
        "resident memory",
        "SIGABRT",
        "'absent' does not load",
        "Settings",
        "environment",
        "Machine",
    ):
        assert text in result.stdout


@pytest.mark.usefixtures("few_backends")
def test_a_damaged_run_is_counted_and_named(workspace: Workspace) -> None:
    damaged = workspace.home / "runs" / "20261122T003000Z-1a2b3c4d"
    damaged.mkdir(parents=True)
    (damaged / "zarr.json").write_text("{", encoding="utf-8")
    store = diagnose(load_settings(home=workspace.home, environ={}))["store"]
    assert (store["runs"], store["indexed"]) == (1, 0)
    assert store["index"] == "1 of 1 runs cannot be read"
    assert any("damaged" in problem for problem in store["problems"])
