"""Pairs that a person decided, kept in a file beside the models.

::

    a: {model: efficientnet-lite0, backend: pytorch}     # for which two sides these hold
    b: {model: efficientnet-lite0, backend: tensorflow}
    fixes:
      - {a: blocks.3.add, b: add_4/AddV2}
      - {a: blocks.7.dropout, b: null}                   # has no partner

YAML, or JSON where the name ends in ``.json``. Values are named, so a file holds for two graphs only; which ones its
head says.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from mlscope_lab.alignment.records import Fix
from mlscope_lab.errors import InputError, nearest

__all__ = ["load_fixes", "save_fixes"]

_LARGEST: Final = 4_000_000
_KEYS: Final = ("a", "b", "fixes")
_SIDE: Final = ("model", "backend", "precision", "graph_optimization")


def load_fixes(
    path: str | os.PathLike[str], *, a: Mapping[str, str] | None = None, b: Mapping[str, str] | None = None
) -> list[Fix]:
    """Read fixes from a file.

    Parameters
    ----------
    path
        The file.
    a, b
        What the sides of this comparison are, by ``model``, ``backend``, ``precision`` and ``graph_optimization``. A
        file made for other sides is refused; for a key that either does not give, anything will do.

    Raises
    ------
    InputError
        If the file cannot be read, is no such file, or was made for other sides; the message names file and line.

    Warns
    -----
    UserWarning
        If the file does not say for which sides it was made.
    """
    path = Path(path)
    data, lines = _read(path)
    if isinstance(data, list):
        data = {"fixes": data}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping with 'a', 'b' and 'fixes', not {type(data).__name__}")
    for key in data:
        if key not in _KEYS:
            raise InputError(f"{path}: unknown key {key!r}. Known: {', '.join(_KEYS)}.{nearest(str(key), _KEYS)}")
    for letter, side in (("a", a), ("b", b)):
        _check_side(path, letter, data.get(letter), side)
    if "a" not in data or "b" not in data:
        warnings.warn(
            f"{path} does not say for which two sides its fixes were made; add a head such as "
            "'a: {model: NAME, backend: pytorch}' so that they cannot be used for others",
            stacklevel=2,
        )
    entries = data.get("fixes")
    if not isinstance(entries, list):
        raise InputError(f"{path}: 'fixes' must be a list of entries such as {{a: NAME, b: NAME}}")
    made: list[Fix] = []
    seen: dict[tuple[str, str], int] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: fixes[{number}]" + (f" (line {lines[number]})" if number < len(lines) else "")
        fix = _entry(where, entry)
        for letter, name in (("a", fix.a), ("b", fix.b)):
            if name is not None and seen.setdefault((letter, name), number) != number:
                raise InputError(
                    f"{where}: '{name}' of side {letter} is in fixes[{seen[letter, name]}] already; keep one"
                )
        made.append(fix)
    return made


def save_fixes(
    path: str | os.PathLike[str], fixes: Sequence[Fix], *, a: Mapping[str, str], b: Mapping[str, str]
) -> Path:
    """Write fixes to a file; what was there is replaced as a whole.

    Parameters
    ----------
    path
        Where; JSON if it ends in ``.json``, else YAML.
    fixes
        What to write.
    a, b
        For which sides they hold, as for `load_fixes`; at least ``model`` or ``backend``.

    Raises
    ------
    InputError
        If a side says nothing, or the file cannot be written.
    """
    path = Path(path)
    head: dict[str, Any] = {}
    for letter, side in (("a", a), ("b", b)):
        _check_side(path, letter, dict(side), None)
        head[letter] = {key: str(value) for key, value in side.items()}
    data = {**head, "fixes": [{"a": fix.a, "b": fix.b} for fix in fixes]}
    if path.suffix.lower() == ".json":
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    return path


def _read(path: Path) -> tuple[Any, list[int]]:
    """Return what a file says, and the line of each fix."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} has more than {_LARGEST} bytes; that is no file of fixes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error}") from error
    try:
        # aliases would let a small file say very much
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise InputError(f"{path}: aliases (*name) are not allowed; write the entry out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)  # JSON is YAML
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    lines: list[int] = []
    entries = node
    if isinstance(node, yaml.MappingNode):
        entries = next((value for key, value in node.value if key.value == "fixes"), None)
    if isinstance(entries, yaml.SequenceNode):
        lines = [entry.start_mark.line + 1 for entry in entries.value]
    return data, lines


def _check_side(path: Path, letter: str, found: Any, wanted: Mapping[str, str] | None) -> None:
    if found is None:
        return
    if not isinstance(found, dict) or not found or any(not isinstance(value, str) for value in found.values()):
        raise InputError(f"{path}: '{letter}' must say which side it is, such as {{model: NAME, backend: pytorch}}")
    for key, value in found.items():
        if key not in _SIDE:
            raise InputError(
                f"{path}: '{letter}.{key}' is unknown. Known: {', '.join(_SIDE)}.{nearest(str(key), _SIDE)}"
            )
        if wanted is not None and wanted.get(key) is not None and str(wanted[key]) != value:
            raise InputError(
                f"{path} was made for {letter} with {key} '{value}', and here it is '{wanted[key]}': names of values "
                "would not be the same. Make fixes for these two sides, or correct the head of the file"
            )


def _entry(where: str, entry: Any) -> Fix:
    if not isinstance(entry, dict) or not entry:
        raise InputError(f"{where} must be a mapping such as {{a: NAME, b: NAME}}, not {entry!r:.80}")
    for key, value in entry.items():
        if key not in ("a", "b"):
            raise InputError(f"{where}: unknown key {key!r}. Known: a, b")
        if value is not None and (not isinstance(value, str) or not value):
            raise InputError(f"{where}: '{key}' must be the name of a value in quotes, or null, not {value!r:.80}")
    if entry.get("a") is None and entry.get("b") is None:
        raise InputError(f"{where} names no value; give a, b or both")
    return Fix(a=entry.get("a"), b=entry.get("b"))
