"""What a collector is: something that watches the whole process while a pass is measured.

A collector samples or counts what no framework tells: resident memory, power, hardware counters. It runs in the
measuring process, imports numpy and the standard library at most (its device library inside its methods), and hands
over `EventTable`s with times of `time.perf_counter_ns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace.attribution import iteration_at
from mlscope_lab.trace.records import EventTable

__all__ = ["Collector", "Recording"]


class Collector(ABC):
    """Watches the process from `start` to `stop`.

    Attributes
    ----------
    name
        Entry-point name, under which a reason is listed in a run's ``unavailable``.
    levels
        Levels of the passes that it watches. Never "model": headline latency is measured with nothing beside it.
    """

    name: ClassVar[str]
    levels: ClassVar[frozenset[str]] = frozenset({"hardware"})

    def unavailable(self, device: str) -> Mapping[str, str]:
        """Tell what cannot be recorded here: {what: reason}; with its own name as a key it is not started at all."""
        return {}

    @abstractmethod
    def start(self, device: str) -> None:
        """Start; called right before the measured part."""

    @abstractmethod
    def stop(self) -> Mapping[str, EventTable]:
        """Stop and return what was recorded, by group."""


class Recording:
    """Several collectors around one measured part.

    Parameters
    ----------
    collectors
        Those of the pass's level.
    device
        The session's device.
    """

    def __init__(self, collectors: Sequence[Collector], device: str) -> None:
        self._device = device
        self.unavailable: dict[str, str] = {}
        self._waiting: list[Collector] = []
        for collector in collectors:
            reasons = dict(collector.unavailable(device))
            self.unavailable |= reasons
            if collector.name not in reasons:
                self._waiting.append(collector)
        self._running: list[Collector] = []
        self._found: list[tuple[str, EventTable]] = []

    def start(self) -> None:
        """Start all."""
        for collector in self._waiting:
            collector.start(self._device)
            self._running.append(collector)

    def stop(self) -> None:
        """Stop those that were started, the last one first."""
        while self._running:
            self._found += self._running.pop().stop().items()

    def events(self, starts: npt.NDArray[np.int64], durations: npt.NDArray[np.int64]) -> dict[str, EventTable]:
        """Return what was recorded, each event with the iteration during which it happened.

        Parameters
        ----------
        starts, durations
            (I,) of the measured predicts, ns.

        Raises
        ------
        ValueError
            If two collectors recorded the same group.
        """
        events: dict[str, EventTable] = {}
        for group, table in self._found:
            if group in events:
                raise ValueError(f"two collectors recorded the group '{group}'")
            columns: dict[str, Any] = dict(table.columns)
            times = columns.get("time_ns", columns.get("start_ns"))
            if times is not None and "iteration" not in columns and group == "memory":
                columns["iteration"] = iteration_at(times, starts, durations)
            events[group] = replace(table, columns=columns)
        return events
