"""Commands about stored runs: runs, open, report, export, delete."""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson, RunId
from mlscope_lab.cli.output import Column, command, console, emit_json, note, print_table
from mlscope_lab.cli.text import duration, plain
from mlscope_lab.errors import InputError, MlscopeError, RunNotFoundError, nearest

if TYPE_CHECKING:
    from mlscope_lab.store import Store

__all__ = ["delete", "export", "open_run", "report", "runs"]


IsComparison = Annotated[
    bool, typer.Option("--comparison", help="RUN is a comparison; needed for 'latest' alone, other ids are found.")
]


class ExportFormat(StrEnum):
    """Forms that a run can be exported to."""

    netcdf = "netcdf"
    parquet = "parquet"
    perfetto = "perfetto"
    chrome = "chrome"
    speedscope = "speedscope"
    otlp = "otlp"


def _store() -> Store:
    from mlscope_lab.config import load_settings
    from mlscope_lab.store import Store

    return Store(load_settings().runs)


def _holding(run: str, *, comparison: bool) -> tuple[Store, str]:
    """Return the store that holds a run, or a comparison, and its whole id; "latest" is a run unless it is said."""
    from mlscope_lab.config import load_settings
    from mlscope_lab.divergence.stored import store_of

    beside = store_of(load_settings())
    if comparison:
        return beside, beside.resolve(run)
    store = _store()
    try:
        return store, store.resolve(run)
    except RunNotFoundError:
        if run != "latest":
            with contextlib.suppress(RunNotFoundError):
                return beside, beside.resolve(run)
        raise


def _row(run_id: str, row: Any) -> dict[str, Any]:
    """Return a row of the store's table with None where the table has no value."""
    import pandas as pd

    return {"run_id": run_id, **{str(name): None if pd.isna(value) else value for name, value in row.items()}}


@command
def runs(
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only runs of this model.")] = None,
    backend: Annotated[str | None, typer.Option("--backend", "-b", help="Only runs on this backend.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="'complete', 'failed' or 'interrupted'.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """List stored runs, newest first.

    --json: a list of objects with run_id, created_at, model, backend, backend_version, status, level, device,
    precision, batch_size, threads, isolation, predict_median_ns (null for a run without untraced iterations).
    """
    from mlscope_lab.trace.schema import STATUSES

    if status is not None and status not in STATUSES:
        known = list(STATUSES)
        raise InputError(f"Unknown status '{status}'. Known: {', '.join(known)}.{nearest(status, known)}")
    wanted = {"model": model, "backend": backend, "status": status}
    table = _store().runs(limit=limit, **{name: value for name, value in wanted.items() if value is not None})
    found = [_row(str(run_id), row) for run_id, row in table.iterrows()]
    if as_json:
        emit_json(found)
        return
    if not found:
        note("No stored run fits. mlscope profile MODEL measures one.")
        return
    columns = [
        Column(title="run", keep=9), Column(title="created", keep=3), Column(title="model", keep=8),
        Column(title="backend", keep=7), Column(title="level", keep=4), Column(title="batch", right=True, keep=2),
        Column(title="threads", right=True, keep=1), Column(title="status", keep=5),
        Column(title="predict", right=True, keep=6),
    ]  # fmt: skip
    rows = [
        (r["run_id"], f"{r['created_at']:%Y-%m-%d %H:%M}", r["model"], r["backend"], r["level"], r["batch_size"],
         r["threads"], r["status"], duration(r["predict_median_ns"]))
        for r in found
    ]  # fmt: skip
    print_table(console(), columns, rows)


@command
def open_run(
    run: RunId = "latest",
    *,
    slowest: Annotated[int, typer.Option("--slowest", min=1, help="How many layers to list.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a stored run: latency, slowest layers, warnings, and for a failed one its log.

    --json: the keys of profile --json and created_at, model_version, backend_version, device, precision, batch_size,
    threads, isolation, execution_mode, environment, warnings, unavailable, failure.
    """
    from mlscope_lab.cli.runview import print_run, run_json

    store, run_id = _holding(run, comparison=False)
    if store.kind != "run":
        raise InputError(f"{run_id} is a comparison; mlscope judge {run_id} shows it")
    tree = store.open(run_id)
    if as_json:
        emit_json(run_json(tree, full=True, slowest=slowest))
    else:
        print_run(console(), tree, slowest=slowest)


@command
def report(
    run: RunId = "latest",
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The HTML file; default RUN.html here.")] = None,
    comparison: IsComparison = False,
    as_json: AsJson = False,
) -> None:
    """Write a stored run or comparison as one HTML page that needs no network.

    --json: {"run_id", "path"}.
    """
    from mlscope_lab.report import write_report

    store, run_id = _holding(run, comparison=comparison)
    path = write_report(store.open(run_id), output if output is not None else Path(f"{run_id}.html"))
    if as_json:
        emit_json({"run_id": run_id, "path": Path(path).absolute()})
    else:
        print(path)


@command
def export(
    run: RunId,
    path: Annotated[
        str, typer.Argument(help="A file; for parquet a folder, for otlp an address such as http://localhost:4318.")
    ],
    *,
    to: Annotated[ExportFormat, typer.Option("--to", help="Form to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a stored run in another form: for xarray, pandas, Perfetto, speedscope, or an OpenTelemetry collector.

    --json: {"run_id", "format", "files"}; "files" holds the address for otlp.
    """
    from mlscope_lab.public import export_run

    store = _store()
    run_id = store.resolve(run)
    files = export_run(store.open(run_id), path, to.value)
    if as_json:
        named = [file.absolute() if isinstance(file, Path) else file for file in files]
        emit_json({"run_id": run_id, "format": to.value, "files": named})
        return
    for file in files:
        print(file)


def _what_it_is(store: Store, run_id: str) -> str:
    try:
        attrs = store.open(run_id).attrs
    except MlscopeError as error:  # a damaged run is one that people want to delete
        return str(error)
    return f"{attrs['model']} on {attrs['backend']}, {attrs['status']}"


@command
def delete(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id, a unique beginning of one, or 'latest'.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    comparison: IsComparison = False,
    as_json: AsJson = False,
) -> None:
    """Delete a stored run or comparison; asks first.

    --json: {"deleted": run id}; needs --yes.
    """
    store, run_id = _holding(run, comparison=comparison)
    if as_json and not yes:
        raise typer.BadParameter("nobody can be asked with --json; add it", param_hint="'--yes'")
    if not yes and not typer.confirm(f"Delete {store.kind} {run_id} ({plain(_what_it_is(store, run_id))})?", err=True):
        note("Nothing was deleted.")
        raise typer.Exit(1)
    deleted = store.delete(run_id)
    if as_json:
        emit_json({"deleted": deleted})
    else:
        print(f"Deleted {deleted}")
