"""Put the events of several passes into the groups of a run: one table a group, text interned, indices shifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema
from mlscope_lab.trace.records import EventTable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PassEvents", "attrs_of_pass", "datasets_of", "intern_texts", "table_of"]

_LONG_NAMES = {
    "address": "address of the allocation",
    "allocated_bytes": "bytes allocated after the event, or by it (-1: unknown)",
    "bytes": "bytes that the event allocated (negative: freed)",
    "category_code": "position of the category in category_table",
    "context": "device context",
    "correlation": "identifier that a launch and what it launched share (-1: none)",
    "device": "number of the device (-1: the host)",
    "device_code": "position of the device in device_table",
    "duration_ns": "duration",
    "energy_joules": "energy used since the start of the pass",
    "flops": "floating point operations (-1: unknown)",
    "input_bytes": "size of the operator's inputs that are no weights (-1: unknown)",
    "iteration": "measured iteration of the pass (-1: none)",
    "kernel_index": "index into /kernels (-1: none)",
    "kind_code": "position of the kind in kind_table",
    "layer_index": "index into /layers (-1: belongs to no layer)",
    "memory_clock_hz": "clock of the device's memory",
    "name_code": "position of the name in name_table",
    "occupancy": "estimated achieved occupancy",
    "operator_index": "index into /operators (-1: none)",
    "output_bytes": "size of the operator's outputs (-1: unknown)",
    "parameter_bytes": "size of the operator's weights (-1: unknown)",
    "parent_index": "index of the innermost enclosing event of this group (-1: none)",
    "pass_index": "index into /passes",
    "power_watts": "power drawn",
    "registers": "registers a thread",
    "reserved_bytes": "bytes that the allocator holds (-1: unknown)",
    "runtime_index": "index into /runtime of the launch (-1: none)",
    "sequence": "number that a forward operator and its backward share (-1: none)",
    "shapes_code": "position of the inputs' types and shapes in shapes_table (-1: unknown)",
    "shared_memory_bytes": "shared memory a block (-1: unknown)",
    "size_bytes": "bytes copied or set (-1: not a copy)",
    "sm_clock_hz": "clock of the device's multiprocessors",
    "source_index": "index of the event that the link comes from (-1: not recorded)",
    "start_ns": "start since the start of the pass",
    "stream": "stream of the device (-1: none)",
    "target_index": "index of the event that the link goes to (-1: not recorded)",
    "temperature_celsius": "temperature of the device",
    "thread_code": "position of the thread in thread_table",
    "throttle_reasons": "bit mask of NVML's clock event reasons",
    "time_ns": "time since the start of the pass",
    "type_code": "position of the framework's operation in type_table (-1: unknown)",
    "utilization": "share of the time in which the device was busy",
}
_NEEDED = frozenset({"start_ns", "duration_ns", "time_ns"})


@dataclass(frozen=True, kw_only=True)
class PassEvents:
    """What one pass recorded below its layers.

    Attributes
    ----------
    pass_index
        Index of the pass.
    anchor_ns
        What to subtract from its times.
    groups
        Events by group.
    layer_positions
        For each row of the pass's own layer table the row of ``/layers``; None if the indices are right already.
    """

    pass_index: int
    anchor_ns: int
    groups: Mapping[str, EventTable] = field(default_factory=dict)
    layer_positions: npt.NDArray[np.intp] | None = None


def intern_texts(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return codes and the table of distinct texts, in order of first appearance.

    Examples
    --------
    >>> intern_texts(["b", "a", "b"])
    (array([0, 1, 0], dtype=int32), ('b', 'a'))
    """
    table: dict[str, int] = {}
    codes = np.fromiter((table.setdefault(text, len(table)) for text in texts), dtype=np.int32, count=len(texts))
    return codes, tuple(table)


