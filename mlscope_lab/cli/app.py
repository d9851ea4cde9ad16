"""The typer application: every command in the order in which a newcomer meets them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, TextIO

import typer

from mlscope_lab._version import __version__
from mlscope_lab.cli import (
    analyzing,
    calibrating,
    catalogue,
    comparing,
    costing,
    diagnosis,
    importing,
    lab,
    measuring,
    preprocessing,
    stored,
    trial,
)

__all__ = ["app", "run"]

app = typer.Typer(
    name="mlscope",
    help="Try, compare, verify and dissect ML models. Every command takes --json.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # plain help: it starts in half the time, and text in brackets is never taken for markup
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mlscope-lab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


_COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("demo", trial.demo, "Real pictures named in every framework."),
    ("models", catalogue.models, "List the published models."),
    ("show", catalogue.show, "Show one model."),
    ("predict", measuring.predict, "Run a model on files."),
    ("profile", measuring.profile, "Measure a model and store the run."),
    ("cost", costing.cost, "Count a model's operations and bytes without running it."),
    ("compare-latency", measuring.compare_latency, "Tell which of two backends is faster."),
    ("compare", comparing.compare, "Tell where two models part ways, and which layer is to blame."),
    ("judge", comparing.judge, "Show a stored comparison, or judge it by another tolerance."),
    ("bisect", comparing.bisect, "Find the layers that must stay in float32."),
    ("comparisons", comparing.comparisons, "List stored comparisons, newest first."),
    ("agreement", preprocessing.agreement, "Tell which answers of a dataset two sides disagree on."),
    ("sweep", preprocessing.sweep, "Tell what other preprocessing does to the answer."),
    ("runs", stored.runs, "List stored runs, newest first."),
    ("open", stored.open_run, "Show a stored run."),
    ("import", importing.import_trace, "Store another tool's trace as a run."),
    ("analyze", analyzing.analyze, "Analyse stored runs across the stack."),
    ("report", stored.report, "Write a stored run or comparison as an HTML page."),
    ("export", stored.export, "Write a stored run for another tool."),
    ("delete", stored.delete, "Delete a stored run or comparison."),
    ("schema", catalogue.schema, "Print a schema."),
    ("calibrate", calibrating.calibrate, "Measure what this machine can do at most."),
    ("doctor", diagnosis.doctor, "Tell what works here, and why not more."),
)
for _name, _function, _short in _COMMANDS:
    app.command(_name, short_help=_short)(_function)
app.command(
    "lab",
    short_help="Start JupyterLab on the notebooks.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(lab.lab)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    # A user of the command line is told what, not which of our lines said it.
    print(f"Warning: {message}", file=sys.stderr)


def run() -> None:
    """Run with this process's arguments; never returns."""
    warnings.showwarning = _show_warning
    app(prog_name="mlscope")
