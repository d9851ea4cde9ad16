"""Operations of each operator as a function of shapes; every framework's walk calls these and none has its own.

Shapes are tuples of int. Multiply-adds count every position of the output, those over padding included: that is what a
direct convolution computes, and what papers state.

References
----------
Sze, Chen, Yang and Emer, "Efficient Processing of Deep Neural Networks: A Tutorial and Survey", arXiv:1703.09039, for
the loop nests of convolution and matrix product; Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, and Cho et
al., arXiv:1406.1078, for the gates of LSTM and GRU; Vaswani et al., arXiv:1706.03762, for attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.records import Work

__all__ = [
    "RECURRENT_GATES", "Shape", "attention", "convolution", "einsum", "elementwise", "interpolation", "matmul",
    "normalization", "pooling", "recurrent", "reduction", "size", "softmax", "transposed_convolution",
]  # fmt: skip

Shape = Sequence[int]
RECURRENT_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_SOFTMAX_STEPS = 5  # maximum, difference, exponential, sum, quotient
_STATISTICS_STEPS = 7  # mean; difference, square, sum of these; scale to unit variance; weight, bias
_AFFINE_STEPS = 2  # with given statistics the whole is one multiplication and one addition


def size(shape: Shape) -> int:
    """Return the number of elements."""
    return math.prod(shape)


def convolution(output: Shape, kernel: Shape, inputs: int, groups: int, *, channel_axis: int = 1,
                bias: bool = False) -> Work:  # fmt: skip
    """Count a convolution of any rank, stride and dilation.

    Parameters
    ----------
    output
        Shape of the result.
    kernel
        Its spatial extent.
    inputs
        Channels of the input, all groups together.
    groups
        Groups; equal to `inputs` in a depthwise convolution.
    channel_axis
        Of the result.
    bias
        Whether a bias is added.
    """
    channels = output[channel_axis]
    positions = size(output) // channels if channels else 0
    macs = positions * channels * (inputs // groups) * size(kernel)
    return Work(macs=macs, flops={"elementwise": size(output)} if bias else {})


def transposed_convolution(
    given: Shape, kernel: Shape, outputs: int, groups: int, output: Shape, *, bias: bool = False
) -> Work:
    """Count a transposed convolution: each input element meets every weight of its channel once."""
    macs = size(given) * (outputs // groups) * size(kernel)
    return Work(macs=macs, flops={"elementwise": size(output)} if bias else {})


def matmul(left: Shape, right: Shape) -> Work:
    """Count numpy's matrix product, broadcasting included."""
    if not left or not right:
        raise UnsupportedModelError("A matrix product needs operands of at least one dimension")
    a = (1, *left) if len(left) == 1 else tuple(left)
    b = (*right, 1) if len(right) == 1 else tuple(right)
    return Work(macs=size(_broadcast(a[:-2], b[:-2])) * a[-2] * a[-1] * b[-1])


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True)
    return tuple(max(x, y) if 0 not in (x, y) else 0 for x, y in pairs)


def einsum(equation: str, shapes: Sequence[Shape]) -> Work:
    """Count an Einstein sum, operands taken from left to right.

    Two operands that share a summed index are a matrix product: a multiply-add for each combination of all indices.
    Without a summed index they are an elementwise product, and a single operand is a reduction or a transposition.
    """
    inputs, result = _einsum_labels(equation, shapes)
    lengths: dict[str, int] = {}
    for labels, shape in zip(inputs, shapes, strict=True):
        for label, length in zip(labels, shape, strict=True):
            lengths[label] = max(lengths.get(label, 1), length) if length else 0

    def extent(labels: set[str]) -> int:
        return math.prod(lengths[label] for label in labels)

    current, rest = set(inputs[0]), inputs[1:]
    if not rest:
        summed = current - set(result)
        return reduction(extent(current)) if summed else Work()
    work = Work()
    for index, labels in enumerate(rest):
        both = current | set(labels)
        later = set(result).union(*rest[index + 1 :])
        if both - later:
            work += Work(macs=extent(both))
        else:
            work += Work(flops={"elementwise": extent(both)})
        current = both & later
    return work


