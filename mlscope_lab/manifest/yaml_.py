"""Read YAML that somebody else wrote: data only, of bounded size, and nothing twice.

Scalars follow the core schema of YAML 1.2 (yes, no, on, off, dates and 1:30 are text, 1e-5 is a number), for YAML 1.1's
guesses are mistakes in a list of labels. Tags, anchors and aliases are refused: they can build objects, or a small file
that unfolds into gigabytes.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mlscope_lab.errors import ManifestError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "parse_yaml"]

MAX_BYTES = 1_000_000
MAX_NODES = 60_000
MAX_DEPTH = 40
_MAX_INT = 2**63

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader with the core schema of YAML 1.2 that refuses repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own interface

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Build a mapping whose keys are texts, each given once."""
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key must be text, not {key!r}; put it in quotes", key_node.start_mark
                )
            if key in mapping:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice; keep one", key_node.start_mark
                )
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).lower()
    base = 16 if text.startswith("0x") else 8 if text.startswith("0o") else 10
    number = int(text, base) if len(text) <= 40 else _MAX_INT
    if not -_MAX_INT <= number < _MAX_INT:
        raise yaml.constructor.ConstructorError(
            None, None, f"the number {text[:40]} does not fit 64 bits; put it in quotes if it is text", node.start_mark
        )
    return number


def _bool(loader: Any, node: yaml.ScalarNode) -> bool:
    return bool(loader.construct_scalar(node).lower() == "true")


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    number = float(loader.construct_scalar(node))
    if number in {float("inf"), float("-inf")}:
        raise yaml.constructor.ConstructorError(None, None, "the number is too large", node.start_mark)
    return number


def _install() -> None:
    tag = "tag:yaml.org,2002:"
    for name, pattern, first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
        ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
        ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ):
        letters = [*first.replace("\0", ""), *([""] if "\0" in first else [])]
        _Loader.add_implicit_resolver(tag + name, re.compile(pattern), letters)
    _Loader.add_constructor(tag + "int", _int)
    _Loader.add_constructor(tag + "bool", _bool)
    _Loader.add_constructor(tag + "float", _float)


_install()


def _check_events(text: str, where: str) -> None:
    """Look at the stream before anything is built from it."""
    depth = nodes = documents = 0
    for event in yaml.parse(text, Loader=_Base):
        at = f"{where}: line {event.start_mark.line + 1}" if event.start_mark is not None else where
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ManifestError(f"{at}: anchors (&) and aliases (*) are not taken; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ManifestError(f"{at}: the tag {tag!r} is not taken; write plain data, texts in quotes")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ManifestError(f"{at}: a second document begins; put each manifest into a file of its own")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            nodes += 1
            if nodes > MAX_NODES:
                raise ManifestError(f"{at}: more than {MAX_NODES} values; put long lists into a file and name it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ManifestError(f"{at}: nested more than {MAX_DEPTH} deep; a manifest needs no more than ten")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """Read one YAML mapping.

    Parameters
    ----------
    text
        The YAML.
    where
        File name for messages.

    Returns
    -------
    dict
        Nested dicts with text keys, lists, str, int (64 bits), finite float, bool and None.

    Raises
    ------
    ManifestError
        With the line, if the text is not YAML, is no mapping, holds a key twice, a tag, an anchor or an alias, or is
        larger or deeper than any manifest.
    """
    if len(text) > MAX_BYTES:
        raise ManifestError(f"{where}: holds {len(text)} characters, more than {MAX_BYTES}; it is no manifest")
    try:
        _check_events(text, where)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}, column {mark.column + 1}:" if mark is not None else ""
        context = f"{error.context}, " if error.context else ""
        raise ManifestError(f"{where}:{line} {context}{error.problem or 'is not YAML'}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{where}: is not YAML: {str(error).splitlines()[0] if str(error) else error!r}") from error
    if data is None:
        raise ManifestError(f"{where}: is empty; a manifest is a mapping that begins with e.g. 'kind: model'")
    if not isinstance(data, dict):
        raise ManifestError(f"{where}: must be a mapping such as 'kind: model', not {type(data).__name__}")
    return data
