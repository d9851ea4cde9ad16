"""Other precisions of an ONNX model, made by ONNX Runtime's own tools when it is opened.

bfloat16 and float64 are not offered: ONNX Runtime's CPU provider has no convolution or LSTM in them.

References
----------
onnxruntime.ai/docs/performance/model-optimizations: float16.html, quantization.html
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.onnxruntime_graph import Outline, precision_of, read_outline
from mlscope_lab.errors import InputError, UnsupportedModelError

__all__ = ["PRECISIONS", "REASONS", "digest_parts", "to_precision"]

PRECISIONS: Final = ("float32", "float16", "int8-dynamic", "int8-static")
REASONS: Final[Mapping[str, str]] = {
    "float64": "its CPU provider has no convolution, pooling or LSTM in double precision",
    "bfloat16": "its CPU provider has no convolution, matrix product or LSTM in bfloat16",
}
_HALF_ON_CPU: Final = (
    "ONNX Runtime's CPU provider has float16 kernels for few operators: it computes the others in float32 and rounds "
    "to float16 only where a float16 kernel reads, so weights are rounded, but sums are not and little overflows"
)
# a protobuf message holds at most 2 GiB
_SINGLE_FILE_BYTES = 1_500_000_000
# quantising by channel writes an attribute that DequantizeLinear has since then
_PER_CHANNEL_OPSET = 13


def to_precision(
    model: ModelFiles, outline: Outline, options: SessionOptions, folder: Path
) -> tuple[Path, tuple[str, ...]]:
    """Write a model in another precision.

    Names and types of inputs and outputs stay. float16 keeps operators in float32 that ONNX Runtime's converter lists
    as unfit; constants beyond 65504 are cut to that. int8-dynamic quantises weights beforehand and activations when
    they are there. int8-static quantises both beforehand, activations by the smallest and largest values that the
    calibration shows, weights channel by channel where the opset has that; it writes QuantizeLinear and
    DequantizeLinear around operators. Nothing is folded beforehand: a BatchNormalization stays one, in float32.

    Parameters
    ----------
    model, outline
        The model, and its outline.
    options
        `precision`, and the calibration of int8-static.
    folder
        An empty folder; the session's files lie there until it is closed.

    Returns
    -------
    path, notes
        What to open, and what the user should know.

    Raises
    ------
    UnsupportedModelError
        If the model is not in float32, or the tool refuses.
    InputError
        If int8-static has no calibration, or its feeds do not fit.
    """
    import onnx

    precision = options.precision
    published = precision_of(outline, "float32")
    if published != "float32":
        raise UnsupportedModelError(
            f"Model '{model.name}' is published in {published}; {precision} is made of float32 models only. "
            "Leave precision out to run it as published"
        )
    if precision is None or precision == "float32":
        return model.path, ()
    target = folder / "model.onnx"
    large = sum(weight.elements for weight in outline.weights) * 4 > _SINGLE_FILE_BYTES
    try:
        with _quiet():
            # from 2 GiB on a model does not fit into one message; the tools take its path then
            source = str(model.path) if large else _tidied(onnx.load(model.path))
            if precision == "float16":
                _half(source, target, large=large)
            elif precision == "int8-dynamic":
                _dynamic(source, target, large=large)
            else:
                _static(source, target, model, options.calibration, large=large)
    except InputError:
        raise
    except Exception as error:  # the tools raise whatever their parts raise
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedModelError(
            f"ONNX Runtime's tool cannot make model '{model.name}' {precision}: {type(error).__name__}: {line}"
        ) from error
    if precision.startswith("int8") and not _has_quantised(target):
        raise UnsupportedModelError(
            f"ONNX Runtime's quantiser found nothing in model '{model.name}' that it can make {precision}; it does not "
            "look into bodies of If, Loop and Scan"
        )
    return target, (_HALF_ON_CPU,) if precision == "float16" and options.device == "cpu" else ()


def _has_quantised(path: Path) -> bool:
    return any("Quant" in node.op or "Integer" in node.op for node in read_outline(path, path.name).nodes)


def digest_parts(options: SessionOptions) -> list[str]:
    """Return what of the options decides the converted model, for a digest; [] for a model as published."""
    if options.precision is None:
        return []
    import hashlib

    parts = [options.precision]
    if options.precision == "int8-static":
        digest = hashlib.sha256()
        for feeds in options.calibration:
            for name in sorted(feeds):
                array = np.ascontiguousarray(feeds[name])
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(array.data if array.dtype != object else repr(array.tolist()).encode())
        parts.append(digest.hexdigest())
    return parts


def _half(source: Any, target: Path, *, large: bool) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(source, keep_io_types=True)
    onnx.save(made, target, save_as_external_data=large, location=f"{target.name}.data")


def _tidied(model: Any) -> Any:
    """Drop what old and new exporters declare of constants, over which the tools trip; return the model.

    Models of IR 3 list constants as inputs, which would stay inputs when the tools have replaced them. Shapes of
    weights are no longer true when the tools have transposed them.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for values in (model.graph.input, model.graph.value_info):
        kept = [value for value in values if value.name not in constants]
        del values[:]
        values.extend(kept)
    model.ir_version = max(model.ir_version, 4)
    return model


def _dynamic(source: Any, target: Path, *, large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # ONNX Runtime's ConvInteger takes no signed weights
    quantize_dynamic(source, target, weight_type=QuantType.QUInt8, use_external_data_format=large)


def _static(
    source: Any, target: Path, model: ModelFiles, calibration: Sequence[Mapping[str, npt.NDArray[Any]]], *, large: bool
) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    if not calibration:
        raise InputError(
            f"precision='int8-static' of model '{model.name}' learns ranges from inputs: give some as "
            "SessionOptions(calibration=(feeds, ...)), or take precision='int8-dynamic'"
        )
    proto = onnx.load(model.path, load_external_data=False)
    constants = {tensor.name for tensor in proto.graph.initializer}
    wanted = [value.name for value in proto.graph.input if value.name not in constants]
    for position, feeds in enumerate(calibration):
        if set(feeds) != set(wanted):
            raise InputError(
                f"calibration[{position}] gives {', '.join(sorted(feeds)) or 'nothing'}; model '{model.name}' takes "
                f"{', '.join(wanted)}"
            )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(calibration)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            feeds = next(self.rest, None)
            return None if feeds is None else dict(feeds)

    opset = max((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=1)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=opset >= _PER_CHANNEL_OPSET,
        use_external_data_format=large,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the tools log on the root logger, and warn, from the user's terminal; nothing else.

    They call `logging.warning`, which would also give a root logger without handlers one for good.
    """

    def foreign(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in Path(record.pathname).parts

    root, nothing = logging.getLogger(), logging.NullHandler()
    root.addFilter(foreign)
    root.addHandler(nothing)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"onnxruntime\.")
            yield
    finally:
        root.removeHandler(nothing)
        root.removeFilter(foreign)
