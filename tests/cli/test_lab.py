from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Workspace


def test_lab_names_the_command_and_passes_options_on(workspace: Workspace) -> None:
    pytest.importorskip("jupyterlab")
    found = workspace.json("lab", "--no-browser", "--port=9999")
    assert set(found) == {"command", "notebooks"}
    assert Path(found["notebooks"]).is_dir()
    assert found["command"] == [
        sys.executable, "-m", "jupyterlab", "--notebook-dir", found["notebooks"], "--no-browser", "--port=9999"
    ]  # fmt: skip


def test_without_jupyterlab_the_message_says_how_to_install_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jupyterlab" else real(name))
    result = workspace.invoke("lab")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("pip install 'mlscope-lab[lab]'")
