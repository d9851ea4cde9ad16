"""A small network in numpy with a stepper of its own: what the core promises, seen without a framework."""

from __future__ import annotations

import numpy as np

from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.trace.graph import Graph, Operation, Value

RNG = np.random.default_rng(7)
W1 = (RNG.standard_normal((6, 8)) / 3).astype(np.float32)
W2 = (RNG.standard_normal((8, 8)) / 3).astype(np.float32)
B2 = RNG.standard_normal(8).astype(np.float32)

# name, type, kinds, what it reads, what it computes; a residual around the second product
CLEAN = (
    ("product1", "matmul", ("product",), ("x",), lambda x: x @ W1),
    ("relu1", "relu", ("activation",), ("product1",), lambda h: np.maximum(h, 0)),
    ("product2", "matmul", ("product",), ("relu1",), lambda h: h @ W2),
    ("bias2", "add", ("addition",), ("product2",), lambda h: h + B2),
    ("residual", "add", ("addition",), ("bias2", "relu1"), lambda h, r: h + r),
    ("turned", "transpose", ("layout",), ("residual",), lambda h: h.T),
    ("back", "transpose", ("layout",), ("turned",), lambda h: h.T),
    ("tanh", "tanh", ("activation",), ("back",), np.tanh),
)


def with_operation(layers, name, function):
    """Return the network with one operation computed otherwise."""
    return tuple((*layer[:4], function) if layer[0] == name else layer for layer in layers)


class NumpyStepper(Stepper):
    """Steps through a network given as `CLEAN` is."""

    method = "numpy, one operation at a time"
    can_replay = True
    can_replace = True

    def __init__(self, layers=CLEAN, dtype=np.float32):
        super().__init__()
        self.layers, self.dtype = layers, np.dtype(dtype)
        self.names = ("x", *(layer[0] for layer in layers))
        self.shapes = []

    def _graph_of(self, shapes):
        count = len(shapes)
        values = tuple(Value(name=n, shape=s, dtype=self.dtype.name) for n, s in zip(self.names, shapes, strict=False))
        operations = tuple(
            Operation(
                name=name, type=kind, kinds=kinds, inputs=tuple(self.names.index(r) for r in reads), outputs=(i + 1,)
            )
            for i, (name, kind, kinds, reads, _) in enumerate(self.layers[: count - 1])
        )
        outputs = {"y": count - 1} if count == len(self.names) else {}
        return Graph(values=values, operations=operations, inputs={"x": 0}, outputs=outputs)

    def _run(self, feeds, receive):
        self.shapes = []
        live = {}

        def show(name, array):
            array = np.asarray(array, dtype=self.dtype)
            index = self.names.index(name)
            self.shapes.append(array.shape)
            other = receive(index, array)
            live[name] = array if other is None else other

        show("x", feeds["x"])
        for name, _, _, reads, function in self.layers:
            show(name, function(*(live[r] for r in reads)))
        return self._graph_of(self.shapes)

    def _partial(self):
        return self._graph_of(self.shapes)

    def _replay(self, operations, given, wanted):
        live = dict(given)
        for index in operations:
            _, _, _, reads, function = self.layers[index]
            live[index + 1] = np.asarray(function(*(live[self.names.index(r)] for r in reads)), dtype=self.dtype)
        return {value: live[value] for value in wanted}


def feeds(seed=0, rows=4):
    """Return an input of the network."""
    return {"x": np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)}


def identical_alignment(stepper_graph, skip=()):
    """Return the alignment of a graph with itself, values named in `skip` left out as if fused away."""
    from mlscope_lab.alignment.records import Alignment, Pair

    pairs, pending = [Pair(a=0, b=0, axes=None, confidence=1.0, evidence=("input",))], []
    for i, operation in enumerate(stepper_graph.operations):
        pending.append(i)
        if operation.name in skip:
            continue
        group = tuple(pending)
        pairs.append(
            Pair(a=i + 1, b=i + 1, axes=None, confidence=1.0, evidence=("values",), group_a=group, group_b=group)
        )
        pending = []
    return Alignment(pairs=tuple(pairs))
