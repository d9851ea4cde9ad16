"""Faults in copies of ONNX graphs: one node is changed, or nodes are put behind it; their names are the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = [
    "KINDS",
    "READ_VALUES",
    "Planted",
    "RejectedError",
    "flip_exponent",
    "overflow_scale",
    "plant",
    "scrubbed",
    "values_of",
    "without_overflow",
]

Array = npt.NDArray[Any]
KINDS = ("exponent bit", "swapped pad", "wrong epsilon", "other activation", "fp16 overflow", "swapped axes",
         "dropped bias")  # fmt: skip
READ_VALUES = frozenset({"fp16 overflow", "swapped axes"})
"""Kinds whose planting depends on the values and their shapes."""


class RejectedError(Exception):
    """This draw is no fault; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A model with a fault in it.

    Attributes
    ----------
    kind
        One of `KINDS`.
    detail
        What was changed, in words.
    changed
        Names of the nodes, or of the torch modules, whose computation was changed or added; first the one to blame.
    model
        An ONNX model or a torch module.
    """

    kind: str
    detail: str
    changed: tuple[str, ...]
    model: Any


def values_of(model: ModelProto, x: Array) -> dict[str, Array]:
    """Return every value of a graph on an input, computed node by node in ONNX Runtime."""
    import onnxruntime

    copy = ModelProto()
    copy.CopyFrom(model)
    known = {o.name for o in copy.graph.output}
    names = [o for n in copy.graph.node for o in n.output]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    asked = [o.name for o in session.get_outputs()]
    return dict(zip(asked, session.run(asked, {session.get_inputs()[0].name: x}), strict=True))


class _Graph:
    """A copy of a model that is being changed."""

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.nodes = self.model.graph.node
        self.constants = {i.name: i for i in self.model.graph.initializer}

    def pick(self, random: np.random.Generator, what: str, test: Callable[[NodeProto], bool]) -> NodeProto:
        found = [n for n in self.nodes if test(n)]
        if not found:
            raise RejectedError(f"the graph has no {what}")
        return found[int(random.integers(len(found)))]

    def constant(self, name: str) -> Array | None:
        return numpy_helper.to_array(self.constants[name]).copy() if name in self.constants else None

    def replace_constant(self, node: NodeProto, position: int, array: Array) -> None:
        """Give a node a constant of its own in place of another."""
        name = f"{node.input[position]}_planted"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[position] = name

    def append(self, after: NodeProto, made: list[NodeProto], output: str) -> None:
        """Put nodes behind one; `output` is their last value, which its readers get in place of its own."""
        value = after.output[0]
        index = next(i for i, n in enumerate(self.nodes) if n.name == after.name)
        inner = f"{value}_before"
        after.output[0] = inner
        for node in made:
            for i, name in enumerate(node.input):
                if name == value:
                    node.input[i] = inner
            for i, name in enumerate(node.output):
                if name == output:
                    node.output[i] = value
        for offset, node in enumerate(made):
            self.nodes.insert(index + 1 + offset, node)


def _attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _set(node: NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def flip_exponent(weight: Array, random: np.random.Generator) -> tuple[Array, str]:
    """Return float32 weights with one exponent bit of one element flipped, and what that was."""
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1).copy()
    index, bit = int(random.integers(flat.size)), int(random.integers(23, 31))
    before = float(flat[index])
    flat.view(np.uint32)[index] ^= np.uint32(1 << bit)
    if not np.isfinite(flat[index]):
        raise RejectedError("the weight becomes Inf or NaN")
    return flat.reshape(weight.shape), f"bit {bit} of element {index}: {before:.4g} -> {float(flat[index]):.4g}"


def _exponent(g: _Graph, random: np.random.Generator, _: Any) -> tuple[str, tuple[str, ...]]:
    node = g.pick(random, "weight", lambda n: n.op_type in ("Conv", "Gemm") and n.input[1] in g.constants)
    weight, text = flip_exponent(g.constant(node.input[1]), random)
    g.replace_constant(node, 1, weight)
    return f"{node.op_type}: {text}", (node.name,)


def _pad(g: _Graph, random: np.random.Generator, _: Any) -> tuple[str, tuple[str, ...]]:
    node = g.pick(random, "pad", lambda n: n.op_type in ("Conv", "MaxPool") and any(_attribute(n, "pads", ())))
    top, left, bottom, right = old = list(_attribute(node, "pads"))
    if (top, left) != (bottom, right):
        new = [bottom, right, top, left]
    else:  # the window sees the picture shifted by one pixel
        step = int(random.choice([-1, 1]))
        new = [top + step, left + step, bottom - step, right - step]
        if random.integers(2):
            new[0], new[2] = top, bottom
    _set(node, "pads", new)
    return f"{node.op_type}: pads {old} -> {new}", (node.name,)


def _epsilon(g: _Graph, random: np.random.Generator, _: Any) -> tuple[str, tuple[str, ...]]:
    node = g.pick(random, "normalisation", lambda n: n.op_type == "BatchNormalization")
    old, new = _attribute(node, "epsilon", 1e-5), float(random.choice([1e-3, 1e-2, 1e-1]))
    _set(node, "epsilon", new)
    return f"BatchNormalization: epsilon {old:.3g} -> {new:.3g}", (node.name,)


def _activation(g: _Graph, random: np.random.Generator, _: Any) -> tuple[str, tuple[str, ...]]:
    node = g.pick(random, "activation", lambda n: n.op_type in ("Relu", "Clip"))
    old = node.op_type
    new = str(random.choice(["LeakyRelu", "Elu", "Silu", *(["Relu"] if old == "Clip" else [])]))
    del node.input[1:]
    if new != "Silu":
        node.op_type = new
        if new == "LeakyRelu":
            _set(node, "alpha", 0.1)
        return f"{old} -> {new}", (node.name,)
    node.op_type = "Sigmoid"
    x, y = node.input[0], node.output[0]
    times = helper.make_node("Mul", [f"{y}_gate", x], [y], name=f"{node.name}_times")
    node.output[0] = f"{y}_gate"
    index = next(i for i, n in enumerate(g.nodes) if n.name == node.name)
    g.nodes.insert(index + 1, times)
    return f"{old} -> Silu", (times.name, node.name)


def overflow_scale(value: Array, random: np.random.Generator) -> float:
    """Return a power of two that takes the largest thousandth to tenth of a value beyond float16's 65504."""
    sizes = np.abs(value[np.isfinite(value)])
    limit = float(np.quantile(sizes, 1 - 10 ** -random.uniform(1, 3))) if sizes.size else 0.0
    if limit < 65504 / 2**15:
        raise RejectedError("the layer's values are too small to overflow")
    return float(2.0 ** np.ceil(np.log2(65520 / limit)))


