"""Short forms of what a notebook asks of the catalogue and the store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.config import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mlscope_lab.progress import Reporter

__all__ = ["analyze", "delete_run", "export_run", "import_trace", "models", "open_run", "runs"]


def analyze(
    runs: str | xr.DataTree | Sequence[str | xr.DataTree],
    name: str,
    *,
    settings: Settings | None = None,
    **options: Any,
) -> xr.Dataset:
    """Run one of the analyses: A1 to A15 of XSP, their companions, or a plugin's.

    Parameters
    ----------
    runs
        A run, its id or a unique beginning of it, "latest", or several of these.
    name
        Name or number, such as "layer_latency" or "A3"; `mlscope_lab.analysis.registry.analyses` lists them.
    settings
        Default: what the environment says.
    **options
        Keywords of the analysis.

    Raises
    ------
    InputError
        If there is no such analysis or option.
    RunNotFoundError
        If an id is that of no run, or of several.
    SchemaError
        If a run lacks what the analysis needs.
    """
    from mlscope_lab.analysis import registry

    given = [runs] if isinstance(runs, str) or not isinstance(runs, Sequence) else list(runs)
    registry.find(name)  # a misspelt name is said before any run is opened
    trees = [open_run(run, settings=settings) if isinstance(run, str) else run for run in given]
    return registry.analyze(trees, name, **options)


def models(*, settings: Settings | None = None, **filters: Any) -> pd.DataFrame:
    """Return the published models as a table.

    Parameters
    ----------
    settings
        Default: what the environment says.
    **filters
        ``task``, ``framework``, ``format`` or ``search``, see `mlscope_lab.catalog.Catalog.models`.
    """
    import pandas as pd

    from mlscope_lab.catalog import load_catalog

    rows = [
        {
            "name": entry.manifest.name,
            "version": entry.manifest.version,
            "task": entry.manifest.task,
            "formats": ", ".join(source.format for source in entry.manifest.sources),
            "licence": entry.manifest.license,
            "description": entry.manifest.description.strip().split("\n")[0],
        }
        for entry in load_catalog(settings or load_settings()).models(**filters)
    ]
    return pd.DataFrame(rows, columns=["name", "version", "task", "formats", "licence", "description"])


def runs(*, settings: Settings | None = None, **filters: Any) -> pd.DataFrame:
    """Return the stored runs as a table, newest first; filters as for `mlscope_lab.store.Store.runs`."""
    from mlscope_lab.store import Store

    return Store((settings or load_settings()).runs).runs(**filters)


def open_run(run_id: str = "latest", *, settings: Settings | None = None) -> xr.DataTree:
    """Open a stored run lazily.

    Parameters
    ----------
    run_id
        Id, unique beginning of one, or "latest".

    Raises
    ------
    RunNotFoundError
        If none, or several, have that beginning.
    """
    from mlscope_lab.store import Store

    return Store((settings or load_settings()).runs).open(run_id)


def delete_run(run_id: str, *, settings: Settings | None = None) -> None:
    """Delete a stored run.

    Raises
    ------
    RunNotFoundError
        If none, or several, have that beginning.
    """
    from mlscope_lab.store import Store

    Store((settings or load_settings()).runs).delete(run_id)


def import_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word that a caller expects
    save: bool = True,
    max_bytes: int | None = None,
    progress: bool | Reporter | None = None,
    settings: Settings | None = None,
) -> xr.DataTree:
    """Read a trace that another tool made, and store it as a run.

    Parameters
    ----------
    path
        A file, gzip or not: a trace of PyTorch's profiler, or in any other of `mlscope_lab.trace.importers.formats`.
    format
        One of those; default what the content says.
    save
        Store it. The run that is returned is read from the store then, lazily.
    max_bytes
        The most bytes that the trace may have once decompressed, default 4 GiB.
    progress
        True, False, a reporter, or None: a line of text where somebody looks at it.

    Returns
    -------
    xarray.DataTree
        The run, ``origin`` "imported".

    Raises
    ------
    InputError
        If the file is no trace, is damaged, or is larger than allowed.
    """
    from mlscope_lab.progress import reporter
    from mlscope_lab.store import Store
    from mlscope_lab.trace.importers import MAX_BYTES
    from mlscope_lab.trace.importers import import_trace as read_trace

    with reporter(progress, total=1, title="importing") as report:
        name = os.fspath(path)
        run = read_trace(
            path, format=format, max_bytes=MAX_BYTES if max_bytes is None else max_bytes,
            progress=lambda done, size: report.bytes(done, size, name),
        )  # fmt: skip
        if not save:
            return run
        report.stage("storing")
        store = Store((settings or load_settings()).runs)
        run_id = store.save(run)
    del run
    return store.open(run_id)


def export_run(
    run: xr.DataTree | str,
    path: str | os.PathLike[str],
    format: str,  # noqa: A002 - the word that a caller expects
    *,
    settings: Settings | None = None,
) -> list[Path | str]:
    """Write a run in another form.

    Parameters
    ----------
    run
        A run, or the id of a stored one (a unique beginning of it, or "latest").
    path
        A file; for "parquet" a folder, for "otlp" the address of a collector such as ``http://localhost:4318``.
    format
        "netcdf", "parquet", "perfetto" (or "chrome"), "speedscope" or "otlp".

    Returns
    -------
    list
        The files written, or the address that took the run.

    Raises
    ------
    InputError
        If the format is unknown, or the run lacks what it shows.
    StoreError
        If it cannot be written; nothing half-written is left behind.
    """
    from mlscope_lab.errors import InputError, nearest
    from mlscope_lab.store.exports import to_netcdf, to_parquet
    from mlscope_lab.trace.exporters import EXPORTERS, export_trace

    known = ["netcdf", "parquet", *EXPORTERS]
    if format not in known:
        raise InputError(f"Unknown format '{format}'. Known: {', '.join(known)}.{nearest(format, known)}")
    tree = open_run(run, settings=settings) if isinstance(run, str) else run
    if format == "netcdf":
        return [to_netcdf(tree, path)]
    if format == "parquet":
        return [*to_parquet(tree, path)]
    return export_trace(tree, path, format)
