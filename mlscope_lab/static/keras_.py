"""The static profile of a Keras model: one symbolic call, layer by layer, on whatever framework Keras runs on.

A Keras model called on `keras.KerasTensor` computes shapes only, and inside a layer every operation of `keras.ops` then
announces itself. So a layer is counted by the operations of its own call, and needs a formula only where that is a loop
of the framework. The layers' own graph is not extended by the call.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import InputError, UnsupportedModelError
from mlscope_lab.static.assembly import Counted, Lengths, tabulate
from mlscope_lab.static.flow import Flow, Operator
from mlscope_lab.static.keras_operators import OperationCall, layer_work, work_of
from mlscope_lab.static.records import CostTable, LayerCost, TensorShape, Transfer, Work

__all__ = ["cost_of_keras"]

# the symbolic call of Keras is intercepted while a model is counted, one model at a time
_INTERCEPTED = threading.RLock()


def cost_of_keras(
    model: Any,
    *,
    inputs: Sequence[TensorSpec] | None = None,
    name: str = "",
    batch_size: int | None = 1,
    symbols: Mapping[str, int] | None = None,
    usual: Mapping[str, int] | None = None,
) -> CostTable:
    """Count a Keras model at inference.

    Parameters
    ----------
    model
        Functional, sequential or subclassed; a subclassed one that was never called is built.
    inputs
        What it is called with; needed for a subclassed model, otherwise the model's own inputs.
    name
        For the record; default the model's.
    batch_size
        Length of the first axis, None to leave it the symbol "batch".
    symbols
        Lengths of other axes that the model leaves open, called ``<input>.<axis>``.
    usual
        Lengths to take of symbols in which the cost is no polynomial.

    Raises
    ------
    InputError
        If a subclassed model comes without inputs.
    UnsupportedModelError
        If the model cannot be called on shapes alone.
    """
    fixed = dict(symbols or {})
    if batch_size is not None:
        fixed["batch"] = batch_size
    return tabulate(lambda lengths: _Call(model, inputs, lengths, name or model.name).counted(), fixed, usual=usual)


@dataclass(kw_only=True)
class _Row:
    name: str
    type: str
    parent: int
    depth: int
    inputs: tuple[TensorShape, ...] = ()
    outputs: tuple[TensorShape, ...] = ()
    work: Work = field(default_factory=Work)
    counted: bool = True
    weights: dict[int, None] = field(default_factory=dict)


class _Call:
    """One symbolic call of a model at known lengths."""

    def __init__(self, model: Any, inputs: Sequence[TensorSpec] | None, lengths: Lengths, label: str) -> None:
        self._model = model
        self._inputs = inputs
        self._lengths = lengths
        self._label = label
        self._rows: list[_Row] = []
        self._stack: list[int] = []
        self._labels: Counter[str] = Counter()
        self._tensors: dict[int, int] = {}
        self._kept: list[Any] = []
        self._sizes: list[int] = []
        self._weights: dict[int, tuple[int, int]] = {}
        self._operators: list[Operator] = []
        self._unknown: Counter[str] = Counter()
        self._listed: set[int] = set()
        self._shaping = False  # operations that another one asks for its shape are no work of their own

    def counted(self) -> Counted:
        import keras

        feeds = self._feeds(keras)
        given = [self._tensor(t) for t in keras.tree.flatten(feeds)]
        with _INTERCEPTED, _intercepted(self):
            try:
                if isinstance(feeds, dict) and not self._declared():
                    result = self._model(**feeds, training=False)
                else:
                    result = self._model(feeds, training=False)
            except Exception as error:  # Keras raises whatever the framework below it raises
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UnsupportedModelError(
                    f"Keras model '{self._label}' cannot be called on shapes alone: {first}"
                ) from error
        results = [self._tensor(t) for t in keras.tree.flatten(result) if isinstance(t, keras.KerasTensor)]
        flow = Flow(self._operators, self._sizes, given, results)
        layers = tuple(self._layer(index, row, flow) for index, row in enumerate(self._rows))
        for layer in self._model._flatten_layers():
            self._declare(layer)
        table = CostTable(
            model=self._label,
            source="keras",
            layers=layers,
            parameters=sum(n for n, _ in self._weights.values()),
            parameter_bytes=sum(n for _, n in self._weights.values()),
            unknown=dict(self._unknown),
        )
        return Counted(table=table, live=list(zip((o.site for o in self._operators), flow.live(), strict=True)))

    def _declared(self) -> bool:
        try:
            return bool(self._model.inputs)
        except (AttributeError, ValueError, TypeError):
            return False

    def _feeds(self, keras: Any) -> Any:
        if self._inputs is not None:
            made = {spec.name: self._symbolic(keras, spec.name, spec.shape, spec.dtype) for spec in self._inputs}
        elif self._declared():
            made = {t.name: self._symbolic(keras, t.name, t.shape, t.dtype) for t in self._model.inputs}
        else:
            raise InputError(
                f"'{self._label}' is a subclassed Keras model that does not declare its inputs; give example arrays"
            )
        if len(made) == 1:  # a sequential model that was never called does not tell its structure
            return next(iter(made.values()))
        return keras.tree.pack_sequence_as(self._model.input, list(made.values())) if self._declared() else made

    def _symbolic(self, keras: Any, name: str, shape: Any, dtype: str) -> Any:
        if shape is None:
            raise InputError(f"Input '{name}' has no shape; a static profile needs one")
        lengths = [
            n if isinstance(n, int) else self._lengths.of(n or ("batch" if axis == 0 else f"{name}.{axis}"))
            for axis, n in enumerate(shape)
        ]
        return keras.KerasTensor(tuple(lengths), dtype="float32" if dtype == "any" else dtype, name=name)

    def _tensor(self, tensor: Any) -> int:
        key = id(tensor)
        if key not in self._tensors:
            self._tensors[key] = len(self._sizes)
            self._kept.append(tensor)
            self._sizes.append(_bytes(tensor.shape, str(tensor.dtype)))
        return self._tensors[key]

    def _declare(self, layer: Any) -> list[int]:
        found: list[int] = []
        for part in layer._flatten_layers():
            for variable in part._trainable_variables:
                self._weights[id(variable)] = _elements(variable.shape), _bytes(variable.shape, str(variable.dtype))
                found.append(id(variable))
        return found

    def _open(self, operation: Any, label: str) -> int:
        parent = self._stack[-1] if self._stack else -1
        prefix = f"{self._rows[parent].name.partition('#')[0]}/" if parent >= 0 else ""
        plain = f"{prefix}{label}"
        self._labels[plain] += 1
        name = plain if self._labels[plain] == 1 else f"{plain}#{self._labels[plain]}"
        self._rows.append(
            _Row(name=name, type=type(operation).__name__, parent=parent, depth=self._rows[parent].depth + 1)
            if parent >= 0
            else _Row(name=name, type=type(operation).__name__, parent=-1, depth=0)
        )
        return len(self._rows) - 1

    def layer(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Follow the call of a layer; its operations count to it, its sublayers have rows of their own."""
        import keras

        if self._shaping:
            return layer.compute_output_spec(*args, **kwargs)
        row = self._open(layer, layer.name)
        taken = _tensors_in(keras, args, kwargs)
        self._rows[row].inputs = _described(taken)
        work = layer_work(layer, [tuple(t.shape) for t in taken])
        if work is not None:
            result = self._shaped(layer, args, kwargs)
            self._rows[row].work = work
            self._record(row, taken, _tensors_in(keras, [result], {}))
            self._rows[row].weights.update(dict.fromkeys(self._declare(layer)))
        else:
            result = self._follow(layer, row, args, kwargs, taken)
        self._rows[row].outputs = _described(_tensors_in(keras, [result], {}))
        return result

    def _follow(
        self, layer: Any, row: int, args: Sequence[Any], kwargs: Mapping[str, Any], taken: Sequence[Any]
    ) -> Any:
        import keras

        if hasattr(layer, "operations"):
            self._listed.update(id(operation) for operation in layer.operations)
        mark = len(self._rows), len(self._operators), self._labels.copy(), self._unknown.copy()
        self._stack.append(row)
        try:
            result = layer.call(*args, **kwargs)
        except Exception:  # a call that needs values, or the framework below: its shapes are still known to Keras
            if isinstance(layer, keras.Model):
                raise
            del self._rows[mark[0] :], self._operators[mark[1] :]
            self._labels, self._unknown = mark[2], mark[3]
            result = self._shaped(layer, args, kwargs)
            self._rows[row].work = Work()
            self._rows[row].counted = False
            self._unknown[type(layer).__name__] += 1
            self._record(row, taken, _tensors_in(keras, [result], {}))
            self._rows[row].weights.update(dict.fromkeys(self._declare(layer)))
        else:
            for variable in layer._trainable_variables:
                self._weights[id(variable)] = _elements(variable.shape), _bytes(variable.shape, str(variable.dtype))
                self._rows[row].weights[id(variable)] = None
        finally:
            self._stack.pop()
        return result

    def _shaped(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what an operation or layer returns, as shapes."""
        self._shaping = True
        try:
            return operation.compute_output_spec(*args, **kwargs)
        finally:
            self._shaping = False

    def operation(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Count an operation: a row of its own in a functional model, part of the layer that calls it elsewhere."""
        import keras

        if self._shaping:
            return operation.compute_output_spec(*args, **kwargs)
        result = self._shaped(operation, args, kwargs)
        first = args[0] if args else None
        if (
            type(operation).__name__ in {"Cast", "ConvertToTensor", "StopGradient"}
            and isinstance(first, keras.KerasTensor)
            and first.dtype == result.dtype
        ):
            return first  # Keras asks for many conversions that convert nothing
        if id(operation) in self._listed or not self._stack:
            row = self._open(operation, operation.name)
        else:
            row = self._stack[-1]
        taken, made = _tensors_in(keras, args, kwargs), _tensors_in(keras, [result], {})
        if row != (self._stack[-1] if self._stack else -1):
            self._rows[row].inputs, self._rows[row].outputs = _described(taken), _described(made)
        call = OperationCall(
            operation=operation,
            given=[tuple(int(n) for n in v.shape) for v in keras.tree.flatten([args, kwargs]) if hasattr(v, "shape")],
            keywords=frozenset(key for key, value in kwargs.items() if value is not None),
            result=tuple(int(n) for n in made[0].shape) if made and None not in made[0].shape else (),
        )
        work = work_of(call)
        if work is None:
            self._unknown[type(operation).__name__] += 1
            self._rows[row].counted = False
        else:
            self._rows[row].work += work
        self._record(row, taken, made)
        return result

    def _record(self, row: int, taken: Sequence[Any], made: Sequence[Any]) -> None:
        reads = {key: self._sizes[key] for key in map(self._tensor, taken)}
        writes = {key: self._sizes[key] for key in map(self._tensor, made) if key not in reads}
        self._operators.append(Operator(site=row, reads=reads, writes=writes))

    def _layer(self, index: int, row: _Row, flow: Flow) -> LayerCost:
        weights = [self._weights[key] for key in row.weights]
        moved = flow.transfers(index)
        table = row.type == "Embedding"  # of which only the rows taken are read
        rows_taken = sum(t.nbytes for t in moved if t.kind == "output" and isinstance(t.nbytes, int))
        numbers = {key: len(self._sizes) + i for i, key in enumerate(self._weights)}
        return LayerCost(
            name=row.name,
            type=row.type,
            scope=row.name.partition("#")[0],
            parent=row.parent,
            depth=row.depth,
            inputs=row.inputs,
            outputs=row.outputs,
            counted=row.counted,
            macs=row.work.macs,
            flops=row.work.flops,
            parameters=sum(n for n, _ in weights),
            parameter_bytes=sum(n for _, n in weights),
            transfers=(
                *moved,
                *(
                    Transfer(tensor=numbers[k], kind="parameter", nbytes=rows_taken if table else self._weights[k][1])
                    for k in row.weights
                ),
            ),
        )


@contextmanager
def _intercepted(call: _Call) -> Iterator[None]:
    """Send the symbolic calls of Keras to `call` instead of into the layers' own graph."""
    import keras
    from keras.src.layers import layer as layer_module

    mine = threading.get_ident()
    layers, operations = keras.layers.Layer.symbolic_call, keras.Operation.symbolic_call
    node = layer_module.Node

    def of_layer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != mine:
            return layers(self, *args, **kwargs)
        return call.layer(self, args, kwargs)

    def of_operation(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != mine:
            return operations(self, *args, **kwargs)
        return call.operation(self, args, kwargs)

    def no_node(**arguments: Any) -> Any:
        return None if threading.get_ident() == mine else node(**arguments)

    with ExitStack() as undo:
        for owner, name, stand_in in (
            (keras.layers.Layer, "symbolic_call", of_layer),
            (keras.Operation, "symbolic_call", of_operation),
            (layer_module, "Node", no_node),
        ):
            undo.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, stand_in)
        yield


def _tensors_in(keras: Any, args: Any, kwargs: Any) -> list[Any]:
    found = [v for v in keras.tree.flatten([list(args), dict(kwargs)]) if isinstance(v, keras.KerasTensor)]
    return list({id(v): v for v in found}.values())


def _elements(shape: Sequence[Any]) -> int:
    count = 1
    for n in shape:
        count *= int(n or 0)
    return count


def _bytes(shape: Sequence[Any], dtype: str) -> int:
    import numpy as np

    if dtype == "string":
        return 0
    size = 2 if dtype == "bfloat16" else 1 if dtype.startswith("float8") else np.dtype(dtype).itemsize
    return _elements(shape) * size


def _described(tensors: Sequence[Any]) -> tuple[TensorShape, ...]:
    return tuple(TensorShape(str(t.dtype), tuple(-1 if n is None else int(n) for n in t.shape)) for t in tensors)
