"""The command lab: JupyterLab on the shipped notebooks."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import typer

from mlscope_lab.cli.options import AsJson
from mlscope_lab.cli.output import command, emit_json
from mlscope_lab.errors import MlscopeError

__all__ = ["lab", "notebooks_folder"]


def notebooks_folder() -> Path:
    """Return the folder of the shipped notebooks: the checkout's, else what the installed package put under share.

    Raises
    ------
    MlscopeError
        If there is none.
    """
    import platformdirs

    checkout = Path(__file__).resolve().parents[2]
    below = Path("mlscope_lab") / "notebooks"
    candidates = [
        *([checkout / "notebooks"] if (checkout / "pyproject.toml").is_file() else []),
        Path(sys.prefix) / "share" / "jupyter" / below,
        Path(platformdirs.user_data_dir("jupyter", appauthor=False)) / below,
    ]
    for folder in candidates:
        if folder.is_dir():
            return folder
    searched = ", ".join(str(folder) for folder in candidates)
    raise MlscopeError(f"The notebooks were not found. Searched: {searched}. Reinstall with: pip install mlscope-lab")


@command
def lab(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Start JupyterLab on the shipped notebooks; other options go to JupyterLab, such as --no-browser.

    --json: {"command", "notebooks"}: what would be started; nothing is.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise MlscopeError("JupyterLab is not installed. Install it with: pip install 'mlscope-lab[lab]'")
    folder = notebooks_folder()
    arguments = [sys.executable, "-m", "jupyterlab", "--notebook-dir", str(folder), *context.args]
    if as_json:
        answer: dict[str, Any] = {"command": arguments, "notebooks": folder}
        emit_json(answer)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter, a list of arguments, no shell
