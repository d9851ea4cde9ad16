"""Live objects in another process: saved to a file that the worker opens, never pickled, never forked."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from mlscope_lab.artifacts import digest_of
from mlscope_lab.backends.base import ModelFiles
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.subject import Subject

__all__ = ["save_live"]

_kept: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when the interpreter ends


def save_live(subject: Subject) -> Subject:
    """Return the subject with files in place of its live object.

    The backend writes the form that its framework exports (``torch.export``, ``keras.Model.save``). The files live as
    long as this process.

    Raises
    ------
    UnsupportedModelError
        If the object cannot be saved that way; the message names the way out.
    """
    folder = tempfile.TemporaryDirectory(prefix="mlscope-live-")
    try:
        path, form = subject.backend.save(subject.live, subject.example or {}, Path(folder.name))
    except Exception as error:  # exporters raise whatever they like; the way out is the same
        folder.cleanup()
        raise UnsupportedModelError(
            f"{subject.name} cannot run on='subprocess': {error}. Use on='inline', or save it to a file yourself "
            "(torch.onnx.export, model.save) and profile that file"
        ) from error
    _kept.append(folder)
    digest = digest_of(path)
    # this process has just written it, so what it holds is as trusted as the object was
    files = ModelFiles(name=subject.name, format=form, path=path, digest=digest, trusted=True)
    return replace(subject, live=None, files=files, digest=digest)
