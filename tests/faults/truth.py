"""Which operations of the faulty side hold the fault, and whether the smallest group that contains them was named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from mlscope_lab.trace.graph import Graph, Operation
from mlscope_lab.trace.kinds import COMPUTE, LAYOUT, kind_of

__all__ = ["Group", "Judged", "changed_operations", "judge"]


def changed_operations(graph: Graph, backend: str, changed: Sequence[str], file: Path | None) -> set[str]:
    """Return the names of the executed operations that hold a fault.

    Parameters
    ----------
    graph
        What the faulty side runs.
    backend
        Who runs it.
    changed
        Names of nodes of `file`, or of torch modules.
    file
        The faulty ONNX file, from which the SavedModel was made if `backend` is TensorFlow; None for a torch module.

    Notes
    -----
    In PyTorch an operation belongs to the module that called it. Operations of the other two stand for the part of the
    file's graph between the values that they write and the nearest values that other operations write: this follows
    the edges of the file, and needs only that a surviving value or node keeps the name of what it computes.
    """
    if backend == "pytorch":
        return {o.name for o in graph.operations if o.scope in changed}
    if file is None:
        raise ValueError("the file that was changed is needed")
    nodes = onnx.load(file, load_external_data=False).graph.node
    by_name = {n.name: n for n in nodes}
    writer = {value: n.name for n in nodes for value in n.output}
    ends: dict[str, str] = {}
    for operation in graph.operations:
        end = _end(operation, graph, backend, by_name.keys(), writer)
        # behind a blocked convolution a reorder writes the same value again; the first of them computes it
        if end is not None and not (backend == "onnxruntime" and end in ends.values()):
            ends[operation.name] = end
    if backend == "tensorflow":
        # a node of the file becomes several operations, and the last of them writes its value
        direct = {name for name, end in ends.items() if end in changed}
        if direct:
            return direct
    written = set(ends.values())
    found = set()
    for name, end in ends.items():
        waiting, seen = [end], set[str]()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            before = [writer[v] for v in by_name[node].input if v in writer]
            waiting.extend(b for b in before if b not in written)
        if seen & set(changed):
            found.add(name)
    return found


def _end(
    operation: Operation, graph: Graph, backend: str, names: Mapping[str, object] | object, writer: Mapping[str, str]
) -> str | None:
    """Return the node of the file whose value an operation writes."""
    known = set(names)  # type: ignore[call-overload]
    if backend == "tensorflow":
        return next((part for part in operation.name.split("/")[::-1] if part.partition("#")[0] in known), None)
    for label in (operation.name.removesuffix("_nchwc"), *(graph.values[v].name for v in operation.outputs)):
        if label in writer:
            return writer[label]
    return operation.name if operation.name in known else None


@dataclass(frozen=True, kw_only=True)
class Group:
    """A pair's operations on either side, with the operators' own names."""

    operations_a: tuple[str, ...]
    operations_b: tuple[str, ...]
    types_a: tuple[str, ...]
    types_b: tuple[str, ...]

    def computing(self) -> int:
        """Return how many operations compute, on the side where they are fewer.

        A bias, a scale or a normalisation right behind a convolution or product is part of it: frameworks fold one into
        the other, so that no value in between is on both sides.
        """
        return min(_operators(types) for types in (self.types_a, self.types_b))


def _operators(types: Sequence[str]) -> int:
    count, heavy = 0, False
    for kind in (kind_of(t) for t in types):
        if kind in LAYOUT:
            continue
        if heavy and kind in {"addition", "multiplication", "normalization"}:
            continue
        count, heavy = count + 1, kind in COMPUTE
    return count


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of a fault."""

    first_exact: bool
    shadow_first: bool
    smallest: int
    reason: str = ""


def judge(groups: Sequence[Group], truth: set[str], first: int, culprit: int) -> Judged:
    """Tell whether the first divergent pair and the culprit are the smallest group that holds the fault.

    Parameters
    ----------
    groups
        Of every pair.
    truth
        Names of the operations that hold the fault.
    first, culprit
        Positions of the pairs that were named, -1 for none.

    Notes
    -----
    The smallest group is the one with the fewest operations among those that hold a changed one, the earlier of equals.
    It counts only if one of its sides is a single operator that computes (beside those that only move values): what
    lies between two values that both sides have must not be wider than one operator of either, so that a coarse
    alignment cannot win by naming half of the model. Where nothing is fused that is the changed operator itself.
    """
    holding = [i for i, g in enumerate(groups) if truth & set(g.operations_b)]
    if not truth:
        return Judged(first_exact=False, shadow_first=False, smallest=-1, reason="the changed operator does not run")
    if not holding:
        return Judged(first_exact=False, shadow_first=False, smallest=-1, reason="in no group")
    smallest = min(holding, key=lambda i: (len(groups[i].operations_b), i))
    small = groups[smallest].computing() <= 1
    reason = "" if small else "the group is too large"
    if not reason and first != smallest:
        reason = "nothing was named" if first < 0 else "too early" if first < smallest else "too late"
    return Judged(
        first_exact=small and first == smallest, shadow_first=small and culprit == smallest, smallest=smallest,
        reason=reason,
    )  # fmt: skip
