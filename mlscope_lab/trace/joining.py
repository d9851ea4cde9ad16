"""Join what several sources recorded of one group in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace.records import EventTable

__all__ = ["join_attrs", "join_tables"]

_TIMES = ("time_ns", "start_ns")


def join_attrs(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the attributes of all parts; mappings under one name are joined, else the last one counts.

    Examples
    --------
    >>> join_attrs([{"idle_watts": {"package-0": 3.0}}, {"idle_watts": {"cuda:0": 40.0}}])
    {'idle_watts': {'package-0': 3.0, 'cuda:0': 40.0}}
    """
    joined: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            have = joined.get(key)
            both = isinstance(have, Mapping) and isinstance(value, Mapping)
            joined[key] = {**have, **value} if both else value  # type: ignore[dict-item]
    return joined


def join_tables(tables: Sequence[EventTable]) -> EventTable:
    """Return the events of all tables of one group, in order of time.

    Parameters
    ----------
    tables
        At least one. Their events must not refer to each other (``parent_index``): rows move.

    Returns
    -------
    EventTable
        Columns that a table lacks are -1 there, or NaN where they hold floats.
    """
    if len(tables) == 1:
        return tables[0]
    if any("parent_index" in table.columns for table in tables):
        raise ValueError("events that refer to their parents cannot be joined with others")
    texts: dict[str, dict[str, int]] = {}
    for table in tables:
        for name, entries in table.tables.items():
            known = texts.setdefault(name, {})
            for entry in entries:
                known.setdefault(entry, len(known))
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    columns = {name: np.concatenate([_column(table, name, tables, texts) for table in tables]) for name in names}
    times = next((columns[name] for name in _TIMES if name in columns), None)
    if times is not None and np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
    return EventTable(
        columns=columns,
        tables={name: tuple(known) for name, known in texts.items()},
        attrs=join_attrs([table.attrs for table in tables]),
        variable_attrs={name: attrs for table in tables for name, attrs in table.variable_attrs.items()},
    )


def _column(
    table: EventTable, name: str, tables: Sequence[EventTable], texts: Mapping[str, Mapping[str, int]]
) -> npt.NDArray[Any]:
    values = table.columns.get(name)
    if values is None:
        dtype = next(other.columns[name].dtype for other in tables if name in other.columns)
        return np.full(len(table), np.nan if dtype.kind == "f" else -1, dtype=dtype)
    if name.endswith("_code"):
        known = texts[name.removesuffix("_code")]
        own = table.tables[name.removesuffix("_code")]
        places: npt.NDArray[Any] = np.array([*(known[entry] for entry in own), -1], dtype=np.int32)[values]
        return places
    return values