def _overflow(g: _Graph, random: np.random.Generator, values: Mapping[str, Array]) -> tuple[str, tuple[str, ...]]:
    layers = ("Conv", "BatchNormalization", "Relu", "Clip", "Sum", "Add", "Concat", "MaxPool")
    node = g.pick(random, "layer", lambda n: n.op_type in layers)
    value, base = node.output[0], node.name
    scale = overflow_scale(values[value], random)
    for name, factor, kind in (("up", scale, np.float16), ("down", 1 / scale, np.float32)):
        g.model.graph.initializer.append(numpy_helper.from_array(np.array([factor], kind), f"{base}_{name}"))
    made = [
        helper.make_node("Cast", [value], [f"{base}_half"], name=f"{base}_to_half", to=TensorProto.FLOAT16),
        helper.make_node("Mul", [f"{base}_half", f"{base}_up"], [f"{base}_large"], name=f"{base}_times"),
        helper.make_node("Cast", [f"{base}_large"], [f"{base}_wide"], name=f"{base}_to_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{base}_wide", f"{base}_down"], [f"{base}_out"], name=f"{base}_back"),
    ]
    names = tuple(n.name for n in made)
    g.append(node, made, f"{base}_out")
    return f"behind {node.op_type}: times {scale:.0f} in float16", (names[1], names[0], names[2], names[3])


def without_overflow(model: ModelProto, changed: tuple[str, ...]) -> ModelProto:
    """Return a graph with an overflow planted as it would be without: rounded to float16, but times one."""
    copy = ModelProto()
    copy.CopyFrom(model)
    factors = {n.input[1] for n in copy.graph.node if n.name in changed and n.op_type == "Mul"}
    for item in copy.graph.initializer:
        if item.name in factors:
            item.CopyFrom(numpy_helper.from_array(np.ones_like(numpy_helper.to_array(item)), item.name))
    return copy


