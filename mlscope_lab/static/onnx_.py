"""The static profile of an ONNX graph, node by node, with every shape inferred and no weight read.

Shapes come from ONNX's own inference, one node at a time, so that values which the graph computes for its shapes can be
put in between. Control flow is entered: of an If the branch with more work counts, the body of a Loop or Scan counts
as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.assembly import Counted, Lengths, tabulate
from mlscope_lab.static.onnx_operators import Call, UnknownShapeError, is_known, weight_inputs, work_of
from mlscope_lab.static.onnx_values import MAX_ELEMENTS, fold
from mlscope_lab.static.records import CostTable, LayerCost, TensorShape, Transfer, Work

__all__ = ["cost_of_onnx"]

_DEFAULT_DOMAINS = ("", "ai.onnx")
_SCOPES = "pkg.torch.onnx.name_scopes"
_MAX_DEPTH = 32


def cost_of_onnx(
    model: Any, *, name: str = "", batch_size: int | None = 1, symbols: Mapping[str, int] | None = None
) -> CostTable:
    """Count an ONNX model.

    Parameters
    ----------
    model
        Path of a file, or an `onnx.ModelProto`. External data is not read, and refused if it lies outside the folder.
    name
        For the record; default the graph's.
    batch_size
        Length of the first axis of the inputs where the graph leaves it open; None leaves it the symbol "batch".
    symbols
        Lengths of other symbolic dimensions by name; those not given stay symbols.

    Raises
    ------
    UnsupportedModelError
        If it is not an ONNX model, or a size that is asked for contradicts it.
    UnsafeArtifactError
        If its external data lies outside its folder.
    """
    proto = _loaded(model)
    batch = _batch_symbol(proto)
    fixed = {_spelled(proto, key): int(value) for key, value in (symbols or {}).items()}
    if batch is None and batch_size not in {None, 1}:
        told = ", ".join(f"{i.name}: {_dims(i.type)}" for i in _inputs(proto)) or "none"
        if not _fixes_batch(proto, batch_size or 1):
            raise UnsupportedModelError(
                f"The graph fixes the batch, so batch_size={batch_size} is not of this model (inputs: {told}). "
                "Export it with a symbolic batch"
            )
    elif batch is not None and batch_size is not None:
        fixed.setdefault("batch", batch_size)
    table = tabulate(lambda lengths: _Walk(proto, lengths, batch, name).counted(), fixed)
    if batch is not None and batch != "batch":
        renamed = f"batch is the dimension that the graph calls '{batch}'"
        table = _noted(table, renamed) if "batch" in table.symbols else table
    return table


def _noted(table: CostTable, note: str) -> CostTable:
    from dataclasses import replace

    return replace(table, notes=(*table.notes, note))


def _loaded(model: Any) -> Any:
    import onnx

    if isinstance(model, str | Path):
        from mlscope_lab.artifacts.safety import check_safe

        path = Path(model)
        check_safe(path, "onnx", trusted=False)
        try:
            proto = onnx.load_model(str(path), load_external_data=False)
        except Exception as error:  # protobuf raises of its own where a file is malformed
            raise UnsupportedModelError(f"{path} is not an ONNX model: {error}") from error
    else:
        proto = model
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    return proto


def _inputs(proto: Any) -> list[Any]:
    """Return the inputs that are no weights; until IR version 3 weights were listed among them."""
    stored = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    return [i for i in proto.graph.input if i.name not in stored]


def _dims(kind: Any) -> list[int | str]:
    dims = kind.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]


def _batch_symbol(proto: Any) -> str | None:
    """Return the symbol on the first axis of the first input that has one there ("" if it has no name), else None."""
    for value in _inputs(proto):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and not dims[0].HasField("dim_value"):
            return str(dims[0].dim_param)
    return None


def _fixes_batch(proto: Any, batch: int) -> bool:
    """Tell whether the graph's inputs have this very batch."""
    return any(dims[:1] == [batch] for dims in (_dims(value.type) for value in _inputs(proto)))


def _spelled(proto: Any, key: str) -> str:
    return "batch" if key == _batch_symbol(proto) else key


