"""How well the layers of some models predict the latency of others (DLBricks, arXiv 1911.07967).

python -m tests.benchmarks.bench_prediction --json out.json

Plain networks of the VGG kind and bottleneck ones of the ResNet kind, each in several depths: a deeper one repeats the
layers of the shallower, so that each is predicted from the layers of the other models alone. All are measured in this
process, in turns, so that what disturbs the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import mlscope_lab as ml
from mlscope_lab.analysis.configurations import layer_statistics, predict_latency
from tests.benchmarks._stats import Result, report

DEPTHS: dict[str, tuple[tuple[int, ...], ...]] = {
    "plain": ((2, 2, 2), (2, 2, 4), (2, 4, 4), (2, 6, 6)),
    "bottleneck": ((2, 2, 2), (2, 3, 3), (3, 4, 4), (3, 4, 8)),
}
WIDTH, SIZE = 32, 56


def plain(depths: tuple[int, ...]) -> Any:
    """Return stages of so many convolutions with activations, halved in size from stage to stage."""
    from torch import nn

    layers: list[Any] = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU()]
    width = WIDTH
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        if stage + 1 < len(depths):
            layers += [nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()]
            width *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def bottleneck(depths: tuple[int, ...]) -> Any:
    """Return stages of so many bottleneck blocks with a residual."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            inner = width // 4
            self.reduce, self.spread = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, inner, 3, padding=1)
            self.expand = nn.Conv2d(inner, width, 1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(width)])
            self.activation = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.activation(self.norms[0](self.reduce(x)))
            y = self.activation(self.norms[1](self.spread(y)))
            return self.activation(x + self.norms[2](self.expand(y)))

    width = 4 * WIDTH
    layers: list[Any] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for stage, depth in enumerate(depths):
        layers += [Block(width) for _ in range(depth)]
        if stage + 1 < len(depths):
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()]
            width *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def measure(iterations: int, rounds: int) -> list[Result]:
    """Return the errors of the predictions."""
    picture = np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    results = []
    for family, build in (("plain", plain), ("bottleneck", bottleneck)):
        models = {f"{family} {'-'.join(map(str, depths))}": build(depths) for depths in DEPTHS[family]}
        runs = []
        for number in range(rounds):
            for name in list(models)[:: 1 if number % 2 else -1]:
                runs.append(ml.profile(models[name], picture, level="layer", iterations=iterations, threads=1))
                runs[-1].attrs["model"] = name
        found = predict_latency(runs, same_model=False)
        for model in models:
            of = found.isel(run=np.flatnonzero(found["model"].values == model))
            error, low, high = (
                float(np.median(of[f"{part}_ns"] / of["measured_ns"])) - 1 for part in ("predicted", "low", "high")
            )
            whole = "" if int(of["complete"].min()) else f" ({float(of['known_share'].min()):.0%} of its layers known)"
            results.append(Result(name=f"{model}{whole}: predicted over measured - 1", value=error, low=low, high=high,
                                  unit="ratio", n=rounds))  # fmt: skip
        again = [abs(a / b - 1) for name in models for a, b in pairwise(
            found["measured_ns"].values[found["model"].values == name])]  # fmt: skip
        results.append(Result(name=f"{family}: one measurement over another of the same model - 1, median",
                              value=float(np.median(again)), low=min(again), high=max(again), unit="ratio",
                              n=len(again)))  # fmt: skip
        median = float(found["median_error"])
        results.append(Result(name=f"{family}: median error of complete predictions", value=median, low=median,
                              high=median, unit="ratio", n=len(runs)))  # fmt: skip
        statistics = layer_statistics(runs)
        repeated = float(statistics["repeated_share"])
        results.append(Result(name=f"{family}: layers whose configuration repeats", value=repeated, low=repeated,
                              high=repeated, unit="share", n=int(statistics["layers"])))  # fmt: skip
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlscope-bench-") as folder:
        os.environ["MLSCOPE_HOME"] = folder
        results = measure(options.iterations, options.rounds)
    return report("Latency from the layers of other models", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
