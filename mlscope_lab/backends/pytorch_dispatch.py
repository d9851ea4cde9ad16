"""PyTorch's operators as a dispatch mode sees them: what they compute, what they write to, what they draw from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from mlscope_lab.backends.pytorch_tape import flat_tensors
from mlscope_lab.trace.kinds import kind_of

__all__ = ["LIFTS", "Guard", "Operator", "dispatching", "kinds_of"]

Guard = Callable[[], AbstractContextManager[Any]]

LIFTS: Final = frozenset({"aten::lift_fresh", "aten::lift", "aten::lift_fresh_copy"})
"""What the code's own numbers and arrays pass through when they become tensors."""
# operators in place that change what a tensor says of itself, and no memory
_RENAMES: Final = frozenset(
    f"aten::{name}" for name in ("t_", "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "as_strided_")
)
# operators that change nothing of what is computed
_BOOKKEEPING: Final = frozenset({"aten::detach_", "aten::requires_grad_", "aten::rename_"})
_EMPTY: Final = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)
_NUMBERS: Final = frozenset(f"aten::{name}" for name in ("item", "is_nonzero", "_local_scalar_dense", "equal"))
_FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "aten::_transformer_encoder_layer_fwd": ("attention", "addition", "normalization", "product", "activation"),
    "aten::_native_multi_head_attention": ("attention",),
    "aten::_addmm_activation": ("product", "activation"),
    "aten::_weight_norm": ("normalization",),
    "aten::norm_except_dim": ("reduction",),
    "quantized::linear_dynamic": ("product",),
    "quantized::linear_dynamic_fp16": ("product",),
    "quantized::linear_relu_dynamic": ("product", "activation"),
    "quantized::linear_relu": ("product", "activation"),
    "quantized::linear_leaky_relu": ("product", "activation"),
    "quantized::linear_tanh": ("product", "activation"),
    "quantized::conv1d_relu": ("convolution", "activation"),
    "quantized::conv2d_relu": ("convolution", "activation"),
    "quantized::conv3d_relu": ("convolution", "activation"),
    "quantized::conv2d_add": ("convolution", "addition"),
    "quantized::conv2d_add_relu": ("convolution", "addition", "activation"),
    "quantized::add_relu": ("addition", "activation"),
    "quantized::mul_relu": ("multiplication", "activation"),
    "quantized::batch_norm2d": ("normalization",),
    "quantized::batch_norm2d_relu": ("normalization", "activation"),
    "aten::quantized_lstm": ("recurrent",),
    "aten::quantized_gru": ("recurrent",),
    "higher_order::cond": ("control",),
    "higher_order::while_loop": ("control",),
    "higher_order::scan": ("control",),
}


def kinds_of(name: str) -> tuple[str, ...]:
    """Return what an operator computes, in the words of `mlscope_lab.trace.kinds`.

    Examples
    --------
    >>> kinds_of("quantized::conv2d_relu"), kinds_of("aten::hardtanh_")
    (('convolution', 'activation'), ('activation',))
    """
    return _FUSED.get(name) or (kind_of(name),)


def dispatching(call: Callable[[Any, tuple[Any, ...], dict[str, Any], Guard], Any]) -> Any:
    """Return a dispatch mode that hands every operator with its arguments to `call`, which returns the result.

    The last thing that `call` is given makes a context in which an operator runs with the dispatcher's keys as they are
    now. Else PyTorch excludes those above the mode, and views of weights that an operator makes inside lose their
    ``requires_grad``, by which ``matmul`` chooses how to multiply: it would round otherwise than in a plain run.
    Operators that return views or write in place must do without: PyTorch notes the view once the mode has returned.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

    def as_now() -> AbstractContextManager[Any]:
        guard: AbstractContextManager[Any] = torch._C._ForceDispatchKeyGuard(*keys)
        return guard

    class _Watching(TorchDispatchMode):  # type: ignore[misc]
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return call(func, args, kwargs or {}, as_now)

    return _Watching()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """What is to be known of an operator, found once.

    Attributes
    ----------
    type
        ``aten::conv2d``.
    kinds
        What it computes.
    writes
        The arguments that it writes to: positions, or names of those that go by keyword.
    aliases
        Its schema says that it returns or writes to memory that it was given.
    renames
        It writes to no memory, but changes the shape of what it is given.
    idle
        It changes nothing of what is computed.
    random
        It may draw from a random generator.
    reads_numbers
        It returns a Python number or truth value that depends on the elements.
    clears
        Its result is memory as it came, which we clear, so that runs are the same.
    """

    type: str
    kinds: tuple[str, ...]
    writes: tuple[int | str, ...] = ()
    aliases: bool = False
    renames: bool = False
    idle: bool = False
    random: bool = False
    reads_numbers: bool = False
    clears: bool = False

    @property
    def label(self) -> str:
        """The name without its namespace."""
        return self.type.rpartition("::")[2]

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the tensors of a call's arguments that it writes to, each once."""
        found: list[Any] = []
        for where in self.writes:
            if isinstance(where, str):
                flat_tensors(kwargs.get(where), found)
            elif where < len(args):
                flat_tensors(args[where], found)
        return tuple({id(tensor): tensor for tensor in found}.values())

    @classmethod
    def of(cls, func: Any) -> Operator:
        """Return what its schema says."""
        schema = getattr(func, "_schema", None)
        if schema is None:  # control flow, which takes functions
            name = f"higher_order::{func.name()}"
            return cls(type=name, kinds=kinds_of(name))
        import torch

        name = schema.name
        writes: list[int | str] = []
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                writes.append(argument.name if argument.kwarg_only else position)
        return cls(
            type=name,
            kinds=kinds_of(name),
            writes=tuple(writes),
            aliases=any(x.alias_info is not None for x in (*schema.arguments, *schema.returns)),
            renames=name in _RENAMES,
            idle=name in _BOOKKEEPING,
            random=torch.Tag.nondeterministic_seeded in func.tags,
            reads_numbers=name in _NUMBERS,
            clears=name in _EMPTY,
        )
