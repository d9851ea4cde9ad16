"""Sections on what was measured: latency, answers, layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlscope_lab.analysis.layers import shallowest_pass, slowest_layers
from mlscope_lab.report import figures, theme
from mlscope_lab.report.html_ import Column, Html, join, table, tag
from mlscope_lab.report.units import UNKNOWN, TimeScale, format_bytes, format_number, time_scale
from mlscope_lab.report.view import RunView, comparisons, largest_output_difference
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Draw", "answers_section", "backend_cell", "failures_section", "latency_section", "layers_section"]

_TOP = 5
_LAYERS = 10
_SAMPLES = 4


class Draw(Protocol):
    """Place a figure on the page."""

    def __call__(self, figure: Any, *, label: str, caption: str) -> Html: ...  # noqa: D102


def _swatch(backend: str) -> Html:
    return tag("span", class_="swatch", style=f"background:{theme.backend_colour(backend)}", aria_hidden="true")


def backend_cell(view: RunView) -> Html:
    """Return a run's label with the colour that its backend has in the figures."""
    return join([_swatch(view.backend), view.label])


def failures_section(views: Sequence[RunView]) -> Html:
    """Return what went wrong in runs that did not complete; nothing if all did."""
    parts = []
    for view in views:
        status = view.attrs["status"]
        if status == "complete":
            continue
        failure = view.attrs.get("failure") or {}
        log = failure.get("log") or ""
        text = "\n".join(str(line) for line in log) if isinstance(log, list | tuple) else str(log)
        kind = str(failure.get("kind") or status).replace("_", " ")
        parts.append(tag(
            "section",
            tag("h3", f"{view.label}: {status} ({kind})"),
            tag("p", failure.get("message") or "The run was stopped before it ended."),
            tag("details", tag("summary", "Last lines of the log"), tag("pre", text)) if text.strip() else None,
            class_="alert",
        ))  # fmt: skip
    return join(parts)


def _cold(view: RunView, name: str) -> float:
    """Return the median over processes of a cold-start time, NaN where it is unknown."""
    if view.passes is None:
        return math.nan
    values = view.passes[name].values[view.passes["level"].values == "model"]
    values = values[values >= 0]
    return float(np.median(values)) if len(values) else math.nan


def _measured(views: Sequence[RunView]) -> list[tuple[RunView, xr.Dataset, xr.Dataset]]:
    return [(v, v.summary, v.latency) for v in views if v.summary is not None and v.latency is not None]


def _headline(views: Sequence[RunView]) -> Html:
    measured = _measured(views)
    predicts = {v.label: s.sel(stage="predict") for v, s, _ in measured}
    scale = time_scale([float(p["median_ns"]) for p in predicts.values()])
    cold = time_scale([x for v, _, _ in measured for x in (_cold(v, "open_ns"), _cold(v, "first_predict_ns"))])
    models = {v.attrs["model"] for v in views} if len({v.attrs["model"] for v in views}) > 1 else set()
    rows: list[list[str | None]] = []
    for view in views:
        row: list[str | None] = [backend_cell(view), str(view.attrs["backend_version"] or UNKNOWN)]
        if models:
            row.append(str(view.attrs["model"]))
        if view.summary is None:
            rows.append([*row, tag("span", view.attrs["status"], class_="refused"), *[UNKNOWN] * 5])
            continue
        predict, summary = predicts[view.label], view.summary
        processes, iterations = int(summary["processes"]), int(summary["iterations"])
        each = f"{iterations // processes}" if iterations % processes == 0 else f"{iterations / processes:.1f}"
        rows.append([
            *row,
            tag("strong", scale.value(float(predict["median_ns"]))),
            scale.interval(float(predict["low_ns"]), float(predict["high_ns"])),
            format_number(float(summary["throughput"])),
            f"{processes} \N{MULTIPLICATION SIGN} {each}",
            cold.value(_cold(view, "open_ns")),
            cold.value(_cold(view, "first_predict_ns")),
        ])  # fmt: skip
    columns = [
        Column("Backend"), Column("Version"), *([Column("Model")] if models else []),
        Column(f"Median, {scale.unit}", numeric=True), Column(f"95 % interval, {scale.unit}", numeric=True),
        Column("Samples/s", numeric=True), Column("Processes \N{MULTIPLICATION SIGN} iterations", numeric=True),
        Column(f"Open, {cold.unit}", numeric=True), Column(f"First predict, {cold.unit}", numeric=True),
    ]  # fmt: skip
    return table("Predict time in steady state, untraced; opening and the first predict apart", columns, rows)


def _drifts(views: Sequence[RunView]) -> Html:
    sentences = [
        f"{view.label} drifted: the last third of its iterations took {float(summary['drift']):.2f} times the first. "
        "Warm up longer, or quieten the machine, before trusting its median."
        for view, summary, _ in _measured(views)
        if summary.attrs["drifting"]
    ]
    return tag("div", *(tag("p", s) for s in sentences), class_="alert") if sentences else Html()


