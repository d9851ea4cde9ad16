"""Layers from made-up runs of nodes: labels, containers, bookkeeping, nodes that ran in some steps only."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.backends.tensorflow_layers import Step, layers_of
from mlscope_lab.backends.tensorflow_nodes import NodeRun


class Graph:
    """Names of a graph that was not fused."""

    def plain_name(self, name: str) -> str:
        return name.removeprefix("PartitionedCall/")

    def sources(self, name: str, op: str, inputs: object, executed: object) -> list[str]:
        return [name]

    def scope(self, name: str, sources: list[str]) -> str:
        return self.plain_name(name).rpartition("/")[0]


def run(name, op, start, stop, **more):
    return NodeRun(name=name, op=op, start=start, stop=stop, **more)


WEIGHTS = run("w", "Const", 0, 0, outputs=(("float32[3,4]", 48),))
PRODUCT = run("block/product", "MatMul", 0, 0, inputs=("x", "w"), outputs=(("float32[2,4]", 32),))
DESCRIBED = {
    "x": run("x", "_Arg", 0, 0, outputs=(("float32[2,3]", 24),)),
    "w": WEIGHTS,
    "block/product": PRODUCT,
}


def layers(*steps, error=2):
    made = [Step(start=1000 * i, duration=900, runs=list(runs)) for i, runs in enumerate(steps)]
    return layers_of(made, DESCRIBED, Graph(), error)


def test_bookkeeping_is_no_layer_and_descriptions_come_from_the_described_step():
    found = layers([run("w", "Const", 10, 11), run("block/product", "MatMul", 20, 120)])
    table = found.table
    assert table.name == ("block/product",)
    assert table.scope == ("block",)
    assert table.input_shapes == ("float32[2,3];float32[3,4]",)
    assert table.output_shapes == ("float32[2,4]",)
    assert table.parameter_bytes == (48,)
    assert table.activation_bytes == (32,)
    assert found.rows == [[-1, 0]]
    assert found.start_ns.tolist() == [[20]]


def test_a_node_that_nobody_described_has_unknown_sizes():
    table = layers([run("other", "Relu", 20, 120)]).table
    assert (table.parameter_bytes, table.activation_bytes, table.input_shapes) == ((-1,), (-1,), ("",))


def test_repeated_nodes_and_those_of_a_branch():
    found = layers(
        [run("PartitionedCall/a", "Relu", 10, 20), run("PartitionedCall/a", "Relu", 30, 45)],
        [run("b", "Sin", 1005, 1010), run("PartitionedCall/a", "Relu", 1010, 1020)],
    )
    assert found.table.name == ("a", "a#2", "b")
    assert found.start_ns.tolist() == [[10, 30, -1], [1010, -1, 1005]]
    assert found.duration_ns.tolist() == [[10, 15, -1], [10, -1, 5]]
    assert found.rows == [[0, 1], [2, 0]]


def test_a_loop_is_exclusive_of_its_body():
    found = layers([run("loop", "While", 10, 110), run("body", "Relu", 20, 50), run("body", "Relu", 60, 100)])
    assert found.table.parent == (-1, 0, 0)
    assert found.table.depth == (0, 1, 1)
    assert found.duration_ns.tolist() == [[100, 30, 40]]
    assert found.exclusive_ns.tolist() == [[30, 30, 40]]


def test_readings_a_moment_beside_the_step_are_cut_to_it():
    found = layers([run("early", "Relu", -50, 20), run("late", "Relu", 880, 5000)])
    assert found.start_ns.tolist() == [[-2, 880]] or found.start_ns.min() >= -2
    assert (found.start_ns + found.duration_ns).max() <= 900 + 2


@pytest.mark.parametrize("steps", [0, 2])
def test_nothing_ran(steps):
    found = layers(*([] for _ in range(steps)))
    assert len(found.table) == 0
    assert found.start_ns.shape == (steps, 0)
    assert found.start_ns.dtype == np.int64
