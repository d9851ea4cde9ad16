"""Memory by layer (A4 of XSP, arXiv 1908.06869)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import sum_by_group
from mlscope_lab.analysis.layers import layer_data
from mlscope_lab.analysis.tables import NO_LAYER, run_attrs, table, texts
from mlscope_lab.analysis.work import Rows, cells_of, events_of, iterations_of, own_parents
from mlscope_lab.trace import schema
from mlscope_lab.trace.events import attrs_of_pass

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["allocated_by_layer", "layer_memory"]


def _of_memory(rows: Rows, layers: int) -> npt.NDArray[np.float64] | None:
    layer, size, device = rows.column("layer_index"), rows.column("bytes"), rows.column("device_code")
    # samples of the whole process are on a device of their own, on which no event has a layer
    known = np.zeros(len(rows.table("device")), dtype=bool)
    known[device[layer >= 0]] = True
    counts = known[device] & (size > 0)
    return _median_by_layer(rows, layer, np.where(counts, size, 0), layers) if known.any() else None


def _incomplete(rows: Rows) -> bool:
    """Tell whether a source says that it does not see every allocation; operators know better then."""
    return any("incomplete" in attrs_of_pass(rows.data, int(i)) for i in np.unique(rows.column("pass_index")))


def _of_operators(rows: Rows, layers: int) -> npt.NDArray[np.float64] | None:
    size = rows.column("allocated_bytes")
    said = size >= 0
    if not said.any():
        return None
    parent = own_parents(rows)
    # an operator that calls others that say what they allocated says the same again, however deep these are
    outer = np.zeros(len(rows), dtype=bool)
    at = parent[said]
    while len(at := np.unique(at[at >= 0])):
        at = at[~outer[at]]  # what is above a row that was seen was seen, too
        outer[at] = True
        at = parent[at]
    return _median_by_layer(rows, rows.column("layer_index"), np.where(said & ~outer, size, 0), layers)


def _median_by_layer(
    rows: Rows, layer: npt.NDArray[Any], size: npt.NDArray[Any], layers: int
) -> npt.NDArray[np.float64]:
    iteration, iterations, _ = iterations_of(rows)
    group = np.where(iteration >= 0, iteration * (layers + 1) + np.where(layer >= 0, layer, layers), -1)
    sums = sum_by_group(size.astype(np.int64), group, cells_of(iterations, layers + 1)).reshape(iterations, layers + 1)
    return np.asarray(np.median(sums, axis=0), dtype=np.float64)


def allocated_by_layer(run: xr.DataTree) -> tuple[npt.NDArray[np.float64] | None, str]:
    """Return the bytes that each layer allocates in an iteration, and where that is known from.

    Parameters
    ----------
    run
        A run.

    Returns
    -------
    bytes
        (layers + 1,) medians over iterations, the last one of what belongs to no layer; None where nothing was
        recorded.
    source
        The group that tells, or the reason why none does.
    """
    layers = int(run.children[schema.LAYERS].dataset.sizes["layer"]) if schema.LAYERS in run.children else 0
    rows = events_of(run, schema.MEMORY)
    if rows is not None and not _incomplete(rows) and (found := _of_memory(rows, layers)) is not None:
        return found, f"allocations in /memory ({rows.level} pass)"
    rows = events_of(run, schema.OPERATORS)
    if rows is not None and (found := _of_operators(rows, layers)) is not None:
        return found, f"innermost operators that say what they allocate ({rows.level} pass)"
    reasons = run.attrs.get("unavailable") or {}
    return None, f"unavailable: {reasons.get('memory', 'no allocation was recorded by layer')}"


def layer_memory(run: xr.DataTree) -> xr.Dataset:
    """Return what each layer allocates: A4, the layer memory allocation.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in order of first start, and a last row "(no layer)": ``type``, ``allocated_bytes`` (what its
        own allocations in an iteration add up to, median over iterations, freed or not; absent where nothing was
        recorded), ``activation_bytes`` (size of its outputs, analytic) and ``parameter_bytes``, each -1 where
        unknown. ``attrs["allocated_source"]`` says where the first comes from.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    allocated, source = allocated_by_layer(run)
    columns: dict[str, Any] = {"type": texts([*data["type"].values, NO_LAYER])}
    if allocated is not None:
        columns["allocated_bytes"] = allocated
    for name in ("activation_bytes", "parameter_bytes"):
        columns[name] = np.append(data[name].values, -1)
    return table("layer", texts([*data["name"].values, NO_LAYER]), columns,
                 attrs=run_attrs(run, allocated_source=source))  # fmt: skip
