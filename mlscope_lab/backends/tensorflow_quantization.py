"""TensorFlow models with weights of int8: converted to TensorFlow Lite by TensorFlow's own converter, and run there."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.tensorflow_graph import Frozen
from mlscope_lab.backends.tensorflow_lite import TensorFlowLiteSession
from mlscope_lab.backends.tensorflow_load import Opened, trace_function
from mlscope_lab.errors import InputError, UnsupportedModelError

__all__ = ["QuantizedSession"]


def _without_explicit_padding(tf: Any, definition: Any, *, static: bool) -> None:
    """Put a padding before each maximum pooling that pads as it says itself, which TensorFlow Lite cannot.

    Padding with zeros is the same where nothing is negative; elsewhere it takes the lowest number, which a static range
    cannot hold.
    """
    nodes = {node.name: node for node in definition.node}

    def negative(name: str, depth: int = 0) -> bool:
        node = nodes.get(name.partition(":")[0])
        if node is None or depth > 100 or node.op in {"Relu", "Relu6", "Sigmoid", "Softmax", "Square", "Exp", "Abs"}:
            return node is None or depth > 100
        passes = {"MaxPool", "AvgPool", "Identity", "LRN", "Transpose", "Reshape"}
        inputs = node.input[:1] if node.op in passes else node.input[:-1] if node.op == "ConcatV2" else ()
        return not inputs or any(negative(before, depth + 1) for before in inputs)

    for pool in [n for n in nodes.values() if n.op == "MaxPool" and n.attr["padding"].s == b"EXPLICIT"]:
        low = negative(pool.input[0])
        if low and static:
            raise UnsupportedModelError(
                f"TensorFlow Lite has no maximum pooling that pads as '{pool.name}' does, and before negative values "
                "no padding that a static range of int8 can hold. Take precision='int8-dynamic'"
            )
        pads, padded = definition.node.add(), definition.node.add()
        pads.name, pads.op = f"{pool.name}/pads", "Const"
        pads.attr["dtype"].type = tf.int32.as_datatype_enum
        lengths = np.asarray(pool.attr["explicit_paddings"].list.i, np.int32).reshape(-1, 2)
        pads.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(lengths))
        padded.name, padded.op = f"{pool.name}/padded", "PadV2" if low else "Pad"
        padded.input.extend([pool.input[0], pads.name])
        padded.attr["T"].type = pool.attr["T"].type
        padded.attr["Tpaddings"].type = tf.int32.as_datatype_enum
        if low:
            value = definition.node.add()
            value.name, value.op = f"{pool.name}/lowest", "Const"
            value.attr["dtype"].type = pool.attr["T"].type
            lowest = tf.as_dtype(pool.attr["T"].type).min
            value.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(lowest, dtype=tf.as_dtype(pool.attr["T"].type)))
            padded.input.append(value.name)
        pool.input[0] = padded.name
        pool.attr["padding"].s = b"VALID"
        del pool.attr["explicit_paddings"]


def _reopened(tf: Any, opened: Opened, *, static: bool) -> Opened:
    """Return the frozen graph of a model as a concrete function that takes and gives what the model does."""
    frozen = Frozen(tf, opened, None, lower_control_flow=False)
    graph, definition = frozen.graph, frozen.graph.as_graph_def()
    _without_explicit_padding(tf, definition, static=static)
    tensors = [graph.get_tensor_by_name(name) for name in frozen.feeds]
    names = [spec.name for spec in opened.inputs]
    signature = [tf.TensorSpec(t.shape, t.dtype, f"feed_{i}") for i, t in enumerate(tensors)]

    def call(*given: Any) -> dict[str, Any]:
        feeds = dict(zip(frozen.feeds, given, strict=True))
        found = tf.graph_util.import_graph_def(definition, input_map=feeds, return_elements=frozen.fetches, name="")
        return {spec.name: tensor for spec, tensor in zip(opened.outputs, found, strict=True)}

    made = trace_function(tf, call, signature, names, keep=None, scopes=opened.scopes)
    return dataclasses.replace(made, inputs=opened.inputs, outputs=opened.outputs)


def _quantized(tf: Any, opened: Opened, options: SessionOptions) -> bytes:
    """Return a TensorFlow Lite file of a model with int8 weights, and int8 activations for "int8-static"."""
    if not hasattr(tf, "lite") or not hasattr(tf.lite, "TFLiteConverter"):
        raise UnsupportedModelError(f"TensorFlow {tf.__version__} comes without the converter to TensorFlow Lite")
    plain = _reopened(tf, opened, static=options.precision == "int8-static")
    converter = tf.lite.TFLiteConverter.from_concrete_functions([plain.function], plain.keep)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options.precision == "int8-static":
        names = [spec.name for spec in opened.inputs]

        def samples() -> Iterator[list[npt.NDArray[Any]]]:
            for feeds in options.calibration:
                yield [np.asarray(feeds[name]) for name in names]

        converter.representative_dataset = samples
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
            made = converter.convert()
    except Exception as error:  # the converter raises its own ConverterError, and whatever a calibrating run raises
        raise UnsupportedModelError(f"TensorFlow Lite cannot quantise this model: {_reason(error)}") from error
    return bytes(made)


def _reason(error: Exception) -> str:
    """Return the line of the converter's message that says what is missing, without its places in the source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if line.startswith("TF Select ops:"):
            return f"it has no operator for {line.partition(':')[2].strip()}"
    first = lines[0] if lines else type(error).__name__
    return first.rpartition("): ")[2] if "loc(" in first else first


