"""What the sweep of the preprocessing finds, and which change it names as the cause."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

import mlscope_lab as ml

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def cat():
    pytest.importorskip("onnxruntime")
    return ml.sweep_preprocessing(
        "efficientnet-lite0", data.chelsea(), observed=282, backend="onnxruntime", pairs=False
    )


def test_the_other_normalisation_turns_the_cat_from_285_to_282_and_is_named(cat):
    assert cat["declared_top1"].item() == 285
    assert cat.attrs["cause"] == "normalisation: (x - 127) / 128"
    assert cat.attrs["cause_axes"] == ["normalisation"]
    row = cat.isel(variation=int(np.flatnonzero(cat["name"] == cat.attrs["cause"])[0]), sample=0)
    assert row["top1"].item() == 282
    assert row["label"].item() == "tiger cat"
    assert row["changed"].item()
    assert row["explanation_rank"].item() == 0
    assert row["score"].item() == pytest.approx(0.386, abs=2e-3)


def test_what_the_answer_alone_cannot_tell_apart_is_said(cat):
    tied = cat.attrs["cause_tied"]
    assert tied
    assert all(name.startswith("normalisation: ") for name in tied)
    assert "All are changes of the normalisation" in cat.attrs["cause_sentence"]
