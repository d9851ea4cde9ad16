"""A comparison as JSON and as text: what compare and judge show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlscope_lab.cli.output import Column, heading, print_pairs, print_table
from mlscope_lab.cli.text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from mlscope_lab.divergence.result import Comparison

__all__ = ["comparison_json", "print_comparison"]

_VERDICTS = {1: "beyond", 0: "within", -1: "not judged"}


def comparison_json(found: Comparison, *, worst: int) -> dict[str, Any]:
    """Return what ``mlscope compare --json`` prints; see the command's help."""
    from mlscope_lab.divergence import schema
    from mlscope_lab.report import comparison_view
    from mlscope_lab.report.comparison_figures import pair_rows

    tree, attrs = found.tree, found.tree.attrs
    rows = pair_rows(tree) if schema.PAIRS in tree.children else []
    beyond = [row for row in rows if row["diverges"] == 1]
    return {
        "run_id": found.run_id, "status": attrs["status"], "model": attrs["model"], "sides": attrs["sides"],
        "diverges": found.diverges, "sentence": comparison_view.answer_sentence(tree),
        "explanation": comparison_view.explanation(tree) if rows else "",
        "consequence": comparison_view.consequence(tree),
        "first_divergent": found.first_divergent, "culprit": found.culprit, "pairs": len(rows),
        "judged": sum(row["diverges"] >= 0 for row in rows), "beyond": len(beyond),
        "worst": [rows[i] for i in comparison_view.worst_pairs(tree, worst)] if rows else [],
        "alignment": attrs["alignment"], "unmatched": found.unmatched().to_dict("records"),
        "observer_effect": attrs["observer_effect"], "samples": found.samples().to_dict("records"),
        "calibration": attrs.get("calibration", {}), "warnings": attrs["warnings"], "failure": attrs.get("failure"),
        "repro": attrs.get("repro"),
    }  # fmt: skip


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _observed(said: dict[str, Any]) -> str | None:
    changed = [
        f"stepping changes the outputs of side {seen['side']} by up to {_number(seen['max_abs_difference'])}"
        for seen in said["observer_effect"] if not seen["equal"]
    ]  # fmt: skip
    if changed:
        return "; ".join(changed)
    return "none: outputs are the same while watched" if said["observer_effect"] else None


def print_comparison(out: Console, found: Comparison, *, worst: int) -> None:
    """Print what was found: the answer, who is to blame, and the worst pairs."""
    from mlscope_lab.report import comparison_view
    from mlscope_lab.report.comparison_figures import who

    said = comparison_json(found, worst=worst)
    heading(out, comparison_view.title(found.tree))
    for sentence in (said["sentence"], said["explanation"], said["consequence"]):
        if sentence:
            out.print(plain(sentence))
    aligned = said["alignment"]
    unpaired = [row for row in said["unmatched"] if row["reason"] != "moves values only"]
    listed = ", ".join(f"{row['operation']} ({row['side']})" for row in unpaired[:4])
    more = f" and {len(unpaired) - 4} more" if len(unpaired) > 4 else ""
    out.print()
    print_pairs(out, [
        ("values compared", f"{said['pairs']}, {said['beyond']} of them beyond tolerance" if said["pairs"] else None),
        ("compute layers paired", f"{aligned['paired_a']} of {aligned['compute_a']} (a), {aligned['paired_b']} of "
                                  f"{aligned['compute_b']} (b)" if "compute_a" in aligned else None),
        ("without a partner", f"{listed}{more}" if unpaired else None),
        ("observer effect", _observed(said)),
        ("repro", f"{said['repro']['folder']} (off by {_number(said['repro']['max_abs'])})" if said["repro"] else None),
        ("stored as", said["run_id"]),
        ("judge it anew", f"mlscope judge {said['run_id']} --tolerance atol=1e-4,rtol=1e-3"),
    ])  # fmt: skip
    columns = [
        Column(title="#", right=True, keep=6), Column(title="layer (b)", keep=10, shrink=True),
        Column(title="reference (a)", keep=4, shrink=True), Column(title="error", right=True, keep=9),
        Column(title="allowed", right=True, keep=8), Column(title="injected", right=True, keep=7),
        Column(title="relative L2", right=True, keep=3), Column(title="verdict", keep=5),
    ]  # fmt: skip
    rows = [
        (row["position"], who(row), (row["operations_a"] or row["value_a"]).replace(";", " + "),
         _number(row["max_abs_error"]), _number(row["allowed"]), _number(row["injected_max_abs"]),
         _number(row["l2_relative"]), _VERDICTS[row["diverges"]] + (", injects" if row["injects"] == 1 else ""))
        for row in said["worst"]
    ]  # fmt: skip
    if rows:
        print_table(out, columns, rows, title="Worst pairs" if found.diverges else "Pairs nearest to their tolerance")
    for warning in said["warnings"]:
        out.print(f"Warning: {plain(warning)}")
