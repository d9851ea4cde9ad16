"""Runs in the forms that other tools read.

Formats
-------
``perfetto``, ``chrome``
    Trace Event Format, for https://ui.perfetto.dev and chrome://tracing.
``speedscope``
    Speedscope's own format.
``otlp``
    Spans for an OpenTelemetry collector, Jaeger or Zipkin, over HTTP.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.errors import InputError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["EXPORTERS", "export_trace"]

EXPORTERS: dict[str, str] = {
    "perfetto": "mlscope_lab.trace.exporters.chrome:export_chrome",
    "chrome": "mlscope_lab.trace.exporters.chrome:export_chrome",
    "speedscope": "mlscope_lab.trace.exporters.speedscope:export_speedscope",
    "otlp": "mlscope_lab.trace.exporters.otlp:export_otlp",
}


def export_trace(run: xr.DataTree, to: str | os.PathLike[str], format: str) -> list[Path | str]:  # noqa: A002
    """Write a run in another tool's form.

    Parameters
    ----------
    run
        A run, opened lazily or not.
    to
        A file; for "otlp" the address of a collector.
    format
        One of `EXPORTERS`.

    Returns
    -------
    list
        What was written.

    Raises
    ------
    InputError
        If the format is unknown, or the run lacks what it needs.
    StoreError
        If it cannot be written.
    """
    if format not in EXPORTERS:
        known = list(EXPORTERS)
        raise InputError(f"Unknown format '{format}'. Known: {', '.join(known)}.{nearest(format, known)}")
    module, _, function = EXPORTERS[format].partition(":")
    done: Any = getattr(importlib.import_module(module), function)(run, to)
    return [done]
