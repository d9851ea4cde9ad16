"""The roofline: what the machine would allow each layer, operator or kernel, and how far it is from that.

A row of work does so many operations and moves so many bytes. At best its time is the larger of two: that of its
operations at the machine's throughput for its element type, and that of its bytes at the machine's bandwidth for its
footprint. Bytes are each tensor that the row reads or writes, once; whatever more it moves makes it slower, not the
roof lower. A footprint that a cache holds may come from there, whoever put it there, so the roof of a footprint takes
as much of it as fits from each level, the fastest first, and the rest from the next.

Operations are those that the cost counts. A convolution's on padding are among them, although a kernel may leave them
out, so that one on a small picture (7 by 7: a fifth of its operations) can come out that much nearer to its roof.

References
----------
Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM
52 (2009). Ilic, Pratas and Sousa, "Cache-aware roofline model", IEEE CAL 13 (2014), for roofs by level.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.kernels import kernel_information
from mlscope_lab.analysis.layers import layer_times, shallowest_pass
from mlscope_lab.analysis.tables import run_attrs, texts
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Roofs", "kernels_under_roofs", "roofline"]

Floats = npt.NDArray[np.float64]
_BOUNDS = ("", "_low", "_high")
_COSTS = ("flops", "input_bytes", "output_bytes", "parameter_bytes")
_PEAKS = ("capacity_bytes", "bandwidth", "throughput")
# rows that name data anew without touching it, or touch a part that the shapes do not tell
_VIEWS = frozenset({
    "constant", "detach", "dropout", "embedding", "embeddingbag", "expand", "flatten", "gather", "gathernd", "gatherv2",
    "identity", "permute", "reshape", "resourcegather", "shape", "size", "slice", "split", "squeeze", "stopgradient",
    "stridedslice", "unflatten", "unsqueeze", "view",
})  # fmt: skip
_DTYPE = re.compile(r"([a-z_]+\d*)\[")
_TYPES = {"uint8": "int8", "double": "float64", "float": "float32", "half": "float16"}


@dataclass(frozen=True, kw_only=True)
class Roofs:
    """Peaks, ready to be asked; the middle, low and high of each.

    Attributes
    ----------
    levels
        Names, the fastest first; the last one is memory.
    capacity
        (L,) bytes.
    bandwidth
        (3, L) byte/s: the middle, the low and the high bound.
    throughput
        {element type: (3,) operations a second}.
    """

    levels: tuple[str, ...]
    capacity: Floats
    bandwidth: Floats
    throughput: dict[str, Floats]

    @classmethod
    def of(cls, peaks: xr.Dataset) -> Roofs:
        """Read a dataset of peaks.

        Parameters
        ----------
        peaks
            From `mlscope_lab.calibrate`, or `mlscope_lab.calibration.peaks.peaks_from_system`.

        Raises
        ------
        SchemaError
            If it is none, or tells no bandwidth of memory.
        """
        missing = [name for name in _PEAKS if name not in peaks]
        if missing or "level" not in peaks.coords or "dtype" not in peaks.coords:
            raise SchemaError(f"Peaks lack {', '.join(missing) or 'level and dtype'}; take those of ml.calibrate()")
        capacity = peaks["capacity_bytes"].values.astype(np.float64)
        bandwidth = np.stack([peaks[f"bandwidth{b}"].values.astype(np.float64) for b in _BOUNDS])
        known = np.flatnonzero(np.isfinite(bandwidth[0]))
        order = known[np.argsort(capacity[known], kind="stable")]
        if not len(order) or not np.isinf(capacity[order[-1]]):
            raise SchemaError("Peaks tell no bandwidth of memory; calibrate again")
        throughput = np.stack([peaks[f"throughput{b}"].values.astype(np.float64) for b in _BOUNDS], axis=1)
        return cls(
            levels=tuple(str(name) for name in peaks["level"].values[order]),
            capacity=capacity[order],
            # what is found in a slower level is found in a faster one, too, however the measurement went
            bandwidth=np.maximum.accumulate(bandwidth[:, order[::-1]], axis=1)[:, ::-1],
            throughput={str(name): throughput[i] for i, name in enumerate(peaks["dtype"].values)},
        )

    def filled(self, footprint: Floats) -> Floats:
        """Return (N, L): how much of each footprint every level holds, the fastest filled first."""
        before = np.concatenate([[0.0], np.cumsum(self.capacity[:-1])])
        held: Floats = np.clip(footprint[:, None] - before, 0.0, self.capacity)
        return held

    def level_of(self, footprint: Floats) -> npt.NDArray[np.object_]:
        """Return the level where the last byte of each footprint lies, "" where it is not known."""
        reach = np.cumsum(self.capacity)
        place = np.searchsorted(reach, np.nan_to_num(footprint, nan=0.0), side="left")
        names = texts([*self.levels, ""])
        return names[np.where(np.isfinite(footprint), np.minimum(place, len(self.levels) - 1), len(self.levels))]

    def least_bytes_ns(self, footprint: Floats) -> Floats:
        """Return (3, N): the least time in which the bytes can move; by the middle, low and high of the peaks."""
        parts = self.filled(footprint)
        return np.stack([(parts / rates).sum(axis=1) * 1e9 for rates in self.bandwidth])

    def least_flops_ns(self, flops: Floats, dtypes: npt.NDArray[np.object_]) -> Floats:
        """Return (3, N): the least time of the operations, NaN where the element type has no peak."""
        unknown = np.full(3, np.nan)
        rates = np.array([self.throughput.get(str(dtype), unknown) for dtype in dtypes]).reshape(len(dtypes), 3)
        return np.where(flops == 0, 0.0, flops / rates.T * 1e9)


def _under_roofs(
    flops: Floats,
    moved: Floats,
    time_ns: tuple[Floats, Floats, Floats],
    dtypes: npt.NDArray[np.object_],
    roofs: Roofs,
) -> dict[str, npt.NDArray[Any]]:
    """Return the columns that flops, bytes, time and roofs decide."""
    time, low, high = time_ns
    by_bytes = roofs.least_bytes_ns(moved)
    by_flops = roofs.least_flops_ns(flops, dtypes)
    # without a peak for its type the operations are no roof
    least = np.fmax(by_bytes, by_flops)
    least[:, ~np.isfinite(moved)] = np.nan
    known = np.isfinite(least[0])
    memory = by_bytes[0] >= np.nan_to_num(by_flops[0], nan=0.0)
    bound = texts(["unknown", "compute", "memory"])[np.where(known, 1 + memory, 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "duration_ns": time,
            "bound": bound,
            "level": np.where(known, roofs.level_of(moved), ""),
            "roof_share": np.where(time > 0, least[0] / time, np.nan),
            # the highest peaks over the longest time, and the other way round
            "roof_share_low": np.where(high > 0, least[2] / high, np.nan),
            "roof_share_high": np.where(low > 0, least[1] / low, np.nan),
            "arithmetic_intensity": np.where(moved > 0, flops / moved, np.nan),
            "achieved_flops": np.where(time > 0, flops / time * 1e9, np.nan),
            "achieved_bandwidth": np.where(time > 0, moved / time * 1e9, np.nan),
            "roof_flops": np.where(by_flops[0] > 0, flops / by_flops[0] * 1e9, np.nan),
            "roof_bandwidth": np.where(by_bytes[0] > 0, moved / by_bytes[0] * 1e9, np.nan),
            "roof_ns": least[0],
            "flops": flops,
            "bytes": moved,
            "dtype": dtypes,
            "low_ns": low,
            "high_ns": high,
        }


_UNITS = {"bytes": "byte", "achieved_flops": "flop/s", "roof_flops": "flop/s", "achieved_bandwidth": "byte/s",
          "roof_bandwidth": "byte/s", "arithmetic_intensity": "flop/byte", "flops": "flop"}  # fmt: skip
_LONG_NAMES = {
    "achieved_bandwidth": "bytes of the row's tensors in a second",
    "achieved_flops": "operations in a second",
    "arithmetic_intensity": "operations for each byte",
    "bound": "what limits the roof: memory or compute",
    "bytes": "inputs, outputs and weights, each once",
    "duration_ns": "duration, median over iterations",
    "high_ns": "upper 95 % bound, and the clock's resolution",
    "level": "where a footprint of these bytes lies",
    "low_ns": "lower 95 % bound, less the clock's resolution",
    "roof_bandwidth": "bandwidth that the machine allows a footprint of these bytes",
    "roof_flops": "operations a second that the machine allows for this element type",
    "roof_ns": "least time that the machine allows",
    "roof_share": "least time over measured time: 1 at the roof",
    "roof_share_low": "roof_share by the highest peaks and the longest time",
    "roof_share_high": "roof_share by the lowest peaks and the shortest time",
}


def _table(dim: str, labels: Any, columns: dict[str, Any], attrs: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    variables = {}
    for name, values in columns.items():
        described = {"long_name": _LONG_NAMES[name]} if name in _LONG_NAMES else {}
        units = schema.units_of(name) or _UNITS.get(name, "1")
        variables[name] = ((dim,), values, {"units": units, **described})
    return xr.Dataset(variables, coords={dim: labels}, attrs=attrs)


def _peak_attrs(run: xr.DataTree, peaks: xr.Dataset) -> dict[str, Any]:
    source, threads = peaks.attrs.get("source", ""), peaks.attrs.get("threads")
    device = str(run.attrs.get("device", "cpu"))
    theirs = str(peaks.attrs.get("device", device))
    if device != "unknown" and theirs.partition(":")[0] != device.partition(":")[0]:
        raise InputError(
            f"The peaks are of '{theirs}', and the run was on '{device}': take those of mlscope_lab.calibrate(device="
            f"'{device}'), or of a system manifest with that device"
        )
    found = {"peaks_source": source}
    found |= {f"peaks_{name}": peaks.attrs[name] for name in ("created_at", "age_s", "system") if name in peaks.attrs}
    if threads is not None and run.attrs.get("threads") not in {None, threads}:
        found["peaks_differ"] = f"the peaks are those of {threads} threads, and the run had {run.attrs['threads']}"
    if peaks.attrs.get("disturbed"):
        found["peaks_disturbed"] = list(peaks.attrs["disturbed"])
    return run_attrs(run, **found)


def _aligned(cost: xr.Dataset, labels: npt.NDArray[Any]) -> dict[str, Floats]:
    """Return the cost columns in the order of the run's layers, NaN where a layer has no cost."""
    missing = [name for name in _COSTS if name not in cost]
    if missing or "layer" not in cost.coords:
        raise SchemaError(
            f"The cost lacks {', '.join(missing) or 'the coordinate layer'}; join a static profile with the run first: "
            "mlscope_lab.analysis.static.attach(run, cost)"
        )
    names = [str(name) for name in cost["layer"].values]
    if len(set(names)) != len(names):
        raise SchemaError("The cost has two rows for one layer; join it with the run first (attach)")
    row = {name: number for number, name in enumerate(names)}
    place = np.array([row.get(str(label), -1) for label in labels], dtype=np.intp)
    columns = {}
    for name in _COSTS:
        values = np.append(cost[name].values.astype(np.float64), np.nan)[place]
        columns[name] = np.where(values < 0, np.nan, values)
    return columns


