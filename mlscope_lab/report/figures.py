"""Figures: datasets in, plotly figures out. The only module of the engine that imports plotly.

Every text that comes from a run (labels, types, names of models) is escaped: plotly renders some HTML tags, and hands
text between dollar signs to MathJax where a page has it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.report import theme
from mlscope_lab.report.units import TimeScale, time_scale

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["latency_figure", "layers_figure", "plot_text", "run_labels", "timeline_figure", "type_share_figure"]

_MOST_POINTS = 1000
_FAR = 2.5
"""Iterations beyond so many times the largest median are counted at the edge instead of squeezing the rest."""


def plot_text(value: object, limit: int = 46) -> str:
    """Return text that plotly shows literally.

    Parameters
    ----------
    value
        Anything; its str.
    limit
        Longest text in characters; longer ones lose their middle, since labels differ at their ends.
    """
    text = "".join(c if c.isprintable() else " " for c in str(value))
    if len(text) > limit:
        text = f"{text[: limit // 2 - 1]}…{text[-(limit - limit // 2) :]}"
    return html.escape(text).replace("$", "&#36;")


def run_labels(tables: Sequence[xr.Dataset]) -> list[str]:
    """Return one label a dataset: its own, or as short as tells them apart: backend, then model, then a number.

    Parameters
    ----------
    tables
        Datasets of `mlscope_lab.analysis`, whose attributes name ``backend`` and ``model``. A caller who knows better
        sets the attribute ``label`` on all of them.
    """
    if tables and all("label" in t.attrs for t in tables):
        return [str(t.attrs["label"]) for t in tables]
    labels = [str(t.attrs.get("backend") or "run") for t in tables]
    if len(set(labels)) < len(labels):
        labels = [f"{b} · {t.attrs.get('model') or 'model'}" for b, t in zip(labels, tables, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({number})" for number, label in enumerate(labels, 1)]
    return labels


def _figure(height: int) -> go.Figure:
    import plotly.graph_objects as go

    return go.Figure(layout={"template": go.layout.Template(theme.TEMPLATE), "height": height})


def _rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """Return a vertical axis with one row a name, first on top; places are numbers, so equal names stay apart."""
    return {
        "tickmode": "array",
        "tickvals": [-i for i in range(len(names))],
        "ticktext": [plot_text(name) for name in names],
        "range": [-len(names) + 0.4, 0.6],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def _strip(values: npt.NDArray[Any], process: npt.NDArray[Any], row: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return places of the points of one run: a lane a process, so that what differs between them shows."""
    step = -(-len(values) // _MOST_POINTS)
    values, process = values[::step], process[::step]
    lanes = np.unique(process)
    lane = np.searchsorted(lanes, process)
    width = 0.42 / len(lanes)
    # golden-ratio steps spread points evenly without a random number
    spread = (np.arange(len(values)) * 0.6180339887) % 1.0
    return values, -row - 0.02 - width * (lane + 0.15 + 0.7 * spread)


def latency_figure(summaries: Sequence[xr.Dataset], iterations: Sequence[xr.Dataset] = ()) -> go.Figure:
    """Draw the median predict time of runs with its interval, and every iteration below it.

    Parameters
    ----------
    summaries
        From `mlscope_lab.analysis.latency.summarize`, one a run.
    iterations
        The runs' ``/latency`` groups (``run.mlscope.latency``) in the same order, or none.
    """
    import plotly.graph_objects as go

    labels = run_labels(summaries)
    predicts = [s.sel(stage="predict") for s in summaries]
    medians = [float(p["median_ns"]) for p in predicts]
    ends = [float(p["high_ns"]) for p in predicts if math.isfinite(float(p["high_ns"]))]
    scale = time_scale(medians)
    edge = max([*medians, *ends], default=1.0) * _FAR
    figure = _figure(74 + 84 * len(labels))
    farthest = max([*medians, *ends], default=1.0)
    for row, (label, summary, predict) in enumerate(zip(labels, summaries, predicts, strict=True)):
        backend = str(summary.attrs.get("backend") or "")
        colour, symbol = theme.backend_colour(backend), theme.backend_symbol(backend)
        if row < len(iterations):
            data = iterations[row]
            values, process = data["predict_ns"].values, data["process"].values
            near = values <= edge
            farthest = max(farthest, float(values[near].max(initial=0)))
            x, y = _strip(values[near], process[near], row)
            figure.add_trace(go.Scatter(
                x=x / scale.ns, y=y, mode="markers", showlegend=False, cliponaxis=False,
                marker={"color": colour, "size": 5, "opacity": 0.4, "symbol": symbol},
                hovertemplate=f"{plot_text(label)}: one iteration %{{x:.{scale.decimals}f}} {scale.unit}"
                              "<extra></extra>",
            ))  # fmt: skip
            if beyond := int((~near).sum()):
                figure.add_annotation(
                    x=1.0, xref="paper", xanchor="right", y=-row - 0.24, showarrow=False, font={"size": 12},
                    text=f"{beyond} slower, up to {scale.text(float(values.max()))} →",
                )  # fmt: skip
        median, low, high = (float(predict[name]) for name in ("median_ns", "low_ns", "high_ns"))
        bounded = math.isfinite(low) and math.isfinite(high)
        figure.add_trace(go.Scatter(
            x=[median / scale.ns], y=[-row + 0.14], mode="markers+text", showlegend=False, cliponaxis=False,
            text=[scale.text(median)], textposition="top center",
            marker={"color": colour, "size": 11, "symbol": symbol},
            error_x=_bounds(median, low, high, scale, colour, thickness=2.5, width=6) if bounded else None,
            hovertemplate=f"{plot_text(label)}: median {scale.text(median)}, 95 % interval "
                          f"{scale.interval(low, high)}<extra></extra>",
        ))  # fmt: skip
    figure.update_xaxes(title_text=f"predict time, {scale.unit}", range=[0, farthest * 1.04 / scale.ns])
    figure.update_yaxes(**_rows_axis(labels))
    figure.update_layout(margin={"t": 8}, hovermode="closest")
    return figure


def _bounds(
    centre: float, low: float, high: float, scale: TimeScale, colour: str, *, thickness: float, width: int
) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "array": [(high - centre) / scale.ns],
        "arrayminus": [(centre - low) / scale.ns], "color": colour, "thickness": thickness, "width": width,
    }  # fmt: skip


