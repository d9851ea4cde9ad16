"""Views across the stack: layers by type, kernels by name, a device's busy time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlscope_widgets.views._arguments as arguments
from mlscope_lab.errors import InputError
from mlscope_lab.report import theme
from mlscope_lab.report.figures import plot_text
from mlscope_lab.report.units import time_scale

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["busy_timeline_view", "kernels_view", "layer_types_view"]

_KIND_COLOURS = {
    "compute": theme.FAMILY_COLOURS["convolution"],
    "communication": theme.FAMILY_COLOURS["matrix product"],
    "memory": theme.FAMILY_COLOURS["data movement"],
    "synchronisation": theme.UNATTRIBUTED_COLOUR,
}
_ROW = 26
_FRAME = 96


def _bars(names: list[str], figure: go.Figure, *, rows: int, title: str) -> go.Figure:
    """Lay out horizontal bars, the first on top; places are numbers, so that equal names stay apart."""
    figure.update_layout(
        barmode="overlay", height=_FRAME + _ROW * max(rows, 1), showlegend=len(figure.data) > 1, xaxis={"title": title},
        yaxis={"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [plot_text(n) for n in names],
               "range": [len(names) - 0.4, -0.6], "showgrid": False, "zeroline": False},
    )  # fmt: skip
    return figure


def _figure() -> go.Figure:
    import plotly.graph_objects as go

    return go.Figure(layout={"template": go.layout.Template(theme.TEMPLATE)})


def layer_types_view(types: xr.Dataset, *, n: int = 12) -> go.Figure:
    """Draw the time that each type of layer takes in a predict, with its interval.

    Parameters
    ----------
    types
        From the analysis "latency_by_type" (A6).
    n
        Types drawn; what belongs to no layer, and what concurrent layers count twice, are drawn besides.

    Raises
    ------
    InputError
        If `types` is another dataset, or `n` is not positive.
    """
    import plotly.graph_objects as go

    _positive(n)
    data = arguments.datasets("types", types, "exclusive_ns")[0]
    arguments.along("types", data, "type", "latency_by_type")
    names = [str(name) for name in data["type"].values]
    rest = [i for i, name in enumerate(names) if name.startswith("(") and float(data["exclusive_ns"][i]) != 0]
    # containers whose own time is a row of its own take none themselves
    shown = [i for i, name in enumerate(names) if not name.startswith("(") and float(data["exclusive_ns"][i]) > 0][:n]
    shown += rest
    values, low, high = (data[name].values[shown] for name in ("exclusive_ns", "low_ns", "high_ns"))
    scale = time_scale(values.tolist())
    figure = _figure()
    colours = [
        theme.UNATTRIBUTED_COLOUR if i in rest else theme.FAMILY_COLOURS[theme.layer_family(names[i])] for i in shown
    ]
    figure.add_trace(go.Bar(
        orientation="h", x=values / scale.ns, y=list(range(len(shown))), marker={"color": colours},
        error_x={"type": "data", "symmetric": False, "array": (high - values) / scale.ns,
                 "arrayminus": (values - low) / scale.ns, "thickness": 1, "color": theme.INK},
        customdata=[[f"{100 * s:.1f} %", int(c)] for s, c in zip(data["share"].values[shown],
                                                                data["count"].values[shown], strict=True)],
        hovertemplate=f"%{{x:.{scale.decimals}f}} {scale.unit}, %{{customdata[0]}}, %{{customdata[1]}} layers"
                      "<extra></extra>",
    ))  # fmt: skip
    return _bars([names[i] for i in shown], figure, rows=len(shown), title=f"time in a predict ({scale.unit})")


def kernels_view(kernels: xr.Dataset, *, n: int = 12) -> go.Figure:
    """Draw the kernels, or what stands for them, that take most time in an iteration.

    Parameters
    ----------
    kernels
        From the analysis "kernels_by_name" (A10).
    n
        Names drawn.

    Raises
    ------
    InputError
        If `kernels` is another dataset, or `n` is not positive.
    """
    import plotly.graph_objects as go

    _positive(n)
    data = arguments.datasets("kernels", kernels, "duration_ns")[0]
    arguments.along("kernels", data, "name", "kernels_by_name")
    data = data.isel(name=slice(0, n))
    names = [str(name) for name in data["name"].values]
    values, kinds = data["duration_ns"].values, data["kind"].values
    scale = time_scale(values.tolist())
    figure = _figure()
    for kind in dict.fromkeys(kinds):
        rows = [i for i, k in enumerate(kinds) if k == kind]
        figure.add_trace(go.Bar(
            orientation="h", name=str(kind), x=values[rows] / scale.ns, y=rows,
            marker={"color": _KIND_COLOURS.get(str(kind), theme.INK)},
            customdata=[[f"{100 * s:.1f} %", f"{c:g}"] for s, c in zip(data["share"].values[rows],
                                                                      data["kernels"].values[rows], strict=True)],
            hovertemplate=f"%{{x:.{scale.decimals}f}} {scale.unit}, %{{customdata[0]}}, %{{customdata[1]}} calls"
                          "<extra></extra>",
        ))  # fmt: skip
    unit = "exclusive time" if str(data.attrs.get("source", "")).startswith("operators") else "time"
    return _bars(names, figure, rows=len(names), title=f"{unit} in an iteration ({scale.unit})")


def busy_timeline_view(timeline: xr.Dataset) -> go.Figure:
    """Draw how busy each stream is along time: dark where it works, empty where it is idle.

    Parameters
    ----------
    timeline
        From the analysis "busy_timeline".

    Raises
    ------
    InputError
        If `timeline` is another dataset.
    """
    import plotly.graph_objects as go

    data = arguments.datasets("timeline", timeline, "busy_share")[0]
    names = [str(name) for name in data["stream"].values]
    end = float(data["start_ns"][-1] + data["length_ns"][-1])
    scale = time_scale([end])
    figure = _figure()
    figure.add_trace(go.Heatmap(
        z=data["busy_share"].values, x=(data["start_ns"].values + data["length_ns"].values / 2) / scale.ns,
        y=list(range(len(names))), zmin=0, zmax=1, colorscale=_scale(), showscale=True,
        colorbar={"title": {"text": "busy"}, "tickformat": ".0%"},
        hovertemplate=f"%{{x:.{scale.decimals}f}} {scale.unit}: busy %{{z:.0%}}<extra></extra>",
    ))  # fmt: skip
    return _bars(names, figure, rows=len(names), title=f"time since the start of the pass ({scale.unit})")


def _scale() -> list[list[Any]]:
    colour = theme.LEVEL_COLOURS["kernel"].lstrip("#")
    red, green, blue = (int(colour[i : i + 2], 16) for i in (0, 2, 4))
    return [[0.0, f"rgba({red},{green},{blue},0)"], [1.0, f"rgb({red},{green},{blue})"]]


def _positive(n: int) -> None:
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}")
