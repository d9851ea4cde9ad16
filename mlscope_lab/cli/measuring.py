"""Commands that run models: predict, profile, compare-latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import (
    AsJson,
    BackendName,
    BatchSize,
    Device,
    Inputs,
    Iterations,
    ModelName,
    On,
    Threads,
    Timeout,
    memory_limit,
    samples_from,
    symbols_from,
)
from mlscope_lab.cli.output import Column, command, console, emit_json, heading, print_pairs, print_table, quiet_stdout

if TYPE_CHECKING:
    from rich.console import Console

    from mlscope_lab.prediction import Prediction

__all__ = ["compare_latency", "predict", "profile"]

Warmup = Annotated[int, typer.Option("--warmup", min=1, help="Least number of predicts before the measured ones.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of seeded inputs and of the framework.")]
Symbols = Annotated[
    list[str] | None,
    typer.Option("--symbol", metavar="NAME=LENGTH", help="Length of a symbolic dimension of seeded inputs."),
]


def _print_prediction(out: Console, found: Prediction, files: list[str]) -> None:
    ranked = found.ranked
    for number, sample in enumerate(ranked):
        of = files[number] if len(files) == len(ranked) else f"sample {number}"
        rows = [(f"{answer.score:.4f}", answer.index, answer.label or "") for answer in sample]
        columns = [Column(title="score", right=True, keep=8), Column(title="index", right=True, keep=7),
                   Column(title="label", keep=9, shrink=True)]  # fmt: skip
        print_table(out, columns, rows, title=f"{of}: {found.model} on {found.backend}")
    if ranked:
        return
    heading(out, f"{found.model} on {found.backend}")
    for name, samples in found.answers.items():
        for number, answer in enumerate(samples):
            print_pairs(out, [(f"{name}, sample {number}", _shortened(answer))])
    tensors = [
        (name, f"{array.dtype.name}{list(array.shape)}", _bound(array, "min"), _bound(array, "max"))
        for name, array in found.outputs.items()
    ]
    print_table(out, [Column(title="output", keep=9), Column(title="tensor", keep=8),
                      Column(title="smallest", right=True), Column(title="largest", right=True)], tensors)  # fmt: skip


def _bound(array: Any, which: str) -> str:
    return f"{getattr(array, which)():g}" if array.size and array.dtype.kind in "biuf" else "-"


def _shortened(answer: Any) -> str:
    text = " ".join(str(answer).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


@command
def predict(
    model: ModelName,
    inputs: Inputs = None,
    *,
    backend: BackendName = None,
    threads: Threads = None,
    device: Device = "cpu",
    on: On = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Run a model on files and print its answers.

    --json: {"model", "backend", "samples": [[{"index", "label", "score"}, ...] for each sample, best first],
    "outputs": [{"name", "dtype", "shape"}]}; samples is empty for a model that ranks nothing.
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.handle import load

    given = samples_from(inputs)
    if given is None:
        raise typer.BadParameter("give at least one file", param_hint="'--input'")
    with (
        quiet_stdout(),
        load(model, backend=backend, threads=threads, device=device, settings=load_settings()) as loaded,
    ):
        found = loaded.predict(given, on=on or ("inline" if timeout is None else "subprocess"), timeout_s=timeout)
    if as_json:
        emit_json(found.to_json())
    else:
        _print_prediction(console(), found, [given] if isinstance(given, str) else inputs or [])


@command
def profile(
    model: ModelName,
    inputs: Inputs = None,
    *,
    backend: BackendName = None,
    level: Annotated[
        str,
        typer.Option(
            "--level",
            "-l",
            help="'model' (latency), 'layer', 'operator', 'kernel', 'hardware' or 'full'; each adds a pass of its own.",
        ),
    ] = "model",
    batch_size: BatchSize = 1,
    iterations: Iterations = 50,
    warmup: Warmup = 5,
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, help="Fresh processes; with several, intervals are over them.")
    ] = 1,
    threads: Threads = None,
    device: Device = "cpu",
    on: On = None,
    seed: Seed = 0,
    symbol: Symbols = None,
    timeout: Timeout = None,
    memory: Annotated[
        str | None, typer.Option("--memory-limit", metavar="SIZE", help="Of a process, such as 2GB or 512MiB.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model, store the run and print its summary; without --input on seeded values.

    --json: {"run_id", "status", "model", "backend", "level", "summary": {"stages": {STAGE: {"median_ns", "low_ns",
    "high_ns", "minimum_ns", "mean_ns"}}, "percentiles_ns": {LEVEL: ns or null} or null, "throughput", "drift",
    "drifting", "iterations", "processes", "confidence", "unit_of_replication"}, "levels": null or [{"level", "passes",
    "iterations", "predict_ns", "low_ns", "high_ns", "overhead", "overhead_low", "overhead_high", "outputs_equal",
    "dropped_events"}], "layers": null or {"count", "pass_ns", "covered_ns", "unattributed_ns", "overlap_ns",
    "overhead", "slowest": [{"layer", "type", "exclusive_ns", "low_ns", "high_ns", "duration_ns", "share", "calls"}]}}.
    Exit status 3: the run failed and is recorded as such.
    """
    from mlscope_lab.cli.runview import print_run, run_json
    from mlscope_lab.config import load_settings
    from mlscope_lab.runner import profile as measure

    limit, symbols, given = memory_limit(memory), symbols_from(symbol), samples_from(inputs)
    with quiet_stdout():
        run = measure(
            model, given, backend=backend, level=level, batch_size=batch_size, iterations=iterations, warmup=warmup,
            processes=processes, threads=threads, device=device, on=on, seed=seed, symbols=symbols, timeout_s=timeout,
            memory_limit_bytes=limit, settings=load_settings(),
        )  # fmt: skip
    if as_json:
        emit_json(run_json(run))
    else:
        print_run(console(), run)


