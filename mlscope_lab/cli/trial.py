"""The command demo: `mlscope_lab.demo` on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson
from mlscope_lab.cli.output import (
    DIVERGED,
    Column,
    command,
    console,
    emit_json,
    heading,
    note,
    print_pairs,
    print_table,
    quiet_stdout,
)
from mlscope_lab.cli.runview import layers_json, print_layers, run_json, summary_json
from mlscope_lab.cli.text import duration, interval, plain

if TYPE_CHECKING:
    from rich.console import Console

    from mlscope_lab.demo import DemoResult

__all__ = ["demo"]


def demo_json(result: DemoResult) -> dict[str, Any]:
    """Return what ``mlscope demo --json`` prints; see the command's help."""
    from dataclasses import asdict

    from mlscope_lab.demo import TOLERANCE

    return {
        "model": result.model,
        "answers": [asdict(answer) for answer in result.answers],
        "differences": [asdict(difference) for difference in result.differences],
        "largest_difference": result.largest_difference,
        "tolerance": TOLERANCE,
        "agree": result.agree,
        "runs": {name: run_json(run) for name, run in result.runs.items()},
        "left_out": dict(result.left_out),
        "report": result.report,
        "prepare_s": result.prepare_s,
        "seconds": result.seconds,
    }


def _print_answers(out: Console, result: DemoResult) -> None:
    from mlscope_lab.demo import TOLERANCE

    columns = [Column(title="picture", keep=7), Column(title="backend", keep=8),
               Column(title="index", right=True, keep=6), Column(title="label", keep=9, shrink=True),
               Column(title="score", right=True, keep=8)]  # fmt: skip
    rows = [
        (a.picture, a.backend, a.index, a.label, f"{a.score:.3f}")
        for a in sorted(result.answers, key=lambda a: a.picture)
    ]
    print_table(out, columns, rows, title=f"{result.model} names the pictures")
    largest = result.largest_difference
    out.print()
    if largest is None:
        out.print("One backend ran: there is nothing to compare.")
        return
    pairs = [(f"{d.a} and {d.b}", f"{d.max_abs:.2e} ({d.picture})") for d in result.differences]
    verdict = f"under {TOLERANCE:g}: they agree" if result.agree else f"NOT under {TOLERANCE:g}, or other names"
    print_pairs(out, [("largest logit difference", f"{largest:.2e}, {verdict}"), *pairs])


def _print_runs(out: Console, result: DemoResult) -> None:
    rows = []
    for name, run in result.runs.items():
        summary = summary_json(run)
        if summary is None:
            continue
        predict = summary["stages"]["predict"]
        p90 = (summary["percentiles_ns"] or {}).get("90")
        rows.append((name, run.attrs["execution_mode"],
                     interval(predict["median_ns"], predict["low_ns"], predict["high_ns"]), duration(p90),
                     duration(summary["stages"]["preprocess"]["median_ns"]), run.attrs["run_id"]))  # fmt: skip
    columns = [Column(title="backend", keep=9), Column(title="mode", keep=4),
               Column(title="predict median [95% interval]", keep=8), Column(title="p90", right=True, keep=5),
               Column(title="preprocess", right=True, keep=3), Column(title="run", keep=6)]  # fmt: skip
    print_table(out, columns, rows, title="Latency on the cat, one picture at a time")
    out.print("  Each interval is of one process; another process of the same backend may lie outside.")
    for name, run in result.runs.items():
        layers = layers_json(run)
        if layers is not None:
            print_layers(out, layers, f"Slowest of {layers['count']} layers on {name}")


@command
def demo(
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the HTML page; default the demo folder at home.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See a pretrained model name real pictures in every installed framework, with latency and slowest layers.

    --json: {"model", "answers": [{"backend", "picture", "index", "label", "score"}], "differences": [{"a", "b",
    "picture", "max_abs"}], "largest_difference", "tolerance", "agree", "runs": {BACKEND: as profile --json},
    "left_out": {BACKEND: reason}, "report", "prepare_s", "seconds"}. Exit status 4: the backends disagree.
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.demo import run_demo

    settings = load_settings()
    with quiet_stdout():
        result = run_demo(output if output is not None else settings.home / "demo", settings)
    if as_json:
        emit_json(demo_json(result))
    else:
        out = console()
        _print_answers(out, result)
        _print_runs(out, result)
        for name, reason in result.left_out.items():
            heading(out, f"Left out: {name}: {plain(reason)}")
        heading(out, "Next")
        print_pairs(
            out,
            [
                ("report", result.report),
                ("runs", f"in {settings.runs}; mlscope runs lists them"),
                ("lab", "make lab or mlscope lab opens the notebooks"),
                (
                    "time",
                    f"{result.seconds:.0f} s, {result.prepare_s:.0f} s of it for fetching, converting, predicting",
                ),
            ],
        )
    if not result.agree:
        note("The backends disagree.")
        raise typer.Exit(DIVERGED)
