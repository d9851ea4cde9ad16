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
from mlscope_lab.trace.joining import join_tables
from mlscope_lab.trace.records import EventTable

__all__ = ["Collector", "Recording"]


class Collector(ABC):
    """Watches the process from `start` to `stop`.

    Attributes
    ----------
    name
        Entry-point name, under which a reason is listed in a run's ``unavailable``.
    records
        What it records, in words.
    levels
        Levels of the passes that it watches. Never "model": headline latency is measured with nothing beside it.
    missing
        What turned out while recording not to be had: {what: reason}. `start` and `stop` may add to it.
    """

    name: ClassVar[str]
    records: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[frozenset[str]] = frozenset({"hardware"})

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}

    def unavailable(self, device: str) -> Mapping[str, str]:
        """Tell what cannot be recorded here: {what: reason}; with its own name as a key it is not started at all."""
        return {}

    def prepare(self, device: str) -> None:  # noqa: B027 - most have nothing to prepare
        """Measure what must be known beforehand, such as power at rest; called before the warm-up."""

    @abstractmethod
    def start(self, device: str) -> None:
        """Start; called right before the measured part. An `OSError` means that nothing can be recorded."""

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

    Attributes
    ----------
    unavailable
        What could not be recorded: {what: reason}; complete after `stop`.
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

    def prepare(self) -> None:
        """Let all prepare; one that cannot is not started."""
        for collector in list(self._waiting):
            try:
                collector.prepare(self._device)
            except OSError as error:
                self._waiting.remove(collector)
                self.unavailable[collector.name] = str(error)

    def start(self) -> None:
        """Start all; one that cannot is left out, with its reason."""
        for collector in self._waiting:
            try:
                collector.start(self._device)
            except OSError as error:
                self.unavailable[collector.name] = str(error)
            else:
                self._running.append(collector)

    def stop(self) -> None:
        """Stop those that were started, the last one first."""
        while self._running:
            collector = self._running.pop()
            self._found += collector.stop().items()
            self.unavailable |= collector.missing

    def events(self, starts: npt.NDArray[np.int64], durations: npt.NDArray[np.int64]) -> dict[str, EventTable]:
        """Return what was recorded, each sample of memory with the iteration during which it was taken.

        Parameters
        ----------
        starts, durations
            (I,) of the measured predicts, ns.
        """
        events: dict[str, EventTable] = {}
        for group, found in self._found:
            columns: dict[str, Any] = dict(found.columns)
            times = columns.get("time_ns")
            if times is not None and "iteration" not in columns and group == "memory":
                columns["iteration"] = iteration_at(times, starts, durations)
            table = replace(found, columns=columns)
            events[group] = join_tables([events[group], table]) if group in events else table
        return events
