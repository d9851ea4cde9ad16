"""Frameworks behind one contract; see `mlscope_lab.backends.base`."""

from __future__ import annotations

from mlscope_lab import plugins
from mlscope_lab.backends.base import Backend

__all__ = ["backend_for", "installed", "load_backend"]

_GROUP = "mlscope_lab.backends"


def load_backend(name: str) -> Backend:
    """Return the backend of that name; the framework itself is not imported.

    Raises
    ------
    PluginError
        If no backend has that name.
    """
    loaded: Backend = plugins.load(_GROUP, name)()
    return loaded


def installed() -> list[str]:
    """Return the names of the backends whose framework is installed."""
    return [name for name, cls in plugins.load_all(_GROUP) if cls().availability().ok]


def backend_for(obj: object) -> Backend | None:
    """Return the backend that takes this live object, or None; nothing is imported that is not loaded already."""
    for _, cls in plugins.load_all(_GROUP):
        backend: Backend = cls()
        if backend.accepts(obj):
            return backend
    return None
