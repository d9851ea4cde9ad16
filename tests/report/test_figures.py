"""Figures from synthetic runs: what is drawn is what was measured."""

from __future__ import annotations

import html

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.analysis.latency import summarize
from mlscope_lab.analysis.layers import layer_times
from mlscope_lab.report import figures, theme
from mlscope_lab.testing import synthetic_run


@pytest.fixture(scope="module")
def run():
    return synthetic_run(layers=24, processes=2)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_plot_text_is_literal(text):
    shown = figures.plot_text(text, limit=46)
    assert not set(shown) & set("<>$")
    plain = html.unescape(shown)
    assert len(plain) <= 46
    if len(text) <= 46:
        assert plain == "".join(c if c.isprintable() else " " for c in text)


def test_plot_text_keeps_both_ends():
    assert figures.plot_text("encoder" + "x" * 90 + "conv") == "encoder" + "x" * 15 + "…" + "x" * 19 + "conv"


def test_latency_figure_draws_interval_and_every_iteration(run):
    summary = summarize(run)
    figure = figures.latency_figure([summary], [run["latency"].to_dataset()])
    points, centre = figure.data
    assert len(points.x) == 40
    predict = summary.sel(stage="predict")
    assert centre.x[0] == pytest.approx(float(predict["median_ns"]) / 1e6)
    assert centre.x[0] + centre.error_x.array[0] == pytest.approx(float(predict["high_ns"]) / 1e6)
    assert centre.x[0] - centre.error_x.arrayminus[0] == pytest.approx(float(predict["low_ns"]) / 1e6)
    assert figure.layout.xaxis.title.text == "predict time, ms"
    # lanes: the points of the two processes do not mix, and all lie below the centre
    assert points.y[:20].min() > points.y[20:].max()
    assert points.y.max() < centre.y[0]


def test_latency_figure_counts_what_lies_far_out(run):
    latency = run["latency"].to_dataset().copy(deep=True)
    latency["predict_ns"].values[3] = 900_000_000
    figure = figures.latency_figure([summarize(run)], [latency])
    assert len(figure.data[0].x) == 39
    assert figure.layout.annotations[0].text == "1 slower, up to 900.000 ms →"


def test_latency_figure_thins_long_runs():
    run = synthetic_run(layers=0, processes=1, iterations=5000)
    figure = figures.latency_figure([summarize(run)], [run["latency"].to_dataset()])
    assert len(figure.data[0].x) == 1000


def test_latency_without_bounds_draws_none():
    run = synthetic_run(layers=0, processes=1, iterations=3)
    (centre,) = figures.latency_figure([summarize(run)]).data
    assert centre.error_x.array is None


def test_backends_keep_their_colours_in_any_order():
    runs = {name: synthetic_run(backend=name, layers=0) for name in ("tensorflow", "pytorch", "some-plugin")}
    for names in (list(runs), list(reversed(runs))):
        figure = figures.latency_figure([summarize(runs[name]) for name in names])
        assert [t.marker.color for t in figure.data] == [theme.backend_colour(name) for name in names]
    assert len({theme.backend_colour(n) for n in theme.BACKEND_COLOURS}) == 3
    assert len({theme.backend_symbol(n) for n in theme.BACKEND_COLOURS}) == 3


def test_layers_figure_has_rows_for_what_belongs_to_no_layer(run):
    times = layer_times(run).assign(overlap_ns=((), 7000.0))
    figure = figures.layers_figure(times, n=10)
    drawn = {float(y): float(x) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    slowest = np.sort(times["exclusive_ns"].values)[::-1][:10]
    np.testing.assert_allclose([drawn[-i] for i in range(10)], slowest / 1e3)
    assert list(figure.layout.yaxis.ticktext[-2:]) == ["unattributed", "overlap"]
    assert drawn[-10] == pytest.approx(float(times["unattributed_ns"]) / 1e3)
    assert drawn[-11] == pytest.approx(7.0)
    patterns = {trace.name: trace.marker.pattern.shape for trace in figure.data}
    assert patterns["unattributed"] == "/"
    assert patterns["overlap"] == "x"


def test_layers_of_equal_shortened_labels_stay_apart():
    long = "stage." * 20
    run = synthetic_run(layers=12, rename={1: f"{long}a{long}", 2: f"{long}b{long}"})
    figure = figures.layers_figure(layer_times(run), n=12)
    assert sum(len(trace.y) for trace in figure.data if trace.showlegend is not False) == 12
    assert len(set(figure.layout.yaxis.tickvals)) == len(figure.layout.yaxis.tickvals)


def test_type_shares_add_up(run):
    other = synthetic_run(backend="pytorch", layers=9, seed=3)
    figure = figures.type_share_figure([layer_times(run), layer_times(other)])
    np.testing.assert_allclose(np.sum([trace.x for trace in figure.data], axis=0), [1.0, 1.0])
    assert list(figure.layout.yaxis.ticktext) == ["onnxruntime", "pytorch"]


def test_timeline_draws_one_iteration(run):
    layers = run["layers"].to_dataset()
    figure = figures.timeline_figure(layers, 0)
    starts = sorted(float(b) for trace in figure.data for b in trace.base)
    expected = np.sort(layers["start_ns"].values[0] - int(layers["iteration_start_ns"][0])) / 1e6
    np.testing.assert_allclose(starts, expected)
    assert set(figure.layout.yaxis.tickvals) == {0, -1}


@pytest.mark.parametrize(
    ("type_", "family"),
    [
        ("Conv2d", "convolution"), ("_FusedConv2D", "convolution"), ("DepthwiseConv2dNative", "convolution"),
        ("BatchMatMulV2", "matrix product"), ("Gemm", "matrix product"), ("Linear", "matrix product"),
        ("LinearReLU", "matrix product"), ("QuantizeLinear", "data movement"), ("BatchNorm2d", "normalisation"),
        ("LRN", "normalisation"), ("GlobalAveragePool", "pooling and reduction"), ("Mean", "pooling and reduction"),
        ("ReLU6", "activation"), ("Clip", "activation"), ("AddV2", "elementwise"), ("functional", "module"),
        ("ReorderInput", "data movement"), ("Unsqueeze", "data movement"), ("NonMaxSuppressionThing", "elementwise"),
        ("Zzz", "other"),
    ],
)  # fmt: skip
def test_layer_family(type_, family):
    assert theme.layer_family(type_) == family


def test_labels_tell_runs_apart():
    runs = [synthetic_run(layers=0, model=m, backend=b) for m, b in (("a", "x"), ("b", "x"), ("b", "x"))]
    tables = [summarize(run) for run in runs]
    assert figures.run_labels(tables[:1]) == ["x"]
    assert figures.run_labels(tables[:2]) == ["x · a", "x · b"]
    assert figures.run_labels(tables) == ["x · a (1)", "x · b (2)", "x · b (3)"]
