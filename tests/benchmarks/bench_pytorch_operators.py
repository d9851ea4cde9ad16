"""Operators of PyTorch: what collecting them takes against prof.events(), and what recording them costs a predict.

python -m tests.benchmarks.bench_pytorch_operators --json out.json
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd.profiler import profile

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mlscope_lab.architectures.efficientnet_lite import build
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.trace.build import build_run
from mlscope_lab.trace.records import LayerTrace, PassRecord
from mlscope_lab.trace.schema import REQUIRED_ATTRS
from tests.benchmarks._stats import Result, _bootstrap, interleave, median_ratio, report

ITERATIONS = 50


def bare(module, tensor) -> Callable[[], Any]:
    """Return the call that one would make by hand."""

    def call():
        with torch.inference_mode():
            return module(tensor)

    return call


def tree_of(trace: LayerTrace):
    """Build the run of one operator pass."""
    none = np.zeros(len(trace.iteration_start_ns), dtype=np.int64)
    record = PassRecord(
        level="operator", process=0, warmup_iterations=0, start_ns=none, preprocess_ns=none, postprocess_ns=none,
        predict_ns=trace.iteration_duration_ns, wall_ns=1, anchor_ns=int(trace.iteration_start_ns[0]), layers=trace,
    )  # fmt: skip
    attrs = dict.fromkeys(REQUIRED_ATTRS) | {
        "run_id": "20260101T000000Z-00000000", "created_at": "2026-01-01T00:00:00+00:00", "status": "complete",
        "model": "efficientnet-lite0", "backend": "pytorch", "device": "cpu", "level": "operator",
        "isolation": "inline", "clock_anchor_unix_ns": 0, "environment": {}, "warnings": [], "unavailable": {},
    }  # fmt: skip
    del attrs["schema_version"]
    return build_run(attrs=attrs, passes=[record])


def collecting(module, array) -> tuple[float, float, int, int]:
    """Collect one trace twice, after its profiler has stopped.

    Returns
    -------
    ours, theirs
        Seconds to the DataTree of layers and operators, and of prof.events().
    operators, events
        What they hold; theirs holds the marks of modules too, without which operators could not be told by module.
    """
    feeds = {"x": array}
    with PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, level="operator")) as session:
        session.predict(feeds)
        session.begin_trace()
        for _ in range(ITERATIONS):
            session.predict(feeds)
        profiler = session._tracer._profiler
        peer, stop, stopped = profiler._profile, profiler.stop, []

        def stop_and_note():
            results = stop()
            stopped.append(time.perf_counter())
            return results

        profiler.stop = stop_and_note
        gc.collect()
        trace = session.end_trace()
        tree = tree_of(trace)
        ours = time.perf_counter() - stopped[0]
    gc.collect()
    start = time.perf_counter()
    events = peer.function_events  # what prof.events() of torch.profiler.profile returns
    return ours, time.perf_counter() - start, tree["operators"].sizes["operator"], len(events)


def covered(starts, ends) -> int:
    """Return the length of the union of intervals."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    before = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(ends)[:-1]])
    return int(np.maximum(ends - np.maximum(starts, before), 0).sum())


def shares_outside(module, array) -> np.ndarray:
    """Return for each predict (iterations, 2) in percent: the pass outside of layers, and layers outside of operators.

    A container's own time counts as outside of layers.
    """
    feeds = {"x": array}
    with PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, level="operator")) as session:
        session.predict(feeds)
        session.begin_trace()
        for _ in range(ITERATIONS):
            session.predict(feeds)
        trace = session.end_trace()
    leaf = ~np.isin(np.arange(len(trace.layers)), trace.layers.parent)
    leaf &= np.array(trace.layers.type) != "functional"
    columns, found = trace.events["operators"].columns, []
    for iteration, whole in enumerate(trace.iteration_duration_ns):
        ran = np.flatnonzero(leaf & (trace.start_ns[iteration] >= 0))
        start = trace.start_ns[iteration, ran]
        layers = covered(start, start + trace.duration_ns[iteration, ran])
        mine = (columns["iteration"] == iteration) & np.isin(columns["layer_index"], ran)
        start = columns["start_ns"][mine]
        found.append((1 - layers / whole, 1 - covered(start, start + columns["duration_ns"][mine]) / layers))
    return 100 * np.array(found)


def operator_pass(module, array, rounds: int) -> np.ndarray:
    """Return times (rounds, 3) in ns: our predict in an operator pass, the bare call under the profiler, the bare call.

    One module serves all three. Profilers are started and stopped outside of the timed calls, every hundred of them.
    """
    feeds, parts = {"x": array}, []
    plain = bare(module, torch.tensor(array))
    with PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, level="operator")) as session:
        session.predict(feeds)
        while sum(map(len, parts)) < rounds:
            session.begin_trace()
            tracer, other = session._tracer, profile(use_kineto=True)
            tracer.detach()
            running: list[Any] = []

            def change(index: int, tracer=tracer, running=running) -> None:
                while running:
                    running.pop()()
                if index == 0:
                    tracer.attach()
                    running.append(tracer.detach)
                elif index == 1:
                    other = profile(use_kineto=True)
                    other.__enter__()
                    running.append(lambda: other.__exit__(None, None, None))
                plain()  # what a start leaves cold is warmed by a call of the same kind

            calls = [lambda: session.predict(feeds), plain, plain]
            parts.append(interleave(calls, rounds=min(rounds, 100), warmup=0, before=change))
            change(2)
            del other
            session._tracing = False
            session._tracer = None
    return np.concatenate(parts)


def measure(*, rounds: int = 300, repeats: int = 7) -> list[dict[str, Any]]:
    """Measure all figures; see the module's first line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = build().eval()
    array = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    collecting(module, array)  # imports
    found = [collecting(module, array) for _ in range(repeats)]
    ours, theirs = (np.array([row[column] for row in found]) for column in (0, 1))
    operators, events = found[0][2:]
    figures = []

    def add(name: str, figure: tuple[float, float, float], unit: str, target: float | None, n: int) -> None:
        value, low, high = figure
        figures.append(Result(name=name, value=value, low=low, high=high, unit=unit, target=target, n=n).as_dict())

    add(f"{operators:,} operators of {ITERATIONS} predicts into a DataTree", _of(ours), "s", None, repeats)
    add(f"prof.events() of the same trace ({events:,} events)", _of(theirs), "s", None, repeats)
    add("ours over prof.events()", median_ratio(ours, theirs), "ratio", 1 / 20, repeats)
    shares = shares_outside(module, array)
    add("pass outside of layers", _of(shares[:, 0]), "%", 10.0, ITERATIONS)
    add("layers outside of operators", _of(shares[:, 1]), "%", 10.0, ITERATIONS)
    times = operator_pass(module, array, rounds)
    add(
        "predict in an operator pass over module(tensor)", median_ratio(times[:, 0], times[:, 2]), "ratio", None, rounds
    )
    add("the same under torch's profiler alone", median_ratio(times[:, 1], times[:, 2]), "ratio", None, rounds)
    points = 100 * (times[:, 0] - times[:, 1]) / times[:, 2]
    add("the pass less the profiler alone", _of(points), "points", 5.0, rounds)
    return figures


def _of(values: Any) -> tuple[float, float, float]:
    return _bootstrap(np.asarray(values, dtype=float), lambda drawn: np.median(drawn, axis=1))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(rounds=options.rounds, repeats=options.repeats)
    results = [Result(**{k: v for k, v in figure.items() if k != "ok"}) for figure in figures]
    return report("PyTorch operators", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
