"""The work below the layers: device kernels, or what stands for them in a run that has none.

The analyses of kernels run on any run. Where nothing was recorded on a device they work on counter ranges, and where
there are none of these on operators, each with the time that its enclosed operators leave to it; `Work.source` says
so. A deeper pass records the levels above it, too, so only the passes that trace least are looked at: what a deeper
one adds would count to the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.counters import metrics_of
from mlscope_lab.analysis.intervals import ancestors_with, exclusive_ns
from mlscope_lab.analysis.tables import NO_LAYER, texts
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "KINDS",
    "Rows",
    "Work",
    "cells_of",
    "events_of",
    "iterations_of",
    "kinds_of",
    "layer_labels",
    "own_parents",
    "work_of",
]

KINDS = ("compute", "communication", "memory", "synchronisation")
"""Of work on a device. Waiting for an event is no work; it has a kind of its own, so that no sum takes it for one."""

_MOST_CELLS = 1 << 26
_SOURCES = {
    schema.KERNELS: "kernels: work on the device",
    schema.COUNTERS: "counters: ranges measured around each kernel, because the run holds no device kernels",
    schema.OPERATORS: "operators: no device kernels in this run; each operator counts with its exclusive time",
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one group of events that an analysis looks at.

    Attributes
    ----------
    group
        Name of the group.
    data
        The group.
    rows
        Indices of the chosen rows, or None for all.
    level
        Trace level of the passes that they come from.
    """

    group: str
    data: xr.Dataset
    rows: npt.NDArray[np.intp] | None
    level: str

    def __len__(self) -> int:
        return int(self.data.sizes[schema.EVENT_DIMS[self.group]]) if self.rows is None else len(self.rows)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of the chosen rows; all -1 (NaN for floats) where the run does not have it."""
        if name not in self.data.variables:
            dtype = np.dtype(schema.dtype_of(self.group, name))
            return np.full(len(self), np.nan if dtype.kind == "f" else -1, dtype=dtype)
        values = self.data.variables[name].values
        return values if self.rows is None else values[self.rows]

    def table(self, name: str) -> npt.NDArray[np.object_]:
        """Return the texts that a coded column refers to, with "" appended, which -1 finds."""
        return texts([*self.data.variables[f"{name}_table"].values, ""])


def _depths(run: xr.DataTree) -> npt.NDArray[np.int64]:
    levels = run.children[schema.PASSES].dataset["level"].values
    return np.array([schema.LEVELS.index(level) for level in levels], dtype=np.int64)


def events_of(
    run: xr.DataTree, group: str, *, deepest: bool = False, of_pass: int | None = None
) -> Rows | None:  # fmt: skip
    """Return the events of a group in the passes that trace least, or most; None where there are none.

    Parameters
    ----------
    run
        A run.
    group
        Such as "kernels".
    deepest
        Take the passes that trace most.
    of_pass
        Take this pass, whatever its level.
    """
    node = run.children.get(group)
    if node is None or not node.dataset.sizes.get(schema.EVENT_DIMS[group]):
        return None
    data = node.dataset
    passes = data.variables["pass_index"].values
    depth = _depths(run)
    used = np.flatnonzero(np.bincount(passes, minlength=len(depth)))
    if of_pass is not None:
        wanted, chosen = depth[of_pass], np.arange(len(depth)) == of_pass
    else:
        wanted = depth[used].max() if deepest else depth[used].min()
        chosen = depth == wanted
    rows = None if chosen[used].all() else np.flatnonzero(chosen[passes])
    return Rows(group=group, data=data, rows=rows, level=schema.LEVELS[int(wanted)])


def kinds_of(names: npt.NDArray[Any], categories: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return for each name the kind that it tells, and for each category that one's; -1 where it tells none.

    A category counts for more than a name: see `Work.kind`.
    """

    def by_name(name: str) -> int:
        low = name.lower()
        if low.startswith(("memcpy", "memset")):
            return KINDS.index("memory")
        return KINDS.index("communication") if "nccl" in low or "rccl" in low else -1

    def by_category(category: str) -> int:
        low = category.lower()
        if "memcpy" in low or "memset" in low:
            return KINDS.index("memory")
        return KINDS.index("synchronisation") if "sync" in low else -1

    return (
        np.array([by_name(name) for name in names], dtype=np.int8),
        np.array([by_category(category) for category in categories], dtype=np.int8),
    )


