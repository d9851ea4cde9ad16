"""Which formula each ATen operator takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mlscope_lab.static import formulas
from mlscope_lab.static.records import Work

__all__ = ["TABLES", "AtenCall", "operator_name", "work_of"]


@dataclass(frozen=True, kw_only=True)
class AtenCall:
    """An operator that reached PyTorch's dispatcher.

    Attributes
    ----------
    func
        The overload.
    arguments
        By the names of its schema, defaults filled in.
    results
        What it returned, tensors only.
    """

    func: Any
    arguments: Mapping[str, Any]
    results: Sequence[Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor argument."""
        return tuple(self.arguments[name].shape)

    def first(self) -> tuple[int, ...]:
        """Return the shape of the first tensor argument."""
        import torch

        for value in self.arguments.values():
            if isinstance(value, torch.Tensor):
                return tuple(value.shape)
            if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
                return tuple(value[0].shape)
        return ()

    def made(self) -> tuple[int, ...]:
        """Return the shape of the first result."""
        return tuple(self.results[0].shape) if self.results else ()

    def has(self, name: str) -> bool:
        """Tell whether an argument was given and is not None."""
        return self.arguments.get(name) is not None


_Handler = Callable[[AtenCall], Work]


def _convolution(call: AtenCall) -> Work:
    kernel, groups = call.shape("weight"), int(call.arguments.get("groups", 1))
    bias = call.has("bias")
    if call.arguments.get("transposed"):
        return formulas.transposed_convolution(
            call.shape("input"), kernel[2:], kernel[1] * groups, groups, call.made(), bias=bias
        )
    return formulas.convolution(call.made(), kernel[2:], kernel[1] * groups, groups, bias=bias)


def _product(left: str, right: str, added: bool = False) -> _Handler:
    def count(call: AtenCall) -> Work:
        work = formulas.matmul(call.shape(left), call.shape(right))
        plus = added and call.arguments.get("beta", 1) != 0
        return work + formulas.elementwise(call.made()) if plus else work

    return count


def _linear(call: AtenCall) -> Work:
    work = Work(macs=math.prod(call.shape("input")[:-1]) * math.prod(call.shape("weight")))
    return work + formulas.elementwise(call.made()) if call.has("bias") else work


def _dot(call: AtenCall) -> Work:
    return Work(macs=math.prod(call.first()))


def _attention(call: AtenCall) -> Work:
    masked = call.has("attn_mask") or call.has("attn_bias") or bool(call.arguments.get("is_causal"))
    return formulas.attention(call.shape("query"), call.shape("key"), call.shape("value"), mask=masked)


