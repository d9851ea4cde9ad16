"""Text to word pieces; the expected numbers are those of the library tokenizers 0.23 with the published vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.config import load_settings
from mlscope_lab.errors import InputError
from mlscope_lab.processing.word_pieces import WordPieces

SMALL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##believ", "##able", "cafe", "!", "a", "b")


def pieces(text, **options):
    return WordPieces(labels=SMALL, **options)(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("unbelievable!", [2, 4, 5, 6, 8, 3]),
        ("Un\u200bbelievable", [2, 4, 5, 6, 3]),
        ("CAF\u00c9", [2, 7, 3]),
        ("unknown", [2, 1, 3]),
        ("", [2, 3]),
        ("a" * 101, [2, 1, 3]),
        ("a!b", [2, 9, 8, 10, 3]),
        (" a\tb\n", [2, 9, 10, 3]),
        ("a\u6f22b", [2, 9, 1, 10, 3]),
    ],
)
def test_by_hand(text, ids):
    found = pieces(text)
    assert found.dtype == np.int64
    assert found.tolist() == ids
    assert pieces(text, output="mask").tolist() == [1] * len(ids)
    assert pieces(text, output="types").tolist() == [0] * len(ids)


def test_case_counts_where_it_is_asked_for():
    assert pieces("A", lowercase=False).tolist() == [2, 1, 3]


def test_long_text_is_cut_and_short_text_filled():
    assert pieces("a a a a", longest=4).tolist() == [2, 9, 9, 3]
    assert pieces("a", length=5).tolist() == [2, 9, 3, 0, 0]
    assert pieces("a", length=5, output="mask").tolist() == [1, 1, 1, 0, 0]
    assert pieces("a a a a", length=4).tolist() == [2, 9, 9, 3]


@given(st.text(max_size=60))
def test_any_text_gives_marks_around_known_numbers(text):
    found = pieces(text.encode("utf-8", "ignore"), longest=16)
    assert 2 <= len(found) <= 16
    assert (found[0], found[-1]) == (2, 3)
    assert ((found >= 0) & (found < len(SMALL))).all()


def test_files_are_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("unbelievable!", encoding="utf-8")
    assert WordPieces(labels=SMALL)(path).tolist() == [2, 4, 5, 6, 8, 3]


def test_what_is_wrong_is_said():
    with pytest.raises(InputError, match="UTF-8"):
        pieces(b"\xff\xfe")
    with pytest.raises(InputError, match=r"lacks \[CLS\]"):
        WordPieces()(b"a")
    with pytest.raises(InputError, match="at least 2"):
        WordPieces(longest=1)
    with pytest.raises(InputError, match="cut it up"):
        pieces(b"a" * (1 << 23))


@pytest.mark.network
def test_the_published_vocabulary_gives_the_published_numbers():
    from mlscope_lab.artifacts import fetch
    from mlscope_lab.catalog import load_catalog
    from mlscope_lab.processing.labels import load_labels

    settings = load_settings()
    entry = load_catalog(settings).model("all-minilm-l6-v2")
    vocabulary = load_labels(entry.manifest.labels, lambda where: fetch(where, settings=settings).path)
    step = WordPieces(labels=vocabulary)
    for text, ids in EXPECTED.items():
        assert step(text.encode()).tolist() == ids, text


EXPECTED = {
    "A cat sits on the mat.": [101, 1037, 4937, 7719, 2006, 1996, 13523, 1012, 102],
    "Caf\xe9 na\xefve \u6f22\u5b57 unbelievable!": [101, 7668, 15743, 1904, 100, 23653, 999, 102],
    "$5.00 + 3^2 = `q` ~ |x| <y>": [
        101,
        1002,
        1019,
        1012,
        4002,
        1009,
        1017,
        1034,
        1016,
        1027,
        1036,
        1053,
        1036,
        1066,
        1064,
        1060,
        1064,
        1026,
        1061,
        1028,
        102,
    ],
    "\u0130stanbul \xdf \ufb01": [101, 9960, 1096, 1984, 102],
    "tokenization's re-tokenized": [101, 19204, 3989, 1005, 1055, 2128, 1011, 19204, 3550, 102],
    "\ud55c\uad6d\uc5b4 \u65e5\u672c\u8a9e\u30c6\u30ad\u30b9\u30c8": [
        101,
        1469,
        30006,
        30021,
        29991,
        30014,
        30020,
        29999,
        30008,
        1864,
        1876,
        1950,
        1713,
        30227,
        30233,
        30240,
        102,
    ],
    "emoji \U0001f600": [101, 7861, 29147, 2072, 100, 102],
    "a\x00b\ufffdc\u200bd\xa0e\u3000f": [101, 5925, 2094, 1041, 1042, 102],
}
