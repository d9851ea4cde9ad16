"""Layers of a TensorFlow graph: the nodes that TensorFlow's executor ran, with their times.

A concrete function gives no times of its nodes. So its variables are frozen into constants and the resulting graph
runs in a session of TensorFlow 1, whose executor fills ``step_stats``. ``SOFTWARE_TRACE`` asks for that alone;
``FULL_TRACE`` would start a profiler around every step. What a step leaves is kept as bytes and read when the trace
ends.

Rows are executed nodes by the names that TensorFlow's optimiser gave them. Nodes that hold or pass a tensor without
computing (constants, arguments, results, no-ops) are left out, and their microseconds count to no layer.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.tensorflow_graph import BOOKKEEPING, CALLS, Frozen, plain_type
from mlscope_lab.backends.tensorflow_load import Opened
from mlscope_lab.errors import SessionError, UnsupportedModelError
from mlscope_lab.trace.records import LayerTable, LayerTrace

__all__ = ["Recorder"]

_LABEL = re.compile(r" = (?P<op>[A-Za-z_][A-Za-z0-9_>]*)\((?P<inputs>[^)]*)\)")


class _Kept:
    """Takes the place of a RunMetadata: keeps the bytes, so that parsing them does not count to the step."""

    data: bytes = b""

    def ParseFromString(self, data: bytes) -> None:  # noqa: N802 - the name that TensorFlow calls
        self.data = data


@dataclass(slots=True)
class _Event:
    """One run of one node, in nanoseconds of the wall clock."""

    name: str
    op: str
    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]  # text of the shape, bytes
    parent: int = -1
    label: str = ""
    children: list[int] = field(default_factory=list)


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
    """

    def __init__(self, tf: Any, opened: Opened, threads: int, place: str | None = None) -> None:
        self._tf = tf
        self._frozen = Frozen(tf, opened, place)
        self.digest = "sha256:" + hashlib.sha256(self._frozen.definition).hexdigest()
        v1 = tf.compat.v1
        config = v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1, use_per_session_threads=True,
            allow_soft_placement=True,
        )  # fmt: skip
        config.gpu_options.allow_growth = True
        try:
            self._session: Any = v1.Session(graph=self._frozen.graph, config=config)
            self._plain = self._callable(None)
            self._traced = self._callable(v1.RunOptions.SOFTWARE_TRACE)
        except (ValueError, tf.errors.OpError) as error:
            raise UnsupportedModelError(
                f"TensorFlow {tf.__version__} cannot run the frozen graph that layers are recorded from: {error}; "
                "record level 'model'"
            ) from error
        self._clock = (0, 0)
        self._steps: list[tuple[int, int, _Kept]] = []

    def _callable(self, level: int | None) -> Any:
        """Return what runs the graph: arrays in, a list of arrays out.

        A callable of the session resolves names once, where the public ``Session.run`` does so in every step, which is
        a noticeable part of what a trace costs.
        """
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions(feed=self._frozen.feeds, fetch=self._frozen.fetches)
        if level is not None:
            options.run_options.trace_level = level
        return self._session._make_callable_from_options(options)

    def run(self, arrays: Sequence[npt.NDArray[Any]], *, traced: bool) -> list[npt.NDArray[Any]]:
        """Run once; arrays in the order of the model's inputs, results in that of its outputs."""
        if not traced:
            done: list[npt.NDArray[Any]] = self._plain(*arrays)
            return done
        kept = _Kept()
        start = time.perf_counter_ns()
        done = self._traced(*arrays, run_metadata=kept)
        self._steps.append((start, time.perf_counter_ns() - start, kept))
        return done

    def begin(self) -> None:
        """Forget earlier steps and read the clocks."""
        self._steps = []
        self._clock = _offset()

    def end(self) -> LayerTrace:
        """Return what was recorded since `begin`."""
        steps, self._steps = self._steps, []
        offset, error = self._clock
        now, now_error = _offset()
        # the wall clock may have been slewed meanwhile: half the drift is added to the error
        middle = (offset + now) // 2
        error = max(error, now_error) + (abs(offset - now) + 1) // 2
        return self._trace(steps, middle, error)

    def close(self) -> None:
        """Release the session."""
        self._session.close()
        self._plain = self._traced = None

    def _events(self, kept: _Kept, offset: int) -> list[_Event]:
        """Read a step's nodes, in the order of their start."""
        metadata = self._tf.compat.v1.RunMetadata()
        metadata.ParseFromString(kept.data)
        events = []
        for device in metadata.step_stats.dev_stats:
            if "/stream:" in device.device or device.device.endswith(":memcpy"):
                continue  # device kernels, which are not layers
            for stats in device.node_stats:
                found = _LABEL.search(stats.timeline_label)
                op = found["op"] if found else self._frozen.op_of(stats.node_name)
                inputs = tuple(i.strip() for i in found["inputs"].split(",") if i.strip()) if found else ()
                start = (stats.all_start_nanos or stats.all_start_micros * 1000) + offset
                length = stats.all_end_rel_nanos or stats.all_end_rel_micros * 1000
                events.append(
                    _Event(
                        name=stats.node_name,
                        op=op,
                        start=start,
                        stop=start + max(length, 0),
                        inputs=inputs,
                        outputs=tuple(self._output(o) for o in sorted(stats.output, key=lambda o: o.slot)),
                    )
                )
        if not events:
            raise SessionError(
                "TensorFlow recorded no nodes for a traced step; this build has its step statistics switched off"
            )
        return sorted(events, key=lambda e: (e.start, -e.stop))

    def _output(self, output: Any) -> tuple[str, int]:
        description = output.tensor_description
        dtype = self._tf.as_dtype(description.dtype) if description.dtype else None
        if dtype is None:
            return "", 0
        lengths = [d.size for d in description.shape.dim]
        text = f"{dtype.name}[{','.join(str(n) for n in lengths)}]"
        known = all(n >= 0 for n in lengths) and dtype.name not in {"string", "resource", "variant"}
        return text, int(np.prod(lengths, dtype=np.int64)) * dtype.size if known else 0

    def _trace(self, steps: Sequence[tuple[int, int, _Kept]], offset: int, error: int) -> LayerTrace:
        rows: dict[str, int] = {}
        first: list[tuple[_Event, Mapping[str, _Event], int]] = []
        timed: list[list[tuple[int, _Event, int]]] = []
        for start, length, kept in steps:
            events = self._events(kept, offset)
            by_name = {e.name: e for e in events}
            layers = [e for e in events if e.op not in BOOKKEEPING]
            for event in layers:  # a reading of the clock may lie a microsecond beside; the step encloses its nodes
                event.start = min(max(event.start, start - error), start + length)
                event.stop = min(max(event.stop, event.start), start + length + error)
            _nest(layers)
            times = []
            seen: dict[str, int] = {}
            for event in layers:
                base = self._frozen.plain_name(event.name)
                seen[base] = seen.get(base, 0) + 1
                event.label = base if seen[base] == 1 else f"{base}#{seen[base]}"
                if event.label not in rows:
                    rows[event.label] = len(rows)
                    parent = rows[layers[event.parent].label] if event.parent >= 0 else -1
                    first.append((event, by_name, parent))
                inside = _covered([layers[i] for i in event.children])
                times.append((rows[event.label], event, event.stop - event.start - inside))
            timed.append(times)
        shape = (len(steps), len(rows))
        starts, durations, exclusives = (np.full(shape, -1, dtype=np.int64) for _ in range(3))
        for i, times in enumerate(timed):
            for row, event, exclusive in times:
                starts[i, row], durations[i, row] = event.start, event.stop - event.start
                exclusives[i, row] = exclusive
        order = _by_start(starts)
        place = {row: k for k, row in enumerate(order)}
        return LayerTrace(
            layers=self._table([first[row] for row in order], place, list(rows), order),
            start_ns=starts[:, order],
            duration_ns=durations[:, order],
            exclusive_ns=exclusives[:, order],
            iteration_start_ns=np.array([s for s, _, _ in steps], dtype=np.int64),
            iteration_duration_ns=np.array([d for _, d, _ in steps], dtype=np.int64),
            resolution_ns=1,
            clock_error_ns=error,
            executable_digest=self.digest,
            unavailable={},
        )

    def _table(
        self,
        first: Sequence[tuple[_Event, Mapping[str, _Event], int]],
        place: Mapping[int, int],
        labels: Sequence[str],
        order: Sequence[int],
    ) -> LayerTable:
        parents = [place[parent] if parent >= 0 else -1 for _, _, parent in first]
        depths: list[int] = []
        for parent in parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        described = [self._describe(event, by_name) for event, by_name, _ in first]
        return LayerTable(
            name=tuple(labels[row] for row in order),
            type=tuple(plain_type(event.op) for event, _, _ in first),
            scope=tuple(d["scope"] for d in described),
            parent=tuple(parents),
            depth=tuple(depths),
            input_shapes=tuple(d["input_shapes"] for d in described),
            output_shapes=tuple(";".join(text for text, _ in event.outputs if text) for event, _, _ in first),
            parameter_bytes=tuple(d["parameter_bytes"] for d in described),
            activation_bytes=tuple(sum(size for _, size in e.outputs) if e.outputs else -1 for e, _, _ in first),
            sources=tuple(d["sources"] for d in described),
        )

    def _describe(self, event: _Event, by_name: Mapping[str, _Event]) -> dict[str, Any]:
        shapes, weights = [], 0
        for text in event.inputs:
            name, _, slot = text.lstrip("^").partition(":")
            maker = by_name.get(name)
            if text.startswith("^") or maker is None:
                continue
            index = int(slot) if slot.isdecimal() else 0
            if index < len(maker.outputs):
                shape, size = maker.outputs[index]
                shapes.append(shape)
                if maker.op == "Const" and not shape.startswith(("int32", "int64", "bool")):
                    weights += size
        names = {text.lstrip("^").partition(":")[0] for text in event.inputs}
        sources = self._frozen.sources(event.name, event.op, names, set(by_name))
        return {
            "scope": self._frozen.scope(event.name, sources),
            "sources": ";".join(self._frozen.plain_name(s) for s in sources) if len(sources) > 1 else "",
            "input_shapes": ";".join(s for s in shapes if s),
            "parameter_bytes": weights if event.inputs else 0,
        }


def _nest(events: Sequence[_Event]) -> None:
    """Give events their parents: the innermost function call or loop that encloses them in time."""
    open_calls: list[int] = []
    for index, event in enumerate(events):
        while open_calls and events[open_calls[-1]].stop < event.stop:
            open_calls.pop()
        if open_calls:
            event.parent = open_calls[-1]
            events[open_calls[-1]].children.append(index)
        if event.op in CALLS:
            open_calls.append(index)


def _covered(events: Sequence[_Event]) -> int:
    """Return the length of the union of some events' intervals; events are in the order of their start."""
    total, reach = 0, -(1 << 62)
    for event in events:
        total += max(event.stop - max(event.start, reach), 0)
        reach = max(reach, event.stop)
    return total


def _by_start(starts: npt.NDArray[np.int64]) -> list[int]:
    """Return the rows in the order of their first start, those of the first iteration first."""
    if not starts.size:
        return []
    ran = starts >= 0
    iteration = ran.argmax(axis=0)
    begin = starts[iteration, np.arange(starts.shape[1])]
    return [int(row) for row in np.lexsort((begin, iteration))]
