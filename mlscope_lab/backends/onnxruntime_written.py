"""The graph that ONNX Runtime makes of a model, as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlscope_lab.backends.base import Session
from mlscope_lab.backends.onnxruntime_graph import Outline
from mlscope_lab.errors import UnsupportedModelError

__all__ = ["Source", "write_graph"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a stepper runs.

    Attributes
    ----------
    session
        The plain session, for its inputs' and outputs' specs and for checking feeds.
    name, path
        The model's name, and its file.
    outline
        Outline of that file, for sources and scopes.
    settings
        Gives onnxruntime.SessionOptions as the plain session has them.
    provider, provider_options
        Where it runs.
    scratch
        A folder for the optimised graph.
    threads
        As in the session.
    """

    session: Session
    name: str
    path: Path
    outline: Outline
    settings: Callable[[], Any]
    provider: str
    provider_options: Mapping[str, str]
    scratch: Path
    threads: int | None


def write_graph(source: Source, path: Path, level: Any = None) -> Path:
    """Write the graph that ONNX Runtime makes of a model, its large constants in a file beside it.

    Parameters
    ----------
    source
        The model.
    path
        Where to.
    level
        A GraphOptimizationLevel, or None for the session's.

    Raises
    ------
    UnsupportedModelError
        If ONNX Runtime cannot write it, which is so where a provider compiled a part of it.
    """
    import onnxruntime

    settings = source.settings()
    if level is not None:
        settings.graph_optimization_level = level
    settings.optimized_model_filepath = str(path)
    key = "session.optimized_model_external_initializers_"
    settings.add_session_config_entry(f"{key}file_name", f"{path.stem}.bin")
    settings.add_session_config_entry(f"{key}min_size_in_bytes", "1024")
    try:
        onnxruntime.InferenceSession(
            str(source.path), settings, providers=[source.provider],
            provider_options=[dict(source.provider_options)], enable_fallback=0,
        )  # fmt: skip
    except Exception as error:  # as above
        raise UnsupportedModelError(
            f"ONNX Runtime cannot write the graph that it made of model '{source.name}': {error}"
        ) from error
    return path
