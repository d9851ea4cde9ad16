"""Running an opened model operation by operation: `Stepper`.

What a session computes as a whole, a stepper computes one operation at a time and shows each value as it appears, so
that activations of any model can be compared without holding all of them. The operations are those that the session
executes: of an optimised graph the fused ones, in the same kernels. Where a framework cannot do that, `Stepper.notes`
says what differs, and the comparison of the stepper's outputs with the plain ones shows by how much.

::

    with backend.open(files, SessionOptions(threads=2)) as session, session.open_stepper() as stepper:
        graph = stepper.run(feeds, receive)                  # receive(value, array) for every input and result
        stepper.replay([3, 4], {7: array}, wanted=[9])       # operations 3 and 4 of that graph, on other values
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.trace.graph import Graph

__all__ = ["Receive", "Stepper"]

Array = npt.NDArray[Any]
Receive = Callable[[int, Array], "Array | None"]


class Stepper(ABC):
    """A session's model, run one operation after the other; a context manager, single-threaded.

    Subclasses implement `_run`, and where they can `_replay`; `_close` where there is something to do.

    Attributes
    ----------
    method
        How values are seen, in words: "nodes of the optimised graph, each in a session of its own".
    notes
        What the user should know: values that are not seen, fusion that is not as in the session.
    can_replay
        Whether `replay` works.
    can_replace
        Whether `run` takes the values that `receive` returns.
    """

    method: str = ""
    notes: Sequence[str] = ()
    can_replay: bool = False
    can_replace: bool = False

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph:
        """Run the model once and show every value.

        Parameters
        ----------
        feeds
            As for `Session.predict`.
        receive
            Called with the position of a value in the graph's `values` and its array, once for each value, in the order
            of execution, the graph's inputs first. The array may be read during the call only; copy what is to stay. A
            value of type bfloat16 comes as float32, others in their own type. Where `can_replace`, an array that it
            returns (of the same shape and type) goes on in the value's place; None leaves it.

        Returns
        -------
        Graph
            What ran. Positions of values and operations hold for `replay` until the next run.

        Raises
        ------
        InputError
            If the feeds do not fit, or an array that `receive` returned is not of its value's shape and type.
        SessionError
            If an operation or `receive` fails. What was received before stays valid; `partial` tells what ran.
        """
        self._check()
        self._graph = None
        try:
            self._graph = self._run(feeds, _fitting(receive) if self.can_replace else receive)
        except (InputError, SessionError):
            raise
        except Exception as error:  # frameworks share no base class of their exceptions
            raise SessionError(f"{type(self).__name__}: {type(error).__name__}: {error}") from error
        return self._graph

    def partial(self) -> Graph | None:
        """Return what ran before the last run failed, with positions as they were received; None where unknown."""
        return self._partial()

    def replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        """Run some operations of the last run again on other values.

        Parameters
        ----------
        operations
            Positions in the graph's `operations`, ascending.
        given
            Arrays for every value that these operations read and do not write themselves, by position, in the type and
            shape in which `run` showed them.
        wanted
            Positions of values that these operations write.

        Returns
        -------
        dict
            An array for each of `wanted`, as `run` would show it.

        Raises
        ------
        SessionError
            If this stepper cannot replay, nothing ran yet, or an operation fails.
        InputError
            If a value is missing.
        """
        self._check()
        if not self.can_replay:
            raise SessionError(f"{type(self).__name__} cannot run single operations again")
        graph = self._graph
        if graph is None:
            raise SessionError("Nothing ran yet; call run(...) first")
        known = set(given)
        for index in sorted(operations):
            missing = [v for v in graph.operations[index].inputs if v not in known]
            if missing:
                raise InputError(
                    f"Operation '{graph.operations[index].name}' reads '{graph.values[missing[0]].name}', "
                    "which is neither given nor written by the operations to run"
                )
            known.update(graph.operations[index].outputs)
        if any(v not in known for v in wanted):
            raise InputError("A wanted value is written by none of the operations to run")
        try:
            return self._replay(sorted(operations), given, wanted)
        except (InputError, SessionError):
            raise
        except Exception as error:
            raise SessionError(f"{type(self).__name__}: {type(error).__name__}: {error}") from error

    def graph_file(self) -> Path | None:
        """Return the ONNX file whose nodes are the operations; None where they are no ONNX nodes."""
        return None

    def close(self) -> None:
        """Release what the stepper holds; the session stays open."""
        if not self._closed:
            self._closed = True
            self._close()

    def _check(self) -> None:
        if self._closed:
            raise SessionError("The stepper is closed; open it again with session.open_stepper()")

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph: ...

    def _partial(self) -> Graph | None:
        return None

    def _replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        raise SessionError(f"{type(self).__name__} cannot run single operations again")

    def _close(self) -> None:  # noqa: B027 - optional
        pass


def _fitting(receive: Receive) -> Receive:
    """Return a `receive` that lets no array pass in the place of one of another shape or type."""

    def checked(index: int, array: Array) -> Array | None:
        other = receive(index, array)
        if other is not None and (other.shape != array.shape or other.dtype != array.dtype):
            raise InputError(
                f"An array of {other.dtype.name}{list(other.shape)} cannot go on in the place of value {index}, "
                f"which is {array.dtype.name}{list(array.shape)}"
            )
        return other

    return checked
