"""Cut the text of a trace in Chrome's format into blocks of whole events, without parsing it twice or holding it whole.

A block ends where the text looks like the gap between two events. Whether it is one, only a parser can tell: it might
be inside a string or a list. So the reader of a block tries it, and says so; the blocks that do not parse are cut again
event by event, by counting quotes and brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mlscope_lab.errors import InputError

__all__ = ["BLOCK_BYTES", "MAX_EVENT_BYTES", "Nesting", "TraceText"]

BLOCK_BYTES = 2 << 20
MAX_EVENT_BYTES = 32 << 20
_MAX_VALUE_BYTES = 1 << 20
_SPACE = b" \t\r\n"
_STRUCTURE = re.compile(rb'["{}\[\]]')
_QUOTED_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_SCALAR_END = re.compile(rb"[,\]}\s]")


class Nesting:
    """Finds where a JSON value ends, piece by piece, by counting quotes and brackets."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def end(self, text: bytes | bytearray, start: int) -> int:
        """Return the position after the list, object or string that begins at `start`; -1 if it goes on.

        Call it again with the text that follows, from its beginning.
        """
        at = start
        while at < len(text):
            if self._quoted:
                if self._escaped:
                    at, self._escaped = at + 1, False
                found = _QUOTED_REST.match(text, at)
                at = found.end() if found else at
                if at < len(text) and text[at] == 0x22:
                    at, self._quoted = at + 1, False
                    if not self._depth:
                        return at
                elif at < len(text):  # a backslash is the last byte
                    self._escaped = True
                    return -1
                continue
            mark = _STRUCTURE.search(text, at)
            if mark is None:
                return -1
            at = mark.end()
            if mark[0] == b'"':
                self._quoted = True
            elif mark[0] in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return at
        return -1


