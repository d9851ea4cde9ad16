"""An ONNX file taken apart: each of its nodes as a model of its own.

A `Piece` is a node with the names of what it reads, bodies of control flow included, told apart into values and
constants. The constants of a file stay where they are, large ones in a file beside the model, so that a piece of a
model of any size is a few hundred bytes.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlscope_lab.backends.onnxruntime_branches import Conditions, Flat, bodies, captured
from mlscope_lab.errors import UnsupportedModelError

__all__ = ["RANDOM", "Piece", "Pieces", "read_pieces", "type_proto"]

# what gives other numbers each time is no constant, though it reads none but constants
RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
_ELEMENTS = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9,
    "float16": 10, "double": 11, "uint32": 12, "uint64": 13, "complex64": 14, "complex128": 15, "bfloat16": 16,
    "float8e4m3fn": 17, "float8e4m3fnuz": 18, "float8e5m2": 19, "float8e5m2fnuz": 20, "uint4": 21, "int4": 22,
    "float4e2m1": 23,
}  # fmt: skip
# a model of an older form takes its initializers for defaults of inputs that must be listed
_IR = 4
# what ONNX Runtime adds to the name of a tensor where it calls a node or a cast copy after it
_ADDED = re.compile(r"^InsertedPrecisionFreeCast_|_nchwc$")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A node of a file.

    Attributes
    ----------
    label
        Its name, or where it has none that of its first output; ``#2`` appended to the second of the same.
    node
        The NodeProto.
    reads
        Names of the values that it reads, in the order of its arguments, twice where read twice; then those that its
        bodies read. What is left out ("") and constants are not among them.
    positions
        For each argument of the node its place in `reads`, -1 for what is left out or constant.
    constants
        Names of the file's initializers that it reads, each once.
    writes
        Names of what it writes, without those left out.
    fixed
        Whether it computes the same in each run, for it reads constants alone.
    conditions
        Names of values, and what they must be for it to run: it lies in branches that depend on them.
    """

    label: str
    node: Any
    reads: tuple[str, ...]
    positions: tuple[int, ...]
    constants: tuple[str, ...]
    writes: tuple[str, ...]
    fixed: bool
    conditions: Conditions = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what must be there before it can run."""
        return (*self.reads, *(name for name, _ in self.conditions))


@dataclass(frozen=True, eq=False)
class Pieces:
    """What `read_pieces` found.

    Attributes
    ----------
    proto
        The file, without the bytes of large constants.
    folder
        Where the file beside it lies.
    pieces
        In an order in which they can run; a fixed one stands right before the first that reads what it writes.
    initializers
        TensorProto (or SparseTensorProto) by name.
    overridable
        Initializers that a caller could have fed: no constants to a kernel.
    types
        TypeProto by name, of inputs and of what the file declares.
    """

    proto: Any
    folder: Path
    pieces: tuple[Piece, ...]
    initializers: Mapping[str, Any]
    overridable: frozenset[str]
    types: Mapping[str, Any]

    def elements(self, name: str) -> int:
        """Return the number of elements of an initializer."""
        tensor = self.initializers[name]
        count = 1
        for length in tensor.dims:
            count *= length
        return count

    def constant(self, name: str) -> Any:
        """Return an initializer as a numpy array."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.initializers[name], base_dir=str(self.folder))

    def file(self, pieces: Sequence[Piece]) -> Any:
        """Return the file's ModelProto with some of its pieces only, called by their labels, without branches."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        graph = model.graph
        del graph.node[:], graph.initializer[:], graph.sparse_initializer[:], graph.value_info[:]
        declared = {value.name for value in (*graph.input, *graph.output)}
        used = {name for piece in pieces for name in piece.constants} | (declared & self.initializers.keys())
        for name in used:
            tensor = self.initializers[name]
            (graph.initializer if hasattr(tensor, "raw_data") else graph.sparse_initializer).append(tensor)
        for name in dict.fromkeys(name for piece in pieces for name in (*piece.reads, *piece.writes)):
            if name in self.types and name not in declared:
                graph.value_info.add(name=name, type=self.types[name])
        for piece in pieces:
            graph.node.append(piece.node)
            graph.node[-1].name = piece.label
        return model

    def model(self, pieces: Sequence[Piece], inputs: Mapping[str, Any], outputs: Iterable[str]) -> Any:
        """Return a ModelProto of some pieces.

        Parameters
        ----------
        pieces
            In an order in which they can run.
        inputs
            TypeProto of each value that they read and do not write, by name; shapes are dropped.
        outputs
            Names of what the model shall return.
        """
        import onnx

        model = onnx.ModelProto()
        model.ir_version = max(self.proto.ir_version, _IR)
        model.opset_import.extend(self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        graph = model.graph
        graph.name = "part"
        for name, kind in inputs.items():
            graph.input.add(name=name, type=_shapeless(kind))
        for name in dict.fromkeys(name for piece in pieces for name in piece.constants):
            tensor = self.initializers[name]
            if hasattr(tensor, "raw_data"):
                graph.initializer.append(tensor)
            else:
                graph.sparse_initializer.append(tensor)
            if name in self.overridable:
                graph.input.add(name=name, type=_shapeless(self.types[name]))
        for piece in pieces:
            graph.node.append(piece.node)
        for name in outputs:
            graph.output.add(name=name)
        return model


def read_pieces(path: Path, name: str, order: Mapping[str, int] | None = None) -> Pieces:
    """Take an ONNX file apart.

    Parameters
    ----------
    path
        The file; external data must lie in its folder.
    name
        The model's name, for messages.
    order
        A place for names of tensors: what writes an earlier one comes first where edges allow. Default is the order of
        the file, which of an optimised graph is another one each time that ONNX Runtime writes it.

    Raises
    ------
    UnsupportedModelError
        If the file is no ONNX model, or its nodes read what nothing writes.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise UnsupportedModelError(f"Model '{name}': {path.name} cannot be read as an ONNX model: {error}") from error
    for node in proto.graph.node:
        for body in bodies(node):
            _drop_twins(body)
    graph = proto.graph
    try:
        flat = Flat(graph)
    except (ValueError, LookupError, RecursionError) as error:
        raise UnsupportedModelError(
            f"Model '{name}': {path.name} has an If whose branches do not fit: {error}"
        ) from error
    initializers = flat.initializers
    listed = {value.name for value in graph.input}
    overridable = frozenset(listed & initializers.keys()) if proto.ir_version >= _IR else frozenset()
    known = listed | initializers.keys()
    shown = {value.name for value in graph.output} | flat.chosen
    fixed: set[str] = {name for name in initializers if name not in overridable}
    pieces = []
    for node, conditions in flat.nodes:
        around = list(dict.fromkeys(captured(node)))
        unknown = [n for n in (*node.input, *around) if n and n not in known]
        if unknown:
            raise UnsupportedModelError(
                f"Model '{name}': node '{_plain_label(node)}' reads '{unknown[0]}', which nothing writes before it"
            )
        reads: list[str] = []
        positions: list[int] = []
        for argument in node.input:
            value = bool(argument) and argument not in initializers
            positions.append(len(reads) if value else -1)
            if value:
                reads.append(argument)
        reads.extend(n for n in around if n not in initializers and n not in reads)
        constants = dict.fromkeys(n for n in (*node.input, *around) if n in initializers)
        writes = tuple(n for n in node.output if n)
        same = (
            node.op_type not in RANDOM
            and fixed >= {*reads, *constants}
            and not shown & set(writes)
            and not any(True for _ in bodies(node))
        )
        if same:
            fixed.update(writes)
        known.update(writes)
        pieces.append(Piece("", node, tuple(reads), tuple(positions), tuple(constants), writes, same, conditions))
    if order is not None:
        pieces = _sorted(pieces, order)
    labels: set[str] = set()
    named = tuple(replace(piece, label=_label(piece.node, labels)) for piece in _just_in_time(pieces))
    return Pieces(proto, path.parent, named, initializers, overridable, flat.types)


