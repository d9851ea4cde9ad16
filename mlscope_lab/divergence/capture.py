"""One run of one side, operation by operation: its graph, its values on disk, and what alignment needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.sketch import ValueSketch, sketch
from mlscope_lab.backends.base import Session
from mlscope_lab.backends.stepping import Receive, Stepper
from mlscope_lab.divergence.spool import Spool
from mlscope_lab.errors import SessionError, UnsupportedModelError
from mlscope_lab.trace.graph import Graph, Operation, Value

__all__ = ["Capture", "WholeModel", "capture", "is_numeric", "open_stepper"]

Array = npt.NDArray[Any]


@dataclass(kw_only=True)
class Capture:
    """What one run of a side left.

    Attributes
    ----------
    graph
        What ran; after a failure what ran until then.
    spool
        The arrays of `graph.values`, by position; those that are no numbers are not there.
    sketches
        Of the first sample, by position.
    ranges
        Smallest and largest finite value, by position; (nan, nan) where there is none.
    failure
        Why the run ended early, "" where it did not.
    """

    graph: Graph
    spool: Spool
    sketches: dict[int, ValueSketch] = field(default_factory=dict)
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    failure: str = ""


class WholeModel(Stepper):
    """A session that shows no operations, taken as one: its inputs and its outputs."""

    can_replay = True
    can_replace = False
    method = "the model as one operation"

    def __init__(self, session: Session, reason: str) -> None:
        super().__init__()
        self._session = session
        self.notes = (reason,)

    def _run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph:
        outputs = self._session.predict(feeds)
        named = {f"input {name}": np.asarray(a) for name, a in feeds.items()}
        named |= {f"output {name}": np.asarray(a) for name, a in outputs.items()}
        for index, array in enumerate(named.values()):
            receive(index, array)
        count = len(feeds)
        values = tuple(Value(name=name, shape=a.shape, dtype=a.dtype.name) for name, a in named.items())
        whole = Operation(
            name="model", type="model", kinds=("other",), inputs=tuple(range(count)),
            outputs=tuple(range(count, len(values))),
        )  # fmt: skip
        return Graph(
            values=values,
            operations=(whole,),
            inputs={name: i for i, name in enumerate(feeds)},
            outputs={name: count + i for i, name in enumerate(outputs)},
        )

    def _replay(self, operations: Any, given: Mapping[int, Array], wanted: Any) -> dict[int, Array]:
        names = [spec.name for spec in self._session.inputs] or [str(i) for i in given]
        outputs = list(self._session.predict({name: given[i] for i, name in enumerate(names)}).values())
        return {index: outputs[index - len(names)] for index in wanted}


def open_stepper(session: Session) -> Stepper:
    """Return a session's stepper, or the model as one operation where it shows none."""
    try:
        return session.open_stepper()
    except UnsupportedModelError as error:
        return WholeModel(session, str(error))


def is_numeric(array: Array) -> bool:
    """Tell whether an array can be compared: numbers and bool, not text."""
    return array.dtype.kind in "biufc"


def _range(array: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite value."""
    if not array.size or array.dtype.kind == "c":
        return float("nan"), float("nan")
    low, high = float(array.min()), float(array.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    finite = array[np.isfinite(array)]
    return (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))


def capture(
    stepper: Stepper,
    feeds: Mapping[str, Array],
    *,
    batch: int = 1,
    sketching: bool = True,
    ranging: bool = True,
    spool: Spool | None = None,
) -> Capture:
    """Run a side once.

    Parameters
    ----------
    stepper
        Of the side.
    feeds
        As for `Session.predict`.
    batch
        Samples in the feeds; values whose first axis has this length are sketched by their first sample.
    sketching, ranging
        Also sketch values; also find their ranges.
    spool
        Where to put values; default a new one, which the caller closes.

    Raises
    ------
    SessionError
        If an operation fails and the stepper cannot tell what ran before; else `Capture.failure` says it.
    """
    made = Capture(graph=Graph(values=(), operations=()), spool=spool or Spool())

    def receive(index: int, array: Array) -> None:
        if not is_numeric(array):
            return
        made.spool.write(index, array)
        if sketching:
            first = array[:1] if batch > 1 and array.ndim and array.shape[0] == batch else array
            made.sketches[index] = sketch(first)
        if ranging:
            made.ranges[index] = _range(array)

    try:
        made.graph = stepper.run(feeds, receive)
    except SessionError as error:
        graph = stepper.partial()
        if graph is None:
            if spool is None:
                made.spool.close()
            raise
        made.graph, made.failure = graph, str(error)
    except BaseException:
        if spool is None:
            made.spool.close()
        raise
    return made
