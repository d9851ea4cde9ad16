"""What a model costs, told from its graph alone: operations, weights, bytes and peak memory, nothing run.

`cost_of` takes an ONNX file or model, a torch module, script or exported program, or a Keras model. Quantities are
exact integers, or polynomials in the lengths that were left open. The conventions are `records.CONVENTIONS`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.records import CONVENTIONS, KINDS, CostTable, LayerCost, TensorShape, Transfer, Work
from mlscope_lab.static.symbolic import Expression, Largest, Quantity

if TYPE_CHECKING:
    from mlscope_lab.backends.base import ModelFiles, TensorSpec

__all__ = [
    "CONVENTIONS", "KINDS", "BatchSize", "CostTable", "Expression", "Largest", "LayerCost", "Quantity", "TensorShape",
    "Transfer", "Work", "cost_of", "cost_of_files",
]  # fmt: skip

BatchSize = int | Literal["given"] | None


def cost_of(
    model: Any,
    *,
    inputs: Sequence[TensorSpec] | None = None,
    name: str = "",
    batch_size: BatchSize = "given",
    symbols: Mapping[str, int] | None = None,
    usual: Mapping[str, int] | None = None,
) -> CostTable:
    """Count a model.

    Parameters
    ----------
    model
        Path of an ONNX file, `onnx.ModelProto`, `torch.nn.Module`, `torch.jit.ScriptModule`,
        `torch.export.ExportedProgram`, or `keras.Model`.
    inputs
        What it is called with: needed for torch and for subclassed Keras models, which do not say it themselves.
    name
        For the record.
    batch_size
        Length of the first axis of the inputs, "given" for that of `inputs` (1 where the model leaves it open), None
        to leave it the symbol "batch".
    symbols
        Lengths of other dimensions that are open; those not given stay symbols.
    usual
        Lengths to take, with a note, of symbols in which the cost is no polynomial.

    Raises
    ------
    UnsupportedModelError
        If it is none of these, or cannot be counted without being run.
    """
    if isinstance(model, str | Path) or type(model).__module__.startswith("onnx."):
        from mlscope_lab.static.onnx_ import cost_of_onnx

        return cost_of_onnx(
            model, inputs=inputs or (), name=name, batch_size=1 if batch_size == "given" else batch_size,
            symbols=symbols, usual=usual,
        )  # fmt: skip
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Model):
        from mlscope_lab.static.keras_ import cost_of_keras

        specs, batch = (None, batch_size) if inputs is None else _batched(inputs, batch_size)
        return cost_of_keras(
            model, inputs=specs, name=name, batch_size=1 if batch == "given" else batch, symbols=symbols, usual=usual
        )
    if torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        from mlscope_lab.static.torch_ import cost_of_torch

        if inputs is None:
            raise UnsupportedModelError(
                f"A {type(model).__name__} does not say what it is called with: give example arrays (input=array, a "
                "tuple of them, or a dict by name)"
            )
        specs, batch = _batched(inputs, batch_size)
        return cost_of_torch(
            model, inputs=specs, name=name, batch_size=1 if batch == "given" else batch, symbols=symbols, usual=usual
        )
    raise UnsupportedModelError(
        f"A static profile is made of ONNX files and models, torch modules and Keras models, not of a "
        f"{type(model).__module__}.{type(model).__qualname__}"
    )


def _batched(inputs: Sequence[TensorSpec], batch_size: BatchSize) -> tuple[list[TensorSpec], BatchSize]:
    """Put the symbol "batch" on the first axis of the inputs that share the first one's length there."""
    from dataclasses import replace

    specs = list(inputs)
    if batch_size == "given" or not specs or not specs[0].shape:
        return specs, batch_size
    length = specs[0].shape[0]
    return [
        replace(spec, shape=("batch", *spec.shape[1:])) if spec.shape and spec.shape[0] == length else spec
        for spec in specs
    ], batch_size


def cost_of_files(
    files: ModelFiles,
    *,
    batch_size: BatchSize = "given",
    symbols: Mapping[str, int] | None = None,
    usual: Mapping[str, int] | None = None,
) -> CostTable:
    """Count a model file; the caller has checked that it is safe to open. Parameters as for `cost_of`.

    Raises
    ------
    UnsupportedModelError
        If its format holds no graph that can be counted.
    """
    declared = list(files.inputs) or None
    if files.format == "onnx":
        return cost_of(
            files.path, inputs=declared, name=files.name, batch_size=batch_size, symbols=symbols, usual=usual
        )
    if files.format == "keras":
        import keras

        model = keras.saving.load_model(files.path, compile=False, safe_mode=True)
        return cost_of(model, name=files.name, batch_size=batch_size, symbols=symbols, usual=usual)
    if files.format in {"torch_state_dict", "safetensors", "torchscript", "torch_exported"}:
        if declared is None:
            raise UnsupportedModelError(
                f"{files.path.name} does not say what it is called with; give example arrays, or write a manifest"
            )
        return cost_of(
            _module(files), inputs=declared, name=files.name, batch_size=batch_size, symbols=symbols, usual=usual
        )
    raise UnsupportedModelError(
        f"'{files.name}' in format '{files.format}' holds no graph that is counted here. Ask for its ONNX, torch or "
        "Keras form (backend='onnxruntime' or 'pytorch')"
    )


def _module(files: ModelFiles) -> Any:
    """Return the module of a file; of an architecture, without its weights."""
    if files.architecture is not None:
        from mlscope_lab import plugins

        return plugins.load("mlscope_lab.architectures", files.architecture)(**files.parameters)
    from mlscope_lab.backends.pytorch_load import load_module

    return load_module(files)
