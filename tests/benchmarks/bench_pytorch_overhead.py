"""What a session costs over PyTorch itself: plain, on a model of one operator, and while tracing layers.

python -m tests.benchmarks.bench_pytorch_overhead --json out.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mlscope_lab.architectures.efficientnet_lite import build
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from tests.benchmarks._stats import Result, interleave, median_difference, median_ratio, report


class OneOperator(torch.nn.Module):
    """Does next to nothing, so that what is around it shows."""

    def forward(self, x):
        return x + 1


def bare(module, tensor):
    """Return the call that one would make by hand."""

    def call():
        with torch.inference_mode():
            return module(tensor)

    return call


class BareHooks:
    """The least that a layer trace costs: a time stamp before and after every module."""

    def __init__(self, module) -> None:
        self.module = module
        self.handles: list[Any] = []
        self.stamps: list[int] = []

    def attach(self) -> None:
        append, clock = self.stamps.append, time.perf_counter_ns

        def before(_module, _args):
            append(clock())

        def after(_module, _args, _result):
            append(clock())

        self.stamps.clear()
        for module in self.module.modules():
            self.handles.append(module.register_forward_pre_hook(before))
            self.handles.append(module.register_forward_hook(after, always_call=True))

    def detach(self) -> None:
        while self.handles:
            self.handles.pop().remove()


def predict_pairs(module, array, threads: int, rounds: int) -> np.ndarray:
    """Return times (rounds, 2) in ns: our predict, and the bare call of the same module."""
    feeds = {"x": array}
    with PyTorchBackend().wrap(module, feeds, SessionOptions(threads=threads)) as session:
        return interleave([lambda: session.predict(feeds), bare(module, torch.tensor(array))], rounds=rounds)


def traced_times(module, array, threads: int, rounds: int) -> np.ndarray:
    """Return times (rounds, 3) in ns: our traced predict, the bare call under bare hooks, and the bare call.

    One module serves all three, and hooks are changed between the timed calls: two copies would differ by where their
    memory lies.
    """
    feeds, hooks = {"x": array}, BareHooks(module)
    with PyTorchBackend().wrap(module, feeds, SessionOptions(threads=threads, level="layer")) as session:
        session.predict(feeds)
        session.begin_trace()
        tracer = session._tracer
        plain = bare(module, torch.tensor(array))

        def change(index: int) -> None:
            tracer.detach()
            hooks.detach()
            (tracer.attach, hooks.attach, lambda: None)[index]()

        calls = [lambda: session.predict(feeds), plain, plain]
        for index, call in enumerate(calls * 5):
            change(index % 3)
            call()
        times = interleave(calls, rounds=rounds, warmup=0, before=change)
        hooks.detach()
        trace = session.end_trace()
    if len(trace.iteration_start_ns) != rounds + 5 or (trace.duration_ns < 0).any():
        raise SystemExit(f"the trace holds {len(trace.iteration_start_ns)} of {rounds + 5} predicts")
    return times


def measure(*, rounds: int = 1500, threads: int = 1) -> list[dict[str, Any]]:
    """Measure all figures; see the module's first line."""
    results = []

    def add(name: str, figure: tuple[float, float, float], unit: str, target: float | None, n: int) -> None:
        value, low, high = figure
        results.append(Result(name=name, value=value, low=low, high=high, unit=unit, target=target, n=n))

    torch.manual_seed(0)
    module = build().eval()
    array = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    times = predict_pairs(module, array, threads, rounds)
    add("EfficientNet-Lite0: predict over module(tensor)", median_ratio(*times.T), "ratio", 1.01, rounds)
    times = predict_pairs(OneOperator().eval(), np.zeros((1, 8), np.float32), threads, 20 * rounds) / 1000
    add("one operator: predict less module(tensor)", median_difference(*times.T), "us", 15.0, 20 * rounds)
    times = traced_times(module, array, threads, rounds)
    for name, one, other, target in (
        ("traced predict over bare hooks", 0, 1, 1.02),
        ("traced predict over module(tensor)", 0, 2, None),
        ("bare hooks over module(tensor)", 1, 2, None),
    ):
        add(f"EfficientNet-Lite0: {name}", median_ratio(times[:, one], times[:, other]), "ratio", target, rounds)
    return [result.as_dict() for result in results]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(rounds=options.rounds, threads=options.threads)
    results = [Result(**{k: v for k, v in figure.items() if k != "ok"}) for figure in figures]
    return report("PyTorch overhead", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
