"""What a static profile costs: EfficientNet-Lite0 counted on shapes, beside one run that PyTorch's own counter watches.

python -m tests.benchmarks.bench_static --json out.json [--rounds 15]

Both count the same multiply-adds, which is checked first; PyTorch's counter runs the model to do so, and tells neither
parameters, nor bytes, nor memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlscope_lab.architectures.efficientnet_lite import build
from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.static import cost_of
from tests.benchmarks._stats import Result, interleave, median_ratio, report

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SHAPE = (1, 3, 224, 224)


def measure(*, rounds: int) -> list[Result]:
    """Return times of counting, over those of a counted run, and alone."""
    module, example = build().eval(), torch.zeros(SHAPE)
    specs = [TensorSpec(name="x", dtype="float32", shape=SHAPE)]

    def static() -> int:
        return sum(layer.macs for layer in cost_of(module, inputs=specs).layers if isinstance(layer.macs, int))

    def watched() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(example)
        return int(counter.get_total_flops()) // 2

    if static() != watched():
        raise SystemExit(f"The two count differently: {static()} and {watched()} multiply-adds")
    times = interleave([static, watched], rounds=rounds, warmup=2)
    value, low, high = median_ratio(times[:, 0], times[:, 1])
    results = [
        Result(name="efficientnet-lite0: static profile, over a run watched by FlopCounterMode", value=value, low=low,
               high=high, unit="ratio", n=rounds)
    ]  # fmt: skip
    for name in ("squeezenet", "densenet121"):
        alone = interleave([lambda name=name: cost_of(LIGHT / f"light_{name}.onnx")], rounds=rounds, warmup=1)
        quartiles = [float(q) / 1e6 for q in _quartiles(alone[:, 0].tolist())]
        results.append(Result(name=f"{name} in ONNX: static profile (quartiles)", value=quartiles[1], low=quartiles[0],
                              high=quartiles[2], unit="ms", n=rounds))  # fmt: skip
    return results


def _quartiles(values: list[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[len(ordered) // 2], ordered[3 * len(ordered) // 4]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    return report("Static cost", measure(rounds=options.rounds), out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
