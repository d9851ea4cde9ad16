"""The tree of errors is the one its docstring draws."""

from __future__ import annotations

import re

import pytest

from mlscope_lab import errors


def test_all_names_every_error_and_nothing_else():
    classes = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert set(errors.__all__) == classes | {"nearest"}


def test_the_docstring_draws_the_tree():
    drawn = re.findall(r"^ +([│├└─ ]*)(\w+Error)(?: \((\w+)\))?", errors.__doc__, flags=re.MULTILINE)
    assert {name for _, name, _ in drawn} == set(errors.__all__) - {"nearest"}
    parents: list[str] = []
    for branch, name, builtin in drawn:
        depth = len(branch) // 4
        del parents[depth:]
        cls = getattr(errors, name)
        if parents:
            assert issubclass(cls, getattr(errors, parents[-1])), name
        if builtin:
            assert issubclass(cls, getattr(__builtins__, builtin, None) or __builtins__[builtin]), name
        parents.append(name)


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("efficientnet-lite", " Did you mean 'efficientnet-lite0'?"),
        ("resnet", " Did you mean 'light-resnet50'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest(word, found):
    assert errors.nearest(word, ["efficientnet-lite0", "light-resnet50", "magika"]) == found
