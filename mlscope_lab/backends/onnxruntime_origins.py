"""Which nodes of the published graph a node of the optimised one stands for: those between what it reads and writes.

ONNX Runtime keeps the names of most tensors, so the fused nodes are those on the ways from a fused node's inputs to its
output in the published graph. Tensors in the blocked layout have new names; what they are is told by the node that
wrote them, which is called after the tensor that it made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from mlscope_lab.backends.onnxruntime_blocks import DOMAIN, PREFIX, SUFFIX
from mlscope_lab.backends.onnxruntime_graph import Node, Outline
from mlscope_lab.backends.onnxruntime_pieces import Piece
from mlscope_lab.trace.kinds import kind_of

__all__ = ["origins_of", "places_of"]

# fusion takes no more nodes than this; a longer way means that names were misread
_LONGEST: Final = 48
# what ONNX Runtime adds to the name of a node that it replaces by one of another layout, and of one that it copies
_NUMBER: Final = re.compile(r"_token_\d+$")
_COPY: Final = "/duplicated"


class _Published:
    """The published graph, by names of tensors."""

    def __init__(self, outline: Outline) -> None:
        self.nodes = outline.nodes
        self.by_name = {node.name: node for node in reversed(outline.nodes) if node.name}
        self.writer: dict[str, int] = {}
        self.readers: dict[str, list[Node]] = {}
        for place, node in enumerate(outline.nodes):
            for output in node.outputs:
                self.writer.setdefault(output, place)
            for tensor in node.inputs:
                self.readers.setdefault(tensor, []).append(node)
        self.constants = {weight.name for weight in outline.weights}
        for node in outline.nodes:
            if all(not tensor or tensor in self.constants for tensor in node.inputs):
                self.constants.update(node.outputs)

    def between(self, inputs: Collection[str], output: str) -> list[Node]:
        """Return the nodes on the ways from some tensors to another, in the graph's order; [] if a way leads past."""
        found: set[int] = set()
        waiting = [output]
        while waiting:
            tensor = waiting.pop()
            if not tensor or tensor in inputs or tensor in self.constants:
                continue
            place = self.writer.get(tensor)
            # what an If writes, nodes of its bodies wrote
            if place is None or self.nodes[place].op == "If" or len(found) > _LONGEST:
                return []
            if place not in found:
                found.add(place)
                waiting.extend(self.nodes[place].inputs)
        return [self.nodes[place] for place in sorted(found)]

    def summed(self, tensor: str, other: str | None) -> str:
        """Return the sum of two tensors in the published graph, or the first where there is none."""
        for node in self.readers.get(tensor, ()):
            if kind_of(node.op) == "addition" or node.op == "Sum":
                rest = [name for name in node.inputs if name != tensor]
                if rest == [other] and node.outputs:
                    return node.outputs[0]
        return tensor

    def activated(self, tensor: str) -> str:
        """Return what the only reader of a tensor makes of it, if that is an activation."""
        readers = self.readers.get(tensor, [])
        fits = len(readers) == 1 and kind_of(readers[0].op) == "activation" and readers[0].outputs
        return readers[0].outputs[0] if fits else tensor

    def quantized(self, tensor: str) -> str:
        """Return what a tensor is as an integer, or the tensor where nothing quantises it."""
        quantizers = [node for node in self.readers.get(tensor, []) if node.op == "QuantizeLinear" and node.outputs]
        return quantizers[0].outputs[0] if quantizers else tensor


def origins_of(pieces: Sequence[Piece], outline: Outline) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return names of published nodes, and the scope that the exporter noted, by label of a piece.

    Parameters
    ----------
    pieces
        Of the optimised graph, in order.
    outline
        Of the published graph.

    Returns
    -------
    tuple of dict
        Pieces that stand for themselves, and those of which nothing is known, are left out.
    """
    published = _Published(outline)
    meaning: dict[str, str] = {}
    sources: dict[str, tuple[str, ...]] = {}
    scopes: dict[str, str] = {}
    for piece in pieces:
        read = [meaning.get(name, name.removeprefix(PREFIX)) for name in piece.reads]
        for name in piece.writes:
            meaning[name] = _meaning(piece, name, read, published)
        nodes: dict[str, Node] = {}
        for name in piece.writes:
            nodes.update((_label(node), node) for node in published.between(read, meaning[name]))
        twin = published.by_name.get(_NUMBER.sub("", piece.node.name))
        if not nodes and twin is not None:
            nodes = {_label(twin): twin}
        if nodes and list(nodes) != [piece.node.name or piece.label]:
            sources[piece.label] = tuple(nodes)
        # the last one's: a scope tells where the value is from, and a fused node's value is from its last part
        scope = next((node.scope for node in reversed(nodes.values()) if node.scope), "")
        if scope:
            scopes[piece.label] = scope
    return sources, scopes


def places_of(outline: Outline) -> dict[str, int]:
    """Return the place of the node that writes a tensor, by the tensor's name."""
    places: dict[str, int] = {}
    for place, node in enumerate(outline.nodes):
        for output in node.outputs:
            places.setdefault(output, place)
    return places


def _label(node: Node) -> str:
    return node.name or (node.outputs[0] if node.outputs else node.op)


def _meaning(piece: Piece, name: str, read: Sequence[str], published: _Published) -> str:
    """Return which tensor of the published graph a piece writes."""
    node = piece.node
    plain = name.removeprefix(PREFIX).removesuffix(_COPY)
    if plain in published.writer:
        return plain
    twin = published.by_name.get(_NUMBER.sub("", node.name))
    if node.op_type in {"ReorderInput", "ReorderOutput"} or (node.op_type == "Transpose" and twin is None):
        return read[0]
    if node.domain != DOMAIN:
        at = list(node.output).index(name)
        if twin is None or at >= len(twin.outputs):
            return plain
        return published.quantized(twin.outputs[at]) if node.op_type.startswith("Q") else twin.outputs[at]
    tensor: str = node.name.removesuffix(SUFFIX).removeprefix(PREFIX)
    if node.op_type == "Conv" and len(node.input) > 3 and node.input[3]:
        tensor = published.summed(tensor, read[piece.positions[3]])
        if any(attribute.name == "activation" for attribute in node.attribute):
            tensor = published.activated(tensor)
    return tensor
