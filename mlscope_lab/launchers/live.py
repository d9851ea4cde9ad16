"""Live objects in another process: saved to a file that the worker opens, never pickled, never forked."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlscope_lab.artifacts import digest_of
from mlscope_lab.backends.base import ModelFiles
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.subject import Subject

__all__ = ["save_live"]

_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the interpreter ends


def save_live(subject: Subject) -> Subject:
    """Return the subject with files in place of its live object.

    A ``torch.nn.Module`` goes through ``torch.export``, a ``keras.Model`` through its own ``save``. The files live as
    long as this process.

    Raises
    ------
    UnsupportedModelError
        If the object cannot be saved that way; the message names the way out.
    """
    name: str = subject.backend.name
    live: Any = subject.live
    folder = tempfile.TemporaryDirectory(prefix="mlscope-live-")
    _kept.append(folder)
    try:
        if name == "pytorch":
            path, form = _export_torch(live, subject, Path(folder.name)), "torch_exported"
        elif name == "tensorflow" and hasattr(live, "save"):
            path, form = Path(folder.name) / "model.keras", "keras"
            live.save(path)
        else:
            raise UnsupportedModelError(f"a {type(live).__name__} has no form that another process could open")
    except Exception as error:  # exporters raise whatever they like; the way out is the same
        raise UnsupportedModelError(
            f"{subject.name} cannot be run on='subprocess': {error}. Use on='inline', or save it to a file "
            "(torch.onnx.export, model.save) and profile that"
        ) from error
    digest = digest_of(path)
    files = ModelFiles(name=subject.name, format=form, path=path, digest=digest, trusted=True)
    return replace(subject, live=None, files=files, digest=digest)


def _export_torch(live: Any, subject: Subject, folder: Path) -> Path:
    import torch

    feeds = {name: torch.from_numpy(array.copy()) for name, array in (subject.example or {}).items()}
    was_training = live.training
    live.eval()
    try:
        program = torch.export.export(live, tuple(feeds.values()))
    finally:
        live.train(was_training)
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return path
