"""The only reader of entry points.

Built-ins sit in static tables ``{name: "module:attribute"}``, so that listing them imports nothing; plugins of other
packages are found by entry-point group. A plugin that does not load warns, once, and never breaks anything else.

Groups
------
``mlscope_lab.backends``
    Subclasses of `mlscope_lab.backends.base.Backend`.
``mlscope_lab.steps``
    Subclasses of `mlscope_lab.processing.base.Step`.
``mlscope_lab.collectors``
    Subclasses of `mlscope_lab.collectors.base.Collector`, made without arguments.
``mlscope_lab.converters``
    Callables ``(model, target, *, example) -> dict`` that write another form of a model.
``mlscope_lab.importers``
    `mlscope_lab.trace.importers.base.Importer` objects, one a format of trace.
``mlscope_lab.analyses``
    Functions ``(run or runs, *, options) -> xarray.Dataset``, see `mlscope_lab.analysis.registry`.
``mlscope_lab.architectures``
    Callables ``(**parameters) -> torch.nn.Module | keras.Model`` that a manifest may name.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mlscope_lab.errors import PluginError, nearest

__all__ = ["BUILTINS", "load", "load_all", "names", "refresh"]

BUILTINS: dict[str, dict[str, str]] = {
    "mlscope_lab.backends": {
        "onnxruntime": "mlscope_lab.backends.onnxruntime_:OnnxRuntimeBackend",
        "pytorch": "mlscope_lab.backends.pytorch_:PyTorchBackend",
        "tensorflow": "mlscope_lab.backends.tensorflow_:TensorFlowBackend",
        "python": "mlscope_lab.backends.python_:PythonBackend",
    },
    "mlscope_lab.steps": {
        "decode_image": "mlscope_lab.processing.decoding:DecodeImage",
        "recompress": "mlscope_lab.processing.jpeg:Recompress",
        "resize": "mlscope_lab.processing.image:Resize",
        "crop": "mlscope_lab.processing.image:Crop",
        "convert": "mlscope_lab.processing.image:Convert",
        "normalize": "mlscope_lab.processing.image:Normalize",
        "layout": "mlscope_lab.processing.image:Layout",
        "tensor": "mlscope_lab.processing.raw:Tensor",
        "constant": "mlscope_lab.processing.raw:Constant",
        "audio_frames": "mlscope_lab.processing.audio:AudioFrames",
        "byte_windows": "mlscope_lab.processing.text:ByteWindows",
        "word_pieces": "mlscope_lab.processing.word_pieces:WordPieces",
        "select": "mlscope_lab.processing.raw:Select",
        "mean": "mlscope_lab.processing.vectors:Mean",
        "unit_length": "mlscope_lab.processing.vectors:UnitLength",
        "softmax": "mlscope_lab.processing.classification:Softmax",
        "sigmoid": "mlscope_lab.processing.classification:Sigmoid",
        "top_k": "mlscope_lab.processing.classification:TopK",
    },
    "mlscope_lab.collectors": {
        # started in this order and stopped in the reverse one; counters last, around the measured part alone
        "memory": "mlscope_lab.collectors.memory:ResidentMemory",
        "nvml": "mlscope_lab.collectors.nvml:Nvml",
        "rapl": "mlscope_lab.collectors.rapl:Rapl",
        "perf_events": "mlscope_lab.collectors.perf_events:PerfEvents",
    },
    "mlscope_lab.importers": {
        # asked in this order which of them a file is for: Chrome's format, which many tools write, last
        "onnxruntime": "mlscope_lab.trace.importers.ort_profile:ONNXRUNTIME",
        "trtexec": "mlscope_lab.trace.importers.trtexec:TRTEXEC",
        "nsys": "mlscope_lab.trace.importers.nsys:NSYS",
        "xplane": "mlscope_lab.trace.importers.xplane:XPLANE",
        "kineto": "mlscope_lab.trace.importers.kineto:KINETO",
        "chrome": "mlscope_lab.trace.importers.kineto:CHROME",
    },
    "mlscope_lab.converters": {
        "torch_to_onnx": "mlscope_lab.conversion.torch_to_onnx:convert",
        "onnx_to_tensorflow": "mlscope_lab.conversion.onnx_to_tensorflow:convert",
    },
    "mlscope_lab.analyses": {
        # XSP's fifteen in their order (A1 to A15), then their companions
        "model_information": "mlscope_lab.analysis.latency:model_information",
        "layer_information": "mlscope_lab.analysis.layers:layer_information",
        "layer_latency": "mlscope_lab.analysis.layers:layer_latency",
        "layer_memory": "mlscope_lab.analysis.memory:layer_memory",
        "layer_types": "mlscope_lab.analysis.layer_types:layer_types",
        "latency_by_type": "mlscope_lab.analysis.layer_types:latency_by_type",
        "memory_by_type": "mlscope_lab.analysis.layer_types:memory_by_type",
        "kernel_information": "mlscope_lab.analysis.kernels:kernel_information",
        "kernel_roofline": "mlscope_lab.analysis.kernels:kernel_roofline",
        "kernels_by_name": "mlscope_lab.analysis.kernels:kernels_by_name",
        "kernels_by_layer": "mlscope_lab.analysis.kernel_layers:kernels_by_layer",
        "metrics_by_layer": "mlscope_lab.analysis.kernel_layers:metrics_by_layer",
        "device_and_host_by_layer": "mlscope_lab.analysis.kernel_layers:device_and_host_by_layer",
        "layer_roofline": "mlscope_lab.analysis.kernel_layers:layer_roofline",
        "kernels_by_model": "mlscope_lab.analysis.kernels:kernels_by_model",
        "roofline": "mlscope_lab.roofs:roofline",
        "process_counters": "mlscope_lab.analysis.process:process_counters",
        "energy": "mlscope_lab.analysis.process:energy",
        "levels": "mlscope_lab.analysis.levels:levels",
        "layer_gap": "mlscope_lab.analysis.levels:layer_gap",
        "operator_gap": "mlscope_lab.analysis.levels:operator_gap",
        "kernel_breakdown": "mlscope_lab.analysis.device:kernel_breakdown",
        "kernel_kinds": "mlscope_lab.analysis.device:kernel_kinds",
        "temporal_breakdown": "mlscope_lab.analysis.device:temporal_breakdown",
        "stream_utilization": "mlscope_lab.analysis.device:stream_utilization",
        "idle_breakdown": "mlscope_lab.analysis.device:idle_breakdown",
        "communication_overlap": "mlscope_lab.analysis.device:communication_overlap",
        "busy_timeline": "mlscope_lab.analysis.timeline:busy_timeline",
        "critical_path": "mlscope_lab.analysis.critical_path:critical_path",
        "critical_path_by_name": "mlscope_lab.analysis.critical_path:critical_path_by_name",
        "what_if": "mlscope_lab.analysis.what_if:what_if",
        "layer_statistics": "mlscope_lab.analysis.configurations:layer_statistics",
        "predict_latency": "mlscope_lab.analysis.configurations:predict_latency",
    },
    "mlscope_lab.architectures": {
        "bert_encoder": "mlscope_lab.architectures.bert_encoder:build",
        "efficientnet_lite": "mlscope_lab.architectures.efficientnet_lite:build",
    },
}


@cache
def _found(group: str) -> dict[str, EntryPoint]:
    builtin = BUILTINS.get(group, {})
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name in builtin:
            if point.value != builtin[point.name]:
                warnings.warn(
                    f"{point.value!r} offers {point.name!r} in {group!r}, a name that mlscope-lab itself uses; ignored",
                    stacklevel=2,
                )
            continue
        found[point.name] = point
    return found


def refresh() -> None:
    """Forget what was found, so that a package installed meanwhile is seen."""
    _found.cache_clear()


def names(group: str) -> list[str]:
    """Return the names in a group, built-ins first, without importing any."""
    return [*BUILTINS.get(group, {}), *sorted(_found(group))]


def load(group: str, name: str) -> Any:
    """Import one plugin.

    Parameters
    ----------
    group
        Entry-point group, e.g. ``"mlscope_lab.backends"``.
    name
        Name within the group.

    Raises
    ------
    PluginError
        If nothing has that name, or its module does not import.
    """
    builtin = BUILTINS.get(group, {})
    kind = group.rpartition(".")[2].removesuffix("s")
    try:
        if name in builtin:
            module, _, attribute = builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name in _found(group):
            return _found(group)[name].load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{kind.capitalize()} '{name}' does not load: {error}") from error
    known = names(group)
    raise PluginError(f"Unknown {kind} '{name}'. Known: {', '.join(known)}.{nearest(name, known)}")


def load_all(group: str) -> Iterator[tuple[str, Any]]:
    """Import every plugin of a group; one that fails warns and is left out."""
    for name in names(group):
        try:
            yield name, load(group, name)
        except Exception as error:  # a foreign package may raise anything at import; it must not take us down
            warnings.warn(f"Plugin '{name}' of group '{group}' is left out: {error}", stacklevel=2)
