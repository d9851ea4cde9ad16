"""How long two large graphs take to align, and whether every pair is right.

python -m tests.benchmarks.bench_alignment --json out.json [--layers 1000] [--repeats 5]

Networks at random (tests/alignment/networks.py: chains, residuals, parallel branches) of as many operations as asked
for, all of the same width, so that nearly every value fits nearly every other in shape. Pairs: as it is against another
order of branches and channels last; against normalisation and activations fused; and with a fault early on, after which
no values are equal any more.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from mlscope_lab.alignment.aligner import align
from tests.alignment.networks import Style, random_network, shown, with_fault, wrong_pairs
from tests.benchmarks._stats import Result, report

LIMIT_S = 2.0


def main() -> int:
    """Measure, print and return 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    blocks, steps = 1, random_network(rng, 1, normalized=True)
    while len(steps) < options.layers:
        blocks = int(blocks * max(1.1, options.layers / len(steps)))
        steps = random_network(rng, blocks, normalized=True)
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    early = next(i for i, s in enumerate(steps) if i > len(steps) // 20 and s.what == "conv")
    reference = shown(steps, x, Style(prefix="a"), rng)
    others = {
        "other order, channels last": shown(steps, x, Style(prefix="b", last=True, copies=0.2), rng),
        "fused": shown(steps, x, Style(prefix="b", fold=True, fuse=True, last=True), rng),
        "fault early": shown(with_fault(steps, early, rng), x, Style(prefix="b", last=True), rng),
    }
    times: dict[str, list[float]] = {name: [] for name in others}
    wrong: dict[str, int] = {}
    sizes = {name: (len(reference.graph.operations), len(other.graph.operations)) for name, other in others.items()}
    for _ in range(options.repeats):
        for name, other in others.items():  # interleaved, so that what disturbs one disturbs all
            started = time.perf_counter()
            found = align(reference.graph, other.graph, reference.sketches, other.sketches, provenance=False)
            times[name].append(time.perf_counter() - started)
            wrong[name] = len(wrong_pairs(reference, other, found))
    results = []
    for name, taken in times.items():
        a, b = sizes[name]
        results += [
            Result(
                name=f"{name}: {a} against {b} operations", value=float(np.median(taken)), low=min(taken),
                high=max(taken), unit="s", target=LIMIT_S, n=len(taken),
            ),
            Result(
                name=f"{name}: wrong pairs", value=float(wrong[name]), low=float(wrong[name]), high=float(wrong[name]),
                unit="pairs", target=0.0, n=1,
            ),
        ]  # fmt: skip
    return report("Aligning large graphs", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
