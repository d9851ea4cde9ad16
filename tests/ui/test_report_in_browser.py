"""The report in a real browser, from disk: no request, no error, every figure drawn, no label run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlscope_lab.report import write_report
from mlscope_lab.testing import synthetic_failed_run, synthetic_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = (
    "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\"><a href='javascript:1'>&lt;b&gt;"
)


def _chromium() -> str | None:
    """Return what ``tests/chromium.py`` finds; tests are no package, so it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.find()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = _chromium()
    if executable is None:
        pytest.skip("no Chromium: set MLSCOPE_CHROMIUM or install chromium")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [
        synthetic_run(backend="onnxruntime", rename={1: HOSTILE, 2: HOSTILE + " two"}),
        synthetic_run(backend="pytorch", seed=1, mean_ns=20_000_000, warnings=[HOSTILE]),
        synthetic_failed_run(HOSTILE, backend="tensorflow"),
    ]
    return write_report(runs, tmp_path_factory.mktemp("report") / "report.html", title=f"Title {HOSTILE}")


def test_report_opens_from_disk(browser, report):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page = context.new_page()
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    try:
        page.goto(report.as_uri(), timeout=240_000)
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))", timeout=240_000
        )
        plots = page.locator(".plot")
        assert plots.count() == 6
        assert requests == [report.as_uri()]
        assert problems == []
        assert page.title() == f"Title {HOSTILE}"
        assert page.locator("img").count() == 0
        assert page.locator("svg a").count() == 0
        # the label is there, as text, in table and figure
        assert "<script>" in page.locator("table.layers").first.inner_text()
        assert page.locator(".plot .ytick text", has_text="<script>").count() > 0
        inks = {"light": ("rgb(29, 33, 38)", "rgb(253, 253, 252)"), "dark": ("rgb(229, 232, 235)", "rgb(21, 24, 28)")}
        for width in (1440, 800):
            page.set_viewport_size({"width": width, "height": 900})
            for scheme, expected in inks.items():
                page.emulate_media(color_scheme=scheme)
                colours = page.evaluate(
                    "[getComputedStyle(document.querySelector('.ytick text')).fill,"
                    " getComputedStyle(document.body).backgroundColor]"
                )
                assert tuple(colours) == expected
            # wide tables scroll in their own boxes, and figures follow the page
            page.wait_for_function(
                "() => [...document.querySelectorAll('.plot')].every("
                "p => p.querySelector('.main-svg').getBoundingClientRect().right <= innerWidth)",
                timeout=240_000,
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert requests == [report.as_uri()]
        assert problems == []
    finally:
        context.close()


def test_policy_stops_what_escaping_would_miss(browser, report):
    """A script put into the page, as an escape missed would, is refused by the page's own policy."""
    context = browser.new_context()
    page = context.new_page()
    try:
        page.goto(report.as_uri(), timeout=240_000)
        page.evaluate(
            "const s = document.createElement('script'); s.textContent = 'document.title = \"ran\"'; "
            "document.body.append(s); document.body.insertAdjacentHTML('beforeend', "
            '\'<img src="x:y" onerror="document.title = 1">\')'
        )
        page.wait_for_timeout(200)
        assert page.title() == f"Title {HOSTILE}"
    finally:
        context.close()
