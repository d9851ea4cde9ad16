"""The report: nothing from outside, nothing from a label runs, nothing that failed is hidden."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from mlscope_lab.errors import InputError, SchemaError, StoreError
from mlscope_lab.report import write_report
from mlscope_lab.testing import synthetic_failed_run, synthetic_ranking, synthetic_run

HOSTILE = "<script>alert('m')</script><img src=x onerror=alert(1)></script><!--<b>&lt;i&gt; $\\x$ %{x} \u202e\n\u2028\""
URL_ATTRIBUTES = {"src", "href", "action", "formaction", "poster", "data", "srcset", "background", "cite", "ping"}


class Page(HTMLParser):
    """What a browser would make of the page, as far as the tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "hr", "img", "link", "input"}:
            self._inside.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        elif not self._inside or self._inside[-1] != "style":
            self.text += data

    def figures(self) -> list[dict]:
        return [json.loads(body) for attrs, body in self.scripts if attrs.get("type") == "application/json"]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    means = {"onnxruntime": 7_000_000, "pytorch": 21_000_000, "tensorflow": 13_000_000}
    runs = [synthetic_run(backend=name, mean_ns=mean, seed=seed) for seed, (name, mean) in enumerate(means.items())]
    return write_report(runs, tmp_path_factory.mktemp("report") / "three.html")


def test_several_runs_stand_side_by_side(three):
    page = page_of(three)
    assert "efficientnet-lite0 on onnxruntime, pytorch and tensorflow" in page.text
    assert page.text.count("Egyptian cat (285)") == 3
    # shares, then slowest layers and time line of each, after the latencies
    assert len(page.figures()) == 2 + 3 * 2
    assert "slower than efficientnet-lite0 on onnxruntime" in page.text
    assert "one after the other" not in page.text  # the synthetic runs lie in turns


def test_page_asks_no_host_for_anything(three):
    page = page_of(three)
    for tag, attrs in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not URL_ATTRIBUTES & set(attrs), (tag, attrs)
        assert not re.search(r"url\(|@import", attrs.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", three.read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|https?:", style.group(1))
    assert not re.search(r"https?:", json.dumps(page.figures()))
    assert three.stat().st_size < 8_000_000


def test_only_the_two_scripts_named_by_the_policy_may_run(three):
    page = page_of(three)
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    running = [body for attrs, body in page.scripts if "type" not in attrs]
    named = [
        f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in running
    ]  # fmt: skip
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert len(running) == 2
    assert directives["script-src"].split() == named
    assert directives["default-src"] == "'none'"


def test_page_is_semantic(three):
    page = page_of(three)
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("h1")) == len(page.named("title")) == len(page.named("main")) == 1
    assert len(page.named("caption")) == len(page.named("table"))
    plots = [attrs for attrs in page.named("div") if "plot" in (attrs.get("class") or "").split()]
    assert len(plots) == len(page.figures())
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    assert [m for m in page.named("meta") if m.get("charset") == "utf-8"]


def hostile_run() -> xr.DataTree:
    return synthetic_run(
        model=HOSTILE, model_version=HOSTILE, backend=HOSTILE, backend_version=HOSTILE, device=HOSTILE, task=HOSTILE,
        warnings=[HOSTILE], unavailable={HOSTILE: HOSTILE}, rename={1: HOSTILE, 2: HOSTILE + "2"},
        outputs=synthetic_ranking(label=HOSTILE),
        environment={"cpu": HOSTILE, HOSTILE: HOSTILE, "libraries": {HOSTILE: HOSTILE}, "gpus": [{"name": HOSTILE}]},
        derived_from={"format": HOSTILE, "digest": HOSTILE, "converter": HOSTILE,
                      "agreement": {"measured": False, "reason": HOSTILE}, "before": {"format": HOSTILE}},
        recipe={"inputs": [{"name": HOSTILE, "dtype": HOSTILE, "shape": [HOSTILE], "steps": [{"step": HOSTILE}]}]},
    )  # fmt: skip


def test_hostile_names_stay_text(tmp_path):
    path = write_report([hostile_run(), synthetic_failed_run(HOSTILE, model=HOSTILE)], tmp_path / "hostile.html",
                        title=HOSTILE)  # fmt: skip
    page = page_of(path)
    assert not page.named("img")
    assert not page.named("b")
    assert len(page.scripts) == len(page.figures()) + 2
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    # the whole label is there for the reader
    assert page.text.count(HOSTILE) > 20
    for _, body in page.scripts[: len(page.figures())]:
        assert not set(body) & set("<>&\u2028\u2029")


