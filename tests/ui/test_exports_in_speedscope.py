"""Exported files in a viewer's own parser: speedscope's page, which reads its own format and Chrome's traces.

Perfetto's trace processor comes with no package, so a Perfetto window is not opened here.
"""

from __future__ import annotations

import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mlscope_lab.testing import synthetic_run
from mlscope_lab.trace.exporters import export_trace

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


def _chromium() -> str | None:
    """Return what ``tests/chromium.py`` finds; tests are no package, so it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.find()


def _speedscope() -> Path | None:
    """Return the folder of speedscope's page: MLSCOPE_TEST_SPEEDSCOPE, or that of the npm package on the path."""
    places = [os.environ.get("MLSCOPE_TEST_SPEEDSCOPE", "")]
    if command := shutil.which("speedscope"):
        places.append(str(Path(command).resolve().parents[1] / "dist" / "release"))
    return next((Path(place) for place in places if place and (Path(place) / "index.html").is_file()), None)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve speedscope's page and this test's files on loopback."""
    release = _speedscope()
    if release is None:
        pytest.skip("speedscope is not installed: npm install --global speedscope, or MLSCOPE_TEST_SPEEDSCOPE=FOLDER")
    folder = tmp_path / "page"
    shutil.copytree(release, folder)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


# of a Chrome trace it shows the thread, two streams, the steps and the counter ranges; layers lie on no thread there
@pytest.mark.parametrize(("form", "profiles"), [("speedscope", 6), ("perfetto", 5)])
def test_speedscope_opens_what_is_exported(served: tuple[Path, str], form: str, profiles: int) -> None:
    executable = _chromium()
    if executable is None:
        pytest.skip("no Chromium: set MLSCOPE_CHROMIUM or install chromium")
    folder, address = served
    export_trace(synthetic_run(deep=True, processes=1), folder / "run.json", form)
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=executable, args=ARGUMENTS)
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/index.html#profileURL=/run.json&title=exported")
        page.wait_for_function("() => document.body.innerText.includes('exported (1/')", timeout=60_000)
        assert f"exported (1/{profiles})" in page.inner_text("body")
        assert not errors
        browser.close()
