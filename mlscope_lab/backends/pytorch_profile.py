"""Layers and what lies below them, from PyTorch's profiler over all traced predicts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_calls import CallFinder, Calls, GraphCalls, ModuleCalls, Predicts
from mlscope_lab.backends.pytorch_events import MARK_PREFIX, Frame, event_tables, is_operator
from mlscope_lab.backends.pytorch_kineto import Profiler, TraceColumns, allocations_of, columns_of, input_texts
from mlscope_lab.backends.pytorch_primitives import PrimitiveLog, add_primitives
from mlscope_lab.backends.pytorch_sites import CallSites
from mlscope_lab.errors import SessionError
from mlscope_lab.trace.records import EventTable, LayerTrace

__all__ = ["COUNTERS", "ProfileTracer"]

_MARK = MARK_PREFIX + "predict"
_SHAPES = "seen in an untimed run on the same inputs, which called the same operators in the same order"
COUNTERS = (
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum",
    "smsp__sass_thread_inst_executed_op_fmul_pred_on.sum",
    "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum",
    "sm__inst_executed_pipe_tensor.sum",
)
"""CUPTI's names of what is measured for each kernel: the bytes and operations of a roofline."""


@dataclass(kw_only=True)
class _Untimed:
    """What the untimed run tells of operators: their names in order, their input shapes, the inputs it ran on."""

    names: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    form: object = None


