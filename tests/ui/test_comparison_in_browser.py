"""The page of a comparison in a real browser: no request, no error, every figure drawn, the table sorts and filters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlscope_lab.report import write_report
from mlscope_lab.testing import synthetic_comparison
from tests.ui.test_report_in_browser import ARGUMENTS, HOSTILE, _chromium

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

_VISIBLE = "() => [...document.querySelectorAll('.pairs tbody tr')].filter(r => !r.hidden)"


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
    tree = synthetic_comparison(40, fault_at=15, samples=2, rename={15: HOSTILE}, warnings=[HOSTILE])
    return write_report(tree, tmp_path_factory.mktemp("report") / "comparison.html")


@pytest.fixture
def page(browser, report) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.seen = []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("console", lambda message: page.seen.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    page.goto(report.as_uri(), timeout=240_000)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))", timeout=240_000
    )
    yield page
    assert page.seen == [report.as_uri()]
    context.close()


def numbers(page: Any) -> list[int]:
    return page.evaluate(f"({_VISIBLE})().map(r => Number(r.cells[0].textContent))")


def test_it_opens_from_disk_and_fits_both_widths_and_schemes(page):
    assert page.locator(".plot").count() == 5
    assert page.locator("img").count() == 0
    assert "parts from pytorch" in page.locator(".answer").inner_text()
    # names are there as text, in the heading and in the figure
    assert "<script>" in page.locator("#worst h3").first.inner_text()
    assert page.locator(".plot .annotation-text", has_text="<script>").count() == 1
    papers = {"light": "rgb(253, 253, 252)", "dark": "rgb(21, 24, 28)"}
    for width in (1440, 800):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme, paper in papers.items():
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every("
            "p => p.querySelector('.main-svg').getBoundingClientRect().right <= innerWidth)",
            timeout=240_000,
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1440, 800])
def test_no_text_of_a_figure_is_cut_or_lies_on_another(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(300)
    problems = page.evaluate(
        """() => {
          const found = [];
          for (const plot of document.querySelectorAll('.plot')) {
            const frame = plot.getBoundingClientRect();
            const texts = [...plot.querySelectorAll('.xtick text, .ytick text, .x2tick text, .y2tick text, '
              + '.x3tick text, .legendtext, .annotation-text, .g-xtitle text, .g-ytitle text, .g-x2title text, '
              + '.g-y2title text, .g-x3title text')].filter(t => t.textContent);
            const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
            for (const [text, b] of boxes)
              if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1
                  || b.bottom > frame.bottom + 1) found.push(`cut: ${text}`);
            boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([two, b]) => {
              if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2) found.push(`${one} on ${two}`);
            }));
          }
          return found;
        }"""
    )
    assert problems == []


def test_the_table_filters_and_sorts(page):
    assert numbers(page) == list(range(40))
    page.get_by_label("only beyond tolerance").check()
    assert numbers(page) == list(range(15, 40))
    assert page.locator(".sieve output").inner_text() == "25 of 40 shown"
    page.get_by_label("only beyond tolerance").uncheck()
    page.get_by_label("Filter").fill("blocks.2.EXPAND/")
    assert numbers(page) == [13]
    page.get_by_label("Filter").fill("no such layer")
    assert numbers(page) == []
    page.get_by_label("Filter").fill("")
    head = page.get_by_role("columnheader", name="Largest error")
    head.get_by_role("button").click()
    down = page.evaluate(f"({_VISIBLE})().map(r => Number(r.cells[4].dataset.v))")
    assert down == sorted(down, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    up = page.evaluate(f"({_VISIBLE})().map(r => Number(r.cells[4].dataset.v))")
    assert up == sorted(up)
    # what was not replayed comes last, whichever way
    injected = page.get_by_role("columnheader", name="Injected").get_by_role("button")
    for _ in range(2):
        injected.click()
        assert numbers(page)[-1] == 0
    page.get_by_role("columnheader", name="Verdict").get_by_role("button").click()
    assert page.evaluate(f"({_VISIBLE})()[0].cells[6].textContent") == "within"