@command
def compare_latency(
    model: ModelName,
    backend: Annotated[list[str], typer.Option("--backend", "-b", help="Give two; the second is judged by the first.")],
    inputs: Inputs = None,
    *,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, help="Fresh processes a side.")] = 5,
    batch_size: BatchSize = 1,
    iterations: Iterations = 50,
    warmup: Warmup = 5,
    threads: Threads = None,
    device: Device = "cpu",
    seed: Seed = 0,
    symbol: Symbols = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Measure two backends in interleaved processes and tell whether the second is faster or slower.

    --json: {"model", "a": {"backend", "run_id"}, "b": {"backend", "run_id"}, "verdict" (of b: faster, slower, same or
    undecided), "reason", "sentence", "ratio", "low", "high", "confidence", "detectable_ratio", "processes_a",
    "processes_b"}; ratio is b's median over a's.
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.runner import compare_latency as measure

    if len(backend) != 2:
        raise typer.BadParameter(f"give exactly two, not {len(backend)}", param_hint="'--backend'")
    symbols, given = symbols_from(symbol), samples_from(inputs)
    with quiet_stdout():
        found = measure(
            {"backend": backend[0]}, {"backend": backend[1]}, model=model, input=given, processes=processes,
            batch_size=batch_size, iterations=iterations, warmup=warmup, threads=threads, device=device, seed=seed,
            symbols=symbols, timeout_s=timeout, settings=load_settings(),
        )  # fmt: skip
    numbers = ("ratio", "low", "high", "confidence", "detectable_ratio", "processes_a", "processes_b")
    answer: dict[str, Any] = {
        "model": model,
        "a": {"backend": backend[0], "run_id": found.attrs["run_a"]},
        "b": {"backend": backend[1], "run_id": found.attrs["run_b"]},
        **{name: found.attrs[name] for name in ("verdict", "reason", "sentence")},
        **{name: found[name].item() for name in numbers},
    }
    if as_json:
        emit_json(answer)
        return
    out = console()
    heading(out, answer["sentence"])
    print_pairs(out, [("processes", f"{answer['processes_a']} and {answer['processes_b']}, interleaved"),
                      (f"run on {backend[0]}", answer["a"]["run_id"]),
                      (f"run on {backend[1]}", answer["b"]["run_id"])])  # fmt: skip