def _drop_twins(body: Any) -> None:
    """Drop Constant nodes that are initializers of the body as well.

    ONNX Runtime writes both where bodies are not optimised and constants go to a file of their own, and takes no such
    file itself.
    """
    own = {tensor.name for tensor in body.initializer}
    for node in list(body.node):
        if node.op_type == "Constant" and node.output[0] in own:
            body.node.remove(node)
        for deeper in bodies(node):
            _drop_twins(deeper)


def _plain_label(node: Any) -> str:
    written = next((output for output in node.output if output), "")
    if node.op_type in {"ReorderInput", "ReorderOutput"}:  # numbered, and another number each time
        return f"{node.op_type} {written if node.op_type == 'ReorderOutput' else node.input[0]}"
    return node.name or written or node.op_type


def _label(node: Any, taken: set[str]) -> str:
    label = plain = _plain_label(node)
    count = 1
    while label in taken:
        count += 1
        label = f"{plain}#{count}"
    taken.add(label)
    return str(label)


def _sorted(pieces: Sequence[Piece], order: Mapping[str, int]) -> list[Piece]:
    """Return pieces in the given order as far as edges allow; what is not in it comes right after what it reads."""
    writers: dict[str, list[int]] = {}  # of what a branch chooses, two
    for i, piece in enumerate(pieces):
        for name in piece.writes:
            writers.setdefault(name, []).append(i)
    places: list[tuple[int, str]] = []
    waiting: list[int] = []
    readers: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        before = {j for name in piece.needs for j in writers.get(name, ())}
        names = [_ADDED.sub("", name) for name in (*piece.writes, piece.node.name)]
        place = next((order[name] for name in names if name in order), None)
        if place is None:
            place = max((places[j][0] for j in before), default=-1)
        places.append((place, piece.writes[0] if piece.writes else piece.node.name))
        waiting.append(len(before))
        for j in before:
            readers.setdefault(j, []).append(i)
    ready = [(places[i], i) for i, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        _, i = heapq.heappop(ready)
        found.append(pieces[i])
        for j in readers.get(i, ()):
            waiting[j] -= 1
            if not waiting[j]:
                heapq.heappush(ready, (places[j], j))
    return found


def _just_in_time(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Yield fixed pieces right before their first reader, so that no constant lives longer than it must."""
    writers = {name: piece for piece in pieces if piece.fixed for name in piece.writes}
    done: set[int] = set()
    for piece in pieces:
        if piece.fixed:
            continue
        waiting = [piece]
        while waiting:
            current = waiting[-1]
            needed = [w for n in current.needs if (w := writers.get(n)) is not None and id(w) not in done]
            if needed:
                waiting.extend(reversed(needed))
                continue
            waiting.pop()
            if id(current) not in done:
                done.add(id(current))
                yield current


def type_proto(kind: str) -> Any:
    """Return the TypeProto of what ONNX Runtime calls e.g. "tensor(float)" or "seq(tensor(int64))".

    Raises
    ------
    UnsupportedModelError
        If there is no such type.
    """
    import onnx

    outer, _, inner = kind.removesuffix(")").partition("(")
    made = onnx.TypeProto()
    if outer == "tensor" and inner in _ELEMENTS:
        made.tensor_type.elem_type = _ELEMENTS[inner]
    elif outer == "sparse_tensor" and inner in _ELEMENTS:
        made.sparse_tensor_type.elem_type = _ELEMENTS[inner]
    elif outer == "seq":
        made.sequence_type.elem_type.CopyFrom(type_proto(inner))
    elif outer == "optional":
        made.optional_type.elem_type.CopyFrom(type_proto(inner))
    elif outer == "map" and inner.partition(",")[0] in _ELEMENTS:
        key, _, value = inner.partition(",")
        made.map_type.key_type = _ELEMENTS[key]
        made.map_type.value_type.CopyFrom(type_proto(value))
    else:
        raise UnsupportedModelError(f"ONNX Runtime gave a value of type '{kind}', which has no ONNX type")
    return made


def _shapeless(kind: Any) -> Any:
    """Return a copy of a TypeProto of a tensor that says nothing of its shape; others as they are."""
    import onnx

    if kind.WhichOneof("value") != "tensor_type":
        return kind
    made = onnx.TypeProto()
    made.tensor_type.elem_type = kind.tensor_type.elem_type
    return made
