"""The page of a comparison: the answer first, every number there, nothing from outside, nothing from a name runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mlscope_lab.divergence import schema
from mlscope_lab.errors import RunNotFoundError, SchemaError
from mlscope_lab.report import comparison_view, write_report
from mlscope_lab.report.comparison_figures import allowed_error, divergence_figure, pair_figure, pair_rows, who
from mlscope_lab.testing import synthetic_comparison
from tests.report.test_page import HOSTILE, URL_ATTRIBUTES, page_of

FAULT = 20


@pytest.fixture(scope="module")
def faulty() -> xr.DataTree:
    return synthetic_comparison(fault_at=FAULT, samples=3)


@pytest.fixture(scope="module")
def page(faulty: xr.DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(faulty, tmp_path_factory.mktemp("report") / "faulty.html")


def changed(tree: xr.DataTree, **columns: Any) -> xr.DataTree:
    """Return a comparison with other values in some rows of /pairs: {position: value} by column."""
    copy = tree.copy(deep=True)
    for name, values in columns.items():
        for position, value in values.items():
            copy[schema.PAIRS].dataset[name].values[position] = value
    return copy


def test_the_answer_comes_first_and_names_who_makes_the_error(page):
    text = " ".join(page_of(page).text.split())
    answer = text.index("onnxruntime parts from pytorch at Clip /blocks.3.expand_act/Clip")
    assert answer < text.index("The two sides")
    assert "makes it: fed the reference's own inputs, it is off by" in text
    assert "39 later values are out of tolerance only because they inherit it." in text
    assert "1 sample could not be compared." in text
    assert "The first answer" in text


def test_every_pair_is_a_row_with_its_numbers(faulty, page):
    rows = re.findall(r'<tr[^>]*><th scope="row" class="n" data-v="(\d+)">', page.read_text(encoding="utf-8"))
    assert rows == [str(i) for i in range(60)]
    shown = page_of(page)
    assert sum(attrs.get("data-beyond") == "1" for attrs in shown.named("tr")) == 40
    error = float(faulty[schema.PAIRS]["max_abs_error"][FAULT])
    assert any(attrs.get("data-v") == repr(error) for attrs in shown.named("td"))
    assert "beyond, injects" in shown.text
    assert "beyond, inherited" in shown.text


def test_sections_say_how_it_was_found(page):
    text = " ".join(page_of(page).text.split())
    for words in (
        "30 of 30 convolutions, products and the like of a are paired", "names that the exporter left",
        "/tail/Erf", "no partner found", "Operations that only move values: 2", "an instrumented build",
        "differ by up to", "values moved by some units in the last place", "it is an input",
        "mlscope compare efficientnet-lite0 --input picture-0.png", "ml.compare(", "mlscope judge 20261125T063000Z",
        "Synthetic CPU", "picture-broken.png: not a picture", "torch_export", "Output logits",
    ):  # fmt: skip
        assert words in text, words


def test_page_asks_no_host_for_anything_and_names_its_scripts(page):
    shown = page_of(page)
    for tag, attrs in shown.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not URL_ATTRIBUTES & set(attrs), (tag, attrs)
    assert not re.search(r"https?:", json.dumps(shown.figures()))
    policy = next(m["content"] for m in shown.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    running = [body for attrs, body in shown.scripts if "type" not in attrs]
    named = [f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in running]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert len(running) == 3
    assert directives["script-src"].split() == named
    assert page.stat().st_size < 8_000_000


def test_page_is_semantic(page):
    shown = page_of(page)
    assert len(shown.named("h1")) == len(shown.named("title")) == len(shown.named("main")) == 1
    assert len(shown.named("caption")) == len(shown.named("table"))
    plots = [attrs for attrs in shown.named("div") if "plot" in (attrs.get("class") or "").split()]
    assert len(plots) == len(shown.figures()) == 5
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    # every control that the script unhides has a label
    assert len(shown.named("input")) == len(shown.named("label")) == 2


def hostile() -> xr.DataTree:
    sides = synthetic_comparison(4).attrs["sides"]
    sides = [
        {**side, "model": HOSTILE, "label": HOSTILE, "preprocessing": [{"name": HOSTILE, "steps": [{"step": HOSTILE}]}]}
        for side in sides
    ]
    return synthetic_comparison(
        12, fault_at=5, rename={5: HOSTILE, 6: HOSTILE + " six"}, model=HOSTILE, sides=sides, warnings=[HOSTILE],
        unavailable={HOSTILE: HOSTILE}, calibration={HOSTILE: HOSTILE}, not_replayed={HOSTILE: HOSTILE},
        alignment={"compute_a": 1, "paired_a": 1, "compute_b": 1, "paired_b": 1, "notes": [HOSTILE]},
        observer_effect=[{"side": "a", "equal": False, "max_abs_difference": 1.0, "method": HOSTILE,
                          "notes": [HOSTILE]}],
        environment={"cpu": HOSTILE, HOSTILE: HOSTILE, "libraries": {HOSTILE: HOSTILE}},
    )  # fmt: skip


def test_hostile_names_stay_text(tmp_path):
    shown = page_of(write_report(hostile(), tmp_path / "hostile.html", title=HOSTILE))
    assert not shown.named("img")
    assert not shown.named("b")
    assert len(shown.scripts) == len(shown.figures()) + 3
    assert not any(name.startswith("on") for _, attrs in shown.elements for name in attrs)
    assert shown.text.count(HOSTILE) > 20
    for _, body in shown.scripts[: len(shown.figures())]:
        assert not set(body) & set("<>&\u2028\u2029")


def test_hostile_names_are_literal_for_plotly():
    tree = hostile()
    ours = {"<br>", "<extra>", "</extra>"}

    def texts(value):
        if isinstance(value, dict):
            for item in value.values():
                yield from texts(item)
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    figures = [divergence_figure(tree), pair_figure(tree, 5)]
    found = [text for figure in figures for text in texts(json.loads(figure.to_json()))]
    assert any("&lt;script&gt;" in text for text in found)
    for text in found:
        assert set(re.findall(r"<[^>]*>", text)) <= ours
        assert "$" not in text
        assert "\n" not in text


def test_sides_that_agree_say_so(tmp_path):
    text = page_of(write_report(synthetic_comparison(), tmp_path / "r.html")).text
    assert "onnxruntime agrees with pytorch: of 60 values none is out of its tolerance." in text
    assert "The pairs nearest to their tolerance" in text
    assert "makes it" not in text


def test_a_failed_side_shows_why_and_what_there_is(tmp_path):
    failure = {"side": "b", "label": "onnxruntime", "message": "Side b (onnxruntime) failed: no memory"}
    text = page_of(write_report(synthetic_comparison(status="failed", failure=failure), tmp_path / "r.html")).text
    assert text.count("Side b (onnxruntime) failed: no memory") == 2
    assert "What was compared until then is below" in text
    assert "All pairs" in text


def test_a_side_that_failed_before_anything_was_compared(tmp_path):
    failure = {"side": "a", "label": "pytorch", "message": "Side a (pytorch) failed: at once"}
    whole = synthetic_comparison(4, status="failed", failure=failure)
    shown = page_of(write_report(xr.DataTree(xr.Dataset(attrs=whole.attrs)), tmp_path / "r.html"))
    assert "Nothing could be compared. Side a (pytorch) failed: at once" in shown.text
    assert not shown.figures()
    assert not [body for attrs, body in shown.scripts if "type" not in attrs]


def test_what_is_not_finite_or_equal_is_drawn_apart():
    nan, inf = float("nan"), float("inf")
    tree = changed(
        synthetic_comparison(30, fault_at=10), max_abs_error={12: inf, 13: nan, 3: 0.0}, nan_b={12: 4}, inf_b={13: 1},
        injected_max_abs={10: inf},
    )  # fmt: skip
    figure = divergence_figure(tree)
    marks = {trace.name: list(trace.x) for trace in figure.data if trace.mode == "markers"}
    assert marks["NaN or infinite on one side"] == [12, 13]
    assert marks["equal to the last bit"] == [0, 3]
    assert marks["injected by the layer itself"] == [10]
    assert not {12, 13} & {*marks["error, within"], *marks["error, beyond"]}
    assert all(np.isfinite(float(y)) for trace in figure.data if trace.mode == "markers" for y in trace.y)


def test_marks_are_the_measured_errors(faulty):
    figure = divergence_figure(faulty)
    pairs = faulty[schema.PAIRS].dataset
    drawn = {
        int(x): float(y) for trace in figure.data if str(trace.name).startswith("error,")
        for x, y in zip(trace.x, trace.y, strict=True)
    }  # fmt: skip
    assert drawn == {i: float(pairs["max_abs_error"][i]) for i in range(1, 60)}
    beyond = next(trace for trace in figure.data if trace.name == "error, beyond")
    assert list(beyond.x) == np.flatnonzero(pairs["diverges"].values == 1).tolist()
    assert "first divergent, and to blame" in figure.layout.annotations[0].text


def test_first_and_culprit_are_flagged_apart():
    tree = synthetic_comparison(30, fault_at=10)
    tree.attrs["first_divergent"] = 8
    texts = [a.text for a in divergence_figure(tree).layout.annotations]
    assert [t.split(":")[0] for t in texts] == ["first divergent", "to blame"]
    assert comparison_view.worst_pairs(tree, 3)[:2] == [10, 8]


def test_pair_figure_counts_every_element(faulty):
    figure = pair_figure(faulty, FAULT)
    histograms = [trace for trace in figure.data if trace.type == "scatter"]
    assert [sum(trace.y) for trace in histograms] == pytest.approx([1.0, 1.0])
    joint = next(trace for trace in figure.data if trace.yaxis == "y2")
    counted = 10.0 ** np.asarray(joint.z, dtype=np.float64)
    assert np.nansum(counted) == pytest.approx(16 * 6 * 6)
    bar = next(trace for trace in figure.data if trace.yaxis == "y3")
    here = faulty[schema.CHANNELS].dataset["pair_index"].values == FAULT
    assert list(bar.z[0]) == pytest.approx(faulty[schema.CHANNELS]["channel_rms_error"].values[here])


def test_a_pair_of_a_thousand_channels_is_one_bar_of_maxima():
    tree = synthetic_comparison(4, fault_at=1, channels=3000, size=1)
    bar = next(trace for trace in pair_figure(tree, 1).data if trace.yaxis == "y3")
    assert len(bar.z[0]) == 1000
    assert max(bar.z[0]) == pytest.approx(float(tree[schema.CHANNELS]["channel_rms_error"].values[3000:6000].max()))


def test_sides_of_one_backend_have_two_colours():
    sides = synthetic_comparison(4).attrs["sides"]
    tree = synthetic_comparison(4, fault_at=1, sides=[sides[1], {**sides[1], "label": "onnxruntime (float16)"}])
    lines = [trace.line.color for trace in pair_figure(tree, 1).data if trace.type == "scatter"]
    assert len(set(lines)) == 2
    assert "onnxruntime (float16) parts from onnxruntime" in comparison_view.answer_sentence(tree)


def test_relative_tolerances_widen_the_band():
    tree = synthetic_comparison(6, tolerance={"atol": 1e-6, "rtol": 1e-3})
    pairs = tree[schema.PAIRS].dataset
    assert allowed_error(pairs) == pytest.approx(1e-6 + 1e-3 * pairs["rms_a"].values)


def synthetic_with_sample(name: str) -> xr.DataTree:
    tree = synthetic_comparison(4)
    samples = tree[schema.SAMPLES].to_dataset()
    samples["sample"] = ("sample", np.array([name], dtype=object))
    tree[schema.SAMPLES] = xr.DataTree(samples)
    return tree


def test_the_command_and_the_code_say_what_differs():
    a, b = synthetic_comparison(4).attrs["sides"]
    b = {**b, "asked_precision": "float16", "graph_optimization": "none", "threads": 1}
    tree = synthetic_comparison(4, sides=[a, b])
    line = comparison_view.command_line(tree)
    assert line is not None
    assert line.endswith(
        "--b backend=onnxruntime,precision=float16,graph_optimization=none,batch_size=1,threads=1"
    )  # fmt: skip
    code = comparison_view.code(tree)
    assert code is not None
    compile(code, "page", "exec")
    other = [{"name": "image", "steps": [{"step": "normalize", "mean": [127.0], "std": [128.0]}]}]
    tree = synthetic_comparison(4, sides=[a, {**b, "preprocessing": other}])
    assert comparison_view.command_line(tree) is None
    assert "'mean': [127.0]" in str(comparison_view.code(tree))
    files = synthetic_comparison(4, sides=[{**a, "given": "old.onnx"}, {**b, "given": "new.onnx"}])
    assert str(comparison_view.command_line(files)).startswith(
        "mlscope compare old.onnx new.onnx --input picture-0.png"
    )
    assert "'model': 'new.onnx'" in str(comparison_view.code(files))
    assert "--input x.npy" in str(comparison_view.command_line(synthetic_with_sample("sample 0")))
    assert "--input" not in str(comparison_view.command_line(synthetic_with_sample("seeded values")))
    live = synthetic_comparison(4, sides=[{**a, "format": "live"}, b])
    assert comparison_view.command_line(live) is comparison_view.code(live) is None


def test_who_is_named_by_what_computes_it(faulty):
    rows = pair_rows(faulty)
    assert who(rows[0]) == "input image"
    assert who(rows[1]) == "Conv /blocks.0.expand/Conv"
    assert who({**rows[1], "operations_b": "", "types_b": ""}) == "aten::batch_norm blocks.0.expand.batch_norm"
    # a name with semicolons of its own, as TensorFlow Lite has them
    assert who({**rows[1], "operations_b": "a/BiasAdd;a/Conv2D", "types_b": "CONV_2D"}) == "CONV_2D a/BiasAdd;a/Conv2D"


def test_what_is_no_comparison_is_refused(tmp_path):
    with pytest.raises(SchemaError, match="attrs of the root lack"):
        write_report(xr.DataTree(xr.Dataset(attrs={"kind": "comparison"})), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_stored_comparison_is_found_by_its_id(tmp_path, monkeypatch):
    from mlscope_lab.config import load_settings
    from mlscope_lab.divergence.stored import open_comparison, store_of

    monkeypatch.setenv("MLSCOPE_HOME", str(tmp_path / "home"))
    run_id = store_of(load_settings()).save(synthetic_comparison(6, fault_at=2))
    by_id = write_report(run_id, tmp_path / "id.html")
    by_object = write_report(open_comparison(run_id), tmp_path / "object.html")
    assert by_id.read_bytes() == by_object.read_bytes()
    with pytest.raises(RunNotFoundError):
        write_report("20200101T000000Z-00000000", tmp_path / "none.html")