class ProfileTracer:
    """One profiler over all traced predicts, read when it has stopped.

    Parameters
    ----------
    module
        The module that a session runs.
    device
        "cpu" or "cuda:N".
    level
        "layer" for the layers alone, "operator", "kernel" (oneDNN's primitives, allocations and the device too) or
        "hardware" (counters of a device's kernels).
    graph
        Whether layers are the operators of a graph; else they are modules.
    form
        Tells the shapes and types of the inputs of the last predict.
    """

    def __init__(self, module: Any, device: str, *, level: str, graph: bool, form: Callable[[], object]) -> None:
        self._cuda = device.startswith("cuda")
        self._device = device
        self._level = level
        self._form = form
        deep = level in {"kernel", "hardware"}
        self._layers: CallFinder = GraphCalls(module) if graph else ModuleCalls(module, nvtx=deep and self._cuda)
        self._sites = CallSites()
        self._profiler: Profiler | None = None
        self._primitives = PrimitiveLog() if level == "kernel" and not self._cuda else None
        self._mark: Any = None
        self._marks: list[tuple[int, int]] = []
        self._kept: dict[int, tuple[int, int, bool]] = {}
        self._untimed = _Untimed()
        self._threaded = False
        self._home = -1
        self.discovered = False

    def discover(self, run: Callable[[], Any]) -> None:
        """Run once, untimed, to learn shapes; random generators end as they began."""
        profiler = Profiler(shapes=True)
        try:
            self.begin()
            try:
                self._layers.observe(run, cuda=self._device if self._cuda else None)
            finally:
                self.discard()
        except BaseException:
            self._marks.clear()
            raise
        finally:
            results = profiler.stop()
        columns = columns_of(results)
        predicts = self._predicts(columns)
        self._marks.clear()
        rows = np.flatnonzero(is_operator(columns))
        rows = rows[np.lexsort((-columns.duration_ns[rows], columns.start_ns[rows]))]
        inside, here = predicts.covers(columns, rows), predicts.at(columns, rows) >= 0
        self._threaded = bool((inside & ~here).any())
        rows = rows[here]
        names = tuple(columns.names[code] for code in columns.name[rows].tolist())
        self._untimed = _Untimed(names=names, shapes=input_texts(results, rows), form=self._form())
        if isinstance(self._layers, GraphCalls):
            calls = self._layers.find(columns, predicts)
            self._layers.learn(calls, input_texts(results, calls.row))
        self.discovered = True

    def attach(self) -> None:
        """Start the profiler."""
        self._layers.attach()
        self._home = get_ident()
        try:
            self._profiler = Profiler(
                cuda=self._records_device, memory=self._records_memory,
                counters=COUNTERS if self._level == "hardware" else (),
            )  # fmt: skip
            if self._primitives is not None:
                self._primitives.start()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Stop the profiler and take everything off; a second call does nothing."""
        self._layers.detach()
        if self._primitives is not None:
            self._primitives.stop()
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def begin(self) -> int:
        """Start an iteration; returns its time."""
        from torch._C._profiler import _RecordFunctionFast

        if self._profiler is not None and self._records_memory and get_ident() != self._home:
            raise SessionError(
                "PyTorch records allocations for one thread alone: predict in the thread that began the trace"
            )
        self._mark = _RecordFunctionFast(_MARK)
        earliest = time.perf_counter_ns()
        self._mark.__enter__()
        start = time.perf_counter_ns()
        self._marks.append((earliest, start))
        return start

    def discard(self) -> None:
        """Drop an iteration that raised."""
        self._mark.__exit__(None, None, None)

    def commit(self, start_ns: int, duration_ns: int) -> None:
        """Keep the iteration that began at `start_ns` and took `duration_ns`."""
        self._mark.__exit__(None, None, None)
        self._kept[len(self._marks) - 1] = start_ns, duration_ns, self._form() == self._untimed.form

    def end(self, executable_digest: str) -> LayerTrace:
        """Stop the profiler and return the trace."""
        profiler, self._profiler = self._profiler, None
        primitives = self._primitives.stop() if self._primitives is not None else None
        results = profiler.stop() if profiler is not None else None
        self.detach()
        columns = columns_of(results, cuda=self._records_device)
        predicts = self._predicts(columns)
        offset, error = self._offset(predicts)
        calls = self._layers.find(columns, predicts)
        rows, sites = self._place(columns, calls, offset)
        self._layers.name_shapes(self._sites)  # after the timed runs, so that rows keep their order
        trace = self._sites.build(
            executable_digest=executable_digest, clock_error_ns=error, unavailable=self._layers.unavailable()
        )
        if self._level == "layer":
            return trace
        kept = np.array(list(self._kept), dtype=np.intp)
        frame = Frame(
            start_ns=columns.start_ns[rows], duration_ns=columns.duration_ns[rows], thread=columns.thread[rows],
            layer=self._sites.own_rows[sites], iteration_start_ns=predicts.start_ns[kept],
            iteration_duration_ns=predicts.duration_ns[kept], offset_ns=offset,
        )  # fmt: skip
        events = event_tables(columns, frame, memory=allocations_of(results) if self._records_memory else None)
        threads = [f"{os.getpid()}/{thread}" for thread in predicts.thread[kept].tolist()]
        operators = self._with_shapes(events["operators"], threads)
        unavailable = dict(trace.unavailable)
        if self._level == "kernel" and self._threaded:
            unavailable["allocations"] = (
                "PyTorch records allocations for one thread alone, and the model runs operators in several"
            )
        if primitives is not None and self._primitives is not None:
            operators = add_primitives(operators, primitives, frame, threads)
            unavailable |= self._primitives.unavailable
        return replace(trace, events={**events, "operators": operators}, unavailable=unavailable)

    @property
    def _records_device(self) -> bool:
        return self._cuda and self._level in {"kernel", "hardware"}

    @property
    def _records_memory(self) -> bool:
        return self._level == "kernel" and not self._threaded

    def _predicts(self, columns: TraceColumns) -> Predicts:
        rows = np.flatnonzero(columns.named(lambda name: name == _MARK))
        rows = rows[np.argsort(columns.start_ns[rows], kind="stable")]
        if len(rows) != len(self._marks):
            raise SessionError(f"PyTorch's profiler recorded {len(rows)} of {len(self._marks)} predicts")
        return Predicts(
            row=rows,
            start_ns=columns.start_ns[rows],
            duration_ns=columns.duration_ns[rows],
            thread=columns.thread[rows],
        )

    def _offset(self, predicts: Predicts) -> tuple[int, int]:
        """Return what to add to the trace's times for `perf_counter_ns`, and the bound on its error."""
        if not self._marks:
            return 0, 0
        # each mark was set between two readings of our clock: the tightest of them bound the difference of the clocks
        marks = np.array(self._marks, dtype=np.int64) - predicts.start_ns[:, None]
        low, high = int(marks[:, 0].max()), int(marks[:, 1].min())
        return (low + high) // 2, abs(high - low) // 2 + 1

    def _place(
        self, columns: TraceColumns, calls: Calls, offset: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Give the call sites the times of all kept predicts; returns row and site of each of their calls."""
        known: dict[tuple[bytes, bytes], npt.NDArray[np.int64]] = {}
        rows: list[npt.NDArray[np.intp]] = [np.zeros(0, dtype=np.intp)]
        placed: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        for number, (start_ns, duration_ns, _) in self._kept.items():
            first, last = np.searchsorted(calls.predict, [number, number + 1])
            code, parent = calls.code[first:last], calls.parent[first:last]
            parent = np.where(parent >= 0, parent - first, -1)
            key = code.tobytes(), parent.tobytes()
            if key not in known:
                sites = self._sites.place(code.tolist(), parent.tolist(), self._layers.describe)
                known[key] = np.array(sites, dtype=np.int64)
            row = calls.row[first:last]
            begins = columns.start_ns[row] + offset
            times = np.clip([begins, begins + columns.duration_ns[row]], start_ns, start_ns + duration_ns)
            self._sites.add_iteration(start_ns, duration_ns, known[key], times[0], times[1])
            rows.append(row)
            placed.append(known[key])
        return np.concatenate(rows), np.concatenate(placed)

    def _with_shapes(self, operators: EventTable, threads: list[str]) -> EventTable:
        """Add the shapes seen in the untimed run where a predict called the same operators in the same order.

        Recording them in the timed run would cost more than all the rest.
        """
        untimed = self._untimed
        table = {name: code for code, name in enumerate(operators.tables["name"])}
        texts = {text: code for code, text in enumerate(dict.fromkeys(filter(None, untimed.shapes)))}
        names = np.array([table.get(name, -1) for name in untimed.names], dtype=np.int32)
        shapes = np.array([texts.get(text, -1) for text in untimed.shapes], dtype=np.int32)
        codes = np.full(len(operators), -1, dtype=np.int32)
        thread_of = {text: code for code, text in enumerate(operators.tables["thread"])}
        home = np.array([*(thread_of.get(text, -1) for text in threads), -1], dtype=np.int32)
        iteration = operators.columns["iteration"]
        # operators stand by start, so those of an iteration stand together once other threads are left out
        mine = np.flatnonzero((iteration >= 0) & (operators.columns["thread_code"] == home[iteration]))
        bounds = np.searchsorted(iteration[mine], np.arange(len(threads) + 1))
        for number, (_, _, same) in enumerate(self._kept.values()):
            rows = mine[bounds[number] : bounds[number + 1]]
            if same and np.array_equal(operators.columns["name_code"][rows], names):
                codes[rows] = shapes
        return replace(
            operators, columns={**operators.columns, "shapes_code": codes},
            tables={**operators.tables, "shapes": tuple(texts)},
            variable_attrs={**operators.variable_attrs, "shapes_code": {"comment": _SHAPES}},
        )  # fmt: skip
