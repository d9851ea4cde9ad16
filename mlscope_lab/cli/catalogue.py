"""Commands about what is published: models, show, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson, ModelName
from mlscope_lab.cli.output import Column, command, console, emit_json, heading, note, print_pairs, print_table
from mlscope_lab.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlscope_lab.catalog import Entry
    from mlscope_lab.manifest.model import ModelManifest

__all__ = ["models", "schema", "show"]


def _known(word: str | None, known: Sequence[str], what: str) -> str | None:
    if word is not None and word not in known:
        raise InputError(f"Unknown {what} '{word}'. Known: {', '.join(known)}.{nearest(word, list(known))}")
    return word


def model_json(entry: Entry[ModelManifest]) -> dict[str, Any]:
    """Return one element of ``mlscope models --json``.

    Keys: name, version, task, formats, frameworks (named in the sources), license, description, path, digest.
    """
    manifest = entry.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "formats": list(dict.fromkeys(s.format for s in manifest.sources)),
        "frameworks": list(dict.fromkeys(s.framework.name for s in manifest.sources if s.framework is not None)),
        "license": manifest.license,
        "description": manifest.description.strip(),
        "path": entry.path,
        "digest": entry.digest,
    }


@command
def models(
    *,
    task: Annotated[str | None, typer.Option("--task", help="Only models for this task.")] = None,
    framework: Annotated[str | None, typer.Option("--framework", help="Only models published for this one.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Only models published in this form.")] = None,
    search: Annotated[str | None, typer.Option("--search", "-s", help="Words in name, description or task.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the published models.

    --json: a list of objects with name, version, task, formats, frameworks, license, description, path, digest.
    """
    from mlscope_lab.catalog import load_catalog
    from mlscope_lab.config import load_settings
    from mlscope_lab.manifest.model import FORMATS, TASKS

    catalog = load_catalog(load_settings())
    entries = catalog.models(
        task=_known(task, TASKS, "task"), format=_known(format_, tuple(FORMATS), "format"), framework=framework,
        search=search,
    )  # fmt: skip
    found = [model_json(entry) for entry in entries]
    if as_json:
        emit_json(found)
    elif found:
        out = console()
        columns = [
            Column(title="model", keep=9), Column(title="version", keep=3), Column(title="task", keep=7),
            Column(title="published as", keep=5), Column(title="license", keep=2),
            Column(title="description", keep=4, shrink=True),
        ]  # fmt: skip
        rows = [
            (m["name"], m["version"], m["task"], ", ".join(m["formats"]), m["license"], m["description"].split("\n")[0])
            for m in found
        ]
        print_table(out, columns, rows)
    else:
        note("No published model fits. mlscope models lists all.")
    if catalog.problems:
        one = len(catalog.problems) == 1
        note(f"{len(catalog.problems)} manifest{'' if one else 's'} could not be read; mlscope doctor says why.")


def _openers(manifest: ModelManifest) -> dict[str, dict[str, Any]]:
    """Return, for each installed or known backend, how it comes by a form that it opens."""
    from mlscope_lab import plugins
    from mlscope_lab.backends import load_backend
    from mlscope_lab.conversion.resolve import route
    from mlscope_lab.errors import PluginError

    found: dict[str, dict[str, Any]] = {}
    for name in plugins.names("mlscope_lab.backends"):
        try:
            backend = load_backend(name)
        except PluginError as error:
            found[name] = {"installed": False, "opens": None, "how": str(error)}
            continue
        if not backend.formats:  # it takes live objects only
            continue
        opens, how = None, "no conversion leads there"
        chains = [(source.format, route(source.format, backend.formats)) for source in manifest.sources]
        ways = sorted(
            ((len(chain), form, chain) for form, chain in chains if chain is not None), key=lambda way: way[0]
        )
        if ways:
            _, form, chain = ways[0]
            opens = chain[-1].target if chain else form
            how = " > ".join(["converted", form, *(step.target for step in chain)]) if chain else "as published"
        found[name] = {"installed": backend.availability().ok, "opens": opens, "how": how}
    return found


