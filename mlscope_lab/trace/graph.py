"""What ran, as a graph of operations and the values between them: the same records for every framework.

A backend's stepper hands a `Graph` over (`mlscope_lab.backends.stepping`); alignment and comparison read it. Plain
dataclasses, so that this module imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Graph", "Operation", "Value"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that flows between operations; constants (weights) are no values.

    Attributes
    ----------
    name
        The framework's own name where it has one, else made of the writing operation's label and the position of the
        output. Unique in its graph.
    shape
        As it was in the run that the graph was recorded from; () for a scalar.
    dtype
        numpy's name of the element type, or "bfloat16", whose arrays are handed over as float32.
    quantization
        (scale, zero point) of a quantised integer tensor: its real values are (value - zero point) * scale.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: tuple[float, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One executed operation: an operator of the framework, or a fused one.

    Attributes
    ----------
    name
        Unique label: the node's name, or scope and operator, ``#2`` appended for the second of the same name.
    type
        The framework's operator ("Conv", "aten::conv2d", "_FusedConv2D").
    kinds
        What it computes, in order, in the words of `mlscope_lab.trace.kinds`; several for a fused operation:
        ("convolution", "activation").
    inputs
        Positions in `Graph.values` of what it reads, in the order of its arguments, constants left out; a value that is
        read twice is there twice.
    outputs
        Positions in `Graph.values` of what it writes.
    scope
        Qualified name of the module or source layer that it belongs to, "" where nothing tells.
    sources
        Names of the operations of the file's own graph that it stands for, where known and not itself.
    parameter_count
        Elements of the constants that it reads.
    """

    name: str
    type: str
    kinds: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: str = ""
    sources: tuple[str, ...] = ()
    parameter_count: int = 0


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The operations of one run in the order in which they ran.

    Attributes
    ----------
    values
        Inputs of the graph and outputs of its operations; each is written once.
    operations
        In the order of execution, so that what an operation reads is written before it.
    inputs, outputs
        Positions in `values`, by the session's names, in the session's order. An output may be an input.
    """

    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    inputs: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        written = set(self.inputs.values())
        names = {value.name for value in self.values}
        if len(names) != len(self.values):
            raise ValueError("Graph.values holds the same name twice")
        if len({operation.name for operation in self.operations}) != len(self.operations):
            raise ValueError("Graph.operations holds the same name twice")
        for operation in self.operations:
            for index in operation.inputs:
                if index not in written:
                    raise ValueError(f"Graph: '{operation.name}' reads value {index} before it is written")
            for index in operation.outputs:
                if index in written or not 0 <= index < len(self.values):
                    raise ValueError(
                        f"Graph: '{operation.name}' writes value {index}, which is written already or absent"
                    )
                written.add(index)
        if not written >= set(self.outputs.values()):
            raise ValueError("Graph.outputs names a value that nothing writes")

    def writers(self) -> dict[int, int]:
        """Return for each value that an operation writes the position of that operation."""
        return {value: i for i, operation in enumerate(self.operations) for value in operation.outputs}

    def readers(self) -> dict[int, list[int]]:
        """Return for each value the positions of the operations that read it, in order, each once."""
        found: dict[int, list[int]] = {}
        for i, operation in enumerate(self.operations):
            for value in dict.fromkeys(operation.inputs):
                found.setdefault(value, []).append(i)
        return found
