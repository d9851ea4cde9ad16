"""Analysing runs: every analysis of a stored run, and the device's time beside HolisticTraceAnalysis.

python -m tests.benchmarks.bench_analysis --hta /tmp/hta/bin/python --json out.json

The stored run holds 100,000 events; each figure opens it anew and reads what the analysis needs, the import of
libraries alone excepted. Beside HolisticTraceAnalysis 0.5.0, which needs an environment of its own and is left out
without --hta, both look at the trace of `bench_import` (3,022,448 events), loaded before, in turns; ours also from the
store.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlscope_lab.analysis.registry import analyses, analyze
from mlscope_lab.analysis.statistics import median_interval
from mlscope_lab.store import Store
from mlscope_lab.testing import synthetic_events, synthetic_pass, synthetic_run
from mlscope_lab.trace import schema
from mlscope_lab.trace.build import build_run
from tests.benchmarks._stats import Result, report
from tests.benchmarks.bench_import import RECORDED, make_trace

TARGET_MS = 100.0
PEERS = {
    # ours: (theirs, how many times as fast we must be)
    "kernel_breakdown": ("trace.get_gpu_kernel_breakdown(visualize=False, include_memory_kernels=True)", 5),
    "idle_breakdown": ("trace.get_idle_time_breakdown(ranks=[0], visualize=False)", 5),
    "temporal_breakdown": ("trace.get_temporal_breakdown(visualize=False)", 5),
    "communication_overlap": ("trace.get_comm_comp_overlap(visualize=False)", None),
}
# It answers one line a question, so that both can be asked in turns.
SERVER = """
import os, sys, time
sys.stderr = open(os.devnull, "w")
answers, sys.stdout = sys.stdout, sys.stderr
from hta.trace_analysis import TraceAnalysis
folder, name = os.path.split(sys.argv[1])
trace = TraceAnalysis(trace_files={0: name}, trace_dir=folder, include_last_profiler_step=True)
print("ready", file=answers, flush=True)
for question in sys.stdin:
    begin = time.perf_counter()
    try:
        eval(question)
        said = repr(time.perf_counter() - begin)
    except Exception as error:
        said = type(error).__name__
    print(said, file=answers, flush=True)
"""


def stored_run(events: int = 100_000) -> Any:
    """Return a run of one process with a kernel pass of so many events."""
    import dataclasses

    layers, iterations = 250, 1
    each = sum(len(table) for table in synthetic_events(layers=layers, iterations=1).values())
    iterations = -(-events // each)
    anchor = 10**9
    record = synthetic_pass(level="layer", layers=layers, iterations=iterations, anchor_ns=anchor)
    trace = dataclasses.replace(
        record.layers, events=synthetic_events(layers=layers, iterations=iterations, anchor_ns=anchor)
    )
    deep = dataclasses.replace(record, level="kernel", layers=trace)
    return build_run(attrs=synthetic_run(deep=True).attrs, passes=[synthetic_pass(iterations=100), record, deep])


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _result(name: str, seconds: list[float], unit: str = "ms", target: float | None = None) -> Result:
    found = median_interval(np.array(seconds) * (1e3 if unit == "ms" else 1.0))
    low, high = (found.low, found.high) if np.isfinite(found.low) else (min(seconds) * 1e3, max(seconds) * 1e3)
    return Result(name=name, value=found.centre, low=low, high=high, unit=unit, target=target, n=len(seconds))


def every_analysis(root: Path, rounds: int) -> list[Result]:
    """Return what each analysis of the stored run takes."""
    store = Store(root / "runs")
    run_id = store.save(stored_run())
    events = sum(node.dataset.sizes[schema.EVENT_DIMS[name]] for name, node in store.open(run_id).children.items()
                 if name in schema.EVENT_DIMS)  # fmt: skip
    print(f"a stored run of {events} events", file=sys.stderr)
    rows = []
    for found in analyses():

        def ask(name: str = found.name, several: bool = found.several) -> object:
            runs = [store.open(run_id) for _ in range(2 if name == "predict_latency" else 1)]
            return analyze(runs if several else runs[0], name)

        try:
            ask()  # imports what it needs
        except Exception as error:
            print(f"{found.name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        # a prediction needs a second run: twice the events, twice the time
        runs, name = (2, f"{found.name} (two runs)") if found.name == "predict_latency" else (1, found.name)
        rows.append(_result(name, [seconds_of(ask) for _ in range(rounds)], target=runs * TARGET_MS))
    return rows


def beside_hta(root: Path, python: str, rounds: int, trace: Path | None) -> list[Result]:
    """Return what three analyses of the large trace take, ours and theirs."""
    from mlscope_lab.trace.importers import import_trace

    if trace is None:
        trace = root / "trace.json"
        make_trace(trace)
    store = Store(root / "large")
    run_id = store.save(import_trace(trace))
    run = store.open(run_id).load()
    server = subprocess.Popen(
        [python, "-c", SERVER, str(trace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    if server.stdout.readline().strip() != "ready":
        raise RuntimeError(f"{python} could not read {trace} with HolisticTraceAnalysis")
    rows = []
    for name, (question, factor) in PEERS.items():
        ours, stored, theirs = [], [], []
        for _ in range(rounds):
            ours.append(seconds_of(lambda name=name: analyze(run, name)))
            stored.append(seconds_of(lambda name=name: analyze(store.open(run_id), name)))
            server.stdin.write(question + "\n")
            server.stdin.flush()
            answer = server.stdout.readline().strip()
            try:
                theirs.append(float(answer))
            except ValueError:
                print(f"HolisticTraceAnalysis: {question} raised {answer}", file=sys.stderr)
        rows += [_result(f"{name}: ours, in memory", ours), _result(f"{name}: ours, from the store", stored)]
        if theirs:
            ratio = np.array(ours) / np.array(theirs)
            rows.append(_result(f"{name}: HolisticTraceAnalysis", theirs))
            rows.append(Result(name=f"{name}: ours / theirs", value=float(np.median(ratio)), low=float(ratio.min()),
                               high=float(ratio.max()), unit="ratio", target=None if factor is None else 1 / factor,
                               n=rounds))  # fmt: skip
    server.stdin.close()
    server.wait()
    return rows


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--hta", metavar="PYTHON", help="interpreter of an environment with HolisticTraceAnalysis 0.5.0"
    )
    parser.add_argument("--trace", type=Path, help="the large trace, where it has been made before")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlscope-bench-") as folder:
        root = Path(folder)
        rows = every_analysis(root, options.rounds)
        if options.hta is None:
            print("HolisticTraceAnalysis is left out: give --hta", file=sys.stderr)
        elif options.trace is None and not RECORDED.is_file():
            print(f"HolisticTraceAnalysis is left out: the recorded trace {RECORDED} is not here", file=sys.stderr)
        else:
            rows += beside_hta(root, options.hta, max(3, options.rounds // 3), options.trace)
    return report("Analyses", rows, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
