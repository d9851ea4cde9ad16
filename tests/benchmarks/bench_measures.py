"""Measuring pairs of tensors, beside a bare numpy loop of two maxima and two means.

python -m tests.benchmarks.bench_measures --json out.json

The tensors are random, of the shapes that EfficientNet-Lite0 has: 94 of them, 14 million elements at batch 1. A third
of them are cut off at 0 and 6, as its activations are. The bare loop takes the largest and mean absolute and relative
error over whole arrays; ours takes all that `PairMeasures` holds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mlscope_lab.numerics.measures import PairAccumulator
from tests.benchmarks._stats import Result, interleave, median_ratio, report

SHAPES = [
    shape
    for count, *shape in (
        (4, 32, 112, 112), (1, 16, 112, 112), (2, 96, 112, 112), (2, 96, 56, 56), (3, 24, 56, 56), (8, 144, 56, 56),
        (2, 144, 28, 28), (6, 240, 28, 28), (4, 40, 28, 28), (4, 240, 14, 14), (12, 480, 14, 14), (4, 80, 14, 14),
        (12, 672, 14, 14), (5, 112, 14, 14), (3, 672, 7, 7), (14, 1152, 7, 7), (6, 192, 7, 7), (2, 1280, 7, 7),
    )
    for _ in range(count)
]  # fmt: skip


def make_pairs(batch: int) -> list[tuple[Any, Any]]:
    """Return tensors and what rounding may make of them."""
    random = np.random.default_rng(0)
    pairs = []
    for number, shape in enumerate(SHAPES):
        a = random.standard_normal((batch, *shape), dtype=np.float32)
        b = a + np.float32(1e-6) * random.standard_normal(a.shape, dtype=np.float32)
        pairs.append((np.clip(a, 0, 6), np.clip(b, 0, 6)) if number % 3 == 2 else (a, b))
    return pairs


def ours(pairs: list[tuple[Any, Any]]) -> None:
    """Measure everything."""
    for a, b in pairs:
        accumulator = PairAccumulator(low=-6.0, high=6.0, channel_axis=1)
        accumulator.add(a, b)
        accumulator.result()


def bare(pairs: list[tuple[Any, Any]]) -> None:
    """Take two maxima and two means."""
    for a, b in pairs:
        error = np.abs(b.astype(np.float64) - a)
        error.max(), error.mean()
        relative = error / (np.abs(a) + 1e-12)
        relative.max(), relative.mean()


def measure(*, rounds: int) -> list[Result]:
    """Return the figures."""
    results = []
    for batch in (1, 8):
        pairs = make_pairs(batch)
        elements = sum(a.size for a, _ in pairs)
        times = interleave([lambda p=pairs: ours(p), lambda p=pairs: bare(p)], rounds=rounds, warmup=1)  # type: ignore[misc]
        for name, column in (("all measures", times[:, 0]), ("bare loop", times[:, 1])):
            spent = column / elements
            results.append(Result(name=f"batch {batch}: {name}, an element", value=float(np.median(spent)),
                                  low=float(spent.min()), high=float(spent.max()), unit="ns", n=rounds))  # fmt: skip
        ratio, low, high = median_ratio(times[:, 0], times[:, 1])
        results.append(Result(name=f"batch {batch}: all measures / bare loop", value=ratio, low=low, high=high,
                              unit="ratio", n=rounds))  # fmt: skip
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    return report("Measuring 94 pairs of tensors", measure(rounds=options.rounds), out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