def _replication(views: Sequence[RunView]) -> str:
    processes = {int(s["processes"]) for _, s, _ in _measured(views)}
    if processes == {1}:
        return ("Intervals lie within the one process that was measured; another process may differ by more. "
                "Measure with processes=5 to see that, too.")  # fmt: skip
    if 1 in processes:
        return "Intervals are over processes where there were several, else within the only one."
    return "Intervals are over processes: what another fresh process would have shown."


def _percentiles(views: Sequence[RunView]) -> Html:
    measured = _measured(views)
    stages = ("preprocess", "predict", "postprocess", "total")
    levels = [float(p) for p in measured[0][1]["percentile"].values if p <= 99]
    scale = time_scale([float(s["median_ns"].sel(stage="total")) for _, s, _ in measured])
    rows: list[list[str | None]] = []
    for view, summary, _ in measured:
        row: list[str | None] = [backend_cell(view)]
        row += [scale.value(float(summary["median_ns"].sel(stage=stage))) for stage in stages]
        row.append(scale.value(float(summary["minimum_ns"].sel(stage="predict"))))
        for level in levels:
            value = float(summary["percentile_ns"].sel(stage="predict", percentile=level))
            floor = int(summary["floor"].sel(percentile=level))
            row.append(
                tag("span", f"needs {floor}", class_="refused", title=f"refused below {floor} iterations")
                if math.isnan(value)
                else scale.value(value)
            )
        rows.append(row)
    columns = [
        Column("Backend"), *(Column(s.capitalize(), numeric=True) for s in stages), Column("Least", numeric=True),
        *(Column(f"p{level:g}", numeric=True) for level in levels),
    ]  # fmt: skip
    return table(
        f"Medians of the stages; least and percentiles of predict, all in {scale.unit}. A percentile is refused where "
        "there are too few iterations to hold it at 99 % confidence.",
        columns, rows,
    )  # fmt: skip


def latency_section(views: Sequence[RunView], draw: Draw) -> Html:
    """Return the headline table, the comparison, and the figure of all iterations."""
    measured = _measured(views)
    if not measured:
        return tag("section", tag("h2", "Latency"), tag("p", "Nothing was measured."), id="latency")
    sentences, interleaved = comparisons(views)
    summaries = [s.assign_attrs(label=v.label) for v, s, _ in measured]
    scale = time_scale([float(s["median_ns"].sel(stage="predict")) for s in summaries])
    spoken = "; ".join(
        f"{v.label} {scale.text(float(s['median_ns'].sel(stage='predict')))}" for v, s, _ in measured
    )  # fmt: skip
    return tag(
        "section",
        tag("h2", "Latency"),
        _headline(views),
        tag("p", _replication(views), class_="note"),
        _drifts(views),
        tag("ul", *(tag("li", s) for s in sentences)) if sentences else None,
        tag("p", "These runs were measured one after the other, not in turns, so what the machine did meanwhile is "
                 "part of the difference; ml.compare_latency measures in turns.", class_="note")
        if sentences and not interleaved else None,
        draw(
            figures.latency_figure(summaries, [data for _, _, data in measured]),
            label=f"Predict time: {spoken}",
            caption="Median predict time with its 95 % interval; below it every iteration, one lane a process.",
        ),
        _percentiles(views),
        id="latency",
    )  # fmt: skip


def _ranking(view: RunView) -> xr.Dataset | None:
    if schema.OUTPUTS not in view.run.children:
        return None
    data = view.run[schema.OUTPUTS].to_dataset()
    names = {"index", "label", "score"}
    if not names <= set(data.variables) or any(data[n].dims != ("sample", "rank") for n in names):
        return None
    return data if data.sizes["sample"] else None


def answers_section(views: Sequence[RunView]) -> Html:
    """Return the best-ranked answers of all runs side by side; nothing where no run has outputs."""
    ranked = [(v, data) for v in views if (data := _ranking(v)) is not None]
    parts: list[Html] = []
    samples = min((data.sizes["sample"] for _, data in ranked), default=0)
    for sample in range(min(samples, _SAMPLES)):
        depth = min(_TOP, max(data.sizes["rank"] for _, data in ranked))
        rows: list[list[str | None]] = []
        for rank in range(depth):
            row: list[str | None] = [str(rank + 1)]
            for _, data in ranked:
                if rank >= data.sizes["rank"]:
                    row += [None, None]
                    continue
                one = data.isel(sample=sample, rank=rank)
                row += [f"{one['label'].item() or 'class'} ({int(one['index'])})", f"{float(one['score']):.4f}"]
            rows.append(row)
        columns = [Column("Rank", numeric=True)]
        for view, _ in ranked:
            columns += [Column(view.label), Column("Score", numeric=True)]
        caption = "Best-ranked answers" + (f", sample {sample + 1} of {samples}" if samples > 1 else "")
        parts.append(table(caption, columns, rows))
    if samples > _SAMPLES:
        parts.append(tag("p", f"{samples - _SAMPLES} more samples are in the runs.", class_="note"))
    complete = [v for v in views if v.attrs["status"] == "complete"]
    agreement = []
    for view in complete[1:]:
        same = all(view.attrs[name] == complete[0].attrs[name] for name in ("model", "batch_size"))
        gap = largest_output_difference(complete[0], view) if same else None
        if gap is not None:
            agreement.append(f"{format_number(gap)} ({view.label})")
    if agreement:
        parts.append(tag("p", f"Largest absolute difference of the raw outputs from those of {complete[0].label}: "
                              f"{', '.join(agreement)}.", class_="note"))  # fmt: skip
    return tag("section", tag("h2", "Answers"), *parts, id="answers") if parts else Html()


