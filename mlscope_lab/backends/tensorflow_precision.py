"""Other floating-point types for a TensorFlow model: its frozen graph, rewritten.

Rewriting changes the type of every float32 constant, attribute and argument; what has no kernel in the new type, or is
float32 by definition, stays float32 between casts and is named. Inputs and outputs keep their types. Models of another
type than float32 are rewritten likewise.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np

from mlscope_lab.backends.tensorflow_graph import Frozen
from mlscope_lab.backends.tensorflow_load import Opened
from mlscope_lab.errors import UnsupportedModelError

__all__ = ["FLOATS", "cast_model"]

FLOATS: Final = ("float64", "float32", "float16", "bfloat16")


class _Types:
    """What the operations of this TensorFlow can take, on a CPU.

    Parameters
    ----------
    tf
        The tensorflow module.
    source, target
        The type that is to go, and that which takes its place.
    """

    def __init__(self, tf: Any, source: str, target: str) -> None:
        from tensorflow.python.framework import op_def_registry

        self.source, self.target = tf.as_dtype(source).as_datatype_enum, tf.as_dtype(target).as_datatype_enum
        self._definition = op_def_registry.get
        self._kernels: dict[str, list[dict[str, frozenset[int]]]] = {}

    def definition(self, op: str) -> Any:
        """Return the registered definition of an operation, None for a function's name."""
        return self._definition(op)

    def kept(self, node: Any) -> Literal[True] | frozenset[str]:
        """Return the type attributes of a node that stay as they are; True if the whole node does."""
        definition = self.definition(node.op)
        if definition is None:
            return frozenset()
        mine = {a.name for a in definition.attr if a.type == "type" and node.attr[a.name].type == self.source}
        stay = frozenset(
            a.name
            for a in definition.attr
            if a.name in mine and a.allowed_values.list.type and self.target not in a.allowed_values.list.type
        )
        types = {a.name: node.attr[a.name].type for a in definition.attr if a.type == "type"}
        # batch normalisation has kernels of half precision whose statistics are float32
        for also in (frozenset[str](), *(frozenset({name}) for name in sorted(mine - stay, reverse=True))):
            changed = mine - stay - also
            wanted = {name: self.target if name in changed else value for name, value in types.items()}
            if changed and self._registered(node.op, wanted):
                return stay | also
        return True if mine else frozenset()

    def _registered(self, op: str, types: Mapping[str, int]) -> bool:
        if op not in self._kernels:
            from tensorflow.python.framework import kernels

            self._kernels[op] = [
                {c.name: frozenset(c.allowed_values.list.type) for c in kernel.constraint}
                for kernel in kernels.get_registered_kernels_for_op(op).kernel
                if kernel.device_type == "CPU"
            ]
        found = self._kernels[op]
        # what has no kernel at all is rewritten before it runs, as functions and loops are
        return not found or any(all(types.get(n, 0) in t for n, t in k.items() if n in types) for k in found)


def _slots(args: Iterable[Any], node: Any, types: _Types, kept: Literal[True] | frozenset[str]) -> list[bool]:
    """Tell of each input (or output) of a node whether it is of the source type and stays so."""
    found: list[bool] = []
    for arg in args:
        if arg.type_list_attr:
            found += [kept is True and t == types.source for t in node.attr[arg.type_list_attr].list.type]
            continue
        if arg.type_attr:
            was = node.attr[arg.type_attr].type == types.source
            stays = was and (kept is True or arg.type_attr in kept)
        else:
            stays = arg.type == types.source
        found += [stays] * (int(node.attr[arg.number_attr].i) if arg.number_attr else 1)
    return found


def _retype(tf: Any, node: Any, types: _Types, kept: frozenset[str]) -> int:
    """Change the types of a node; return how many finite constants became infinite."""
    lost = 0
    if node.op == "Const" and node.attr["dtype"].type == types.source:
        values = tf.make_ndarray(node.attr["value"].tensor)
        with np.errstate(over="ignore"):
            made = values.astype(tf.as_dtype(types.target).as_numpy_dtype)
        lost = int(np.sum(np.isfinite(values) & ~np.isfinite(made.astype(np.float64))))
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(made, dtype=tf.as_dtype(types.target)))
    for name, attr in node.attr.items():
        if name in kept:
            continue
        if attr.type == types.source:
            attr.type = types.target
        for i, value in enumerate(attr.list.type):
            if value == types.source:
                attr.list.type[i] = types.target
    return lost


def _cast_node(made: Any, name: str, source: str, before: int, after: int) -> str:
    node = made.node.add()
    node.name, node.op = name, "Cast"
    node.input.append(source)
    node.attr["SrcT"].type, node.attr["DstT"].type = before, after
    return name


def _normal(text: str) -> tuple[str, int]:
    name, _, slot = text.partition(":")
    return name, int(slot) if slot else 0


