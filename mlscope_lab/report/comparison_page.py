"""A comparison as one standalone HTML page: the answer first, then where, who, how much, and how it was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlscope_lab._version import __version__
from mlscope_lab.divergence import schema
from mlscope_lab.divergence.validate import validate_comparison
from mlscope_lab.report import comparison_pairs, comparison_view, origins, theme
from mlscope_lab.report.comparison_figures import divergence_figure
from mlscope_lab.report.comparison_method import method_sections
from mlscope_lab.report.document import Figures, document
from mlscope_lab.report.html_ import Column, Html, table, tag
from mlscope_lab.report.units import UNKNOWN, format_number

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

__all__ = ["comparison_document"]

_TOP = 5
_SAMPLES = 30

_FACTS = (
    ("Model", "model"), ("Version", "model_version"), ("Form", "format"), ("Backend", "backend"),
    ("Backend version", "backend_version"), ("Precision", "precision"), ("Device", "device"),
    ("Batch size", "batch_size"), ("Threads", "threads"), ("Graph optimisation", "graph_optimization"),
    ("Execution", "execution_mode"), ("Values read by", "method"), ("Model digest", "model_digest"),
    ("Executable digest", "executable_digest"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What the sections on the machine ask for."""

    label: str
    attrs: Mapping[str, Any]


def _header(tree: xr.DataTree, title: str) -> Html:
    attrs = tree.attrs
    created = str(attrs["created_at"])
    facts = [
        created[:16].replace("T", " ") + " UTC" if created.endswith(("+00:00", "Z")) else created[:16],
        attrs["environment"].get("cpu"), f"comparison {attrs['run_id']}",
    ]  # fmt: skip
    said = [comparison_view.answer_sentence(tree)]
    more = []
    if schema.PAIRS in tree.children:
        said.append(comparison_view.consequence(tree))
        more.append(comparison_view.explanation(tree))
    return tag(
        "header",
        tag("h1", title),
        tag("p", " · ".join(str(f) for f in facts if f), class_="lead"),
        tag("p", " ".join(s for s in said if s), class_="answer"),
        *(tag("p", s) for s in more if s),
    )


def _failure(tree: xr.DataTree) -> Html | None:
    if tree.attrs["status"] != "failed":
        return None
    failure = tree.attrs["failure"]
    kept = " What was compared until then is below." if schema.PAIRS in tree.children else ""
    return tag("section", tag("h3", f"Side {failure.get('side', '')} failed"), tag("p", f"{failure['message']}{kept}"),
               class_="alert")  # fmt: skip


def _swatch(colour: str) -> Html:
    return tag("span", class_="swatch", style=f"background:{colour}", aria_hidden="true")


def _sides(tree: xr.DataTree) -> Html:
    a, b = tree.attrs["sides"]
    colours = theme.side_colours(str(a["backend"]), str(b["backend"]))

    def shown(side: Mapping[str, Any], key: str) -> str:
        value = side.get(key)
        if key == "batch_size" and value is None:
            return "as many as there are samples"
        return UNKNOWN if value is None or value == "" else str(value)

    apart: list[list[str | None]] = []
    shared: list[list[str | None]] = []
    for title, key in _FACTS:
        one, other = shown(a, key), shown(b, key)
        (shared if one == other else apart).append([title, one, *([] if one == other else [other])])
    if a.get("preprocessing") == b.get("preprocessing"):
        shared.append(["Preprocessing", _steps(a)])
    else:
        apart.append(["Preprocessing", _steps(a), _steps(b)])
    names = [tag("span", _swatch(colour), text) for colour, text in zip(
        colours, (f"a, the reference: {a['label']}", f"b: {b['label']}"), strict=True)]  # fmt: skip
    return tag(
        "section",
        tag("h2", "The two sides"),
        tag("p", names[0], Html(" &emsp; "), names[1], class_="note"),
        table("What differs", [Column(""), Column("a"), Column("b")], apart, class_="facts")
        if apart else tag("p", "Nothing that is recorded differs."),
        tag("details", tag("summary", "What they share"),
            table("The same on both sides", [Column("")] * 2, shared, class_="facts")),
        id="sides",
    )  # fmt: skip


def _steps(side: Mapping[str, Any]) -> Html:
    """Return the steps that make a side's inputs, one a line."""
    steps = [json.dumps(step, ensure_ascii=False) for item in side.get("preprocessing") or [] for step in item["steps"]]
    return tag("ol", *(tag("li", tag("code", step)) for step in steps)) if steps else tag("span", "as given")


def _along(tree: xr.DataTree, draw: Figures) -> Html:
    pairs = tree[schema.PAIRS].dataset
    count = pairs.sizes["pair"]
    if not count:
        return tag("section", tag("h2", "Along the layers"), tag("p", "No value of one side was paired with one of the "
                   "other; the operations are listed below."), id="along")  # fmt: skip
    beyond = int((pairs["diverges"].values == 1).sum())
    return tag(
        "section",
        tag("h2", "Along the layers"),
        draw(
            divergence_figure(tree),
            label=f"Largest absolute error of {count} aligned values; {beyond} are out of tolerance. The table of "
                  "pairs holds the numbers.",
            caption="Largest absolute error of each aligned value, on a log scale. Grey: what is allowed. Filled marks "
                    "are beyond it; a diamond shows the error that a layer makes when it is fed the reference's own "
                    "inputs, so a filled mark without one has inherited its error.",
        ),
        id="along",
    )  # fmt: skip


def _ranked(array: np.ndarray[Any, Any]) -> list[int]:
    import numpy as np

    return [int(i) for i in np.argsort(-np.nan_to_num(array.astype(np.float64), nan=-np.inf), kind="stable")[:_TOP]]