def _einsum_labels(equation: str, shapes: Sequence[Shape]) -> tuple[list[list[str]], list[str]]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(shapes):
        raise UnsupportedModelError(f"Einsum '{equation}' names {len(operands)} operands, the node has {len(shapes)}")
    spread = max((len(s) - len(o.replace("...", "")) for o, s in zip(operands, shapes, strict=True) if "..." in o),
                 default=0)  # fmt: skip
    dots = [f"...{i}" for i in range(spread)]

    def expanded(text: str, rank: int | None) -> list[str]:
        before, found, after = text.partition("...")
        if not found:
            return list(text)
        own = dots if rank is None else dots[len(dots) - (rank - len(before) - len(after)) :]
        return [*before, *own, *after] if rank is None or rank > len(before) + len(after) else [*before, *after]

    inputs = [expanded(o, len(s)) for o, s in zip(operands, shapes, strict=True)]
    if any(len(labels) != len(shape) for labels, shape in zip(inputs, shapes, strict=True)):
        raise UnsupportedModelError(f"Einsum '{equation}' does not fit operands of shapes {list(map(list, shapes))}")
    if arrow:
        return inputs, expanded(right, None)
    flat = [label for labels in inputs for label in labels]
    return inputs, dots + sorted(label for label in set(flat) if flat.count(label) == 1 and label not in dots)


def recurrent(kind: str, *, steps: int, batch: int, inputs: int, hidden: int, directions: int, projected: int = 0,
              bias: bool = True) -> Work:  # fmt: skip
    """Count a recurrent layer of type "RNN", "GRU" or "LSTM".

    A step multiplies input and state by a matrix for each gate; elementwise are the biases of each gate (two), its
    sum and activation, and what joins the gates to the state: LSTM 5 operations, GRU 5, RNN none.
    """
    gates = RECURRENT_GATES[kind]
    state = projected or hidden
    cells = steps * batch * directions
    macs = cells * (gates * hidden * (inputs + state) + projected * hidden)
    joined = {"RNN": 0, "GRU": 5, "LSTM": 5}[kind]
    return Work(macs=macs, flops={"elementwise": cells * hidden * (gates * (4 if bias else 2) + joined)})


def attention(query: Shape, key: Shape, value: Shape, *, mask: bool = False) -> Work:
    """Count scaled dot-product attention of heads (..., length, features); causal ones compute the whole square too.

    Two matrix products; elementwise the scale and, where there is one, the mask; a softmax over the scores.
    """
    *outer, queries, features = query
    scores = size(_broadcast(outer, key[:-2])) * queries * key[-2]
    return Work(
        macs=scores * (features + value[-1]),
        flops={"elementwise": scores * (2 if mask else 1), "softmax": scores * _SOFTMAX_STEPS},
    )


def elementwise(output: Shape, operators: int = 1) -> Work:
    """Count elementwise operators: one operation for each element written."""
    return Work(flops={"elementwise": size(output) * operators})


def normalization(output: Shape, *, given: bool) -> Work:
    """Count a normalisation: by given statistics (batch normalisation at inference), or by those of the input."""
    return Work(flops={"normalization": size(output) * (_AFFINE_STEPS if given else _STATISTICS_STEPS)})


def pooling(output: Shape, window: Shape) -> Work:
    """Count a pooling: one operation for each element of each window."""
    return Work(flops={"pooling": size(output) * size(window)})


def reduction(elements: int) -> Work:
    """Count a reduction: one operation for each element read."""
    return Work(flops={"reduction": elements})


def softmax(output: Shape) -> Work:
    """Count a softmax, or its logarithm."""
    return Work(flops={"softmax": size(output) * _SOFTMAX_STEPS})


def interpolation(output: Shape, neighbours: int) -> Work:
    """Count a resampling: a multiplication and an addition for each weighted neighbour, none for the nearest one."""
    return Work(flops={"resampling": size(output) * 2 * neighbours} if neighbours else {})
