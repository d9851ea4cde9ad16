"""A walk over an ONNX graph whose lengths are all known: shapes, constants, weights, control flow."""

from __future__ import annotations

import math
import re
from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.assembly import Counted, Lengths
from mlscope_lab.static.flow import Flow, Operator
from mlscope_lab.static.onnx_operators import TABLES, Call, UnknownShapeError, is_known, weight_inputs, work_of
from mlscope_lab.static.onnx_types import (
    DEFAULT_DOMAINS,
    LIKE,
    attributes_of,
    bytes_of,
    bytes_of_tensor,
    constant_of,
    described,
    element_type,
    elements_of,
    is_sound,
    known_shape,
    operator_of,
    retyped,
    scope_of,
    shape_of,
    standing_in,
    value_of,
)
from mlscope_lab.static.onnx_values import fold
from mlscope_lab.static.records import CostTable, LayerCost, Transfer, Work

__all__ = ["Walk", "inputs_of"]

_MAX_DEPTH = 32
_SHAPE = -1  # stands among the stored tensors that a constant is made of for the shape of an input


def inputs_of(proto: Any) -> list[Any]:
    """Return the inputs that are no weights; until IR version 3 weights were listed among them."""
    stored = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    return [i for i in proto.graph.input if i.name not in stored]


@dataclass(kw_only=True)
class _Scope:
    """Tensors by name, those of enclosing graphs visible."""

    types: MutableMapping[str, Any]
    values: MutableMapping[str, npt.NDArray[Any]]
    origins: MutableMapping[str, frozenset[int]]
    numbers: MutableMapping[str, int]

    def inner(self) -> _Scope:
        return _Scope(
            types=ChainMap({}, self.types),
            values=ChainMap({}, self.values),
            origins=ChainMap({}, self.origins),
            numbers=ChainMap({}, self.numbers),
        )


@dataclass(kw_only=True)
class _Body:
    """A graph that was walked."""

    rows: list[int] = field(default_factory=list)
    live: list[tuple[int, int]] = field(default_factory=list)
    outer: frozenset[int] = frozenset()


@dataclass(kw_only=True)
class _Found:
    """What a walk, or one branch of it, has found."""

    rows: list[LayerCost] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)  # of each tensor
    weights: list[tuple[int, int]] = field(default_factory=list)  # elements and bytes of each stored tensor
    used: set[int] = field(default_factory=set)
    labels: MutableMapping[str, int] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)


