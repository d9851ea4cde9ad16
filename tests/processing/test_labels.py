"""Class names from lines and JSON."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import ManifestError
from mlscope_lab.manifest.common import FileLocation
from mlscope_lab.manifest.model import Labels
from mlscope_lab.processing.labels import load_labels, parse_labels

WORDS = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), min_size=1, max_size=9)


@given(WORDS)
def test_the_forms_agree(words: list[str]) -> None:
    wanted = tuple(words)
    assert parse_labels("\n".join(words) + "\n\n", form="lines") == wanted
    assert parse_labels(json.dumps(words), form="json") == wanted
    assert parse_labels(json.dumps({str(i): w for i, w in enumerate(words)}), form="json") == wanted
    assert parse_labels(json.dumps({str(i): ["n0", w] for i, w in enumerate(words)}), form="json") == wanted
    assert parse_labels(json.dumps({"a": 1, "names": words}), form="json", key="names") == wanted


@given(st.text(max_size=30), st.sampled_from(["lines", "json"]), st.sampled_from([None, "k"]))
def test_garbage_raises_manifest_errors_only(text: str, form: str, key: str | None) -> None:
    with contextlib.suppress(ManifestError):
        assert all(parse_labels(text, form=form, key=key))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"0": "a", "2": "b"}', "none for index 1"),
        ('["a", 3]', "label of index 1 must be text, not 3"),
        ("[]", "holds no labels"),
        ('"a"', "holds no labels"),
        ("[" * 100_000, "is not JSON"),
        ('["a", []]', "index 1"),
    ],
)
def test_json_mistakes(text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        parse_labels(text, form="json", where="x.json")


def test_blank_lines_in_the_middle_would_shift_every_label() -> None:
    with pytest.raises(ManifestError, match="label of index 1 must be text"):
        parse_labels("a\n\nb\n", form="lines")


def test_load_from_a_location(tmp_path: Path) -> None:
    file = tmp_path / "l.txt"
    file.write_text("\ufeffcat\ndog\n", encoding="utf-8")
    labels = Labels(location=FileLocation(**{"from": "file", "path": str(file)}))
    assert load_labels(labels, lambda where: Path(where.path)) == ("cat", "dog")  # type: ignore[union-attr]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"l\.txt is not UTF-8"):
        load_labels(labels, lambda where: file)
    assert load_labels(Labels(names=("x",)), pytest.fail) == ("x",)