def _axes(g: _Graph, random: np.random.Generator, values: Mapping[str, Array]) -> tuple[str, tuple[str, ...]]:
    def shape(name: str) -> tuple[int, ...]:
        return values[name].shape if name in values else ()

    def square(sizes: tuple[int, ...]) -> bool:
        return len(sizes) == 4 and sizes[2] == sizes[3] > 1

    ways: dict[str, Callable[[NodeProto], bool]] = {
        "height and width": lambda n: square(shape(n.output[0])),
        "order of parts": lambda n: n.op_type == "Concat" and len({shape(i) for i in n.input}) == 1 < len(n.input),
        "permutation": lambda n: n.op_type == "Transpose",
    }  # fmt: skip
    possible = [w for w, test in ways.items() if any(test(n) for n in g.nodes)]
    way = str(random.choice(possible))
    node = g.pick(random, way, ways[way])
    if way == "order of parts":
        parts = list(node.input)[::-1]
        del node.input[:]
        node.input.extend(parts)
        return "Concat: parts in reverse order", (node.name,)
    if way == "permutation":
        old = list(_attribute(node, "perm"))
        sizes = shape(node.output[0])
        # axes of the result that have equal lengths, as height and width
        new = [*old[:-2], old[-1], old[-2]] if sizes[-1] == sizes[-2] else None
        if new is None:
            raise RejectedError("the permutation has no axes of equal lengths")
        _set(node, "perm", new)
        return f"Transpose: perm {old} -> {new}", (node.name,)
    made = helper.make_node("Transpose", [node.output[0]], [f"{node.name}_out"], name=f"{node.name}_turn",
                            perm=[0, 1, 3, 2])  # fmt: skip
    g.append(node, [made], f"{node.name}_out")
    return f"behind {node.op_type}: height and width swapped", (made.name,)


def _bias(g: _Graph, random: np.random.Generator, _: Any) -> tuple[str, tuple[str, ...]]:
    def has_bias(n: NodeProto) -> bool:
        return (n.op_type in ("Conv", "Gemm") and len(n.input) == 3) or n.op_type == "BatchNormalization"

    node = g.pick(random, "bias", has_bias)
    if node.op_type in ("BatchNormalization", "Gemm"):  # whose bias could not be left out before opset 11
        g.replace_constant(node, 2, np.zeros_like(g.constant(node.input[2])))
    else:
        del node.input[2:]
    return f"{node.op_type}: no bias", (node.name,)


_PLANTERS: dict[str, Callable[[_Graph, np.random.Generator, Mapping[str, Array]], tuple[str, tuple[str, ...]]]] = {
    "exponent bit": _exponent, "swapped pad": _pad, "wrong epsilon": _epsilon, "other activation": _activation,
    "fp16 overflow": _overflow, "swapped axes": _axes, "dropped bias": _bias,
}  # fmt: skip


def plant(model: ModelProto, kind: str, random: np.random.Generator, values: Mapping[str, Array]) -> Planted:
    """Return a copy of a graph with one fault.

    Parameters
    ----------
    model
        Without a fault; every node is named.
    kind
        One of `KINDS`.
    random
        What to change, and how.
    values
        As `values_of` returns them, for this model and the input that will be compared.

    Raises
    ------
    RejectedError
        If there is nothing of that kind to change, or the change would be none.
    """
    graph = _Graph(model)
    detail, changed = _PLANTERS[kind](graph, random, values)
    read = {i for n in graph.nodes for i in n.input}
    kept = [i for i in graph.model.graph.initializer if i.name in read]
    del graph.model.graph.initializer[:]
    graph.model.graph.initializer.extend(kept)
    del graph.model.graph.value_info[:]
    onnx.checker.check_model(graph.model)
    return Planted(kind=kind, detail=detail, changed=changed, model=graph.model)


def scrubbed(planted: Planted, random: np.random.Generator) -> Planted:
    """Return the same fault with random names of nodes and values, so that equal names give nothing away."""
    model = ModelProto()
    model.CopyFrom(planted.model)
    graph = model.graph
    fixed = {v.name for v in (*graph.input, *graph.output)}
    names: dict[str, str] = {name: name for name in fixed}

    def fresh(letter: str) -> str:
        return f"{letter}{random.integers(1 << 48):012x}"

    def value(name: str) -> str:
        if name and name not in names:
            names[name] = fresh("v")
        return names.get(name, "")

    nodes = {node.name: fresh("n") for node in graph.node}
    for node in graph.node:
        node.name = nodes[node.name]
        for field in (node.input, node.output):
            replaced = [value(n) for n in field]
            del field[:]
            field.extend(replaced)
        node.doc_string = ""
        del node.metadata_props[:]
    for item in graph.initializer:
        item.name = value(item.name)
    graph.name = "graph"
    return replace(planted, model=model, changed=tuple(nodes[n] for n in planted.changed))