class QuantizedSession(TensorFlowLiteSession):
    """A model with int8 weights in TensorFlow Lite, made when it was opened.

    Parameters
    ----------
    tf
        The tensorflow module.
    opened
        The model.
    name, digest
        Of its file.
    options
        With ``precision="int8-dynamic"`` or "int8-static".

    Raises
    ------
    InputError
        If "int8-static" has nothing to learn its ranges from.
    UnsupportedModelError
        If TensorFlow Lite cannot convert or run the model.
    """

    def __init__(self, tf: Any, opened: Opened, name: str, digest: str, options: SessionOptions) -> None:
        if options.precision == "int8-static" and not options.calibration:
            raise InputError("precision='int8-static' learns its ranges from samples: give SessionOptions.calibration")
        content = _quantized(tf, opened, options)
        self._folder: Path | None = Path(tempfile.mkdtemp(prefix="mlscope-int8-", dir=options.scratch))
        try:
            path = self._folder / "model.tflite"
            path.write_bytes(content)
            whole = hashlib.sha256(f"{digest} {options.precision}".encode() + content).hexdigest()
            files = ModelFiles(name=name, format="tflite", path=path, digest=f"sha256:{whole}")
            super().__init__(files, options)
            self._rename(opened)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        how = {
            "int8-dynamic": "weights of int8, activations quantised as they come",
            "int8-static": f"int8 with ranges from {len(options.calibration)} samples",
        }[str(options.precision)]
        self.warnings = (*opened.notes, f"Runs in TensorFlow Lite, converted by TensorFlow: {how}")
        self.precision = "int8"

    def _rename(self, opened: Opened) -> None:
        """Give inputs and outputs the names, the order and the declared shapes that they have in the model."""
        keys = sorted(opened.outputs, key=lambda spec: f"r{opened.outputs.index(spec)}")
        found = {int(match.group(1)): (index, detail) for _, index, detail in self._in
                 if (match := re.search(r"feed_(\d+)", str(detail["name"])))}  # fmt: skip
        if sorted(found) != list(range(len(opened.inputs))) or len(keys) != len(self._out):
            raise UnsupportedModelError(
                f"TensorFlow Lite's converter left {len(self._in)} inputs and {len(self._out)} outputs of "
                f"{len(opened.inputs)} and {len(opened.outputs)}"
            )
        self.inputs, self.outputs = opened.inputs, opened.outputs
        self._in = [(spec.name, *found[i]) for i, spec in enumerate(opened.inputs)]
        places = {spec.name: index for spec, (_, index) in zip(keys, self._out, strict=True)}
        self._out = [(spec.name, places[spec.name]) for spec in opened.outputs]

    def _close(self) -> None:
        super()._close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
