"""Views of latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlscope_widgets.views._arguments as arguments
from mlscope_lab.report import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["latency_view"]


def latency_view(
    summaries: xr.Dataset | Sequence[xr.Dataset], *, iterations: xr.Dataset | Sequence[xr.Dataset] = ()
) -> go.Figure:
    """Draw median predict times with their intervals, every iteration below its median.

    Parameters
    ----------
    summaries
        From `mlscope_lab.analysis.latency.summarize`, one a run.
    iterations
        The runs' latency groups (``run.mlscope.latency``) in the same order, or none.

    Raises
    ------
    InputError
        If there is no summary, or another number of iterations' datasets than of summaries.
    """
    shown = arguments.datasets("summaries", summaries, "median_ns")
    below = arguments.datasets("iterations", iterations, "predict_ns", empty=True)
    if below:
        arguments.same_length("summaries", shown, "iterations", below)
    return figures.latency_figure(shown, below)
