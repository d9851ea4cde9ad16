"""What watching the process costs: passes with the collectors of level "hardware" beside passes without them.

python -m tests.benchmarks.bench_collectors --json out.json [--pairs 20]

Both are passes of one open session, in turns, so that only the collectors differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.collectors import collectors_for
from mlscope_lab.collectors.environment import available_cores
from mlscope_lab.measure import PassPlan, Workload, run_pass
from mlscope_lab.processing.recipe import example_feeds
from tests.benchmarks._stats import Result, median_ratio, report

SQUEEZENET = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
TARGET = 1.02


def measure(*, pairs: int, iterations: int) -> list[Result]:
    """Return the ratio of median predict times, with over without, by pairs of passes."""
    ratios = []
    model = ModelFiles(name="squeezenet", format="onnx", path=SQUEEZENET, digest="")
    with OnnxRuntimeBackend().open(model, SessionOptions(threads=available_cores())) as session:
        feeds = example_feeds(list(session.inputs), seed=0, batch_size=1, symbols={})
        workload = Workload(prepare=lambda: feeds, finish=lambda outputs: None)
        plan = PassPlan(level="hardware", session_level="model", iterations=iterations, warmup_iterations=3,
                        warmup_seconds=0.0)  # fmt: skip
        for pair in range(pairs):
            medians = {}
            for watched in (False, True) if pair % 2 == 0 else (True, False):
                collectors = collectors_for("hardware") if watched else []
                record = run_pass(session, workload, plan, collectors=collectors)
                medians[watched] = float(np.median(record.predict_ns))
            ratios.append(medians[True] / medians[False])
    value, low, high = median_ratio(np.array(ratios), np.ones(len(ratios)))
    name = "squeezenet: predict watched by all collectors, over unwatched"
    return [Result(name=name, value=value, low=low, high=high, unit="ratio", target=TARGET, n=pairs)]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=40)
    options = parser.parse_args()
    return report("Collectors", measure(pairs=options.pairs, iterations=options.iterations), out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
