"""How near each layer comes to its roof, and that none lies above it by more than the calibration's error.

python -m tests.benchmarks.bench_roofline --json out.json [--threads 2]

The machine is calibrated anew, then SqueezeNet (ONNX Runtime) and EfficientNet-Lite0 with random weights (ONNX Runtime
and PyTorch) are profiled at layer level, and calibrated once more: peaks that moved meanwhile show how long they hold.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import mlscope_lab as ml
from mlscope_lab.calibration.stored import calibrate
from mlscope_lab.collectors.environment import available_cores
from tests.benchmarks._stats import Result, report

SQUEEZENET = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
CALIBRATION_TARGET_S = 20.0


def efficientnet() -> tuple[Any, np.ndarray]:
    """Return EfficientNet-Lite0 with random weights, and an input."""
    import torch

    from mlscope_lab.architectures.efficientnet_lite import build

    torch.manual_seed(0)
    return build().eval(), np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)


def exported(module: Any, example: np.ndarray, folder: Path) -> Path:
    """Write a torch module as ONNX."""
    import torch

    path = folder / "efficientnet-lite0.onnx"
    torch.onnx.export(module, (torch.from_numpy(example),), path, dynamo=True, external_data=False, verbose=False)
    return path


def of_run(name: str, found: Any) -> list[Result]:
    """Return how many layers lie above their roof, and which comes nearest to it."""
    shares = found["roof_share"].values
    judged = int(np.isfinite(shares).sum())
    above = float(len(found.attrs["above_roof"]))
    results = [
        Result(name=f"{name}: layers above their roof by more than the error", value=above, low=above, high=above,
               unit="layers", target=0.0, n=judged)
    ]  # fmt: skip
    for bound in ("compute", "memory"):
        rows = np.flatnonzero((found["bound"].values == bound) & np.isfinite(shares))
        if len(rows):
            best = found.isel(layer=rows[np.argmax(shares[rows])])
            results.append(
                Result(name=f"{name}: nearest under a {bound} roof: {best['layer'].item()} ({best['level'].item()})",
                       value=float(best["roof_share"]), low=float(best["roof_share_low"]),
                       high=float(best["roof_share_high"]), unit="of the roof", n=len(rows))
            )  # fmt: skip
    return results


def of_peaks(peaks: Any) -> list[Result]:
    """Return the calibration's own figures."""
    took = peaks.attrs["seconds"]
    results = [Result(name="calibration", value=took, low=took, high=took, unit="s", target=CALIBRATION_TARGET_S)]
    for dim, value, unit in (("level", "bandwidth", "GB/s"), ("dtype", "throughput", "GFLOP/s")):
        for row in peaks[dim].values:
            rate = peaks.sel({dim: row})
            centre, low, high = (float(rate[f"{value}{bound}"]) / 1e9 for bound in ("", "_low", "_high"))
            mark = ", disturbed" if row in peaks.attrs["disturbed"] else ""
            kernel = rate[f"{value}_kernel"].item()
            results.append(Result(name=f"{row} ({kernel}{mark})", value=centre, low=low, high=high, unit=unit))
    return results


def measure(*, threads: int, iterations: int) -> list[Result]:
    """Calibrate, profile and judge."""
    peaks = calibrate(threads=threads, again=True)
    results = of_peaks(peaks)
    module, example = efficientnet()
    common: dict[str, Any] = {"level": "layer", "iterations": iterations, "threads": threads, "save": False,
                              "progress": False}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = exported(module, example, Path(folder))
        subjects: list[tuple[str, Any, dict[str, Any], Any]] = [
            ("onnxruntime squeezenet", str(SQUEEZENET), {"backend": "onnxruntime"}, ml.cost(SQUEEZENET)),
            ("onnxruntime efficientnet-lite0", str(path), {"backend": "onnxruntime"}, ml.cost(path)),
            ("pytorch efficientnet-lite0", module, {"input": example}, ml.cost(module, example)),
        ]
        for name, subject, arguments, cost in subjects:
            run = ml.profile(subject, **arguments, **common)
            results += of_run(name, ml.roofline(run, cost=cost, peaks=peaks))
    again = calibrate(threads=threads, again=True)
    for dim, value in (("level", "bandwidth"), ("dtype", "throughput")):
        for row in peaks[dim].values:
            ratio = float(again[value].sel({dim: row}) / peaks[value].sel({dim: row}))
            results.append(Result(name=f"{row}: calibrated again, over the first", value=ratio, low=ratio, high=ratio,
                                  unit="ratio"))  # fmt: skip
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--iterations", type=int, default=50)
    options = parser.parse_args()
    results = measure(threads=options.threads, iterations=options.iterations)
    return report("Roofline", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
