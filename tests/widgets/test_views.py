"""Views: datasets in, figures out, and nothing heavy on import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

WIDGETS = Path(__file__).resolve().parents[2] / "widgets"


@pytest.fixture
def views(monkeypatch):
    """The package, from the checkout where it is not installed."""
    monkeypatch.syspath_prepend(str(WIDGETS))
    return importlib.import_module("mlscope_widgets")


@pytest.fixture(scope="module")
def run():
    from mlscope_lab.testing import synthetic_run

    return synthetic_run(layers=10)


def test_import_loads_no_framework_and_no_plotly():
    code = (
        f"import sys; sys.path.insert(0, {str(WIDGETS)!r}); import mlscope_widgets; "
        "print(sorted({'torch', 'tensorflow', 'onnxruntime', 'plotly', 'xarray', 'ipywidgets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist(views):
    assert all(callable(getattr(views, n)) or n.endswith("COLOURS") for n in views.__all__)
    assert (WIDGETS / "mlscope_widgets" / "py.typed").is_file()


def test_views_draw_what_the_report_draws(views, run):
    from mlscope_lab.analysis.latency import summarize
    from mlscope_lab.analysis.layers import layer_times
    from mlscope_lab.report import figures

    summary, times = summarize(run), layer_times(run)
    assert views.latency_view(summary, iterations=run.mlscope.latency) == figures.latency_figure(
        [summary], [run["latency"].to_dataset()]
    )
    assert views.slowest_layers_view(times, n=4) == figures.layers_figure(times, 4)
    assert views.layer_families_view([times, times]) == figures.type_share_figure([times, times])
    layers = run["layers"].to_dataset()
    assert views.layer_timeline_view(layers) == figures.timeline_figure(layers)


def test_wrong_arguments_name_the_way_out(views, run):
    from mlscope_lab.analysis.latency import summarize
    from mlscope_lab.analysis.layers import layer_times
    from mlscope_lab.errors import InputError

    summary = summarize(run)
    with pytest.raises(InputError, match=r"latency\.summarize"):
        views.latency_view(run)
    with pytest.raises(InputError, match="lacks 'median_ns'"):
        views.latency_view(run.mlscope.latency)
    with pytest.raises(InputError, match="at least one"):
        views.latency_view([])
    with pytest.raises(InputError, match="one of each a run"):
        views.latency_view([summary, summary], iterations=[run.mlscope.latency])
    with pytest.raises(InputError, match="at least 1"):
        views.slowest_layers_view(layer_times(run), n=0)
    with pytest.raises(InputError, match="between 0 and 15"):
        views.layer_timeline_view(run["layers"].to_dataset(), iteration=16)


def test_comparisons_are_drawn_as_in_the_report(views):
    from mlscope_lab.divergence.result import Comparison
    from mlscope_lab.errors import InputError, SchemaError
    from mlscope_lab.report import comparison_figures
    from mlscope_lab.testing import synthetic_comparison

    tree = synthetic_comparison(12, fault_at=5)
    assert views.divergence_view(tree) == comparison_figures.divergence_figure(tree)
    assert views.divergence_view(Comparison(tree)) == views.divergence_view(tree)
    assert views.pair_view(tree) == comparison_figures.pair_figure(tree, 5)
    assert views.pair_view(tree, 7) == comparison_figures.pair_figure(tree, 7)
    with pytest.raises(InputError, match="between 0 and 11"):
        views.pair_view(tree, 12)
    with pytest.raises(InputError, match=r"mlscope_lab\.compare"):
        views.divergence_view([1])
    with pytest.raises(SchemaError, match="Not a comparison"):
        views.divergence_view(tree["pairs"])
    failed = synthetic_comparison(4, status="failed", failure={"side": "a", "message": "no"})
    with pytest.raises(InputError, match="Nothing was compared"):
        views.divergence_view(type(failed)(failed.to_dataset()))


def test_theme_is_offered_to_the_notebooks_own_figures(views):
    import plotly.io as pio

    before = pio.templates.default, pio.renderers.default
    try:
        views.use_theme()
        assert pio.templates.default == "mlscope"
        assert pio.renderers.default == "plotly_mimetype+notebook"
        assert pio.templates["mlscope"].layout.font.size == 13
    finally:
        pio.templates.default, pio.renderers.default = before


def test_levels_have_colours_of_their_own(views):
    from mlscope_lab.trace import schema

    levels = [level for level in schema.LEVELS if level != "full"]
    assert list(views.LEVEL_COLOURS) == levels
    assert len(set(views.LEVEL_COLOURS.values())) == len(levels)


def test_views_across_the_stack(views):
    import mlscope_lab as ml
    from mlscope_lab.errors import InputError
    from mlscope_lab.testing import synthetic_run

    deep = synthetic_run(deep=True)
    types = views.layer_types_view(ml.analyze(deep, "latency_by_type"), n=3)
    assert list(types.layout.yaxis.ticktext)[:3] == ["Relu", "Conv", "Add"]
    assert len(types.layout.yaxis.ticktext) == 4  # and what belongs to no layer
    kernels = views.kernels_view(ml.analyze(deep, "kernels_by_name"))
    assert {trace.name for trace in kernels.data} == {"compute", "memory"}
    busy = views.busy_timeline_view(ml.analyze(deep, "busy_timeline", steps=50))
    assert busy.data[0].z.shape == (2, 50)
    assert [trace.type for trace in busy.data] == ["heatmap"]
    with pytest.raises(InputError, match=r"ml\.analyze\(run, 'latency_by_type'\)"):
        views.layer_types_view(ml.analyze(deep, "layer_latency"))
    with pytest.raises(InputError, match=r"ml\.analyze\(run, 'kernels_by_name'\)"):
        views.kernels_view(ml.analyze(deep, "kernels_by_layer"))
    with pytest.raises(InputError, match="at least 1"):
        views.kernels_view(ml.analyze(deep, "kernels_by_name"), n=0)
