"""Networks at random, shown in two styles, with and without a fault: every pair is of one logical value."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.alignment.aligner import align
from mlscope_lab.alignment.records import Alignment
from mlscope_lab.trace.kinds import COMPUTE
from tests.alignment.networks import (
    ACTIVATIONS,
    Shown,
    Style,
    compute,
    missing,
    random_network,
    shown,
    with_fault,
    wrong_pairs,
)

STYLES = (
    Style(), Style(fold=True), Style(fold=True, fuse=True), Style(fold=True, bias=True), Style(bias=True),
    Style(fuse=True),
)  # fmt: skip
SEEDS = st.integers(0, 2**31)
styles = st.builds(
    lambda style, last, copies, padding: dataclasses.replace(style, last=last, copies=copies, padding=padding),
    st.sampled_from(STYLES), st.booleans(), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.5]),
)  # fmt: skip


def _input(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((1, 3, 8, 8)).astype(np.float32)


def _consistent(side: Shown, values: list[int], groups: list[tuple[int, ...]]) -> None:
    """Check that each group computes its value from values of other pairs alone, and that none is twice."""
    assert len(set(values)) == len(values)
    writers, paired = side.graph.writers(), set(values)
    for value, group in zip(values, groups, strict=True):
        assert (value in writers) == bool(group)
        if not group:
            continue
        assert writers[value] in group
        made = {v for i in group for v in side.graph.operations[i].outputs}
        read = {v for i in group for v in side.graph.operations[i].inputs}
        assert read - made <= paired


def _check(a: Shown, b: Shown, found: Alignment) -> None:
    assert wrong_pairs(a, b, found) == []
    _consistent(a, [p.a for p in found.pairs], [p.group_a for p in found.pairs])
    _consistent(b, [p.b for p in found.pairs], [p.group_b for p in found.pairs])
    for side, left in ((a, found.unmatched_a), (b, found.unmatched_b)):
        assert not any(COMPUTE & set(side.graph.operations[i].kinds) for i in left)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 10), styles, styles)
def test_a_network_meets_itself_in_any_style(seed: int, blocks: int, one: Style, other: Style) -> None:
    rng = np.random.default_rng(seed)
    steps, x = random_network(rng, blocks), _input(rng)
    a, b = (
        shown(steps, x, dataclasses.replace(one, prefix="a"), rng),
        shown(steps, x, dataclasses.replace(other, prefix="b"), rng),
    )
    found = align(a.graph, b.graph, a.sketches, b.sketches, provenance=False)
    _check(a, b, found)
    assert len(missing(a, b, found)) <= 0.02 * len(steps)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 10), styles, styles)
def test_a_fault_misleads_nothing(seed: int, blocks: int, one: Style, other: Style) -> None:
    rng = np.random.default_rng(seed)
    steps, x = random_network(rng, blocks), _input(rng)
    position = int(rng.choice([i for i, s in enumerate(steps) if s.constants or s.what in ACTIVATIONS]))
    faulty = with_fault(steps, position, rng)
    a, b = (
        shown(steps, x, dataclasses.replace(one, prefix="a"), rng),
        shown(faulty, x, dataclasses.replace(other, prefix="b"), rng),
    )
    found = align(a.graph, b.graph, a.sketches, b.sketches, provenance=False)
    _check(a, b, found)
    # the first pair that differs is of the step that was changed, or of what that step is fused into
    good, bad = compute(steps, x), compute(faulty, x)
    if np.allclose(good[-1], bad[-1], rtol=1e-2, atol=1e-2):
        return
    differing = [
        pair for pair in found.pairs
        if isinstance(m := a.meaning[pair.a], int) and m >= 0 and not np.allclose(good[m], bad[m], rtol=1e-4, atol=1e-4)
    ]  # fmt: skip
    assert position in {s for i in differing[0].group_b for s in b.steps[i]}


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 8), st.booleans())
def test_order_and_layout_need_no_values(seed: int, blocks: int, last: bool) -> None:
    rng = np.random.default_rng(seed)
    steps, x = random_network(rng, blocks), _input(rng)
    if any(len({steps[r].what for r in s.reads}) == 1 and s.what == "add" for s in steps):
        return  # two branches that are copies of each other are told apart by values alone
    a = shown(steps, x, Style(prefix="a"), rng)
    b = shown(steps, x, Style(prefix="b", last=last, fold=True, copies=0.2), rng)
    found = align(a.graph, b.graph, {}, {}, provenance=False, values=False)
    _check(a, b, found)


@pytest.mark.parametrize("seed", range(5))
def test_a_graph_is_aligned_with_itself_completely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    side = shown(random_network(rng, 8), _input(rng), Style(copies=0.2), rng)
    found = align(side.graph, side.graph, side.sketches, side.sketches)
    assert all(pair.a == pair.b and pair.axes is None for pair in found.pairs)
    assert found.unmatched_a == found.unmatched_b == ()
