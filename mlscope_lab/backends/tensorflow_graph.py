"""A frozen graph: variables made constants, functions inlined; and from its nodes back to where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import numpy.typing as npt

from mlscope_lab.backends.tensorflow_load import Opened
from mlscope_lab.errors import UnsupportedModelError

__all__ = ["BOOKKEEPING", "BRANCHES", "CALLS", "Frozen", "plain_name", "plain_type"]

# nodes that hold or pass tensors and compute nothing
BOOKKEEPING = frozenset({"Const", "HostConst", "NoOp", "Placeholder", "_Arg", "_DeviceArg", "_Retval", "_HostConst",
                         "_DeviceRetval", "_Recv", "_Send", "_HostRecv", "_HostSend"})  # fmt: skip
CALLS = frozenset({"Case", "For", "If", "PartitionedCall", "StatefulPartitionedCall", "StatelessCase", "StatelessIf",
                   "StatelessWhile", "While"})  # fmt: skip
# nodes after which others may run or not, or run again
BRANCHES = CALLS | {"Enter", "Exit", "LoopCond", "Merge", "NextIteration", "RefEnter", "RefMerge", "RefSwitch",
                    "Switch", "_SwitchN"}  # fmt: skip
_HEAVY = ("Conv", "MatMul", "Einsum")
_SOURCES_LIMIT = 64


def plain_name(name: str) -> str:
    """Return a node's name without the calls that were inlined around it.

    Examples
    --------
    >>> plain_name("StatefulPartitionedCall/PartitionedCall_1/model/dense/MatMul")
    'model/dense/MatMul'
    """
    parts = name.split("/")
    while len(parts) > 1 and parts[0].rstrip("_0123456789") in CALLS:
        parts = parts[1:]
    return "/".join(parts)


def plain_type(op: str) -> str:
    """Return an operation's name without the marks of its kernel's library.

    Examples
    --------
    >>> plain_type("_MklNativeFusedConv2D"), plain_type("_FusedMatMul"), plain_type("Relu")
    ('FusedConv2D', 'FusedMatMul', 'Relu')
    """
    for mark in ("_MklNative", "_Mkl", "_"):
        if op.startswith(mark):
            return op.removeprefix(mark)
    return op


def _lost_variables(tf: Any, function: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the values of variables that a function makes by name inside its graph instead of capturing them.

    SavedModels of TensorFlow 2 whose objects cannot be rebuilt are loaded as graphs with such variables; freezing
    passes them over.
    """
    if function.captured_inputs or not hasattr(function, "prune"):
        return {}
    handles = [op for op in function.graph.get_operations() if op.type == "VarHandleOp"]
    if not handles:
        return {}
    resources = function.prune([], [handle.outputs[0] for handle in handles])()
    return {
        handle.name: tf.raw_ops.ReadVariableOp(resource=resource, dtype=handle.get_attr("dtype")).numpy()
        for handle, resource in zip(handles, resources, strict=True)
    }


def _bake(tf: Any, definition: Any, values: dict[str, npt.NDArray[Any]]) -> None:
    """Put values in the place of variables, of what hands these on, and of what reads them."""
    nodes = {node.name: node for node in definition.node}

    def variable_of(node: Any) -> str:
        while node is not None and node.op == "Identity" and node.attr["T"].type == tf.resource.as_datatype_enum:
            node = nodes.get(node.input[0].partition(":")[0])
        return str(node.name) if node is not None and node.op == "VarHandleOp" and node.name in values else ""

    found: dict[str, str] = {}
    for node in definition.node:
        reads = node.op == "ReadVariableOp" or (node.op == "Identity" and node.attr["T"].type)
        if reads and (variable := variable_of(nodes.get(node.input[0].partition(":")[0]))):
            found[node.name] = variable
    for name, variable in found.items():
        node, kept = nodes[name], list(nodes[name].input)
        node.Clear()
        node.name, node.op = name, "Identity"
        node.attr["T"].type = tf.as_dtype(values[variable].dtype).as_datatype_enum
        node.input.extend(kept)
    for name, value in values.items():
        if name in nodes:
            nodes[name].Clear()
            nodes[name].name, nodes[name].op = name, "Const"
            nodes[name].attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
            nodes[name].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _bare(node: Any) -> Any:
    """Return a node without its attributes."""
    return type(node)(name=node.name, op=node.op, input=node.input)


