"""Confidence is the share of right pairs: counted over networks whose truth is known."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

import numpy as np

from mlscope_lab.alignment.aligner import align
from tests.alignment.networks import Step, Style, random_network, shown, with_fault, wrong_pairs

STYLES = (Style(), Style(fold=True), Style(fold=True, fuse=True), Style(fold=True, bias=True), Style(fuse=True))


def test_as_many_pairs_are_right_as_their_confidence_says() -> None:
    counts: dict[float, list[int]] = defaultdict(lambda: [0, 0])
    for seed in range(60):
        rng = np.random.default_rng(seed)
        steps = random_network(rng, int(rng.integers(2, 10)))
        x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
        faulty = steps
        for position in rng.integers(len(steps), size=int(rng.integers(1, 2 + len(steps) // 3))):
            faulty = with_fault(faulty, int(position), rng)
        if seed % 4 == 0:  # a layer that the other side has not
            faulty = [*faulty, Step("sigmoid", (len(faulty) - 1,))]
        one, other = (dataclasses.replace(STYLES[int(rng.integers(len(STYLES)))], prefix=p) for p in "ab")
        a, b = shown(steps, x, one, rng), shown(faulty, x, dataclasses.replace(other, last=bool(seed % 2)), rng)
        found = align(a.graph, b.graph, a.sketches, b.sketches, provenance=False, values=seed % 3 > 0)
        wrong = {id(pair) for pair, _, _ in wrong_pairs(a, b, found)}
        for pair in found.pairs:
            if "output" in pair.evidence:
                continue  # outputs are compared even where one side does more before it
            counts[pair.confidence][0] += id(pair) not in wrong
            counts[pair.confidence][1] += 1
    assert len(counts) >= 3
    assert sum(n for _, n in counts.values()) > 1000
    for confidence, (right, n) in counts.items():
        # four standard deviations of a binomial count, and one pair
        slack = 4 * math.sqrt(confidence * (1 - confidence) / n) + 1 / n
        assert right / n >= confidence - slack, (confidence, right, n)


def test_a_pair_that_nothing_speaks_for_is_unlikely() -> None:
    from tests.alignment.test_aligner import Side, aligned, picture, relu

    a, b = Side(), Side()
    start = a.input(picture())
    a.output(a.run("softmax", np.exp, a.run("activation", relu, start)))
    other = b.input(picture(1))
    b.output(b.run("addition", lambda v: v + 3, b.run("convolution", np.tanh, b.run("convolution", np.sin, other))))
    found = aligned(a, b)
    assert all(pair.confidence < 0.9 for pair in found.pairs if "output" in pair.evidence)
