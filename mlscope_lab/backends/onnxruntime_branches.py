"""Branches of a graph laid out flat: the nodes of both bodies of an If, each on condition that its body is taken.

So a model that chooses between two networks is seen node by node, not as one. Loop and Scan stay nodes: their bodies
run several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Flat", "bodies", "captured"]

Conditions = tuple[tuple[str, bool], ...]


class Flat:
    """A graph without If.

    Attributes
    ----------
    nodes
        (NodeProto, conditions) in an order in which they can run; a condition is the name of a value and what it must
        be.
    initializers
        TensorProto (or SparseTensorProto) by name, those of branches included.
    types
        TypeProto by name, of what the graph and its branches declare.
    chosen
        Names of values that each of two branches writes.
    """

    def __init__(self, graph: Any) -> None:
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self.initializers |= {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.types = {
            value.name: value.type
            for value in (*graph.value_info, *graph.output, *graph.input)
            if value.type.WhichOneof("value")
        }
        self.chosen: set[str] = set()
        self._taken = {*self.initializers, *(value.name for value in graph.input)}
        self._taken.update(name for node in graph.node for name in node.output)
        self.nodes = list(self._laid_out(graph.node, (), {}))

    def _laid_out(
        self, nodes: Any, conditions: Conditions, names: Mapping[str, str]
    ) -> Iterator[tuple[Any, Conditions]]:
        from onnx import helper

        for node in nodes:
            if node.op_type != "If" or node.domain not in {"", "ai.onnx"}:
                yield (renamed(node, names) if names else node), conditions
                continue
            condition = names.get(node.input[0], node.input[0])
            targets = [names.get(name, name) for name in node.output]
            self.chosen.update(targets)
            for attribute in node.attribute:
                body = attribute.g
                inner = {**names, **{name: self._fresh(name) for name in _own(body)}}
                written = {name for one in body.node for name in one.output}
                passed = []
                for value, target in zip(body.output, targets, strict=True):
                    if value.name in written:
                        inner[value.name] = target
                        written.remove(value.name)
                    elif target:
                        passed.append((value.name, target))
                self._take_constants(body, inner)
                taken = (*conditions, (condition, attribute.name == "then_branch"))
                yield from self._laid_out(body.node, taken, inner)
                for name, target in passed:
                    yield (
                        helper.make_node("Identity", [inner.get(name, name)], [target], name=f"{target} chosen"),
                        taken,
                    )

    def _take_constants(self, body: Any, names: Mapping[str, str]) -> None:
        for tensor in (*body.initializer, *body.sparse_initializer):
            copy = type(tensor)()
            copy.CopyFrom(tensor)
            named = copy if hasattr(copy, "raw_data") else copy.values
            named.name = names[named.name]
            self.initializers[named.name] = copy
        for value in (*body.value_info, *body.output):
            if value.type.WhichOneof("value") and value.name in names:
                self.types.setdefault(names[value.name], value.type)

    def _fresh(self, name: str) -> str:
        """Return a name that nothing else has, for branches may both use one."""
        fresh, count = name, 1
        while fresh in self._taken:
            count += 1
            fresh = f"{name}#{count}"
        self._taken.add(fresh)
        return fresh


def bodies(node: Any) -> Iterator[Any]:
    """Yield the GraphProtos within a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captured(node: Any) -> Iterator[str]:
    """Yield the names that a node's bodies read from around them."""
    for body in bodies(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {tensor.values.name for tensor in body.sparse_initializer}
        for inner in body.node:
            for name in (*inner.input, *captured(inner)):
                if name and name not in own:
                    yield name
            own.update(inner.output)
        # a body may return what lies around it as it is
        yield from (value.name for value in body.output if value.name and value.name not in own)


def renamed(node: Any, names: Mapping[str, str]) -> Any:
    """Return a copy of a node that calls tensors by other names, in its bodies, too."""
    copy = type(node)()
    copy.CopyFrom(node)
    for arguments in (copy.input, copy.output):
        new = [names.get(name, name) for name in arguments]
        del arguments[:]
        arguments.extend(new)
    for body in bodies(copy):
        own = {*_own(body), *(value.name for value in body.input)}
        outer = {name: new for name, new in names.items() if name not in own}
        inner = [renamed(one, outer) for one in body.node]
        del body.node[:]
        body.node.extend(inner)
        for value in body.output:
            value.name = outer.get(value.name, value.name)
    return copy


def _own(body: Any) -> list[str]:
    """Return the names that a body gives, in order: of its constants, and of what its nodes write."""
    names = [tensor.name for tensor in body.initializer]
    names += [tensor.values.name for tensor in body.sparse_initializer]
    return [*names, *(name for node in body.node for name in node.output if name)]
