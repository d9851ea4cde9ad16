"""Sections on how a comparison was made: what is not paired, what rounding explains, and what watching changed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mlscope_lab.divergence import schema
from mlscope_lab.report.html_ import Column, Html, table, tag
from mlscope_lab.report.units import format_number

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["method_sections"]

_EVIDENCE = {
    "input": "as inputs", "output": "as outputs", "fixed": "because a person said so",
    "provenance": "by names that the exporter left", "values": "by equal values in any layout",
    "structure": "by types, shapes and order",
}  # fmt: skip
_MOVES = "moves values only"


def _operations(tree: xr.DataTree) -> Html:
    data = tree[schema.UNMATCHED].dataset
    columns = [Column("Operation"), Column("Type"), Column("Side"), Column("Why")]
    rows: list[list[str | None]] = [
        [str(data["operation"].values[i]), str(data["type"].values[i]), str(data["side"].values[i]),
         str(data["reason"].values[i])]
        for i in range(data.sizes["unmatched"])
    ]  # fmt: skip
    moving = [row for row in rows if row[3] == _MOVES]
    other = [row for row in rows if row[3] != _MOVES]
    parts: list[Html] = [
        table(f"Operations that compute and have no partner: {len(other)}", columns, other, class_="layers")
        if other else tag("p", "Every operation that computes has a partner.")
    ]  # fmt: skip
    if moving:
        inner = table("Reorders, transposes, reshapes, pads and casts", columns, moving, class_="layers")
        parts.append(tag("details", tag("summary", f"Operations that only move values: {len(moving)}"), inner))
    return tag("section", tag("h2", "What is not paired"), *parts, id="unmatched")


def _aligned(tree: xr.DataTree) -> list[Html]:
    facts = tree.attrs["alignment"]
    pairs = tree[schema.PAIRS].dataset
    why = Counter(str(text).split(";")[0] for text in pairs["evidence"].values)
    reasons = "; ".join(f"{count} {_EVIDENCE.get(word, word)}" for word, count in why.most_common())
    confidence = pairs["confidence"].values
    doubtful = int((confidence < 0.9).sum())
    names = "Names that exporters leave were used." if facts.get("provenance") else "No exporter's names were used."
    sentences = [
        f"{facts.get('paired_a', 0)} of {facts.get('compute_a', 0)} convolutions, products and the like of a are "
        f"paired, {facts.get('paired_b', 0)} of {facts.get('compute_b', 0)} of b. {names}",
        f"Of {pairs.sizes['pair']} pairs, by the strongest evidence: {reasons}." if reasons else "",
        f"Pairs with a confidence under 0.9: {doubtful}. Look at these first where a result surprises, and fix a wrong "
        "one with fixes=." if doubtful else "",
    ]  # fmt: skip
    return [tag("p", s) for s in sentences if s] + [tag("p", str(note)) for note in facts.get("notes", [])]


def _tolerances(tree: xr.DataTree) -> list[Html]:
    sources = Counter(str(t) for t in tree[schema.PAIRS].dataset["tolerance_source"].values if str(t))
    said = "; ".join(f"{count} pairs: {source}" for source, count in sources.most_common(6))
    parts = [tag("p", f"Judged by: {said}." if said else "Nothing was judged.")]
    rows: list[list[str | None]] = [
        [f"{source.rsplit(' ', 1)[0]}, side {source.rsplit(' ', 1)[-1]}", str(how)]
        for source, how in tree.attrs.get("calibration", {}).items()
    ]
    if rows:
        parts.append(table("What arithmetic alone does was measured by", [Column("Source"), Column("How")], rows,
                           class_="facts"))  # fmt: skip
    missed = tree.attrs.get("not_replayed", {})
    if missed:
        reasons = Counter(str(reason) for reason in missed.values())
        shown = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(5))
        parts.append(tag("p", f"Pairs that were not replayed on the reference's inputs: {shown}.", class_="note"))
    return parts


def _observer(tree: xr.DataTree) -> Html:
    rows: list[list[str | None]] = []
    sides = tree.attrs["sides"]
    for seen in tree.attrs["observer_effect"]:
        label = sides["ab".index(seen["side"])]["label"]
        rows.append([
            f"{seen['side']}: {label}", str(seen.get("method", "")),
            "equal to the last bit" if seen["equal"] else tag("strong", "differ by up to "
                                                              f"{format_number(float(seen['max_abs_difference']))}"),
            " ".join(str(n) for n in seen.get("notes", [])) or None,
        ])  # fmt: skip
    columns = [Column("Side"), Column("Values read by"), Column("Outputs while watched and not"), Column("Remark")]
    return tag("section", tag("h2", "Did watching change the answer?"),
               table("Outputs of the watched run beside those of a plain one", columns, rows)
               if rows else tag("p", "No side ran to its end, so this is not known."), id="observer")  # fmt: skip


def method_sections(tree: xr.DataTree) -> list[Html]:
    """Return the sections on what is unpaired, the observer effect, and how it was aligned and calibrated."""
    return [
        _operations(tree),
        _observer(tree),
        tag("section", tag("h2", "How it was aligned and judged"), *_aligned(tree), *_tolerances(tree), id="method"),
    ]
