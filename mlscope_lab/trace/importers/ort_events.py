"""The events of ONNX Runtime's profile, a JSON file with one event a line, as the backend and the importer read it.

Times are whole microseconds since the profile began. Older versions write names as they are, quotation marks included,
so a line is matched rather than parsed wherever it can be.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlscope_lab.errors import MlscopeError

__all__ = ["DAMAGED", "EVENT_CAP", "NODE_SUFFIX", "RESOLUTION_NS", "arguments_of", "bytes_of", "field_of", "plain_name",
           "read_events", "shapes_of"]  # fmt: skip

EVENT_CAP = 1_000_000
"""Events that ONNX Runtime keeps; later ones are lost without a word."""
RESOLUTION_NS = 1000
DAMAGED = "damaged"
NODE_SUFFIX = "_kernel_time"

_EVENT = re.compile(
    r'\{"cat" ?: ?"(?P<cat>\w+)", ?"pid" ?: ?(?P<pid>-?\d+), ?"tid" ?: ?(?P<tid>-?\d+), ?"dur" ?: ?(?P<dur>\d{1,15}),'
    r' ?"ts" ?: ?(?P<ts>-?\d{1,15}), ?"ph" ?: ?"X", ?"name" ?: ?"(?P<name>.*?)", ?"args" ?: ?\{'
)
_TYPES = {"float": "float32", "double": "float64", "string": "str"}
_LATEST_US = 10**15
"""Thirty years: beyond it nanoseconds would not fit their column."""
_LONGEST_LINE = 4 << 20
"""Characters of an event: those of a node with many inputs are some thousand."""


def read_events(
    path: Path,
    error: type[MlscopeError],
    *,
    lenient: bool = False,
    max_bytes: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Iterator[tuple[str, int, int, str, str]]:
    """Yield (category, start, duration, name as JSON writes it, line) of each event; times in us.

    Parameters
    ----------
    path
        The profile, gzip or not.
    error
        What to raise where a line is no event.
    lenient
        Yield the category `DAMAGED` for such a line instead.
    max_bytes
        The most characters to read.
    progress
        Called with the bytes of the file read so far and its size.
    """
    size = path.stat().st_size
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        number, total = 0, 0
        with io.TextIOWrapper(source, encoding="utf-8", errors="replace") as lines:
            # no loop over lines: one without an end would be read whole
            while line := lines.readline(_LONGEST_LINE + 1):
                number += 1
                total += len(line)
                if len(line) > _LONGEST_LINE:
                    raise error(
                        f"ONNX Runtime's profile cannot be read: line {number} of {path.name} is longer than "
                        f"{_LONGEST_LINE:,} characters; ONNX Runtime writes one event a line"
                    )
                if max_bytes is not None and total > max_bytes:
                    raise error(
                        f"{path.name} holds more than {max_bytes:,} bytes; if that is meant, allow more with max_bytes="
                    )
                if progress is not None and number % 20_000 == 0:
                    progress(raw.tell(), size)
                found = _EVENT.match(line)
                if found is not None:
                    yield found["cat"], int(found["ts"]), int(found["dur"]), found["name"], line
                    continue
                text = line.strip().rstrip(",")
                if text not in {"", "[", "]"}:
                    try:
                        yield *_spaced(text), line
                    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as cause:
                        if not lenient:
                            raise error(
                                f"ONNX Runtime's profile cannot be read: line {number} of {path.name} is "
                                f"{text[:80]!r} ({cause})"
                            ) from cause
                        yield DAMAGED, 0, 0, "", line


def _spaced(text: str) -> tuple[str, int, int, str]:
    """Read an event that another version, which spaces its fields in another way, has written."""
    event = json.loads(text)
    start, duration = int(event["ts"]), int(event["dur"])
    if abs(start) >= _LATEST_US or not 0 <= duration < _LATEST_US:
        raise ValueError("its times cannot be")
    return str(event["cat"]), start, duration, json.dumps(str(event["name"]))[1:-1]


def plain_name(name: str) -> str:
    """Return a node's name without the suffix, its JSON escapes resolved where they are well formed."""
    short = name.removesuffix(NODE_SUFFIX)
    if "\\" not in short:
        return short
    try:
        return str(json.loads(f'"{short}"', strict=False))
    except ValueError:
        return short


def field_of(line: str, field: str) -> str:
    """Return a text argument of an event without parsing the line, "" where it has none.

    Examples
    --------
    >>> field_of('{"args" : {"op_name" : "Conv"}}', "op_name")
    'Conv'
    """
    found = re.search(rf'"{field}" ?: ?"([^"]*)"', line)
    return found[1] if found is not None else ""


def arguments_of(line: str) -> Mapping[str, Any]:
    """Return the arguments of an event, or {} where a name in it spoils the JSON."""
    try:
        event = json.loads(line.strip().rstrip(","), strict=False)
    except (ValueError, RecursionError):
        return {}
    arguments = event.get("args", {}) if isinstance(event, dict) else {}
    return arguments if isinstance(arguments, dict) else {}


def shapes_of(entries: object) -> str:
    """Return ``float32[1,3];int64[2]`` for ONNX Runtime's ``[{"float":[1,3]},{"int64":[2]}]``."""
    if not isinstance(entries, list):
        return ""
    texts = []
    for entry in entries:
        if isinstance(entry, dict):
            for kind, dims in entry.items():
                inside = ",".join(str(d) for d in dims) if isinstance(dims, list) else ""
                texts.append(f"{_TYPES.get(kind, kind)}[{inside}]")
    return ";".join(texts)


def bytes_of(arguments: Mapping[str, Any], key: str) -> int:
    """Return a size in bytes, -1 where it is not told."""
    text = str(arguments.get(key, ""))
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else -1
