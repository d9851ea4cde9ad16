"""What each trace level costs, and what the layers leave of the model's latency.

One level is one pass, so that the numbers of a level are not those of a deeper one (XSP's leveled experimentation,
arXiv 1908.06869). What tracing costs stands beside what it shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.intervals import sum_by_group, union_by_group
from mlscope_lab.analysis.latency import predict_interval
from mlscope_lab.analysis.layers import coverage, layer_data, leaf_layers, median_shares
from mlscope_lab.analysis.statistics import Interval, geometric_interval, median_interval
from mlscope_lab.analysis.tables import run_attrs, table
from mlscope_lab.analysis.work import work_of
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["layer_gap", "levels", "operator_gap", "traced_interval"]


Ints = npt.NDArray[np.int64]


def traced_interval(durations: npt.NDArray[np.int64], process: npt.NDArray[np.int64]) -> Interval:
    """Return the median of traced predicts with its interval, over processes where there are several."""
    numbers = np.unique(process)
    if len(numbers) > 1:
        return geometric_interval(np.array([np.median(durations[process == p]) for p in numbers]).clip(min=1.0))
    return median_interval(durations)


def _equal(values: npt.NDArray[np.int8]) -> int:
    return 0 if (values == 0).any() else 1 if len(values) and (values == 1).all() else -1


def levels(run: xr.DataTree) -> xr.Dataset:
    """Return what each level of a run cost over the one above it.

    Parameters
    ----------
    run
        Any run with passes.

    Returns
    -------
    xarray.Dataset
        Along ``level``, shallowest first: ``passes`` (one a process), ``iterations`` of all of them, ``predict_ns``
        (median; of the untraced level the headline latency) with 95 % bounds ``low_ns`` and ``high_ns``,
        ``overhead`` (predict time over that of the level above; over the untraced one where the framework itself was
        not traced) with ``overhead_low`` and ``overhead_high`` (over processes where there are several, else within
        the only one; NaN for the first level), ``outputs_equal`` (1 where every pass computed what the untraced one
        did, 0 where one did not, -1 unknown) and ``dropped_events``.
        ``attrs["unavailable"]`` is the run's own list of what could not be recorded.

    Raises
    ------
    SchemaError
        If the run has no passes.
    """
    if schema.PASSES not in run.children:
        status = run.attrs.get("status", "?")
        raise SchemaError(f"Run {run.attrs.get('run_id', '?')} has no /{schema.PASSES} group (status: {status})")
    passes = run[schema.PASSES].to_dataset()
    level = passes["level"].values
    layers = run.children.get(schema.LAYERS)
    rows: dict[str, list[Any]] = {}
    names = [name for name in schema.RECORDED_LEVELS if (level == name).any()]
    untraced = np.nan
    for name in names:
        at = np.flatnonzero(level == name)
        if name == "model":
            found = predict_interval(run)
        elif layers is not None and (of := np.isin(layers.dataset["pass_index"].values, at)).any():
            data = layers.dataset
            found = traced_interval(data["pass_duration_ns"].values[of], data["process"].values[of])
        else:
            found = median_interval(np.zeros(0))
        ratio, low, high = (passes[f"overhead_{part}"].values[at] for part in ("ratio", "low", "high"))
        cost = (float(ratio[0]), float(low[0]), float(high[0]))
        if len(at) > 1 and np.isfinite(ratio).all() and (ratio > 0).all():
            several = geometric_interval(ratio)
            cost = (several.centre, several.low, several.high)
        # a pass without layers still says its ratio to the untraced one, which is one of medians
        centre = found.centre if np.isfinite(found.centre) else cost[0] * untraced
        untraced = centre if name == "model" else untraced
        row = {
            "passes": len(at), "iterations": int(passes["measured_iterations"].values[at].sum()),
            "predict_ns": centre, "low_ns": found.low, "high_ns": found.high, "overhead": cost[0],
            "overhead_low": cost[1], "overhead_high": cost[2],
            "outputs_equal": -1 if name == "model" else _equal(passes["outputs_equal"].values[at]),
            "dropped_events": int(passes["dropped_events"].values[at].sum()),
        }  # fmt: skip
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    columns = {key: np.array(values) for key, values in rows.items()}
    unavailable = dict(run.attrs.get("unavailable") or {})
    return table("level", names, columns, attrs=run_attrs(run, confidence=0.95, unavailable=unavailable))


def layer_gap(run: xr.DataTree) -> xr.Dataset:
    """Compare the sum of the layers with the model: what tracing costs, and what belongs to no layer.

    Parameters
    ----------
    run
        A run recorded at level "layer" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``part``, medians over the traced predicts with 95 % bounds: ``duration_ns``, ``low_ns``, ``high_ns``,
        ``share`` of the traced predict, for

        - "traced predict": the whole;
        - "sum of layers": all exclusive times, in which concurrent layers count each;
        - "union of layers": the same, in which what runs at once counts once;
        - "union of leaves": without the time that containers spend outside of their layers;
        - "in containers": the difference of the last two;
        - "overlap": sum less union;
        - "no layer": the traced predict less the union of layers;
        - "untraced predict": the headline latency (share: over the traced predict), NaN for an imported trace;
        - "gap": untraced predict less sum of layers, negative where the traced layers take longer than the whole.

        No union is above the whole.

    Raises
    ------
    SchemaError
        If the run has no layers.
    """
    data = layer_data(run)
    found = coverage(data)
    process = data["process"].values
    parts = {
        "traced predict": found.whole, "sum of layers": found.exclusive, "union of layers": found.covered,
        "union of leaves": found.leaves, "in containers": found.covered - found.leaves, "overlap": found.overlap,
        "no layer": found.whole - found.covered,
    }  # fmt: skip
    intervals = {name: _interval(values, process) for name, values in parts.items()}
    untraced = predict_interval(run)
    intervals["untraced predict"] = untraced
    total = intervals["sum of layers"]
    intervals["gap"] = Interval(
        # both intervals hold with 95 %, so this one does with 90 % at least
        centre=untraced.centre - total.centre, low=untraced.low - total.high, high=untraced.high - total.low,
        confidence=0.9, n=total.n,
    )  # fmt: skip
    whole = intervals["traced predict"].centre
    shares = median_shares(np.stack(list(parts.values()), axis=1), found.whole)
    others = [intervals[name].centre / whole if whole > 0 else np.nan for name in ("untraced predict", "gap")]
    columns = {
        "duration_ns": np.array([i.centre for i in intervals.values()]),
        "low_ns": np.array([i.low for i in intervals.values()]),
        "high_ns": np.array([i.high for i in intervals.values()]),
        "share": np.append(shares, others),
    }
    return table("part", list(intervals), columns,
                 attrs=run_attrs(run, confidence=0.95, iterations=len(found.whole)))  # fmt: skip


def operator_gap(run: xr.DataTree) -> xr.Dataset:
    """Compare the operators with the layers that they belong to: what of a layer is no operator's.

    Parameters
    ----------
    run
        A run recorded at level "operator" or deeper.

    Returns
    -------
    xarray.Dataset
        Along ``part``, medians over the traced predicts of the passes that hold operators and trace least, with 95 %
        bounds: ``duration_ns``, ``low_ns``, ``high_ns``, ``share`` of the layers, for

        - "layers": the union of the layers that enclose no others;
        - "operators in layers": the union of the operators that belong to one of these, within the layers;
        - "rest of layers": layers less that, the framework's own time;
        - "operators in containers": the union of those that a container calls itself, "functional" rows included;
        - "operators in no layer": the union of those that belong to none;
        - "overlap": what operators that run at once count twice.

        No part is above the predict.

    Raises
    ------
    SchemaError
        If the run has no layers or no operators.
    """
    layer_data(run)
    work = work_of(run, group=schema.OPERATORS)
    passes = np.unique(work.rows.column("pass_index"))
    data = run[schema.LAYERS].to_dataset()
    rows = np.flatnonzero(np.isin(data["pass_index"].values, passes))
    data = data.isel(layer_iteration=rows)
    # number the predicts by pass and position, as the operators' iterations are
    number = _predict_numbers(data["pass_index"].values)
    wide = int(number.max(initial=-1)) + 1
    place = np.full((int(passes.max()) + 1) * (wide + 1), -1, dtype=np.int64)
    place[data["pass_index"].values * (wide + 1) + number] = np.arange(len(rows))
    own = work.rows.column("iteration").astype(np.int64)
    known = (own >= 0) & (own < wide)
    at = np.where(known, place[np.where(known, work.rows.column("pass_index") * (wide + 1) + own, 0)], -1)
    begin, whole = data["iteration_start_ns"].values, data["pass_duration_ns"].values
    end = begin + whole

    def cut(start: Ints, length: Ints, of: Ints) -> tuple[Ints, Ints]:
        first = np.clip(start, begin[of], end[of])
        return first, np.clip(start + length, begin[of], end[of]) - first

    leaf = np.append(leaf_layers(data), False)
    ran = (data["start_ns"].values >= 0) & leaf[:-1]
    predict, _ = np.nonzero(ran)
    layers = cut(data["start_ns"].values[ran], data["duration_ns"].values[ran], predict)
    n = len(rows)

    def union(chosen: npt.NDArray[np.bool_]) -> tuple[tuple[Ints, Ints], Ints, Ints]:
        events = np.flatnonzero((at >= 0) & chosen)
        cuts = cut(work.start[events], work.length[events], at[events])
        return cuts, at[events], union_by_group(*cuts, at[events], n)

    of_layers = union_by_group(*layers, predict, n)
    within, owners, of_operators = union(leaf[work.layer])
    both = union_by_group(
        np.concatenate([layers[0], within[0]]), np.concatenate([layers[1], within[1]]),
        np.concatenate([predict, owners]), n,
    )  # fmt: skip
    common = of_layers + of_operators - both
    everything = np.flatnonzero(at >= 0)
    all_of_them = union_by_group(work.start[everything], work.length[everything], at[everything], n)
    parts = {
        "layers": of_layers, "operators in layers": common, "rest of layers": of_layers - common,
        "operators in containers": union((work.layer >= 0) & ~leaf[work.layer])[2],
        "operators in no layer": union(work.layer < 0)[2],
        "overlap": np.maximum(sum_by_group(work.duration, at, n) - all_of_them, 0),
    }  # fmt: skip
    intervals = [_interval(values, data["process"].values) for values in parts.values()]
    columns = {
        "duration_ns": np.array([i.centre for i in intervals]), "low_ns": np.array([i.low for i in intervals]),
        "high_ns": np.array([i.high for i in intervals]),
        "share": median_shares(np.stack(list(parts.values()), axis=1), of_layers),
    }  # fmt: skip
    return table("part", list(parts), columns,
                 attrs=run_attrs(run, confidence=0.95, level=work.rows.level, iterations=n))  # fmt: skip


def _predict_numbers(pass_index: Ints) -> Ints:
    """Return the position of each predict within its pass; those of a pass are neighbours."""
    first = np.concatenate([np.ones(min(1, len(pass_index)), dtype=bool), pass_index[1:] != pass_index[:-1]])
    begin = np.flatnonzero(first)
    return np.arange(len(pass_index)) - np.repeat(begin, np.diff(np.append(begin, len(pass_index))))


def _interval(values: npt.NDArray[np.int64], process: npt.NDArray[np.int64]) -> Interval:
    """Return an interval of times that may be 0, over processes where all of them are positive."""
    return traced_interval(values, process) if (values > 0).all() else median_interval(values)
