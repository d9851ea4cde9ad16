"""Running a TensorFlow Lite file operator by operator: `TensorFlowLiteStepper`.

An interpreter hides what its delegate computes, and can keep all tensors or none. So each operator is cut out as a file
of its own and run by an interpreter of its own, with the same delegate, XNNPACK by default; each then runs again on any
values.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.stepping import Receive, Stepper
from mlscope_lab.backends.tensorflow_lite_parts import LiteGraph, LitePart
from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.trace.graph import Graph, Value

__all__ = ["TensorFlowLiteStepper"]

Array = npt.NDArray[Any]

_INTERPRETER_BYTES: Final = 512 << 20
"""Each interpreter has its own copy of its operator's weights, and XNNPACK another."""


class TensorFlowLiteStepper(Stepper):
    """The operators of a file, each in an interpreter of its own.

    Parameters
    ----------
    graph
        The file, taken apart.
    open_interpreter
        Opens an interpreter on the bytes of a file.
    inputs, outputs
        The session's names and the tensors of the file.
    check
        Raises InputError if feeds do not fit.
    """

    method = "each operator of the file in an interpreter of its own"
    can_replay = True
    can_replace = True

    def __init__(
        self, graph: LiteGraph, open_interpreter: Callable[[bytes], Any], inputs: Sequence[tuple[str, int]],
        outputs: Sequence[tuple[str, int]], check: Callable[[Mapping[str, Array]], None],
    ) -> None:  # fmt: skip
        super().__init__()
        self._file, self._open, self._inputs, self._outputs = graph, open_interpreter, inputs, outputs
        self._check_feeds = check
        self._interpreters: OrderedDict[int, tuple[Any, dict[int, int], list[tuple[int, ...]], int]] = OrderedDict()
        self._seen: list[Value] = []
        self._last = {tensor: i for i, part in enumerate(graph.parts) for tensor in part.reads}
        self.notes = (
            "Each operator runs by itself; what XNNPACK merges across operators in the whole model is not merged",
            *graph.notes,
        )

    def _run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph:
        self._check_feeds(feeds)
        self._seen = []
        live = {}
        for name, tensor in self._inputs:
            live[tensor] = self._show(np.asarray(feeds[name], order="C"), receive)
        for i, part in enumerate(self._file.parts):
            for tensor, array in self._one(i, live).items():
                shown = self._show(array, receive)
                if self._last.get(tensor, -1) > i:
                    live[tensor] = shown
            for tensor in part.reads:
                if self._last[tensor] <= i:
                    live.pop(tensor, None)
        return self._graph_of()

    def _one(self, number: int, given: Mapping[int, Array]) -> dict[int, Array]:
        """Run one operator."""
        part = self._file.parts[number]
        arrays = [given[tensor] for tensor in part.reads]
        interpreter, places = self._interpreter(number, part, [array.shape for array in arrays])
        try:
            for tensor, array in zip(part.reads, arrays, strict=True):
                interpreter.set_tensor(places[tensor], array)
            interpreter.reset_all_variables()
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise SessionError(f"'{part.operation.name}' ({part.operation.type}) failed: {error}") from error
        return {tensor: np.asarray(interpreter.get_tensor(places[tensor])) for tensor in part.writes}

    def _interpreter(self, number: int, part: LitePart, shapes: list[tuple[int, ...]]) -> tuple[Any, dict[int, int]]:
        found = self._interpreters.get(number)
        if found is None or found[2] != shapes:
            content, places = self._file.cut(part, shapes)
            try:
                interpreter = self._open(content)
                interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise SessionError(
                    f"'{part.operation.name}' ({part.operation.type}) cannot run by itself: {error}"
                ) from error
            found = (interpreter, places, shapes, len(content))
            self._interpreters[number] = found
            held = sum(size for _, _, _, size in self._interpreters.values())
            while held > _INTERPRETER_BYTES and len(self._interpreters) > 1:
                held -= self._interpreters.popitem(last=False)[1][3]
        if number in self._interpreters:
            self._interpreters.move_to_end(number)
        return found[0], found[1]

    def _show(self, array: Array, receive: Receive) -> Array:
        """Hand the next value over; return it, or what replaces it."""
        index = len(self._seen)
        name, tensor = self._file.names[index], self._file.tensors[index]
        dtype = "str" if array.dtype.kind in "OSU" else array.dtype.name
        scale = self._file.quantization(tensor) if array.dtype.kind in "iu" else None
        self._seen.append(Value(name=name, shape=array.shape, dtype=dtype, quantization=scale))
        given = receive(index, array)
        if given is None:
            return array
        if given.shape != array.shape or given.dtype != array.dtype:
            raise InputError(
                f"{given.dtype.name}{list(given.shape)} cannot stand in the place of '{name}', which is "
                f"{array.dtype.name}{list(array.shape)}"
            )
        return np.asarray(given, order="C")

    def _graph_of(self) -> Graph:
        count = len(self._seen)
        ran = [part.operation for part in self._file.parts if part.operation.outputs[0] < count]
        if ran and ran[-1].outputs[-1] >= count:
            ran[-1] = dataclasses.replace(ran[-1], outputs=tuple(o for o in ran[-1].outputs if o < count))
        place = {tensor: i for i, tensor in enumerate(self._file.tensors[:count])}
        return Graph(
            values=tuple(self._seen),
            operations=tuple(ran),
            inputs={name: place[tensor] for name, tensor in self._inputs},
            outputs={name: place[tensor] for name, tensor in self._outputs if tensor in place},
        )

    def _partial(self) -> Graph | None:
        return self._graph_of() if len(self._seen) >= len(self._inputs) else None

    def _replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        tensors = self._file.tensors
        live = {tensors[i]: np.asarray(array, order="C") for i, array in given.items()}
        for number in operations:
            live |= self._one(number, live)
        return {i: live[tensors[i]] for i in wanted}

    def _close(self) -> None:
        self._interpreters.clear()