@command
def show(model: ModelName, *, as_json: AsJson = False) -> None:
    """Show one model: what goes in and out, where it comes from, which backends open it.

    --json: {"manifest", "path", "digest", "backends": {NAME: {"installed", "opens", "how"}}}.
    """
    from pathlib import Path

    from mlscope_lab.catalog import load_catalog, load_entry
    from mlscope_lab.config import load_settings
    from mlscope_lab.manifest.model import ModelManifest

    is_file = model.endswith((".yaml", ".yml"))
    entry: Any = load_entry(Path(model)) if is_file else load_catalog(load_settings()).model(model)
    manifest = entry.manifest
    if not isinstance(manifest, ModelManifest):
        raise InputError(f"{model} describes a {manifest.kind}, not a model")
    backends = _openers(manifest)
    if as_json:
        dumped = manifest.model_dump(mode="json", by_alias=True)
        emit_json({"manifest": dumped, "path": entry.path, "digest": entry.digest, "backends": backends})
        return
    out = console()
    heading(out, f"{manifest.name} {manifest.version}")
    pairs: list[tuple[str, object]] = [
        ("task", manifest.task), ("license", manifest.license), ("description", manifest.description.strip()),
    ]  # fmt: skip
    pairs += [("reference", reference) for reference in manifest.references]
    pairs += [("claimed", f"{c.metric} {c.value:g} on {c.dataset} {c.source}".strip()) for c in manifest.claimed]
    pairs += [(str(name), value) for name, value in manifest.attributes.items()]
    print_pairs(out, [*pairs, ("manifest", entry.path), ("digest", entry.digest)])
    sides = (
        ("Inputs", [(tensor, tensor.preprocess) for tensor in manifest.inputs]),
        ("Outputs", [(tensor, tensor.postprocess) for tensor in manifest.outputs]),
    )
    columns = [Column(title="name", keep=9), Column(title="tensor", keep=8), Column(title="layout", keep=2),
               Column(title="steps", keep=5, shrink=True)]  # fmt: skip
    for title, tensors in sides:
        rows = [
            (t.name, f"{t.dtype}[{', '.join(map(str, t.shape))}]", t.layout, ", ".join(step["step"] for step in steps))
            for t, steps in tensors
        ]
        print_table(out, columns, rows, title=title)
    sources = [(s.format, s.location.from_, s.architecture, s.framework.name if s.framework else "")
               for s in manifest.sources]  # fmt: skip
    print_table(out, [Column(title="form", keep=9), Column(title="from", keep=8), Column(title="architecture"),
                      Column(title="framework")], sources, title="Published as")  # fmt: skip
    opened = [(name, b["opens"] or "no", b["how"], "yes" if b["installed"] else "no") for name, b in backends.items()]
    print_table(out, [Column(title="backend", keep=9), Column(title="opens", keep=8),
                      Column(title="how", keep=6, shrink=True), Column(title="installed", keep=7)],
                opened, title="Backends")  # fmt: skip


def _run_schema() -> dict[str, Any]:
    """Return the run's schema: levels, statuses, required attributes, and each group's variables."""
    from mlscope_lab.trace import schema as run

    return {
        "schema_version": run.SCHEMA_VERSION,
        "levels": run.LEVELS,
        "recorded_levels": run.RECORDED_LEVELS,
        "statuses": run.STATUSES,
        "failure_kinds": run.FAILURE_KINDS,
        "required_attrs": run.REQUIRED_ATTRS,
        "provenances": run.PROVENANCES,
        "groups": {
            group: {
                name: {
                    "dims": dims,
                    "dtype": "str" if run.is_text(name) else run.dtype_of(group, name),
                    "units": run.units_of(name),
                }
                for name, dims in variables.items()
            }
            for group, variables in run.GROUPS.items()
        },
        "optional": {
            group: {name: {"dims": [run.EVENT_DIMS[group]], "dtype": run.dtype_of(group, name)} for name in names}
            for group, names in run.OPTIONAL.items()
        },
    }


_KINDS = ("model", "framework", "dataset", "system", "run")


@command
def schema(
    kind: Annotated[str, typer.Argument(metavar="[model|framework|dataset|system|run]")] = "model",
    *,
    as_json: AsJson = False,
) -> None:
    """Print the JSON Schema of a kind of manifest, or the groups and variables of a run. It is JSON either way."""
    _known(kind, _KINDS, "schema")
    if kind == "run":
        emit_json(_run_schema())
        return
    from mlscope_lab.manifest.schema import json_schema

    emit_json(json_schema(kind))
