"""Figures of a comparison: its error along the layers, and where and how large it is in one pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.divergence import schema
from mlscope_lab.report import theme
from mlscope_lab.report.figures import plot_text
from mlscope_lab.report.units import UNKNOWN, format_number

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["Row", "allowed_error", "divergence_figure", "pair_figure", "pair_rows", "who"]

Array = npt.NDArray[Any]
Row = Mapping[str, Any]
"""A row of ``/pairs`` in Python's own types, with its position and what error it is allowed."""

_MOST_CHANNELS = 1024
_HEIGHT, _PAIR_HEIGHT = 400, 290


def pair_rows(tree: xr.DataTree) -> list[Row]:
    """Return the pairs of a comparison, one mapping each: the variables of ``/pairs``, "position" and "allowed"."""
    pairs = tree[schema.PAIRS].to_dataset()
    columns = {str(name): variable.values.tolist() for name, variable in pairs.data_vars.items()}
    columns |= {"position": list(range(pairs.sizes["pair"])), "allowed": allowed_error(pairs).tolist()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def who(row: Row) -> str:
    """Name a pair by what computes it on the other side: ``Conv /blocks.3/Conv``; an input by its value.

    Parameters
    ----------
    row
        From `pair_rows`.
    """
    for side in "ba":
        names, types = (str(row[f"{what}_{side}"]) for what in ("operations", "types"))
        if names:
            each, kinds = names.split(";"), types.split(";")
            # TensorFlow Lite has names with semicolons of their own: then there are more of them than types
            return f"{kinds[-1]} {each[-1] if len(each) == len(kinds) else names}"
    return f"input {row['value_a']}"


def allowed_error(pairs: xr.Dataset) -> Array:
    """Return the largest error that a typical element of each value may have: atol + rtol times the reference's rms."""
    rtol = np.nan_to_num(pairs["rtol"].values)
    return np.asarray(pairs["atol"].values + rtol * np.nan_to_num(pairs["rms_a"].values))


def _figure(height: int) -> go.Figure:
    import plotly.graph_objects as go

    return go.Figure(layout={"template": go.layout.Template(theme.TEMPLATE), "height": height})


def _unfinite(pairs: xr.Dataset) -> Array:
    """Return where one side is NaN or infinite and the other is not."""
    counts = [(pairs[f"{kind}_a"].values != pairs[f"{kind}_b"].values) for kind in ("nan", "inf")]
    return np.asarray(counts[0] | counts[1] | ~np.isfinite(pairs["max_abs_error"].values))


def _hover(row: Row) -> list[str]:
    return [
        str(row["position"]), plot_text(who(row), 70), plot_text(row["operations_a"] or row["value_a"], 70),
        plot_text(f"({row['shape_a']})"), format_number(row["max_abs_error"]), format_number(row["l2_relative"]),
        format_number(row["allowed"]), format_number(row["injected_max_abs"]), plot_text(row["scope"] or UNKNOWN, 60),
    ]  # fmt: skip


_HOVER = (
    "%{customdata[0]}: %{customdata[1]}<br>reference: %{customdata[2]}<br>in %{customdata[8]}, shape %{customdata[3]}"
    "<br>error %{customdata[4]}, relative L2 %{customdata[5]}<br>allowed %{customdata[6]}, injected %{customdata[7]}"
    "<extra></extra>"
)


def _range(*columns: Array) -> tuple[float, float]:
    """Return the decades that hold all positive finite values."""
    values = np.concatenate([c[np.isfinite(c) & (c > 0)] for c in columns])
    if not len(values):
        return -8.0, 0.0
    low, high = math.log10(float(values.min())), math.log10(float(values.max()))
    return math.floor(low - 0.3), math.ceil(high + 0.3)


def _marks(figure: go.Figure, rows: Sequence[Row], where: Array, y: Array, *, name: str, **marker: Any) -> None:
    """Add marks at the pairs that `where` selects, if there are any."""
    import plotly.graph_objects as go

    at = np.flatnonzero(where)
    if len(at):
        figure.add_trace(go.Scatter(
            x=at, y=y[at], mode="markers", name=name, marker=marker, customdata=[_hover(rows[i]) for i in at.tolist()],
            hovertemplate=_HOVER, cliponaxis=False,
        ))  # fmt: skip


def divergence_figure(tree: xr.DataTree) -> go.Figure:
    """Draw the error of every pair along the reference's layers, beside what it may be, and what each layer adds.

    Parameters
    ----------
    tree
        A comparison.
    """
    import plotly.graph_objects as go

    pairs = tree[schema.PAIRS].to_dataset()
    a, b = (str(side["backend"]) for side in tree.attrs["sides"])
    colour = theme.side_colours(a, b)[1]
    error, allowed = pairs["max_abs_error"].values, allowed_error(pairs)
    injected = pairs["injected_max_abs"].values
    noise = np.fmax(pairs["noise_a"].values, pairs["noise_b"].values)
    unfinite = _unfinite(pairs)
    finite = np.where(unfinite, np.nan, error)
    low, high = _range(finite, injected[pairs["injects"].values == 1], allowed, noise)
    place = np.arange(len(error))
    figure = _figure(_HEIGHT)
    if np.isfinite(allowed).any():
        figure.add_trace(go.Scatter(
            x=place, y=np.where(allowed > 0, allowed, np.nan), mode="lines", fill="tozeroy", name="tolerance",
            fillcolor=theme.TOLERANCE_COLOUR, line={"color": theme.UNATTRIBUTED_COLOUR, "width": 1, "shape": "hvh"},
            hoverinfo="skip",
        ))  # fmt: skip
    if np.isfinite(noise).any():
        figure.add_trace(go.Scatter(
            x=place, y=np.where(noise > 0, noise, np.nan), mode="lines", name="noise of arithmetic",
            line={"color": theme.UNATTRIBUTED_COLOUR, "width": 1, "dash": "dot", "shape": "hvh"}, hoverinfo="skip",
        ))  # fmt: skip
    known = np.where(finite > 0, finite, np.nan)
    figure.add_trace(go.Scatter(
        x=place, y=known, mode="lines", showlegend=False, line={"color": colour, "width": 1}, opacity=0.5,
        hoverinfo="skip",
    ))  # fmt: skip
    rows = pair_rows(tree)
    beyond, positive = pairs["diverges"].values == 1, finite > 0
    injects = (pairs["injects"].values == 1) & (injected > 0)
    floor, ceiling = np.full(len(error), 10.0**low), np.full(len(error), 10.0**high)
    marks: tuple[tuple[str, Array, Array, dict[str, Any]], ...] = (
        ("error, within", ~beyond & positive, known, {"color": colour, "size": 6, "symbol": "circle-open"}),
        ("error, beyond", beyond & positive, known, {"color": colour, "size": 7, "symbol": "circle"}),
        ("equal to the last bit", finite == 0, floor, {"color": colour, "size": 8, "symbol": "line-ns-open"}),
        ("NaN or infinite on one side", unfinite, ceiling, {"color": colour, "size": 10, "symbol": "x"}),
        ("injected by the layer itself", injects, np.where(np.isfinite(injected), injected, ceiling),
         {"color": theme.INJECTED_COLOUR, "size": 13, "symbol": "diamond-open", "line": {"width": 2.5}}),
    )  # fmt: skip
    for name, where, y, marker in marks:
        _marks(figure, rows, where, y, name=name, **marker)
    first, culprit = int(tree.attrs["first_divergent"]), int(tree.attrs["culprit"])
    if first >= 0:
        _flag(figure, rows, first, "first divergent" if culprit != first else "first divergent, and to blame", 0)
    if culprit >= 0 and culprit != first:
        _flag(figure, rows, culprit, "to blame", 1)
    figure.update_xaxes(title_text="aligned values, in the order in which the reference computes them",
                        range=[-0.7, len(error) - 0.3])  # fmt: skip
    figure.update_yaxes(title_text="largest absolute error", type="log", range=[low, high], exponentformat="e",
                        dtick=max(1, math.ceil((high - low) / 8)))  # fmt: skip
    figure.update_layout(hovermode="closest", showlegend=True, margin={"t": 86},
                         legend={"y": 1.0, "yref": "container", "yanchor": "top"})  # fmt: skip
    return figure


def _flag(figure: go.Figure, rows: Sequence[Row], place: int, word: str, line: int) -> None:
    """Mark a pair by a line with a label above the drawing."""
    share = place / max(len(rows) - 1, 1)
    anchor = "left" if share < 1 / 3 else "right" if share > 2 / 3 else "center"
    figure.add_vline(x=place, line={"color": theme.INJECTED_COLOUR if "blame" in word else theme.INK, "width": 1,
                                    "dash": "dot"})  # fmt: skip
    figure.add_annotation(
        x=place, y=1.0, yref="paper", yanchor="bottom", xanchor=anchor, showarrow=False,
        yshift=2 + 17 * line, font={"size": 12},
        text=f"{word}: {plot_text(who(rows[place]), 36)}",
    )  # fmt: skip


def _scale(colour: str) -> list[list[Any]]:
    """Return a colour scale from nothing to a colour, which reads on light and on dark paper."""
    red, green, blue = (int(colour.lstrip("#")[i : i + 2], 16) for i in (0, 2, 4))
    return [[0.0, f"rgba({red},{green},{blue},0.06)"], [1.0, f"rgb({red},{green},{blue})"]]


def _power(edge: float) -> str:
    return "0" if edge == 0 else "∞" if math.isinf(edge) else f"{edge:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def _edge_ticks(edges: Array, low: int, high: int, most: int) -> dict[str, Any]:
    """Return an axis over bins `low` to `high` with some of their edges as ticks."""
    step = max(1, math.ceil((high - low + 1) / most))
    at = list(range(low, high + 2, step))
    return {"tickmode": "array", "tickvals": [i - 0.5 for i in at], "ticktext": [_power(float(edges[i])) for i in at],
            "range": [low - 0.5, high + 0.5]}  # fmt: skip


def _histograms(figure: go.Figure, row: xr.Dataset, labels: Sequence[str], colours: Sequence[str]) -> None:
    import plotly.graph_objects as go

    counts = [row["histogram_a"].values, row["histogram_b"].values]
    bins = len(counts[0])
    low, high = float(row["bin_low"]), float(row["bin_high"])
    middles = low + (np.arange(bins) + 0.5) * (high - low) / bins
    for label, colour, count, dash in zip(labels, colours, counts, ("solid", "dot"), strict=True):
        share = count / max(int(count.sum()), 1)
        figure.add_trace(go.Scatter(
            x=middles, y=share, mode="lines", name=plot_text(label), xaxis="x", yaxis="y",
            line={"color": colour, "width": 2, "dash": dash, "shape": "hvh"},
            hovertemplate=f"{plot_text(label)}: %{{y:.2%}} of the values near %{{x:.4g}}<extra></extra>",
        ))  # fmt: skip


def _joint(figure: go.Figure, sketches: xr.Dataset, position: int, colour: str) -> dict[str, dict[str, Any]]:
    """Draw how many elements have an error of which size at which size of the reference; return the axes' settings."""
    import plotly.graph_objects as go

    joint = sketches["joint"].values[position].astype(np.float64)
    rows, columns = np.flatnonzero(joint.sum(axis=1)), np.flatnonzero(joint.sum(axis=0))
    if not len(rows):
        return {}
    top, left = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = joint[top, left]
    with np.errstate(divide="ignore"):
        shade = np.where(part > 0, np.log10(part), np.nan)
    errors, references = sketches["error_edges"].values, sketches["reference_edges"].values
    figure.add_trace(go.Heatmap(
        z=shade, x=np.arange(columns[0], columns[-1] + 1), y=np.arange(rows[0], rows[-1] + 1), xaxis="x2", yaxis="y2",
        colorscale=_scale(colour), showscale=False, zmin=-0.3, hoverongaps=False,
        customdata=[[[_power(errors[i]), _power(errors[i + 1]), _power(references[j]), _power(references[j + 1]),
                      f"{joint[i, j]:.0f}"] for j in range(columns[0], columns[-1] + 1)]
                    for i in range(rows[0], rows[-1] + 1)],
        hovertemplate="%{customdata[4]} elements: error %{customdata[0]} to %{customdata[1]}, reference "
                      "%{customdata[2]} to %{customdata[3]}<extra></extra>",
    ))  # fmt: skip
    return {"xaxis2": _edge_ticks(references, columns[0], columns[-1], 5),
            "yaxis2": _edge_ticks(errors, rows[0], rows[-1], 6)}  # fmt: skip


def _channels(figure: go.Figure, channels: xr.Dataset, position: int, colour: str) -> bool:
    """Draw the error of every channel as one bar of shades; return whether the pair has channels."""
    import plotly.graph_objects as go

    here = channels["pair_index"].values == position
    rms, largest = channels["channel_rms_error"].values[here], channels["channel_max_abs_error"].values[here]
    if len(rms) < 2:
        return False
    step = -(-len(rms) // _MOST_CHANNELS)
    starts = np.arange(0, len(rms), step)
    largest_finite = float(np.finfo(np.float32).max)
    worst, most = (
        np.maximum.reduceat(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=largest_finite), starts)
        for x in (rms, largest)
    )
    names = [f"channel {s}" if step == 1 else f"channels {s} to {min(s + step, len(rms)) - 1}" for s in starts.tolist()]
    shown = zip(names, worst.tolist(), most.tolist(), strict=True)
    figure.add_trace(go.Heatmap(
        z=[worst], x=starts, y=[0], xaxis="x3", yaxis="y3", colorscale=_scale(colour), showscale=False, zmin=0,
        customdata=[[[name, format_number(w), format_number(m)] for name, w, m in shown]],
        hovertemplate="%{customdata[0]}: rms error %{customdata[1]}, largest %{customdata[2]}<extra></extra>",
    ))  # fmt: skip
    return True


def pair_figure(tree: xr.DataTree, position: int) -> go.Figure:
    """Draw one pair: the values of both sides, error against size of the reference, and error by channel.

    Parameters
    ----------
    tree
        A comparison.
    position
        Of the pair.
    """
    sides = [str(side["backend"]) for side in tree.attrs["sides"]]
    colours = theme.side_colours(*sides)
    labels = [f"{letter}: {side['label']}" for letter, side in zip("ab", tree.attrs["sides"], strict=True)]
    figure = _figure(_PAIR_HEIGHT)
    _histograms(figure, tree[schema.HISTOGRAMS].dataset.isel(pair=position), labels, colours)
    axes = _joint(figure, tree[schema.SKETCHES].dataset, position, colours[1])
    channels = _channels(figure, tree[schema.CHANNELS].dataset, position, theme.INJECTED_COLOUR)
    bottom = 0.36 if channels else 0.0
    shared = {"xaxis": {"title": {"text": "value"}, "domain": [0, 0.46], "anchor": "y"},
              "yaxis": {"domain": [bottom, 1], "tickformat": ".0%", "title": {"text": "share of elements"},
                        "rangemode": "tozero"}}  # fmt: skip
    joint = {
        "xaxis2": {"title": {"text": "size of the reference"}, "domain": [0.6, 1], "anchor": "y2", "showgrid": False,
                   **axes.get("xaxis2", {})},
        "yaxis2": {"title": {"text": "size of the error"}, "domain": [bottom, 1], "anchor": "x2", "showgrid": False,
                   **axes.get("yaxis2", {})},
    }  # fmt: skip
    bar = {
        "xaxis3": {"title": {"text": "channel; the stronger the colour, the larger its rms error"}, "anchor": "y3",
                   "showgrid": False, "zeroline": False},
        "yaxis3": {"domain": [0, 0.1], "anchor": "x3", "showticklabels": False, "showgrid": False, "zeroline": False,
                   "fixedrange": True},
    }  # fmt: skip
    if channels:
        figure.update_layout(height=_PAIR_HEIGHT + 130)
    figure.update_layout(showlegend=True, hovermode="closest", **shared,
                         **(joint if axes else {}), **(bar if channels else {}))  # fmt: skip
    return figure
