"""Describe manifests as JSON Schema (2020-12), for editors and other tools."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import TypeAdapter

from mlscope_lab import plugins
from mlscope_lab.errors import ManifestError, nearest
from mlscope_lab.manifest.load import KINDS

__all__ = ["json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_FIELD = re.compile(r"^(\w+(?:, \w+)*)(?: : .*)?$")


def _documented(doc: str) -> dict[str, str]:
    """Return what a numpydoc docstring says under Parameters or Attributes, by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    lines = inspect.cleandoc(doc).splitlines()
    for index, line in enumerate(lines):
        if index + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[index + 1]):
            inside, names = line in {"Parameters", "Attributes"}, []
            continue
        if not inside or re.fullmatch(r"-{3,}", line):
            continue
        if match := _FIELD.match(line):
            names = match[1].split(", ")
        elif line.startswith("    "):
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _describe(schema: dict[str, Any], doc: str | None) -> None:
    """Put the docstring's first line and its parameters into a schema."""
    if not doc:
        return
    schema["description"] = inspect.cleandoc(doc).splitlines()[0]
    documented = _documented(doc)
    for name, field in schema.get("properties", {}).items():
        if name in documented and "description" not in field:
            field["description"] = documented[name]


def _without_titles(node: Any) -> Any:
    """Drop pydantic's generated titles, which repeat the key."""
    if isinstance(node, dict):
        return {k: _without_titles(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    return [_without_titles(v) for v in node] if isinstance(node, list) else node


def _step_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of every registered step that loads, by name."""
    schemas = {}
    for name, step in plugins.load_all("mlscope_lab.steps"):
        schema = TypeAdapter(step).json_schema(mode="validation")
        _describe(schema, step.__doc__)
        properties = {"step": {"const": name, "description": "Name of the step."}, **schema.get("properties", {})}
        properties.pop("labels", None)  # filled in by the engine
        schemas[name] = {
            "type": "object",
            "description": schema.get("description", ""),
            "properties": properties,
            "required": ["step", *schema.get("required", [])],
            "additionalProperties": False,
        }
    return schemas


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of one kind of manifest.

    Parameters
    ----------
    kind
        "model", "framework", "dataset" or "system".

    Returns
    -------
    dict
        The same for the same package versions and installed steps; every processing step has its parameters described.

    Raises
    ------
    ManifestError
        If there is no such kind.
    """
    if kind not in KINDS:
        raise ManifestError(f"There is no kind '{kind}'. Known: {', '.join(KINDS)}.{nearest(kind, list(KINDS))}")
    cls = KINDS[kind]
    schema = cls.model_json_schema(by_alias=True)
    _describe(schema, cls.__doc__)
    schema["properties"]["kind"] = {"const": kind, "description": "What this manifest is."}
    schema["required"] = ["kind", *(k for k in schema.get("required", []) if k != "kind")]
    definitions = schema.setdefault("$defs", {})
    if kind == "model":
        steps = _step_schemas()
        for name, step in steps.items():
            definitions[f"step_{name}"] = step
        one = {"oneOf": [{"$ref": f"#/$defs/step_{name}"} for name in sorted(steps)]}
        definitions["Input"]["properties"]["preprocess"]["items"] = one
        definitions["Output"]["properties"]["postprocess"]["items"] = one
    schema["$defs"] = dict(sorted(definitions.items()))
    cleaned: dict[str, Any] = _without_titles(schema)
    return {"$schema": _DIALECT, "title": f"mlscope-lab {kind} manifest", **cleaned}
