"""Read an ONNX file into plain nodes: names usable as TensorFlow scopes, attributes as Python values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import ConversionError

__all__ = ["Graph", "Node", "Port", "read", "scope_name"]

Dim = int | str | None


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of the graph.

    Attributes
    ----------
    name
        The ONNX name.
    dtype
        numpy's name of the element type.
    shape
        Per axis a length, a symbol or None; None if ONNX does not say the rank.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True, kw_only=True)
class Node:
    """One ONNX node.

    Attributes
    ----------
    op
        Operator, with its domain in front where that is not ONNX's own ("com.microsoft.FusedMatMul").
    name
        The ONNX name, or "<op>_<index>" where there is none.
    scope
        `name` in a form that TensorFlow takes as a name scope; unique in the graph.
    inputs, outputs
        Names of values; "" for an optional one left out.
    attributes
        Numbers, strings, numpy arrays, or lists of them.
    version
        Opset version of the operator's domain.
    """

    op: str
    name: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    version: int

    def ints(self, name: str, default: list[int] | None = None) -> list[int]:
        """Return an attribute that is a list of integers."""
        return [int(v) for v in self.attributes.get(name, default or [])]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph ready for conversion: nodes in topological order.

    Attributes
    ----------
    inputs, outputs
        Ports; initialisers are not among the inputs.
    nodes
        The nodes.
    constants
        Initialisers by name.
    ranks
        Number of axes of values whose shape ONNX inferred.
    opset
        Version of ONNX's own operator set.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, npt.NDArray[Any]]
    ranks: Mapping[str, int] = field(default_factory=dict)
    opset: int = 0


def scope_name(name: str) -> str:
    """Return a name in the characters that TensorFlow allows in scopes.

    Examples
    --------
    >>> scope_name("/layer1/conv:0/Conv")
    'layer1/conv_0/Conv'
    """
    clean = re.sub(r"[^A-Za-z0-9_.\-/]", "_", name)
    parts = [re.sub(r"^[^A-Za-z0-9.]+", "", part) or "unnamed" for part in clean.split("/") if part]
    return "/".join(parts) or "unnamed"


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate.lower() in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate.lower())
    return candidate


def _attribute(attribute: Any) -> Any:
    import onnx

    kind = onnx.AttributeProto
    if attribute.type == kind.TENSOR:
        return onnx.numpy_helper.to_array(attribute.t)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type in {kind.FLOATS, kind.INTS}:
        return list(value)
    if attribute.type == kind.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    return value


def _port(info: Any, path: Path) -> Port:
    import onnx

    if not info.type.HasField("tensor_type"):
        raise ConversionError(f"{path.name}: '{info.name}' is no tensor; sequences and maps have no TensorFlow form")
    tensor = info.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except (KeyError, TypeError, ValueError):
        raise ConversionError(f"{path.name}: '{info.name}' has element type {tensor.elem_type}, unknown here") from None
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else (d.dim_param or None)
            for d in tensor.shape.dim
        )
    return Port(name=info.name, dtype="str" if dtype == "object" else dtype, shape=shape)


def read(path: Path) -> Graph:
    """Read and check an ONNX file, its external data included.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ConversionError
        If the file is not a valid ONNX model, or has inputs that are no tensors.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
        if all(o.type.tensor_type.HasField("shape") for o in model.graph.output):
            onnx.checker.check_model(model)  # which also refuses an output of unknown shape, though runtimes take it
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ConversionError(f"{path.name} is not a valid ONNX model: {error}") from error
    ranks: dict[str, int] = {}
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        inferred = model  # a file over protobuf's 2 GB cannot be inferred in memory; TensorFlow infers for itself
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        if info.type.tensor_type.HasField("shape"):
            ranks[info.name] = len(info.type.tensor_type.shape.dim)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    taken: set[str] = {scope_name(i.name).lower() for i in model.graph.input}
    nodes = []
    for index, proto in enumerate(model.graph.node):
        own = proto.domain in {"", "ai.onnx"}
        name = proto.name or f"{proto.op_type}_{index}"
        nodes.append(
            Node(
                op=proto.op_type if own else f"{proto.domain}.{proto.op_type}",
                name=name,
                scope=_unique(scope_name(name), taken),
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes={a.name: _attribute(a) for a in proto.attribute},
                version=opset if own else versions.get(proto.domain, 1),
            )
        )
    return Graph(
        inputs=tuple(_port(i, path) for i in model.graph.input if i.name not in constants),
        outputs=tuple(_port(o, path) for o in model.graph.output),
        nodes=tuple(nodes),
        constants=constants,
        ranks=ranks,
        opset=opset,
    )
