"""The static profile of an ONNX graph, node by node, with every shape inferred and no weight read.

Shapes come from ONNX's own inference, one node at a time, so that values which the graph computes for its shapes can be
put in between. Control flow is entered: of an If the branch with more work counts, the body of a Loop or Scan counts
as often as it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.assembly import tabulate
from mlscope_lab.static.onnx_walk import Walk, inputs_of
from mlscope_lab.static.records import CostTable

__all__ = ["cost_of_onnx"]


def cost_of_onnx(
    model: Any, *, name: str = "", batch_size: int | None = 1, symbols: Mapping[str, int] | None = None
) -> CostTable:
    """Count an ONNX model.

    Parameters
    ----------
    model
        Path of a file, or an `onnx.ModelProto`. External data is not read, and refused if it lies outside the folder.
    name
        For the record; default the graph's.
    batch_size
        Length of the first axis of the inputs where the graph leaves it open; None leaves it the symbol "batch".
    symbols
        Lengths of other symbolic dimensions by name; those not given stay symbols.

    Raises
    ------
    UnsupportedModelError
        If it is not an ONNX model, or a size that is asked for contradicts it.
    UnsafeArtifactError
        If its external data lies outside its folder.
    """
    proto = _loaded(model)
    batch = _batch_symbol(proto)
    fixed = {_spelled(proto, key): int(value) for key, value in (symbols or {}).items()}
    if batch is None and batch_size not in {None, 1}:
        told = ", ".join(f"{i.name}: {_dims(i.type)}" for i in inputs_of(proto)) or "none"
        if not _fixes_batch(proto, batch_size or 1):
            raise UnsupportedModelError(
                f"The graph fixes the batch, so batch_size={batch_size} is not of this model (inputs: {told}). "
                "Export it with a symbolic batch"
            )
    elif batch is not None and batch_size is not None:
        fixed.setdefault("batch", batch_size)
    table = tabulate(lambda lengths: Walk(proto, lengths, batch, name).counted(), fixed)
    if batch is not None and batch != "batch":
        renamed = f"batch is the dimension that the graph calls '{batch}'"
        table = _noted(table, renamed) if "batch" in table.symbols else table
    return table


def _noted(table: CostTable, note: str) -> CostTable:
    return replace(table, notes=(*table.notes, note))


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
        proto = onnx.inliner.inline_local_functions(proto)
    return proto


def _dims(kind: Any) -> list[int | str]:
    dims = kind.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]


def _batch_symbol(proto: Any) -> str | None:
    """Return the symbol on the first axis of the first input that has one there ("" if it has no name), else None."""
    for value in inputs_of(proto):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and not dims[0].HasField("dim_value"):
            return str(dims[0].dim_param)
    return None


def _fixes_batch(proto: Any, batch: int) -> bool:
    """Tell whether the graph's inputs have this very batch."""
    return any(dims[:1] == [batch] for dims in (_dims(value.type) for value in inputs_of(proto)))


def _spelled(proto: Any, key: str) -> str:
    return "batch" if key == _batch_symbol(proto) else key
