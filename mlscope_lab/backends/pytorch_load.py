"""PyTorch modules from files, without running what nobody trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mlscope_lab import plugins
from mlscope_lab.backends.base import ModelFiles
from mlscope_lab.errors import BackendNotAvailableError, UnsafeArtifactError, UnsupportedModelError

__all__ = ["FORMATS", "LIVE_DIGEST_PREFIX", "digest_of_module", "load_module"]

FORMATS = ("torch_state_dict", "safetensors", "torchscript", "torch_exported")
LIVE_DIGEST_PREFIX = "live-sha256:"
_SHOWN = 5


def load_module(model: ModelFiles) -> Any:
    """Load a model file into a module on the CPU, in evaluation mode where the format knows one.

    Returns
    -------
    torch.nn.Module
        Eager for weights with an architecture, a ScriptModule for "torchscript", a graph module for "torch_exported".

    Raises
    ------
    UnsupportedModelError
        If the format is not one of `FORMATS`, the file is not what its format says, or its weights do not fit.
    UnsafeArtifactError
        If opening the file would run code.
    BackendNotAvailableError
        If the format needs a package that is not installed.
    """
    if model.format == "torchscript":
        return _script(model)
    if model.format == "torch_exported":
        return _exported(model)
    if model.format == "torch_state_dict":
        return _with_weights(model, _state_dict(model))
    if model.format == "safetensors":
        return _with_weights(model, _safetensors(model))
    raise UnsupportedModelError(
        f"Backend 'pytorch' cannot open '{model.name}' in format '{model.format}'. It opens: {', '.join(FORMATS)}"
    )


def _unreadable(model: ModelFiles, what: str, error: BaseException) -> UnsupportedModelError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UnsupportedModelError(f"'{model.name}': {model.path.name} is not {what}: {first}")


def _script(model: ModelFiles) -> Any:
    import warnings

    import torch

    try:
        with warnings.catch_warnings():  # torch deprecates the format; files in it stay, and we open them on purpose
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
            return torch.jit.load(str(model.path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise _unreadable(model, "a TorchScript archive", error) from error


def _exported(model: ModelFiles) -> Any:
    if not model.trusted:
        raise UnsafeArtifactError(
            f"'{model.name}': {model.path.name} is a torch.export archive, and loading one can run any code that its "
            f"author put there. If you trust its author, set 'trusted: true' on that source of the manifest "
            f"(ModelFiles(trusted=True)); else ask for a state dict, safetensors, TorchScript or ONNX"
        )
    import torch

    try:
        return torch.export.load(str(model.path)).module()
    except Exception as error:  # the reader raises whatever its JSON, zip and pickle layers raise
        raise _unreadable(model, "a torch.export archive of this PyTorch version", error) from error


def _state_dict(model: ModelFiles) -> Mapping[str, Any]:
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():  # of pickle protocols; what cannot be read raises
            warnings.filterwarnings("ignore", category=UserWarning, message="Detected pickle protocol")
            state = torch.load(model.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "class" in line), "")
        if reason:
            raise UnsafeArtifactError(
                f"'{model.name}': {model.path.name} holds more than weights and is not opened, for unpickling it would "
                f"run code ({reason}). Save the weights alone: torch.save(module.state_dict(), path), or safetensors"
            ) from error
        raise _unreadable(model, "a PyTorch state dict", error) from error
    except Exception as error:  # a malformed pickle makes its reader stumble in many ways
        raise _unreadable(model, "a PyTorch state dict", error) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        holds = f"the keys {_some(list(state))}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise UnsupportedModelError(
            f"'{model.name}': {model.path.name} holds {holds}, not a state dict (names to tensors). "
            f"Save the weights alone: torch.save(module.state_dict(), path)"
        )
    return state


def _safetensors(model: ModelFiles) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise BackendNotAvailableError(
            f"'{model.name}' is in safetensors: {error}. Install with: pip install 'mlscope-lab[pytorch]'"
        ) from error
    try:
        state: dict[str, Any] = load_file(model.path, device="cpu")
    except SafetensorError as error:
        raise _unreadable(model, "a safetensors file", error) from error
    return state


def _some(names: list[Any]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _with_weights(model: ModelFiles, state: Mapping[str, Any]) -> Any:
    if model.architecture is None:
        raise UnsupportedModelError(
            f"'{model.name}': format '{model.format}' holds weights only; name an architecture. "
            f"Registered: {', '.join(plugins.names('mlscope_lab.architectures'))}"
        )
    import torch

    build = plugins.load("mlscope_lab.architectures", model.architecture)
    try:
        module = build(**model.parameters)
    except TypeError as error:
        raise UnsupportedModelError(f"'{model.name}': architecture '{model.architecture}': {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise UnsupportedModelError(
            f"'{model.name}': architecture '{model.architecture}' builds a {type(module).__name__}, not a torch module"
        )
    want = module.state_dict()
    missing = [name for name in want if name not in state]
    unexpected = [name for name in state if name not in want]
    if missing or unexpected:
        parts = [f"misses {_some(missing)}"] * bool(missing) + [f"has the unknown {_some(unexpected)}"] * bool(
            unexpected
        )
        raise UnsupportedModelError(
            f"'{model.name}': the weights do not fit architecture '{model.architecture}': {model.path.name} "
            f"{' and '.join(parts)}. Check 'architecture' and 'parameters' of the manifest"
        )
    for name, tensor in want.items():
        if tensor.shape != state[name].shape:
            raise UnsupportedModelError(
                f"'{model.name}': the weights do not fit architecture '{model.architecture}': '{name}' is "
                f"{tuple(state[name].shape)} in {model.path.name} and {tuple(tensor.shape)} in the architecture. "
                f"Check 'parameters' of the manifest"
            )
    # assign keeps the element type of the file, so that half-precision weights are measured as such
    module.load_state_dict(state, assign=True)
    return module.eval()


def digest_of_module(module: Any) -> str:
    """Return a digest of a live module: the classes and names in its tree, and every weight and buffer.

    Code in ``forward`` is not covered: two classes of the same name may differ in it.
    """
    import torch

    digest = hashlib.sha256()
    for name, child in module.named_modules():
        digest.update(f"{name}={type(child).__module__}.{type(child).__qualname__}({child.extra_repr()})\n".encode())
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)}\n".encode())
        if tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta":
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(flat.numpy()))
    return LIVE_DIGEST_PREFIX + digest.hexdigest()
