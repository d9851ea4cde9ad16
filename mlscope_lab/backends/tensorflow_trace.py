"""Runs a TensorFlow graph so that its nodes can be timed.

A concrete function gives no times of its nodes. So its variables are frozen into constants and the resulting graph
runs in a session of TensorFlow 1. TensorFlow's profiler times the nodes while the same prepared call runs that runs
untraced; one more step, untimed, with step statistics describes what they read and make. Where the profiler cannot be
had, step statistics of every step give the times too, at a higher cost, and the trace says so.
"""

from __future__ import annotations

import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.tensorflow_graph import BRANCHES, Frozen
from mlscope_lab.backends.tensorflow_grappler import session_config
from mlscope_lab.backends.tensorflow_layers import Layers, Step, layers_of
from mlscope_lab.backends.tensorflow_load import Opened
from mlscope_lab.backends.tensorflow_nodes import NodeRun
from mlscope_lab.backends.tensorflow_operators import annotations_of, memory_of, operators_of, sizes_of
from mlscope_lab.backends.tensorflow_profiler import HostEvent, HostProfiler, ProfilerUnavailableError, read_profile
from mlscope_lab.backends.tensorflow_stats import StepStats, read_step_stats
from mlscope_lab.errors import SessionError, UnsupportedModelError
from mlscope_lab.trace.records import EventTable, LayerTrace

__all__ = ["Recorder"]

_NODE_RUNS_A_PROFILE = 100_000
"""After so many the profile is written and a new one begun: it is kept in memory, and must stay far below 2 GiB."""


_Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Timed:
    start: int
    duration: int
    stats: StepStats | None
    shapes: _Shapes


def _shapes(arrays: Sequence[npt.NDArray[Any]]) -> _Shapes:
    return tuple(array.shape for array in arrays)


