"""Views of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlscope_widgets.views._arguments as arguments
from mlscope_lab.errors import InputError
from mlscope_lab.report import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["layer_families_view", "layer_timeline_view", "slowest_layers_view"]


def slowest_layers_view(times: xr.Dataset, *, n: int = 15) -> go.Figure:
    """Draw the slowest layers by exclusive time, and what belongs to no layer or to several.

    Parameters
    ----------
    times
        From `mlscope_lab.analysis.layers.layer_times`.
    n
        Layers drawn.

    Raises
    ------
    InputError
        If `times` is another dataset, or `n` is not positive.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, not {n}")
    return figures.layers_figure(arguments.datasets("times", times, "exclusive_low_ns")[0], n)


def layer_families_view(times: xr.Dataset | Sequence[xr.Dataset]) -> go.Figure:
    """Draw which families of layers (convolution, activation, ...) the traced time goes to, one bar a run.

    Parameters
    ----------
    times
        From `mlscope_lab.analysis.layers.layer_times`, one a run.

    Raises
    ------
    InputError
        If there is no dataset, or one of another kind.
    """
    return figures.type_share_figure(arguments.datasets("times", times, "exclusive_low_ns"))


def layer_timeline_view(layers: xr.Dataset, *, iteration: int | None = None) -> go.Figure:
    """Draw one traced predict along time, enclosed calls below the enclosing one.

    Parameters
    ----------
    layers
        The layers group of a run (``run["layers"].to_dataset()``).
    iteration
        Index of a traced predict, default the one of median duration.

    Raises
    ------
    InputError
        If `layers` is another dataset, or has no such iteration.
    """
    data = arguments.datasets("layers", layers, "iteration_start_ns")[0]
    count = data.sizes["layer_iteration"]
    if iteration is None and not count:
        raise InputError("layers holds no traced predict")
    if iteration is not None and not 0 <= iteration < count:
        raise InputError(f"iteration must lie between 0 and {count - 1}, not {iteration}")
    return figures.timeline_figure(data, iteration)
