"""ONNX Runtime's blocked layout (NCHWc): which values are in it, and how they look in plain NCHW.

On the CPU convolutions and poolings run on tensors whose channels lie in blocks of as many as fit into a vector
register (8 or 16), filled up by zeros: (N, C/b, H, W, b) in memory, while the shape says (N, C filled up, H, W). How
many of the channels are real is written in the nodes that lead out of the layout, in what the file declares of the
tensor that a node was made from, and in the weights of the graph before the layout was changed.

References
----------
onnxruntime/core/optimizer/nchwc_transformer.cc, onnxruntime/contrib_ops/cpu/nchwc_ops.cc
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.onnxruntime_pieces import Piece, Pieces

__all__ = ["DOMAIN", "PREFIX", "SUFFIX", "Blocks", "filled", "find_blocks", "reorder_node"]

DOMAIN = "com.microsoft.nchwc"
# a blocked node is called after the tensor that it wrote before; a cast in float16 models after the one that it reads
SUFFIX = "_nchwc"
PREFIX = "InsertedPrecisionFreeCast_"
_SAME = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Upsample"})


class Blocks:
    """Values in the blocked layout.

    Attributes
    ----------
    names
        Their names.
    channels
        Real channels by name, as far as the file tells.
    """

    def __init__(self, names: frozenset[str], channels: dict[str, int], same: Mapping[str, str]) -> None:
        self.names = names
        self.channels = channels
        self._same = same

    def channels_of(self, name: str, piece: Piece, around: Mapping[str, Sequence[int]]) -> int | None:
        """Return the real channels of what a piece wrote; None where nothing tells.

        Parameters
        ----------
        name
            One of `names`.
        piece
            Its writer.
        around
            Plain shapes of what the piece read.
        """
        if name in self.channels:
            return self.channels[name]
        if piece.node.op_type == "ReorderInput":
            last = any(a.name == "channels_last" and a.i for a in piece.node.attribute)
            return int(around[piece.reads[0]][-1 if last else 1])
        if piece.node.op_type == "Concat":  # blocks are joined only where they are full
            return sum(int(around[read][1]) for read in piece.reads)
        twin = self._same.get(name)
        return int(around[twin][1]) if twin is not None and twin in around else None


def find_blocks(pieces: Pieces, weights: Callable[[], Mapping[str, int]] | None = None) -> Blocks:
    """Find what is in the blocked layout.

    Parameters
    ----------
    pieces
        The optimised graph.
    weights
        Gives, by name of a tensor, the channels that the convolution before the change of layout wrote; asked only if
        nothing else tells.
    """
    names: set[str] = set()
    channels: dict[str, int] = {}
    twins: list[tuple[str, str]] = []
    origins: dict[str, str] = {}
    for piece in pieces.pieces:
        node = piece.node
        if node.domain == DOMAIN and node.input and node.output:
            if node.op_type == "ReorderOutput":
                channels.update((node.input[0], a.i) for a in node.attribute if a.name == "channels")
                continue
            names.update(piece.writes)
            if node.name.endswith(SUFFIX) and piece.writes:
                origins[piece.writes[0]] = node.name.removesuffix(SUFFIX)
            if node.op_type in _SAME or (node.op_type == "Conv" and _depthwise(piece, pieces)):
                twins.append((node.output[0], node.input[0]))
            if node.op_type == "Conv" and len(node.input) > 3 and node.input[3]:
                twins.append((node.output[0], node.input[3]))
        elif piece.writes and any(read in names for read in piece.reads):
            names.update(piece.writes)
            if node.op_type != "Concat":
                twins.extend((piece.writes[0], read) for read in piece.reads if read in names)
    for name, origin in origins.items():
        if name not in channels and (declared := _declared(pieces, origin)) is not None:
            channels[name] = declared
    _spread(channels, twins, names)
    missing = [
        name for piece in pieces.pieces if piece.node.op_type == "Conv" for name in piece.writes
        if name in names and name not in channels and name in origins
    ]  # fmt: skip
    if missing and weights is not None:
        found = weights()
        channels.update((name, found[origins[name]]) for name in missing if origins[name] in found)
        _spread(channels, twins, names)
    return Blocks(frozenset(names), channels, {to: of for to, of in twins if of in names})


def _declared(pieces: Pieces, name: str) -> int | None:
    kind = pieces.types.get(name.removeprefix(PREFIX))
    if kind is None or len(dims := kind.tensor_type.shape.dim) != 4 or dims[1].dim_value <= 0:
        return None
    return int(dims[1].dim_value)


def _depthwise(piece: Piece, pieces: Pieces) -> bool:
    group = next((a.i for a in piece.node.attribute if a.name == "group"), 1)
    weight = pieces.initializers.get(piece.node.input[1]) if len(piece.node.input) > 1 else None
    return group > 1 and weight is not None and len(weight.dims) > 1 and weight.dims[1] == 1


def _spread(channels: dict[str, int], twins: Sequence[tuple[str, str]], names: set[str]) -> None:
    """Fill in values that have as many channels as others, against the order of the graph, then along it."""
    for pairs in (reversed(twins), twins):
        for one, other in pairs:
            if one in names and other in names:
                for have, lack in ((one, other), (other, one)):
                    if have in channels:
                        channels.setdefault(lack, channels[have])


def reorder_node(name: str, to: str, *, channels: int | None = None) -> Any:
    """Return the node that blocks a plain tensor, or with `channels` the one that makes a blocked one plain."""
    from onnx import helper

    if channels is None:
        return helper.make_node("ReorderInput", [name], [to], name=f"{name} blocked", domain=DOMAIN)
    return helper.make_node(
        "ReorderOutput", [name], [to], name=f"{name} plain", domain=DOMAIN, channels=channels, channels_last=0
    )


def filled(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose channels are filled up by zeros to a multiple of four, as ReorderInput asks for."""
    lack = -array.shape[1] % 4
    return np.pad(array, ((0, 0), (0, lack), (0, 0), (0, 0))) if lack else array
