"""One event of a trace in Chrome's format: typed where a producer keeps to the format, leniently where it does not."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

__all__ = ["NOTHING", "Arguments", "Event", "event_texts", "lenient_event", "plain_arguments", "typed_events"]

NOTHING = msgspec.Raw(b"")
"""The text of a field that is absent, one object for all."""


class Arguments(msgspec.Struct, gc=False):
    """The arguments that become columns; others are skipped by the parser."""

    external: int | str = msgspec.field(name="External id", default=-1)
    correlation: int | str = -1
    sequence: int = msgspec.field(name="Sequence number", default=-1)
    dims: msgspec.Raw = msgspec.field(name="Input Dims", default=NOTHING)
    types: msgspec.Raw = msgspec.field(name="Input type", default=NOTHING)
    device: int | str = -1
    stream: int | str = -1
    context: int | str = -1
    registers: int = msgspec.field(name="registers per thread", default=-1)
    shared_memory: int = msgspec.field(name="shared memory", default=-1)
    occupancy: float | None = msgspec.field(name="est. achieved occupancy %", default=None)
    grid: list[int] | None = None
    block: list[int] | None = None
    bytes: int | float = -1


class Event(msgspec.Struct, gc=False):
    """An event; times stay text, since no float holds nanoseconds since 1970."""

    ph: str = ""
    name: str = ""
    cat: str = ""
    pid: int | str = ""
    tid: int | str = ""
    ts: msgspec.Raw = NOTHING
    dur: msgspec.Raw = NOTHING
    id: int | str = -1
    args: Arguments | None = None


class _Plain(msgspec.Struct, gc=False):
    args: dict[str, Any] = {}


_PLAIN = msgspec.json.Decoder(_Plain)
_EVENTS = msgspec.json.Decoder(list[Event])
_TEXTS = msgspec.json.Decoder(list[msgspec.Raw])
_ONE = msgspec.json.Decoder(Event)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARGUMENTS = {field.encode_name: field.name for field in msgspec.structs.fields(Arguments)}
_NOT_FINITE = re.compile(rb"[:,\[]\s*([-+]?(?:NaN|nan|Infinity|inf))\b")
_STRING_OR_NOT_FINITE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[-+]?(?:NaN|nan|Infinity|inf)\b', re.DOTALL)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError)


def typed_events(text: memoryview) -> tuple[list[Event], memoryview] | None:
    """Return the events in the text of a list, and the text, repaired if need be; None if that is not what it holds.

    Old versions of Kineto write a bandwidth of infinity here and there: repairing a block at once is ten times faster
    than taking its events one by one.
    """
    try:
        return _EVENTS.decode(text), text
    except _UNREADABLE:
        pass
    repaired = _finite(bytes(text))
    if repaired is None:
        return None
    whole = memoryview(repaired)
    try:
        return _EVENTS.decode(whole), whole
    except _UNREADABLE:
        return None


def event_texts(text: memoryview) -> list[msgspec.Raw]:
    """Return the text of each event in the text of a list that `typed_events` takes."""
    return _TEXTS.decode(text)


def lenient_event(text: bytes) -> Event | None:
    """Return one event whose fields may have unusual types or values; None if it is no object at all.

    What does not parse is repaired first, see `_repaired`; a field that cannot be what it should is left out.
    """
    try:
        return _ONE.decode(text)
    except _UNREADABLE:
        pass
    fields = _fields(text)
    if fields is None:
        fields = _fields(_repaired(text))
    if fields is None:
        return None
    event = Event(
        ph=_text(fields.get("ph")), name=_text(fields.get("name")), cat=_text(fields.get("cat")),
        pid=_identity(fields.get("pid")), tid=_identity(fields.get("tid")), ts=fields.get("ts", NOTHING),
        dur=fields.get("dur", NOTHING),
    )  # fmt: skip
    if "id" in fields:
        event.id = _identity(fields["id"])
    given = _fields(bytes(fields["args"])) if "args" in fields else None
    if given is not None:
        event.args = Arguments(**{
            name: value for key, name in _ARGUMENTS.items() if (value := _argument(name, given.get(key))) is not None
        })  # fmt: skip
    return event


def plain_arguments(text: bytes) -> dict[str, Any]:
    """Return the arguments of one event that are texts or numbers, {} if there are none that can be read."""
    try:
        given = _PLAIN.decode(text).args
    except _UNREADABLE:
        whole = _fields(text) or _fields(_repaired(text)) or {}
        raws = _fields(bytes(whole["args"])) if "args" in whole else None
        given = {key: _decoded(raw) for key, raw in (raws or {}).items()}
    return {key: value for key, value in given.items() if isinstance(value, str | int | float)}


def _fields(text: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return _FIELDS.decode(text)
    except _UNREADABLE:
        return None


def _finite(text: bytes) -> bytes | None:
    """Replace numbers such as NaN and inf by null; None if there are none."""
    kept, quotes, at = list[bytes](), 0, 0
    for found in _NOT_FINITE.finditer(text):
        between = text[at : found.start(1)]
        if b"\\" in between:  # counting quotes does not tell any more what is a string
            return _repaired(text)
        quotes += between.count(b'"')
        kept += [between, found[1] if quotes % 2 else b"null"]
        at = found.end(1)
    return b"".join([*kept, text[at:]]) if kept else None


def _repaired(text: bytes) -> bytes:
    """Replace what some producers write and JSON does not have.

    Bytes that are no UTF-8 and halves of surrogate pairs become question marks, numbers such as NaN and inf null.
    """

    def repair(found: re.Match[bytes]) -> bytes:
        token = found[0]
        if not token.startswith(b'"'):
            return b"null"
        if b"\\u" not in token:
            return token
        try:
            return json.dumps(json.loads(token), ensure_ascii=False).encode("utf-8", "replace")
        except ValueError:
            return token

    text = text.decode("utf-8", "replace").encode()
    return _STRING_OR_NOT_FINITE.sub(repair, text)


def _decoded(raw: msgspec.Raw | None) -> Any:
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except _UNREADABLE:
        return None


def _text(raw: msgspec.Raw | None) -> str:
    value = _decoded(raw)
    if isinstance(value, str):
        return value
    text = bytes(raw or b"").decode("utf-8", "replace")
    return "" if text == "null" else text[:1000]


def _identity(raw: msgspec.Raw | None) -> int | str:
    value = _decoded(raw)
    return value if isinstance(value, int) and not isinstance(value, bool) else _text(raw)


def _argument(name: str, raw: msgspec.Raw | None) -> Any:
    if raw is None:
        return None
    if name in {"dims", "types"}:
        return raw
    value = _decoded(raw)
    if isinstance(value, bool):
        return None
    if name == "occupancy":
        return float(value) if isinstance(value, int | float) else None
    if name in {"grid", "block"}:
        return value if isinstance(value, list) and all(isinstance(v, int) for v in value) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) or (isinstance(value, str) and name in {"external", "correlation", "device", "stream"}):
        return value
    return None
