"""Runs as one standalone HTML page.

The page asks no host for anything: plotly's script is inlined once, and a content security policy names by digest the
two scripts that may run, so that neither a label from a model nor a later edit brings in another one. Everything else
is HTML and CSS; without scripts the tables still hold every number.
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
from typing import TYPE_CHECKING, Any

from mlscope_lab._version import __version__
from mlscope_lab.errors import InputError, StoreError
from mlscope_lab.report import depth, origins, results
from mlscope_lab.report.html_ import Html, join, tag
from mlscope_lab.report.units import time_scale
from mlscope_lab.report.view import RunView, view_runs

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["write_report"]

# Every figure is data in an element of its own; this constant text is the only script besides plotly's.
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


class _Figures:
    """Collect figures while the sections are built."""

    def __init__(self) -> None:
        self.data: list[Html] = []

    def __call__(self, figure: Any, *, label: str, caption: str) -> Html:
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


def _title(views: Sequence[RunView]) -> str:
    models = list(dict.fromkeys(str(v.attrs["model"]) for v in views))
    backends = list(dict.fromkeys(v.backend for v in views))
    what = models[0] if len(models) == 1 else f"{len(models)} models"
    if len(backends) == 1:
        return f"{what} on {backends[0]}"
    return f"{what} on {', '.join(backends[:-1])} and {backends[-1]}"


def _lead(views: Sequence[RunView]) -> Html:
    """Return one sentence on what was measured where, and one with the result."""
    first = views[0].attrs
    environment = first["environment"]
    created = sorted(str(v.attrs["created_at"]) for v in views)
    threads = sorted({int(v.attrs["threads"]) for v in views if v.attrs["threads"]})
    batches = sorted({int(v.attrs["batch_size"]) for v in views if v.attrs["batch_size"]})
    facts = [
        created[0][:16].replace("T", " ") + " UTC" if created[0].endswith(("+00:00", "Z")) else created[0][:16],
        str(environment["cpu"]) if environment.get("cpu") else None,
        f"{'/'.join(map(str, threads))} thread{'s' if threads != [1] else ''}" if threads else None,
        f"batch size {'/'.join(map(str, batches))}" if batches else None,
    ]
    measured = [(v, v.summary.sel(stage="predict")) for v in views if v.summary is not None]
    scale = time_scale([float(p["median_ns"]) for _, p in measured])
    said = [
        join([
            tag("strong", scale.text(float(p["median_ns"]))), " ",
            tag("span", scale.interval(float(p["low_ns"]), float(p["high_ns"])), class_="lead")
            if float(p["low_ns"]) == float(p["low_ns"]) else None,
            f" on {v.label}" if len(views) > 1 else " a predict, median with its 95 % interval",
        ])
        for v, p in measured
    ]  # fmt: skip
    answer = [said[0]] if said else []
    for sentence in said[1:]:
        answer += [Html(", "), sentence]
    return join([
        tag("p", " · ".join(f for f in facts if f), class_="lead"),
        tag("p", *answer, ".", class_="answer") if answer else None,
    ])  # fmt: skip


def _document(views: Sequence[RunView], title: str) -> str:
    from plotly.offline import get_plotlyjs

    draw = _Figures()
    body = [
        tag("header", tag("h1", title), _lead(views)),
        results.failures_section(views),
        results.latency_section(views, draw),
        results.answers_section(views),
        results.layers_section(views, draw),
        depth.levels_section(views),
        depth.work_section(views),
        origins.warnings_section(views),
        origins.environment_section(views),
        origins.provenance_section(views),
        tag("footer", f"Written by mlscope-lab {__version__}. Medians of untraced predicts; layers come from passes of "
                      "their own, whose cost is given with them. The page needs no network."),
    ]  # fmt: skip
    plotly = str(get_plotlyjs())
    scripts = [plotly, _DRAW] if draw.data else []
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts)) or chr(39) + 'none' + chr(39)}; "
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
        "body", tag("main", noscript, *body), *draw.data, *(tag("script", Html(text)) for text in scripts)
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, page, lang='en')}\n"


def write_report(run_or_runs: xr.DataTree | Sequence[xr.DataTree], path: Path, *, title: str | None = None) -> Path:
    """Write runs as one HTML page that opens from disk and asks no host for anything.

    Parameters
    ----------
    run_or_runs
        A run, or several to stand side by side, e.g. one a backend. Failed runs and runs without layers are welcome.
    path
        File to write, about 5 MB; one that is there is replaced in one step, folders are made.
    title
        Heading; default model and backends.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    InputError
        If there is no run.
    SchemaError
        If a tree is not a run.
    StoreError
        If the file cannot be written.
    """
    import xarray as xr

    runs = [run_or_runs] if isinstance(run_or_runs, xr.DataTree) else list(run_or_runs)
    if not runs:
        raise InputError("A report needs at least one run: give a run, or a list of runs")
    views = view_runs(runs)
    # a lone surrogate, which a label may hold, has no UTF-8 form
    content = _document(views, title or _title(views)).encode("utf-8", "replace")
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
