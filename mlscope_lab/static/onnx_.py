"""The static profile of an ONNX graph, node by node, with every shape inferred and no weight read.

Shapes come from ONNX's own inference, one node at a time, so that values which the graph computes for its shapes can be
put in between. Control flow is entered: of an If the branch with more work counts, the body of a Loop or Scan counts
as often as it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.assembly import tabulate
from mlscope_lab.static.onnx_walk import Walk, inputs_of
from mlscope_lab.static.records import CostTable

__all__ = ["cost_of_onnx"]


def cost_of_onnx(
    model: Any,
    *,
    inputs: Sequence[TensorSpec] = (),
    name: str = "",
    batch_size: int | None = 1,
    symbols: Mapping[str, int] | None = None,
    usual: Mapping[str, int] | None = None,
) -> CostTable:
    """Count an ONNX model.

    Parameters
    ----------
    model
        Path of a file, or an `onnx.ModelProto`. External data is not read, and refused if it lies outside the folder.
    inputs
        What is declared of its inputs; lengths and symbols count where the graph leaves a length open.
    name
        For the record; default the graph's.
    batch_size
        Length of the first axis of the inputs where the graph leaves it open; None leaves it the symbol "batch".
    symbols
        Lengths of other symbolic dimensions by name; those not given stay symbols.
    usual
        Lengths to take of symbols in which the cost is no polynomial.

    Raises
    ------
    UnsupportedModelError
        If it is not an ONNX model, or a size that is asked for contradicts it.
    UnsafeArtifactError
        If its external data lies outside its folder.
    """
    proto = _loaded(model)
    shapes, batch = _shapes(proto, {spec.name: spec.shape for spec in inputs})
    fixed = {"batch" if key == batch else key: int(value) for key, value in (symbols or {}).items()}
    lengths_open = {n for shape in shapes.values() for n in shape if isinstance(n, str)}
    if "batch" in lengths_open and batch_size is not None:
        fixed.setdefault("batch", batch_size)
    elif batch_size not in {None, 1} and not any(shape[:1] == (batch_size,) for shape in shapes.values()):
        told = ", ".join(f"{key}: {list(shape)}" for key, shape in shapes.items()) or "none"
        raise UnsupportedModelError(
            f"The graph fixes the batch, so batch_size={batch_size} is not of this model (inputs: {told}). "
            "Export it with a symbolic batch"
        )
    table = tabulate(lambda lengths: Walk(proto, lengths, shapes, name).counted(), fixed, usual=usual)
    if batch not in {"", "batch"} and "batch" in table.symbols:
        return replace(table, notes=(*table.notes, f"batch is the dimension that the graph calls '{batch}'"))
    return table


def _loaded(model: Any) -> Any:
    import onnx

    if isinstance(model, str | Path):
        from mlscope_lab.artifacts.safety import check_safe

        path = Path(model)
        check_safe(path, "onnx", trusted=False)
        try:
            proto = onnx.load_model(str(path), load_external_data=False)
        except Exception as error:  # protobuf raises of its own where a file is malformed
            raise UnsupportedModelError(f"{path} is not an ONNX model: {error}") from error
    else:
        proto = model
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    return proto


def _shapes(
    proto: Any, declared: Mapping[str, Sequence[int | str | None] | None]
) -> tuple[dict[str, tuple[int | str, ...]], str]:
    """Return the inputs' shapes with a symbol for each open length, and the graph's own name of the batch.

    The batch is the open first axis of the first input that has one; every axis of that name is it.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    batch: str | None = None
    for value in inputs_of(proto):
        told = declared.get(value.name)
        dims = value.type.tensor_type.shape.dim
        told = told if told is not None and len(told) == len(dims) else [None] * len(dims)
        shape: list[int | str] = []
        for axis, (dim, known) in enumerate(zip(dims, told, strict=True)):
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
                continue
            symbol = dim.dim_param if known is None else known
            if axis == 0 and batch is None and not isinstance(symbol, int):
                batch = symbol
            if symbol == batch and (symbol or axis == 0):
                symbol = "batch"
            shape.append(symbol or f"{value.name}.{axis}")
        shapes[value.name] = tuple(shape)
    return shapes, batch or ""
