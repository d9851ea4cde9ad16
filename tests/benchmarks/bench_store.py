"""How quickly runs are stored, opened and found, and how little importing costs.

Run as ``python -m tests.benchmarks.bench_store`` from the checkout.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlscope_lab.analysis.statistics import median_interval
from mlscope_lab.store import Store, new_run_id
from mlscope_lab.store.zarr_ import METADATA, encode
from mlscope_lab.testing import synthetic_pass
from mlscope_lab.trace.build import build_run

ATTRS: dict[str, Any] = {
    "created_at": "2026-11-22T00:30:00+00:00", "status": "complete", "model": "efficientnet-lite0",
    "model_digest": "sha256:" + "1" * 64, "backend": "onnxruntime", "backend_version": "1", "device": "cpu",
    "precision": "float32", "batch_size": 1, "level": "layer", "seed": 0, "threads": 1, "isolation": "subprocess",
    "execution_mode": "graph", "executable_digest": "sha256:" + "5" * 64, "clock_anchor_unix_ns": 0,
    "environment": {"cpu": "some"}, "warnings": [], "unavailable": {},
}  # fmt: skip
RUNS = 10_000


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Return seconds of each of `repeats` calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def figure(name: str, seconds: list[float] | np.ndarray, target_ms: float | None) -> dict[str, Any]:
    """Return one row: the median in ms with its 95 % interval, kept if the whole interval is below the target."""
    found = median_interval(np.asarray(seconds) * 1e3)
    return {
        "name": name, "value": found.centre, "low": found.low, "high": found.high, "unit": "ms", "target": target_ms,
        "n": found.n, "ok": None if target_ms is None else bool(found.high <= target_ms),
    }  # fmt: skip


def large_run() -> Any:
    """Return a run like EfficientNet's: 5 processes, 100 untraced and 50 traced iterations of 250 layers."""
    passes = [
        synthetic_pass(level=level, process=process, iterations=iterations, layers=250)
        for process in range(5)
        for level, iterations in (("model", 100), ("layer", 50))
    ]
    return build_run(attrs={**ATTRS, "run_id": new_run_id()}, passes=passes)


def _store_figures(root: Path) -> list[dict[str, Any]]:
    store, run = Store(root / "some"), large_run()

    def save() -> None:
        run.attrs["run_id"] = new_run_id()
        store.save(run)

    rows = [figure("save a run (5 processes, 250 layers)", timed(save, 20), 500.0)]
    rows.append(figure("open it, after the first import", timed(lambda: store.open("latest"), 50), 50.0))
    rows.append(figure("open it and read every array", timed(lambda: store.open("latest").load(), 10), None))
    many = Store(root / "many")
    failure = {"kind": "error", "message": "m", "log": []}
    for number in range(RUNS):
        run_id = f"20261122T{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}Z-{number:08x}"
        small = build_run(
            attrs={**ATTRS, "run_id": run_id, "model": f"m{number % 100}", "status": "failed", "failure": failure},
            passes=[],
        )
        (many.root / run_id).mkdir(parents=True)
        (many.root / run_id / METADATA).write_bytes(encode(small)[METADATA])
    many.rebuild()
    if len(many.runs(model="m7")) != RUNS // 100:
        raise RuntimeError("the index did not find the runs")
    rows.append(figure(f"filter {RUNS} runs", timed(lambda: many.runs(model="m7", status="failed"), 30), 100.0))
    return rows


def _start(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def _import_figures() -> list[dict[str, Any]]:
    bare, ours = [], []
    for _ in range(20):  # in turns, so that what disturbs the machine disturbs both
        bare += timed(_start("-c", "pass"), 1)
        ours += timed(_start("-c", "import mlscope_lab"), 1)
    rows = [figure("import mlscope_lab, above an empty interpreter", np.subtract(ours, bare), 60.0)]
    from importlib.util import find_spec

    if find_spec("mlscope_lab.cli") is None:
        print("mlscope --help is left out: there is no mlscope_lab.cli yet", file=sys.stderr)
    else:
        help_ = _start("-c", "import sys; sys.argv = ['mlscope', '--help']; from mlscope_lab.cli import main; main()")
        rows.append(figure("mlscope --help", timed(help_, 15), 400.0))
    return rows


def measure() -> list[dict[str, Any]]:
    """Return one row a figure: name, value, low, high, unit, target, n, ok."""
    root = Path(tempfile.mkdtemp(prefix="mlscope-bench-"))
    try:
        return [*_import_figures(), *_store_figures(root)]
    finally:
        shutil.rmtree(root)


def main() -> int:
    """Print a table, write JSON if asked, and return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    rows = measure()
    for row in rows:
        kept = {True: "yes", False: "NO", None: ""}[row["ok"]]
        target = "" if row["target"] is None else f"<= {row['target']:g}"
        print(f"{row['name']:<50}{row['value']:>9.1f} ms  [{row['low']:.1f}, {row['high']:.1f}]  {target:>7}  {kept}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