@dataclass(kw_only=True)
class _Scope:
    """Tensors by name, those of enclosing graphs visible."""

    types: MutableMapping[str, Any]
    values: MutableMapping[str, npt.NDArray[Any]]
    origins: MutableMapping[str, frozenset[int]]
    numbers: MutableMapping[str, int]

    def inner(self) -> _Scope:
        return _Scope(
            types=ChainMap({}, self.types),  # type: ignore[arg-type]
            values=ChainMap({}, self.values),  # type: ignore[arg-type]
            origins=ChainMap({}, self.origins),  # type: ignore[arg-type]
            numbers=ChainMap({}, self.numbers),  # type: ignore[arg-type]
        )


@dataclass(kw_only=True)
class _Step:
    """An operator as the liveness of tensors sees it."""

    row: int
    reads: frozenset[int]
    writes: frozenset[int]
    within: int = 0  # bytes that a body needs besides


@dataclass(kw_only=True)
class _Body:
    """A graph that was walked."""

    rows: list[int] = field(default_factory=list)
    live: list[tuple[int, int]] = field(default_factory=list)
    outer: frozenset[int] = frozenset()


class _Walk:
    """One walk over a graph with all lengths known."""

    def __init__(self, proto: Any, lengths: Lengths, batch: str | None, name: str) -> None:
        self._proto = proto
        self._lengths = lengths
        self._batch = batch
        self._name = name or proto.graph.name or "graph"
        self._opsets = {o.domain: o.version for o in proto.opset_import}
        self._rows: list[LayerCost] = []
        self._bytes: list[int] = []  # of each tensor
        self._weights: list[tuple[int, int]] = []  # elements and bytes of each stored tensor
        self._used: set[int] = set()
        self._labels: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._notes: dict[str, None] = {}

    def counted(self) -> Counted:
        import onnx

        scope = _Scope(types={}, values={}, origins={}, numbers={})
        for value in _inputs(self._proto):
            kind = onnx.TypeProto()
            kind.CopyFrom(value.type)
            self._set_lengths(kind, value.name)
            self._define(scope, value.name, kind)
        body = self._graph(self._proto.graph, scope, parent=-1, depth=0)
        table = CostTable(
            model=self._name,
            source="onnx",
            layers=tuple(self._rows),
            parameters=sum(self._weights[key][0] for key in self._used),
            parameter_bytes=sum(self._weights[key][1] for key in self._used),
            unknown=dict(self._unknown),
            notes=tuple(self._notes),
        )
        return Counted(table=table, live=body.live)

    def _set_lengths(self, kind: Any, name: str) -> None:
        for axis, dim in enumerate(kind.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            symbol = dim.dim_param or ("batch" if axis == 0 and self._batch == "" else f"{name}.{axis}")
            dim.dim_value = self._lengths.of("batch" if dim.dim_param and dim.dim_param == self._batch else symbol)

    def _define(self, scope: _Scope, name: str, kind: Any) -> None:
        scope.types[name] = kind
        scope.numbers[name] = len(self._bytes)
        self._bytes.append(_bytes(kind))

    def _store(self, scope: _Scope, name: str, elements: int, nbytes: int) -> None:
        scope.origins[name] = frozenset({len(self._weights)})
        self._weights.append((elements, nbytes))

    def _graph(
        self, graph: Any, scope: _Scope, parent: int, depth: int, times: int = 1, keep: Sequence[str] = ()
    ) -> _Body:
        import onnx

        if depth > _MAX_DEPTH:
            raise UnsupportedModelError(f"Bodies of control flow are nested deeper than {_MAX_DEPTH}")
        for tensor in graph.initializer:
            elements = math.prod(tensor.dims)
            self._define(scope, tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
            self._store(scope, tensor.name, elements, self._bytes[-1])
            value = _value(tensor)
            if value is not None:
                scope.values[tensor.name] = value
        for sparse in graph.sparse_initializer:
            kind = onnx.helper.make_tensor_type_proto(sparse.values.data_type, list(sparse.dims))
            self._define(scope, sparse.values.name, kind)
            self._store(scope, sparse.values.name, math.prod(sparse.values.dims), _bytes_of_tensor(sparse.values))
        steps: list[_Step] = []
        inner: list[tuple[int, list[tuple[int, int]]]] = []
        first = len(self._bytes)
        rows: list[int] = []
        known = set(scope.numbers.values())
        for node in graph.node:
            if self._fold(node, scope):
                continue
            step, bodies = self._node(node, scope, parent, depth, times)
            rows.append(step.row)
            steps.append(step)
            inner.extend((len(steps) - 1, body.live) for body in bodies)
        results = frozenset(
            scope.numbers[o.name] for o in graph.output if o.name in scope.numbers and o.name not in scope.origins
        )
        given = frozenset(
            scope.numbers[i.name] for i in graph.input if i.name in scope.numbers and i.name not in scope.origins
        )
        live = self._liveness(steps, given, results)
        merged = [(step.row, nbytes) for step, nbytes in zip(steps, live, strict=True)]
        for index, within in inner:
            merged.extend((row, live[index] + nbytes) for row, nbytes in within)
        reads = frozenset().union(*(step.reads for step in steps)) if steps else frozenset()
        return _Body(rows=rows, live=merged, outer=frozenset(n for n in reads if n < first and n in known) - given)

    def _liveness(self, steps: Sequence[_Step], given: frozenset[int], results: frozenset[int]) -> list[int]:
        """Return for each step the bytes that live while it runs."""
        last: dict[int, int] = {}
        for index, step in enumerate(steps):
            for tensor in step.reads | step.writes:
                last[tensor] = index
        for tensor in results:
            last[tensor] = len(steps)
        begins: dict[int, int] = dict.fromkeys(given, 0)
        for index, step in enumerate(steps):
            for tensor in step.writes:
                begins.setdefault(tensor, index)
        change = [0] * (len(steps) + 2)
        for tensor, begin in begins.items():
            end = last.get(tensor)
            if end is not None:
                change[begin] += self._bytes[tensor]
                change[min(end, len(steps)) + 1] -= self._bytes[tensor]
        live, now = [], 0
        for index in range(len(steps)):
            now += change[index]
            live.append(now)
        return live

    def _fold(self, node: Any, scope: _Scope) -> bool:
        """Define the outputs of a node that computes from constants alone; tell whether it is one."""
        import onnx

        op = _operator(node)
        if any(a.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS} for a in node.attribute):
            return False
        if op.startswith("Random") or op in {"Bernoulli", "Multinomial"}:
            return False
        read = [name for name in node.input if name]
        shape_of = op in {"Shape", "Size"} and read and _shape(scope.types.get(read[0])) is not None
        if not shape_of and not all(name in scope.origins for name in read):
            return False
        attributes = _attributes(node)
        values: list[npt.NDArray[Any]] | None = None
        if op == "Constant":
            values = _constant(attributes)
        elif shape_of:
            shape = _shape(scope.types[read[0]]) or ()
            if -1 in shape:
                return False
            cut = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
            values = [np.array(cut if op == "Shape" else math.prod(shape), dtype=np.int64)]
        elif all(name in scope.values for name in read):
            given = [scope.values[name] if name else None for name in node.input]
            values = fold(op, given, attributes)
        kinds = self._infer(node, scope)
        origins = frozenset[int]() if shape_of else frozenset().union(*(scope.origins[name] for name in read))
        origins = frozenset(key for key in origins if self._weights[key][0] > 1)
        for index, name in enumerate(node.output):
            if not name:
                continue
            kind = kinds.get(name)
            if values is not None and index < len(values):
                value = values[index]
                scope.values[name] = value
                kind = onnx.helper.make_tensor_type_proto(
                    onnx.helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
                )
            self._define(scope, name, kind)
            if op in {"Constant", "ConstantOfShape"} or (not origins and not shape_of):
                self._store(scope, name, _elements(kind), self._bytes[-1])
            else:
                scope.origins[name] = origins
        return True

    def _infer(self, node: Any, scope: _Scope) -> dict[str, Any]:
        """Return the types of a node's outputs, as far as ONNX infers them."""
        import onnx

        domain = "" if node.domain in _DEFAULT_DOMAINS else node.domain
        stand_in = node
        if domain == "com.microsoft" and node.op_type in _LIKE:
            domain, stand_in = "", _standing_in(node)
        version = self._opsets.get(domain, self._opsets.get("ai.onnx", 1)) if not domain else self._opsets.get(domain)
        types = {name: scope.types[name] for name in stand_in.input if name and scope.types.get(name) is not None}
        if len(types) < len({name for name in stand_in.input if name}):
            return {}
        try:
            schema = onnx.defs.get_schema(stand_in.op_type, version or 1, domain)
            data = {n: onnx.numpy_helper.from_array(scope.values[n]) for n in types if n in scope.values}
            found: dict[str, Any] = onnx.shape_inference.infer_node_outputs(
                schema, stand_in, types, data,
                opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in self._opsets.items()],
                ir_version=self._proto.ir_version,
            )  # fmt: skip
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, ValueError, RuntimeError, TypeError):
            return {}
        return found

    def _label(self, node: Any) -> str:
        plain = node.name or next((o for o in node.output if o), node.op_type)
        self._labels[plain] += 1
        return plain if self._labels[plain] == 1 else f"{plain}#{self._labels[plain]}"

    def _node(self, node: Any, scope: _Scope, parent: int, depth: int, times: int) -> tuple[_Step, list[_Body]]:
        row = len(self._rows)
        label, op = self._label(node), _operator(node)
        base = LayerCost(name=label, type=node.op_type, scope=_scope_of(node), parent=parent, depth=depth)
        self._rows.append(base)
        enter = {"If": self._if, "Loop": self._loop, "Scan": self._scan}.get(op)
        bodies: list[_Body] = []
        work, counted = Work(), True
        if enter is not None:
            bodies = enter(node, scope, row, depth, times)
        else:
            kinds = self._infer(node, scope)
            for name in node.output:
                if name:
                    self._define(scope, name, kinds.get(name))
            work, counted = self._work(node, op, scope)
        read = [(i, name) for i, name in enumerate(node.input) if name]
        weights = self._weights_of(node, op, scope)
        dynamic = list(dict.fromkeys(n for _, n in read if n not in scope.origins))
        outputs = [name for name in node.output if name]
        transfers = [
            *(self._transfer(scope, n, "input") for n in dynamic if n in scope.numbers),
            *(self._transfer(scope, n, "output") for n in outputs if n in scope.numbers),
            *(
                Transfer(tensor=scope.numbers[name], kind="parameter", nbytes=sum(self._weights[k][1] for k in keys))
                for name, keys in weights.items()
            ),
        ]
        keys = frozenset().union(*weights.values()) if weights else frozenset()
        self._used |= keys
        work = work * times
        self._rows[row] = LayerCost(
            name=label,
            type=base.type,
            scope=base.scope,
            parent=parent,
            depth=depth,
            counted=counted,
            macs=work.macs,
            flops=work.flops,
            parameters=sum(self._weights[key][0] for key in keys),
            parameter_bytes=sum(self._weights[key][1] for key in keys),
            inputs=tuple(_described(scope.types.get(n)) for n in dynamic),
            outputs=tuple(_described(scope.types.get(n)) for n in outputs),
            transfers=() if bodies else tuple(transfers),
        )
        reads = frozenset(scope.numbers[n] for n in dynamic if n in scope.numbers)
        reads = reads.union(*(body.outer for body in bodies))
        return _Step(row=row, reads=reads, writes=frozenset(scope.numbers[n] for n in outputs)), bodies

    def _transfer(self, scope: _Scope, name: str, kind: str) -> Transfer:
        number = scope.numbers[name]
        return Transfer(tensor=number, kind=kind, nbytes=self._bytes[number])

    def _work(self, node: Any, op: str, scope: _Scope) -> tuple[Work, bool]:
        if not is_known(op):
            self._unknown[op] += 1
            return Work(), False
        call = Call(
            op=op,
            attributes=_attributes(node),
            inputs=[_known(scope.types.get(name)) if name else None for name in node.input],
            outputs=[_known(scope.types.get(name)) if name else None for name in node.output],
            values=[scope.values.get(name) for name in node.input],
        )
        try:
            return work_of(call), True
        except UnknownShapeError:
            self._unknown[f"{op} (a shape is not known)"] += 1
        except (IndexError, KeyError, ValueError, UnsupportedModelError):
            self._unknown[f"{op} (malformed)"] += 1
        return Work(), False

    def _weights_of(self, node: Any, op: str, scope: _Scope) -> dict[str, frozenset[int]]:
        found: dict[str, frozenset[int]] = {}
        for index, single, integer in weight_inputs(op, len(node.input)):
            name = node.input[index]
            if not name or name not in scope.origins:
                continue
            kind = scope.types.get(name)
            dtype = "" if kind is None else _described(kind).dtype
            if "float" not in dtype and not (integer and "int" in dtype):
                continue
            if not single and _elements(kind) <= 1:
                continue
            found[name] = scope.origins[name]
        return found

    def _if(self, node: Any, scope: _Scope, row: int, depth: int, times: int) -> list[_Body]:
        """Count the branch that is taken, where that is known, else the one with more work."""
        attributes = {a.name: a.g for a in node.attribute}
        branches = [attributes["then_branch"], attributes["else_branch"]]
        condition = scope.values.get(node.input[0])
        if condition is not None:
            chosen = 0 if bool(condition.reshape(-1)[0]) else 1
        else:
            weighed = [self._trial(branch, scope, row, depth, times) for branch in branches]
            chosen = 0 if weighed[0] >= weighed[1] else 1
            self._notes.setdefault(
                f"{self._rows[row].name} (If): the {'then' if chosen == 0 else 'else'} branch counts, which has more "
                "work; which one runs depends on the input"
            )
        inner = scope.inner()
        body = self._graph(branches[chosen], inner, row, depth + 1, times)
        for name, output in zip(node.output, branches[chosen].output, strict=False):
            self._define(scope, name, inner.types.get(output.name))
        return [body]

    def _trial(self, branch: Any, scope: _Scope, row: int, depth: int, times: int) -> tuple[int, int]:
        """Return the work of a branch, leaving no trace of it."""
        kept = (
            len(self._rows), len(self._bytes), len(self._weights), set(self._used), self._labels.copy(),
            self._unknown.copy(), dict(self._notes),
        )  # fmt: skip
        self._graph(branch, scope.inner(), row, depth + 1, times)
        flops = sum(2 * _int(r.macs) + sum(map(_int, r.flops.values())) for r in self._rows[kept[0] :])
        nodes = len(self._rows) - kept[0]
        del self._rows[kept[0] :], self._bytes[kept[1] :], self._weights[kept[2] :]
        self._used, self._labels, self._unknown, self._notes = kept[3], kept[4], kept[5], kept[6]
        return flops, nodes

    def _trips(self, label: str) -> int:
        symbol = "trips_of_" + re.sub(r"\W+", "_", label).strip("_")
        self._notes.setdefault(f"{label}: how often it turns depends on the input and is the symbol '{symbol}'")
        return self._lengths.of(symbol)

    def _loop(self, node: Any, scope: _Scope, row: int, depth: int, times: int) -> list[_Body]:
        import onnx

        graph = next(a.g for a in node.attribute if a.name == "body")
        limit = scope.values.get(node.input[0]) if node.input[0] else None
        label = self._rows[row].name
        if limit is not None and int(limit.reshape(-1)[0]) < 1 << 31:
            trips = max(int(limit.reshape(-1)[0]), 0)
            if len(node.input) > 1 and node.input[1]:
                self._notes.setdefault(f"{label} (Loop): counted as if it ran all its {trips} turns")
        else:
            trips = self._trips(label)
        inner = scope.inner()
        carried = list(node.input[2:])
        for position, value in enumerate(graph.input):
            kind = scope.types.get(carried[position - 2]) if 2 <= position < 2 + len(carried) else value.type
            if position < 2:
                kind = onnx.helper.make_tensor_type_proto(
                    onnx.TensorProto.INT64 if position == 0 else onnx.TensorProto.BOOL, []
                )
            self._define(inner, value.name, kind)
        body = self._graph(graph, inner, row, depth + 1, times * trips)
        self._results(node, scope, inner, graph.output[1:], len(carried), trips, label)
        return [body]

    def _scan(self, node: Any, scope: _Scope, row: int, depth: int, times: int) -> list[_Body]:
        attributes = _attributes(node)
        graph = next(a.g for a in node.attribute if a.name == "body")
        scanned = attributes["num_scan_inputs"]
        states = len(node.input) - scanned
        axes = attributes.get("scan_input_axes") or [0] * scanned
        label, trips = self._rows[row].name, -1
        inner = scope.inner()
        for position, (value, name) in enumerate(zip(graph.input, node.input, strict=False)):
            kind = scope.types.get(name)
            if position >= states and kind is not None:
                axis = axes[position - states]
                shape = _shape(kind) or ()
                trips = shape[axis] if shape else trips
                kind = _retyped(kind, [n for i, n in enumerate(shape) if i != axis % max(len(shape), 1)])
            self._define(inner, value.name, kind)
        trips = trips if trips >= 0 else self._trips(label)
        body = self._graph(graph, inner, row, depth + 1, times * trips)
        self._results(node, scope, inner, graph.output, states, trips, label, attributes.get("scan_output_axes"))
        return [body]

    def _results(
        self, node: Any, scope: _Scope, inner: _Scope, outputs: Sequence[Any], states: int, trips: int, label: str,
        axes: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Define what a loop returns: its last states, and what each turn added, stacked."""
        offset = 2 if _operator(node) == "Loop" else 0
        for position, (name, output) in enumerate(zip(node.output, outputs, strict=False)):
            kind = inner.types.get(output.name)
            if position < states:
                before = scope.types.get(node.input[offset + position])
                if _shape(before) != _shape(kind):
                    self._notes.setdefault(f"{label}: a state changes its shape from turn to turn; the first is counted")
            elif kind is not None and _shape(kind) is not None:
                shape = list(_shape(kind) or ())
                shape.insert((axes or [0] * len(outputs))[position - states], trips)
                kind = _retyped(kind, shape)
            if name:
                self._define(scope, name, kind)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _operator(node: Any) -> str:
    return node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"


# operators of ONNX Runtime whose outputs are shaped as those of a standard one: {name: (standard name, inputs it takes)}
_LIKE = {
    "FusedConv": ("Conv", 3), "Gelu": ("Identity", 1), "FastGelu": ("Identity", 1), "QuickGelu": ("Identity", 1),
    "BiasGelu": ("Identity", 1), "SkipLayerNormalization": ("Identity", 1), "QLinearSigmoid": ("Identity", 1),
    "QLinearLeakyRelu": ("Identity", 1), "DynamicQuantizeMatMul": ("MatMul", 2), "MatMulIntegerToFloat": ("MatMul", 2),
}  # fmt: skip


def _standing_in(node: Any) -> Any:
    import onnx

    op, count = _LIKE[node.op_type]
    attributes = [a for a in node.attribute if op == "Conv" and not a.name.startswith("activation")]
    made = onnx.helper.make_node(op, list(node.input[:count]), list(node.output[:1]))
    made.attribute.extend(attributes)
    return made


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    found = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            found[attribute.name] = _value(attribute.t) if math.prod(attribute.t.dims) <= MAX_ELEMENTS else attribute.t
        elif attribute.type not in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
            found[attribute.name] = onnx.helper.get_attribute_value(attribute)
    return found


def _constant(attributes: Mapping[str, Any]) -> list[npt.NDArray[Any]] | None:
    for key in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if key in attributes:
            value = attributes[key]
            if value is None or hasattr(value, "dims"):
                return None
            dtype = np.float32 if "float" in key else np.int64 if "int" in key else None
            return [np.asarray(value, dtype=dtype)]
    return None


def _value(tensor: Any) -> npt.NDArray[Any] | None:
    """Return the value of a small tensor that lies in the model itself."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > MAX_ELEMENTS:
        return None
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    try:
        value: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError):
        return None
    return value


