"""Layers by type (A5, A6 and A7 of XSP, arXiv 1908.06869)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import sum_by_group
from mlscope_lab.analysis.layers import layer_data, median_shares, remainder
from mlscope_lab.analysis.memory import allocated_by_layer
from mlscope_lab.analysis.statistics import median_bounds
from mlscope_lab.analysis.tables import NO_LAYER, run_attrs, share_of, table, texts
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["latency_by_type", "layer_types", "memory_by_type"]


def _types(data: xr.Dataset) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.intp]]:
    """Return the types in order of first appearance, and the number of each layer's."""
    known: dict[str, int] = {}
    number = np.array([known.setdefault(str(t), len(known)) for t in data["type"].values], dtype=np.intp)
    return texts(list(known)), number


def layer_types(run: xr.DataTree) -> xr.Dataset:
    """Count the layers of each type: A5, the layer type distribution.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``type``, most frequent first: ``count`` of call sites, and ``share`` of all. Containers count, too, as
        the type that they are; ``containers`` says how many of the count enclose others.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    names, number = _types(data)
    count = np.bincount(number, minlength=len(names))
    parent = data["parent"].values
    outer = np.unique(parent[parent >= 0])
    containers = np.bincount(number[outer], minlength=len(names))
    order = np.argsort(-count, kind="stable")
    columns = {"count": count[order], "share": share_of(count)[order], "containers": containers[order]}
    return table("type", names[order], columns, attrs=run_attrs(run))


def latency_by_type(run: xr.DataTree) -> xr.Dataset:
    """Sum the latency of the layers of each type: A6, the layer latency aggregated by type.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``type``, longest first: ``exclusive_ns`` (sum over the layers of a type of their exclusive times in an
        iteration, median over iterations) with 95 % bounds ``low_ns`` and ``high_ns``, ``share`` of the traced
        predict, ``count`` of call sites. The last rows are "(no layer)" and "(overlap)", as in
        `mlscope_lab.analysis.layers.layer_latency`: in each iteration all rows sum to the traced predict.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    names, number = _types(data)
    exclusive = np.where(data["start_ns"].values >= 0, data["exclusive_ns"].values, 0)
    iterations = len(exclusive)
    if not iterations:
        raise InputError(f"Run {run.attrs.get('run_id', '?')} holds no traced predict")
    group = np.arange(iterations)[:, None] * len(names) + number
    sums = sum_by_group(exclusive.ravel(), group.ravel(), iterations * len(names)).reshape(iterations, len(names))
    more, rest, found = remainder(data)
    median = np.median(sums, axis=0)
    order = np.argsort(-median, kind="stable")
    sums = np.concatenate([sums[:, order], rest], axis=1)
    low, high = median_bounds(sums)
    columns: dict[str, Any] = {
        "exclusive_ns": np.median(sums, axis=0), "low_ns": low, "high_ns": high,
        "share": median_shares(sums, found.whole),
        "count": np.append(np.bincount(number, minlength=len(names))[order], [0, 0]),
    }  # fmt: skip
    return table("type", texts([*names[order], *more]), columns,
                 scalars={"pass_ns": float(np.median(found.whole))},
                 attrs=run_attrs(run, confidence=0.95, iterations=iterations))  # fmt: skip


def memory_by_type(run: xr.DataTree) -> xr.Dataset:
    """Sum the memory of the layers of each type: A7, the layer memory allocation aggregated by type.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``type``, most memory first, a last row "(no layer)": ``allocated_bytes`` where allocations were recorded
        (as in `mlscope_lab.analysis.memory.layer_memory`), ``activation_bytes`` and ``parameter_bytes`` (sums over
        the layers that say it; containers, whose outputs are those of a layer inside, are left out of the former),
        ``share`` of the first of these, and ``count``.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    names, number = _types(data)
    groups = len(names)
    parent = data["parent"].values
    leaf = np.ones(len(number), dtype=bool)
    leaf[parent[parent >= 0]] = False
    columns: dict[str, Any] = {}
    allocated, source = allocated_by_layer(run)
    if allocated is not None:
        columns["allocated_bytes"] = np.append(sum_by_group(allocated[:-1], number, groups), allocated[-1])
    for name in ("activation_bytes", "parameter_bytes"):
        counts = data[name].values
        known = (counts >= 0) & (leaf if name == "activation_bytes" else True)
        sums = sum_by_group(counts, np.where(known, number, -1), groups)
        some = sum_by_group(np.ones(len(number), dtype=np.int64), np.where(known, number, -1), groups) > 0
        columns[name] = np.append(np.where(some, sums, -1), -1)
    leading = next(iter(columns.values()))
    columns["share"] = share_of(np.maximum(leading, 0))
    columns["count"] = np.append(np.bincount(number, minlength=groups), 0)
    order = np.append(np.argsort(-leading[:-1], kind="stable"), groups)
    return table("type", texts([*names, NO_LAYER])[order], {name: v[order] for name, v in columns.items()},
                 attrs=run_attrs(run, allocated_source=source, share_of=next(iter(columns))))  # fmt: skip