def _projected_attention(batch: int, queries: int, keys: int, width: int, heads: int, mask: bool) -> Work:
    """Count self-attention with its four projections and their biases."""
    head = (batch, heads, queries, width // heads)
    other = (batch, heads, keys, width // heads)
    macs = batch * width * width * (2 * queries + 2 * keys)
    biases = formulas.elementwise((batch, 2 * queries + 2 * keys, width))
    return Work(macs=macs) + biases + formulas.attention(head, other, other, mask=mask)


def _fast_attention(call: AtenCall) -> Work:
    query, key = call.shape("query"), call.shape("key")
    return _projected_attention(
        query[0], query[1], key[1], int(call.arguments["embed_dim"]), int(call.arguments["num_head"]), call.has("mask")
    )


def _fast_encoder(call: AtenCall) -> Work:
    batch, length, width = call.shape("src")
    hidden = call.shape("ffn_weight_1")[0]
    work = _projected_attention(batch, length, length, width, int(call.arguments["num_heads"]), call.has("mask"))
    wide, narrow = (batch, length, hidden), (batch, length, width)
    work += Work(macs=2 * batch * length * width * hidden)
    work += formulas.elementwise(wide, 2) + formulas.elementwise(narrow, 3)  # biases, activation, residuals
    return work + formulas.normalization(narrow, given=False) + formulas.normalization(narrow, given=False)


def _recurrent(call: AtenCall) -> Work:
    steps, batch, inputs = call.shape("input")
    kind = {2: "LSTM", 3: "GRU"}.get(int(call.arguments["mode"]), "RNN")
    return formulas.recurrent(
        kind, steps=steps, batch=batch, inputs=inputs, hidden=int(call.arguments["hidden_size"]), directions=1,
        bias=bool(call.arguments["has_biases"]),
    )  # fmt: skip


def _batch_normalization(call: AtenCall) -> Work:
    training = bool(call.arguments.get("training", call.arguments.get("train", False)))
    return formulas.normalization(call.made(), given=not training)


def _normalization(call: AtenCall) -> Work:
    return formulas.normalization(call.made(), given=False)


def _pooling(call: AtenCall) -> Work:
    kernel = list(call.arguments["kernel_size"])
    axes = len(call.made()) - (2 if len(kernel) > 1 or len(call.made()) > 2 else 1)
    return formulas.pooling(call.made(), kernel * axes if len(kernel) == 1 else kernel)


def _adaptive_pooling(call: AtenCall) -> Work:
    """Count the elements of all windows, which overlap where lengths do not divide."""
    given, target = call.first(), list(call.arguments["output_size"])
    count = math.prod(given[: len(given) - len(target)])
    for length, windows in zip(given[len(given) - len(target) :], target, strict=True):
        count *= sum(-(-(i + 1) * length // windows) - i * length // windows for i in range(windows))
    return Work(flops={"pooling": count})


def _reduction(call: AtenCall) -> Work:
    return formulas.reduction(math.prod(call.first()))


def _variance(call: AtenCall) -> Work:
    """Count the mean, and the difference, square and sum of the spread."""
    return formulas.reduction(4 * math.prod(call.first()))


def _softmax(call: AtenCall) -> Work:
    return formulas.softmax(call.made())


def _elementwise(call: AtenCall) -> Work:
    return formulas.elementwise(call.made())


def _two_elementwise(call: AtenCall) -> Work:
    return formulas.elementwise(call.made(), 2)


def _interpolation(each: int) -> _Handler:
    def count(call: AtenCall) -> Work:
        scaled = sum(a != b for a, b in zip(call.first()[2:], call.made()[2:], strict=True))
        return formulas.interpolation(call.made(), each**scaled if each and scaled else 0)

    return count


def _grid_sampling(call: AtenCall) -> Work:
    each = {0: 2, 1: 0, 2: 4}[int(call.arguments["interpolation_mode"])]
    return formulas.interpolation(call.made(), each ** (len(call.made()) - 2) if each else 0)


def _sorting(call: AtenCall) -> Work:
    shape = call.first()
    length = shape[int(call.arguments.get("dim", -1))] if shape else 1
    return Work(flops={"other": math.prod(shape) * max(math.ceil(math.log2(length)), 1) if length else 0})


def _dropout(call: AtenCall) -> Work:
    return formulas.elementwise(call.made(), 2) if call.arguments.get("train") else Work()


def _bag(call: AtenCall) -> Work:
    return formulas.reduction(math.prod(call.shape("indices")) * call.shape("weight")[-1])


def _trilinear(call: AtenCall) -> Work:
    """Count a product of three, summed: two multiplications and an addition for each combination of indices."""
    sizes: dict[int, int] = {}
    for name, expanded in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        shape = list(call.shape(name))
        for axis in sorted(call.arguments[expanded]):
            shape.insert(axis, 1)
        sizes.update({axis: max(n, sizes.get(axis, 1)) for axis, n in enumerate(shape)})
    total = math.prod(sizes.values())
    return Work(macs=total, flops={"elementwise": total})


def _nothing(_: AtenCall) -> Work:
    return Work()


_MOVES = (
    "_conj _local_scalar_dense _neg_view _nested_tensor_from_mask _reshape_alias _shape_as_tensor _to_copy "
    "_unsafe_index _unsafe_view alias arange as_strided bernoulli bucketize cat channel_shuffle clone col2im "
    "constant_pad_nd contiguous copy detach device diag_embed diagonal embedding empty empty_like empty_permuted "
    "empty_strided expand eye fill flatten flip full full_like gather im2col index index_copy index_put "
    "index_select lift_fresh lift_fresh_copy linspace masked_scatter masked_select meshgrid narrow new_empty "
    "new_empty_strided new_full new_ones new_zeros nonzero normal one_hot ones ones_like permute pixel_shuffle "
    "pixel_unshuffle rand rand_like randint randn randn_like reflection_pad1d reflection_pad2d reflection_pad3d "
    "repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resize roll rot90 "
    "scalar_tensor scatter searchsorted select select_scatter set_ slice slice_scatter split split_with_sizes "
    "squeeze stack sym_size t unsafe_split unsafe_split_with_sizes unsafe_chunk take transpose tril tril_indices "
    "triu triu_indices unbind unfold uniform unsqueeze view view_as zero zeros zeros_like _assert_async "
    "_assert_tensor_metadata _assert_scalar item view_as_complex view_as_real"
)
_REDUCTIONS = (
    "all amax amin aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean median min norm prod "
    "sum"
)
_POINTWISE = "_fused_dropout cumsum cumprod cummax cummin masked_fill glu _prelu_kernel rrelu_with_noise"

# of their weights only the rows taken are read
TABLES: Final = frozenset({"embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select"})
_HANDLERS: Final[dict[str, _Handler]] = {
    **dict.fromkeys(_MOVES.split(), _nothing),
    **dict.fromkeys(_REDUCTIONS.split(), _reduction),
    **dict.fromkeys(_POINTWISE.split(), _elementwise),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable"), _convolution),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "mv": _product("self", "vec"),
    "addmm": _product("mat1", "mat2", added=True),
    "addmv": _product("mat", "vec", added=True),
    "baddbmm": _product("batch1", "batch2", added=True),
    "addbmm": _product("batch1", "batch2", added=True),
    "matmul": _product("self", "other"),
    "_int_mm": _product("self", "mat2"),
    "_scaled_mm": _product("self", "mat2"),
    "_addmm_activation": lambda call: _product("mat1", "mat2", added=True)(call) + _elementwise(call),
    "linear": _linear,
    "_trilinear": _trilinear,
    "dot": _dot,
    "vdot": _dot,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "scaled_dot_product_attention": _attention,
    "_native_multi_head_attention": _fast_attention,
    "_transformer_encoder_layer_fwd": _fast_encoder,
    "mkldnn_rnn_layer": _recurrent,
    "native_batch_norm": _batch_normalization,
    "_native_batch_norm_legit": _batch_normalization,
    "_native_batch_norm_legit_no_training": _batch_normalization,
    "_batch_norm_with_update": _batch_normalization,
    "_batch_norm_no_update": _batch_normalization,
    "batch_norm": _batch_normalization,
    "cudnn_batch_norm": _batch_normalization,
    "native_layer_norm": _normalization,
    "layer_norm": _normalization,
    "native_group_norm": _normalization,
    "group_norm": _normalization,
    "_fused_rms_norm": _normalization,
    "rms_norm": _normalization,
    "max_pool2d": _pooling,
    "max_pool1d": _pooling,
    "max_pool3d": _pooling,
    "max_pool2d_with_indices": _pooling,
    "max_pool3d_with_indices": _pooling,
    "avg_pool1d": _pooling,
    "avg_pool2d": _pooling,
    "avg_pool3d": _pooling,
    "mkldnn_max_pool2d": _pooling,
    "_adaptive_avg_pool2d": _adaptive_pooling,
    "_adaptive_avg_pool3d": _adaptive_pooling,
    "adaptive_avg_pool1d": _adaptive_pooling,
    "adaptive_avg_pool2d": _adaptive_pooling,
    "adaptive_avg_pool3d": _adaptive_pooling,
    "adaptive_max_pool1d": _adaptive_pooling,
    "adaptive_max_pool2d": _adaptive_pooling,
    "adaptive_max_pool3d": _adaptive_pooling,
    "std": _variance,
    "std_mean": _variance,
    "var": _variance,
    "var_mean": _variance,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_safe_softmax": _softmax,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "upsample_nearest1d": _interpolation(0),
    "upsample_nearest2d": _interpolation(0),
    "upsample_nearest3d": _interpolation(0),
    "upsample_linear1d": _interpolation(2),
    "upsample_bilinear2d": _interpolation(2),
    "upsample_trilinear3d": _interpolation(2),
    "upsample_bicubic2d": _interpolation(4),
    "grid_sampler_2d": _grid_sampling,
    "grid_sampler_3d": _grid_sampling,
    "sort": _sorting,
    "argsort": _sorting,
    "topk": _sorting,
    "native_dropout": _dropout,
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
    "addcmul": _two_elementwise,
    "addcdiv": _two_elementwise,
}


def operator_name(func: Any) -> str:
    """Return an overload's plain name: ``add`` for ``aten.add_.Tensor``."""
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def work_of(call: AtenCall) -> Work | None:
    """Count an operator; None if it is not known.

    Operators that PyTorch marks as views move nothing; those it marks as pointwise are elementwise.
    """
    import torch

    handler = _HANDLERS.get(operator_name(call.func)) if call.func.namespace in {"aten", "prim"} else None
    if handler is not None:
        return handler(call)
    if call.func.is_view:
        return Work()
    if torch.Tag.pointwise in call.func.tags:
        return _elementwise(call)
    return None
