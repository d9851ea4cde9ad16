"""Comparing EfficientNet-Lite0 layer by layer, beside Polygraphy: time, peak memory, size of what is saved.

python -m tests.benchmarks.bench_divergence --polygraphy /tmp/polygraphy/bin/python --json out.json

Ours: `mlscope_lab.compare` of two loaded models, with calibration, shadow replay and saving, then a second judgement.
Polygraphy 0.53 (ONNX Runtime with all outputs marked, twice: optimised and not) needs an environment of its own with
polygraphy, onnx and onnxruntime; without --polygraphy it is left out. Its time is that of running, comparing and
saving, as ours is; its memory is that before it saves, which takes more, while ours is that of everything. Every figure
is of a fresh process, in turns; imports and the reading of models are in no time. Peak memory is of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mlscope_lab as ml
from mlscope_lab.backends import load_backend
from mlscope_lab.catalog import load_catalog
from mlscope_lab.conversion.resolve import files_for
from tests.benchmarks._stats import Result, median_ratio, report

_COMMON = """
import json, os, sys, time
import numpy as np
def peak_mb():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
def size_mb(path):
    if os.path.isfile(path):
        return os.path.getsize(path) / 1e6
    return sum(os.path.getsize(os.path.join(f, n)) for f, _, names in os.walk(path) for n in names) / 1e6
kind, batch, folder, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
"""
OURS = (
    _COMMON
    + """
import mlscope_lab as ml
settings = ml.load_settings(home=folder)
ml.compare(lambda x: x * 2, lambda x: x + x, [[1.0, 2.0]], progress=False, settings=settings)  # imports
before = size_mb(folder)
reference = {"backend": "onnxruntime", "graph_optimization": "none"} if kind == "ort" else {"backend": "pytorch"}
a = ml.load("efficientnet-lite0", progress=False, **reference)
b = ml.load("efficientnet-lite0", progress=False, backend="onnxruntime")
random = np.random.default_rng(0)
pictures = [random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(batch)]
sides = [{"model": model, "batch_size": batch} for model in (a, b)]
begin = time.perf_counter()
found = ml.compare(*sides, pictures, progress=False, settings=settings)
seconds = time.perf_counter() - begin
begin = time.perf_counter()
found.judge("atol=1e-4,rtol=1e-3")
judging = time.perf_counter() - begin
values = int(found.tree["pairs"].dataset["count"].values.sum())
print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "saved_mb": size_mb(folder) - before, "judging_s": judging,
                  "pairs": found.tree["pairs"].sizes["pair"], "elements": values, "diverges": found.diverges}))
"""
)
POLYGRAPHY = (
    _COMMON
    + """
import onnx, onnxruntime
from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy import constants
from polygraphy.comparator import Comparator, CompareFunc
from polygraphy.logger import G_LOGGER
G_LOGGER.module_severity = G_LOGGER.ERROR
def session(level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = os.cpu_count()
    def build():
        model = BytesFromOnnx(ModifyOutputs(onnx.load(path), outputs=constants.MARK_ALL))()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return build
levels = onnxruntime.GraphOptimizationLevel
name = onnx.load(path, load_external_data=False).graph.input[0].name
feeds = [{name: np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)}]
runners = [OnnxrtRunner(session(levels.ORT_DISABLE_ALL)), OnnxrtRunner(session(levels.ORT_ENABLE_ALL))]
begin = time.perf_counter()
results = Comparator.run(runners, data_loader=feeds)
found = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple())
peak = peak_mb()
saved = os.path.join(folder, "polygraphy.json")
results.save(saved)
seconds = time.perf_counter() - begin
outputs = list(results.values())[0][0]
print(json.dumps({"seconds": seconds, "peak_mb": peak, "peak_saving_mb": peak_mb(),
                  "saved_mb": size_mb(saved), "pairs": len(outputs),
                  "elements": int(sum(np.asarray(outputs[k]).size for k in outputs.keys())),
                  "diverges": not bool(found)}))
"""
)


def measured(python: str, code: str, *, kind: str, batch: int, model: str) -> dict[str, Any]:
    """Run one comparison in a fresh process and return what it printed."""
    with tempfile.TemporaryDirectory(prefix="mlscope-bench-") as folder:
        done = subprocess.run(
            [python, "-c", code, kind, str(batch), folder, model], capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{python} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _result(name: str, values: Sequence[float], unit: str, target: float | None = None) -> Result:
    middle = float(np.median(values))
    return Result(name=name, value=middle, low=min(values), high=max(values), unit=unit, target=target, n=len(values))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def measure(*, rounds: int, batches: Sequence[int], polygraphy: str | None, model: str) -> list[Result]:
    """Return the figures; an interval is the smallest and the largest of the rounds, of a ratio that of its median."""
    results: list[Result] = []
    for batch in batches:
        jobs = {"ORT - ORT": (sys.executable, OURS, "ort"), "PyTorch - ORT": (sys.executable, OURS, "torch")}
        if polygraphy is not None:
            jobs["Polygraphy"] = (polygraphy, POLYGRAPHY, "ort")
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for number in range(rounds):
            for name in list(jobs)[:: 1 if number % 2 else -1]:
                python, code, kind = jobs[name]
                rows[name].append(measured(python, code, kind=kind, batch=batch, model=model))
                print(f"batch {batch}, {name}: {rows[name][-1]}", file=sys.stderr)
        theirs = rows.pop("Polygraphy", [])
        if theirs:
            label = f"batch {batch}: Polygraphy"
            results += [_result(f"{label}, {what}", _column(theirs, key), unit)
                        for what, key, unit in (("time", "seconds", "s"), ("peak memory", "peak_mb", "MB"),
                                                ("peak memory with saving", "peak_saving_mb", "MB"),
                                                ("saved", "saved_mb", "MB"))]  # fmt: skip
        for name, ours in rows.items():
            label = f"batch {batch}: {name}"
            results.append(_result(f"{label}, time", _column(ours, "seconds"), "s"))
            results.append(_result(f"{label}, peak memory", _column(ours, "peak_mb"), "MB"))
            if theirs:
                for what, key, target in (("time", "seconds", 0.2), ("peak memory", "peak_mb", 0.5)):
                    ratio, low, high = median_ratio(np.array(_column(ours, key)), np.array(_column(theirs, key)))
                    # at batch 1 the memory of both is that of the imported libraries
                    bound = target if key == "seconds" or batch > 1 else None
                    results.append(Result(name=f"{label}, {what} / Polygraphy", value=ratio, low=low, high=high,
                                          unit="ratio", target=bound, n=len(ours)))  # fmt: skip
            results.append(_result(f"{label}, saved", _column(ours, "saved_mb"), "MB", 5.0))
            results.append(_result(f"{label}, judging again", _column(ours, "judging_s"), "s", 0.1))
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--polygraphy", metavar="PYTHON", help="interpreter of an environment with polygraphy, onnx and onnxruntime"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    manifest = load_catalog(ml.load_settings()).model("efficientnet-lite0").manifest
    path = files_for(manifest, load_backend("onnxruntime"), settings=ml.load_settings(), report=print).path
    results = measure(rounds=options.rounds, batches=options.batch, polygraphy=options.polygraphy, model=str(path))
    return report("Comparing EfficientNet-Lite0 layer by layer", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