def _shape(kind: Any) -> tuple[int, ...] | None:
    """Return the lengths of a tensor, -1 for one not known, or None for no known rank."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.tensor_type.shape.dim)


def _known(kind: Any) -> tuple[int, ...] | None:
    shape = _shape(kind)
    return None if shape is None or -1 in shape else shape


def _retyped(kind: Any, shape: Sequence[int]) -> Any:
    import onnx

    return onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, [n if n >= 0 else None for n in shape])


def _elements(kind: Any) -> int:
    shape = _known(kind)
    return 0 if shape is None else math.prod(shape)


def _bits(elem_type: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(elem_type)
    if name in {"UINT4", "INT4", "FLOAT4E2M1"}:
        return 4
    if name in {"UINT2", "INT2"}:
        return 2
    if name in {"STRING", "UNDEFINED"}:
        return 0
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize) * 8


def _bytes(kind: Any) -> int:
    if kind is None or not kind.HasField("tensor_type"):
        return 0
    return -(-_elements(kind) * _bits(kind.tensor_type.elem_type) // 8)


def _bytes_of_tensor(tensor: Any) -> int:
    return -(-math.prod(tensor.dims) * _bits(tensor.data_type) // 8)


def _described(kind: Any) -> TensorShape:
    import onnx

    if kind is None or not kind.HasField("tensor_type"):
        return TensorShape("unknown", None)
    name = onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type)
    plain = {"FLOAT": "float32", "DOUBLE": "float64", "STRING": "str"}.get(name, name.lower())
    return TensorShape(plain, _shape(kind))


def _scope_of(node: Any) -> str:
    """Return the torch module that the exporter noted."""
    import ast

    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                names = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return ""
            if isinstance(names, list) and len(names) > 1 and isinstance(names[-2], str):
                return names[-2]
    return ""