class TraceText:
    """The events of a trace as text, and what stands beside them.

    Parameters
    ----------
    pieces
        The text.
    where
        Name of the file, for messages.

    Attributes
    ----------
    beside
        {key: text of the value} of an object's other keys, those of at most a megabyte, four megabytes in all.
    cut_short
        Whether a bare list ended within an event.
    """

    def __init__(self, pieces: Iterator[bytes], where: str) -> None:
        self._pieces = pieces
        self._where = where
        self._text = bytearray()
        self._at = 0
        self._done = False
        self.beside: dict[str, bytes] = {}
        self._room = 4 * _MAX_VALUE_BYTES
        self.cut_short = False

    def blocks(self, accept: Callable[[memoryview], bool], accept_each: Callable[[list[bytes]], None]) -> None:
        """Hand over all events.

        Parameters
        ----------
        accept
            Called with the text of a list of events; returns whether it parsed, which proves the cuts. If not, it must
            not have kept anything of it. The text changes afterwards.
        accept_each
            Called with the texts of some elements of the list, cut out by their brackets.
        """
        first = self._next()
        if first == b"\xef" and self._text[self._at : self._at + 3] == b"\xef\xbb\xbf":
            self._at += 3
            first = self._next()
        if first == b"[":
            self._at += 1
            self._events(accept, accept_each, closed=False)
            return
        if first != b"{":
            raise InputError(f"{self._where} is no trace in Chrome's format: it begins with neither {{ nor [")
        self._at += 1
        found = False
        while (sign := self._next()) != b"}":
            if sign == b",":
                self._at += 1
                continue
            if sign != b'"':
                raise self._broken("a key was expected")
            key = self._string()
            if self._next() != b":":
                raise self._broken(f"a colon was expected after the key {key!r}")
            self._at += 1
            if key == "traceEvents" and self._next() == b"[":
                if found:
                    raise InputError(f"{self._where} holds the key traceEvents twice; keep one of them")
                found = True
                self._at += 1
                self._events(accept, accept_each, closed=True)
            else:
                self._beside(key)
        if not found:
            raise InputError(f"{self._where} is no trace in Chrome's format: it has no list traceEvents")

    def _broken(self, what: str) -> InputError:
        near = self._text[self._at : self._at + 40].decode("utf-8", "replace")
        return InputError(f"{self._where} is damaged or no JSON: {what} where it says {near!r}")

    def _more(self, keep: int) -> bool:
        """Read on, keeping the text from `keep`; False at the end of the file."""
        piece = next(self._pieces, b"") if not self._done else b""
        if not piece:
            self._done = True
            return False
        self._text = bytearray().join((memoryview(self._text)[keep:], piece))
        self._at -= keep
        return True

    def _next(self) -> bytes:
        """Skip space and return the character there, b"" at the end of the file."""
        while True:
            text = self._text
            self._skip(_SPACE)
            if self._at < len(text):
                return bytes(text[self._at : self._at + 1])
            if not self._more(self._at):
                return b""

    def _string(self) -> str:
        raw = self._value()
        if raw is None:
            raise self._broken("a key is longer than a megabyte")
        try:
            import msgspec

            return str(msgspec.json.decode(raw, type=str))
        except (ValueError, UnicodeDecodeError):
            raise self._broken("a key is no JSON string") from None

    def _value(self) -> bytes | None:
        """Pass over the value here and return its text, None if it is too large to keep."""
        first = self._next()
        if not first:
            raise InputError(f"{self._where} ends in the middle: it is truncated; get it again, or record it again")
        if first not in b'"{[':
            while (end := _SCALAR_END.search(self._text, self._at)) is None and self._more(self._at):
                if len(self._text) - self._at > _MAX_VALUE_BYTES:
                    raise self._broken("a value is longer than a megabyte")
            stop = end.start() if end else len(self._text)
            raw, self._at = bytes(self._text[self._at : stop]), stop
            if not raw:
                raise self._broken("a value was expected")
            return raw
        nesting = Nesting()
        kept: list[bytes] | None = []
        size = 0
        while True:
            end_at = nesting.end(self._text, self._at)
            piece = bytes(self._text[self._at : end_at if end_at >= 0 else len(self._text)])
            size += len(piece)
            kept = None if kept is None or size > _MAX_VALUE_BYTES else [*kept, piece]
            if end_at >= 0:
                self._at = end_at
                return None if kept is None else b"".join(kept)
            self._at = len(self._text)
            if not self._more(self._at):
                raise InputError(f"{self._where} ends in the middle: it is truncated; get it again, or record it again")

    def _beside(self, key: str) -> None:
        raw = self._value()
        if raw is not None and len(raw) + len(key) <= self._room:
            self._room -= len(raw) + len(key) + 100
            self.beside[key] = raw

    def _events(
        self, accept: Callable[[memoryview], bool], accept_each: Callable[[list[bytes]], None], *, closed: bool
    ) -> None:
        """Hand over the events of the list whose bracket is behind us, and pass its end."""
        want = BLOCK_BYTES
        while True:
            while len(self._text) - self._at < want and self._more(self._at - 1):
                pass
            if self._whole_block(accept):
                want = BLOCK_BYTES
                continue
            begin = self._at
            if self._one_by_one(accept_each):
                return
            if self._done:
                break
            # nothing but the beginning of a large event: read on
            want = BLOCK_BYTES if self._at > begin else 2 * want
            if want > MAX_EVENT_BYTES:
                raise InputError(
                    f"{self._where} holds an event of more than {MAX_EVENT_BYTES} bytes, which is not imported; "
                    "record it without that event's arguments"
                )
        if closed:
            raise InputError(f"{self._where} ends before its list of events does: it is truncated; record it again")
        self.cut_short = self._next() not in {b"", b"]"}
        self._at = len(self._text)

    def _whole_block(self, accept: Callable[[memoryview], bool]) -> bool:
        """Hand over all events but the last in the text at hand, if they parse."""
        text = self._text
        self._skip(b" \t\r\n,")
        comma = _last_gap(text, self._at)
        if comma < 0:
            return False
        # what stands before is done with, so its last byte and the comma may become the brackets of a list
        text[self._at - 1], text[comma] = b"[]"
        if not accept(memoryview(text)[self._at - 1 : comma + 1]):
            text[comma] = ord(",")
            return False
        self._at = comma + 1
        return True

    def _skip(self, what: bytes) -> None:
        text = self._text
        while self._at < len(text) and text[self._at] in what:
            self._at += 1

    def _one_by_one(self, accept_each: Callable[[list[bytes]], None]) -> bool:
        """Hand over the events that are whole in the text at hand; True if the list ends here."""
        text, found, ended = self._text, list[bytes](), False
        while True:
            self._skip(b" \t\r\n,")
            if self._at >= len(text):
                break
            first = text[self._at]
            if first == 0x5D:
                self._at += 1
                ended = True
                break
            if first in b'"{[':
                end = Nesting().end(text, self._at)
            else:
                mark = _SCALAR_END.search(text, self._at)
                end = mark.start() if mark else -1
                if end == self._at:
                    raise self._broken("an event was expected")
            if end < 0:
                break
            found.append(bytes(text[self._at : end]))
            self._at = end
        accept_each(found)
        return ended


def _last_gap(text: bytearray, start: int) -> int:
    """Return the position of the last comma between a closing and an opening brace, -1 for none near the end."""
    at = len(text)
    for _ in range(200):
        at = text.rfind(b"{", start, at)
        if at < 0:
            return -1
        first = max(start, at - 64)
        before = text[first:at].rstrip(_SPACE)
        if before.endswith(b",") and before[:-1].rstrip(_SPACE).endswith(b"}"):
            return first + len(before) - 1
    return -1
