"""A TensorFlow Lite file taken apart: its operators, what they read and write, and each as a model of its own."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlscope_lab.backends.tensorflow_graph import plain_name
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.trace.graph import Operation
from mlscope_lab.trace.kinds import kind_of

__all__ = ["LiteGraph", "LitePart", "read_lite"]

_HEAVY: Final = re.compile(r"Conv|MatMul|Einsum|depthwise", re.IGNORECASE)
_NO_OPERATOR: Final = re.compile(r"(?:^|/)Const(_\d+)?$|^(?:(?:Stateful)?PartitionedCall|Identity)(_\d+)?(:\d+)?$")
"""Words of a tensor's name that tell no operator: constants that were merged into it, and outputs of the whole."""
_SHARED: Final = ("RESOURCE", "VARIANT")
_WEIGHTS: Final = frozenset({"FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16", "INT4", "INT8", "UINT8"})


@dataclass(frozen=True, kw_only=True)
class LitePart:
    """One operator.

    Attributes
    ----------
    operation
        Its record; positions of values are those of `LiteGraph.tensors`.
    operators
        Positions in the file of it and of those that prepare its constants.
    reads, writes
        Tensors of the file that are values, each once.
    """

    operation: Operation
    operators: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class LiteGraph:
    """The main graph of a file.

    Attributes
    ----------
    parts
        Its operators in order, those left out that depend on constants alone.
    tensors, names
        Of each value: the tensor of the file, and its name; the inputs first.
    notes
        What is not seen, in words.
    """

    def __init__(self, model: Any, schema: Any, inputs: Sequence[tuple[str, int]]) -> None:
        self._model, self._schema = model, schema
        self._main = model.subgraphs[0]
        self._codes = _names(schema.BuiltinOperator)
        self._types = _names(schema.TensorType)
        self._activations = _names(schema.ActivationFunctionType)
        self._constant = {i for i, tensor in enumerate(self._main.tensors) if self._data(tensor) is not None}
        self._makers: dict[int, int] = {}  # operators that make constants of constants, by what they make
        self.tensors = [index for _, index in inputs]
        self.names = [name for name, _ in inputs]
        self.parts = self._parts()
        inside = [p.operation.name for p in self.parts if p.operation.kinds == ("control",)]
        self.notes = (f"Not seen into: {', '.join(inside[:5])}",) if inside else ()

    def _data(self, tensor: Any) -> Any:
        """Return the bytes of a constant, None for what is computed."""
        data = self._model.buffers[tensor.buffer].data if tensor.buffer else None
        return data if data is not None and len(data) else None

    def quantization(self, tensor: int) -> tuple[float, int] | None:
        """Return scale and zero point of a tensor that has one of each."""
        found = self._main.tensors[tensor].quantization
        if found is None or found.scale is None or len(found.scale) != 1 or not found.scale[0]:
            return None
        points = found.zeroPoint
        return float(found.scale[0]), int(points[0]) if points is not None and len(points) else 0

    def _type_of(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        if self._codes.get(number) == "CUSTOM" and code.customCode:
            return code.customCode.decode() if isinstance(code.customCode, bytes) else str(code.customCode)
        return self._codes.get(number, f"operator {number}")

    def _kinds(self, operator: Any, operator_type: str) -> tuple[str, ...]:
        fused = getattr(operator.builtinOptions, "fusedActivationFunction", 0)
        return (kind_of(operator_type), *(["activation"] if self._activations.get(fused, "NONE") != "NONE" else []))

    def _parts(self) -> tuple[LitePart, ...]:
        place = {tensor: i for i, tensor in enumerate(self.tensors)}
        labels, taken = set[str](), set(self.names)
        parts = []
        for number, operator in enumerate(self._main.operators):
            kind = self._type_of(operator)
            writes = [int(i) for i in operator.outputs if i >= 0]
            for tensor in writes:
                if self._types.get(self._main.tensors[tensor].type) in _SHARED:
                    raise UnsupportedModelError(
                        f"'{kind}' keeps its state outside the graph, so the operators of this TensorFlow Lite file "
                        "cannot run one by one"
                    )
            if not writes:
                continue
            given = [int(i) for i in operator.inputs if i >= 0]
            if given and all(i in self._constant for i in given):
                self._constant.update(writes)
                self._makers.update(dict.fromkeys(writes, number))
                continue
            reads = [i for i in given if i not in self._constant and not self._main.tensors[i].isVariable]
            texts = _text(self._main.tensors[writes[0]].name).split(";")
            words = [plain_name(word) for word in texts if word and not _NO_OPERATOR.search(word)]
            label = _free(words[0] if words else kind, labels)
            labels.add(label)
            for tensor in writes:
                place[tensor] = len(self.tensors)
                self.tensors.append(tensor)
                name = _free(_text(self._main.tensors[tensor].name) or label, taken)
                taken.add(name)
                self.names.append(name)
            heavy = next((word for word in words if _HEAVY.search(word.rpartition("/")[2])), words[0] if words else "")
            parts.append(
                LitePart(
                    operation=Operation(
                        name=label,
                        type=kind,
                        kinds=self._kinds(operator, kind),
                        inputs=tuple(place[i] for i in reads),
                        outputs=tuple(place[i] for i in writes),
                        scope=heavy.rpartition("/")[0],
                        sources=tuple(dict.fromkeys(words)) if len(set(words)) > 1 else (),
                        parameter_count=sum(self._parameters(i) for i in given),
                    ),
                    operators=(*self._preparing(operator), number),
                    reads=tuple(dict.fromkeys(reads)),
                    writes=tuple(writes),
                )
            )
        return tuple(parts)

    def _preparing(self, operator: Any) -> list[int]:
        """Return the operators that make the constants of one, in order."""
        found: set[int] = set()
        waiting = [operator]
        while waiting:
            for tensor in waiting.pop().inputs:
                maker = self._makers.get(int(tensor))
                if maker is not None and maker not in found:
                    found.add(maker)
                    waiting.append(self._main.operators[maker])
        return sorted(found)

    def _parameters(self, tensor: int) -> int:
        if tensor not in self._constant:
            return 0
        found = self._main.tensors[tensor]
        name = self._types.get(found.type, "")
        scales = found.quantization.scale if found.quantization is not None else None
        if name not in _WEIGHTS and (name != "INT32" or scales is None or not len(scales)):
            return 0  # a length, an axis or a shape
        return int(np.prod(found.shape, dtype=np.int64)) if found.shape is not None else 1

    def cut(self, part: LitePart, shapes: Sequence[tuple[int, ...]]) -> tuple[bytes, dict[int, int]]:
        """Return one operator as a file of its own.

        Parameters
        ----------
        part
            Which.
        shapes
            Of what it reads.

        Returns
        -------
        content, places
            The file, and the place in it of each tensor of the whole file.
        """
        flatbuffers = importlib.import_module("flatbuffers")
        schema = self._schema
        made, main = schema.ModelT(), schema.SubGraphT()
        made.version, made.operatorCodes = self._model.version, self._model.operatorCodes
        made.buffers = [schema.BufferT()]
        others = self._model.subgraphs[1:]
        if others and part.operation.kinds == ("control",):  # their bodies are graphs of their own
            made.buffers = list(self._model.buffers)
        else:
            others = []
        main.tensors, main.operators = [], []
        places: dict[int, int] = {}

        def put(index: int) -> int:
            if index < 0:
                return -1
            if index not in places:
                tensor = copy.copy(self._main.tensors[index])
                if self._data(tensor) is not None:
                    made.buffers.append(self._model.buffers[tensor.buffer])
                    tensor.buffer = len(made.buffers) - 1
                else:
                    tensor.buffer = 0
                places[index] = len(main.tensors)
                main.tensors.append(tensor)
            return places[index]

        for number in part.operators:
            operator = copy.copy(self._main.operators[number])
            operator.inputs = [put(int(i)) for i in operator.inputs]
            operator.outputs = [put(int(i)) for i in operator.outputs]
            main.operators.append(operator)
        for index, shape in zip(part.reads, shapes, strict=True):
            main.tensors[places[index]].shape = list(shape)
            main.tensors[places[index]].shapeSignature = None
        main.inputs, main.outputs = [put(i) for i in part.reads], [put(i) for i in part.writes]
        made.subgraphs = [main, *others]
        builder = flatbuffers.Builder(1024)
        builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output()), places


def read_lite(path: Path, inputs: Sequence[tuple[str, int]], package: str) -> LiteGraph:
    """Read a file.

    Parameters
    ----------
    path
        Of the file, which an interpreter has opened before.
    inputs
        The session's names of its inputs, and their tensors.
    package
        Package that has the interpreter, "ai_edge_litert" or "tensorflow".

    Raises
    ------
    UnsupportedModelError
        If the file cannot be taken apart.
    """
    where = "ai_edge_litert" if package == "ai_edge_litert" else "tensorflow.lite.python"
    try:
        schema = importlib.import_module(f"{where}.schema_py_generated")
    except ImportError as error:
        raise UnsupportedModelError(
            f"{package} comes without the schema of TensorFlow Lite files ({error}), so their operators cannot run one "
            "by one"
        ) from error
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
        return LiteGraph(model, schema, inputs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # struct, index, value and type errors, as the file is broken
        raise UnsupportedModelError(f"{path.name} cannot be taken apart: {type(error).__name__}: {error}") from error


def _names(group: Any) -> dict[int, str]:
    return {value: name for name, value in vars(group).items() if isinstance(value, int)}


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


def _free(name: str, taken: set[str]) -> str:
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}#{count}"
    return free
