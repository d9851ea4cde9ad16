"""The outline of an ONNX file: nodes, weights' types and where external data lies, read without reading the weights.

Parsing a model with the onnx package would hold every weight a second time in the process whose memory is measured. The
file is mapped instead, and length-delimited fields that are not needed are stepped over, so weights are never touched.

References
----------
onnx/onnx.proto for the field numbers; protobuf's "Encoding" page for the wire format.
"""

from __future__ import annotations

import ast
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlscope_lab.errors import UnsafeArtifactError, UnsupportedModelError

__all__ = ["Node", "Outline", "Weight", "check_external_data", "precision_of", "read_outline", "sources_of"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SCOPES = "pkg.torch.onnx.name_scopes"

_ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1",
}  # fmt: skip
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_FOLDED = frozenset({"Add", "BatchNormalization", "Mul"})


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the file's graph or of a body within it.

    Attributes
    ----------
    name, op
        As in the file; the name may be empty.
    inputs, outputs
        Names of tensors.
    scope
        Qualified name of the torch module that the exporter noted, or "".
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scope: str = ""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor stored in the file or beside it.

    Attributes
    ----------
    name, dtype
        Name (empty for an attribute's tensor) and element type.
    elements
        Number of elements.
    location
        External file as the model writes it, or None where the bytes are in the model.
    """

    name: str
    dtype: str
    elements: int
    location: str | None = None


@dataclass(kw_only=True)
class Outline:
    """What `read_outline` found, bodies of control flow and functions included."""

    nodes: list[Node] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)


class _MalformedError(ValueError):
    """The bytes are not an ONNX graph."""


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _MalformedError(f"a number at byte {at} does not end")


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, value or start, end) of each field of a message."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise _MalformedError(f"field 0 at byte {at}")
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield number, kind, value, at
        elif kind == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise _MalformedError(f"a field at byte {at} is {length} bytes long, {end - at} are left")
            yield number, kind, at, at + length
            at += length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
            if at > end:
                raise _MalformedError(f"a number at byte {at} does not end")
        else:
            raise _MalformedError(f"wire type {kind} at byte {at}")


def _text(data: mmap.mmap, start: int, end: int) -> str:
    return data[start:end].decode("utf-8", errors="replace")


def _pair(data: mmap.mmap, at: int, end: int) -> tuple[str, str]:
    """Read a StringStringEntryProto."""
    key = value = ""
    for number, kind, start, stop in _fields(data, at, end):
        if kind == _BYTES and number == 1:
            key = _text(data, start, stop)
        elif kind == _BYTES and number == 2:
            value = _text(data, start, stop)
    return key, value


def _scope(text: str) -> str:
    """Return the module's name from torch's list of names: root first, the operator itself last."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return names[-2] if isinstance(names, list) and len(names) > 1 and isinstance(names[-2], str) else ""


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.found = Outline()

    def model(self) -> None:
        graphs = 0
        for number, kind, start, stop in _fields(self.data, 0, len(self.data)):
            if kind == _BYTES and number == 7:
                graphs += 1
                self.graph(start, stop, 0)
            elif kind == _BYTES and number == 25:  # FunctionProto, whose nodes are field 7
                for inner, inner_kind, at, end in _fields(self.data, start, stop):
                    if inner == 7 and inner_kind == _BYTES:
                        self.node(at, end, 0)
        if not graphs:
            raise _MalformedError("no graph in it")

    def graph(self, at: int, end: int, level: int) -> None:
        if level > 64:
            raise _MalformedError("bodies are nested deeper than 64 levels")
        for number, kind, start, stop in _fields(self.data, at, end):
            if kind != _BYTES:
                continue
            if number == 1:
                self.node(start, stop, level)
            elif number == 5:
                self.tensor(start, stop)
            elif number == 15:
                self.sparse(start, stop)

    def sparse(self, at: int, end: int) -> None:
        for number, kind, start, stop in _fields(self.data, at, end):
            if kind == _BYTES and number in (1, 2):
                self.tensor(start, stop)

    def node(self, at: int, end: int, level: int) -> None:
        inputs, outputs = [], []
        name = op = scope = ""
        for number, kind, start, stop in _fields(self.data, at, end):
            if kind != _BYTES:
                continue
            if number == 1:
                inputs.append(_text(self.data, start, stop))
            elif number == 2:
                outputs.append(_text(self.data, start, stop))
            elif number == 3:
                name = _text(self.data, start, stop)
            elif number == 4:
                op = _text(self.data, start, stop)
            elif number == 5:
                self.attribute(start, stop, level)
            elif number == 9:
                key, value = _pair(self.data, start, stop)
                if key == _SCOPES:
                    scope = _scope(value)
        self.found.nodes.append(Node(name=name, op=op, inputs=tuple(inputs), outputs=tuple(outputs), scope=scope))

    def attribute(self, at: int, end: int, level: int) -> None:
        for number, kind, start, stop in _fields(self.data, at, end):
            if kind != _BYTES:
                continue
            if number in (5, 10):
                self.tensor(start, stop)
            elif number in (6, 11):
                self.graph(start, stop, level + 1)
            elif number in (22, 23):
                self.sparse(start, stop)

    def tensor(self, at: int, end: int) -> None:
        name, dtype, elements, location = "", 0, 1, None
        for number, kind, start, stop in _fields(self.data, at, end):
            if number == 1:
                for length in self.numbers(kind, start, stop):
                    elements *= length
            elif number == 2 and kind == _VARINT:
                dtype = start
            elif number == 8 and kind == _BYTES:
                name = _text(self.data, start, stop)
            elif number == 13 and kind == _BYTES:
                key, value = _pair(self.data, start, stop)
                if key == "location":
                    location = value
        self.found.weights.append(
            Weight(name=name, dtype=_ELEMENT_TYPES.get(dtype, "unknown"), elements=elements, location=location)
        )

    def numbers(self, kind: int, start: int, stop: int) -> list[int]:
        """Return a repeated int64 field, packed or one by one."""
        if kind == _VARINT:
            return [start]
        values = []
        while start < stop:
            value, start = _varint(self.data, start, stop)
            values.append(value)
        return values


def read_outline(path: Path, name: str) -> Outline:
    """Read the outline of an ONNX file.

    Parameters
    ----------
    path
        The file.
    name
        The model's name, for messages.

    Raises
    ------
    UnsupportedModelError
        If the file is missing, or is no ONNX graph.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            reader.model()
            return reader.found
    except FileNotFoundError:
        raise UnsupportedModelError(f"Model '{name}': there is no file {path}") from None
    except ValueError as error:  # _MalformedError, or an empty file, which cannot be mapped
        raise UnsupportedModelError(f"Model '{name}': {path} is not an ONNX graph: {error}") from error


def check_external_data(outline: Outline, path: Path, name: str) -> None:
    """Refuse weights that lie outside the model's own folder.

    ONNX Runtime refuses them itself since 1.23 or so; the versions before read any file that the model names.

    Raises
    ------
    UnsafeArtifactError
        If a location is absolute, climbs out of the folder, or is a link that leads out of it.
    """
    folder = path.resolve().parent
    for weight in outline.weights:
        if weight.location is None:
            continue
        target = Path(weight.location)
        inside = not target.is_absolute() and (folder / target).resolve().is_relative_to(folder)
        if not inside or "\0" in weight.location or weight.location.startswith("\\"):
            raise UnsafeArtifactError(
                f"Model '{name}': {path.name} wants weight '{weight.name}' from {weight.location!r}, outside the "
                f"model's own folder {folder}. Put the data file beside the model and save it with a plain file name"
            )


def precision_of(outline: Outline, otherwise: str) -> str:
    """Return the element type of most weights, or `otherwise` where there are no weights."""
    counts: dict[str, int] = {}
    for weight in outline.weights:
        counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.elements
    counts = {dtype: n for dtype, n in counts.items() if n > 0}
    floating = [dtype for dtype in counts if "float" in dtype]
    if not counts:
        return otherwise
    best = max(counts, key=lambda dtype: counts[dtype])
    # shapes and indices are int64; a graph with nothing else around them computes in its inputs' type
    return best if best != "int64" else (max(floating, key=lambda d: counts[d]) if floating else otherwise)


def sources_of(names: Sequence[str], ops: Sequence[str], outline: Outline) -> tuple[list[str], list[str]]:
    """Tell which nodes of the file an executed node stands for, as far as names allow.

    ONNX Runtime calls a node that it moved to its blocked layout ``<output>_nchwc``, where ``<output>`` is the tensor
    that the last fused node wrote; walking back from there to the node of the executed type gives the chain. A
    ``FusedConv`` keeps the convolution's name and a ``FusedGemm`` is called ``fused <product>``; walking on to the
    activation gives the chain. Any other fusion leaves no trace in the name.

    Parameters
    ----------
    names, ops
        Name and operator of each executed node.
    outline
        The file's graph.

    Returns
    -------
    tuple of list
        For each executed node the sources joined by ``;`` ("" where it stands for itself, or is not known), and the
        scope ("" where the exporter noted none).
    """
    by_name: dict[str, Node] = {}
    writer: dict[str, Node] = {}
    readers: dict[str, list[Node]] = {}
    for node in outline.nodes:
        by_name.setdefault(node.name, node)
        for output in node.outputs:
            writer.setdefault(output, node)
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)
    sources, scopes = [], []
    for name, op in zip(names, ops, strict=True):
        chain: list[Node] = []
        if name.endswith("_nchwc"):
            chain = _back(writer.get(name.removesuffix("_nchwc")), op, writer)
        elif name and (first := by_name.get(name) or by_name.get(name.removeprefix("fused "))) is not None:
            chain = _on(first, readers) if op.startswith("Fused") and op != first.op else [first]
        fused = len(chain) > 1 or (len(chain) == 1 and chain[0].name != name)
        sources.append(";".join(_label(node) for node in chain) if fused else "")
        scopes.append(next((node.scope for node in chain if node.scope), ""))
    return sources, scopes


def _label(node: Node) -> str:
    return node.name or (node.outputs[0] if node.outputs else node.op)


def _back(node: Node | None, op: str, writer: dict[str, Node]) -> list[Node]:
    """Walk from the last fused node to the one of type `op`; [] if there is none."""
    chain: list[Node] = []
    while node is not None and len(chain) < 8:
        chain.append(node)
        if node.op == op:
            return chain[::-1]
        before = [writer[tensor] for tensor in node.inputs if tensor in writer and writer[tensor].op in _FOLDED | {op}]
        # the sum of two convolutions: one of them was fused with it, and the name does not say which
        node = before[0] if len(before) == 1 else None
    return []


def _on(node: Node, readers: dict[str, list[Node]]) -> list[Node]:
    """Walk from a convolution over its only readers to its activation; [] if there is none."""
    chain = [node]
    while len(chain) < 8:
        after = readers.get(chain[-1].outputs[0], []) if chain[-1].outputs else []
        if len(after) != 1 or after[0].op not in _ACTIVATIONS | _FOLDED:
            return []
        chain.append(after[0])
        if after[0].op in _ACTIVATIONS:
            return chain
    return []
