"""How much of a predict the layers account for, and how much of the layers the operators.

python -m tests.benchmarks.bench_coverage --json out.json

Counted are the layers that enclose no others: the time that a container spends outside of them is unattributed. What is
printed is the part that is missing, as a share of the predict, the median over the traced predicts. PyTorch runs
SqueezeNet and DenseNet-121 as modules of their own (`tests.benchmarks._networks`), for no way leads there from ONNX;
what else a framework does not open is left out. On a busy machine the framework waits between its layers, too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

import mlscope_lab as ml
from mlscope_lab.analysis.levels import layer_gap, operator_gap
from mlscope_lab.errors import MlscopeError
from tests.benchmarks._stats import Result, report

MODELS = {
    # name: the most that may be missing, None where it is only reported
    "efficientnet-lite0": 0.10,
    "light-squeezenet": 0.10,
    "light-densenet121": 0.10,
    "light-shufflenet": None,
}
MODULES = {"light-squeezenet": "squeezenet", "light-densenet121": "densenet121"}
BACKENDS = ("onnxruntime", "pytorch", "tensorflow")


def _profiled(model: str, backend: str, iterations: int) -> xr.DataTree:
    """Return a run at level "operator" on one thread."""
    module = MODULES.get(model) if backend == "pytorch" else None
    if module is None:
        return ml.profile(model, backend=backend, level="operator", iterations=iterations, threads=1)
    from tests.benchmarks import _networks

    picture = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    network = getattr(_networks, module)()
    return ml.profile(network, picture, level="operator", iterations=iterations, threads=1, on="inline")


def measure(iterations: int) -> list[Result]:
    """Return the missing shares of every model on every backend that opens it."""
    results = []
    for model, limit in MODELS.items():
        for backend in BACKENDS:
            try:
                run = _profiled(model, backend, iterations)
            except MlscopeError as error:
                print(f"{model} on {backend} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            gap = layer_gap(run).sel(part="union of leaves")
            rows = [("predict outside of layers", 1.0 - float(gap["share"]), limit)]
            if "operators" in run.children:
                inside = operator_gap(run).sel(part="rest of layers")
                rows.append(("layers outside of operators", float(inside["share"]), limit))
            for what, missing, target in rows:
                results.append(Result(name=f"{model}, {backend}: {what}", value=missing, low=missing, high=missing,
                                      unit="share", target=target, n=iterations))  # fmt: skip
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlscope-bench-") as folder:
        # models and what was made of them stay where they are; the runs are of no further use
        os.environ.setdefault("MLSCOPE_HOME", folder)
        results = measure(options.iterations)
    return report("What layers and operators account for", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
