"""Call sites of kernels: the n-th call of a kernel in a layer is the same one in every iteration and pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.statistics import medians_by_group
from mlscope_lab.analysis.work import Work

__all__ = ["Sites", "match", "sites_of"]


@dataclass(frozen=True, kw_only=True)
class Sites:
    """The call sites of some work, in order of first start.

    Attributes
    ----------
    site
        (N,) of each entry of the work, -1 outside of iterations.
    first
        (S,) the entry that each site was seen at first.
    name, layer, ordinal
        (S,) what makes a site: name and layer of the work, and the how-manieth call in its iteration it is.
    """

    site: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    name: npt.NDArray[np.int32]
    layer: npt.NDArray[np.int32]
    ordinal: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def medians(
        self, values: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return median, bounds and count of values (N,) by site."""
        inside = self.site >= 0
        return medians_by_group(values[inside], self.site[inside], len(self))

    def of_first(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the value (N,) at the entry that each site was seen at first."""
        return values[self.first]


def sites_of(work: Work) -> Sites:
    """Find the call sites.

    Parameters
    ----------
    work
        Kernels, or what stands for them.
    """
    rows = np.flatnonzero(work.iteration >= 0)
    start = work.start[rows]
    if len(rows) > 1 and not (start[1:] >= start[:-1]).all():
        rows = rows[np.argsort(start, kind="stable")]
    name, layer = work.name[rows].astype(np.int64) + 1, work.layer[rows].astype(np.int64) + 1
    kind = layer * (len(work.names) + 1) + name
    kinds = (len(work.layers) + 1) * (len(work.names) + 1)
    within = work.iteration[rows] * kinds + kind
    order = np.argsort(within, kind="stable")
    ordered = within[order]
    new = np.concatenate([np.ones(min(1, len(rows)), dtype=bool), ordered[1:] != ordered[:-1]])
    begin = np.flatnonzero(new)
    ordinal = np.empty(len(rows), dtype=np.int64)
    ordinal[order] = np.arange(len(rows)) - np.repeat(begin, np.diff(np.append(begin, len(rows))))
    _, first, inverse = np.unique(kind * (int(ordinal.max(initial=0)) + 1) + ordinal, return_index=True,
                                  return_inverse=True)  # fmt: skip
    rank = np.argsort(first, kind="stable")  # `rows` is in order of start, so the first entry is the earliest
    place = np.empty(len(rank), dtype=np.int64)
    place[rank] = np.arange(len(rank))
    site = np.full(len(work), -1, dtype=np.int64)
    site[rows] = place[inverse]
    at = first[rank]
    return Sites(
        site=site, first=rows[at], name=(name[at] - 1).astype(np.int32), layer=(layer[at] - 1).astype(np.int32),
        ordinal=ordinal[at],
    )  # fmt: skip


def match(sites: Sites, work: Work, other: Sites, other_work: Work) -> npt.NDArray[np.int64]:
    """Return for each site of `other` the one of `sites` that it is, -1 for none.

    Parameters
    ----------
    sites, work
        Call sites and what they are of.
    other, other_work
        Those of another pass of the same run, or of the counter ranges around the same kernels.
    """
    if work.group == other_work.group:
        theirs = other.name.astype(np.int64)
    else:  # another table of names
        known = {name: code for code, name in enumerate(work.names[:-1])}
        theirs = np.array([known.get(name, -2) for name in other_work.names[:-1]] + [-1], dtype=np.int64)[other.name]
    depth = 1 + max(int(sites.ordinal.max(initial=0)), int(other.ordinal.max(initial=0)))
    names = len(work.names) + 2

    def key(layer: npt.NDArray[Any], name: npt.NDArray[Any], ordinal: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        place: npt.NDArray[np.int64] = ((layer.astype(np.int64) + 1) * names + name + 2) * depth + ordinal
        return place

    ours = key(sites.layer, sites.name.astype(np.int64), sites.ordinal)
    wanted = key(other.layer, theirs, other.ordinal)
    order = np.argsort(ours, kind="stable")
    if not len(order):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(ours[order], wanted), len(order) - 1)
    found = np.where((ours[order][at] == wanted) & (theirs >= -1), order[at], -1)
    return np.asarray(found, dtype=np.int64)
