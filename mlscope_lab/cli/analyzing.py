"""The command analyze: one of the analyses of stored runs, as a table or JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson
from mlscope_lab.cli.output import Column, command, console, emit_json, heading, jsonable, print_pairs, print_table
from mlscope_lab.cli.text import binary_size, duration, percent

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = ["analyze", "as_tables"]

_QUIET = {"run_id", "title", "analysis", "analysis_number", "unavailable"}


def _option(text: str) -> tuple[str, Any]:
    """Return the name and value of ``NAME=VALUE``; numbers are numbers."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as factor=4", param_hint="'--option'")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def as_tables(data: xr.Dataset, limit: int | None = None) -> dict[str, Any]:
    """Return a dataset as plain data.

    Parameters
    ----------
    data
        From an analysis.
    limit
        Rows of each table at most.

    Returns
    -------
    dict
        ``attrs``; ``units`` by variable, those without a unit left out; ``scalars`` by name; ``tables`` by dimension
        (several joined by ","), each with ``count`` of all rows and ``rows``, a list of objects with the labels
        and values. NaN is null.
    """
    tables: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, variable in data.data_vars.items():
        if variable.dims:
            tables.setdefault(tuple(map(str, variable.dims)), {})[str(name)] = variable
    found: dict[str, Any] = {}
    for dims, variables in tables.items():
        count = math.prod(data.sizes[dim] for dim in dims)
        shown = count if limit is None else min(limit, count)
        flat = {name: variable.values.reshape(-1)[:shown] for name, variable in variables.items()}
        labels: dict[str, Any] = {}
        for place, dim in enumerate(dims):
            inner = math.prod(data.sizes[d] for d in dims[place + 1 :])
            values = data[dim].values
            labels[dim] = [values[i // inner % len(values)] for i in range(shown)]
        rows = [
            {**{dim: column[i] for dim, column in labels.items()}, **{name: v[i] for name, v in flat.items()}}
            for i in range(shown)
        ]
        found[",".join(dims)] = {"count": count, "rows": rows}
    units = {str(name): v.attrs["units"] for name, v in data.data_vars.items() if v.attrs.get("units", "1") != "1"}
    plain: dict[str, Any] = jsonable({
        "attrs": dict(data.attrs),
        "units": units,
        "scalars": {str(name): v.values[()] for name, v in data.data_vars.items() if not v.dims},
        "tables": found,
    })  # fmt: skip
    return plain


def _cell(name: str, value: Any, units: dict[str, str]) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    unit = units.get(name)
    if unit == "ns":
        return duration(float(value)) if value >= 0 else f"-{duration(-float(value))}"
    if unit == "byte":
        return "-" if value < 0 else binary_size(float(value))
    if name.endswith("share"):
        return percent(float(value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def _print_table(out: Console, found: dict[str, Any], name: str, table: dict[str, Any]) -> None:
    rows = table["rows"]
    if not rows:
        out.print(f"  nothing along {name}")
        return
    units = found["units"]
    names = list(rows[0])
    # positions among the labels say nothing that the table itself does not
    dims = name.split(",")
    shown = [
        n for n in names if not (n in dims and all(isinstance(r[n], int) for r in rows) and len(names) > len(dims))
    ]
    columns = [
        Column(title=n.removesuffix("_ns").removesuffix("_bytes").replace("_", " "), keep=100 - place, shrink=True,
               right=not any(isinstance(row[n], str) for row in rows))
        for place, n in enumerate(shown)
    ]  # fmt: skip
    print_table(out, columns, [[_cell(n, row[n], units) for n in shown] for row in rows])
    if table["count"] > len(rows):
        out.print(f"  and {table['count'] - len(rows)} more")


def _list(as_json: bool) -> None:
    from mlscope_lab.analysis.registry import analyses

    found = analyses()
    if as_json:
        emit_json([
            {"name": a.name, "number": a.number or None, "title": a.title, "several_runs": a.several,
             "options": a.options}
            for a in found
        ])  # fmt: skip
        return
    columns = [
        Column(title="number", keep=3), Column(title="analysis", keep=9), Column(title="what", keep=5, shrink=True),
        Column(title="options", keep=2, shrink=True),
    ]  # fmt: skip
    print_table(console(), columns, [(a.number, a.name, a.title, ", ".join(a.options)) for a in found])


@command
def analyze(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run ids, unique beginnings of them, or 'latest', the default."),
    ] = None,
    *,
    analysis: Annotated[
        str | None, typer.Option("--analysis", "-a", help="Name or number (A1 to A15); without it they are listed.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the analysis.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Rows at most; default 20, all as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Analyse stored runs across the stack; without --analysis, list what can be asked.

    --json: {"analysis", "number": "A3" or null, "title", "runs": [id], "attrs": {}, "units": {VARIABLE: unit},
    "scalars": {VARIABLE: value}, "tables": {DIMENSION: {"count", "rows": [{DIMENSION: label, VARIABLE: value}]}}};
    times in ns, null where a value is unknown. The list: [{"name", "number", "title", "several_runs", "options"}].
    """
    if analysis is None:
        _list(as_json)
        return
    from mlscope_lab.analysis import registry
    from mlscope_lab.config import load_settings
    from mlscope_lab.store import Store

    described = registry.find(analysis)
    options = dict(_option(text) for text in option or [])
    store = Store(load_settings().runs)
    ids = [store.resolve(run) for run in runs or ["latest"]]
    data = registry.analyze([store.open(run) for run in ids], described.name, **options)
    found = as_tables(data, limit if limit is not None or as_json else 20)
    if as_json:
        number = described.number or None
        emit_json({"analysis": described.name, "number": number, "title": described.title, "runs": ids, **found})
        return
    out = console()
    heading(out, f"{described.number + ' ' if described.number else ''}{described.title}")
    pairs: list[tuple[str, object]] = [("run", ", ".join(ids))]
    pairs += [(name, value) for name, value in found["attrs"].items()
              if name not in _QUIET and not isinstance(value, dict | list)]  # fmt: skip
    pairs += [
        (name.removesuffix("_ns"), _cell(name, value, found["units"])) for name, value in found["scalars"].items()
    ]
    print_pairs(out, pairs)
    for name, table in found["tables"].items():
        out.print()
        _print_table(out, found, name, table)
