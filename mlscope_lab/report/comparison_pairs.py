"""Sections on aligned pairs: the worst ones drawn, and all of them as a table to sort and filter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlscope_lab.divergence import schema
from mlscope_lab.report.comparison_figures import Row, pair_figure, pair_rows, who
from mlscope_lab.report.comparison_view import worst_pairs
from mlscope_lab.report.document import Figures
from mlscope_lab.report.html_ import Column, Html, join, table, tag
from mlscope_lab.report.units import UNKNOWN, format_number

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCRIPT", "table_section", "worst_section"]

_WORST = 4
_VERDICTS = {1: "beyond", 0: "within", -1: "not judged"}

SCRIPT = """
for (const box of document.querySelectorAll(".sifted")) {
  const table = box.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const word = box.querySelector("input[type=search]"), only = box.querySelector("input[type=checkbox]");
  const count = box.querySelector("output");
  const sift = () => {
    const wanted = word.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = (only.checked && !row.dataset.beyond) || !row.textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} shown`;
  };
  word.addEventListener("input", sift);
  only.addEventListener("change", sift);
  box.querySelector(".sieve").hidden = false;
  sift();
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => { const v = row.cells[place].dataset.v; return v === undefined ? null : Number(v); };
      const order = (one, other) => {
        const x = key(one), y = key(other);
        if (x === null && y === null) {
          const text = [one, other].map(row => row.cells[place].textContent);
          return text[0].localeCompare(text[1]) * (down ? -1 : 1);
        }
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return (x - y) * (down ? -1 : 1);
      };
      body.append(...[...rows].sort(order));
    });
  });
}
"""


def _groups(text: str) -> str:
    return " → ".join(text.split(";")) if text else UNKNOWN


def _facts(row: Row) -> Html:
    """Return all that is known of a pair."""
    n = format_number
    axes = f", axes {row['axes']}" if row["axes"] else ""
    values: list[tuple[str, str]] = [
        ("Computed in a by", _groups(row["operations_a"])),
        ("Computed in b by", _groups(row["operations_b"])),
        ("Shape and type", f"a ({row['shape_a']}) {row['dtype_a']}; b ({row['shape_b']}) {row['dtype_b']}{axes}"),
        ("Largest error", f"{n(row['max_abs_error'])} at ({row['worst_position']}): a has {n(row['worst_a'], 6)}, b "
                          f"{n(row['worst_b'], 6)}"),
        ("Allowed", f"{n(row['allowed'])} ({row['tolerance_source'] or 'not judged'}); out of it: {_share(row)} of "
                    f"{row['count']:,} elements"),
        ("Mean and rms error", f"{n(row['mean_abs_error'])}, {n(row['rms_error'])}"),
        ("Relative error", f"L2 {n(row['l2_relative'])}, largest {n(row['max_rel_error'])}, mean "
                           f"{n(row['mean_rel_error'])}"),
        ("Likeness", f"cosine {row['cosine']:.9g}, SQNR {n(row['sqnr_db'])} dB, PSNR {n(row['psnr_db'])} dB"),
        ("Distributions", f"KL {n(row['kl_divergence'])}, Jensen-Shannon {n(row['js_divergence'])}, Hellinger "
                          f"{n(row['hellinger'])}"),
        ("Range", "; ".join(f"{s} {n(row[f'min_{s}'])} to {n(row[f'max_{s}'])}, rms {n(row[f'rms_{s}'])}"
                            for s in "ab")),
        ("NaN and infinite", "; ".join(f"{s} {row[f'nan_{s}']} and {row[f'inf_{s}']}" for s in "ab")),
        ("Injected", "not replayed" if math.isnan(row["injected_max_abs"]) else
         f"{n(row['injected_max_abs'])} on the reference's own inputs (relative L2 "
         f"{n(row['injected_l2_relative'])}); rounding explains {n(row['injected_tolerance'])}"),
        ("Paired by", f"{_evidence(row)}, confidence {row['confidence']:.3f}"),
    ]  # fmt: skip
    rows: list[list[str | None]] = [[name, value] for name, value in values]
    caption = f"All numbers of pair {row['position']}"
    return table(caption, [Column(""), Column("")], rows, class_="facts")


def _evidence(row: Row) -> str:
    return ", ".join(str(row["evidence"]).split(";"))


def _share(row: Row) -> str:
    low, high = row["share_out_low"], row["share_out_high"]
    if math.isnan(low):
        return UNKNOWN
    return f"{low:.2%}" if math.isclose(low, high, abs_tol=5e-5) else f"{low:.2%} to {high:.2%}"


def _role(tree: xr.DataTree, position: int) -> str:
    roles = []
    if position == int(tree.attrs["first_divergent"]):
        roles.append("first divergent")
    if position == int(tree.attrs["culprit"]):
        roles.append("makes the error")
    return f" \N{EN DASH} {', '.join(roles)}" if roles else ""


def worst_section(tree: xr.DataTree, draw: Figures) -> Html | None:
    """Return the culprit, the first divergent pair and the worst others, each drawn; None where all are equal."""
    chosen = worst_pairs(tree, _WORST)
    if not chosen:
        return None
    rows = pair_rows(tree)
    parts: list[Html] = []
    for position in chosen:
        numbers = _facts(rows[position])
        if parts:
            numbers = tag("details", tag("summary", f"All numbers of pair {position}"), numbers)
        parts += [
            tag("h3", f"{position}: {who(rows[position])}{_role(tree, position)}"),
            draw(
                pair_figure(tree, position),
                label=f"Values of both sides of pair {position}, the size of its error, and its error by channel; "
                      "the table below has the numbers",
                caption="Left: the values of either side, in the same bins. Right: how many elements have an error of "
                        "which size, by the size of the reference; the stronger the colour, the more."
                        + (" Below: which channels it is in." if _has_channels(tree, position) else ""),
            ),
            numbers,
        ]  # fmt: skip
    heading = "The worst pairs" if int(tree.attrs["first_divergent"]) >= 0 else "The pairs nearest to their tolerance"
    return tag("section", tag("h2", heading), *parts, id="worst")


def _has_channels(tree: xr.DataTree, position: int) -> bool:
    return int((tree[schema.CHANNELS].dataset["pair_index"].values == position).sum()) > 1


def _cell(text: str, value: float | None = None) -> Html:
    if value is None:
        return tag("td", text)
    return tag(
        "td", text, class_="n", data_v="NaN" if math.isnan(value) else repr(float(value)).replace("inf", "Infinity")
    )


_COLUMNS = (
    ("#", True), ("Layer of b", False), ("Of the reference", False), ("Shape", False), ("Largest error", True),
    ("Allowed", True), ("Verdict", False), ("Injected", True), ("Relative L2", True), ("Cosine", True),
    ("SQNR, dB", True), ("Out", True), ("Confidence", True), ("Paired by", False),
)  # fmt: skip


def _table_row(row: Row) -> Html:
    injects, out = row["injects"] == 1, row["share_out_high"]
    said = _VERDICTS[row["diverges"]]
    if injects:
        said += ", injects"
    elif row["diverges"] == 1 and row["injects"] == 0:
        said += ", inherited"
    marked = row["diverges"] == 1 or injects
    cells = [
        tag("th", str(row["position"]), scope="row", class_="n", data_v=str(row["position"])),
        _cell(who(row)), _cell(_groups(row["operations_a"] or row["value_a"])), _cell(f"({row['shape_a']})"),
        *(_cell(format_number(row[name]), row[name]) for name in ("max_abs_error", "allowed")),
        tag("td", tag("strong", said) if marked else said),
        *(_cell(format_number(row[name]), row[name]) for name in ("injected_max_abs", "l2_relative")),
        _cell(UNKNOWN if math.isnan(row["cosine"]) else f"{row['cosine']:.6f}", row["cosine"]),
        _cell(format_number(row["sqnr_db"]), row["sqnr_db"]), _cell(UNKNOWN if math.isnan(out) else f"{out:.2%}", out),
        _cell(f"{row['confidence']:.3f}", row["confidence"]), _cell(_evidence(row)),
    ]  # fmt: skip
    return tag("tr", *cells, data_beyond="1" if marked else None)


def table_section(tree: xr.DataTree) -> Html:
    """Return every pair as a row; where scripts run, the table can be sorted and filtered."""
    meaning = (
        "Beyond: out of tolerance. Injects: fed the reference's own inputs, the layer makes more error than rounding "
        "explains. Inherited: it does not, so its error comes from the layers before it."
    )
    rows = [_table_row(row) for row in pair_rows(tree)]
    head = tag("tr", *(tag("th", name, scope="col", class_="n" if numeric else None) for name, numeric in _COLUMNS))
    inner = tag(
        "table",
        tag("caption", "Values that both sides compute, in the reference's order"),
        tag("thead", head),
        tag("tbody", *rows),
        class_="pairs",
    )
    sieve = tag(
        "p", tag("label", "Filter ", tag("input", type="search", placeholder="name, type, shape …")),
        tag("label", tag("input", type="checkbox"), " only beyond tolerance or injecting"),
        tag("output", aria_live="polite"), class_="sieve note", hidden="",
    )  # fmt: skip
    box = tag("div", inner, class_="scroll tall", tabindex="0", role="region", aria_label="All pairs")
    return tag(
        "section",
        tag("h2", "All pairs"),
        tag("p", meaning, class_="note"),
        tag("div", join([sieve, box]), class_="sifted"),
        id="pairs",
    )