def layers_figure(times: xr.Dataset, n: int = 15) -> go.Figure:
    """Draw the slowest layers by exclusive time, coloured by family, and what belongs to no layer.

    Parameters
    ----------
    times
        From `mlscope_lab.analysis.layers.layer_times`.
    n
        Layers drawn; rows ``unattributed`` and ``overlap`` come on top of these, each where it is above zero.
    """
    import plotly.graph_objects as go

    order = np.argsort(-np.nan_to_num(times["exclusive_ns"].values), kind="stable")[:n]
    shown = times.isel(layer=order)
    values = np.nan_to_num(shown["exclusive_ns"].values)
    names = [str(v) for v in shown["layer"].values]
    types = [str(v) for v in shown["type"].values]
    extra = [
        (name, float(times[f"{name}_ns"]), colour, pattern)
        for name, colour, pattern in (("unattributed", theme.UNATTRIBUTED_COLOUR, "/"),
                                      ("overlap", theme.OVERLAP_COLOUR, "x"))
        if float(times[f"{name}_ns"]) > 0
    ]  # fmt: skip
    scale = time_scale([*values, *(value for _, value, _, _ in extra)])
    low, high = shown["exclusive_low_ns"].values, shown["exclusive_high_ns"].values
    share = shown["share"].values
    figure = _figure(92 + 25 * (len(names) + len(extra)))
    families = [theme.layer_family(t) for t in types]
    for family in theme.FAMILY_COLOURS:
        rows = [i for i, f in enumerate(families) if f == family]
        if not rows:
            continue
        figure.add_trace(go.Bar(
            x=values[rows] / scale.ns, y=[-i for i in rows], orientation="h", name=family, width=0.7,
            marker={"color": theme.FAMILY_COLOURS[family]},
            error_x={
                "type": "data", "symmetric": False, "color": theme.INK, "thickness": 1.5, "width": 3,
                "array": np.nan_to_num(high[rows] - values[rows]) / scale.ns,
                "arrayminus": np.nan_to_num(values[rows] - low[rows]) / scale.ns,
            },
            customdata=[[plot_text(names[i], 90), plot_text(types[i]), scale.text(values[i]),
                         scale.interval(low[i], high[i]), f"{share[i]:.1%}"] for i in rows],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]} exclusive, 95 % interval "
                          "%{customdata[3]}<br>%{customdata[4]} of the pass<extra></extra>",
        ))  # fmt: skip
    for row, (name, value, colour, pattern) in enumerate(extra, len(names)):
        figure.add_trace(go.Bar(
            x=[value / scale.ns], y=[-row], orientation="h", name=name, showlegend=False, width=0.7,
            marker={"color": colour, "pattern": {"shape": pattern, "size": 6, "fillmode": "replace"}},
            hovertemplate=f"{name}: {scale.text(value)}<extra></extra>",
        ))  # fmt: skip
    figure.update_xaxes(title_text=f"exclusive time, {scale.unit}", rangemode="tozero")
    figure.update_yaxes(**_rows_axis([*names, *(name for name, *_ in extra)]))
    figure.update_layout(barmode="overlay", showlegend=True)
    return figure


