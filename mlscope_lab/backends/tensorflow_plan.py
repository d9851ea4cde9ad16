"""What of a TensorFlow graph is shown: its visible tensors, the nodes that write them, and what these read.

A tensor is visible if it can be fetched and fed and depends on the model's inputs. What cannot be handed over (texts,
resources, variants, quantised types) and what lies inside loops and branches of TensorFlow 1 runs again with whatever
reads it; so a node's inputs are the visible tensors from which all of them come.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlscope_lab.backends.tensorflow_graph import CALLS, Frozen
from mlscope_lab.trace.graph import Operation
from mlscope_lab.trace.kinds import kind_of

__all__ = ["Plan", "Step", "plan_of", "without_order"]

_ENTER: Final = frozenset({"Enter", "RefEnter"})
_NEXT: Final = frozenset({"NextIteration", "RefNextIteration"})
_EXIT: Final = frozenset({"Exit", "RefExit"})
_MERGE: Final = frozenset({"Merge", "RefMerge"})
_SWITCH: Final = frozenset({"Switch", "RefSwitch", "_SwitchN"})
_KNOWN: Final = frozenset(
    {"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "half", "float16", "bfloat16",
     "float32", "float64", "complex64", "complex128"}
)  # fmt: skip
_WEIGHTS: Final = frozenset({"int8", "uint8", "qint8", "quint8", "int4", "uint4", "float16", "bfloat16", "float32",
                             "float64", "complex64", "complex128"})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Step:
    """A node that writes visible tensors.

    Attributes
    ----------
    operation
        Its record; positions of values are those of the plan.
    reads, writes
        Names of visible tensors, each once.
    sizes
        Bytes of what it writes, as far as shapes are known beforehand.
    constants
        Bytes of the constants that it reads.
    """

    operation: Operation
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sizes: int
    constants: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The visible part of a graph in an order in which it can run.

    Attributes
    ----------
    steps
        In order.
    tensors, names, dtypes
        Of each value: the tensor of the graph, its name and type; the inputs first.
    outputs
        Position in `tensors` of each output that is visible, by name.
    notes
        What is not seen, in words.
    """

    steps: tuple[Step, ...]
    tensors: tuple[str, ...]
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    outputs: dict[str, int]
    notes: tuple[str, ...]


def _ancestors(ops: Sequence[Any]) -> set[Any]:
    """Return nodes and all that they read, data alone."""
    found = set(ops)
    waiting = list(ops)
    while waiting:
        for tensor in waiting.pop().inputs:
            if tensor.op not in found:
                found.add(tensor.op)
                waiting.append(tensor.op)
    return found


