"""One standalone HTML page: its policy, its figures, its scripts, and its way to the disk.

A page asks no host for anything: plotly's script is inlined once, and a content security policy names by digest the
scripts that may run, so that neither a label from a model nor a later edit brings in another one. Everything else is
HTML and CSS; without scripts the tables still hold every number.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlscope_lab._version import __version__
from mlscope_lab.errors import StoreError
from mlscope_lab.report.html_ import Html, tag

__all__ = ["Figures", "document", "write_page"]

# Every figure is data in an element of its own; this constant text draws them.
_DRAW = """
for (const place of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  Plotly.newPlot(place, figure.data, figure.layout,
    {displayModeBar: false, responsive: true, showLink: false, plotlyServerURL: ""});
}
"""


def _json_for_html(text: str) -> Html:
    """Return JSON that cannot end, or open, any element: all of its markup characters as JSON escapes."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)


class Figures:
    """Collect figures while the sections are built."""

    def __init__(self) -> None:
        self.data: list[Html] = []

    def __call__(self, figure: Any, *, label: str, caption: str) -> Html:
        """Place a figure on the page."""
        name = f"figure-{len(self.data) + 1}"
        content = json.loads(figure.to_json())
        height = int(content["layout"]["height"])
        content["layout"]["dragmode"] = False  # a finger or a wheel over a figure scrolls the page
        # bars carry their colour themselves, so their error bars take the page's ink
        kind = "plot bars" if any(trace["type"] == "bar" for trace in content["data"]) else "plot"
        self.data.append(tag("script", _json_for_html(json.dumps(content)), type="application/json", id=name))
        return tag(
            "figure",
            tag("div", class_=kind, style=f"min-height:{height}px", data_figure=name, role="img", aria_label=label),
            tag("figcaption", caption),
        )


def _source(script: str) -> str:
    """Return a script's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def document(title: str, body: Sequence[Html | None], draw: Figures, *, scripts: Sequence[str] = ()) -> str:
    """Return a whole page.

    Parameters
    ----------
    title
        Of the window.
    body
        Sections.
    draw
        The figures that the sections placed.
    scripts
        Constant texts that run besides those which draw; never anything that holds a label.
    """
    from plotly.offline import get_plotlyjs

    running = [*([str(get_plotlyjs()), _DRAW] if draw.data else []), *scripts]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, running)) or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    css = files("mlscope_lab.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"mlscope-lab {__version__}"),
        tag("title", title),
        tag("style", Html(css)),
    )
    noscript = tag("noscript", tag("p", "Figures need scripts; the tables hold the same numbers.", class_="note"))
    page = tag(
        "body", tag("main", noscript, *body), *draw.data, *(tag("script", Html(text)) for text in running)
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, page, lang='en')}\n"


def write_page(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page in one step; folders are made, a file that is there is replaced.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    # a lone surrogate, which a label may hold, has no UTF-8 form
    content = text.encode("utf-8", "replace")
    target = Path(path).expanduser().absolute()
    work = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}"[:200])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with work.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, target)
    except OSError as error:
        raise StoreError(
            f"The report could not be written to {target}: {error.strerror or error}. Give a path in a folder that "
            "you may write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after a rename; where its folder is none, it never was
            work.unlink()
    return target
