"""One side's graph as alignment sees it: tensors in whatever layout, and what computes each from which.

A value and its transposed, reshaped, copied or quantised forms are one `Tensor`, since which of these forms a framework
makes says nothing of the model. Shape arithmetic is left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

from mlscope_lab.alignment.distances import distance
from mlscope_lab.alignment.sketch import ValueSketch
from mlscope_lab.trace.graph import Graph, Operation
from mlscope_lab.trace.kinds import COMPUTE, LAYOUT

__all__ = ["Network", "Tensor", "nearest_matched", "sample_shape"]

_COPIES: Final = frozenset({"layout", "reshaping", "identity", "cast", "quantization", "padding", "slicing"})
"""Kinds that leave a tensor's elements as they are, if their number stays the same."""
_STARTS: Final = frozenset({
    "pooling", "concatenation", "reduction", "slicing", "resizing", "padding", "embedding", "control", "shape",
})  # fmt: skip
"""Kinds that are not fused into a convolution or product before them."""
_SCALED: Final = COMPUTE | {"pooling", "reduction", "affine"}
"""Kinds after which scaling and shifting by constants is part of them in one framework and not in another."""
_TAIL: Final = 4
_SAME: Final = 1e-3


def sample_shape(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Return the shape of one sample, the batch axis kept with length 1."""
    return (1, *shape[1:]) if batch > 1 and shape and shape[0] == batch else shape


def nearest_matched(
    links: Sequence[Sequence[int]], order: Iterable[int], matched: Container[int]
) -> list[frozenset[int]]:
    """Return for each tensor the nearest matched ones along links, itself left out.

    Parameters
    ----------
    links
        For each tensor its neighbours, before or after it.
    order
        All tensors, each after its neighbours.
    matched
        Where to stop.
    """
    made: list[frozenset[int]] = [frozenset()] * len(links)
    for i in order:
        near: set[int] = set()
        for r in links[i]:
            near |= {r} if r in matched else made[r]
        made[i] = frozenset(near)
    return made


def _class(dtype: str) -> str:
    if dtype.startswith(("float", "bfloat")):
        return "float"
    return "bool" if dtype == "bool" else "complex" if dtype.startswith("complex") else "integer"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A value and its forms.

    Attributes
    ----------
    root
        Position of the value that was there first; `members` holds it and its other forms in the order of execution.
    writer
        Position of the operation that computes it, -1 for an input.
    elements
        In one sample.
    dims
        For each form the lengths of the axes that are longer than 1, sorted; the root's first.
    kind
        Class of its element type.
    sketch
        Of the root, in real values; None if there is none of a single sample.
    """

    root: int
    members: tuple[int, ...]
    writer: int
    elements: int
    dims: tuple[tuple[int, ...], ...]
    kind: str
    sketch: ValueSketch | None


class Network:
    """Tensors of a graph, in the order of execution, with what alignment compares of each.

    Attributes
    ----------
    graph, batch
        As given.
    tensors
        All but shape arithmetic.
    of
        For each value the position of its tensor.
    reads
        For each tensor the tensors that its writer reads, in the order of the arguments, repetitions kept.
    readers
        For each tensor those that are computed from it, each once.
    depth, height
        For each tensor the most convolutions, products and recurrent layers on one way from an input; to an output.
    ancestors
        How many such operations there are before it in all.
    tails
        What happened to it since the last of these operations, in the same words whether or not it was fused.
    last
        Whether nothing but scaling or shifting by constants follows with the same tail: the value that is left where
        those are folded.
    """

    def __init__(self, graph: Graph, sketches: Mapping[int, ValueSketch], batch: int) -> None:
        self.graph, self.batch = graph, batch
        self.tensors: list[Tensor] = []
        self.of: dict[int, int] = {}
        members: list[list[int]] = []
        roots: list[tuple[int, int]] = []
        auxiliary: set[int] = set()
        self._sketches = {i: self._real(i, s) for i, s in sketches.items() if i < len(graph.values)}
        for value in dict.fromkeys(graph.inputs.values()):
            self.of[value] = len(roots)
            roots.append((value, -1))
            members.append([value])
        named = set(graph.outputs.values())
        read = {value for operation in graph.operations for value in operation.inputs}
        for position, operation in enumerate(graph.operations):
            source = self._copied(operation, auxiliary)
            for place, value in enumerate(operation.outputs):
                if place == 0 and source is not None:
                    self.of[value] = self.of[source]
                    members[self.of[source]].append(value)
                elif value not in named and (
                    self._is_auxiliary(operation, auxiliary) or (place > 0 and value not in read)
                ):
                    auxiliary.add(value)
                else:
                    self.of[value] = len(roots)
                    roots.append((value, position))
                    members.append([value])
        for (root, writer), forms in zip(roots, members, strict=True):
            self.tensors.append(self._tensor(root, writer, forms))
        self._link()

    def __len__(self) -> int:
        return len(self.tensors)

    def _real(self, index: int, found: ValueSketch) -> ValueSketch:
        quantization = self.graph.values[index].quantization
        return found if quantization is None else found.dequantized(*quantization)

    def sketch(self, value: int) -> ValueSketch | None:
        """Return a value's sketch, in real values."""
        return self._sketches.get(value)

    def elements(self, value: int) -> int:
        """Return how many elements a value has in one sample."""
        shape = self.graph.values[value].shape
        sample = sample_shape(shape, self.batch)
        total = prod(sample)
        if sample == shape and self.batch > 1 and shape and total % self.batch == 0:
            return total // self.batch
        return total

    def _tensor(self, root: int, writer: int, forms: list[int]) -> Tensor:
        values = self.graph.values
        dims = dict.fromkeys(
            tuple(sorted(n for n in sample_shape(values[v].shape, self.batch) if n != 1)) for v in forms
        )
        elements = self.elements(root)
        found = self._sketches.get(root)
        if found is not None and found.count != elements:
            found = None
        kind = "float" if values[root].quantization is not None else _class(values[root].dtype)
        return Tensor(
            root=root, members=tuple(forms), writer=writer, elements=elements, dims=tuple(dims), kind=kind,
            sketch=found,
        )  # fmt: skip

    def _copied(self, operation: Operation, auxiliary: set[int]) -> int | None:
        """Return the value of which the first output is another form, None if it is a new one."""
        data = [v for v in operation.inputs if v not in auxiliary]
        if not data or not operation.outputs or not set(operation.kinds) <= _COPIES:
            return None
        source, made = data[0], operation.outputs[0]
        if len(set(data)) > 1 or source not in self.of:
            return None
        one, other = self.graph.values[source], self.graph.values[made]
        if prod(one.shape) != prod(other.shape):
            return None
        if "quantization" in operation.kinds:
            return source
        if _class(one.dtype) != _class(other.dtype):
            return None
        before, after = self._sketches.get(source), self._sketches.get(made)
        if before is not None and after is not None and distance(before, after) > _SAME:
            return None
        return source

    @staticmethod
    def _is_auxiliary(operation: Operation, auxiliary: set[int]) -> bool:
        """Tell whether an operation's values are shape arithmetic, constants, or what quantisation measured."""
        if "shape" in operation.kinds or "quantization" in operation.kinds:
            return True
        return all(v in auxiliary for v in operation.inputs) and not operation.parameter_count

    def _link(self) -> None:
        operations = self.graph.operations
        self.reads: list[list[int]] = []
        for tensor in self.tensors:
            inputs = operations[tensor.writer].inputs if tensor.writer >= 0 else ()
            self.reads.append([self.of[v] for v in inputs if v in self.of])
        self.readers: list[list[int]] = [[] for _ in self.tensors]
        for i, reads in enumerate(self.reads):
            for r in dict.fromkeys(reads):
                self.readers[r].append(i)
        self.heavy = [t.writer >= 0 and bool(COMPUTE & set(operations[t.writer].kinds)) for t in self.tensors]
        count = len(self.tensors)
        self.depth, self.height, self.ancestors = [0] * count, [0] * count, [0] * count
        before = [0] * count
        self.tails: list[tuple[str, ...]] = []
        self.main = [-1] * count
        for i, reads in enumerate(self.reads):
            own = self.heavy[i]
            for r in reads:
                before[i] |= before[r]
            if own:
                before[i] |= 1 << self.tensors[i].writer
            self.depth[i] = max((self.depth[r] for r in reads), default=0) + own
            self.ancestors[i] = before[i].bit_count()
            if reads:
                self.main[i] = max(reads, key=lambda r: self.depth[r])
            self.tails.append(self._tail(i))
        for i in reversed(range(count)):
            for r in self.readers[i]:
                self.height[i] = max(self.height[i], self.height[r] + self.heavy[r])
        self.last = [not any(self._goes_on(i, r) for r in self.readers[i]) for i in range(count)]

    def _goes_on(self, tensor: int, reader: int) -> bool:
        """Tell whether a reader only scales or shifts a tensor by constants."""
        one, other = self.tensors[tensor], self.tensors[reader]
        return (
            self.main[reader] == tensor
            and self.tails[reader] == self.tails[tensor]
            and not self.heavy[reader]
            and (one.elements, one.kind) == (other.elements, other.kind)
            and other.root == self.graph.operations[other.writer].outputs[0]
        )

    @staticmethod
    def _kinds(kinds: tuple[str, ...], data: int) -> tuple[str, ...]:
        """Return what an operation does; ONNX's Sum, Max and Min of several tensors reduce nothing."""
        return ("addition",) if kinds == ("reduction",) and data > 1 else kinds

    def _tail(self, i: int) -> tuple[str, ...]:
        writer = self.tensors[i].writer
        if writer < 0:
            return ("input",)
        operation, reads = self.graph.operations[writer], self.reads[i]
        tail = self.tails[self.main[i]] if self.main[i] >= 0 else ()
        data = len(reads)
        for kind in self._kinds(operation.kinds, data):
            if kind in COMPUTE or kind in _STARTS:
                tail = (kind,)
                if kind in COMPUTE and not (kind == "product" and not operation.parameter_count):
                    data = len(reads)
                elif kind == "product":
                    data = len(reads) - 1
            elif kind in LAYOUT or kind == "quantization":
                continue
            elif kind == "normalization" or (kind in {"addition", "multiplication"} and data < 2):
                if not tail or tail[-1] not in _SCALED:
                    tail = (*tail, "affine")
            else:
                tail = (*tail, kind)
        return tail[-_TAIL:]

    def run(self, tensor: int) -> list[int]:
        """Return what scaling and shifting by constants makes of a tensor, step by step, up to the last."""
        made: list[int] = []
        while not self.last[tensor]:
            tensor = next(r for r in self.readers[tensor] if self._goes_on(tensor, r))
            made.append(tensor)
        return made

    def heads(self) -> dict[int, int]:
        """Return for each tensor in a run the convolution, product or recurrent layer that it began with."""
        found: dict[int, int] = {}
        for i in range(len(self)):
            if self.heavy[i]:
                found.update(dict.fromkeys([i, *self.run(i)], i))
        return found

    @cached_property
    def outputs(self) -> Sequence[int]:
        """Tensors that are outputs, in the session's order, then those that nothing reads."""
        named = [self.of[v] for v in self.graph.outputs.values() if v in self.of]
        return list(dict.fromkeys([*named, *(i for i in range(len(self)) if not self.readers[i])]))