class _Rewriting:
    """Rewrites the graph of a model; `run` returns it with the names of its outputs."""

    def __init__(self, tf: Any, types: _Types, frozen: Frozen) -> None:
        self._tf, self._types, self._frozen = tf, types, frozen
        self.still: Counter[str] = Counter()
        self.lost = 0

    def run(self) -> tuple[Any, list[str]]:
        """Rewrite."""
        definition = self._frozen.graph.as_graph_def()
        made = type(definition)(versions=definition.versions)
        types, moved = self._types, dict[tuple[str, int], str]()
        feeds = {name.partition(":")[0] for name in self._frozen.feeds}
        for node in definition.node:
            if node.op == "FusedBatchNormV3" and types.target == self._tf.float64.as_datatype_enum:
                moved |= self._unfused(made, node)
                continue
            kept: Literal[True] | frozenset[str] = True if node.name in feeds else types.kept(node)
            record = types.definition(node.op)
            inputs = _slots(record.input_arg, node, types, kept) if record is not None else []
            outputs = _slots(record.output_arg, node, types, kept) if record is not None else []
            copied = made.node.add()
            copied.CopyFrom(node)
            if kept is not True:
                self.lost += _retype(self._tf, copied, types, kept)
            for i, stays in enumerate(inputs):
                if stays:
                    name = f"{node.name}/as_before_{i}"
                    copied.input[i] = _cast_node(made, name, node.input[i], types.target, types.source)
            for i, stays in enumerate(outputs):
                if stays:
                    name = f"{node.name}/cast_{i}"
                    moved[node.name, i] = _cast_node(made, name, f"{node.name}:{i}", types.source, types.target)
            if kept is True and node.name not in feeds and (any(inputs) or any(outputs)):
                self.still[node.op] += 1
        own = set(moved.values())
        for node in made.node:
            for i, text in enumerate(node.input):
                if not text.startswith("^") and node.name not in own and _normal(text) in moved:
                    node.input[i] = moved[_normal(text)]
        made.library.CopyFrom(definition.library)
        for function in made.library.function:
            self._function(function)
        fetches = []
        for i, name in enumerate(self._frozen.fetches):
            tensor = self._frozen.graph.get_tensor_by_name(name)
            source = moved.get(_normal(name), name.removesuffix(":0"))
            if tensor.dtype.as_datatype_enum == types.source:
                source = _cast_node(made, f"output_{i}_as_before", source, types.target, types.source)
            fetches.append(source if ":" in source else f"{source}:0")
        return made, fetches

    def _function(self, function: Any) -> None:
        types = self._types
        for arg in (*function.signature.input_arg, *function.signature.output_arg):
            if arg.type == types.source:
                arg.type = types.target
        for node in function.node_def:
            kept, record = types.kept(node), types.definition(node.op)
            slots = [] if record is None else [
                *_slots(record.input_arg, node, types, kept), *_slots(record.output_arg, node, types, kept)
            ]  # fmt: skip
            if any(slots):
                raise UnsupportedModelError(
                    f"TensorFlow has no '{node.op}' in {self._tf.as_dtype(types.target).name} on a CPU, and "
                    f"'{node.name}' lies inside a loop or branch, where it cannot keep its type between casts"
                )
            self.lost += _retype(self._tf, node, types, frozenset())

    def _unfused(self, made: Any, node: Any) -> dict[tuple[str, int], str]:
        """Write batch normalisation as products and sums, for it has no kernel in double precision."""
        if node.attr["is_training"].b or node.attr["data_format"].s not in {b"", b"NHWC"}:
            raise UnsupportedModelError(f"'{node.name}' normalises by its batch, which TensorFlow cannot in float64")
        x, scale, offset, mean, variance = list(node.input)[:5]
        target, np_type = self._types.target, np.float64

        def add(name: str, op: str, *inputs: str) -> str:
            new = made.node.add()
            new.name, new.op = f"{node.name}/{name}", op
            new.input.extend(inputs)
            new.attr["T"].type = target
            return str(new.name)

        epsilon = made.node.add()
        epsilon.name, epsilon.op = f"{node.name}/epsilon", "Const"
        epsilon.attr["dtype"].type = target
        value = np.asarray(node.attr["epsilon"].f, np_type)
        epsilon.attr["value"].tensor.CopyFrom(self._tf.make_tensor_proto(value))
        factor = add("factor", "Mul", scale, add("rsqrt", "Rsqrt", add("stable", "AddV2", variance, epsilon.name)))
        centred = add("centred", "Sub", x, mean)
        return {(node.name, 0): add("normal", "AddV2", add("scaled", "Mul", centred, factor), offset)}


def cast_model(tf: Any, opened: Opened, precision: str) -> Opened:
    """Return a model whose arithmetic and weights are of another type.

    Parameters
    ----------
    tf
        The tensorflow module.
    opened
        The model.
    precision
        One of `FLOATS`.

    Raises
    ------
    UnsupportedModelError
        If nothing in the model is float32 (or of the type of its weights), or it cannot be rewritten.
    """
    frozen = Frozen(tf, opened, None, lower_control_flow=False)
    source = opened.precision if opened.precision in FLOATS else "float32"
    types = _Types(tf, source, precision)
    if not any(a.type == types.source for node in frozen.graph.as_graph_def().node for a in node.attr.values()):
        raise UnsupportedModelError(f"Nothing in this model is {source} (its weights are {opened.precision})")
    rewriting = _Rewriting(tf, types, frozen)
    definition, fetches = rewriting.run()
    notes = [f"{precision} by rewriting the frozen graph's types; inputs and outputs are cast"]
    if rewriting.still:
        listed = ", ".join(f"{op} ({count})" for op, count in sorted(rewriting.still.items()))
        notes.append(f"TensorFlow has no {precision} kernel of, and computes in {source}: {listed}")
    if rewriting.lost:
        notes.append(f"{rewriting.lost} finite constants are infinite in {precision}")
    return dataclasses.replace(
        opened, function=None, keep=None, graph=definition, input_keys=tuple(frozen.feeds),
        output_keys=tuple(fetches), precision=precision, notes=(*opened.notes, *notes),
    )  # fmt: skip
