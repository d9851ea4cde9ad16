"""Fixes as files: what is written is read, and what is wrong is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlscope_lab.alignment.fixes import load_fixes, save_fixes
from mlscope_lab.alignment.records import Fix
from mlscope_lab.errors import InputError

A, B = {"model": "net", "backend": "pytorch"}, {"model": "net", "backend": "tensorflow"}
FIXES = [Fix(a="blocks.3/add:0", b="add_4/AddV2"), Fix(a="dropout: 'x'", b=None), Fix(a=None, b="Identity")]
HEAD = "a: {model: net, backend: pytorch}\nb: {model: net, backend: tensorflow}\n"


@pytest.mark.parametrize("name", ["fixes.yaml", "fixes.json"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    path = save_fixes(tmp_path / name, FIXES, a=A, b=B)
    assert load_fixes(path) == FIXES
    assert load_fixes(str(path), a=A, b=B) == FIXES
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_fixes_for_other_sides_are_refused(tmp_path: Path) -> None:
    path = save_fixes(tmp_path / "fixes.yaml", FIXES, a=A, b=B)
    with pytest.raises(InputError, match="made for b with backend 'tensorflow', and here it is 'onnxruntime'"):
        load_fixes(path, a=A, b={**B, "backend": "onnxruntime"})
    assert load_fixes(path, a={"backend": "pytorch", "precision": "float16"}) == FIXES  # says nothing of precision


def test_a_file_that_does_not_say_for_which_sides_warns(tmp_path: Path) -> None:
    path = tmp_path / "fixes.yaml"
    path.write_text("- {a: x, b: y}\n")
    with pytest.warns(UserWarning, match="does not say for which two sides"):
        assert load_fixes(path) == [Fix(a="x", b="y")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "fixes:\n- {a: x, b: y}\n- {a: x, c: y}\n", r"fixes\[1\] \(line 5\): unknown key 'c'"),
        (HEAD + "fixes:\n- {a: 3, b: y}\n", r"fixes\[0\] \(line 4\): 'a' must be the name of a value"),
        (HEAD + "fixes:\n- {a: x, b: y}\n- {a: x, b: z}\n", r"fixes\[1\] \(line 5\): 'x' of side a is in fixes\[0\]"),
        (HEAD + "fixes:\n- {a: null}\n", r"fixes\[0\] \(line 4\) names no value"),
        (HEAD + "fixes:\n- word\n", "must be a mapping"),
        (HEAD + "fixes: word\n", "must be a list"),
        (HEAD + "fixs: []\n", "unknown key 'fixs'.*fixes"),
        ("a: {modle: net}\nfixes: []\n", "'a.modle' is unknown.*model"),
        ("a: net\nfixes: []\n", "must say which side it is"),
        ("just words", "expected a mapping"),
        ("a: [", "is no YAML"),
        ("[" * 3000, "is no YAML"),
        ("x: &x [1]\ny: *x\n", "aliases"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "fixes.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_fixes(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_fixes(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        load_fixes(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 4_000_001)
    with pytest.raises(InputError, match="no file of fixes"):
        load_fixes(tmp_path / "large.yaml")
    with pytest.raises(InputError, match="cannot be written"):
        save_fixes(tmp_path / "no" / "folder.yaml", FIXES, a=A, b=B)
    with pytest.raises(InputError, match="must say which side it is"):
        save_fixes(tmp_path / "fixes.yaml", FIXES, a={}, b=B)
