"""The step that cuts text into BERT's word pieces."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step
from mlscope_lab.processing.sources import read_bytes, source_name

__all__ = ["WordPieces"]

_LONGEST_WORD = 100
"""Longer words are unknown, as in BERT's own tokenizer."""
_MAX_BYTES = 1 << 22
# CJK ideographs by block, each a word of its own (BERT's tokenization.py)
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _is_punctuation(character: str) -> bool:
    # ASCII that is neither letter nor digit counts, though Unicode calls some of it symbols
    ascii_mark = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return ascii_mark or unicodedata.category(character).startswith("P")


def _words(text: str, lowercase: bool) -> list[str]:
    """Return words and punctuation marks, cleaned and without accents as BERT's uncased models want them."""
    cleaned = []
    for character in text:
        if character in "\t\n\r" or unicodedata.category(character) == "Zs":
            cleaned.append(" ")
        elif character in "\0\ufffd" or unicodedata.category(character) in {"Cc", "Cf", "Co"}:
            continue
        elif any(low <= ord(character) <= high for low, high in _IDEOGRAPHS):
            cleaned.append(f" {character} ")
        else:
            cleaned.append(character)
    plain = "".join(cleaned)
    if lowercase:
        plain = unicodedata.normalize("NFD", plain)
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn").lower()
    words: list[str] = []
    for part in plain.split():
        start = True
        for character in part:
            if _is_punctuation(character):
                words.append(character)
                start = True
            elif start:
                words.append(character)
                start = False
            else:
                words[-1] += character
    return words


@lru_cache(maxsize=4)
def _index(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(vocabulary)}


@dataclass(frozen=True, kw_only=True)
class WordPieces(Step):
    """Cut text into word pieces, between [CLS] and [SEP], and give their numbers.

    Takes the path of a text file, or its bytes, in UTF-8. Several inputs that begin with this step are made of the same
    text.

    Parameters
    ----------
    output
        "ids", numbers of the pieces; "mask", 1 for a piece and 0 for padding; or "types", zeros.
    longest
        Most pieces, both marks included; what follows is cut off.
    length
        Fill up to so many with [PAD]; None leaves each text its own length.
    lowercase
        Lower case and no accents.
    labels
        The vocabulary, a piece a number. The engine fills it in from the manifest's labels.

    References
    ----------
    Devlin et al., arXiv 1810.04805; Wu et al., "Google's Neural Machine Translation System", arXiv 1609.08144, section
    4.1, for the greedy longest match. The pieces are those of the library tokenizers (BertNormalizer, BertPreTokenizer,
    WordPiece).
    """

    shares_sample: ClassVar[bool] = True

    output: Literal["ids", "mask", "types"] = "ids"
    longest: int = 512
    length: int | None = None
    lowercase: bool = True
    labels: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.longest < 2 or (self.length is not None and self.length < 2):
            raise InputError("longest and length must be at least 2, for the two marks")
        if self.labels is not None:  # lists come from JSON
            object.__setattr__(self, "labels", tuple(self.labels))

    def __call__(self, value: Any) -> npt.NDArray[np.int64]:
        """Return int64 (sequence,).

        Raises
        ------
        InputError
            If it is no text in UTF-8, or the vocabulary lacks [CLS], [SEP], [UNK] or [PAD].
        """
        data = read_bytes(value)
        if len(data) > _MAX_BYTES:
            raise InputError(f"{source_name(value)} holds {len(data)} bytes, more than {_MAX_BYTES}; cut it up")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source_name(value)} is not text in UTF-8: {error}") from error
        ids = self._ids(text)
        length = len(ids) if self.length is None else self.length
        ids = ids[:length] if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        found = np.zeros(length, dtype=np.int64)
        if self.output == "ids":
            found[:] = _index(self.labels or ())["[PAD]"]
            found[: len(ids)] = ids
        elif self.output == "mask":
            found[: len(ids)] = 1
        return found

    def _ids(self, text: str) -> list[int]:
        known = _index(self.labels or ())
        for mark in ("[CLS]", "[SEP]", "[UNK]", "[PAD]"):
            if mark not in known:
                raise InputError(f"word_pieces: the vocabulary (labels of the manifest) lacks {mark}")
        ids: list[int] = []
        for word in _words(text, self.lowercase):
            ids += _pieces(word, known)
            if len(ids) > self.longest:
                break
        return [known["[CLS]"], *ids[: self.longest - 2], known["[SEP]"]]


def _pieces(word: str, known: dict[str, int]) -> list[int]:
    """Return the numbers of the longest pieces from left to right; of a word that cannot be put together, [UNK]."""
    if len(word) > _LONGEST_WORD:
        return [known["[UNK]"]]
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else f"##{word[start:end]}"
            if piece in known:
                found.append(known[piece])
                start = end
                break
        else:
            return [known["[UNK]"]]
    return found
