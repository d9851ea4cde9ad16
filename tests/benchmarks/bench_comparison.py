"""A against A by the default path for comparisons: how often it is called different, and what would have shown.

python -m tests.benchmarks.bench_comparison --pairs 200 --json out.json

Each pair is two times five fresh, interleaved processes of one small ONNX model. The interval's coverage is simulated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mlscope_lab as ml
from mlscope_lab.analysis.statistics import median_bounds
from tests.benchmarks._stats import Result, report


def small_model(folder: Path) -> Path:
    """Write a model of two convolutions that runs for about a millisecond."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((32, 3, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((32, 32, 3, 3)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["y"], pads=[1, 1, 1, 1]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 64, 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def coverage(trials: int = 20_000, n: int = 50) -> float:
    """Return how often the 95 % interval of a median holds the true one, for skewed values, in percent."""
    values = np.exp(0.2 * np.random.default_rng(0).standard_normal((n, trials)))
    low, high = median_bounds(values)
    return 100 * float(np.mean((low <= 1.0) & (high >= 1.0)))


def measure(*, pairs: int = 200) -> list[dict[str, Any]]:
    """Compare a model with itself again and again."""
    verdicts: Counter[str] = Counter()
    detectable, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder))
        for number in range(pairs):
            found = ml.compare_latency({}, {}, model=model, save=False, progress=False)
            verdicts[found.attrs["verdict"]] += 1
            detectable.append(float(found["detectable_ratio"]))
            ratios.append(float(found["ratio"]))
            if (number + 1) % 20 == 0:
                print(f"{number + 1} pairs: {dict(verdicts)}", file=sys.stderr, flush=True)
    different = 100 * (verdicts["faster"] + verdicts["slower"]) / pairs
    low, high = np.percentile(detectable, [5, 95])
    held = coverage()
    results = [
        Result(name="A against A called different", value=different, low=different, high=different, unit="%",
               target=5.0, n=pairs),
        Result(name="smallest detectable ratio", value=float(np.median(detectable)), low=float(low), high=float(high),
               unit="ratio", n=pairs),
        Result(name="largest observed ratio of A to A", value=float(np.exp(np.abs(np.log(ratios)).max())),
               low=min(ratios), high=max(ratios), unit="ratio", n=pairs),
        Result(name="coverage of the 95 % interval, simulated", value=held, low=held, high=held, unit="%", n=20_000),
        Result(name="its distance from 95 %", value=abs(held - 95), low=abs(held - 95), high=abs(held - 95),
               unit="points", target=1.0, n=20_000),
    ]  # fmt: skip
    return [result.as_dict() for result in results]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(pairs=options.pairs)
    results = [Result(**{k: v for k, v in figure.items() if k != "ok"}) for figure in figures]
    return report("Comparisons", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
