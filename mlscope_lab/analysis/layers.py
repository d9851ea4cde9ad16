"""Layers: what each call site costs, and what the layers leave unexplained (A2 and A3 of XSP, arXiv 1908.06869)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import union_by_group
from mlscope_lab.analysis.statistics import median_bounds, medians_by_group
from mlscope_lab.analysis.tables import NO_LAYER, OVERLAP, run_attrs, table, texts
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Coverage", "coverage", "layer_data", "layer_information", "layer_latency", "layer_times",
           "leaf_layers", "median_shares", "remainder", "shallowest_pass", "slowest_layers"]  # fmt: skip

_TEXT = ("type", "scope", "parent", "depth", "input_shapes", "output_shapes", "parameter_bytes", "activation_bytes",
         "sources")  # fmt: skip


def shallowest_pass(run: xr.DataTree) -> xr.Dataset:
    """Return ``/layers`` of the passes that trace least: what a deeper one costs would count to its layers.

    Parameters
    ----------
    run
        A run with layers.

    Returns
    -------
    xarray.Dataset
        As ``/layers``, the rows of one level only.
    """
    data = run[schema.LAYERS].to_dataset()
    if schema.PASSES not in run.children or not data.sizes["layer_iteration"]:
        return data
    depth = np.array([schema.LEVELS.index(level) for level in run[schema.PASSES].to_dataset()["level"].values])
    of_rows = depth[data["pass_index"].values]
    if (of_rows == of_rows[0]).all():
        return data
    return data.isel(layer_iteration=np.flatnonzero(of_rows == of_rows.min()))


def layer_data(run: xr.DataTree) -> xr.Dataset:
    """Return `shallowest_pass` of a run that must have layers.

    Raises
    ------
    SchemaError
        If it has none.
    """
    if schema.LAYERS not in run.children:
        reason = (run.attrs.get("unavailable") or {}).get("layers", "it was recorded at level 'model'")
        measured = run.attrs.get("origin", "measured") == "measured"
        advice = " Profile again with level='layer'." if measured else ""
        raise SchemaError(f"Run {run.attrs.get('run_id', '?')} has no layers: {reason}.{advice}")
    return shallowest_pass(run)


def layer_times(run: xr.DataTree) -> xr.Dataset:
    """Summarise the layer pass of a run.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``layer`` (label coordinate), in order of first start: ``duration_ns`` (inclusive) and ``exclusive_ns``,
        medians over the traced iterations in which the layer ran, with 95 % bounds ``exclusive_low_ns`` and
        ``exclusive_high_ns``; ``share`` (exclusive time over the pass's); ``calls`` (iterations in which it ran), and
        the describing columns of ``/layers``. Scalars, medians over iterations: ``pass_ns`` (the traced predict),
        ``covered_ns`` (union of the root layers' intervals), ``unattributed_ns`` (the pass less that, belonging to no
        layer) and ``overlap_ns`` (what concurrent layers counted twice). They are rows of their own and never spread.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    return _times(run, data, coverage(data))


def _times(run: xr.DataTree, data: xr.Dataset, found: Coverage) -> xr.Dataset:
    """Summarise layers whose coverage is known; see `layer_times`."""
    import xarray as xr

    start, duration, exclusive = (data[name].values for name in ("start_ns", "duration_ns", "exclusive_ns"))
    ran = start >= 0
    whole, covered, overlap = found.whole, found.covered, found.overlap
    if ran.all() and len(whole):
        columns = {"duration": np.median(duration, axis=0), "exclusive": np.median(exclusive, axis=0)}
        columns["low"], columns["high"] = median_bounds(exclusive)
    else:
        rows, of = np.nonzero(ran)
        columns = {"duration": medians_by_group(duration[rows, of], of, duration.shape[1])[0]}
        columns["exclusive"], columns["low"], columns["high"], _ = medians_by_group(
            exclusive[rows, of], of, duration.shape[1]
        )
    # a layer that runs in some iterations only counts in proportion
    with np.errstate(invalid="ignore"):
        shares = np.where(ran, exclusive, 0) / np.where(whole > 0, whole, 1)[:, None]
    units = {"units": "ns"}
    described: dict[str, Any] = {name: ("layer", data[name].values, data[name].attrs) for name in _TEXT}
    return xr.Dataset(
        {
            "duration_ns": ("layer", columns["duration"], units),
            "exclusive_ns": ("layer", columns["exclusive"], units),
            "exclusive_low_ns": ("layer", columns["low"], units),
            "exclusive_high_ns": ("layer", columns["high"], units),
            "share": ("layer", np.median(shares, axis=0) if len(whole) else columns["duration"], {"units": "1"}),
            "calls": ("layer", ran.sum(axis=0), {"units": "1"}),
            **described,
            "pass_ns": ((), _median(whole), units),
            "covered_ns": ((), _median(covered), units),
            "unattributed_ns": ((), _median(np.maximum(whole - covered, 0)), units),
            "overlap_ns": ((), _median(overlap), units),
        },
        coords={"layer": data["name"].values},
        attrs={"backend": run.attrs.get("backend"), "model": run.attrs.get("model"), "confidence": 0.95},
    )


def _median(values: npt.NDArray[Any]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the layers of each traced predict account for, int64 ns (iterations,).

    Attributes
    ----------
    whole
        The traced predict.
    covered
        Union of all layers' intervals.
    leaves
        Union of the intervals of layers that enclose no others; the time that a container spends outside of its
        children, "functional" rows included, is not in it.
    exclusive
        Sum of all exclusive times.
    overlap
        What concurrent layers count twice: `exclusive` less `covered`.
    """

    whole: npt.NDArray[np.int64]
    covered: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]
    exclusive: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]


def leaf_layers(data: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Tell which layers enclose no others; a container's own time, as a "functional" row, is none of them.

    Parameters
    ----------
    data
        From `layer_data`.
    """
    leaf = np.ones(data.sizes["layer"], dtype=bool)
    parent = data["parent"].values
    leaf[parent[parent >= 0]] = False
    return np.asarray(leaf & (data["type"].values != "functional"))


def coverage(data: xr.Dataset) -> Coverage:
    """Return what the layers account for.

    Parameters
    ----------
    data
        From `layer_data`. Intervals are cut at the bounds of their predict, so that no part of it is above the whole.
    """
    start, duration, exclusive = (data[name].values for name in ("start_ns", "duration_ns", "exclusive_ns"))
    begin, whole = data["iteration_start_ns"].values, data["pass_duration_ns"].values
    iterations = len(start)
    ran = start >= 0
    leaf = leaf_layers(data)
    row = np.broadcast_to(np.arange(iterations)[:, None], start.shape)
    first = np.maximum(start, begin[:, None])
    last = np.minimum(start + duration, (begin + whole)[:, None])
    length = np.maximum(last - first, 0)

    def union(of: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return union_by_group(first[of], length[of], row[of], iterations)

    covered = union(ran)
    total = np.where(ran, exclusive, 0).sum(axis=1)
    return Coverage(
        whole=whole, covered=covered, leaves=union(ran & leaf), exclusive=total,
        overlap=np.maximum(total - covered, 0),
    )  # fmt: skip


def layer_information(run: xr.DataTree) -> xr.Dataset:
    """Return what is known of each layer: A2, the layer information table.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in order of first start: the columns of `layer_times`, ``index``, and where an allocation was
        recorded ``allocated_bytes``. ``attrs["allocated_source"]`` says where that comes from, or why it is absent.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    from mlscope_lab.analysis.memory import allocated_by_layer

    times = layer_times(run)
    allocated, source = allocated_by_layer(run)
    found = times.assign(index=("layer", np.arange(times.sizes["layer"]), {"units": "1"}))
    if allocated is not None:
        attrs = {"units": "byte", "long_name": "bytes allocated"}
        found = found.assign(allocated_bytes=("layer", allocated[:-1], attrs))
    return found.assign_attrs(run_attrs(run, allocated_source=source))


def layer_latency(run: xr.DataTree) -> xr.Dataset:
    """Return the latency of each layer in order of execution: A3, the layer latency.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in order of first start: ``exclusive_ns`` (a layer's time less what the layers inside it
        cover, median over the iterations in which it ran) with 95 % bounds ``low_ns`` and ``high_ns``, ``share`` of
        the traced predict, ``calls``, ``type``, and ``duration_ns``, which counts what is inside, too. Two more rows:
        "(no layer)", the time that belongs to none, and "(overlap)", what concurrent layers count twice, negative.
        In each iteration all rows sum to the traced predict.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    names, rest, found = remainder(data)
    times = _times(run, data, found)
    low, high = median_bounds(rest)
    middle = np.median(rest, axis=0) if len(rest) else np.full(2, np.nan)
    columns = {
        "exclusive_ns": np.append(times["exclusive_ns"].values, middle),
        "low_ns": np.append(times["exclusive_low_ns"].values, low),
        "high_ns": np.append(times["exclusive_high_ns"].values, high),
        "share": np.append(times["share"].values, median_shares(rest, found.whole)),
        "calls": np.append(times["calls"].values, [len(rest)] * 2),
        "type": texts([*times["type"].values, *names]),
        "duration_ns": np.append(times["duration_ns"].values, middle),
    }
    scalars = {name: float(times[name]) for name in ("pass_ns", "covered_ns", "unattributed_ns", "overlap_ns")}
    return table("layer", texts([*times["layer"].values, *names]), columns, scalars=scalars,
                 attrs=run_attrs(run, confidence=0.95, iterations=len(rest)))  # fmt: skip


def remainder(data: xr.Dataset) -> tuple[tuple[str, str], npt.NDArray[np.int64], Coverage]:
    """Return what the layers leave of each predict, and what they count twice, as rows of their own.

    Parameters
    ----------
    data
        From `layer_data`.

    Returns
    -------
    names
        Of the rows: `NO_LAYER` and `OVERLAP`.
    values
        int64 ns (iterations, 2). With the exclusive times of the iteration they sum to the predict.
    coverage
        Of the layers.
    """
    found = coverage(data)
    # what a clock's error puts outside of the predict is in the exclusive times, so it must be in the overlap
    rest = found.whole - found.covered
    return (NO_LAYER, OVERLAP), np.stack([rest, found.whole - rest - found.exclusive], axis=1), found


def median_shares(values: npt.NDArray[Any], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the medians over iterations of values (iterations, N) as shares of the predict (iterations,)."""
    if not len(whole):
        return np.full(values.shape[1], np.nan)
    return np.asarray(np.median(values / np.where(whole > 0, whole, 1)[:, None], axis=0))


def slowest_layers(run: xr.DataTree, n: int = 5) -> xr.Dataset:
    """Return the n layers with the largest exclusive time, slowest first (see `layer_times`)."""
    table = layer_times(run)
    order = np.argsort(-np.nan_to_num(table["exclusive_ns"].values), kind="stable")[:n]
    return table.isel(layer=order)
