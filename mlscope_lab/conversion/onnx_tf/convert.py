"""Build a TensorFlow function out of an ONNX graph and write it as a SavedModel."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import ModelFiles
from mlscope_lab.conversion.onnx_tf import (
    operators_convolution,
    operators_elementwise,
    operators_linear,
    operators_normalization,
    operators_reduction,
    operators_resize,
    operators_shape,
)
from mlscope_lab.conversion.onnx_tf.graph import Graph, Node, Port, read
from mlscope_lab.conversion.onnx_tf.values import OPERATORS, Context, Value
from mlscope_lab.errors import ConversionError

__all__ = ["SIDECAR", "convert", "convertible"]

# importing them fills OPERATORS
_FAMILIES = (
    operators_convolution, operators_elementwise, operators_linear, operators_normalization, operators_reduction,
    operators_resize, operators_shape,
)  # fmt: skip

SIDECAR = Path("assets.extra") / "mlscope.json"
# Constants let TensorFlow prepare a kernel's weights once, but they lie in the graph, which is copied many times while
# it is saved and loaded and may hold 2 GB at most.
_CONSTANTS_LIMIT = 128_000_000
_FOLD_LIMIT = 256_000_000


def unsupported(graph: Graph) -> dict[str, list[Node]]:
    """Return the nodes that cannot be converted, by operator and reason."""
    missing: dict[str, list[Node]] = {}
    for node in graph.nodes:
        entry = OPERATORS.get(node.op)
        if entry is None:
            missing.setdefault(node.op, []).append(node)
        elif entry.refuse is not None and (reason := entry.refuse(node)):
            missing.setdefault(f"{node.op} with {reason}", []).append(node)
    return missing


def convertible(graph: Graph, file: str) -> None:
    """Raise ConversionError naming every operator without a TensorFlow form, if there is any."""
    missing = unsupported(graph)
    if missing:
        parts = [
            f"{what} ({len(nodes)} node{'s' if len(nodes) > 1 else ''}, first '{nodes[0].name}')"
            for what, nodes in sorted(missing.items())
        ]
        subject = "1 operator has" if len(parts) == 1 else f"{len(parts)} operators have"
        raise ConversionError(
            f"{file}: {subject} no TensorFlow form yet: {', '.join(parts)}. Run the model in ONNX Runtime instead"
        )


def _folded(tf: Any, file: str, node: Node, operands: list[Value | None]) -> tuple[Value, ...] | None:
    """Compute a node whose operands are all constants, or return None if that must wait."""
    arrays = [None if o is None else o.constant for o in operands]
    if any(o is not None and a is None for o, a in zip(operands, arrays, strict=True)) or node.op == "Dropout":
        return None
    if not operands and node.op != "Constant":
        return None
    with tf.init_scope():
        fresh = [None if a is None else Value(constant=a) for a in arrays]
        context = Context(tf=tf, file=file)
        made = OPERATORS[node.op].build(context, node, *fresh)
        results = made if isinstance(made, tuple) else (made,)
        done = [r.constant if r.constant is not None else np.asarray(context.first(r).numpy()) for r in results]
    if sum(a.nbytes for a in done) > _FOLD_LIMIT and node.op not in {"Constant", "ConstantOfShape"}:
        return None
    return tuple(Value(constant=a) for a in done)


def _weight_bytes(graph: Graph) -> int:
    """Return the bytes of all weights, those that Constant and ConstantOfShape nodes make included."""
    total = sum(a.nbytes for a in graph.constants.values())
    for node in graph.nodes:
        if node.op == "Constant" and isinstance(node.attributes.get("value"), np.ndarray):
            total += node.attributes["value"].nbytes
        elif node.op == "ConstantOfShape" and node.inputs[0] in graph.constants:
            total += 4 * int(np.prod(graph.constants[node.inputs[0]], dtype=np.int64))
    return total


def _variables(tf: Any, graph: Graph, file: str, signature: Sequence[Any], holder: Any) -> Callable[[Any], Any]:
    """Put the weights into variables of `holder`; return what reads them, in the order in which a build asks.

    A function cannot create variables while it is traced, and which weights it wants, in which order of axes, is known
    only from tracing. So the graph is built once with placeholders to see what it asks for.
    """
    asked: list[npt.NDArray[Any]] = []

    def ask(array: npt.NDArray[Any]) -> Any:
        asked.append(array)
        return tf.compat.v1.placeholder(array.dtype, array.shape)

    with tf.Graph().as_default():
        feeds = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in signature]
        _build(tf, graph, file, feeds, ask)
    holder.weights = [tf.Variable(array, trainable=False) for array in asked]
    position = {"next": 0}

    def take(array: npt.NDArray[Any]) -> Any:
        variable = holder.weights[position["next"] % len(asked)]
        position["next"] += 1
        if tuple(variable.shape) != array.shape:
            raise ConversionError(f"{file}: the graph asked for its weights in two different orders")
        return variable.read_value()

    return take


def _build(tf: Any, graph: Graph, file: str, feeds: Sequence[Any], store: Any) -> list[Any]:
    """Add the graph's nodes to TensorFlow's current graph; return the outputs in ONNX's order."""
    context = Context(tf=tf, file=file, store=store)
    values: dict[str, Value] = {name: Value(constant=array) for name, array in graph.constants.items()}
    values.update({port.name: Value(first=tensor) for port, tensor in zip(graph.inputs, feeds, strict=True)})
    for node in graph.nodes:
        unknown = [name for name in node.inputs if name and name not in values]
        if unknown:
            raise ConversionError(
                f"{file}: {node.op} '{node.name}' reads '{unknown[0]}', which nothing makes before it"
            )
        operands = [values[name] if name else None for name in node.inputs]
        try:
            results = _folded(tf, file, node, operands)
            if results is None:
                with tf.name_scope(node.scope + "/"):
                    made = OPERATORS[node.op].build(context, node, *operands)
                results = made if isinstance(made, tuple) else (made,)
        except ConversionError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, tf.errors.OpError) as error:
            raise ConversionError(
                f"{file}: {node.op} '{node.name}' has no TensorFlow form as it is: {error}"
            ) from error
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                values[name] = result
                if result.constant is None and result.first is not None and result.first.shape.rank is None:
                    result.first.set_shape([None] * graph.ranks[name] if name in graph.ranks else None)
    return [context.first(values[port.name]) for port in graph.outputs]


