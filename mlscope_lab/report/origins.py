"""Sections on where the numbers come from: machine, software, model, and what could not be recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mlscope_lab.report.html_ import Column, Html, join, table, tag
from mlscope_lab.report.results import backend_cell
from mlscope_lab.report.units import UNKNOWN, format_bytes, format_number
from mlscope_lab.report.view import RunView

__all__ = ["Described", "environment_section", "provenance_section", "warnings_section"]


class Described(Protocol):
    """What these sections ask of a run or a comparison."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def attrs(self) -> Mapping[str, Any]: ...  # noqa: D102


_NAMES = {
    "cpu": "Processor", "architecture": "Architecture", "cores_physical": "Physical cores",
    "cores_logical": "Logical cores", "cores_available": "Cores available", "virtualized": "Virtual machine",
    "governor": "CPU governor", "turbo": "Turbo", "load_average": "Load average (1, 5, 15 min)",
    "memory_bytes": "Memory", "memory_available_bytes": "Memory available", "gpus": "GPUs",
    "system": "Operating system", "python": "Python",
}  # fmt: skip


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return format_bytes(value)
    if name == "gpus" and isinstance(value, list):
        return "; ".join(str(g.get("name", g)) if isinstance(g, Mapping) else str(g) for g in value)
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)


def _facts(caption: str, views: Sequence[Described], columns: Sequence[Mapping[str, str]]) -> Html:
    """Return a table of what all runs share, and one with a column a run of what tells them apart."""
    keys = list(dict.fromkeys(key for facts in columns for key in facts))
    shared = [key for key in keys if len({facts.get(key) for facts in columns}) == 1]
    parts = []
    if shared:
        alike = f"{caption}, the same for all runs" if len(columns) > 1 else caption
        parts.append(table(alike, [Column("")] * 2, [[key, columns[0][key]] for key in shared], class_="facts"))
    if apart := [key for key in keys if key not in shared]:
        rows = [[key, *(facts.get(key, UNKNOWN) for facts in columns)] for key in apart]
        parts.append(table(f"{caption}, by run", [Column(""), *(Column(v.label) for v in views)], rows, class_="facts"))
    return join(parts)


def environment_section(views: Sequence[Described]) -> Html:
    """Return the machine and the libraries; what changes by the minute is given by run only where it differs."""
    machine, libraries = [], []
    for view in views:
        facts = dict(view.attrs["environment"])
        found = facts.pop("libraries", {})
        libraries.append({str(k): str(v) for k, v in found.items()} if isinstance(found, Mapping) else {})
        ordered = [*(k for k in _NAMES if k in facts), *(k for k in facts if k not in _NAMES)]
        machine.append({_NAMES.get(str(k), str(k).replace("_", " ").capitalize()): _shown(str(k), facts[k])
                        for k in ordered})  # fmt: skip
    return tag(
        "section",
        tag("h2", "Environment"),
        _facts("Machine", views, machine),
        _facts("Libraries", views, libraries) if any(libraries) else None,
        id="environment",
    )


def _derivation(origin: Mapping[str, Any]) -> Html:
    """Return one step of how the opened file came to be, and the steps before it."""
    agreement = origin.get("agreement") or {}
    if agreement.get("measured"):
        backends = agreement.get("backends") or ["source", "derived"]
        scale = agreement.get("output_scale")
        measured = (
            f"Outputs of both forms, on {' and '.join(str(b) for b in backends)}, differ by at most "
            f"{format_number(float(agreement.get('max_abs_difference', float('nan'))))}"
            + (f" where they reach {format_number(float(scale))}" if isinstance(scale, int | float) else "")
            + (f" ({agreement['input']})." if agreement.get("input") else ".")
        )
    else:
        measured = f"The agreement of both forms was not measured: {agreement.get('reason', 'no reason recorded')}."
    before = origin.get("before")
    return tag(
        "li",
        f"Converted from {origin.get('format', 'another form')} by {origin.get('converter', 'an unknown converter')} (",
        tag("code", str(origin.get("digest", "no digest"))),
        f"). {measured}",
        tag("ul", _derivation(before)) if isinstance(before, Mapping) and before else None,
    )


