"""TensorFlow's and JAX's XSpace, a protobuf, read without either: planes of lines of events, as columns.

A walk over the wire format takes what is wanted and steps over the rest, so a hostile file costs no more than its own
length. Field numbers are those of ``tsl/profiler/protobuf/xplane.proto``.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers.texts import Texts

__all__ = ["MOST_EVENTS", "Line", "Plane", "Statistics", "WireError", "planes_of"]

MOST_EVENTS = 5_000_000
_LONGEST_TEXT = 1 << 14
_Buffer = mmap.mmap | bytes
_Value = int | float | str


_MOST_PARTS = 1_000_000
_MOST_LETTERS = 64 << 20


class WireError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(kw_only=True)
class Line:
    """One timeline; offsets and durations in ps, `timestamp_ns` in ns.

    ``numbers`` and ``texts`` hold the statistics of the events by name, -1 where an event has none; a text is a number
    of the `Statistics` that the planes were read with.
    """

    id: int = 0
    name: str = ""
    timestamp_ns: int = 0
    metadata: array[int] = field(default_factory=lambda: array("q"))
    offset_ps: array[int] = field(default_factory=lambda: array("q"))
    duration_ps: array[int] = field(default_factory=lambda: array("q"))
    numbers: dict[str, array[int]] = field(default_factory=dict)
    texts: dict[str, array[int]] = field(default_factory=dict)

    def column(self, name: str) -> array[int]:
        """Return a statistic of all events that are whole numbers."""
        return self.numbers.get(name) or array("q", [-1]) * len(self.metadata)


class Statistics:
    """Which statistics are kept, and the texts among them."""

    def __init__(self, numbers: frozenset[str], texts: frozenset[str]) -> None:
        self.numbers, self.texts = numbers, texts
        self.table = Texts("texts of statistics")

    def add(self, line: Line, found: Mapping[str, _Value]) -> None:
        """Append the statistics of the event that comes next."""
        row = len(line.metadata)
        for name, value in found.items():
            if name in self.numbers and isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
                columns, code = line.numbers, value
            elif name in self.texts and isinstance(value, str):
                columns, code = line.texts, self.table.code(value)
            else:
                continue
            column = columns.setdefault(name, array("q"))
            column.extend([-1] * (row - len(column)))
            if len(column) == row:  # of a statistic that is told twice the first counts
                column.append(code)

    def fill(self, line: Line) -> None:
        """Make all columns as long as the line."""
        for column in (*line.numbers.values(), *line.texts.values()):
            column.extend([-1] * (len(line.metadata) - len(column)))


@dataclass(kw_only=True)
class Plane:
    """One source of events: a host's threads, a device's streams.

    ``events`` and ``labels`` hold the name and the display name by metadata id; ``details`` statistics that all events
    of a metadata id share.
    """

    name: str = ""
    lines: list[Line] = field(default_factory=list)
    events: dict[int, str] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    details: dict[int, dict[str, _Value]] = field(default_factory=dict)
    stats: dict[str, _Value] = field(default_factory=dict)


def planes_of(data: _Buffer, statistics: Statistics) -> tuple[list[Plane], list[str]]:
    """Return the planes of an XSpace and the errors and warnings that its writer left.

    Parameters
    ----------
    data
        The serialised message.
    statistics
        Those to keep; takes up their texts.

    Raises
    ------
    WireError
        If the bytes are no such message.
    InputError
        If it holds more events than `MOST_EVENTS`.
    """
    planes: list[Plane] = []
    notes: list[str] = []
    room = MOST_EVENTS
    for number, wire, low, high in _fields(data, 0, len(data)):
        if number == 1 and wire == 2:
            plane, used = _plane(data, low, high, statistics, room)
            room -= used
            planes.append(plane)
        elif number in {2, 3} and wire == 2 and len(notes) < 100:
            notes.append(_text(data, low, high))
    return planes, notes


def _plane(data: _Buffer, start: int, end: int, statistics: Statistics, room: int) -> tuple[Plane, int]:
    plane = Plane()
    names: dict[int, str] = {}
    lines, metadata, stats = [], [], []
    letters = _MOST_LETTERS
    for number, wire, low, high in _fields(data, start, end):
        if wire != 2:
            continue
        if number == 2:
            plane.name = _text(data, low, high)
        elif number == 3:
            lines.append((low, high))
        elif number == 4:
            metadata.append((low, high))
        elif number == 5:
            key, value = _stat_metadata(data, low, high)
            names[key] = value
            letters -= 100 + len(value)
        elif number == 6:
            stats.append((low, high))
        if letters < 0 or len(metadata) + len(lines) + len(stats) > _MOST_PARTS:
            raise InputError("The profile names more events and statistics than any program has")
    kept = {key: name for key, name in names.items() if name in statistics.numbers or name in statistics.texts}
    for low, high in metadata:
        _event_metadata(data, low, high, plane, kept, names)
    for low, high in stats:
        plane.stats |= _stat(data, low, high, kept, names)
    used = 0
    for low, high in lines:
        line = _line(data, low, high, kept, names, statistics, room - used)
        used += len(line.metadata)
        plane.lines.append(line)
    return plane, used


def _entry(data: _Buffer, start: int, end: int) -> tuple[int, int, int]:
    """Return key and place of the value of a map's entry."""
    key, place = 0, (start, start)
    for number, wire, low, high in _fields(data, start, end):
        if number == 1 and wire == 0:
            key = _signed(_varint(data, low, high)[0])
        elif number == 2 and wire == 2:
            place = (low, high)
    return key, *place


