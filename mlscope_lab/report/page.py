"""Runs, or a comparison, as one standalone HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab._version import __version__
from mlscope_lab.divergence.schema import KIND as COMPARISON
from mlscope_lab.divergence.validate import validate_comparison
from mlscope_lab.errors import InputError, RunNotFoundError
from mlscope_lab.report import depth, origins, results
from mlscope_lab.report.comparison_page import comparison_document
from mlscope_lab.report.document import Figures, document, write_page
from mlscope_lab.report.html_ import Html, join, tag
from mlscope_lab.report.units import time_scale
from mlscope_lab.report.view import RunView, view_runs

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["write_report"]


def _title(views: Sequence[RunView]) -> str:
    models = list(dict.fromkeys(str(v.attrs["model"]) for v in views))
    backends = list(dict.fromkeys(v.backend for v in views))
    what = models[0] if len(models) == 1 else f"{len(models)} models"
    if len(backends) == 1:
        return f"{what} on {backends[0]}"
    return f"{what} on {', '.join(backends[:-1])} and {backends[-1]}"


def _lead(views: Sequence[RunView]) -> Html:
    """Return one sentence on what was measured where, and one with the result."""
    first = views[0].attrs
    environment = first["environment"]
    created = sorted(str(v.attrs["created_at"]) for v in views)
    threads = sorted({int(v.attrs["threads"]) for v in views if v.attrs["threads"]})
    batches = sorted({int(v.attrs["batch_size"]) for v in views if v.attrs["batch_size"]})
    facts = [
        created[0][:16].replace("T", " ") + " UTC" if created[0].endswith(("+00:00", "Z")) else created[0][:16],
        str(environment["cpu"]) if environment.get("cpu") else None,
        f"{'/'.join(map(str, threads))} thread{'s' if threads != [1] else ''}" if threads else None,
        f"batch size {'/'.join(map(str, batches))}" if batches else None,
    ]
    measured = [(v, v.summary.sel(stage="predict")) for v in views if v.summary is not None]
    scale = time_scale([float(p["median_ns"]) for _, p in measured])
    said = [
        join([
            tag("strong", scale.text(float(p["median_ns"]))), " ",
            tag("span", scale.interval(float(p["low_ns"]), float(p["high_ns"])), class_="lead")
            if float(p["low_ns"]) == float(p["low_ns"]) else None,
            f" on {v.label}" if len(views) > 1 else " a predict, median with its 95 % interval",
        ])
        for v, p in measured
    ]  # fmt: skip
    answer = [said[0]] if said else []
    for sentence in said[1:]:
        answer += [Html(", "), sentence]
    return join([
        tag("p", " · ".join(f for f in facts if f), class_="lead"),
        tag("p", *answer, ".", class_="answer") if answer else None,
    ])  # fmt: skip


def _document(views: Sequence[RunView], title: str) -> str:
    draw = Figures()
    body = [
        tag("header", tag("h1", title), _lead(views)),
        results.failures_section(views),
        results.latency_section(views, draw),
        results.answers_section(views),
        results.layers_section(views, draw),
        depth.levels_section(views),
        depth.work_section(views),
        origins.warnings_section(views),
        origins.environment_section(views),
        origins.provenance_section(views),
        tag("footer", f"Written by mlscope-lab {__version__}. Medians of untraced predicts; layers come from passes of "
                      "their own, whose cost is given with them. The page needs no network."),
    ]  # fmt: skip
    return document(title, body, draw)


def write_report(what: Any, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write runs, or a comparison, as one HTML page that opens from disk and asks no host for anything.

    Parameters
    ----------
    what
        A run, or several to stand side by side, e.g. one a backend; failed runs and runs without layers are welcome.
        Or a comparison from `mlscope_lab.compare`, or its tree. Or the id of a stored run or comparison.
    path
        File to write, about 5 MB; one that is there is replaced in one step, folders are made.
    title
        Heading; default model and backends.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    InputError
        If there is no run.
    RunNotFoundError
        If neither a run nor a comparison has that id.
    SchemaError
        If a tree is neither a run nor a comparison.
    StoreError
        If the file cannot be written.
    """
    import xarray as xr

    given = _stored(what) if isinstance(what, str) else getattr(what, "tree", what)
    if isinstance(given, xr.DataTree) and given.attrs.get("kind") == COMPARISON:
        return write_page(comparison_document(given, title), path)
    runs = [given] if isinstance(given, xr.DataTree) else list(given)
    if not runs:
        raise InputError("A report needs at least one run: give a run, or a list of runs")
    views = view_runs(runs)
    return write_page(_document(views, title or _title(views)), path)


def _stored(name: str) -> xr.DataTree:
    """Open a stored run or comparison by its id."""
    from mlscope_lab.config import load_settings
    from mlscope_lab.store import Store

    folder = load_settings().runs
    try:
        return Store(folder).open(name)
    except RunNotFoundError:
        beside = Store(folder / "comparisons", kind="comparison", check=validate_comparison)
        try:
            return beside.open(name)
        except RunNotFoundError:
            pass
        raise