def _outputs(tree: xr.DataTree) -> list[Html]:
    """Return the best-ranked classes of the first sample on both sides, for outputs that are rows of scores."""
    if schema.OUTPUTS not in tree.children:
        return []
    data = tree[schema.OUTPUTS].dataset
    sides = [[str(n) for n in data.data_vars if str(n).startswith(f"{letter}_")] for letter in "ab"]
    parts = []
    for one, other in zip(*sides, strict=False):
        a, b = data[one].values, data[other].values
        if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2 or a.dtype.kind != "f":
            continue
        rows: list[list[str | None]] = []
        for rank, (i, j) in enumerate(zip(_ranked(a[0]), _ranked(b[0]), strict=True), 1):
            other_class = f"class {j}" if i == j else tag("strong", f"class {j}")
            scores = [format_number(float(x), 6) for x in (a[0, i], b[0, j])]
            rows.append([str(rank), f"class {i}", scores[0], other_class, scores[1]])
        columns = [Column("Rank"), Column("a"), Column("Score of a", numeric=True), Column("b"),
                   Column("Score of b", numeric=True)]  # fmt: skip
        parts.append(table(f"Output {one[2:]}: best-ranked classes of the first sample", columns, rows))
    return parts


def _answers(tree: xr.DataTree) -> Html | None:
    if schema.SAMPLES not in tree.children:
        return None
    samples = tree[schema.SAMPLES].dataset
    rows: list[tuple[bool, list[str | None]]] = []
    for i in range(samples.sizes["sample"]):
        one = samples.isel(sample=i)
        top = [int(one[f"top1_{letter}"]) for letter in "ab"]
        status = str(one["status"].item())
        flip = min(top) >= 0 and top[0] != top[1]
        verdict = "the same" if min(top) >= 0 else UNKNOWN
        rows.append((flip or status != "compared", [
            str(one["sample"].item()), status if status == "compared" else tag("strong", status),
            UNKNOWN if top[0] < 0 else str(top[0]), UNKNOWN if top[1] < 0 else str(top[1]),
            tag("strong", "changes") if flip else verdict, format_number(float(one["output_max_abs_error"])),
            str(one["message"].item()) or None,
        ]))  # fmt: skip
    rows.sort(key=lambda row: not row[0])
    shown = min(_SAMPLES, len(rows))
    caption = (
        ("All samples" if len(rows) > 1 else "The sample")
        if shown == len(rows)
        else f"{shown} of {len(rows)} samples, flips first"
    )
    columns = [
        Column("Sample"), Column("Status"), Column("First class of a", numeric=True),
        Column("First class of b", numeric=True), Column("First answer"), Column("Largest output error", numeric=True),
        Column("Remark"),
    ]  # fmt: skip
    return tag("section", tag("h2", "What it does to the answer"), *_outputs(tree),
               table(caption, columns, [row for _, row in rows[:shown]]), id="answers")  # fmt: skip


def _reproduce(tree: xr.DataTree) -> Html:
    line, code = comparison_view.command_line(tree), comparison_view.code(tree)
    parts: list[Html] = []
    if line is not None:
        parts += [tag("p", "On the command line, where these files are:"), tag("pre", tag("code", line))]
    if code is not None:
        parts += [tag("p", "In Python:"), tag("pre", tag("code", code))]
    if parts and comparison_view.inputs_in_memory(tree):
        parts.append(tag("p", tag("code", "x.npy"), " stands for the input, an array in memory: numpy.save writes it.",
                         class_="note"))  # fmt: skip
    if not parts:
        parts = [tag("p", "A side was a live object, which only the process that made it has.")]
    if isinstance(repro := tree.attrs.get("repro"), Mapping):
        off = f": off by {format_number(float(repro['max_abs']))}."
        where = tag("code", str(repro["folder"]))
        parts.append(tag("p", "The smallest ONNX model that shows it, with its inputs, is in ", where, off))
    parts.append(tag("p", "By another tolerance, without running again: ", tag("code",
                 f"mlscope judge {tree.attrs['run_id']} --tolerance atol=1e-4,rtol=1e-3"), class_="note"))  # fmt: skip
    return tag("section", tag("h2", "Do it again"), *parts, id="again")


def comparison_document(tree: xr.DataTree, title: str | None = None) -> str:
    """Return a comparison as a page.

    Parameters
    ----------
    tree
        As in `mlscope_lab.divergence.schema`.
    title
        Heading; default models and sides.

    Raises
    ------
    SchemaError
        If the tree is no comparison.
    """
    validate_comparison(tree)
    heading = title or comparison_view.title(tree)
    described = [_Described(label=heading, attrs={str(k): v for k, v in tree.attrs.items()})]
    draw = Figures()
    body: list[Html | None] = [_header(tree, heading), _failure(tree), _sides(tree)]
    scripts: list[str] = []
    if schema.PAIRS in tree.children:
        body += [_along(tree, draw), _answers(tree), comparison_pairs.worst_section(tree, draw),
                 comparison_pairs.table_section(tree), *method_sections(tree)]  # fmt: skip
        scripts = [comparison_pairs.SCRIPT]
    body += [
        _reproduce(tree), origins.warnings_section(described), origins.environment_section(described),
        tag("footer", f"Written by mlscope-lab {__version__}. Errors are b minus a. Quantiles, shares and divergences "
                      "of distributions come from binned sketches, all else is exact. The page needs no network."),
    ]  # fmt: skip
    return document(heading, body, draw, scripts=scripts)
