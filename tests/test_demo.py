"""The demo, as a stranger sees it first."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.config import load_settings
from mlscope_lab.demo import Answer, DemoResult, Difference, _differences, pictures, run_demo
from mlscope_lab.errors import BackendNotAvailableError


def _result(*differences: float, indices: tuple[int, ...] = (285, 285)) -> DemoResult:
    return DemoResult(
        model="m",
        answers=tuple(Answer(backend=f"b{n}", picture=p, index=i, label="", score=0.4)
                      for n, i in enumerate(indices) for p in ("cat", "coffee")),
        differences=tuple(Difference(a="a", b="b", picture="cat", max_abs=d) for d in differences),
        runs={}, report=Path("x.html"), prepare_s=1.0, seconds=2.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "agree"), [((), True), ((9.9e-4,), True), ((1e-3,), False), ((1e-6, math.nan), False)]
)
def test_agreement_needs_every_pair_under_the_tolerance(differences: tuple[float, ...], agree: bool) -> None:
    assert _result(*differences).agree is agree


def test_agreement_needs_the_same_names() -> None:
    assert not _result(1e-6, indices=(285, 281)).agree


def test_the_worst_picture_of_each_pair_is_named() -> None:
    base = np.zeros((2, 4), dtype=np.float32)
    other = base.copy()
    other[1, 2] = 0.25
    broken = base.copy()
    broken[0, 0] = np.nan
    found = _differences({"a": base, "b": other, "c": broken}, ["cat", "coffee"])
    assert [(d.a, d.b, d.picture) for d in found] == [("a", "b", "coffee"), ("a", "c", "cat"), ("b", "c", "cat")]
    assert found[0].max_abs == 0.25
    assert math.isnan(found[1].max_abs)


def test_without_a_framework_the_way_out_is_named(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    with pytest.raises(BackendNotAvailableError, match=r"pip install 'mlscope-lab\[demo\]'"):
        run_demo(tmp_path, load_settings(home=tmp_path, environ={}), False, backends=())


def test_the_pictures_come_with_scikit_image() -> None:
    pytest.importorskip("skimage")
    assert {name: path.name for name, path in pictures().items()} == {"cat": "chelsea.png", "coffee": "coffee.png"}
