"""The command doctor: `mlscope_lab.diagnosis` on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson
from mlscope_lab.cli.output import Column, command, console, emit_json, heading, print_pairs, print_table
from mlscope_lab.cli.text import binary_size, plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["doctor"]


def _listed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value) or "none"
    return "not set" if value is None else str(value)


def _print_backends(out: Console, backends: list[dict[str, Any]]) -> None:
    rows = [
        (b["name"], b["version"] or ("yes" if b["installed"] else "not installed"), ", ".join(b["devices"]),
         ", ".join(b["levels"]), ", ".join(b["formats"]) or ("live objects" if b["levels"] else ""))
        for b in backends
    ]  # fmt: skip
    columns = [Column(title="backend", keep=9), Column(title="version", keep=8), Column(title="devices", keep=5),
               Column(title="levels", keep=6), Column(title="opens", keep=4, shrink=True)]  # fmt: skip
    print_table(out, columns, rows, title="Backends")
    for b in backends:
        if b["reason"]:
            advice = f" Install with: {b['install']}" if b["install"] and not b["installed"] else ""
            out.print(f"  {plain(b['name'])}: {plain(b['reason'].rstrip('.'))}.{plain(advice)}")
        for what, why in b["unavailable"].items():
            out.print(f"  {plain(b['name'])}: no {plain(what)} here: {plain(why)}")


def _print_collectors(out: Console, collectors: list[dict[str, Any]]) -> None:
    rows = [(c["name"], ", ".join(c["levels"]), ", ".join(c["records"]) or "nothing here") for c in collectors]
    print_table(out, [Column(title="collector", keep=9), Column(title="levels", keep=6),
                      Column(title="records here", keep=8, shrink=True)], rows, title="Collectors")  # fmt: skip
    for c in collectors:
        if c["reason"]:
            out.print(f"  {plain(c['name'])}: {plain(c['reason'])}")
        alike: dict[str, list[str]] = {}
        for what, why in c["unavailable"].items():
            alike.setdefault(why, []).append(what)
        for why, what in alike.items():
            out.print(f"  {plain(c['name'])}: no {plain(', '.join(what))} here: {plain(why)}")


def _print_store(out: Console, store: dict[str, Any], manifests: dict[str, Any]) -> None:
    heading(out, "Store and manifests")
    rebuilt = ", rebuilt just now" if store["rebuilt"] else ""
    counts = ", ".join(f"{manifests[kind]} {kind}" for kind in ("models", "frameworks", "datasets", "systems"))
    print_pairs(
        out,
        [
            ("runs", f"{store['runs']}, and {store['comparisons']} comparisons, {binary_size(store['bytes'])}"),
            ("index", f"{store['index']}{rebuilt}"),
            *(("run problem", problem) for problem in store["problems"]),
            ("manifests", counts),
            *(("found in", folder) for folder in manifests["folders"]),
            *(("broken", problem) for problem in manifests["problems"]),
        ],
    )


def _print_machine(out: Console, found: dict[str, Any]) -> None:
    heading(out, "Machine")
    sizes = {name: binary_size(value) for name, value in found["machine"].items() if name.endswith("_bytes")}
    shown = {**found["machine"], **sizes}
    libraries = shown.pop("libraries", {})
    pairs = [(name.removesuffix("_bytes").replace("_", " "), _listed(value)) for name, value in shown.items()]
    pairs.append(("libraries", ", ".join(f"{name} {version}" for name, version in libraries.items())))
    pairs += [(f"no {what}", why) for what, why in found["machine_unavailable"].items()]
    print_pairs(out, [*pairs, *(("noise", sentence) for sentence in found["warnings"])])


@command
def doctor(
    *,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write the store's index anew from its folders.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what is installed, what each backend can record here and why not more, and where each setting comes from.

    --json: {"mlscope_lab", "python", "settings": [{"name", "value", "origin"}], "folders": [{"name", "path", "exists",
    "free_bytes"}], "store": {"path", "runs", "indexed", "bytes", "index", "problems", "rebuilt"}, "backends":
    [{"name", "title", "installed", "version", "reason", "install", "formats", "levels", "devices", "unavailable"}],
    "collectors": [{"name", "levels", "records", "reason", "unavailable"}],
    "packages": [{"name", "version", "install"}], "manifests": {"folders", "models", "frameworks", "datasets",
    "systems", "problems"}, "machine", "machine_unavailable", "warnings"}.
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.diagnosis import diagnose

    found = diagnose(load_settings(), rebuild=rebuild)
    if as_json:
        emit_json(found)
        return
    out = console()
    heading(out, f"mlscope-lab {found['mlscope_lab']} on Python {found['python']}")
    _print_backends(out, found["backends"])
    _print_collectors(out, found["collectors"])
    packages = [(p["name"], p["version"] or f"not installed; {p['install']}") for p in found["packages"]]
    print_table(out, [Column(title="package", keep=9), Column(title="version", keep=8)], packages, title="Beside them")
    settings = [(s["name"], _listed(s["value"]), s["origin"]) for s in found["settings"]]
    print_table(out, [Column(title="setting", keep=9), Column(title="value", keep=8, shrink=True),
                      Column(title="from", keep=7)], settings, title="Settings")  # fmt: skip
    folders = [
        (f["name"], "-" if f["free_bytes"] is None else binary_size(f["free_bytes"]),
         "yes" if f["exists"] else "not yet", f["path"])
        for f in found["folders"]
    ]  # fmt: skip
    print_table(out, [Column(title="folder", keep=9), Column(title="free", keep=7, right=True),
                      Column(title="there", keep=6), Column(title="path", keep=8, shrink=True)],
                folders, title="Folders")  # fmt: skip
    _print_store(out, found["store"], found["manifests"])
    _print_machine(out, found)
