"""PyTorch modules in another precision, changed with PyTorch's own tools; what was given stays as it was.

Floating types are ``module.to(dtype)`` on a copy. 8-bit integers are those of ``torch.ao.quantization``: linear and
recurrent layers with ranges found as they run (``int8-dynamic``), or whole graphs with ranges learned from samples
(``int8-static``), for the engine of this processor. PyTorch has announced the end of that package in favour of another
distribution, which is not used here; its warnings about that are silenced, no others.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_arguments import is_compiled, is_exported
from mlscope_lab.backends.pytorch_values import dtype_name, to_tensor
from mlscope_lab.errors import InputError, UnsupportedModelError

__all__ = ["Casts", "Converted", "to_precision"]

_FLOATS: Final = ("float64", "float32", "float16", "bfloat16")
_EXPECTED: Final = (
    (DeprecationWarning, "torch.ao.quantization is deprecated"),
    (UserWarning, "torch.quantize_per_tensor, torch.quantize_per_channel and other"),
    (UserWarning, "Please use quant_min and quant_max to specify the range for observers"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # of an exported graph when it is copied
)


@dataclass(frozen=True, kw_only=True)
class Casts:
    """What happens to floating tensors on the way in and out.

    Attributes
    ----------
    computed
        The torch type in which the module computes.
    published
        The one that its inputs and outputs have.
    """

    computed: Any
    published: Any

    def inward(self, tensor: Any) -> Any:
        """Return an input as the module wants it."""
        return tensor.to(self.computed) if tensor.is_floating_point() else tensor

    def outward(self, tensor: Any) -> Any:
        """Return an output as the session hands it out."""
        return tensor.to(self.published) if getattr(tensor, "dtype", None) == self.computed else tensor


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A module in another precision.

    Attributes
    ----------
    module
        A copy, unless the given one was ours.
    casts
        Of its inputs and outputs.
    notes
        What the user should know: layers that stay as they were.
    """

    module: Any
    casts: Casts
    notes: tuple[str, ...] = ()


