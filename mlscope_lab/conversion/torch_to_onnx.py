"""PyTorch modules to ONNX, through torch.export, with the batch axis left open."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import ModelFiles, TensorSpec
from mlscope_lab.backends.pytorch_ import input_names
from mlscope_lab.backends.pytorch_load import load_module
from mlscope_lab.backends.pytorch_values import to_tensor
from mlscope_lab.errors import ConversionError, InputError

__all__ = ["convert"]

# a protobuf message holds at most 2 GiB; weights beyond this go to a file beside it
_SINGLE_FILE_BYTES = 1_500_000_000

_STACK_TRACE = "pkg.torch.onnx.stack_trace"

_log = logging.getLogger(__name__)


def convert(model: ModelFiles, target: Path, *, example: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Export a PyTorch model to an ONNX file.

    Axes that the model declares by a symbol stay dynamic; those declared by a length are fixed. Nodes keep the scopes
    of the modules that they come from (metadata ``pkg.torch.onnx.name_scopes``).

    Parameters
    ----------
    model
        A model that the PyTorch backend opens; inputs and outputs must be declared, for they name the graph's own.
    target
        The ONNX file to write; its folder must exist.
    example
        Arrays by input name. An axis of a symbol with length 1 is doubled, for torch.export takes 1 as fixed.

    Returns
    -------
    dict
        "converter", "torch", "onnxscript", "opset", "nodes", "dynamic_axes" ({input: {axis: symbol}}), and
        "external_data" with the name of the file of the weights where one file cannot hold them.

    Raises
    ------
    ConversionError
        If torch.export or the ONNX exporter refuses, or the written graph is not what was declared.
    InputError
        If `example` does not fit the declared inputs.
    UnsupportedModelError
        If PyTorch cannot open the model.
    """
    import onnx
    import onnxscript
    import torch

    if not model.inputs or not model.outputs:
        raise ConversionError(
            f"'{model.name}': declare its inputs and outputs to convert it; they name the ONNX graph's"
        )
    module = load_module(model)
    if isinstance(module, torch.jit.ScriptModule):
        raise ConversionError(
            f"'{model.name}': TorchScript cannot be exported to ONNX, for torch.export reads Python modules. "
            f"Use its state dict with an architecture, or publish an ONNX form in the manifest"
        )
    arguments = tuple(to_tensor(_grown(spec, example)) for spec in model.inputs)
    shapes = _dynamic_shapes(model.inputs)
    names = [spec.name for spec in model.inputs]
    keywords = set(names) <= set(input_names(module))
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    with _quiet():
        try:
            torch.onnx.export(
                module,
                args=() if keywords else arguments,
                f=target,
                kwargs=dict(zip(names, arguments, strict=True)) if keywords else None,
                input_names=names,
                output_names=[spec.name for spec in model.outputs],
                dynamic_shapes=dict(zip(names, shapes, strict=True)) if keywords else tuple(shapes),
                dynamo=True,
                external_data=size > _SINGLE_FILE_BYTES,
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # the exporter wraps whatever tracing the module's own code raised
            raise ConversionError(f"'{model.name}' cannot be exported to ONNX: {_first_line(error)}") from error
    proto = onnx.load(target, load_external_data=False)
    for node in proto.graph.node:
        # stack traces hold the paths of this machine, and would make the file's digest differ from place to place
        kept = [entry for entry in node.metadata_props if entry.key != _STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    target.write_bytes(proto.SerializeToString(deterministic=True))
    _verify(model, proto)
    beside = target.with_name(target.name + ".data")
    return {
        "converter": "torch.onnx",
        "torch": torch.__version__,
        "onnxscript": onnxscript.__version__,
        "opset": next(entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}),
        "nodes": len(proto.graph.node),
        "dynamic_axes": {
            spec.name: {str(axis): dim for axis, dim in enumerate(spec.shape or ()) if isinstance(dim, str)}
            for spec in model.inputs
        },
        **({"external_data": beside.name} if beside.exists() else {}),
    }


def _grown(spec: TensorSpec, example: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if spec.name not in example:
        raise InputError(f"The example misses input {spec.describe()}")
    array = np.asarray(example[spec.name])
    shape = spec.shape or ()
    if len(shape) != array.ndim:
        raise InputError(f"The example of input {spec.describe()} has the shape {array.shape}")
    for axis, dim in enumerate(shape):
        if isinstance(dim, str) and array.shape[axis] == 1:
            array = np.repeat(array, 2, axis=axis)
    return array


def _dynamic_shapes(inputs: tuple[TensorSpec, ...]) -> list[dict[int, Any]]:
    """Return torch.export's dynamic axes: one dimension a symbol, shared by all inputs that use it."""
    import torch

    dims: dict[str, Any] = {}
    found = []
    for spec in inputs:
        axes = {}
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str):
                axes[axis] = dims.setdefault(dim, torch.export.Dim(dim, min=1))
        found.append(axes)
    return found


def _verify(model: ModelFiles, proto: Any) -> None:
    """Check that the graph's inputs and outputs are the declared ones, with the declared axes open."""
    for what, specs, values in (
        ("input", model.inputs, proto.graph.input),
        ("output", model.outputs, proto.graph.output),
    ):
        names = [value.name for value in values]
        if names != [spec.name for spec in specs]:
            raise ConversionError(
                f"'{model.name}': the exported graph has the {what}s {', '.join(names)}, declared are "
                f"{', '.join(spec.name for spec in specs)}"
            )
        for spec, value in zip(specs, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            fixed = [
                axis
                for axis, want in enumerate(spec.shape or ())
                if isinstance(want, str) and axis < len(dims) and dims[axis].HasField("dim_value")
            ]
            if fixed:
                raise ConversionError(
                    f"'{model.name}': {what} {spec.describe()} lost its dynamic axis {fixed[0]}: the module's code "
                    f"fixes it to {dims[fixed[0]].dim_value}. Declare that length in the manifest, or change the module"
                )


def _first_line(error: BaseException) -> str:
    """Return the cause below the exporter's own wrapping, as type and first line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what the exporter prints and warns to our log, at level DEBUG."""
    printed = io.StringIO()
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
            for line in printed.getvalue().splitlines():
                _log.debug("torch.onnx: %s", line)
            for warning in caught:
                _log.debug("torch.onnx: %s: %s", warning.category.__name__, warning.message)
