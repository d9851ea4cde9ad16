"""A run as JSON and as tables: what profile, open and demo show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlscope_lab.cli.output import Column, heading, jsonable, print_pairs, print_table
from mlscope_lab.cli.text import duration, interval, percent, plain

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = ["layers_json", "levels_json", "print_layers", "print_run", "run_json", "summary_json"]

SLOWEST = 5


def summary_json(run: xr.DataTree) -> dict[str, Any] | None:
    """Return the latency of a run, times in ns; None for a run without untraced iterations.

    Keys: ``stages``, for each of preprocess, predict, postprocess and total ``median_ns``, ``low_ns``, ``high_ns``
    (null where there are too few values for an interval), ``minimum_ns``, ``mean_ns``; ``percentiles_ns``, the predict
    time's percentiles by level, each null below its sample floor, or null where all are; ``throughput`` (samples/s);
    ``drift``, ``drifting``; ``iterations``, ``processes``, ``confidence``, ``unit_of_replication``.
    """
    from mlscope_lab.analysis.latency import summarize
    from mlscope_lab.trace import schema

    latency = run.children.get(schema.LATENCY)
    if latency is None or not latency.dataset.sizes.get("latency_iteration"):
        return None
    table = summarize(run)
    names = ("median_ns", "low_ns", "high_ns", "minimum_ns", "mean_ns")
    levels = jsonable(dict(zip((f"{p:g}" for p in table["percentile"].values.tolist()),
                               table["percentile_ns"].sel(stage="predict").values.tolist(), strict=True)))  # fmt: skip
    found: dict[str, Any] = jsonable(
        {
            "stages": {
                str(stage): {name: float(table[name].sel(stage=stage)) for name in names}
                for stage in table["stage"].values
            },
            "percentiles_ns": levels if any(v is not None for v in levels.values()) else None,
            "throughput": float(table["throughput"]),
            "drift": float(table["drift"]),
            "drifting": table.attrs["drifting"],
            "iterations": int(table["iterations"]),
            "processes": int(table["processes"]),
            "confidence": table.attrs["confidence"],
            "unit_of_replication": table.attrs["unit_of_replication"],
        }
    )
    return found


def layers_json(run: xr.DataTree, n: int = SLOWEST) -> dict[str, Any] | None:
    """Return the slowest layers of a run, times in ns; None for a run without layers.

    Keys: ``count``; ``pass_ns``, ``covered_ns``, ``unattributed_ns``, ``overlap_ns`` (see
    `mlscope_lab.analysis.layers.layer_times`); ``overhead``, ratio of the layer pass's to the untraced predict time
    with ``low`` and ``high`` (`mlscope_lab.analysis.levels.levels`); ``slowest``, a list with layer,
    type, exclusive_ns, low_ns, high_ns, duration_ns, share and calls.
    """
    import numpy as np

    from mlscope_lab.analysis.layers import layer_times
    from mlscope_lab.analysis.levels import levels
    from mlscope_lab.trace import schema

    if schema.LAYERS not in run.children:
        return None
    table = layer_times(run)
    order = np.argsort(-np.nan_to_num(table["exclusive_ns"].values), kind="stable")[:n]
    columns = {name: name for name in ("type", "exclusive_ns", "duration_ns", "share", "calls")}
    columns |= {"low_ns": "exclusive_low_ns", "high_ns": "exclusive_high_ns"}
    passes = levels(run)
    traced = passes.isel(level=slice(1, 2)) if "model" in passes["level"].values else passes.isel(level=slice(0))
    overhead = {"ratio": "overhead", "low": "overhead_low", "high": "overhead_high"}
    found: dict[str, Any] = jsonable(
        {
            "count": table.sizes["layer"],
            **{name: float(table[name]) for name in ("pass_ns", "covered_ns", "unattributed_ns", "overlap_ns")},
            "overhead": {key: traced[name].values[0] for key, name in overhead.items()}
            if traced.sizes["level"]
            else None,
            "slowest": [
                {"layer": table["layer"].values[i], **{key: table[name].values[i] for key, name in columns.items()}}
                for i in order
            ],
        }
    )
    return found


def levels_json(run: xr.DataTree) -> list[dict[str, Any]] | None:
    """Return what each level of a run cost, times in ns; None for a run without passes.

    A list, shallowest first, of ``level``, ``passes`` (one a process), ``iterations``, ``predict_ns`` with ``low_ns``
    and ``high_ns``, ``overhead`` over the level above with ``overhead_low`` and ``overhead_high`` (null for the first),
    ``outputs_equal`` (1 equal to the untraced pass's, 0 not, -1 unknown) and ``dropped_events``; see
    `mlscope_lab.analysis.levels.levels`.
    """
    from mlscope_lab.analysis.levels import levels
    from mlscope_lab.trace import schema

    if schema.PASSES not in run.children:
        return None
    table = levels(run)
    rows: list[dict[str, Any]] = jsonable([
        {"level": level, **{str(name): values.values[i] for name, values in table.data_vars.items()}}
        for i, level in enumerate(table["level"].values)
    ])  # fmt: skip
    return rows


def run_json(run: xr.DataTree, *, full: bool = False, slowest: int = SLOWEST) -> dict[str, Any]:
    """Return a run as ``mlscope profile --json`` (and, with `full`, ``mlscope open --json``) prints it.

    Keys: run_id, status, model, backend, level, summary (`summary_json`), levels (`levels_json`), layers
    (`layers_json`). With `full` also created_at, model_version, backend_version, device, precision, batch_size,
    threads, isolation, execution_mode, environment, warnings, unavailable and failure (null, or kind, message and
    log).
    """
    attrs = run.attrs
    found = {name: attrs.get(name) for name in ("run_id", "status", "model", "backend", "level")}
    found |= {"summary": summary_json(run), "levels": levels_json(run), "layers": layers_json(run, slowest)}
    if full:
        names = ("created_at", "model_version", "backend_version", "device", "precision", "batch_size", "threads",
                 "isolation", "execution_mode", "environment", "warnings", "unavailable", "failure")  # fmt: skip
        found |= {name: attrs.get(name) for name in names}
    plain_types: dict[str, Any] = jsonable(found)
    return plain_types


def _print_latency(out: Console, summary: dict[str, Any]) -> None:
    processes = summary["processes"]
    where = f"{processes} processes" if processes > 1 else "one process; another one may differ"
    rows = [
        (stage, interval(v["median_ns"], v["low_ns"], v["high_ns"]), duration(v["minimum_ns"]), duration(v["mean_ns"]))
        for stage, v in summary["stages"].items()
    ]
    columns = [Column(title="stage", keep=8), Column(title=f"median [{summary['confidence']:.0%} interval]", keep=9),
               Column(title="minimum", right=True, keep=4), Column(title="mean", right=True, keep=3)]  # fmt: skip
    print_table(out, columns, rows, title=f"Latency: {summary['iterations']} iterations in {where}")
    percentiles = summary["percentiles_ns"] or {}
    shown = [f"p{p} {duration(v)}" for p, v in percentiles.items() if v is not None]
    refused = [f"p{p}" for p, v in percentiles.items() if v is None]
    pairs: list[tuple[str, object]] = [
        ("percentiles", ", ".join(shown) + (f" (too few iterations for {', '.join(refused)})" if refused else ""))
        if shown else ("percentiles", "too few iterations for any"),
        ("throughput", f"{summary['throughput']:.4g} samples/s" if summary["throughput"] else None),
    ]  # fmt: skip
    if summary["drifting"]:
        pairs.append(("drift", f"the last third took {summary['drift']:.2f} times as long as the first"))
    print_pairs(out, pairs)


def print_layers(out: Console, layers: dict[str, Any], title: str) -> None:
    """Print the slowest layers, and below them what no layer accounts for."""
    columns = [
        Column(title="layer", keep=9, shrink=True), Column(title="type", keep=4, shrink=True),
        Column(title="exclusive [interval]", keep=8), Column(title="share", right=True, keep=7),
    ]  # fmt: skip
    rows = [
        (v["layer"], v["type"], interval(v["exclusive_ns"], v["low_ns"], v["high_ns"]), percent(v["share"]))
        for v in layers["slowest"]
    ]
    print_table(out, columns, rows, title=title)
    whole = layers["pass_ns"] or float("nan")
    rest = f"{duration(layers['unattributed_ns'])}, {percent((layers['unattributed_ns'] or 0.0) / whole)} of the pass"
    overhead = layers["overhead"]
    traced = None
    if overhead is not None and overhead["ratio"] is not None:
        traced = f"{_ratio(overhead['ratio'], overhead['low'], overhead['high'])} of the untraced predict"
    print_pairs(out, [("in no layer", rest), ("traced pass", traced)])


_EQUAL = {1: "equal", 0: "NOT equal", -1: "-"}


def _print_levels(out: Console, levels: list[dict[str, Any]]) -> None:
    """Print the passes by level: what each says the model takes, and what it cost over the one above."""
    columns = [
        Column(title="level", keep=9), Column(title="iterations", right=True, keep=4),
        Column(title="median predict [interval]", keep=8), Column(title="over the level above [interval]", keep=7),
        Column(title="outputs", keep=6), Column(title="lost events", right=True, keep=3),
    ]  # fmt: skip
    rows = [
        (v["level"], v["iterations"], interval(v["predict_ns"], v["low_ns"], v["high_ns"]),
         _ratio(v["overhead"], v["overhead_low"], v["overhead_high"]), _EQUAL.get(v["outputs_equal"], "-"),
         v["dropped_events"] or "-")
        for v in levels
    ]  # fmt: skip
    print_table(out, columns, rows, title="Passes by level")


def _ratio(centre: float | None, low: float | None, high: float | None) -> str:
    if centre is None:
        return "-"
    return f"{centre:.2f}x" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def print_run(out: Console, run: xr.DataTree, *, slowest: int = SLOWEST) -> None:
    """Print a run: what it is, its latency, its slowest layers, what went wrong and what is missing."""
    attrs = run.attrs
    heading(out, f"Run {attrs['run_id']}")
    version = f" {attrs['backend_version']}" if attrs.get("backend_version") else ""
    print_pairs(
        out,
        [
            ("model", f"{attrs['model']} {attrs.get('model_version') or ''}".strip()),
            ("backend", f"{attrs['backend']}{version}, {attrs.get('execution_mode') or 'mode unknown'}"),
            ("device", f"{attrs['device']}, {attrs['threads'] or 'unknown'} threads, {attrs['isolation']}"),
            ("batch size", attrs["batch_size"]),
            ("created", attrs["created_at"]),
            ("status", attrs["status"]),
        ],
    )
    summary, levels, layers = summary_json(run), levels_json(run), layers_json(run, slowest)
    if summary is not None:
        _print_latency(out, summary)
    if levels is not None and any(v["level"] != "model" for v in levels):
        _print_levels(out, levels)
    if layers is not None:
        print_layers(out, layers, f"Slowest of {layers['count']} layers")
    failure = attrs.get("failure")
    if failure:
        heading(out, f"Failed ({failure.get('kind')}): {failure.get('message')}")
        for line in list(failure.get("log") or [])[-20:]:
            out.print(f"  {plain(line)}")
    for title, sentences in (
        ("Warnings", list(attrs.get("warnings") or [])),
        ("Not recorded", [f"{what}: {why}" for what, why in dict(attrs.get("unavailable") or {}).items()]),
    ):
        if sentences:
            heading(out, title)
            for sentence in sentences:
                out.print(f"  {plain(sentence)}")