def to_precision(
    module: Any,
    precision: str,
    *,
    name: str,
    device: str,
    owned: bool,
    arguments: Callable[[Mapping[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]],
    calibration: Sequence[Mapping[str, npt.NDArray[Any]]] = (),
) -> Converted:
    """Return a module in one of `mlscope_lab.backends.base.PRECISIONS`.

    Parameters
    ----------
    module
        Eager, TorchScript or exported.
    precision
        What to compute in.
    name
        The model's, for messages.
    device
        Where it is to run.
    owned
        The module is nobody else's, so that floating types need no copy.
    arguments
        Returns feeds in the order of the module's arguments.
    calibration
        Feeds from which "int8-static" learns ranges.

    Raises
    ------
    UnsupportedModelError
        If PyTorch cannot do this with this module; the message says why.
    InputError
        If "int8-static" lacks samples.
    """
    import torch

    if is_compiled(module):
        raise UnsupportedModelError(
            f"'{name}' is under torch.compile, so its precision is fixed; open the module that was compiled"
        )
    published = _published(module)
    if published.is_complex:
        raise UnsupportedModelError(f"'{name}' computes in {dtype_name(published)}, which has no other precision")
    own = module if owned else _copied(module, name)
    if precision in _FLOATS:
        dtype = getattr(torch, precision)
        return Converted(module=own.to(dtype), casts=Casts(computed=dtype, published=published))
    casts = Casts(computed=torch.float32, published=published)
    if device != "cpu":
        raise UnsupportedModelError(f"PyTorch quantises for the CPU only; open '{name}' with device='cpu'")
    if torch.backends.quantized.engine == "none":
        raise UnsupportedModelError("This build of PyTorch has no engine for quantised operators")
    if isinstance(module, torch.jit.ScriptModule) or is_exported(module):
        kind = "an exported program" if is_exported(module) else "TorchScript"
        raise UnsupportedModelError(
            f"'{name}' is {kind}, and PyTorch quantises eager modules only; open it from its weights and architecture, "
            "or as a live module"
        )
    own = own.float().eval()
    with _expected_warnings():
        if precision == "int8-dynamic":
            made, notes = _dynamic(own, name)
        else:
            if not calibration:
                raise InputError(
                    "precision='int8-static' learns its ranges from samples: give some in SessionOptions.calibration"
                )
            samples = [
                [casts.inward(to_tensor(np.array(array))) for array in arguments(feeds)] for feeds in calibration
            ]
            made, notes = _static(own, name, samples)
    return Converted(module=made, casts=casts, notes=notes)


def _published(module: Any) -> Any:
    """Return the type of most of a module's weights, float32 for one without."""
    import torch

    counts: dict[Any, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


def _copied(module: Any, name: str) -> Any:
    import torch

    try:
        # TorchScript copies weights by an operator, which autograd would remember
        with torch.no_grad(), _expected_warnings():
            own = copy.deepcopy(module)
        for mine, given in zip(own.parameters(), module.parameters(), strict=True):
            mine.requires_grad_(given.requires_grad)
        return own
    except Exception as error:  # whatever the members of a foreign module raise
        raise UnsupportedModelError(
            f"'{name}' cannot be copied, and a live module is never changed: {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _expected_warnings() -> Iterator[None]:
    """Silence what PyTorch says of its own packages."""
    with warnings.catch_warnings():
        for category, start in _EXPECTED:
            warnings.filterwarnings("ignore", category=category, message=start)
        yield


def _dynamic(module: Any, name: str) -> tuple[Any, tuple[str, ...]]:
    import torch
    from torch.ao.quantization import quantize_dynamic

    kinds = {torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU, torch.nn.LSTMCell, torch.nn.GRUCell, torch.nn.RNNCell}
    fused = [part for part in module.modules() if isinstance(part, torch.nn.TransformerEncoderLayer)]
    for part in fused:  # its fused path reads weights as tensors, which quantised layers do not have
        part.activation_relu_or_gelu = 0
    holder = quantize_dynamic(torch.nn.Sequential(module), kinds, dtype=torch.qint8)
    made = holder[0]
    changed, left = _counted(made)
    if not changed:
        raise UnsupportedModelError(
            f"'{name}' has no linear or recurrent layer, and PyTorch quantises no others dynamically; "
            "precision='int8-static' takes convolutions too"
        )
    notes = _left(changed, left)
    if fused:
        notes += ("Transformer layers run unfused: PyTorch's fused path takes no quantised weights",)
    return made, notes


def _static(module: Any, name: str, samples: list[list[Any]]) -> tuple[Any, tuple[str, ...]]:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    try:
        graph = torch.fx.symbolic_trace(module)
    except Exception as error:  # a tracer stumbles over whatever a forward does
        raise UnsupportedModelError(
            f"'{name}' cannot be quantised with ranges from samples, for PyTorch cannot trace its forward: "
            f"{_first_line(error)}. precision='int8-dynamic' needs no trace"
        ) from error
    _layers_for_calls(graph)
    engine = torch.backends.quantized.engine
    try:
        prepared = prepare_fx(graph, get_default_qconfig_mapping(engine), tuple(samples[0]))
        with torch.inference_mode():
            for sample in samples:
                prepared(*sample)
            made = convert_fx(prepared)
            made(*samples[0])
    except Exception as error:  # as above; it may also be an operator that the engine lacks
        raise UnsupportedModelError(
            f"'{name}' cannot be quantised with ranges from samples (engine {engine}): {_first_line(error)}"
        ) from error
    changed, left = _counted(made)
    if not changed:
        raise UnsupportedModelError(f"'{name}' has no layer that PyTorch quantises with ranges from samples")
    return made, _left(changed, left)


def _layers_for_calls(graph: Any) -> None:
    """Put a convolution's layer in the place of a call of its function, so that it is quantised as one.

    The tracer goes into subclasses of layers and finds calls of functions there, which are not folded with what
    follows.
    """
    import torch

    layers: dict[Any, tuple[Any, int]] = {
        torch.nn.functional.conv1d: (torch.nn.Conv1d, 1),
        torch.nn.functional.conv2d: (torch.nn.Conv2d, 2),
        torch.nn.functional.conv3d: (torch.nn.Conv3d, 3),
    }
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in layers:
            continue
        build, rank = layers[node.target]
        given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        given |= dict(zip(names, node.args[1:], strict=False)) | {k: v for k, v in node.kwargs.items() if k != "input"}
        weight, bias = given.pop("weight"), given.pop("bias")
        known = all(part is None or getattr(part, "op", "") == "get_attr" for part in (weight, bias))
        place = weight.target.rpartition(".")[0] if known else ""
        if not place or isinstance(given["padding"], str):
            continue
        kernel = graph.get_parameter(weight.target)
        sizes = {key: value if isinstance(value, tuple) else (value,) * rank for key, value in given.items()
                 if key != "groups"}  # fmt: skip
        layer = build(
            kernel.shape[1] * given["groups"], kernel.shape[0], tuple(kernel.shape[2:]), groups=given["groups"],
            bias=bias is not None, **sizes,
        ).eval()  # fmt: skip
        layer.weight = kernel
        if bias is not None:
            layer.bias = graph.get_parameter(bias.target)
        if sum(user.op == "call_function" for user in weight.users) > 1:  # shared by several calls
            place = f"{place}.{node.name}"
        graph.add_submodule(place, layer)
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(place, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
        for part in (weight, bias):
            if part is not None and not part.users:
                graph.graph.erase_node(part)
    graph.recompile()


def _counted(module: Any) -> tuple[int, dict[str, int]]:
    """Return how many layers are quantised, and how many of each type keep their weights."""
    changed, left = 0, dict[str, int]()
    for part in module.modules():
        if ".quantized" in type(part).__module__ and "Packed" not in type(part).__name__:
            changed += any(hasattr(part, name) for name in ("_packed_params", "_all_weight_values", "weight"))
        elif any(True for _ in part.parameters(recurse=False)):
            left[type(part).__name__] = left.get(type(part).__name__, 0) + 1
    return changed, left


def _left(changed: int, left: Mapping[str, int]) -> tuple[str, ...]:
    if not left:
        return ()
    kept = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
    return (f"{changed} layers are in 8 bits; these keep their weights: {kept}",)


def _first_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"
