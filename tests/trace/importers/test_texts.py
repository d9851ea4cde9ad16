from __future__ import annotations

import pytest

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers.texts import Texts, readable, unique_labels


def test_texts_are_numbered_once():
    texts = Texts("names")
    assert [texts.code(text) for text in ("b", "a", "b", "é\ud800", "é?")] == [0, 1, 0, 2, 2]
    assert texts.table == ("b", "a", "é?")
    assert (texts.find("a"), texts.find("x"), len(texts)) == (1, -1, 3)


def test_too_many_texts_are_refused(monkeypatch):
    monkeypatch.setattr("mlscope_lab.trace.importers.texts._MOST_CHARACTERS", 350)
    texts = Texts("names")
    for number in range(3):
        texts.code(str(number))
    with pytest.raises(InputError, match=r"too many distinct names \(3\)"):
        texts.code("3")


def test_labels_are_unique():
    labels = unique_labels(["a#2", "a", "a", "a", "", ""])
    assert labels == ["a#2", "a", "a#3", "a#4", "unnamed", "unnamed#2"]
    assert readable("plain") == "plain"