def _offset() -> tuple[int, int]:
    """Return what to add to the wall clock to get `time.perf_counter_ns`, and a bound on the error, in ns."""
    best = (0, 1 << 62)
    for _ in range(9):
        before = time.perf_counter_ns()
        wall = time.time_ns()
        after = time.perf_counter_ns()
        best = min(best, ((before + after) // 2 - wall, (after - before + 1) // 2), key=lambda pair: pair[1])
    return best


class Recorder:
    """Runs the frozen graph of a model, traced or not.

    Parameters
    ----------
    tf
        The tensorflow module.
    opened
        The model.
    threads
        Intra-operator threads; TensorFlow has one pool for all sessions of a process.
    place
        Device on which unplaced nodes run, or None where there is only one.
    scratch
        Folder for profiles, or None for temporary ones.
    operators
        Also record what lies below the layers: every node with its thread and its memory.
    optimize
        Whether Grappler rewrites the graph before it runs.
    """

    def __init__(
        self,
        tf: Any,
        opened: Opened,
        threads: int,
        place: str | None = None,
        scratch: Path | None = None,
        *,
        operators: bool = False,
        optimize: bool = True,
    ) -> None:
        self._tf = tf
        self._operators = operators
        self._device = place
        self._frozen = Frozen(tf, opened, place)
        self.digest = self._frozen.digest(*([] if optimize else ["not optimised"]))
        config = session_config(tf, threads, optimize=optimize)
        try:
            self._session: Any = tf.compat.v1.Session(graph=self._frozen.graph, config=config)
            self._plain = self._callable()
        except (ValueError, tf.errors.OpError) as error:
            raise UnsupportedModelError(
                f"TensorFlow {tf.__version__} cannot run the frozen graph that layers are recorded from: {error}; "
                "record level 'model'"
            ) from error
        self._profiler = HostProfiler(tf, scratch)
        self._why_not = ""  # why the trace under way goes without the profiler
        self._with_stats: Any = None
        self._described: dict[str, NodeRun] = {}
        self._sizes: dict[tuple[str, int], tuple[int, int]] = {}
        self._shapes: _Shapes = ()  # of what was fed when nodes were described
        self._clock = (0, 0)
        self._steps: list[_Timed] = []
        self._folders: list[Path] = []
        self._left = 0
        self._fed: Sequence[npt.NDArray[Any]] | None = None

    def _callable(self, *, stats: bool = False) -> Any:
        """Return what runs the graph: arrays in, a list of arrays out.

        A callable of the session resolves names once, where the public ``Session.run`` does so in every step, which is
        a noticeable part of what a trace costs. Each callable has executors and kernels of its own.
        """
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions(feed=self._frozen.feeds, fetch=self._frozen.fetches)
        if stats:
            options.run_options.trace_level = self._tf.compat.v1.RunOptions.SOFTWARE_TRACE
        return self._session._make_callable_from_options(options)

    def run(self, arrays: Sequence[npt.NDArray[Any]], *, traced: bool) -> list[npt.NDArray[Any]]:
        """Run once; arrays in the order of the model's inputs, results in that of its outputs."""
        done: list[npt.NDArray[Any]]
        clock = time.perf_counter_ns
        if not traced:
            done = self._plain(*arrays)
        elif self._with_stats is not None:
            kept = StepStats()
            start = clock()
            done = self._with_stats(*arrays, run_metadata=kept)
            self._steps.append(_Timed(start, clock() - start, kept, _shapes(arrays)))
        else:
            if self._left <= 0:
                self._turn()
            self._left -= 1
            start = clock()
            done = self._plain(*arrays)
            self._steps.append(_Timed(start, clock() - start, None, _shapes(arrays)))
        self._fed = arrays
        return done

    def _turn(self) -> None:
        """Write the profile and begin a new one."""
        self._folders.append(self._profiler.stop())
        self._profiler.start()
        self._left = self._steps_a_profile()

    def _steps_a_profile(self) -> int:
        return max(1, _NODE_RUNS_A_PROFILE // max(1, self._frozen.size))

    def begin(self) -> None:
        """Forget earlier steps, start recording and read the clocks."""
        self._forget()
        self._why_not = ""
        try:
            self._profiler.start()
            self._left = self._steps_a_profile()
        except ProfilerUnavailableError as error:
            self._why_not = str(error)
            self._with_stats = self._callable(stats=True)
            if self._fed is not None:
                self._with_stats(*self._fed, run_metadata=StepStats())  # its first step prepares weights
        self._clock = _offset()

    def end(self) -> LayerTrace:
        """Stop recording and return what was recorded since `begin`."""
        if self._with_stats is None:
            self._folders.append(self._profiler.stop())
        offset, error = self._clock
        now, now_error = _offset()
        # the wall clock may have been slewed meanwhile: half the drift is added to the error
        middle = (offset + now) // 2
        error = max(error, now_error) + (abs(offset - now) + 1) // 2
        timed, folders, self._folders = self._steps, self._folders, []
        try:
            if self._with_stats is not None:
                steps = [self._from_stats(t, middle) for t in timed]
            else:
                steps = self._from_profiles(timed, folders, middle, error)
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            self._forget()
        return self._trace(steps, [t.shapes for t in timed], error)

    def _from_stats(self, timed: _Timed, offset: int) -> Step:
        data = timed.stats.data if timed.stats is not None else b""
        runs = read_step_stats(self._tf, data, offset, self._frozen.op_of)
        for run in runs:
            self._described.setdefault(run.name, run)
        return Step(start=timed.start, duration=timed.duration, runs=runs)

    def _from_profiles(self, timed: Sequence[_Timed], folders: Sequence[Path], offset: int, error: int) -> list[Step]:
        steps = [Step(start=t.start, duration=t.duration, runs=[]) for t in timed]
        for folder in folders:
            _place(read_profile(folder, details=self._operators), steps, offset, error)
        if steps and not any(step.runs for step in steps):
            raise SessionError(
                f"TensorFlow's profile holds none of the {len(steps)} traced predicts; trace fewer iterations"
            )
        shapes = _shapes(self._fed or ())
        if shapes != self._shapes or any(run.name not in self._described for step in steps for run in step.runs):
            self._describe(shapes)
        return steps

    def _describe(self, shapes: _Shapes) -> None:
        """Run one step with statistics, with what was fed last, and keep what its nodes read and make."""
        if self._fed is None:
            return
        kept = StepStats()
        self._callable(stats=True)(*self._fed, run_metadata=kept)
        runs = read_step_stats(self._tf, kept.data, 0, self._frozen.op_of)
        if shapes != self._shapes:
            self._described = {}
        self._described |= {run.name: run for run in reversed(runs)}
        self._sizes = sizes_of(runs)
        self._shapes = shapes

    def _forget(self) -> None:
        self._profiler.discard()
        self._with_stats = None
        self._steps = []

    def close(self) -> None:
        """Release the session."""
        self._forget()
        self._session.close()
        self._plain = self._fed = None

    def _trace(self, steps: Sequence[Step], shapes: Sequence[_Shapes], error: int) -> LayerTrace:
        kept = [step for step in steps if step.runs]
        layers = layers_of(kept, self._described, self._frozen, error)
        unavailable = {}
        if self._why_not:
            unavailable["TensorFlow's profiler"] = f"{self._why_not}. Step statistics timed the nodes, which cost more"
        if self._device is not None and "GPU" in self._device:
            unavailable["device times of layers"] = (
                "TensorFlow times its nodes on the host: on a GPU that is their launch, not their work"
            )
        dropped, reason = _dropped(steps, layers)
        if reason:
            unavailable["layers"] = reason
        if len(set(shapes)) > 1:
            unavailable["sizes"] = "of inputs of other shapes than the last: sizes of layers are those of the last"
        return LayerTrace(
            layers=layers.table,
            start_ns=layers.start_ns,
            duration_ns=layers.duration_ns,
            exclusive_ns=layers.exclusive_ns,
            iteration_start_ns=np.array([step.start for step in kept], dtype=np.int64),
            iteration_duration_ns=np.array([step.duration for step in kept], dtype=np.int64),
            resolution_ns=1,
            clock_error_ns=error,
            executable_digest=self.digest,
            dropped_events=dropped,
            unavailable=unavailable,
            events=self._events(kept, layers, [s for s, step in zip(shapes, steps, strict=True) if step.runs]),
        )

    def _events(self, steps: Sequence[Step], layers: Layers, shapes: Sequence[_Shapes]) -> dict[str, EventTable]:
        if not self._operators:
            return {}
        sizes = [self._sizes if fed == self._shapes else {} for fed in shapes]
        operators = operators_of(steps, layers, self._described, sizes, self._frozen)
        found = {"annotations": annotations_of(steps), "memory": memory_of(steps, operators)}
        return {"operators": operators.table} | {group: table for group, table in found.items() if table is not None}


def _place(events: Iterable[HostEvent], steps: Sequence[Step], offset: int, error: int) -> None:
    """Put the nodes of a profile into the steps during which they began."""
    begins = [step.start - error for step in steps]
    done: dict[tuple[int, str], list[int]] = {}
    touched = set()
    for event in events:
        index = bisect_right(begins, event.start + offset) - 1
        if index < 0 or event.start + offset > steps[index].start + steps[index].duration + error:
            continue
        if event.kind == "done":
            done.setdefault((index, str(event.stats.get("name", ""))), []).append(event.start + offset)
            continue
        if event.kind != "node":
            event.start, event.stop = event.start + offset, event.stop + offset
            steps[index].others.append(event)
            continue
        touched.add(index)
        steps[index].runs.append(
            NodeRun(
                name=event.name,
                op=event.op,
                start=event.start + offset,
                stop=event.stop + offset,
                thread=event.thread,
                shapes=str(event.stats.get("shape", "")),
            )
        )
    for index in touched:
        runs = steps[index].runs
        for run in runs:  # of an asynchronous kernel the node's event is its launch alone
            ends = [end for end in done.get((index, run.name), ()) if end >= run.start]
            run.stop = max(run.stop, min(ends, default=run.stop))
        runs.sort(key=lambda run: (run.start, -run.stop))


def _dropped(steps: Sequence[Step], layers: Layers) -> tuple[int, str]:
    """Return how many events the profile must have lost, and what to say of it.

    A graph without control flow runs the same nodes in each step, so one that is missing in a step was lost.
    """
    counts = [len(step.runs) for step in steps]
    lost = counts.count(0)
    typical = int(np.median([count for count in counts if count])) if any(counts) else 0
    if lost:
        return lost * typical, (
            f"of {lost} of {len(steps)} iterations: TensorFlow's profiler lost them; trace fewer iterations to see all"
        )
    branching = any(run.op in BRANCHES for step in steps[:1] for run in step.runs)
    missing = 0 if branching else int((layers.start_ns < 0).sum())
    return missing, f"{missing} runs of nodes: TensorFlow's profiler lost them" if missing else ""
