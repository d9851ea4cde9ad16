"""What is recorded of the whole process beside the framework's own traces; see `mlscope_lab.collectors.base`."""

from __future__ import annotations

from mlscope_lab import plugins
from mlscope_lab.collectors.base import Collector

__all__ = ["collectors_for"]


def collectors_for(level: str) -> list[Collector]:
    """Return a fresh collector of each kind that records at a level; most levels have none."""
    found = (cls() for _, cls in plugins.load_all("mlscope_lab.collectors"))
    return [collector for collector in found if level in collector.levels]
