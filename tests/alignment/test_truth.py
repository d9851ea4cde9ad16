"""EfficientNet-Lite0 in three frameworks, fused and not: every pair is right, and nearly every layer is in one."""

from __future__ import annotations

import dataclasses
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.alignment.aligner import align
from mlscope_lab.alignment.sketch import ValueSketch, sketch
from mlscope_lab.trace.graph import Graph
from mlscope_lab.trace.kinds import COMPUTE
from tests.alignment.truth import Truth

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("tensorflow")

MODEL = "efficientnet-lite0"
SIDES = {
    "pytorch": ("pytorch", None), "ort fused": ("onnxruntime", None), "ort unfused": ("onnxruntime", "none"),
    "tf fused": ("tensorflow", None), "tf unfused": ("tensorflow", "none"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Side:
    graph: Graph
    sketches: dict[int, ValueSketch]
    values: dict[int, str]
    layers: dict[int, set[str]]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    import skimage.data

    pixels = skimage.data.chelsea()[20:244, 100:324].astype(np.float32).transpose(2, 0, 1)[None]
    return np.ascontiguousarray((pixels - 127) / 64)


@pytest.fixture(scope="module")
def truth() -> Truth:
    with ml.load(MODEL, backend="onnxruntime") as model:
        return Truth(Path(model.subject.files.path))


@pytest.fixture(scope="module")
def sides(picture: np.ndarray, truth: Truth) -> dict[str, Side]:
    made = {}
    for name, (backend, optimization) in SIDES.items():
        with ml.load(MODEL, backend=backend, graph_optimization=optimization, threads=1) as model:
            sketches: dict[int, ValueSketch] = {}
            with model.session.open_stepper() as stepper:
                feeds = {model.session.inputs[0].name: picture}
                graph = stepper.run(feeds, lambda i, x: sketches.__setitem__(i, sketch(x)))  # noqa: B023 - run here
        made[name] = Side(graph, sketches, truth.values(graph, backend), truth.holds(graph, backend))
    return made


def test_the_recorded_layers_hold_the_same_weights(truth: Truth) -> None:
    from mlscope_lab.backends.pytorch_load import load_module

    with ml.load(MODEL, backend="pytorch") as model:
        module = load_module(model.subject.files)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    epsilon = {m.eps for m in module.modules() if "BatchNorm" in type(m).__name__}
    assert len(epsilon) == 1
    errors = truth.weight_errors(state, epsilon.pop())
    assert len(errors) == 50
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("names", list(permutations(SIDES, 2)), ids=" to ".join)
def test_every_pair_is_right_and_layers_are_paired(names: tuple[str, str], sides: dict[str, Side]) -> None:
    a, b = (sides[name] for name in names)
    found = align(a.graph, b.graph, a.sketches, b.sketches, provenance=False)
    for pair in found.pairs:
        assert pair.a in a.values, a.graph.values[pair.a].name
        assert a.values[pair.a] == b.values.get(pair.b), (a.graph.values[pair.a].name, b.graph.values[pair.b].name)
    paired = set()
    for pair in found.pairs:
        held = [set().union(*(side.layers.get(i, set()) for i in group))
                for side, group in ((a, pair.group_a), (b, pair.group_b))]  # fmt: skip
        assert held[0] == held[1]
        paired |= held[0]
    assert len(paired) >= 0.95 * 50
    for side, left in ((a, found.unmatched_a), (b, found.unmatched_b)):
        assert not any(COMPUTE & set(side.graph.operations[i].kinds) for i in left)


@pytest.mark.parametrize("names", [("pytorch", "tf fused"), ("ort fused", "tf unfused")], ids=" to ".join)
def test_structure_alone_gives_the_same_pairs(names: tuple[str, str], sides: dict[str, Side]) -> None:
    a, b = (sides[name] for name in names)
    both = align(a.graph, b.graph, a.sketches, b.sketches, provenance=False)
    alone = align(a.graph, b.graph, {}, {}, provenance=False, values=False)
    assert [(p.a, p.b) for p in alone.pairs] == [(p.a, p.b) for p in both.pairs]


def test_names_confirm_where_exporters_leave_them(sides: dict[str, Side]) -> None:
    a, b = sides["ort unfused"], sides["tf unfused"]
    found = align(a.graph, b.graph, a.sketches, b.sketches)
    confirmed = [pair for pair in found.pairs if "provenance" in pair.evidence]
    assert len(confirmed) > 0.9 * len(found.pairs)
    assert all(a.values[pair.a] == b.values.get(pair.b) for pair in found.pairs)
