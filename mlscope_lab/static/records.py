"""What a static profile says: one row a layer, plain dataclasses that every framework's walk fills.

Nothing here knows a framework. Bytes of a layer are not summed over its operators but taken at its boundary, from
the tensors that it reads and writes (`Transfer`), so that rows can be united, as a fused kernel unites them, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mlscope_lab.static.symbolic import Quantity

__all__ = ["CONVENTIONS", "KINDS", "CostTable", "LayerCost", "TensorShape", "Transfer", "Work"]

KINDS: Final = ("elementwise", "normalization", "pooling", "reduction", "resampling", "softmax", "other")

CONVENTIONS: Final = (
    "MACs are the multiply-adds of convolutions and matrix products alone (recurrent cells, attention and Einsum are "
    "matrix products), padding positions included; a multiply-add is 2 FLOPs.",
    "All other operators are counted apart, by kind: 1 FLOP for each element that an elementwise operator writes, "
    "whatever its function (a bias is an addition of this kind); normalisation 2 an element where statistics are given "
    "and 7 where they are computed; pooling 1 for each element of each window; reductions 1 for each element read; "
    "softmax 5 an element; linear interpolation 2 for each weighted neighbour. Moving and renaming data costs none.",
    "flops = 2 macs + those of all kinds. A layer whose operators are not known has -1 and counts in not_counted.",
    "Parameters are elements of weights, without running statistics (buffers); the total counts a shared one once.",
    "Bytes are those of the tensors that cross a layer's boundary, each once (in a loop, each turn): inputs + outputs "
    "+ parameters, of an embedding the rows taken; arithmetic intensity is FLOPs over these.",
    "Peak activation memory is the largest sum of live tensors while an operator runs, its inputs and outputs and the "
    "model's own included, weights not; a tensor lives from its writer to its last reader, and nothing runs in place "
    "(PyTorch: views and in-place operators share their storage, as the code says).",
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of one operator.

    Attributes
    ----------
    macs
        Multiply-adds of convolutions and matrix products.
    flops
        Other operations by kind, see `KINDS`.
    """

    macs: int = 0
    flops: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        kinds = {kind: self.flops.get(kind, 0) + other.flops.get(kind, 0) for kind in {*self.flops, *other.flops}}
        return Work(macs=self.macs + other.macs, flops=kinds)

    def __mul__(self, times: int) -> Work:
        return Work(macs=self.macs * times, flops={kind: n * times for kind, n in self.flops.items()})


@dataclass(frozen=True)
class TensorShape:
    """Element type and lengths of a tensor; a length that is not known is -1, a shape that is not known None."""

    dtype: str
    shape: tuple[Quantity, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[?]"
        return f"{self.dtype}[{','.join('?' if n == -1 else str(n) for n in self.shape)}]"


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A tensor that crosses a layer's boundary.

    Attributes
    ----------
    tensor
        Number of the tensor in its table.
    kind
        "input", "output" or "parameter".
    nbytes
        Its bytes.
    """

    tensor: int
    kind: str
    nbytes: Quantity


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of one layer: an ONNX node, a call of a torch module, a Keras layer.

    Attributes
    ----------
    name
        Unique label, spelled as the layers of a measured run are.
    type
        Operator or class name.
    scope
        Qualified name of the source module, or "".
    parent, depth
        Row of the enclosing layer, or -1; a container's own row holds no work, which its parts hold.
    inputs, outputs
        The tensors that it takes (weights excluded) and returns.
    counted
        False if operators in it are not known; what is known of it is still there.
    macs, flops
        As in `Work`.
    parameters, parameter_bytes
        Elements and stored bytes of the weights that it reads.
    transfers
        The tensors that it reads and writes.
    """

    name: str
    type: str
    scope: str = ""
    parent: int = -1
    depth: int = 0
    inputs: tuple[TensorShape, ...] = ()
    outputs: tuple[TensorShape, ...] = ()
    counted: bool = True
    macs: Quantity = 0
    flops: Mapping[str, Quantity] = field(default_factory=dict)
    parameters: Quantity = 0
    parameter_bytes: Quantity = 0
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """The static profile of a model.

    Attributes
    ----------
    model, source
        Its name, and what was read: "onnx", "torch", "torch_exported", "keras".
    layers
        In execution order.
    symbols
        Names of the dimensions that the quantities are polynomials of.
    parameters, parameter_bytes
        Of the whole model, each weight once.
    peak_activation_bytes
        See `CONVENTIONS`.
    peak_layer
        Row at which the peak is reached, or -1 where it depends on the lengths.
    unknown
        Operators that were not counted: {name: how often}.
    notes
        What the reader should know: which branch counted, which length was taken.
    """

    model: str
    source: str
    layers: tuple[LayerCost, ...]
    symbols: tuple[str, ...] = ()
    parameters: Quantity = 0
    parameter_bytes: Quantity = 0
    peak_activation_bytes: Quantity = 0
    peak_layer: int = -1
    unknown: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
