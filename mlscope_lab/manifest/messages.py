"""Say in a person's words what pydantic found wrong: the path in index notation, the problem, the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlscope_lab.errors import nearest

__all__ = ["explain"]

_HINTS = {
    "name": "a name of letters, digits, '.', '_' and '-' that begins with a letter or digit",
    "project": "the name of a package on the index, e.g. 'onnx'",
    "distribution": "the name of an installed package, e.g. 'onnx'",
    "sha256": "64 hexadecimal digits in lower case, as sha256sum prints them",
    "digest": "'sha256:' and 64 hexadecimal digits in lower case",
    "url": "an address that begins with http:// or https://",
    "endpoint": "an address that begins with http:// or https://",
    "layout": "one capital letter an axis, e.g. 'NCHW'",
    "repository": "'owner/name'",
    "version": "a version such as '1.0.0'",
    "revision": "a branch, tag or commit of letters, digits, '.', '_' and '-'",
}
_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def _shown(value: Any) -> str:
    """Return a value as YAML would have it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _Walk:
    """Follow a pydantic location through the JSON Schema, to drop what is no key and find the known keys."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.root = schema

    def resolve(self, node: Any) -> Mapping[str, Any]:
        """Follow references and optional types."""
        while isinstance(node, Mapping):
            if "$ref" in node:
                node = self.root.get("$defs", {}).get(node["$ref"].rpartition("/")[2], {})
                continue
            options = [o for o in node.get("anyOf", ()) if o.get("type") != "null"]
            if len(options) == 1:
                node = options[0]
                continue
            return node
        return {}

    def follow(self, location: Sequence[str | int]) -> tuple[str, Mapping[str, Any]]:
        """Return the path in index notation and the schema found there."""
        path, node = "", self.resolve(self.root)
        for part in location:
            if isinstance(part, int):
                path += f"[{part}]"
                node = self.resolve(node.get("items") or (node.get("prefixItems") or [{}])[0])
                continue
            mapping = node.get("discriminator", {}).get("mapping", {})
            if part in mapping:
                node = self.resolve({"$ref": mapping[part]})
                continue
            properties = node.get("properties")
            if properties is None and "additionalProperties" not in node and node.get("type") != "object":
                break  # the name of a union's member, not a key
            path += f".{part}" if path else part
            node = self.resolve((properties or {}).get(part, {}))
        return path, node


def _choices(node: Mapping[str, Any]) -> list[str]:
    if "const" in node:
        return [str(node["const"])]
    return [str(v) for v in node.get("enum", ())]


def _union_tag(error: Mapping[str, Any], node: Mapping[str, Any], path: str) -> str:
    known = sorted(node.get("discriminator", {}).get("mapping", {}))
    key = node.get("discriminator", {}).get("propertyName", "from")
    if error["type"] == "union_tag_not_found":
        if not isinstance(error.get("input"), Mapping):
            return (
                f"{path} must be a mapping with the key '{key}' ({', '.join(known)}), not {_shown(error.get('input'))}"
            )
        return f"{path}.{key} is missing; one of {', '.join(known)}"
    tag = str(error.get("ctx", {}).get("tag", ""))
    return f"{path}.{key} must be one of {', '.join(known)}, not '{tag}'.{nearest(tag, known)}"


def _one(error: Mapping[str, Any], walk: _Walk) -> tuple[str, str]:
    """Return the path of one error and the sentence about it."""
    location, kind, given, context = error["loc"], error["type"], error.get("input"), error.get("ctx", {})
    path, node = walk.follow(location)
    last = path.rpartition(".")[2].partition("[")[0]
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        parent, inside = walk.follow(location[:-1])
        known = sorted(inside.get("properties", {}))
        word = str(location[-1])
        at = f"{parent}: " if parent else ""
        return f"{parent}.{word}".lstrip(
            "."
        ), f"{at}unknown key '{word}'. Known: {', '.join(known)}.{nearest(word, known)}"
    if kind == "step_error":
        path += context["suffix"]
        return path, f"{path} {context['problem']}"
    if kind in {"missing", "missing_keyword_only_argument", "missing_argument"}:
        return path, f"{path} is missing" + (f"; {_HINTS[last]}" if last in _HINTS else "")
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return path, _union_tag(error, node, path)
    if last == "shape" and path.endswith("]"):
        return path, f"{path} must be a positive integer or a symbol such as 'batch', not {_shown(given)}"
    if kind == "literal_error":
        known = _choices(node) or [w.strip(" '") for w in context.get("expected", "").replace(" or ", ",").split(",")]
        return path, f"{path} must be one of {', '.join(known)}, not {_shown(given)}.{nearest(str(given), known)}"
    if kind == "string_type" and isinstance(given, int | float):
        return path, f'{path} must be text, but {_shown(given)} is no text to YAML; put it in quotes: "{_shown(given)}"'
    if kind in _TYPES:
        return path, f"{path} must be {_TYPES[kind]}, not {_shown(given)}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return path, f"{path} must be {words} {context[key]}, not {_shown(given)}"
    if kind == "string_pattern_mismatch":
        hint = _HINTS.get(last, f"text of the form {context['pattern']}")
        return path, f"{path} must be {hint}, not {_shown(given)}"
    if kind in {"too_short", "string_too_short"}:
        return path, f"{path} must not be empty"
    if kind == "value_error":
        problem = str(context.get("error", error["msg"]))
        return path, f"{path} {problem}" if problem.startswith("must ") and path else f"{path}: {problem}".lstrip(": ")
    return path, f"{path}: {error['msg']}".lstrip(": ")


def explain(errors: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Turn pydantic's errors into sentences.

    Parameters
    ----------
    errors
        From ``ValidationError.errors()``.
    schema
        JSON Schema of what was validated, by alias.

    Returns
    -------
    list of (path, sentence)
        One for each wrong place, e.g. ``inputs[0].shape[2] must be a positive integer or ...``; a place that failed
        every member of a union is named once.
    """
    walk = _Walk(schema)
    found: dict[str, str] = {}
    for error in errors:
        if error["type"] == "too_short" and any(
            len(other["loc"]) > len(error["loc"]) and other["loc"][: len(error["loc"])] == error["loc"]
            for other in errors
        ):
            continue  # pydantic counts only the entries that are right
        path, sentence = _one(error, walk)
        found.setdefault(path, sentence)
    return list(found.items())