def _overhead(view: RunView) -> str:
    """Return what tracing cost, and whether it changed the answer."""
    passes = view.passes
    if passes is None:
        return ""
    traced = passes.isel({"pass": np.flatnonzero(passes["level"].values == "layer")})
    ratio, low, high = (traced[f"overhead_{name}"].values for name in ("ratio", "low", "high"))
    known = np.flatnonzero(~np.isnan(ratio))
    text = ""
    if len(known) == 1:
        bounds = "" if np.isnan(low[known[0]]) else f" [{low[known[0]]:.2f}, {high[known[0]]:.2f}]"
        text = f"Recording layers made predict {ratio[known[0]]:.2f}{bounds} times as long. "
    elif len(known):
        text = (
            f"Recording layers made predict {np.median(ratio[known]):.2f} times as long (median of {len(known)} "
            f"processes; {ratio[known].min():.2f} to {ratio[known].max():.2f}). "
        )
    equal = traced["outputs_equal"].values
    changed = float(np.nanmax(np.append(traced["max_output_difference"].values[equal == 0], 0.0)))
    if (equal == 0).any():
        text += f"The traced pass gave other outputs than the untraced one (by up to {format_number(changed)}). "
    elif len(equal) and (equal == 1).all():
        text += "Its outputs equal those of the untraced pass. "
    return text


def _layer_table(view: RunView, scale: TimeScale) -> Html:
    slow = slowest_layers(view.run, _LAYERS)
    rows: list[list[str | None]] = []
    for i in range(slow.sizes["layer"]):
        one = slow.isel(layer=i)
        rows.append([
            str(one["layer"].item()), str(one["type"].item()),
            scale.value(float(one["exclusive_ns"])),
            scale.interval(float(one["exclusive_low_ns"]), float(one["exclusive_high_ns"])),
            f"{float(one['share']):.1%}", str(one["output_shapes"].item() or UNKNOWN),
            format_bytes(int(one["parameter_bytes"])),
        ])  # fmt: skip
    for name, meaning in (("unattributed", "belongs to no layer"), ("overlap", "counted by more than one layer")):
        value = float(slow[f"{name}_ns"])
        share = value / float(slow["pass_ns"]) if float(slow["pass_ns"]) else math.nan
        rows.append([tag("em", name), meaning, scale.value(value), None, f"{share:.1%}", None, None])
    columns = [
        Column("Layer"), Column("Type"), Column(f"Exclusive, {scale.unit}", numeric=True),
        Column(f"95 % interval, {scale.unit}", numeric=True), Column("Share", numeric=True), Column("Output"),
        Column("Parameters", numeric=True),
    ]  # fmt: skip
    shown = min(_LAYERS, slow.sizes["layer"])
    total = view.times.sizes["layer"] if view.times is not None else shown
    return table(f"The {shown} slowest of {total} layers on {view.label}", columns, rows, class_="layers")


def layers_section(views: Sequence[RunView], draw: Draw) -> Html:
    """Return the slowest layers of each run, with what recording them cost."""
    traced = [(v, v.times.assign_attrs(label=v.label)) for v in views if v.times is not None]
    parts: list[Html] = []
    if traced:
        parts.append(draw(
            figures.type_share_figure([times for _, times in traced]),
            label="Share of the traced time by family of layers",
            caption="Where the time of a traced predict goes, by family of layers, from exclusive times.",
        ))  # fmt: skip
    for view in views:
        if view.times is None:
            if view.attrs["status"] == "complete":
                parts += [tag("h3", backend_cell(view)), tag("p", view.no_layers)]
            continue
        times = view.times
        scale = time_scale([float(np.nanmax(times["exclusive_ns"].values))])
        whole = time_scale([float(times["pass_ns"])])
        layers = shallowest_pass(view.run)
        iterations = layers.sizes["layer_iteration"]
        parts += [
            tag("h3", backend_cell(view)),
            tag("p", f"{_overhead(view)}A traced predict took {whole.text(float(times['pass_ns']))} (median of "
                     f"{iterations}), of which {whole.text(float(times['covered_ns']))} in layers."),
            draw(
                figures.layers_figure(times),
                label=f"Slowest layers on {view.label} by exclusive time; the table below has the numbers",
                caption="Median exclusive time with 95 % bounds: a layer's own time, without the layers inside it.",
            ),
            _layer_table(view, scale),
            draw(
                figures.timeline_figure(layers),
                label=f"Layers of one traced predict on {view.label} along time",
                caption="The traced predict of median duration, layer by layer.",
            ),
        ]  # fmt: skip
    return tag("section", tag("h2", "Layers"), *parts, id="layers") if parts else Html()
