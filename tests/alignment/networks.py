"""Networks made at random, computed by numpy, and shown as two frameworks would show them; the truth is known.

A network is a list of `Step`s, each of which makes one logical value. `shown` turns it into a graph and sketches in
some style: fused or not, channels first or last, branches in another order, other names, copies in between. Every value
of such a graph carries the logical value that it is, so that a pair is right if both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlscope_lab.alignment.records import Alignment
from mlscope_lab.alignment.sketch import ValueSketch, sketch
from mlscope_lab.trace.graph import Graph, Operation, Value
from mlscope_lab.trace.kinds import LAYOUT

Array = np.ndarray
Meaning = int | tuple[str, int]
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0), "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": lambda x: 0.5 + 0.5 * np.tanh(x / 2), "leaky": lambda x: np.where(x > 0, x, 0.3 * x),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operator of a network: what it does, the steps that it reads (-1 is the input), and its constants."""

    what: str
    reads: tuple[int, ...]
    constants: tuple[Array, ...] = ()
    name: str = ""


def compute(steps: Sequence[Step], x: Array) -> list[Array]:
    """Return the value of every step, channels first."""
    made: list[Array] = []
    for step in steps:
        given = [x if r < 0 else made[r] for r in step.reads]
        made.append(np.asarray(_apply(step, given), np.float32))
    return made


def _apply(step: Step, given: list[Array]) -> Array:
    if step.what == "conv":
        out = np.einsum("nchw,oc->nohw", given[0], step.constants[0], optimize=True)
        if given[0].shape[2] > 2:  # not the same at every position
            out = out + 0.25 * np.roll(out, 1, axis=2) - 0.125 * np.roll(out, 1, axis=3)
        return out + step.constants[1].reshape(1, -1, 1, 1) if len(step.constants) > 1 else out
    if step.what == "norm":
        return given[0] * step.constants[0].reshape(1, -1, 1, 1) + step.constants[1].reshape(1, -1, 1, 1)
    if step.what in ACTIVATIONS:
        return ACTIVATIONS[step.what](given[0])
    if step.what == "add":
        return given[0] + given[1]
    if step.what == "concat":
        return np.concatenate(given, axis=1)
    if step.what == "pool":
        n, c, h, w = given[0].shape
        return given[0].reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    if step.what == "mean":
        return given[0].mean(axis=(2, 3), keepdims=True)
    raise ValueError(step.what)


