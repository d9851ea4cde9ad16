"""Comparisons in the store: a folder of their own beside the runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlscope_lab.config import Settings, load_settings
from mlscope_lab.divergence.result import Comparison
from mlscope_lab.divergence.validate import validate_comparison

if TYPE_CHECKING:
    import pandas as pd

    from mlscope_lab.store import Store

__all__ = ["comparisons", "delete_comparison", "open_comparison", "store_of"]


def store_of(settings: Settings) -> Store:
    """Return the store of comparisons."""
    from mlscope_lab.store import Store

    return Store(settings.runs / "comparisons", kind="comparison", check=validate_comparison)


def open_comparison(run_id: str = "latest", *, settings: Settings | None = None) -> Comparison:
    """Open a stored comparison lazily.

    Parameters
    ----------
    run_id
        Id, unique beginning of one, or "latest".

    Raises
    ------
    RunNotFoundError
        If none, or several, have that beginning.
    """
    return Comparison(store_of(settings or load_settings()).open(run_id))


def comparisons(*, settings: Settings | None = None, **filters: Any) -> pd.DataFrame:
    """Return the stored comparisons as a table, newest first; filters as for `mlscope_lab.store.Store.runs`."""
    found = store_of(settings or load_settings()).runs(**filters)
    return found[["created_at", "model", "backend", "status", "device"]]


def delete_comparison(run_id: str, *, settings: Settings | None = None) -> None:
    """Delete a stored comparison.

    Raises
    ------
    RunNotFoundError
        If none, or several, have that beginning.
    """
    store_of(settings or load_settings()).delete(run_id)
