"""Runs made by hand: few events, every number known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mlscope_lab.testing import synthetic_run
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.events import intern_texts
from mlscope_lab.trace.records import EventTable

Rows = Sequence[dict[str, Any]]
WIDE = {"start_ns", "duration_ns", "correlation", "flops", "allocated_bytes", "bytes", "time_ns"}


def event_table(rows: Rows) -> EventTable:
    """Return events from rows; ``name``, ``category``, ``thread`` and ``device_name`` are text."""
    columns: dict[str, Any] = {}
    tables: dict[str, tuple[str, ...]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        assert len(values) == len(rows), key
        if isinstance(values[0], str):
            codes, table = intern_texts(values)
            name = "device" if key == "device_name" else key
            columns[f"{name}_code"], tables[name] = codes, table
        elif isinstance(values[0], float):
            columns[key] = np.array(values, dtype=np.float64)
        else:
            columns[key] = np.array(values, dtype=np.int64 if key in WIDE else np.int32)
    return EventTable(columns=columns, tables=tables)


@pytest.fixture(scope="session")
def imported() -> Callable[..., Any]:
    """Return a maker of runs from rows of events: ``imported(kernels=[...], runtime=[...])``."""

    def make(**groups: Rows) -> Any:
        events = {name: event_table(rows) for name, rows in groups.items()}
        return build_imported(
            attrs={"model": "by hand", "backend": "test"}, events=events, wall_ns=10**9, level="kernel"
        )

    return make


@pytest.fixture(scope="session")
def run() -> Any:
    """Return a run of two processes with every level."""
    return synthetic_run(deep=True)


@pytest.fixture(scope="session")
def flat() -> Any:
    """Return a run of one process with layers and nothing below them."""
    return synthetic_run(processes=1)