def type_share_figure(tables: Sequence[xr.Dataset]) -> go.Figure:
    """Draw which families of layers the time of a pass goes to, one bar a run.

    Parameters
    ----------
    tables
        From `mlscope_lab.analysis.layers.layer_times`, one a run. Shares are of the sum of all layers' exclusive time
        and the time that belongs to no layer, so that each bar ends at 100 % also where layers overlap.
    """
    import plotly.graph_objects as go

    labels = run_labels(tables)
    shares: dict[str, list[float]] = {name: [] for name in (*theme.FAMILY_COLOURS, "unattributed")}
    for times in tables:
        # a layer that runs in some iterations only has a share for those that it missed, too
        weights = np.nan_to_num(times["share"].values) * float(times["pass_ns"])
        families = np.array([theme.layer_family(str(t)) for t in times["type"].values], dtype=object)
        unattributed = max(0.0, float(np.nan_to_num(times["unattributed_ns"].values)))
        whole = float(weights.sum()) + unattributed or 1.0
        for family in theme.FAMILY_COLOURS:
            shares[family].append(float(weights[families == family].sum()) / whole)
        shares["unattributed"].append(unattributed / whole)
    figure = _figure(96 + 38 * len(labels))
    for family, values in shares.items():
        if not any(value > 0 for value in values):
            continue
        marker: dict[str, Any] = {"color": theme.FAMILY_COLOURS.get(family, theme.UNATTRIBUTED_COLOUR)}
        if family == "unattributed":
            marker["pattern"] = {"shape": "/", "size": 6, "fillmode": "replace"}
        figure.add_trace(go.Bar(
            x=values, y=[-i for i in range(len(labels))], orientation="h", name=family, width=0.62, marker=marker,
            hovertemplate=f"{family}: %{{x:.1%}}<extra></extra>",
        ))  # fmt: skip
    figure.update_xaxes(title_text="share of the traced time", range=[0, 1], tickformat=".0%",
                        tickvals=[0, 0.25, 0.5, 0.75, 1])  # fmt: skip
    figure.update_yaxes(**_rows_axis(labels))
    figure.update_layout(barmode="stack", legend_traceorder="normal", showlegend=True)
    return figure


def timeline_figure(layers: xr.Dataset, iteration: int | None = None) -> go.Figure:
    """Draw one traced predict: every layer from its start to its end, enclosed calls below the enclosing one.

    Parameters
    ----------
    layers
        The ``/layers`` group of a run.
    iteration
        Index of a traced predict; default the one of median duration.
    """
    import plotly.graph_objects as go

    whole = layers["pass_duration_ns"].values
    if iteration is None:
        iteration = int(np.argsort(whole, kind="stable")[len(whole) // 2])
    row = layers.isel(layer_iteration=iteration)
    start, duration = row["start_ns"].values, row["duration_ns"].values
    ran = np.flatnonzero(start >= 0)
    begin = start - int(row["iteration_start_ns"])
    depth = row["depth"].values
    scale = time_scale([float(whole[iteration])])
    deepest = int(depth[ran].max(initial=0))
    figure = _figure(112 + 30 * (deepest + 1))
    families = [theme.layer_family(str(t)) for t in row["type"].values]
    for family in theme.FAMILY_COLOURS:
        rows = [i for i in ran if families[i] == family]
        if not rows:
            continue
        figure.add_trace(go.Bar(
            base=begin[rows] / scale.ns, x=duration[rows] / scale.ns, y=-depth[rows], orientation="h", name=family,
            width=0.86, marker={"color": theme.FAMILY_COLOURS[family], "line": {"width": 0}},
            customdata=[[plot_text(row["name"].values[i], 90), plot_text(row["type"].values[i]),
                         scale.text(float(duration[i]))] for i in rows],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}<extra></extra>",
        ))  # fmt: skip
    figure.update_xaxes(title_text=f"since the start of predict, {scale.unit}",
                        range=[0, float(whole[iteration]) / scale.ns])  # fmt: skip
    figure.update_yaxes(range=[-deepest - 0.6, 0.6], showgrid=False, zeroline=False, fixedrange=True,
                        tickvals=[-d for d in range(deepest + 1)],
                        ticktext=[f"depth {d}" for d in range(deepest + 1)])  # fmt: skip
    figure.update_layout(barmode="overlay", showlegend=True)
    return figure
