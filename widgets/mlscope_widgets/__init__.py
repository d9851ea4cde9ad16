"""Views of mlscope-lab's datasets for notebooks.

A view takes datasets from `mlscope_lab.analysis`, or a comparison, never a framework or a session, and returns a
plotly figure::

    import mlscope_lab as ml
    from mlscope_lab.analysis.latency import summarize
    from mlscope_lab.analysis.layers import layer_times
    from mlscope_widgets import divergence_view, kernels_view, latency_view, slowest_layers_view

    run = ml.open_run("latest")
    latency_view(summarize(run), iterations=run.mlscope.latency)
    slowest_layers_view(layer_times(run))
    kernels_view(ml.analyze(run, "kernels_by_name"))
    divergence_view(ml.open_comparison("latest"))

Importing this package imports neither a framework nor plotly; the first view does.
"""

from mlscope_widgets.theme import BACKEND_COLOURS, LEVEL_COLOURS, backend_colour, use_theme
from mlscope_widgets.views.divergence import divergence_view, pair_view
from mlscope_widgets.views.latency import latency_view
from mlscope_widgets.views.layers import layer_families_view, layer_timeline_view, slowest_layers_view
from mlscope_widgets.views.stack import busy_timeline_view, kernels_view, layer_types_view

__all__ = [
    "BACKEND_COLOURS",
    "LEVEL_COLOURS",
    "backend_colour",
    "busy_timeline_view",
    "divergence_view",
    "kernels_view",
    "latency_view",
    "layer_families_view",
    "layer_timeline_view",
    "layer_types_view",
    "pair_view",
    "slowest_layers_view",
    "use_theme",
]
