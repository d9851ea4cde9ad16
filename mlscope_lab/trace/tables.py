"""Unite the layer tables of several processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace.records import LayerTable

__all__ = ["TEXT_COLUMNS", "unite"]

TEXT_COLUMNS = ("name", "type", "scope", "input_shapes", "output_shapes", "sources")


def _united_names(tables: Sequence[LayerTable]) -> list[str]:
    """Return all names; one that only a later table has follows its predecessor there."""
    names: list[str] = []
    known: set[str] = set()
    for table in tables:
        at = 0
        for name in table.name:
            if name in known:
                at = names.index(name) + 1
            else:
                names.insert(at, name)
                known.add(name)
                at += 1
    return names


def unite(tables: Sequence[tuple[int, LayerTable]]) -> tuple[LayerTable, list[npt.NDArray[np.intp]], list[str]]:
    """Unite layer tables by name.

    Parameters
    ----------
    tables
        Process number and table of each layer pass, at least one.

    Returns
    -------
    table
        Every call site of any table. Where tables describe the same name differently, the first one counts.
    positions
        For each table the index of its rows in the united one.
    warnings
        One sentence for each table whose names or types differ from the first one's.
    """
    process, first = tables[0]
    if all(table == first for _, table in tables[1:]):
        return first, [np.arange(len(first)) for _ in tables], []
    names = _united_names([table for _, table in tables])
    index = {name: i for i, name in enumerate(names)}
    home: dict[str, tuple[LayerTable, int]] = {}
    for _, table in tables:
        for row, name in enumerate(table.name):
            home.setdefault(name, (table, row))
    texts = {
        column: tuple(getattr(table, column)[row] for table, row in (home[name] for name in names))
        for column in TEXT_COLUMNS
    }
    numbers = {
        column: tuple(getattr(table, column)[row] for table, row in (home[name] for name in names))
        for column in ("depth", "parameter_bytes", "activation_bytes")
    }
    parents = []
    for name in names:
        table, row = home[name]
        parent = table.parent[row]
        parents.append(index[table.name[parent]] if parent >= 0 else -1)
    warnings = []
    described = dict(zip(first.name, first.type, strict=True))
    for other, table in tables[1:]:
        types = dict(zip(table.name, table.type, strict=True))
        extra, absent = len(types.keys() - described.keys()), len(described.keys() - types.keys())
        changed = sum(types[name] != described[name] for name in types.keys() & described.keys())
        if extra or absent or changed:
            warnings.append(
                f"The layers of process {other} differ from those of process {process}: {extra} more, {absent} fewer, "
                f"{changed} of another type"
            )
    table = LayerTable(**texts, **numbers, parent=tuple(parents))
    return table, [np.array([index[name] for name in t.name], dtype=np.intp) for _, t in tables], warnings
