"""PyTorch: weights with an architecture, TorchScript, exported programs, and live modules."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import (
    PRECISIONS,
    Backend,
    Capabilities,
    ModelFiles,
    Session,
    SessionOptions,
    TensorSpec,
)
from mlscope_lab.backends.pytorch_arguments import argument_order, by_keyword, input_names, is_compiled, is_exported
from mlscope_lab.backends.pytorch_kineto import profiler_reason, watch_contexts
from mlscope_lab.backends.pytorch_load import FORMATS, digest_of_module, load_module
from mlscope_lab.backends.pytorch_precision import Converted, to_precision
from mlscope_lab.backends.pytorch_session import PyTorchSession, counters_reason, device_of
from mlscope_lab.backends.pytorch_values import to_tensor
from mlscope_lab.errors import InputError, UnsupportedModelError

__all__ = ["PyTorchBackend", "PyTorchSession", "input_names"]


class PyTorchBackend(Backend):
    """The PyTorch backend."""

    name = "pytorch"
    title = "PyTorch"
    distributions = ("torch",)
    module = "torch"
    extra = "pytorch"
    formats = FORMATS
    levels = ("model", "layer", "operator", "kernel", "hardware")
    precisions = PRECISIONS

    def level_reason(self, level: str, device: str) -> str | None:
        """Return why sessions on a device cannot be traced at a level; counters of kernels need a CUDA device."""
        return counters_reason(level, device) or super().level_reason(level, device)

    def prepare_process(self, levels: Sequence[str], device: str) -> None:
        """Let CUPTI see the first CUDA context, without which it measures no counters."""
        if "hardware" in levels and device.startswith("cuda"):
            self.require()
            watch_contexts()

    def capabilities(self) -> Capabilities:
        """Tell what can be opened and recorded here; imports torch."""
        self.require()
        import importlib.util

        import torch

        unavailable = {}
        formats = list(FORMATS)
        if importlib.util.find_spec("safetensors") is None:
            formats.remove("safetensors")
            unavailable["safetensors"] = "no module named 'safetensors'"
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not cuda:
            built = torch.backends.cuda.is_built()
            unavailable["cuda"] = "PyTorch sees no CUDA device" if built else "this build of PyTorch has no CUDA"
            unavailable["hardware"] = counters_reason("hardware", "cpu") or ""
        if not torch.backends.mkldnn.is_available():
            unavailable["oneDNN primitives"] = "this build of PyTorch has no oneDNN"
        levels: tuple[str, ...] = self.levels if cuda else self.levels[:-1]
        if (reason := profiler_reason()) is not None:
            unavailable |= dict.fromkeys(levels[2:], reason)
            levels = levels[:2]
        return Capabilities(formats=tuple(formats), levels=levels, devices=("cpu", *cuda), unavailable=unavailable)

    def accepts(self, obj: object) -> bool:
        """Tell whether `obj` is a torch module (eager, scripted or compiled)."""
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(obj, torch.nn.Module)

    def _open(self, model: ModelFiles, options: SessionOptions) -> Session:
        import torch

        device = device_of(options.device)
        if not model.path.exists():
            raise UnsupportedModelError(f"'{model.name}': there is no file {model.path}")
        torch.manual_seed(options.seed)
        module = load_module(model)
        mode = {"torchscript": "graph", "torch_exported": "exported"}.get(model.format, "eager")
        inputs = model.inputs
        if not inputs:
            names = input_names(module) or ("input",)
            inputs = tuple(TensorSpec(name=name, dtype="any") for name in names)
        return PyTorchSession(
            module.to(device), inputs=inputs, outputs=model.outputs, options=options, mode=mode, digest=model.digest,
            converted=_converted(module, inputs, options, name=model.name, owned=True),
        )  # fmt: skip

    def _wrap(self, obj: object, example: Mapping[str, npt.NDArray[Any]], options: SessionOptions) -> Session:
        import torch

        if not self.accepts(obj):
            raise UnsupportedModelError(f"Backend 'pytorch' takes torch modules, got {type(obj).__name__}")
        module: Any = obj
        device = device_of(options.device)
        if any(torch.nn.parameter.is_lazy(tensor) for tensor in module.parameters()):
            raise UnsupportedModelError(
                f"The module {type(module).__name__} has lazy parameters without a shape yet; call it once first"
            )
        homes = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())}
        if homes - {device}:
            raise UnsupportedModelError(
                f"The module {type(module).__name__} is on {', '.join(sorted(homes))}, and the session asks for "
                f"'{device}'. Move it with module.to('{device}'), or ask for the device it is on"
            )
        torch.manual_seed(options.seed)
        mode = "graph" if isinstance(module, torch.jit.ScriptModule) else "eager"
        mode = "compiled" if is_compiled(module) else "exported" if is_exported(module) else mode
        inputs = tuple(
            TensorSpec(name=name, dtype=np.asarray(array).dtype.name, shape=(None,) * np.ndim(array))
            for name, array in example.items()
        )
        return PyTorchSession(
            module, inputs=inputs, outputs=(), options=options, mode=mode, digest=digest_of_module(module),
            converted=_converted(module, inputs, options, name=type(module).__name__, owned=False),
        )  # fmt: skip

    def save(self, obj: object, example: Mapping[str, npt.NDArray[Any]], folder: Path) -> tuple[Path, str]:
        """Export a module with ``torch.export``; a TorchScript module is saved as it is."""
        import torch

        module: Any = obj
        if isinstance(module, torch.jit.ScriptModule):
            module.save(str(folder / "model.torchscript"))
            return folder / "model.torchscript", "torchscript"
        arguments = [to_tensor(array.copy()) for array in example.values()]
        names = tuple(example)
        training = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            if by_keyword(module, names):
                program = torch.export.export(module, (), dict(zip(names, arguments, strict=True)))
            else:
                program = torch.export.export(module, tuple(arguments))
        finally:
            for part, was in training:
                part.training = was
        torch.export.save(program, folder / "model.pt2")
        return folder / "model.pt2", "torch_exported"


def _converted(
    module: Any, inputs: Sequence[TensorSpec], options: SessionOptions, *, name: str, owned: bool
) -> Converted | None:
    if options.precision is None:
        return None
    order = argument_order(module, [spec.name for spec in inputs])

    def arguments(feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        missing = [name for name in order if name not in feeds]
        if missing:
            raise InputError(f"A sample of SessionOptions.calibration lacks the input '{missing[0]}'")
        return [np.asarray(feeds[name]) for name in order]

    return to_precision(
        module, options.precision, name=name, device=device_of(options.device), owned=owned, arguments=arguments,
        calibration=options.calibration,
    )  # fmt: skip