def random_network(
    rng: np.random.Generator, blocks: int, *, channels: int = 8, normalized: bool | None = None
) -> list[Step]:
    """Return a network of some blocks: plain, residual, with parallel branches, with a pooling in between."""
    steps: list[Step] = []
    width = channels
    normalized = bool(rng.integers(2)) if normalized is None else normalized

    def put(what: str, *reads: int, constants: tuple[Array, ...] = ()) -> int:
        steps.append(Step(what, reads, constants))
        return len(steps) - 1

    def conv(source: int, given: int, made: int, activation: str | None) -> int:
        weight = (rng.standard_normal((made, given)) * np.sqrt(2 / given)).astype(np.float32)
        shift = rng.uniform(-0.5, 0.5, made).astype(np.float32)
        if normalized:
            here = put("conv", source, constants=(weight,))
            here = put("norm", here, constants=(rng.uniform(0.5, 1.5, made).astype(np.float32), shift))
        else:
            here = put("conv", source, constants=(weight, shift))
        return here if activation is None else put(activation, here)

    act = str(rng.choice(["relu", "relu6"]))
    current = conv(-1, 3, width, act)
    pools = 0
    for _ in range(blocks):
        form = rng.choice(["plain", "residual", "branches", "twins", "pool"])
        if form == "pool" and pools >= 2:
            form = "plain"
        if form == "plain":
            current = conv(current, width, width, act)
        elif form == "residual":
            inner = conv(current, width, 2 * width, act)
            inner = conv(inner, 2 * width, width, None)
            current = put("add", *((inner, current) if rng.integers(2) else (current, inner)))
            if rng.integers(2):
                current = put(act, current)
        elif form == "twins":  # two branches that are exact copies in shape
            ends = [conv(current, width, width, act) for _ in range(2)]
            current = put("add", *ends)
        elif form == "branches":
            ends = []
            for _ in range(int(rng.integers(2, 4))):
                end = current
                for _ in range(int(rng.integers(1, 3))):
                    end = conv(end, width, width, act)
                ends.append(end)
            joined = put("concat", *ends)
            current = conv(joined, width * len(ends), width, act)
        else:
            current = put("pool", current)
            pools += 1
    current = put("mean", current)
    conv(current, width, 10, None)
    return steps


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a framework shows a network."""

    fold: bool = False  # normalisation in the convolution before it
    bias: bool = False  # shifts as operations of their own, as TensorFlow has them
    fuse: bool = False  # activation, and addition before it, in the convolution
    last: bool = False  # channels last
    copies: float = 0.0  # share of values with a copy or two transpositions behind them
    padding: float = 0.0  # share of convolutions with a padding of their own
    rounding: float = 1e-6
    prefix: str = "v"


@dataclass
class Shown:
    """A graph with what alignment needs, and which logical value each value is."""

    graph: Graph
    sketches: dict[int, ValueSketch]
    meaning: dict[int, Meaning]
    steps: dict[int, set[int]] = field(default_factory=dict)  # by operation


class _Writer:
    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        self.style, self.rng = style, rng
        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.sketches: dict[int, ValueSketch] = {}
        self.meaning: dict[int, Meaning] = {}
        self.steps: dict[int, set[int]] = {}

    def value(self, array: Array, meaning: Meaning, *, layout: bool = True) -> int:
        if layout and self.style.last and array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        noisy = array * (1 + self.style.rounding * self.rng.standard_normal(array.shape))
        index = len(self.values)
        self.values.append(Value(name=f"{self.style.prefix}{index}", shape=array.shape, dtype="float32"))
        self.sketches[index] = sketch(noisy.astype(np.float32))
        self.meaning[index] = meaning
        return index

    def operation(
        self, kinds: tuple[str, ...], inputs: Sequence[int], output: int, steps: set[int], count: int = 0
    ) -> None:
        position = len(self.operations)
        name = f"{self.style.prefix}op{position}"
        self.operations.append(
            Operation(
                name=name,
                type="+".join(kinds),
                kinds=kinds,
                inputs=tuple(inputs),
                outputs=(output,),
                parameter_count=count,
            )
        )
        self.steps[position] = steps


_KIND: dict[str, str] = {"conv": "convolution", "norm": "normalization", "add": "addition", "concat": "concatenation",
         "pool": "pooling", "mean": "reduction", **dict.fromkeys(ACTIVATIONS, "activation")}  # fmt: skip


def shown(steps: Sequence[Step], x: Array, style: Style, rng: np.random.Generator) -> Shown:
    """Return a network as a framework of that style shows it."""
    values = compute(steps, x)
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        for r in dict.fromkeys(step.reads):
            readers.setdefault(r, []).append(i)
    write = _Writer(style, rng)
    where = {-1: write.value(x, -1)}
    ready: list[int] = []
    waiting = {i: {r for r in step.reads if r >= 0} for i, step in enumerate(steps)}
    done: set[int] = set()
    ready = [i for i, w in waiting.items() if not w]
    consumed: set[int] = set()
    while ready:
        # branches in any order that keeps what is read before what reads it
        i = ready.pop(int(rng.integers(len(ready))))
        if i in consumed:
            done.add(i)
        else:
            chain = _chain(steps, readers, i, style, where) if steps[i].what == "conv" else [i]
            _emit(write, steps, values, chain, where)
            consumed |= set(chain[1:])
            done |= set(chain)
        for j in waiting:
            if j not in done and j not in ready and waiting[j] <= done:
                ready.append(j)
    outputs = {"output": where[len(steps) - 1]}
    graph = Graph(values=tuple(write.values), operations=tuple(write.operations), inputs={"input": 0}, outputs=outputs)
    return Shown(graph=graph, sketches=write.sketches, meaning=write.meaning, steps=write.steps)


def _chain(
    steps: Sequence[Step], readers: Mapping[int, list[int]], i: int, style: Style, where: Mapping[int, int]
) -> list[int]:
    """Return the steps that one operation does, beginning with a convolution."""
    chain = [i]

    def only(kinds: tuple[str, ...]) -> int | None:
        after = readers.get(chain[-1], [])
        return after[0] if len(after) == 1 and steps[after[0]].what in kinds else None

    if style.fold and (j := only(("norm",))) is not None:
        chain.append(j)
    folded = len(chain) > 1 or only(("norm",)) is None
    if style.fuse and folded:
        j = only(("add",))
        if j is not None:
            other = next((r for r in steps[j].reads if r != chain[-1]), None)
            if other in where:
                chain.append(j)
        if (j := only(tuple(ACTIVATIONS))) is not None:
            chain.append(j)
    return chain


def _emit(
    write: _Writer, steps: Sequence[Step], values: Sequence[Array], chain: list[int], where: dict[int, int]
) -> None:
    style, rng = write.style, write.rng
    head, end = steps[chain[0]], chain[-1]
    inputs = [where[r] for r in head.reads]
    what = [steps[i].what for i in chain]
    if head.what == "conv" and rng.random() < style.padding and write.values[inputs[0]].shape[2] > 1:
        source = values[head.reads[0]] if head.reads[0] >= 0 else None
        if source is not None:
            padded = write.value(np.pad(source, ((0, 0), (0, 0), (1, 1), (1, 1))), ("padded", head.reads[0]))
            write.operation(("padding",), inputs, padded, set(chain))
            inputs = [padded]
    count = sum(c.size for i in chain for c in steps[i].constants)
    shift = next((steps[i].constants[-1] for i in reversed(chain) if len(steps[i].constants) > 1), None)
    if style.bias and head.what == "conv" and shift is not None and len(set(what) - {"conv", "norm"}) == 0:
        # the convolution without its shift is a value that only this side has
        alone = write.value(values[end] - shift.reshape(1, -1, 1, 1), ("unshifted", end))
        write.operation(("convolution",), inputs, alone, set(chain), count - shift.size)
        made = write.value(values[end], end)
        write.operation(("addition",), [alone], made, set(chain), shift.size)
    else:
        for i in chain[1:]:
            inputs += [where[r] for r in steps[i].reads if r not in chain]
        kinds = tuple(_KIND[w] for w in what if w != "norm" or len(what) == 1)
        made = write.value(values[end], end)
        write.operation(kinds, inputs, made, set(chain), count)
    where[end] = made
    if rng.random() < style.copies and end != len(steps) - 1:
        if values[end].ndim == 4 and rng.integers(2):
            turned = write.value(values[end].transpose(0, 2, 3, 1), end, layout=False)
            write.operation(("layout",), [made], turned, set())
            back = write.value(values[end], end)
            write.operation(("layout",), [turned], back, set())
            where[end] = back
        else:
            same = write.value(values[end], end)
            write.operation(("identity",), [made], same, set())
            where[end] = same
    for i in chain[:-1]:
        where.setdefault(i, -2)


def with_fault(steps: Sequence[Step], position: int, rng: np.random.Generator) -> list[Step]:
    """Return a copy of a network in which one step is another: constants, kind of activation."""
    step = steps[position]
    if step.constants:
        constants = list(step.constants)
        place = int(rng.integers(len(constants)))
        changed = constants[place].copy()
        changed.reshape(-1)[int(rng.integers(changed.size))] += float(rng.choice([2.0, 50.0]))
        constants[place] = changed
        step = replace(step, constants=tuple(constants))
    elif step.what in ACTIVATIONS:
        step = replace(step, what=str(rng.choice([a for a in ACTIVATIONS if a != step.what])))
    made = list(steps)
    made[position] = step
    return made


def wrong_pairs(a: Shown, b: Shown, found: Alignment) -> list[Any]:
    """Return the pairs that are not of one logical value."""
    return [
        (p, a.meaning[p.a], b.meaning[p.b]) for p in found.pairs
        if a.meaning[p.a] != b.meaning[p.b]
    ]  # fmt: skip


def missing(a: Shown, b: Shown, found: Alignment) -> set[int]:
    """Return the logical values that both sides have and that no pair is of."""
    both = {m for m in a.meaning.values() if isinstance(m, int)} & {m for m in b.meaning.values() if isinstance(m, int)}
    return both - {m for p in found.pairs if isinstance(m := a.meaning[p.a], int)}


def computing(side: Shown) -> set[int]:
    """Return the operations that do not only move values."""
    return {i for i, o in enumerate(side.graph.operations) if not set(o.kinds) <= LAYOUT}
