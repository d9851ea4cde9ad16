"""Which boxes are the same object, and which are duplicates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlscope_lab.analysis.detections import (
    Detections,
    intersection_over_union,
    match_detections,
    suppress_overlapping,
)
from mlscope_lab.errors import InputError

SQUARE = [0.0, 0.0, 10.0, 10.0]


def boxes(most=5):
    corners = arrays(np.float64, st.tuples(st.integers(0, most), st.just(4)), elements=st.integers(0, 20).map(float))
    return corners.map(lambda a: np.concatenate([np.minimum(a[:, :2], a[:, 2:]), np.maximum(a[:, :2], a[:, 2:])], 1))


def made(found, classes=None):
    return Detections.of(found, np.linspace(0.9, 0.5, len(found)), classes)


def test_overlap_by_hand():
    a = np.array([SQUARE])
    b = np.array([SQUARE, [5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [2.0, 2.0, 7.0, 7.0], [3.0, 3.0, 3.0, 3.0]])
    assert intersection_over_union(a, b).tolist() == [[1.0, pytest.approx(1 / 3), 0.0, 0.25, 0.0]]


@given(boxes(), boxes())
def test_overlap_is_symmetric_and_within_bounds(a, b):
    found = intersection_over_union(a, b)
    assert found.shape == (len(a), len(b))
    np.testing.assert_allclose(found.T, intersection_over_union(b, a))
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()


@given(boxes(4), boxes(4), st.sampled_from([0.1, 0.5, 0.9]))
def test_as_many_pairs_as_possible(a, b, iou):
    """No other one-to-one assignment pairs more boxes, by trying all of them."""
    found = match_detections(made(a), made(b), iou=iou)
    overlap = intersection_over_union(a, b) >= iou
    short, long = (overlap, range(len(b))) if len(a) <= len(b) else (overlap.T, range(len(a)))
    most = max(
        (sum(bool(short[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(long, len(short))),
        default=0,
    )
    assert len(found.pairs) == most
    assert (found.overlap >= iou).all()
    assert len(set(found.pairs[:, 0])) == len(set(found.pairs[:, 1])) == len(found.pairs)
    assert sorted([*found.pairs[:, 0], *found.lost]) == list(range(len(a)))
    assert sorted([*found.pairs[:, 1], *found.gained]) == list(range(len(b)))


def test_another_class_is_another_object():
    a, b = made(np.array([SQUARE]), [1]), made(np.array([SQUARE]), [2])
    found = match_detections(a, b)
    assert (len(found.pairs), found.lost.tolist(), found.gained.tolist()) == (0, [0], [0])


def test_the_closer_box_is_paired():
    a = made(np.array([SQUARE]))
    b = made(np.array([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 9.0]]))
    found = match_detections(a, b)
    assert found.pairs.tolist() == [[0, 1]]
    assert found.gained.tolist() == [0]


def test_duplicates_of_a_class_go():
    found = Detections.of([SQUARE, [0, 0, 10, 9], [30, 30, 40, 40], [0, 0, 10, 9]], [0.6, 0.9, 0.5, 0.8], [1, 1, 1, 2])
    kept = suppress_overlapping(found, iou=0.5)
    assert kept.scores.tolist() == [0.9, 0.8, 0.5]
    assert kept.classes.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([SQUARE], [0.5, 0.5]), "do not fit together"),
        (([[10, 0, 0, 10]], [0.5]), "upside down"),
        (([[0, 0, np.nan, 1]], [0.5]), "finite"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Detections.of(*arguments)
    with pytest.raises(InputError, match="iou"):
        match_detections(made(np.empty((0, 4))), made(np.empty((0, 4))), iou=0)
