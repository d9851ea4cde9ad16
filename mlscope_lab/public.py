"""Short forms of what a notebook asks of the catalogue and the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlscope_lab.config import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["delete_run", "models", "open_run", "runs"]


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
