"""Running a TensorFlow model node by node: `TensorFlowStepper`.

The model's variables are frozen, its graph is optimised once for its own inputs and outputs
(`mlscope_lab.backends.tensorflow_grappler`), and a session of TensorFlow 1 that optimises no further runs it: such a
session feeds and fetches any tensor. It runs in segments of nodes whose values fit a bound, each fed with what the ones
before left; where a value is replaced, the rest runs node by node.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.stepping import Receive, Stepper
from mlscope_lab.backends.tensorflow_graph import Frozen
from mlscope_lab.backends.tensorflow_grappler import optimized, session_config
from mlscope_lab.backends.tensorflow_load import Opened
from mlscope_lab.backends.tensorflow_plan import Plan, plan_of, without_order
from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.trace.graph import Graph, Value

__all__ = ["TensorFlowStepper"]

Array = npt.NDArray[Any]

_SEGMENT_BYTES: Final = 32 << 20
"""Values of a segment are all in memory together; a segment costs an executor, some milliseconds."""
_EXECUTOR_BYTES: Final = 512 << 20
"""Each executor has its own copy of the constants that it reads."""
_EXECUTORS: Final = 4096
_MERGES: Final = (
    "oneDNN merges a convolution with its bias, or a padding with its convolution, where the result in between is not "
    "looked at; here it is"
)


_CONSTANTS: Final = (
    "The model's variables are constants here, so TensorFlow computes beforehand what depends on them alone, and "
    "leaves out additions of zero"
)


class TensorFlowStepper(Stepper):
    """The frozen graph of a concrete function, in segments.

    Parameters
    ----------
    tf
        The tensorflow module.
    opened
        The model.
    optimize
        Whether Grappler rewrites the graph, as it does for the concrete function.
    threads
        Intra-operator threads.
    place
        Device on which nodes run, or None where there is only one.
    check
        Raises InputError if feeds do not fit.
    """

    can_replay = True
    can_replace = True

    def __init__(
        self, tf: Any, opened: Opened, *, optimize: bool, threads: int, place: str | None,
        check: Callable[[Mapping[str, Array]], None],
    ) -> None:  # fmt: skip
        super().__init__()
        self._tf, self._threads, self._place, self._check_feeds = tf, threads, place, check
        self._inputs = [spec.name for spec in opened.inputs]
        self._outputs = [spec.name for spec in opened.outputs]
        self._frozen = Frozen(tf, opened, place, lower_control_flow=False)
        constants = [_CONSTANTS] if optimize and self._frozen.made_constant else []
        self.notes = self._general = (_MERGES, *constants)
        self.method = "segments of the frozen graph, as it is"
        self._definition = self._frozen.graph.as_graph_def()
        if optimize:
            self.method = "segments of the frozen graph, optimised once by Grappler"
            self._definition = optimized(tf, self._frozen.graph, self._frozen.feeds, self._frozen.fetches, place)
        self._definition = without_order(tf, self._definition)
        self._frozen.forget_constants()
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        self._published: dict[str, Any] = {}  # shapes of the inputs before they were set to those of feeds
        self._session: Any = None
        self._plan: Plan | None = None
        self._last: dict[str, int] = {}
        self._executors: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()
        self._seen: list[Value] = []

    @property
    def executors(self) -> int:
        """Number of executors that TensorFlow holds for this stepper."""
        return len(self._executors)

    def _prepare(self, arrays: Sequence[Array]) -> Plan:
        """Plan for the shapes of some feeds; sizes of segments follow from them."""
        shapes = tuple(array.shape for array in arrays)
        if self._plan is not None and shapes == self._shapes:
            return self._plan
        self._release()
        try:
            graph = self._import(shapes)
        except ValueError:  # the shapes do not go together, which the node that they fail at is to say
            graph = self._import(None)
        tf = self._tf
        self._session = tf.compat.v1.Session(graph=graph, config=session_config(tf, self._threads, optimize=False))
        plan = plan_of(graph, self._frozen.feeds, self._frozen.fetches, self._inputs, self._outputs, self._frozen)
        self._plan, self._shapes = plan, shapes
        self._last = {name: i for i, step in enumerate(plan.steps) for name in step.reads}
        self.notes = (*self._general, *plan.notes)
        return plan

    def _import(self, shapes: Sequence[tuple[int, ...]] | None) -> Any:
        """Return the graph for feeds of some shapes, or of any."""
        tf = self._tf
        inputs = {feed.partition(":")[0]: i for i, feed in enumerate(self._frozen.feeds)}
        for node in self._definition.node:
            if node.name in inputs:
                self._published.setdefault(node.name, type(node.attr["shape"])(shape=node.attr["shape"].shape))
                shape = self._published[node.name].shape
                if shapes is not None:
                    shape = tf.TensorShape(shapes[inputs[node.name]]).as_proto()
                node.attr["shape"].shape.CopyFrom(shape)
        graph = tf.Graph()
        with graph.as_default(), tf.device(self._place):
            tf.import_graph_def(self._definition, name="")
        return graph

    def _call(self, feeds: Mapping[str, Array], fetches: Sequence[str], constants: int) -> list[Array]:
        """Run what leads from some tensors to others."""
        key = (*feeds, None, *fetches)
        found = self._executors.get(key)
        if found is None:
            from tensorflow.core.protobuf import config_pb2

            options = config_pb2.CallableOptions(feed=list(feeds), fetch=list(fetches))
            found = (self._session._make_callable_from_options(options), constants)
            self._executors[key] = found
            held = sum(size for _, size in self._executors.values())
            while len(self._executors) > 1 and (held > _EXECUTOR_BYTES or len(self._executors) > _EXECUTORS):
                held -= self._executors.popitem(last=False)[1][1]
        self._executors.move_to_end(key)
        done: list[Array] = found[0](*feeds.values())
        return done

    def _run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph:
        self._check_feeds(feeds)
        self._seen = []
        arrays = [np.asarray(feeds[name]) for name in self._inputs]
        plan = self._prepare(arrays)
        live: dict[str, Array] = {}
        for tensor, array in zip(plan.tensors, arrays, strict=False):
            live[tensor], _ = self._show(plan, array, receive)
        first, single = 0, False
        while first < len(plan.steps):
            stop = first + 1 if single else self._stop(plan, first)
            try:
                results = self._segment(plan, range(first, stop), live)
            except self._tf.errors.OpError as error:
                if stop > first + 1:  # run on node by node, so that what comes before the failure is seen
                    single = True
                    continue
                step = plan.steps[first].operation
                raise SessionError(f"'{step.name}' ({step.type}) failed: {_reason(error)}") from error
            first, replaced = self._show_segment(plan, range(first, stop), results, live, receive)
            single = single or replaced
        return self._graph_of(plan)

    def _stop(self, plan: Plan, first: int) -> int:
        """Return the end of the segment that begins at a step."""
        stop, size = first + 1, plan.steps[first].sizes
        while stop < len(plan.steps) and size + plan.steps[stop].sizes <= _SEGMENT_BYTES:
            size += plan.steps[stop].sizes
            stop += 1
        return stop

    def _segment(self, plan: Plan, steps: Sequence[int], live: Mapping[str, Array]) -> dict[str, Array]:
        """Run some steps and return all that they write."""
        writes = [name for i in steps for name in plan.steps[i].writes]
        inside = set(writes)
        reads = {name: live[name] for i in steps for name in plan.steps[i].reads if name not in inside}
        constants = sum(plan.steps[i].constants for i in steps)
        return dict(zip(writes, self._call(reads, writes, constants), strict=True))

    def _show_segment(
        self, plan: Plan, steps: Sequence[int], results: dict[str, Array], live: dict[str, Array], receive: Receive
    ) -> tuple[int, bool]:
        """Show what steps wrote until one is replaced; return the step to go on with, and whether one was."""
        for i in steps:
            step = plan.steps[i]
            changed = False
            for name in step.writes:
                array, replaced = self._show(plan, results.pop(name), receive)
                changed = changed or replaced
                if self._last.get(name, -1) > i:
                    live[name] = array
            for name in step.reads:
                if self._last[name] <= i:
                    live.pop(name, None)
            if changed:
                return i + 1, True
        return steps[-1] + 1, False

    def _show(self, plan: Plan, array: Array, receive: Receive) -> tuple[Array, bool]:
        """Hand the next value over; return it, or what replaces it, and whether it was replaced."""
        index = len(self._seen)
        name, dtype = plan.names[index], plan.dtypes[index]
        self._seen.append(Value(name=name, shape=array.shape, dtype=dtype))
        shown = array.astype(np.float32) if dtype == "bfloat16" else array
        given = receive(index, shown)
        if given is None:
            return array, False
        if given.shape != shown.shape or given.dtype != shown.dtype:
            raise InputError(
                f"{given.dtype.name}{list(given.shape)} cannot stand in the place of '{name}', which is "
                f"{shown.dtype.name}{list(shown.shape)}"
            )
        return given.astype(array.dtype, copy=False), True

    def _graph_of(self, plan: Plan) -> Graph:
        """Return what was shown as a graph, of a node that was cut short the outputs that were."""
        count = len(self._seen)
        ran = [step.operation for step in plan.steps if step.operation.outputs[0] < count]
        if ran and ran[-1].outputs[-1] >= count:
            ran[-1] = dataclasses.replace(ran[-1], outputs=tuple(o for o in ran[-1].outputs if o < count))
        return Graph(
            values=tuple(self._seen),
            operations=tuple(ran),
            inputs={name: i for i, name in enumerate(self._inputs)},
            outputs={name: i for name, i in plan.outputs.items() if i < count},
        )

    def _partial(self) -> Graph | None:
        if self._plan is None or len(self._seen) < len(self._inputs):
            return None
        return self._graph_of(self._plan)

    def _replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        plan = self._plan
        if plan is None:
            raise SessionError("Nothing ran yet; call run(...) first")
        steps = [plan.steps[i] for i in operations]
        writes = [name for step in steps for name in step.writes]
        inside = set(writes)
        reads = dict.fromkeys(name for step in steps for name in step.reads if name not in inside)
        place = {name: i for i, name in enumerate(plan.tensors)}
        feeds = {name: self._typed(plan, place[name], given[place[name]]) for name in reads}
        # what lies in between is fetched, too, so that the same nodes are merged as in the run
        small = sum(step.sizes for step in steps) <= _SEGMENT_BYTES
        asked = [plan.tensors[i] for i in dict.fromkeys(wanted) if plan.tensors[i] in inside]
        fetches = writes if small else asked
        done = {}
        if asked:
            try:
                results = self._call(feeds, fetches, sum(step.constants for step in steps))
            except self._tf.errors.OpError as error:
                raise SessionError(f"Nodes from '{steps[0].operation.name}' on failed: {_reason(error)}") from error
            done = dict(zip(fetches, results, strict=True))
        return {
            i: self._plain(plan, i, done[plan.tensors[i]]) if plan.tensors[i] in done else np.asarray(given[i])
            for i in wanted
        }

    def _typed(self, plan: Plan, index: int, array: Array) -> Array:
        if plan.dtypes[index] != "bfloat16":
            return np.asarray(array)
        return np.asarray(array).astype(self._tf.bfloat16.as_numpy_dtype)

    def _plain(self, plan: Plan, index: int, array: Array) -> Array:
        return array.astype(np.float32) if plan.dtypes[index] == "bfloat16" else array

    def _release(self) -> None:
        self._executors.clear()
        if self._session is not None:
            self._session.close()
        self._session = self._plan = None

    def _close(self) -> None:
        self._release()
        self._definition = None


def _reason(error: Any) -> str:
    """Return what TensorFlow says of a failure, without where in the process it happened."""
    lines = [line.strip() for line in str(error.message).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Graph execution", "Detected at", "Node:"))), "")