def test_hostile_names_are_literal_for_plotly(tmp_path):
    page = page_of(write_report(hostile_run(), tmp_path / "hostile.html"))
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

    found = list(texts(page.figures()))
    assert any("&lt;script&gt;" in text for text in found)
    for text in found:
        assert set(re.findall(r"<[^>]*>", text)) <= ours
        assert "$" not in text
        assert "\n" not in text


def test_labels_without_a_utf8_form_are_written(tmp_path):
    failed = synthetic_failed_run("lone \ud800 surrogate")
    assert "lone ? surrogate" in page_of(write_report(failed, tmp_path / "r.html", title="\udfff")).text


def test_run_without_layers_says_what_to_do(tmp_path):
    page = page_of(write_report(synthetic_run(layers=0), tmp_path / "r.html"))
    assert "Profile again with level='layer'" in page.text
    assert len(page.figures()) == 1


def test_failed_run_shows_its_failure(tmp_path):
    page = page_of(write_report(synthetic_failed_run("Killed by signal 9."), tmp_path / "r.html"))
    assert "failed (crash)" in page.text
    assert "Killed by signal 9." in page.text
    assert "last words" in page.text
    assert "Nothing was measured" in page.text
    assert not page.scripts


def test_failed_run_stands_beside_a_complete_one(tmp_path):
    runs = [synthetic_run(), synthetic_failed_run("It hung.", backend="pytorch")]
    page = page_of(write_report(runs, tmp_path / "r.html"))
    assert "pytorch: failed (crash)" in page.text
    assert "5.0" in page.text


def test_one_process_is_said_to_be_one(tmp_path):
    page = page_of(write_report(synthetic_run(processes=1), tmp_path / "r.html"))
    assert "another process may differ by more" in page.text


def test_too_few_iterations_leave_unknown_intervals(tmp_path):
    page = page_of(write_report(synthetic_run(processes=1, iterations=3), tmp_path / "r.html"))
    assert "unknown" in page.text
    assert not re.search(r"\bnan\b", page.text.lower())
    assert "needs 64" in page.text


def test_comparison_of_runs_measured_apart_says_so(tmp_path):
    a = synthetic_run(backend="pytorch")
    b = synthetic_run(backend="onnxruntime", clock_anchor_unix_ns=1_795_900_000_000_000_000)
    page = page_of(write_report([a, b], tmp_path / "r.html"))
    assert "measured one after the other" in page.text


def test_drift_is_said(tmp_path):
    run = synthetic_run(processes=1, iterations=30, layers=0)
    ramp = (np.linspace(1.0, 1.5, 30) * 5_000_000).astype(np.int64)
    latency = run["latency"].to_dataset()
    latency["predict_ns"].values[:] = ramp
    run["latency"] = xr.DataTree(latency)
    assert "drifted" in page_of(write_report(run, tmp_path / "r.html")).text


def test_derivation_gives_the_measured_agreement(tmp_path):
    origin = {
        "format": "torch_state_dict", "digest": "sha256:" + "c" * 64, "converter": "torch_to_onnx", "before": None,
        "agreement": {"measured": True, "backends": ["pytorch", "onnxruntime"], "max_abs_difference": 4.2e-6,
                      "output_scale": 9.1, "input": "seeded standard normal values"},
    }  # fmt: skip
    text = page_of(write_report(synthetic_run(derived_from=origin), tmp_path / "r.html")).text
    assert "Converted from torch_state_dict by torch_to_onnx" in text
    assert "4.20e-06" in text


def test_difference_of_answers_is_given(tmp_path):
    runs = [
        synthetic_run(backend="onnxruntime"),
        synthetic_run(backend="pytorch", outputs=synthetic_ranking(shift=0.25)),
    ]
    text = page_of(write_report(runs, tmp_path / "r.html")).text
    assert "0.250 (pytorch)" in text


def test_report_replaces_in_one_step_and_makes_folders(tmp_path):
    target = tmp_path / "new" / "r.html"
    first = write_report(synthetic_run(layers=0), target)
    write_report(synthetic_failed_run(), target)
    assert first == target
    assert "failed" in page_of(target).text
    assert [p.name for p in target.parent.iterdir()] == ["r.html"]


def test_unwritable_path_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        write_report(synthetic_failed_run(), tmp_path / "file" / "r.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError):
        write_report(synthetic_failed_run(), tmp_path / "folder")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(SchemaError):
        write_report(xr.DataTree(), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_importing_the_report_loads_neither_plotly_nor_xarray():
    code = "import sys, mlscope_lab.report; print({'plotly', 'xarray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
