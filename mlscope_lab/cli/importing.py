"""The command that takes in other tools' traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlscope_lab.cli.options import AsJson
from mlscope_lab.cli.output import command, console, emit_json, note, print_pairs
from mlscope_lab.cli.text import parse_bytes

__all__ = ["import_trace"]


@command
def import_trace(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file, gzip or not, or a folder of one.")],
    *,
    format_: Annotated[
        str | None, typer.Option("--format", "-f", help="Its format; default what it looks like.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="BYTES", help="The most it may hold decompressed; default 4GiB.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store a trace that another tool made as a run.

    The format is told by the content; an unknown --format names those that there are.

    --json: {"run_id", "format", "events", "operators", "kernels", "dropped"}; events are those of the trace, dropped
    those that could not be read.
    """
    from mlscope_lab.public import import_trace as imported
    from mlscope_lab.trace.importers import detect_format
    from mlscope_lab.trace.schema import EVENT_DIMS

    limit = None
    if max_size is not None:
        try:
            limit = parse_bytes(max_size)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="'--max-size'") from None
    chosen = format_ if format_ is not None else detect_format(trace)
    run = imported(trace, format=chosen, max_bytes=limit)
    rows = {group: int(run[group].sizes[dim]) for group, dim in EVENT_DIMS.items() if group in run.children}
    counts = {
        "events": int(run.attrs.get("trace", {}).get("events", sum(rows.values()))),
        "operators": rows.get("operators", 0),
        "kernels": rows.get("kernels", 0),
        "dropped": int(run["passes"].dataset["dropped_events"].values.sum()),
    }
    for warning in run.attrs["warnings"]:
        note(f"Warning: {warning}")
    if as_json:
        emit_json({"run_id": run.attrs["run_id"], "format": chosen, **counts})
        return
    print_pairs(console(), [("run", run.attrs["run_id"]), ("format", chosen), *counts.items()])