class Frozen:
    """The graph that layers are recorded from.

    Parameters
    ----------
    tf
        The tensorflow module.
    opened
        The model.
    place
        Device on which unplaced nodes run, or None where there is only one.
    lower_control_flow
        Also take branches and loops apart into nodes that pass tensors on or not.

    Attributes
    ----------
    graph
        A tf.Graph of its own.
    size
        Nodes of the graph, those of its functions included.
    feeds, fetches
        Names of tensors in the order of the model's inputs and outputs.
    made_constant
        Whether variables were made constants, so that TensorFlow can prepare what it otherwise computes anew.
    """

    def __init__(self, tf: Any, opened: Opened, place: str | None, *, lower_control_flow: bool = True) -> None:
        definition = opened.graph
        self.made_constant = False
        self.feeds, self.fetches = list(opened.input_keys), list(opened.output_keys)
        if definition is None:
            definition = self._freeze(tf, opened, lower_control_flow)
        self._definition = definition
        self.graph: Any = tf.Graph()
        with self.graph.as_default(), tf.device(place):
            tf.import_graph_def(definition, name="")
        self._nodes = {node.name: node for node in definition.node}
        self._scopes = opened.scopes
        self.size = len(definition.node) + sum(len(f.node_def) for f in definition.library.function)

    def _freeze(self, tf: Any, opened: Opened, lower_control_flow: bool) -> Any:
        """Return the graph of a function, and find its inputs and outputs in it."""
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        try:
            frozen = convert_variables_to_constants_v2(opened.function, lower_control_flow=lower_control_flow)
        except (ValueError, KeyError, tf.errors.OpError) as error:
            raise UnsupportedModelError(
                f"TensorFlow {tf.__version__} cannot freeze this model, from whose frozen graph layers are recorded: "
                f"{error}; record level 'model'"
            ) from error
        definition = frozen.graph.as_graph_def()
        lost = _lost_variables(tf, opened.function)
        _bake(tf, definition, lost)
        self.made_constant = bool(lost) or bool(opened.function.captured_inputs)
        self.feeds = self._feeds(frozen, opened.function, opened.input_keys)
        flat = dict(zip(sorted(opened.output_keys), (t.name for t in frozen.outputs), strict=True))
        self.fetches = [flat[key] for key in opened.output_keys]
        return definition

    @staticmethod
    def _feeds(frozen: Any, function: Any, keys: Collection[str]) -> list[str]:
        """Return the frozen graph's tensors of the arguments.

        They keep the names of the arguments; in signatures of TensorFlow 1 those of the graph that they were cut from,
        but then in the order of the sorted keywords.
        """
        tensors = {str(t.name).partition(":")[0]: str(t.name) for t in frozen.inputs}
        taken = function.structured_input_signature[1]
        named = {key: tensors.get(key, tensors.get(getattr(taken.get(key), "name", None) or "")) for key in keys}
        if None in named.values() or len(set(named.values())) != len(named):
            if len(tensors) != len(keys):
                raise UnsupportedModelError(
                    f"Freezing left {len(tensors)} of the inputs {', '.join(keys)}; record level 'model'"
                )
            named = dict(zip(sorted(keys), tensors.values(), strict=True))
        return [str(named[key]) for key in keys]

    def digest(self, *marks: str) -> str:
        """Return the digest of the graph, and of words that say how it runs."""
        kept = type(self._definition)(versions=self._definition.versions)
        self._definition.ClearField("versions")
        found = hashlib.sha256(self._definition.SerializeToString(deterministic=True))
        self._definition.versions.CopyFrom(kept.versions)
        for mark in marks:
            found.update(mark.encode())
        return f"sha256:{found.hexdigest()}"

    def forget_constants(self) -> None:
        """Let go of the values of constants, and of all that holds them; names and their origins stay."""
        self._definition = self.graph = None
        self._nodes = {name: _bare(node) for name, node in self._nodes.items()}

    def op_of(self, name: str) -> str:
        """Return the operation of a node of the frozen graph, "Unknown" for one that it does not hold."""
        return str(self._nodes[name].op) if name in self._nodes else "Unknown"

    def plain_name(self, name: str) -> str:
        """Return a node's name without the calls that were inlined around it."""
        return plain_name(name)

    def sources(self, name: str, op: str, inputs: Collection[str], executed: Collection[str]) -> list[str]:
        """Return the nodes of the frozen graph that an executed node stands for, in order; itself if it is not fused.

        They are the nodes between it and what it reads, found by walking the frozen graph upwards.
        """
        node = self._nodes.get(name)
        if node is None or plain_type(node.op) == plain_type(op):
            return [name]
        found: list[str] = []
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in found or current not in self._nodes or len(found) > _SOURCES_LIMIT:
                continue
            found.append(current)
            for text in self._nodes[current].input:
                before = text.lstrip("^").partition(":")[0]
                inner = before in self._nodes and self._nodes[before].op not in BOOKKEEPING
                if before not in inputs and before not in executed and inner:
                    waiting.append(before)
        return found[::-1] if len(found) <= _SOURCES_LIMIT else [name]

    def scope(self, name: str, sources: list[str]) -> str:
        """Return the name scope of a node: that of the convolution or product among its sources, else its own.

        It is the Keras layer's path, or the name of the ONNX node that a converted graph was made from.
        """
        heavy = [s for s in sources if s in self._nodes and any(word in self._nodes[s].op for word in _HEAVY)]
        found = self.plain_name(heavy[0] if heavy else name).rpartition("/")[0]
        known, rest = found, ""
        while known and known not in self._scopes:  # what a layer names inside itself stays
            known, _, last = known.rpartition("/")
            rest = f"/{last}{rest}"
        return f"{self._scopes[known]}{rest}" if known else found