def _stat_metadata(data: _Buffer, start: int, end: int) -> tuple[int, str]:
    key, low, high = _entry(data, start, end)
    name = ""
    for number, wire, first, last in _fields(data, low, high):
        if number == 2 and wire == 2:
            name = _text(data, first, last)
    return key, name


def _event_metadata(
    data: _Buffer, start: int, end: int, plane: Plane, kept: dict[int, str], names: dict[int, str]
) -> None:
    key, low, high = _entry(data, start, end)
    found: dict[str, _Value] = {}
    plane.events.setdefault(key, "")
    for number, wire, first, last in _fields(data, low, high):
        if number == 2 and wire == 2:
            plane.events[key] = _text(data, first, last)
        elif number == 4 and wire == 2:
            plane.labels[key] = _text(data, first, last)
        elif number == 5 and wire == 2:
            found |= _stat(data, first, last, kept, names)
    if found:
        plane.details[key] = found


def _stat(data: _Buffer, start: int, end: int, kept: dict[int, str], names: dict[int, str]) -> dict[str, _Value]:
    """Return {name: value} of a statistic, {} if it is not wanted."""
    import struct

    name, value = None, None
    for number, wire, low, high in _fields(data, start, end):
        if number == 1 and wire == 0:
            name = kept.get(_signed(_varint(data, low, high)[0]))
            if name is None:
                return {}
        elif number == 2 and wire == 1:
            value = struct.unpack("<d", data[low:high])[0]
        elif number in {3, 4} and wire == 0:
            raw = _varint(data, low, high)[0]
            value = _signed(raw) if number == 4 else raw
        elif number == 5 and wire == 2:
            value = _text(data, low, high)
        elif number == 7 and wire == 0:
            value = names.get(_signed(_varint(data, low, high)[0]), "")
    return {} if name is None or value is None else {name: value}


def _line(
    data: _Buffer, start: int, end: int, kept: dict[int, str], names: dict[int, str], statistics: Statistics, room: int
) -> Line:
    line = Line()
    metadata, offsets, durations = line.metadata, line.offset_ps, line.duration_ps
    shown = ""
    for number, wire, low, high in _fields(data, start, end):
        if number == 4 and wire == 2:
            if len(metadata) >= room:
                raise InputError(
                    f"The profile holds more than {MOST_EVENTS:,} events; profile fewer steps, or split it by host"
                )
            key = offset = duration = 0
            for inner, kind, first, last in _fields(data, low, high):
                if kind == 0 and inner <= 3:
                    value = _signed(_varint(data, first, last)[0])
                    if inner == 1:
                        key = value
                    elif inner == 2:
                        offset = value
                    else:
                        duration = value
                elif inner == 4 and kind == 2 and kept:
                    statistics.add(line, _stat(data, first, last, kept, names))
            metadata.append(key)
            offsets.append(offset)
            durations.append(duration)
        elif wire == 0 and number in {1, 3}:
            value = _signed(_varint(data, low, high)[0])
            if number == 1:
                line.id = value
            else:
                line.timestamp_ns = value
        elif wire == 2 and number == 2:
            line.name = _text(data, low, high)
        elif wire == 2 and number == 11:
            shown = _text(data, low, high)
    line.name = shown or line.name
    statistics.fill(line)
    return line


def _text(data: _Buffer, start: int, end: int) -> str:
    # the name of a template instance is some thousand characters
    return data[start : min(end, start + _LONGEST_TEXT)].decode("utf-8", "replace")


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: _Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end) of the fields between two offsets."""
    at = start
    while at < end:
        key = data[at]
        if key < 0x80:
            at += 1
        else:
            key, at = _varint(data, at, end)
        wire = key & 7
        low = at
        if wire == 0:
            # most are short, and their values are read by whoever wants them
            while at < end and data[at] >= 0x80:
                at += 1
            at += 1
            if at - low > 10:
                raise WireError(f"a number at byte {low} does not end")
        elif wire == 2:
            length, low = _varint(data, at, end)
            at = low + length
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        else:
            raise WireError(f"wire type {wire} at byte {at}")
        if key < 8 or at > end:
            raise WireError(f"a field at byte {low} ends outside its message")
        yield key >> 3, wire, low, at


def _varint(data: _Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(f"a number at byte {at} does not end")