def layer_labels(run: xr.DataTree) -> npt.NDArray[np.object_]:
    """Return the labels of a run's layers, with `NO_LAYER` appended, which -1 finds."""
    node = run.children.get(schema.LAYERS)
    return texts([*(() if node is None else node.dataset["name"].values), NO_LAYER])


@dataclass(frozen=True, kw_only=True)
class Work:
    """Kernels, or what stands for them, one entry each.

    Attributes
    ----------
    group
        "kernels", "counters" or "operators".
    source
        What this is, in words.
    rows
        The events.
    names
        Texts that `name` numbers, "" appended.
    layers
        Labels that `layer` numbers, `NO_LAYER` appended.
    start, duration
        int64 ns (N,). For an operator the duration is its exclusive time.
    name, layer
        Positions in `names` and `layers`, -1 for none.
    iteration
        Number of the iteration among all of the chosen passes, -1 outside. Where none is marked, the whole is one.
    iterations
        How many there are.
    marked
        Whether iterations are marked.
    """

    group: str
    source: str
    rows: Rows
    names: npt.NDArray[np.object_]
    layers: npt.NDArray[np.object_]
    start: npt.NDArray[np.int64]
    duration: npt.NDArray[np.int64]
    name: npt.NDArray[np.int32]
    layer: npt.NDArray[np.int32]
    iteration: npt.NDArray[np.int64]
    iterations: int
    marked: bool = True

    def __len__(self) -> int:
        return len(self.start)

    @property
    def unit(self) -> str:
        """What one entry is called: "kernel" or "operator"."""
        return "operator" if self.group == schema.OPERATORS else "kernel"

    @property
    def length(self) -> npt.NDArray[np.int64]:
        """Durations as recorded: of an operator with what it encloses."""
        return self.rows.column("duration_ns") if self.group == schema.OPERATORS else self.duration

    @cached_property
    def groups(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
        """What entries of one kind share, as positions and the texts that these number, "" the last.

        A kernel's name; of an operator its type where the tool tells one ("Conv"), since its name may be that of a node
        that exists once.
        """
        last = len(self.names) - 1
        name = np.where(self.name >= 0, self.name, last).astype(np.int64)
        if self.group != schema.OPERATORS or "type_code" not in self.rows.data.variables:
            return name, self.names
        types = self.rows.table("type")[:-1]
        kind = self.rows.column("type_code")
        return np.where(kind >= 0, kind, len(types) + name).astype(np.int64), texts([*types, *self.names])

    @cached_property
    def kind(self) -> npt.NDArray[np.int8]:
        """Position in `KINDS` of each entry."""
        if self.group != schema.KERNELS:
            categories, code = texts([""]), np.full(len(self), -1)
        else:
            categories, code = self.rows.table("category"), self.rows.column("category_code")
        by_name, by_category = kinds_of(self.names, categories)
        of_category = by_category[code]
        found = np.where(of_category >= 0, of_category, np.maximum(by_name[self.name], 0))
        return np.asarray(found, dtype=np.int8)

    @cached_property
    def metrics(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """Those of `mlscope_lab.analysis.counters.METRICS` that were recorded, float64 (N,), NaN where unknown."""
        if self.group != schema.OPERATORS:
            return metrics_of(self.rows)
        if "flops" not in self.rows.data.variables:
            return {}
        flops = self.rows.column("flops")
        counted = flops >= 0
        # an operator that calls another one that is counted, too, says the same work again
        counted &= ~ancestors_with(counted, own_parents(self.rows))
        return {"flops": np.where(counted, flops, np.nan)} if counted.any() else {}


def own_parents(rows: Rows) -> npt.NDArray[np.int64]:
    """Return parents as positions among the chosen rows."""
    parent = rows.column("parent_index").astype(np.int64)
    if rows.rows is None:
        return parent
    place = np.full(rows.data.sizes[schema.EVENT_DIMS[rows.group]] + 1, -1, dtype=np.int64)  # -1 finds the last
    place[rows.rows] = np.arange(len(rows.rows))
    return place[parent]


def iterations_of(rows: Rows) -> tuple[npt.NDArray[np.int64], int, bool]:
    """Return the number of each row's iteration, how many there are, and whether any is marked."""
    if "iteration" not in rows.data.variables:
        return np.zeros(len(rows), dtype=np.int64), 1, False
    own = rows.column("iteration").astype(np.int64)
    width = int(own.max(initial=-1)) + 1
    if not width:
        return np.zeros(len(rows), dtype=np.int64), 1, False
    place = rows.column("pass_index").astype(np.int64) * width + own
    inside = own >= 0
    if int(place.max()) > 4 * len(place) + 1024:  # numbers as large as a foreign trace likes
        used, number = np.unique(np.where(inside, place, -1), return_inverse=True)
        none = int(used[0] < 0)
        return np.where(inside, number - none, -1).astype(np.int64), len(used) - none, True
    seen = np.bincount(place[inside]) > 0
    number = np.cumsum(seen) - 1
    return np.where(inside, number[np.where(inside, place, 0)], -1), int(seen.sum()), True


def cells_of(iterations: int, groups: int) -> int:
    """Return the cells of a table of iterations by groups, of which a median is to be taken.

    Raises
    ------
    InputError
        If they would not fit into a sane amount of memory.
    """
    if iterations * groups > _MOST_CELLS:
        raise InputError(
            f"A table of {iterations} iterations by {groups} rows is too large to be summarised (at most {_MOST_CELLS} "
            "cells); import a part of the trace, or profile fewer iterations"
        )
    return iterations * groups


def _layers_of(rows: Rows, run: xr.DataTree) -> npt.NDArray[np.int32]:
    """Return the layer of each row; a counter range has that of its kernel, or of the launch of its correlation."""
    if rows.group != schema.COUNTERS:
        return rows.column("layer_index").astype(np.int32)
    found = np.full(len(rows), -1, dtype=np.int32)
    kernels = run.children.get(schema.KERNELS)
    if kernels is not None and kernels.dataset.sizes.get("kernel"):
        layer = np.append(kernels.dataset["layer_index"].values, np.int32(-1))
        found = layer[rows.column("kernel_index")]
    return found


def _around_kernels(rows: Rows) -> Rows | None:
    """Leave out the ranges that count the whole process: they are no kernel's; None if these are all."""
    process = np.flatnonzero(rows.table("category") == "process")
    here = np.flatnonzero(~np.isin(rows.column("category_code"), process))
    if len(here) == len(rows):
        return rows
    return replace(rows, rows=here if rows.rows is None else rows.rows[here]) if len(here) else None


def work_of(run: xr.DataTree, *, group: str | None = None, deepest: bool = False) -> Work:
    """Return the kernels of a run, or what stands for them.

    Parameters
    ----------
    run
        A run recorded at level "operator" or deeper, or a trace that holds operators or kernels.
    group
        Ask for one of "kernels", "counters", "operators" alone.
    deepest
        Take the passes that trace most, as counters come from these.

    Raises
    ------
    SchemaError
        If the run has none of them.
    """
    for name in _SOURCES if group is None else (group,):
        rows = events_of(run, name, deepest=deepest)
        if rows is not None and name == schema.COUNTERS:
            rows = _around_kernels(rows)
        if rows is None:
            continue
        start, duration = rows.column("start_ns"), rows.column("duration_ns")
        if name == schema.OPERATORS:
            duration = exclusive_ns(start, duration, own_parents(rows))
        iteration, iterations, marked = iterations_of(rows)
        return Work(
            group=name, source=_SOURCES[name], rows=rows, names=rows.table("name"), layers=layer_labels(run),
            start=start, duration=duration, name=rows.column("name_code"), layer=_layers_of(rows, run),
            iteration=iteration, iterations=iterations, marked=marked,
        )  # fmt: skip
    wanted = "kernels or operators" if group is None else group
    reasons = run.attrs.get("unavailable") or {}
    reason = next((reasons[name] for name in ("kernels", "operators") if name in reasons), "it was not recorded")
    raise SchemaError(
        f"Run {run.attrs.get('run_id', '?')} (level '{run.attrs.get('level', '?')}') has no {wanted}: {reason}. "
        "Profile again with level='operator' or level='kernel', or import a trace that holds them."
    )