def table_of(data: xr.Dataset, column: str) -> list[str]:
    """Return the text of a coded column, one entry an event; "" where the code is -1.

    Parameters
    ----------
    data
        A group of events.
    column
        Name without suffix, such as "name".
    """
    table = np.append(data[f"{column}_table"].values.astype(object), "")  # -1 finds the last entry
    return list(table[data[f"{column}_code"].values])


def attrs_of_pass(data: xr.Dataset, pass_index: int) -> dict[str, Any]:
    """Return a group's attributes as they hold for one pass."""
    attrs: dict[str, Any] = {str(key): value for key, value in data.attrs.items()}
    by_pass = attrs.pop("by_pass", {})
    return {**attrs, **by_pass.get(str(pass_index), {})}


def _shift(values: npt.NDArray[Any], offset: int | npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Add an offset to the indices that are not -1."""
    return values if not np.any(offset) else np.where(values >= 0, values + np.asarray(offset, np.int32), values)


class _Group:
    """One group's events of all passes."""

    def __init__(self, name: str, passes: Sequence[PassEvents]) -> None:
        self.name = name
        self.dim = schema.EVENT_DIMS[name]
        self.passes = [p for p in passes if name in p.groups]
        self.tables = [p.groups[name] for p in self.passes]
        self.sizes = [len(table) for table in self.tables]
        required = [c for c, dims in schema.GROUPS[name].items() if dims == (self.dim,) and c != "pass_index"]
        extra = [c for table in self.tables for c in table.columns if c not in required]
        self.columns = list(dict.fromkeys([*required, *extra]))
        for table in self.tables:
            missing = [c for c in required if c in _NEEDED and c not in table.columns]
            if missing:
                raise SchemaError(f"Events of /{name} lack {', '.join(missing)}")

    def texts(self, table: str) -> tuple[tuple[str, ...], list[npt.NDArray[np.int32]]]:
        """Return the united table and for each pass the new codes of its own."""
        united: dict[str, int] = {}
        places = []
        for source in self.tables:
            own = source.tables.get(table, ())
            places.append(np.array([united.setdefault(t, len(united)) for t in own], dtype=np.int32))
        return tuple(united), places

    def column(self, column: str, offsets: Mapping[str, Sequence[int]]) -> npt.NDArray[Any]:
        dtype = np.dtype(schema.dtype_of(self.name, column))
        parts: list[npt.NDArray[Any]] = []
        codes = self.texts(column.removesuffix("_code"))[1] if column.endswith("_code") else []
        for number, (source, events) in enumerate(zip(self.tables, self.passes, strict=True)):
            values = source.columns.get(column)
            if values is None:
                parts.append(np.full(len(source), np.nan if dtype.kind == "f" else -1, dtype=dtype))
                continue
            if codes:
                place = np.append(codes[number], np.int32(-1))  # -1 stays -1
                values = place[values] if not np.array_equal(place[:-1], np.arange(len(place) - 1)) else values
            elif column in {"start_ns", "time_ns"}:
                values = values - events.anchor_ns if events.anchor_ns else values
            elif column == "layer_index" and events.layer_positions is not None:
                values = np.append(events.layer_positions, -1)[values]
            elif column.endswith("_index") and column != "layer_index":
                values = _shift(values, self._offset(column, events.pass_index, offsets, source))
            parts.append(np.asarray(values, dtype=dtype))
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])

    def _offset(
        self, column: str, pass_index: int, offsets: Mapping[str, Sequence[int]], source: EventTable
    ) -> int | npt.NDArray[np.int32]:
        """Return what to add to a column's indices; for links one number an event, by what its kind links."""
        if column in {"source_index", "target_index"}:
            codes = source.columns.get("kind_code")
            if not pass_index or codes is None:
                return 0
            kinds = source.tables.get("kind", ())
            if unknown := [kind for kind in kinds if kind not in schema.LINK_KINDS]:
                raise SchemaError(f"Unknown kind of link '{unknown[0]}'. Known: {', '.join(schema.LINK_KINDS)}")
            side = 0 if column == "source_index" else 1
            targets = [schema.LINK_KINDS[kind][side] for kind in kinds]
            steps = [offsets[target][pass_index] if target in offsets else 0 for target in targets]
            shifts: npt.NDArray[np.int32] = np.array([*steps, 0], dtype=np.int32)[codes]
            return shifts
        target = self.name if column == "parent_index" else schema.INDEX_TARGETS[column]
        return offsets[target][pass_index] if target in offsets else 0

    def dataset(self, offsets: Mapping[str, Sequence[int]], provenance: str) -> xr.Dataset:
        import xarray as xr

        variables: dict[str, Any] = {}
        indices = np.array([p.pass_index for p in self.passes], dtype=np.int32)
        columns = {"pass_index": np.repeat(indices, self.sizes)}
        columns |= {column: self.column(column, offsets) for column in self.columns}
        for column, values in columns.items():
            variables[column] = ((self.dim,), values, self._attrs(column, provenance))
        for name in dict.fromkeys([*schema.TABLES[self.name], *(t for table in self.tables for t in table.tables)]):
            united, _ = self.texts(name)
            texts = np.empty(len(united), dtype=object)
            texts[:] = united
            dims = (f"{self.dim}_{name}",)
            variables[f"{name}_table"] = (dims, texts, self._attrs(f"{name}_table", provenance))
        return xr.Dataset(variables, attrs=self._own_attrs())

    def _own_attrs(self) -> dict[str, Any]:
        """Return the attributes of the group: those that differ between passes stand in ``by_pass``, by index."""
        attrs = {key: value for table in self.tables for key, value in table.attrs.items()}
        absent = object()
        differing = {key for key, value in attrs.items() if any(t.attrs.get(key, absent) != value for t in self.tables)}
        by_pass = {
            str(events.pass_index): own
            for events, table in zip(self.passes, self.tables, strict=True)
            if (own := {key: value for key, value in table.attrs.items() if key in differing})
        }
        shared = {key: value for key, value in attrs.items() if key not in differing}
        return {**shared, "by_pass": by_pass} if by_pass else shared

    def _attrs(self, column: str, provenance: str) -> dict[str, str]:
        if column.endswith("_table"):
            return {"units": "1", "long_name": f"distinct values of {column[:-6]}_code", "provenance": provenance}
        given = next((t.variable_attrs[column] for t in self.tables if column in t.variable_attrs), {})
        derived = column.endswith("_index") or column == "iteration"
        return {
            "units": schema.units_of(column) or "1",
            "long_name": _LONG_NAMES.get(column, column),
            "provenance": "derived" if derived and provenance == "measured" else provenance,
            **given,
        }


def datasets_of(passes: Sequence[PassEvents], *, provenance: str = "measured") -> dict[str, xr.Dataset]:
    """Return the groups of events of a run.

    Parameters
    ----------
    passes
        In the order of their index.
    provenance
        "measured" or "imported".

    Returns
    -------
    dict
        {group: dataset} for each group that any pass recorded, also where it recorded no events.

    Raises
    ------
    SchemaError
        If a group is unknown, or a table lacks its times.
    """
    recorded = list(dict.fromkeys(name for p in passes for name in p.groups))
    if unknown := [name for name in recorded if name not in schema.EVENT_DIMS]:
        raise SchemaError(f"Unknown group of events /{unknown[0]}. Known: {', '.join(schema.EVENT_DIMS)}")
    last = 1 + max((p.pass_index for p in passes), default=0)
    offsets: dict[str, list[int]] = {}
    for name in recorded:
        before, offsets[name] = 0, [0] * last
        for events in passes:
            offsets[name][events.pass_index] = before
            before += len(events.groups.get(name, ()))
    return {name: _Group(name, passes).dataset(offsets, provenance) for name in schema.EVENT_GROUPS if name in recorded}
