"""Options and arguments that several commands share, and what they turn into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlscope_lab.cli.text import parse_bytes
from mlscope_lab.errors import InputError

__all__ = [
    "AsJson", "BackendName", "BatchSize", "Device", "Inputs", "Iterations", "ModelName", "On", "RunId", "Threads",
    "Timeout", "memory_limit", "samples_from", "symbols_from",
]  # fmt: skip

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Name (NAME or NAME@VERSION) of a published model, or path of a manifest or model file."
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, a unique beginning of one, or 'latest'.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", metavar="[NAME=]FILE",
        help="A picture, sound, text or .npy file. Repeat for a batch; with several inputs write NAME=FILE.",
    ),
]  # fmt: skip
BackendName = Annotated[
    str | None,
    typer.Option("--backend", "-b", help="Framework that runs it; default the first that opens it as published."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", min=1, help="Threads within an operator; default all cores.")
]
Device = Annotated[str, typer.Option("--device", help="'cpu' or 'cuda:0'.")]
On = Annotated[str | None, typer.Option("--on", help="'subprocess' (a fresh process) or 'inline'.")]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds a process may take.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples in each predict.")]
Iterations = Annotated[
    int, typer.Option("--iterations", "-n", min=1, help="Measured predicts in each process and pass.")
]


def _existing(name: str) -> str:
    if not Path(name).expanduser().is_file():
        raise InputError(f"{name}: there is no such file")
    return name


def samples_from(given: list[str] | None) -> Any:
    """Return what ``--input`` means to `mlscope_lab.load` and `mlscope_lab.profile`.

    Parameters
    ----------
    given
        Each a file, or ``NAME=FILE``. A file that is called so and exists is a file.

    Returns
    -------
    None, str, list of str, or dict
        Nothing; one sample; a batch; or either by input name.

    Raises
    ------
    InputError
        If a file does not exist; checked here, before a model is fetched for nothing.
    """
    if not given:
        return None
    named: dict[str, list[str]] = {}
    bare: list[str] = []
    for item in given:
        name, equals, file = item.partition("=")
        if equals and name and not Path(item).expanduser().exists():
            named.setdefault(name, []).append(_existing(file))
        else:
            bare.append(_existing(item))
    if named and bare:
        raise typer.BadParameter("give every file as NAME=FILE, or none", param_hint="'--input'")
    if named:
        return {name: files[0] if len(files) == 1 else files for name, files in named.items()}
    return bare[0] if len(bare) == 1 else bare


def symbols_from(given: list[str] | None) -> dict[str, int]:
    """Return ``--symbol NAME=LENGTH`` options as a dict."""
    found = {}
    for item in given or []:
        name, _, length = item.partition("=")
        if not name or not length.isdigit() or int(length) < 1:
            raise typer.BadParameter(f"{item!r} is not NAME=LENGTH, such as sequence=128", param_hint="'--symbol'")
        found[name] = int(length)
    return found


def memory_limit(given: str | None) -> int | None:
    """Return ``--memory-limit`` in bytes."""
    if given is None:
        return None
    try:
        return parse_bytes(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--memory-limit'") from None