class Walk:
    """One walk over a graph with all lengths known."""

    def __init__(self, proto: Any, lengths: Lengths, shapes: Mapping[str, Sequence[int | str]], name: str) -> None:
        self._proto = proto
        self._lengths = lengths
        self._shapes = shapes
        self._name = name or proto.graph.name or "graph"
        self._opsets = {o.domain: o.version for o in proto.opset_import}
        self._found = _Found()

    def counted(self) -> Counted:
        """Walk, and return what was found."""
        import onnx

        scope = _Scope(types={}, values={}, origins={}, numbers={})
        for value in inputs_of(self._proto):
            kind = onnx.TypeProto()
            kind.CopyFrom(value.type)
            self._set_lengths(kind, value.name)
            self._define(scope, value.name, kind)
        body = self._graph(self._proto.graph, scope, parent=-1, depth=0)
        table = CostTable(
            model=self._name,
            source="onnx",
            layers=tuple(self._found.rows),
            parameters=sum(self._found.weights[key][0] for key in self._found.used),
            parameter_bytes=sum(self._found.weights[key][1] for key in self._found.used),
            unknown=dict(self._found.unknown),
            notes=tuple(self._found.notes),
        )
        return Counted(table=table, live=body.live)

    def _set_lengths(self, kind: Any, name: str) -> None:
        for dim, length in zip(kind.tensor_type.shape.dim, self._shapes.get(name, ()), strict=False):
            dim.dim_value = self._lengths.of(length) if isinstance(length, str) else length

    def _define(self, scope: _Scope, name: str, kind: Any) -> None:
        if any(length < -1 for length in shape_of(kind) or ()):  # ONNX's inference trusts lengths, and crashes on these
            kind = retyped(kind, shape_of(kind) or ())
        scope.types[name] = kind
        scope.numbers[name] = len(self._found.nbytes)
        self._found.nbytes.append(bytes_of(kind))

    def _store(self, scope: _Scope, name: str, elements: int, nbytes: int) -> None:
        scope.origins[name] = frozenset({len(self._found.weights)})
        self._found.weights.append((elements, nbytes))

    def _graph(
        self, graph: Any, scope: _Scope, parent: int, depth: int, times: int = 1, keep: Sequence[str] = ()
    ) -> _Body:
        import onnx

        if depth > _MAX_DEPTH:
            raise UnsupportedModelError(f"Bodies of control flow are nested deeper than {_MAX_DEPTH}")
        for tensor in graph.initializer:
            elements = math.prod(tensor.dims)
            self._define(scope, tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
            self._store(scope, tensor.name, elements, self._found.nbytes[-1])
            value = value_of(tensor)
            if value is not None:
                scope.values[tensor.name] = value
        for sparse in graph.sparse_initializer:
            kind = onnx.helper.make_tensor_type_proto(sparse.values.data_type, list(sparse.dims))
            self._define(scope, sparse.values.name, kind)
            self._store(scope, sparse.values.name, math.prod(sparse.values.dims), bytes_of_tensor(sparse.values))
        steps: list[Operator] = []
        inner: list[tuple[int, list[tuple[int, int]]]] = []
        first = len(self._found.nbytes)
        rows: list[int] = []
        known = set(scope.numbers.values())
        for node in graph.node:
            if self._fold(node, scope):
                continue
            step, bodies = self._node(node, scope, parent, depth, times)
            rows.append(step.site)
            steps.append(step)
            inner.extend((len(steps) - 1, body.live) for body in bodies)
        results = frozenset(
            scope.numbers[o.name] for o in graph.output if o.name in scope.numbers and o.name not in scope.origins
        )
        given = frozenset(
            scope.numbers[i.name] for i in graph.input if i.name in scope.numbers and i.name not in scope.origins
        )
        live = Flow(steps, self._found.nbytes, given, results).live()
        merged = [(step.site, nbytes) for step, nbytes in zip(steps, live, strict=True)]
        for index, within in inner:
            merged.extend((row, live[index] + nbytes) for row, nbytes in within)
        reads = frozenset().union(*(step.reads for step in steps)) if steps else frozenset()
        return _Body(rows=rows, live=merged, outer=frozenset(n for n in reads if n < first and n in known) - given)

    def _fold(self, node: Any, scope: _Scope) -> bool:
        """Define the outputs of a node that computes from constants alone; tell whether it is one."""
        import onnx

        op = operator_of(node)
        if any(a.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS} for a in node.attribute):
            return False
        if op.startswith("Random") or op in {"Bernoulli", "Multinomial"}:
            return False
        read = [name for name in node.input if name]
        read = read[:1] if op == "CastLike" else read  # of the other input only the type counts
        from_shape = op in {"Shape", "Size"} and read and shape_of(scope.types.get(read[0])) is not None
        if not from_shape and not all(name in scope.origins for name in read):
            return False
        attributes = attributes_of(node)
        values: list[npt.NDArray[Any]] | None = None
        if op == "Constant":
            values = constant_of(attributes)
        elif from_shape:
            shape = shape_of(scope.types[read[0]]) or ()
            if -1 in shape:
                return False
            cut = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
            values = [np.array(cut if op == "Shape" else math.prod(shape), dtype=np.int64)]
        elif op == "CastLike" and len(node.input) == 2 and read[0] in scope.values:
            values = fold("Cast", [scope.values[read[0]]], {"to": element_type(scope.types.get(node.input[1]))})
        elif all(name in scope.values for name in read):
            given = [scope.values.get(name) if name else None for name in node.input]
            values = fold(op, given, attributes)
        kinds = self._infer(node, scope)
        origins = frozenset({_SHAPE}) if from_shape else frozenset().union(*(scope.origins[name] for name in read))
        made = op == "Constant" or (op == "ConstantOfShape" and _SHAPE not in origins)
        # what is filled from a scalar, or as large as an input is, is no weight
        origins = frozenset(key for key in origins if key == _SHAPE or self._found.weights[key][0] > 1)
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
            if made:
                self._store(scope, name, elements_of(kind), self._found.nbytes[-1])
            else:
                scope.origins[name] = origins
        return True

    def _infer(self, node: Any, scope: _Scope) -> dict[str, Any]:
        """Return the types of a node's outputs, as far as ONNX infers them."""
        import onnx

        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        stand_in = node
        if domain == "com.microsoft" and node.op_type in LIKE:
            domain, stand_in = "", standing_in(node)
        version = self._opsets.get(domain, self._opsets.get("ai.onnx", 1)) if not domain else self._opsets.get(domain)
        types = {name: scope.types[name] for name in stand_in.input if name and scope.types.get(name) is not None}
        if len(types) < len({name for name in stand_in.input if name}) or not is_sound(stand_in):
            return {}
        try:
            schema = onnx.defs.get_schema(stand_in.op_type, version or 1, domain)
            data = {n: onnx.numpy_helper.from_array(scope.values[n]) for n in types if n in scope.values}
            found: dict[str, Any] = onnx.shape_inference.infer_node_outputs(
                schema, stand_in, types, data,
                opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in self._opsets.items()],
                ir_version=self._proto.ir_version,
            )  # fmt: skip
        except (
            onnx.shape_inference.InferenceError, onnx.checker.ValidationError, onnx.defs.SchemaError, ValueError,
            RuntimeError, TypeError, MemoryError,
        ):  # fmt: skip
            return {}
        return found

    def _label(self, node: Any) -> str:
        plain = node.name or next((o for o in node.output if o), node.op_type)
        nth = self._found.labels[plain] = self._found.labels.get(plain, 0) + 1
        return plain if nth == 1 else f"{plain}#{nth}"

    def _node(self, node: Any, scope: _Scope, parent: int, depth: int, times: int) -> tuple[Operator, list[_Body]]:
        row = len(self._found.rows)
        label, op = self._label(node), operator_of(node)
        base = LayerCost(name=label, type=node.op_type, scope=scope_of(node), parent=parent, depth=depth)
        self._found.rows.append(base)
        enter = {"If": self._if, "Loop": self._loop, "Scan": self._scan}.get(op)
        bodies: list[_Body] = []
        work, counted = Work(), True
        if enter is not None:
            try:
                bodies = enter(node, scope, row, depth, times)
            except (LookupError, StopIteration, TypeError, ValueError) as error:
                if isinstance(error, UnsupportedModelError):
                    raise
                raise UnsupportedModelError(f"{self._name}: node {label} ({op}) is malformed: {error!r}") from error
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
            *(self._transfer(scope, n, "input", times) for n in dynamic if n in scope.numbers),
            *(self._transfer(scope, n, "output", times) for n in outputs if n in scope.numbers),
        ]
        written = sum(t.nbytes for t in transfers if t.kind == "output" and isinstance(t.nbytes, int))
        for name, keys in weights.items():
            nbytes = sum(self._found.weights[key][1] for key in keys) * times
            nbytes = written if op in TABLES else nbytes
            transfers.append(Transfer(tensor=scope.numbers[name], kind="parameter", nbytes=nbytes))
        keys = frozenset().union(*weights.values()) if weights else frozenset()
        self._found.used |= keys
        work = work * times
        self._found.rows[row] = LayerCost(
            name=label,
            type=base.type,
            scope=base.scope,
            parent=parent,
            depth=depth,
            counted=counted,
            macs=work.macs,
            flops=work.flops,
            parameters=sum(self._found.weights[key][0] for key in keys),
            parameter_bytes=sum(self._found.weights[key][1] for key in keys),
            inputs=tuple(described(scope.types.get(n)) for n in dynamic),
            outputs=tuple(described(scope.types.get(n)) for n in outputs),
            transfers=() if bodies else tuple(transfers),
        )
        reads = frozenset(scope.numbers[n] for n in dynamic if n in scope.numbers)
        reads = reads.union(*(body.outer for body in bodies))
        writes = {scope.numbers[n]: self._found.nbytes[scope.numbers[n]] for n in outputs}
        return Operator(site=row, reads={n: self._found.nbytes[n] for n in reads}, writes=writes), bodies

    def _transfer(self, scope: _Scope, name: str, kind: str, times: int) -> Transfer:
        number = scope.numbers[name]
        return Transfer(tensor=number, kind=kind, nbytes=self._found.nbytes[number] * times)

    def _work(self, node: Any, op: str, scope: _Scope) -> tuple[Work, bool]:
        if not is_known(op):
            self._found.unknown[op] += 1
            return Work(), False
        call = Call(
            op=op,
            attributes=attributes_of(node),
            inputs=[known_shape(scope.types.get(name)) if name else None for name in node.input],
            outputs=[known_shape(scope.types.get(name)) if name else None for name in node.output],
            values=[scope.values.get(name) for name in node.input],
        )
        try:
            return work_of(call), True
        except UnknownShapeError:
            self._found.unknown[f"{op} (a shape is not known)"] += 1
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UnsupportedModelError):
            self._found.unknown[f"{op} (malformed)"] += 1
        return Work(), False

    def _weights_of(self, node: Any, op: str, scope: _Scope) -> dict[str, frozenset[int]]:
        found: dict[str, frozenset[int]] = {}
        for index, single, integer in weight_inputs(op, len(node.input)):
            name = node.input[index]
            if not name or name not in scope.origins:
                continue
            kind = scope.types.get(name)
            dtype = "" if kind is None else described(kind).dtype
            if "float" not in dtype and not (integer and "int" in dtype):
                continue
            if not single and elements_of(kind) <= 1:
                continue
            if scope.origins[name] and _SHAPE not in scope.origins[name]:
                found[name] = scope.origins[name]
        return found

    def _if(self, node: Any, scope: _Scope, row: int, depth: int, times: int) -> list[_Body]:
        """Count the branch that is taken, where that is known, else the one with more work."""
        graphs = {a.name: a.g for a in node.attribute}
        branches = [graphs["then_branch"], graphs["else_branch"]]
        condition = scope.values.get(node.input[0])
        if condition is not None:
            chosen = 0 if bool(condition.reshape(-1)[0]) else 1
            inner = scope.inner()
            body = self._graph(branches[chosen], inner, row, depth + 1, times)
        else:
            # each branch is walked once, whichever counts: nested ones would double the walk at every level otherwise
            walked = [self._apart(branch, scope, row, depth, times) for branch in branches]
            chosen = 0 if _weight(walked[0][2]) >= _weight(walked[1][2]) else 1
            inner, body, found = walked[chosen]
            self._take(found)
            which = ("then", "else")[chosen]
            self._found.notes.setdefault(
                f"{self._found.rows[row].name} (If): the {which} branch counts, which has more work; which one runs "
                "depends on the input"
            )
        for name, output in zip(node.output, branches[chosen].output, strict=False):
            self._define(scope, name, inner.types.get(output.name))
        return [body]

    def _apart(self, branch: Any, scope: _Scope, row: int, depth: int, times: int) -> tuple[_Scope, _Body, _Found]:
        """Walk a branch, and return what it adds to what was found, without adding it."""
        whole = self._found
        rows, tensors, weights = len(whole.rows), len(whole.nbytes), len(whole.weights)
        labels: MutableMapping[str, int] = ChainMap({}, whole.labels)
        self._found = _Found(rows=whole.rows, nbytes=whole.nbytes, weights=whole.weights, labels=labels)
        inner = scope.inner()
        body = self._graph(branch, inner, row, depth + 1, times)
        found, self._found = self._found, whole
        found.rows, found.nbytes, found.weights = whole.rows[rows:], whole.nbytes[tensors:], whole.weights[weights:]
        del whole.rows[rows:], whole.nbytes[tensors:], whole.weights[weights:]
        return inner, body, found

    def _take(self, found: _Found) -> None:
        """Add what a branch found; rows and tensors get the numbers that they had in it."""
        whole = self._found
        whole.rows.extend(found.rows)
        whole.nbytes.extend(found.nbytes)
        whole.weights.extend(found.weights)
        whole.used |= found.used
        own = found.labels.maps[0] if isinstance(found.labels, ChainMap) else found.labels
        whole.labels.update(own)
        whole.unknown.update(found.unknown)
        whole.notes.update(found.notes)

    def _trips(self, label: str) -> int:
        symbol = "trips_of_" + re.sub(r"\W+", "_", label).strip("_")
        self._found.notes.setdefault(f"{label}: how often it turns depends on the input and is the symbol '{symbol}'")
        return self._lengths.of(symbol)

    def _loop(self, node: Any, scope: _Scope, row: int, depth: int, times: int) -> list[_Body]:
        import onnx

        graph = next(a.g for a in node.attribute if a.name == "body")
        limit = scope.values.get(node.input[0]) if node.input[0] else None
        label = self._found.rows[row].name
        if limit is not None and int(limit.reshape(-1)[0]) < 1 << 31:
            trips = max(int(limit.reshape(-1)[0]), 0)
            if len(node.input) > 1 and node.input[1]:
                self._found.notes.setdefault(f"{label} (Loop): counted as if it ran all its {trips} turns")
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
        attributes = attributes_of(node)
        graph = next(a.g for a in node.attribute if a.name == "body")
        scanned = attributes["num_scan_inputs"]
        states = len(node.input) - scanned
        if not 0 <= states <= len(node.input):
            raise ValueError(f"num_scan_inputs={scanned}")
        axes = attributes.get("scan_input_axes") or [0] * scanned
        label, trips = self._found.rows[row].name, -1
        inner = scope.inner()
        for position, (value, name) in enumerate(zip(graph.input, node.input, strict=False)):
            kind = scope.types.get(name)
            if position >= states and kind is not None:
                axis = axes[position - states]
                shape = shape_of(kind) or ()
                trips = shape[axis] if shape else trips
                kind = retyped(kind, [n for i, n in enumerate(shape) if i != axis % max(len(shape), 1)])
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
        offset = 2 if operator_of(node) == "Loop" else 0
        for position, (name, output) in enumerate(zip(node.output, outputs, strict=False)):
            kind = inner.types.get(output.name)
            if position < states:
                before = scope.types.get(node.input[offset + position])
                if shape_of(before) != shape_of(kind):
                    self._found.notes.setdefault(
                        f"{label}: a state changes its shape from turn to turn; the first is counted"
                    )
            elif kind is not None and shape_of(kind) is not None:
                shape = list(shape_of(kind) or ())
                shape.insert((axes or [0] * len(outputs))[position - states], trips)
                kind = retyped(kind, shape)
            if name:
                self._define(scope, name, kind)


def _weight(found: _Found) -> tuple[int, int]:
    """Return the operations of a branch, and how many nodes it has."""
    return sum(2 * _int(r.macs) + sum(map(_int, r.flops.values())) for r in found.rows), len(found.rows)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