def _ordered(ops: Sequence[Any]) -> list[Any]:
    """Return nodes so that each comes after what it reads, else as they stand; a loop's way back is cut."""
    position = {op: i for i, op in enumerate(ops)}
    before = {
        op: {i for i in _predecessors(op) if i in position and not (op.type in _MERGE and i.type in _NEXT)}
        for op in ops
    }
    after: dict[Any, list[Any]] = {}
    for op, sources in before.items():
        for source in sources:
            after.setdefault(source, []).append(op)
    missing = {op: len(sources) for op, sources in before.items()}
    ready = [position[op] for op, count in missing.items() if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        op = ops[heapq.heappop(ready)]
        found.append(op)
        for reader in after.get(op, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, position[reader])
    return found


def without_order(tf: Any, definition: Any) -> Any:
    """Return a graph whose nodes wait for nothing but what they read, those in loops and branches excepted.

    Such edges keep assertions and changes of variables in order, of which a frozen graph has the former alone. In
    segments they would run again what lies far before; so assertions do not run.
    """
    inside: set[str] = set()
    if any(node.op in _ENTER | _SWITCH for node in definition.node):
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(definition, name="")
        inside = {op.name for op, depth in _depths(_ordered(graph.get_operations())).items() if depth}
    for node in definition.node:
        if node.name not in inside and any(name.startswith("^") for name in node.input):
            kept = [name for name in node.input if not name.startswith("^")]
            del node.input[:]
            node.input.extend(kept)
    return definition


def _predecessors(op: Any) -> list[Any]:
    return [t.op for t in op.inputs] + list(op.control_inputs)


def _depths(ordered: Sequence[Any]) -> dict[Any, int]:
    """Return in how many loops and branches of TensorFlow 1 each node lies."""
    depths: dict[Any, int] = {}
    for op in ordered:
        depth = max((depths.get(i, 0) for i in _predecessors(op)), default=0)
        loop = any(t.op.type in _ENTER | _NEXT for t in op.inputs) or any(t.op.type == "LoopCond" for t in op.inputs)
        if op.type in _ENTER or (op.type in _SWITCH and not loop):
            depth += 1
        elif op.type in _EXIT or (op.type in _MERGE and not loop):
            depth = max(depth - 1, 0)
        depths[op] = depth
    return depths


def _kinds(op: Any) -> tuple[str, ...]:
    """Return what a node computes, with what was fused into it."""
    kinds = [kind_of(op.type)]
    attrs = op.node_def.attr
    if "num_side_inputs" in attrs and attrs["num_side_inputs"].i:
        kinds.append("addition")
    for text in attrs["fused_ops"].list.s if "fused_ops" in attrs else ():
        fused = text.decode()
        kinds.append("activation" if fused.startswith("Gelu") else kind_of(fused))
    mode = attrs["activation_mode"].s.decode() if "activation_mode" in attrs else "Identity"
    if mode not in {"", "Identity"}:
        kinds.append(kind_of(mode))
    return tuple(kinds)


def _bytes(tensor: Any, unknown: int) -> int:
    count = tensor.shape.num_elements()
    return unknown if count is None else int(count) * max(int(tensor.dtype.size or 1), 1)


class _Walk:
    """Finds for nodes the visible tensors and the constants behind what they read."""

    def __init__(self, visible: set[str], moving: set[Any], inside: set[Any]) -> None:
        self._visible, self._moving, self._inside = visible, moving, inside

    def behind(self, op: Any) -> tuple[list[str], list[Any], bool]:
        """Return visible tensors as often as they are arguments, constant ones, and whether a loop lies between."""
        reads: list[str] = []
        constants: dict[str, Any] = {}
        seen: set[Any] = set()

        def visit(tensor: Any) -> None:
            if tensor.name in self._visible:
                reads.append(tensor.name)
            elif tensor.op not in self._moving:
                constants[tensor.name] = tensor
            elif tensor.op not in seen:
                enter(tensor.op)

        def enter(hidden: Any) -> None:
            seen.add(hidden)
            for tensor in hidden.inputs:
                visit(tensor)
            for other in hidden.control_inputs if hidden in self._inside else ():
                if other in self._moving and other not in seen:
                    enter(other)

        enter(op)
        return reads, list(constants.values()), any(hidden.type in CALLS for hidden in seen - {op})


def plan_of(
    graph: Any, feeds: Sequence[str], fetches: Sequence[str], inputs: Sequence[str], outputs: Sequence[str],
    frozen: Frozen,
) -> Plan:  # fmt: skip
    """Plan a graph.

    Parameters
    ----------
    graph
        The tf.Graph that runs.
    feeds, fetches
        Its tensors of the model's inputs and outputs.
    inputs, outputs
        The session's names of them.
    frozen
        The graph before it was optimised, for the names of things.
    """
    fed = [graph.get_tensor_by_name(name) for name in feeds]
    wanted = [graph.get_tensor_by_name(name) for name in fetches]
    used = _ancestors([t.op for t in wanted])
    everything = _ordered(graph.get_operations())
    ordered = [op for op in everything if op in used]
    depths = _depths(everything)
    moving = {t.op for t in fed}
    for op in ordered:
        random = not op.inputs and op.op_def.is_stateful and op.type not in {"Placeholder", "PlaceholderWithDefault"}
        before = _predecessors(op) if depths[op] else [t.op for t in op.inputs]
        if random or any(i in moving for i in before):
            moving.add(op)
    moving |= {t.op for t in wanted}  # an answer that depends on nothing is one still
    visible = {
        t.name
        for op in ordered
        if op in moving and not depths[op]
        for t in op.outputs
        if t.dtype.name in _KNOWN and not (op.type in _MERGE and t is not op.outputs[0])
    } | set(feeds)
    walk = _Walk(visible, moving, {op for op in ordered if depths[op]})
    executed = {op.name for op in everything}
    tensors, dtypes = list(feeds), [_dtype(t.dtype) for t in fed]
    names = list(inputs)
    place = {name: i for i, name in enumerate(tensors)}
    taken, labels = set(names), set[str]()
    steps = []
    for op in ordered:
        writes = [t for t in op.outputs if t.name in visible and t.name not in place]
        if not writes or op not in moving:
            continue
        reads, constants, control = walk.behind(op)
        label = _free(frozen.plain_name(op.name), labels)
        labels.add(label)
        for t in writes:
            name = _free(label if t.value_index == 0 else f"{label}:{t.value_index}", taken)
            taken.add(name)
            place[t.name] = len(tensors)
            tensors.append(t.name)
            names.append(name)
            dtypes.append(_dtype(t.dtype))
        largest = max([_bytes(graph.get_tensor_by_name(n), 0) for n in reads], default=0)
        sources = frozen.sources(op.name, op.type, {t.op.name for t in op.inputs}, executed)
        weights = [t for t in constants if t.dtype.name in _WEIGHTS]
        steps.append(
            Step(
                operation=Operation(
                    name=label,
                    type=op.type,
                    kinds=("control",) if control else _kinds(op),
                    inputs=tuple(place[name] for name in reads),
                    outputs=tuple(place[t.name] for t in writes),
                    scope="" if op.name.startswith("Func/") else frozen.scope(op.name, sources),
                    sources=tuple(frozen.plain_name(s) for s in sources) if len(sources) > 1 else (),
                    parameter_count=sum(int(t.shape.num_elements() or 0) for t in weights),
                ),
                reads=tuple(dict.fromkeys(reads)),
                writes=tuple(t.name for t in writes),
                sizes=sum(_bytes(t, largest) for t in writes),
                constants=sum(_bytes(t, 0) for t in constants),
            )
        )
    return Plan(
        steps=tuple(steps),
        tensors=tuple(tensors),
        names=tuple(names),
        dtypes=tuple(dtypes),
        outputs={name: place[t] for name, t in zip(outputs, fetches, strict=True) if t in place},
        notes=_notes(ordered, depths, moving, outputs, fetches, place),
    )


def _notes(
    ordered: Sequence[Any], depths: dict[Any, int], moving: set[Any], outputs: Sequence[str], fetches: Sequence[str],
    place: dict[str, int],
) -> tuple[str, ...]:  # fmt: skip
    notes = []
    inside = sum(1 for op in ordered if depths[op])
    if inside:
        notes.append(f"{inside} nodes lie inside loops and branches of TensorFlow 1, which are not seen into")
    calls = [op.name for op in ordered if op in moving and op.type.removeprefix("Stateless") in {"If", "While", "Case"}]
    if calls:
        notes.append(f"Loops and branches are one operation each, not seen into: {', '.join(calls[:5])}")
    hidden = [op for op in ordered if op in moving and any(t.dtype.name not in _KNOWN for t in op.outputs)]
    if hidden:
        kinds = sorted({t.dtype.name for op in hidden for t in op.outputs if t.dtype.name not in _KNOWN})
        notes.append(f"Values of type {', '.join(kinds)} are not shown ({len(hidden)} nodes)")
    lost = [name for name, tensor in zip(outputs, fetches, strict=True) if tensor not in place]
    if lost:
        notes.append(f"Outputs that are no numbers are not shown: {', '.join(lost)}")
    return tuple(notes)


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: itself, else with #2 and on."""
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}#{count}"
    return free


def _dtype(dtype: Any) -> str:
    if dtype.name == "string":
        return "str"
    return "bfloat16" if dtype.name == "bfloat16" else np.dtype(dtype.as_numpy_dtype).name