def _element_types(shapes: npt.NDArray[Any], fallback: str) -> npt.NDArray[np.object_]:
    """Return the element type that each row computes in: that of its first output."""
    found = []
    for text in shapes:
        match = _DTYPE.match(str(text))
        name = match[1] if match else fallback
        found.append(_TYPES.get(name, name))
    return texts(found)


def _not_judged(table: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Tell which rows do no work of their own: containers, and those that hand data on as it is."""
    parents = table["parent"].values
    container = np.zeros(len(parents), dtype=bool)
    container[parents[parents >= 0]] = True
    kinds = [re.sub(r"[^a-z0-9]", "", str(kind).lower()) for kind in table["type"].values]
    views: npt.NDArray[np.bool_] = np.array([kind in _VIEWS for kind in kinds], dtype=bool)
    return container | views


def roofline(run: xr.DataTree, cost: xr.Dataset, peaks: xr.Dataset) -> xr.Dataset:
    """Return where each layer of a run stands under the machine's roofs.

    Parameters
    ----------
    run
        A run with layers.
    cost
        Operations and bytes of its layers: `mlscope_lab.analysis.static.attach`, or any dataset with the run's labels
        as coordinate ``layer`` and the columns ``flops``, ``input_bytes``, ``output_bytes`` and ``parameter_bytes``;
        below 0 where not known.
    peaks
        What the machine can do at most: `mlscope_lab.calibrate`, or a system manifest's.

    Returns
    -------
    xarray.Dataset
        Along ``layer``, in the run's order: ``type``, ``flops``, ``bytes``, ``dtype``, ``duration_ns`` (exclusive,
        median) with ``low_ns`` and ``high_ns``, ``arithmetic_intensity``, ``achieved_flops``, ``achieved_bandwidth``,
        ``level`` (the level of its footprint), ``roof_bandwidth``, ``roof_flops``, ``roof_ns`` (the least time),
        ``bound`` ("memory", "compute", "unknown"), ``roof_share`` (least over measured time) with ``roof_share_low``
        and ``roof_share_high``, the bounds that the layer's interval and the peaks' error give together. Rows that do
        no work of their own (containers, views) and those without a cost are "unknown". Attributes tell whose peaks
        they are; ``above_roof`` names the layers whose ``roof_share_low`` is above 1.

    Raises
    ------
    SchemaError
        If the run has no layers, or a dataset lacks its columns.
    InputError
        If the peaks are of another device than the run's.
    """
    attrs, roofs = _peak_attrs(run, peaks), Roofs.of(peaks)
    times = layer_times(run)
    labels = times["layer"].values
    costs = _aligned(cost, labels)
    moved = costs["input_bytes"] + costs["output_bytes"] + costs["parameter_bytes"]
    moved[_not_judged(times)] = np.nan
    step = _resolution_ns(run)
    time = times["exclusive_ns"].values
    low, high = (times[f"exclusive_{bound}_ns"].values for bound in ("low", "high"))
    low, high = np.where(np.isnan(low), time, low), np.where(np.isnan(high), time, high)
    dtypes = _element_types(times["output_shapes"].values, str(run.attrs.get("precision") or ""))
    bounds = (time, np.maximum(low - step, 0.0), high + step)
    columns = {"type": times["type"].values, **_under_roofs(costs["flops"], moved, bounds, dtypes, roofs)}
    above = [str(label) for label, share in zip(labels, columns["roof_share_low"], strict=True) if share > 1]
    return _table("layer", labels, columns, {**attrs, "above_roof": above, "resolution_ns": step})


def _resolution_ns(run: xr.DataTree) -> int:
    """Return the smallest step of the clock that timed the layers."""
    passes = np.unique(shallowest_pass(run)["pass_index"].values)
    step = int(run[schema.PASSES].to_dataset()["resolution_ns"].values[passes].max(initial=1))
    return step if step > 1 else 0


def kernels_under_roofs(run: xr.DataTree, peaks: xr.Dataset, *, dtype: str = "float32") -> xr.Dataset:
    """Return where each kernel, or operator in a run without kernels, stands under the machine's roofs.

    Parameters
    ----------
    run
        A run or imported trace whose kernels have counters of operations and memory traffic, or operators that tell
        theirs.
    peaks
        What the device can do at most.
    dtype
        The element type whose throughput is the roof: counters do not tell it.

    Returns
    -------
    xarray.Dataset
        Along ``kernel``, those with known traffic: ``name``, ``layer_name`` and the columns of `roofline`. ``bytes``
        is the traffic that counters saw in device memory, so the level is always memory. ``attrs["without_metrics"]``
        counts the rest.

    Raises
    ------
    SchemaError
        If the run has neither kernels nor operators, or none with counters.
    """
    attrs, roofs = _peak_attrs(run, peaks), Roofs.of(peaks)
    table = kernel_information(run)
    lacking = [name for name in ("flops", "dram_read_bytes", "dram_write_bytes") if name not in table]
    if lacking:
        raise SchemaError(
            f"Run {run.attrs.get('run_id', '?')} tells no {', '.join(lacking)} of its kernels; profile with "
            "level='hardware' where the device's counters may be read"
        )
    traffic = (table["dram_read_bytes"] + table["dram_write_bytes"]).values
    rows = np.flatnonzero(np.isfinite(traffic) & np.isfinite(table["flops"].values))
    chosen = table.isel(kernel=rows)
    memory = Roofs(
        levels=roofs.levels[-1:], capacity=roofs.capacity[-1:], bandwidth=roofs.bandwidth[:, -1:],
        throughput=roofs.throughput,
    )  # fmt: skip
    time = chosen["duration_ns"].values.astype(np.float64)
    low, high = (np.where(np.isnan(chosen[n].values), time, chosen[n].values) for n in ("low_ns", "high_ns"))
    columns = _under_roofs(chosen["flops"].values, traffic[rows], (time, low, high), texts([dtype] * len(rows)), memory)
    columns = {"name": chosen["name"].values, "layer_name": chosen["layer_name"].values, **columns}
    left = int(table.sizes["kernel"] - len(rows))
    return _table("kernel", chosen["kernel"].values, columns, {**attrs, "without_metrics": left})
