"""What the protobuf of an ONNX graph says of one node, tensor or type."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.static.onnx_values import MAX_ELEMENTS
from mlscope_lab.static.records import TensorShape

__all__ = [
    "DEFAULT_DOMAINS", "LIKE", "attributes_of", "bytes_of", "bytes_of_tensor", "constant_of", "described",
    "element_type", "elements_of", "is_sound", "known_shape", "operator_of", "retyped", "scope_of", "shape_of",
    "standing_in", "value_of",
]  # fmt: skip

DEFAULT_DOMAINS = ("", "ai.onnx")
_SCOPES = "pkg.torch.onnx.name_scopes"


def operator_of(node: Any) -> str:
    """Return a node's operator, with its domain before it where that is not ``ai.onnx``."""
    return node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"


def attributes_of(node: Any) -> dict[str, Any]:
    """Return a node's attributes but for graphs; small tensors as arrays, None for one whose value is not there."""
    import onnx

    found = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            found[attribute.name] = (
                value_of(attribute.t) if math.prod(attribute.t.dims) <= MAX_ELEMENTS else attribute.t
            )
        elif attribute.type not in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
            found[attribute.name] = onnx.helper.get_attribute_value(attribute)
    return found


def constant_of(attributes: Mapping[str, Any]) -> list[npt.NDArray[Any]] | None:
    """Return the value of a ``Constant`` node, None where it is large or no tensor of numbers."""
    for key in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if key in attributes:
            value = attributes[key]
            if value is None or hasattr(value, "dims"):
                return None
            dtype = np.float32 if "float" in key else np.int64 if "int" in key else None
            return [np.asarray(value, dtype=dtype)]
    return None


def value_of(tensor: Any) -> npt.NDArray[Any] | None:
    """Return the value of a small tensor that lies in the model itself."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > MAX_ELEMENTS:
        return None
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    try:
        value: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError):
        return None
    return value


def shape_of(kind: Any) -> tuple[int, ...] | None:
    """Return the lengths of a tensor, -1 for one not known, or None for no known rank."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.tensor_type.shape.dim)


def known_shape(kind: Any) -> tuple[int, ...] | None:
    """Return the lengths of a tensor, None if any is not known."""
    shape = shape_of(kind)
    return None if shape is None or -1 in shape else shape


def retyped(kind: Any, shape: Sequence[int]) -> Any:
    """Return a type of the same elements and another shape."""
    import onnx

    return onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, [n if n >= 0 else None for n in shape])


def elements_of(kind: Any) -> int:
    """Return the number of elements, 0 where it is not known."""
    shape = known_shape(kind)
    return 0 if shape is None else math.prod(shape)


def _bits(elem_type: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(elem_type)
    if name in {"UINT4", "INT4", "FLOAT4E2M1"}:
        return 4
    if name in {"UINT2", "INT2"}:
        return 2
    if name in {"STRING", "UNDEFINED"}:
        return 0
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize) * 8


def bytes_of(kind: Any) -> int:
    """Return the bytes of a tensor of this type, 0 where they are not known."""
    if kind is None or not kind.HasField("tensor_type"):
        return 0
    return -(-elements_of(kind) * _bits(kind.tensor_type.elem_type) // 8)


def bytes_of_tensor(tensor: Any) -> int:
    """Return the bytes of a stored tensor."""
    return -(-int(math.prod(tensor.dims)) * _bits(tensor.data_type) // 8)


def described(kind: Any) -> TensorShape:
    """Return a type as text needs it."""
    import onnx

    if kind is None or not kind.HasField("tensor_type"):
        return TensorShape("unknown", None)
    name = onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type)
    plain = {"FLOAT": "float32", "DOUBLE": "float64", "STRING": "str"}.get(name, name.lower())
    return TensorShape(plain, shape_of(kind))


def scope_of(node: Any) -> str:
    """Return the torch module that the exporter noted."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                names = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return ""
            if isinstance(names, list) and len(names) > 1 and isinstance(names[-2], str):
                return names[-2]
    return ""


# ONNX Runtime operators whose outputs are shaped as those of a standard one: {name: (standard name, inputs it takes)}
LIKE = {
    "FusedConv": ("Conv", 3), "Gelu": ("Identity", 1), "FastGelu": ("Identity", 1), "QuickGelu": ("Identity", 1),
    "BiasGelu": ("Identity", 1), "SkipLayerNormalization": ("Identity", 1), "QLinearSigmoid": ("Identity", 1),
    "QLinearLeakyRelu": ("Identity", 1), "DynamicQuantizeMatMul": ("MatMul", 2), "MatMulIntegerToFloat": ("MatMul", 2),
}  # fmt: skip


def standing_in(node: Any) -> Any:
    """Return a node of the standard operator whose outputs are shaped alike."""
    import onnx

    op, count = LIKE[node.op_type]
    attributes = [a for a in node.attribute if op == "Conv" and not a.name.startswith("activation")]
    made = onnx.helper.make_node(op, list(node.input[:count]), list(node.output[:1]))
    made.attribute.extend(attributes)
    return made


def is_sound(node: Any) -> bool:
    """Tell whether what a node divides by is positive; ONNX's inference does not look."""
    divisors = {"dilations", "group", "kernel_shape", "num_groups", "num_outputs", "strides", "blocksize", "size"}
    return all(min(a.ints or [a.i]) > 0 for a in node.attribute if a.name in divisors)


def element_type(kind: Any) -> int:
    """Return ONNX's number of a tensor's element type, 0 where it is not known."""
    return 0 if kind is None else int(kind.tensor_type.elem_type)
