"""Texts of foreign files: numbered, within bounds, and fit to be stored."""

from __future__ import annotations

from collections.abc import Iterable

from mlscope_lab.errors import InputError

__all__ = ["Texts", "readable", "unique_labels"]

_MOST_CHARACTERS = 128 << 20


def readable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON may hold and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def unique_labels(names: Iterable[str]) -> list[str]:
    """Return the names with ``#2``, ``#3`` behind those that came before; "unnamed" for empty ones.

    Examples
    --------
    >>> unique_labels(["a", "a", "a#2", ""])
    ['a', 'a#2', 'a#2#2', 'unnamed']
    """
    taken: dict[str, int] = {}
    labels = []
    for name in names:
        plain = name or "unnamed"
        nth = taken.get(plain, 0) + 1
        label = plain if nth == 1 else f"{plain}#{nth}"
        while label in taken:
            nth += 1
            label = f"{plain}#{nth}"
        taken[plain] = nth
        taken.setdefault(label, 1)
        labels.append(label)
    return labels


class Texts:
    """Codes of distinct texts, in order of first appearance.

    Parameters
    ----------
    what
        What they are, for the message when they are too many.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = _MOST_CHARACTERS
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, text: str) -> int:
        """Return the number of a text.

        Raises
        ------
        InputError
            If the texts take more room than any real file's.
        """
        text = text if text.isascii() else readable(text)
        found = self._codes.get(text)
        if found is not None:
            return found
        self._left -= 100 + len(text)
        if self._left < 0:
            raise InputError(
                f"The file holds too many distinct {self._what} ({len(self._codes):,}) to number them; leave what "
                "makes them differ out of the recording"
            )
        return self._codes.setdefault(text, len(self._codes))

    def find(self, text: str) -> int:
        """Return the number of a text, -1 if it has none."""
        return self._codes.get(text, -1)

    @property
    def table(self) -> tuple[str, ...]:
        """The texts by their number."""
        return tuple(self._codes)