def _argument(name: str, index: int, taken: set[str]) -> str:
    """Return a name that TensorFlow takes for an argument."""
    clean = "".join(ch if ch.isascii() and (ch.isalnum() or ch == "_") else "_" for ch in name).lstrip("_0123456789")
    clean = clean or f"input_{index}"
    while clean in taken:
        clean += "_"
    taken.add(clean)
    return clean


def _port_record(port: Port, key: str) -> dict[str, Any]:
    return {
        "name": port.name,
        "key": key,
        "dtype": port.dtype,
        "shape": None if port.shape is None else list(port.shape),
    }


def convert(model: ModelFiles, target: Path, *, example: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Write an ONNX model as a TensorFlow SavedModel.

    The tensors of a convolutional graph are kept with the channels last, weights are constants (variables where they
    exceed what one file may hold), and each TensorFlow operation lies in a name scope that is its ONNX node's name.
    Symbols of the input shapes stay dynamic. Names that TensorFlow does not take are mapped in
    ``assets.extra/mlscope.json``, which also keeps the order of inputs and outputs.

    Parameters
    ----------
    model
        The ONNX file.
    target
        Folder to write; it must not exist or be empty.
    example
        Arrays by input name with which the written model is run once, so that a graph that cannot run is found now.

    Returns
    -------
    dict
        "converter", "tensorflow", "opset", "nodes", "inputs" and "outputs" (records of name, key, dtype, shape).

    Raises
    ------
    ConversionError
        Before anything is written, if operators have no TensorFlow form; or if the graph does not run.
    """
    from mlscope_lab.backends.tensorflow_ import load_tensorflow

    graph = read(model.path)
    file = model.path.name
    convertible(graph, file)
    if target.exists() and any(target.iterdir()):
        raise ConversionError(f"The folder {target.name} is not empty; convert into a new one")
    for port in graph.inputs:
        if port.shape is None:
            raise ConversionError(f"{file}: input '{port.name}' declares no shape; TensorFlow needs the number of axes")
    tf = load_tensorflow()
    taken: set[str] = set()
    keys = [_argument(port.name, i, taken) for i, port in enumerate(graph.inputs)]
    signature = [
        tf.TensorSpec([d if isinstance(d, int) else None for d in port.shape or ()], tf.as_dtype(_tf_dtype(port)), key)
        for port, key in zip(graph.inputs, keys, strict=True)
    ]

    holder = tf.Module(name="onnx")
    store = _variables(tf, graph, file, signature, holder) if _weight_bytes(graph) > _CONSTANTS_LIMIT else tf.constant

    @tf.function(input_signature=signature, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = _build(tf, graph, file, tensors, store)
        return {port.name: tf.identity(out) for port, out in zip(graph.outputs, outputs, strict=True)}

    concrete = serve.get_concrete_function()
    records = {
        "inputs": [_port_record(p, k) for p, k in zip(graph.inputs, keys, strict=True)],
        "outputs": [_port_record(p, p.name) for p in graph.outputs],
    }
    _try(tf, concrete, graph, example, file)
    tf.saved_model.save(holder, str(target), signatures={"serving_default": concrete})
    sidecar = target / SIDECAR
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    scopes = {node.scope: node.name for node in graph.nodes if node.scope != node.name}
    sidecar.write_text(
        json.dumps({"source_digest": model.digest, **records, "scopes": scopes}, indent=1) + "\n", encoding="utf-8"
    )
    return {
        "converter": "mlscope_lab.conversion.onnx_tf",
        "tensorflow": tf.__version__,
        "opset": graph.opset,
        "nodes": len(graph.nodes),
        "operators": dict(Counter(node.op for node in graph.nodes).most_common()),
        **records,
    }


def _tf_dtype(port: Port) -> str:
    return "string" if port.dtype == "str" else port.dtype


def _try(tf: Any, concrete: Any, graph: Graph, example: Mapping[str, npt.NDArray[Any]], file: str) -> None:
    """Run the function once; a shape that cannot work shows only then."""
    missing = [p.name for p in graph.inputs if p.name not in example]
    if missing:
        raise ConversionError(f"{file}: the example has no array for input '{missing[0]}'")
    feeds = [tf.constant(example[p.name], tf.as_dtype(_tf_dtype(p))) for p in graph.inputs]
    try:
        concrete(*feeds)
    except tf.errors.OpError as error:
        raise ConversionError(f"{file}: the converted graph does not run on the example: {error.message}") from error
