"""One look for all views; the colours are those of the reports."""

from __future__ import annotations

from mlscope_lab.report.theme import (
    BACKEND_COLOURS,
    FAMILY_COLOURS,
    LEVEL_COLOURS,
    TEMPLATE,
    backend_colour,
    backend_symbol,
)

__all__ = [
    "BACKEND_COLOURS", "FAMILY_COLOURS", "LEVEL_COLOURS", "TEMPLATE", "backend_colour", "backend_symbol", "use_theme",
]  # fmt: skip


def use_theme(*, offline: bool = True) -> None:
    """Make plotly draw a notebook's own figures in the same look, under the template name "mlscope".

    Parameters
    ----------
    offline
        Also show figures without a network: JupyterLab draws them itself, and a page made from the notebook carries
        plotly's script.
    """
    import plotly.graph_objects as go
    import plotly.io as pio

    pio.templates["mlscope"] = go.layout.Template(TEMPLATE)
    pio.templates.default = "mlscope"
    if offline:
        pio.renderers.default = "plotly_mimetype+notebook"
