"""From nested calls, timed iteration by iteration, to a layer trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace.records import LayerTable, LayerTrace

__all__ = ["CallSites", "SiteInfo"]


@dataclass(kw_only=True)
class SiteInfo:
    """What is known of a call site beside its times; fields as in `LayerTable`."""

    label: str
    type: str
    scope: str
    parameter_bytes: int
    input_shapes: str = ""
    output_shapes: str = ""
    activation_bytes: int = -1


class CallSites:
    """The call sites seen so far, and the times of every traced iteration.

    A call site is one module (or operator) at its n-th call within one parent call, so that it stays the same row when
    an iteration takes another branch. Sites are numbered as they first appear; an iteration that shows a new one
    enlarges the table.

    Time that a call spends outside the calls it encloses is a row ``<label>.functional`` of type "functional" below it:
    it starts with its parent, lasts for the parent's exclusive time, and carries the parent's own weights. The parent
    keeps its inclusive duration and has ``exclusive_ns`` and ``parameter_bytes`` of 0, so that the exclusive times of
    all rows, and the durations of all rows without children, add up to the root's duration exactly.
    """

    def __init__(self) -> None:
        self.infos: list[SiteInfo] = []
        self._parents: list[int] = []
        self._known: dict[tuple[int, int, int], int] = {}
        self._counts: dict[str, int] = {}
        self._taken: set[str] = set()
        self.own_rows: npt.NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._iterations: list[
            tuple[int, int, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
        ] = []

    def site(self, parent: int, code: int, nth: int, describe: Callable[[int], SiteInfo]) -> int:
        """Return the number of a call site, describing it if it is new.

        Parameters
        ----------
        parent
            Site of the enclosing call, or -1.
        code
            Number of the module or operator.
        nth
            Which call of it within the parent call, from 0.
        describe
            Called with `code` for a new site.
        """
        key = (parent, code, nth)
        found = self._known.get(key)
        if found is None:
            info = describe(code)
            info.label = self._unique(info.label)
            found = self._known[key] = len(self.infos)
            self.infos.append(info)
            self._parents.append(parent)
        return found

    def place(self, codes: Sequence[int], parents: Sequence[int], describe: Callable[[int], SiteInfo]) -> list[int]:
        """Return the sites of the calls of one iteration, in order of their start.

        Parameters
        ----------
        codes
            Number of the module or operator of each call.
        parents
            Position of the enclosing call, which comes before, or -1.
        describe
            As for `site`.
        """
        counts: dict[tuple[int, int], int] = {}
        sites: list[int] = []
        for code, parent in zip(codes, parents, strict=True):
            nth = counts.get((parent, code), 0)
            counts[parent, code] = nth + 1
            sites.append(self.site(sites[parent] if parent >= 0 else -1, code, nth, describe))
        return sites

    def find(self, parent: int, code: int, nth: int) -> SiteInfo | None:
        """Return what is known of a call site that appeared already, else None."""
        number = self._known.get((parent, code, nth))
        return None if number is None else self.infos[number]

    def _unique(self, label: str) -> str:
        count = self._counts.get(label, 0) + 1
        name = label if count == 1 else f"{label}#{count}"
        while name in self._taken:  # an attribute may be called "functional", or hold "#"
            count += 1
            name = f"{label}#{count}"
        self._counts[label] = count
        self._taken.add(name)
        return name

    def add_iteration(
        self,
        start_ns: int,
        duration_ns: int,
        sites: Sequence[int] | npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
    ) -> None:
        """Add one traced predict: its own start and duration, and begin and end of each call by site."""
        self._iterations.append((start_ns, duration_ns, np.asarray(sites, dtype=np.int64), begins, ends))

    def build(
        self,
        *,
        executable_digest: str,
        resolution_ns: int = 1,
        clock_error_ns: int = 0,
        unavailable: dict[str, str] | None = None,
    ) -> LayerTrace:
        """Return the layer trace of all iterations; sites that ran in none of them are left out.

        Afterwards ``own_rows`` holds for each site the row of what it does itself: its "functional" row if it has one,
        else its own; -1 if it was left out.
        """
        count, sites = len(self._iterations), len(self.infos)
        start = np.full((count, sites), -1, dtype=np.int64)
        duration = np.full((count, sites), -1, dtype=np.int64)
        for row, (_, _, ran, begins, ends) in enumerate(self._iterations):
            start[row, ran] = begins
            duration[row, ran] = ends - begins
        kept = [site for site in range(sites) if not count or (duration[:, site] >= 0).any()]
        spent = np.zeros((count, sites), dtype=np.int64)
        for site, parent in enumerate(self._parents):
            if parent >= 0:
                spent[:, parent] += np.maximum(duration[:, site], 0)
        own = np.where(duration >= 0, duration - spent, -1)
        table, columns, functional, container = self._table(kept)
        self.own_rows = np.full(sites, -1, dtype=np.int32)
        self.own_rows[columns[~container]] = np.flatnonzero(~container)
        exclusive = own[:, columns]
        exclusive[:, container] = np.where(exclusive[:, container] >= 0, 0, -1)
        return LayerTrace(
            layers=table,
            start_ns=start[:, columns],
            duration_ns=np.where(functional, own[:, columns], duration[:, columns]),
            exclusive_ns=exclusive,
            iteration_start_ns=np.array([item[0] for item in self._iterations], dtype=np.int64),
            iteration_duration_ns=np.array([item[1] for item in self._iterations], dtype=np.int64),
            resolution_ns=resolution_ns,
            clock_error_ns=clock_error_ns,
            executable_digest=executable_digest,
            unavailable=unavailable or {},
        )

    def _table(
        self, kept: list[int]
    ) -> tuple[LayerTable, npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Lay out the rows; with, per row, the site it is taken from and whether it is functional or a container."""
        containers = {self._parents[site] for site in kept} - {-1}
        row_of: dict[int, int] = {}
        columns: list[int] = []
        is_functional: list[bool] = []
        for site in kept:
            row_of[site] = len(columns)
            columns.append(site)
            is_functional.append(False)
            if site in containers:
                columns.append(site)
                is_functional.append(True)
        rows = list(zip(columns, is_functional, strict=True))
        depth: list[int] = []
        for parent in self._parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        infos, blank = self.infos, SiteInfo(label="", type="functional", scope="", parameter_bytes=0)
        told = [blank if own else infos[site] for site, own in rows]
        table = LayerTable(
            name=tuple(self._unique(infos[s].label + ".functional") if own else infos[s].label for s, own in rows),
            type=tuple(info.type for info in told),
            scope=tuple(infos[site].scope for site in columns),
            parent=tuple(
                row_of[s] if own else row_of[self._parents[s]] if self._parents[s] >= 0 else -1 for s, own in rows
            ),
            depth=tuple(depth[site] + own for site, own in rows),
            input_shapes=tuple(info.input_shapes for info in told),
            output_shapes=tuple(info.output_shapes for info in told),
            parameter_bytes=tuple(0 if s in containers and not own else infos[s].parameter_bytes for s, own in rows),
            activation_bytes=tuple(info.activation_bytes for info in told),
            sources=("",) * len(rows),
        )
        functional = np.array(is_functional, dtype=bool)
        container = np.array([site in containers and not own for site, own in rows], dtype=bool)
        return table, np.array(columns, dtype=np.int64), functional, container