def _recipe(recipe: Mapping[str, Any]) -> Html | None:
    items = []
    for side, word in (("inputs", "Input"), ("outputs", "Output")):
        for item in recipe.get(side) or []:
            shape = item.get("shape")
            steps = [tag("code", json.dumps(step, ensure_ascii=False)) for step in item.get("steps") or []]
            items.append(tag(
                "li", f"{word} ", tag("code", f"{item.get('name')}"), f" {item.get('dtype')}",
                f"[{', '.join(str(s) for s in shape)}]" if shape is not None else None,
                tag("ol", *(tag("li", step) for step in steps)) if steps else ": as given",
            ))  # fmt: skip
    return tag("ul", *items) if items else None


def provenance_section(views: Sequence[RunView]) -> Html:
    """Return what identifies each run: digests, settings, conversions and processing."""
    columns = []
    for view in views:
        a = view.attrs
        facts = {
            "Run": a["run_id"], "Recorded": a["created_at"], "Status": a["status"],
            "Model": f"{a['model']} {a.get('model_version') or ''}".strip(), "Task": a.get("task"),
            "Backend": f"{a['backend']} {a['backend_version'] or ''}".strip(), "Device": a["device"],
            "Precision": a["precision"], "Batch size": a["batch_size"], "Threads": a["threads"], "Level": a["level"],
            "Isolation": a["isolation"], "Execution mode": a["execution_mode"], "Seed": a["seed"],
            "Input": a.get("input"), "Model digest": a["model_digest"], "Manifest digest": a.get("manifest_digest"),
            "Executable digest": a["executable_digest"], "Schema": a["schema_version"],
        }  # fmt: skip
        columns.append({k: UNKNOWN if v is None or v == "" else str(v) for k, v in facts.items()})
    parts: list[Html] = [_facts("Settings and digests", views, columns)]
    for view in views:
        origin = view.attrs.get("derived_from")
        recipe = view.attrs.get("recipe")
        shown = _recipe(recipe) if isinstance(recipe, Mapping) else None
        if not origin and shown is None:
            continue
        parts.append(tag("h3", backend_cell(view)))
        if isinstance(origin, Mapping) and origin:
            parts.append(tag("ul", _derivation(origin)))
        if shown is not None:
            parts.append(tag("details", tag("summary", "Declared processing"), shown))
    return tag("section", tag("h2", "Provenance"), *parts, id="provenance")


def warnings_section(views: Sequence[Described]) -> Html:
    """Return the warnings, and what the machine or backend could not give, with the reasons."""
    warned: dict[str, list[str]] = {}
    missing: dict[tuple[str, str], list[str]] = {}
    for view in views:
        for sentence in view.attrs["warnings"]:
            warned.setdefault(str(sentence), []).append(view.label)
        for what, reason in view.attrs["unavailable"].items():
            missing.setdefault((str(what), str(reason)), []).append(view.label)

    def of(labels: list[str]) -> str:
        return "all runs" if len(labels) == len(views) else ", ".join(labels)

    several = len(views) > 1
    parts: list[Html] = []
    if warned:
        parts.append(tag("ul", *(
            tag("li", sentence, join([" ", tag("span", f"({of(labels)})", class_="lead")]) if several else None)
            for sentence, labels in warned.items()
        )))  # fmt: skip
    if missing:
        rows = [
            [what.replace("_", " "), reason, *([of(labels)] if several else [])]
            for (what, reason), labels in missing.items()
        ]
        columns = [Column("What"), Column("Why not"), *([Column("Runs")] if several else [])]
        parts.append(table("Not recorded", columns, rows, class_="facts"))
    if not parts:
        return Html()
    return tag("section", tag("h2", "Warnings and gaps"), *parts, id="warnings")
