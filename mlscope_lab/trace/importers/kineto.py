"""Traces of Kineto, PyTorch's profiler, and of whatever else writes Chrome's format, as runs.

References
----------
Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU;
``output_json.cpp`` in https://github.com/pytorch/kineto.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlscope_lab.trace.importers.base import Head, Importer, Progress

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CHROME", "KINETO"]

_LEAST_BYTES = 256
"""Bytes that an event has on average in real traces: more events than that come from a file made to fill memory."""


def _is_chrome(head: Head) -> bool:
    text = head.data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return b'"ph"' in text or text[1:].strip() in {b"", b"]"}
    return text.startswith(b"{") and (b'"traceEvents"' in text or b'"deviceProperties"' in text)


def _is_kineto(head: Head) -> bool:
    marks = (b'"deviceProperties"', b'"schemaVersion"', b'"baseTimeNanoseconds"', b'"cpu_op"', b'"distributedInfo"')
    return _is_chrome(head) and any(mark in head.data for mark in marks)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out: millions of events without a cycle set it off again and again, for nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _load(path: Path, *, max_bytes: int, progress: Progress | None) -> xr.DataTree:
    from mlscope_lab.trace.importers.chrome_columns import Intake
    from mlscope_lab.trace.importers.chrome_run import run_of
    from mlscope_lab.trace.importers.json_text import TraceText
    from mlscope_lab.trace.importers.pieces import pieces_of

    intake = Intake(max_events=max(1000, max_bytes // _LEAST_BYTES))
    text = TraceText(pieces_of(path, max_bytes=max_bytes, progress=progress), str(path))
    with _no_collection():
        text.blocks(intake.take_text, intake.take_each)
    return run_of(intake, path.name, text.beside, cut_short=text.cut_short)


KINETO = Importer(title="a trace of PyTorch's profiler (Kineto)", recognises=_is_kineto, load=_load)
CHROME = Importer(title="a trace in Chrome's format", recognises=_is_chrome, load=_load)
