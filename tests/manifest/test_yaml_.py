"""YAML from strangers."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.errors import ManifestError
from mlscope_lab.manifest.yaml_ import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\x85\u2028\u2029")
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdefno-", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1), values, min_size=1, max_size=5))
def test_json_like_data_round_trips(data: dict[str, object]) -> None:
    import json

    # JSON is YAML 1.2: its texts are quoted, so nothing depends on what a plain scalar means.
    assert parse_yaml(json.dumps(data, ensure_ascii=False), where="x") == data


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=120) | st.text("{}[]:-,&*!|>'\"#%@`?\n\t ab1.", max_size=120))
def test_garbage_raises_manifest_errors_only(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text, where="x.yaml"), dict)
    except ManifestError as error:
        assert str(error).startswith("x.yaml")  # noqa: PT017


def test_scalars_follow_yaml_1_2() -> None:
    texts = ["yes", "no", "on", "off", "y", "1:30", "2024-01-01", "1_000", ".inf", "=", "<<"]
    assert parse_yaml(f"a: [{', '.join(texts)}]", where="x")["a"] == texts
    numbers = parse_yaml("a: [0o17, 0x1f, 017, 1e-5, .5, -3, ~, null, true, FALSE]", where="x")["a"]
    assert numbers == [15, 31, 17, 1e-5, 0.5, -3, None, None, True, False]


def laughs() -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (laughs(), "line 1: anchors"),
        ("a: *b", "aliases"),
        ("a: &b {c: *b}", "anchors"),
        ("a: !!python/object/apply:os.system ['true']", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!python/name:os.system", "the tag"),
        ("a: !!binary aGk=", "the tag"),
        ("a: ! b", "the tag"),
        ("a: !foo b", "the tag"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\na: !object:os.system x", "the tag"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice; keep one"),
        ("a: {b: 1, b: 1}", "the key 'b' is given twice"),
        ("1: a", "a key must be text, not 1; put it in quotes"),
        ("? [a]\n: b", "a key must be text"),
        ("? {a: b}\n: c", "a key must be text"),
        ("a: " + "9" * 5000, "does not fit 64 bits"),
        ("a: 9223372036854775808", "does not fit 64 bits"),
        ("a: 0x" + "f" * 17, "does not fit 64 bits"),
        ("a: 1e999", "the number is too large"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ("[" * 100_000, "nested more than"),
        ("a: [" + "0," * (MAX_NODES + 1) + "]", f"more than {MAX_NODES} values"),
        ("a: " + "x" * MAX_BYTES, "it is no manifest"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("- a", "must be a mapping such as 'kind: model', not list"),
        ("just text", "must be a mapping"),
        ("a: b: c", "line 1"),
        ("a: [1, 2", "line"),
        ("a: \x00", "x.yaml"),
        ("a: '\ud800'", "x.yaml"),
    ],
)  # fmt: skip
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_yaml(text, where="x.yaml")
    assert str(caught.value).startswith("x.yaml")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_depth_and_size_within_the_limits_are_taken() -> None:
    deep = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(deep, where="x") == yaml.safe_load(deep)


def test_the_pure_python_parser_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML was built without libyaml, the same texts are taken and refused."""
    import importlib

    import mlscope_lab.manifest.yaml_ as module

    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    try:
        pure = importlib.reload(module)
        assert pure.parse_yaml("a: [no, 1e-5, {b: 0x10}]", where="x") == {"a": ["no", 1e-5, {"b": 16}]}
        for text in (laughs(), "[" * 3000, "a: 1\na: 2", "a: !!python/name:os.system"):
            with pytest.raises(ManifestError):
                pure.parse_yaml(text, where="x")
    finally:
        monkeypatch.undo()
        importlib.reload(module)
