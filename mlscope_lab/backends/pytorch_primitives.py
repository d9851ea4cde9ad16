"""What oneDNN ran below PyTorch's operators on the CPU, from its own log.

oneDNN prints a line for each primitive to standard output and nowhere else. So file descriptor 1 leads to a file while
a pass is traced; what others printed meanwhile is passed on afterwards. The log's times are the system's, as those of
PyTorch's profiler are, in microseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_events import Frame
from mlscope_lab.trace.attribution import enclosing
from mlscope_lab.trace.records import EventTable

__all__ = ["CATEGORY", "PrimitiveLog", "Primitives", "add_primitives", "parse_line"]

CATEGORY = "onednn_primitive"
RESOLUTION_NS = 1000
_START = b"onednn_verbose,"
_TIMESTAMP = "ONEDNN_VERBOSE_TIMESTAMP"
_VERBOSE = ("ONEDNN_VERBOSE", "DNNL_VERBOSE", "MKLDNN_VERBOSE")


@dataclass(kw_only=True)
class Primitives:
    """Primitives in the order of their lines: system time and duration in ns, name, and what they ran on."""

    start_ns: list[int] = field(default_factory=list)
    duration_ns: list[int] = field(default_factory=list)
    name: list[str] = field(default_factory=list)
    problem: list[str] = field(default_factory=list)
    unplaced: int = 0

    def __len__(self) -> int:
        return len(self.start_ns)


class PrimitiveLog:
    """oneDNN's log of one trace.

    Attributes
    ----------
    unavailable
        Why there is none, as {what: reason}.
    """

    def __init__(self) -> None:
        self.unavailable: dict[str, str] = {}
        self._file: IO[bytes] | None = None
        self._standard_output = -1
        self._environment: str | None = None

    def start(self) -> None:
        """Lead file descriptor 1 to a file and make oneDNN print; where that cannot be, say why."""
        import torch

        if not torch.backends.mkldnn.is_available():
            self.unavailable = {"oneDNN primitives": "this build of PyTorch has no oneDNN"}
            return
        _flush()
        try:
            self._standard_output = os.dup(1)
        except OSError as error:
            self.unavailable = {"oneDNN primitives": f"this process has no standard output to lead to a file ({error})"}
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        os.dup2(self._file.fileno(), 1)
        # oneDNN asks for it once, when it prints for the first time
        self._environment = os.environ.get(_TIMESTAMP)
        os.environ[_TIMESTAMP] = "1"
        if not torch._C._verbose.mkldnn_set_verbose(1):
            self.stop()
            self.unavailable = {"oneDNN primitives": "oneDNN was built without its log"}

    def stop(self) -> Primitives:
        """Give file descriptor 1 back, pass on what others printed, return the primitives; a second call has none."""
        found, file = Primitives(), self._file
        if file is None:
            return found
        import torch

        self._file = None
        torch._C._verbose.mkldnn_set_verbose(1 if any(os.environ.get(name, "0") != "0" for name in _VERBOSE) else 0)
        if self._environment is None:
            os.environ.pop(_TIMESTAMP, None)
        else:
            os.environ[_TIMESTAMP] = self._environment
        _flush()
        os.dup2(self._standard_output, 1)
        os.close(self._standard_output)
        with file:
            file.seek(0)
            for line in file:
                printed, mark, record = line.partition(_START)
                if printed or not mark:
                    _print(printed)
                if mark:
                    parse_line(record.decode("utf-8", errors="replace"), found)
        if found.unplaced:
            self.unavailable = {
                "oneDNN primitives": f"oneDNN printed {found.unplaced} lines without a time: it had begun to print "
                f"before the trace; unset {_VERBOSE[0]}, or start a fresh process (on='subprocess')"
            }
        return found


def _flush() -> None:
    """Write out what Python and C hold back."""
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # none, closed, or nowhere to write to
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library to ask by that name
        ctypes.CDLL(None).fflush(None)


def _print(text: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        while text:
            text = text[os.write(1, text) :]


def parse_line(record: str, found: Primitives) -> None:
    """Add the primitive that a line tells of; lines of other kinds are left out.

    Parameters
    ----------
    record
        What follows ``onednn_verbose,``: ``v1,TIME,primitive,exec,ENGINE,KIND,IMPLEMENTATION,PROPAGATION,MEMORY,
        ATTRIBUTES,AUXILIARY,PROBLEM,MILLISECONDS``, or in older versions without ``v1`` and ``primitive``.
    found
        Where it is added; without a time it is only counted.
    """
    fields = record.strip().split(",")
    if fields and fields[0][:1] == "v" and fields[0][1:].isdigit():
        del fields[0]
    when: float | None = None
    with contextlib.suppress(ValueError, IndexError):
        when = float(fields[0])
        del fields[0]
    if fields[:1] == ["primitive"]:
        del fields[0]
    if len(fields) < 10 or fields[0] != "exec":
        return
    try:
        duration_ns = round(float(fields[-1]) * 1e6)
    except (ValueError, OverflowError):  # no number, or none that is finite
        return
    if when is None or not (0 < when < 1e13 and 0 <= duration_ns < 2**62):
        found.unplaced += 1
        return
    _, _, kind, implementation, _, memory, _, auxiliary, *problem = fields[:-1]
    found.start_ns.append(round(when * 1000) * 1000)
    found.duration_ns.append(duration_ns)
    found.name.append(f"onednn::{kind} {implementation}")
    found.problem.append("; ".join(part for part in (memory, auxiliary, ",".join(problem)) if part))


def add_primitives(operators: EventTable, primitives: Primitives, frame: Frame, threads: Sequence[str]) -> EventTable:
    """Add primitives below the operators that ran them.

    Parameters
    ----------
    operators
        The operators of a pass.
    primitives
        What oneDNN printed in that pass.
    frame
        Iterations and layers.
    threads
        For each iteration the name of the thread that predicts.

    Returns
    -------
    EventTable
        The operators, below them the primitives, of category "onednn_primitive". The parent of a primitive is the
        operator that was running when it was half done, on the thread of its iteration; its problem stands where the
        shapes of an operator do.
    """
    n = len(primitives)
    if not n:
        return operators
    columns, tables = dict(operators.columns), dict(operators.tables)
    start, duration = np.array(primitives.start_ns, np.int64), np.array(primitives.duration_ns, np.int64)
    iteration = frame.iteration_at(start)
    code_of = {text: code for code, text in enumerate(tables["thread"])}
    codes = np.array([*(code_of.get(text, -1) for text in threads), -1], dtype=np.int32)
    thread = codes[iteration]
    parent = enclosing(
        start + duration // 2 + frame.offset_ns, thread, columns["start_ns"], columns["duration_ns"],
        columns["thread_code"],
    )  # fmt: skip
    start += frame.offset_ns
    parent, start, duration = _within(start, duration, parent, columns)
    layer = np.append(columns["layer_index"], np.int32(-1))[parent]
    added: dict[str, npt.NDArray[Any]] = {
        "start_ns": start, "duration_ns": duration, "iteration": iteration, "thread_code": thread,
        "parent_index": parent, "layer_index": layer,
        "category_code": np.full(n, len(tables["category"]), dtype=np.int32),
    }  # fmt: skip
    tables["category"] = (*tables["category"], CATEGORY)
    for column, texts in (("name", primitives.name), ("shapes", primitives.problem)):
        known = {text: code for code, text in enumerate(tables.get(column, ()))}
        added[f"{column}_code"] = np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int32)
        tables[column] = tuple(known)
    size = len(operators)
    for column in dict.fromkeys((*columns, *added)):
        above = columns.get(column)
        below = added.get(column)
        if above is None:
            above = np.full(size, -1, dtype=np.int32)
        if below is None:
            below = np.full(n, -1, dtype=above.dtype)
        columns[column] = np.concatenate([above, below.astype(above.dtype)])
    attrs = {**operators.attrs, "onednn_resolution_ns": RESOLUTION_NS}
    return EventTable(columns=columns, tables=tables, attrs=attrs, variable_attrs=operators.variable_attrs)


def _within(
    start: npt.NDArray[np.int64],
    duration: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int32],
    operators: Mapping[str, npt.NDArray[Any]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the innermost operators that enclose primitives whole, and their times cut by the log's resolution."""
    begin = np.append(operators["start_ns"], np.iinfo(np.int64).min // 2)
    end = np.append(operators["start_ns"] + operators["duration_ns"], np.iinfo(np.int64).max // 2)
    outer = np.append(operators["parent_index"], np.int32(-1))
    while True:
        outside = (start < begin[parent] - RESOLUTION_NS) | (start + duration > end[parent] + RESOLUTION_NS)
        if not outside.any():
            break
        parent = np.where(outside, outer[parent], parent)
    stop = np.minimum(start + duration, end[parent])
    start = np.maximum(start, begin[parent])
    return parent, start, np.maximum(stop - start, 0)
