"""Boxes out of raw outputs, in the forms that detectors answer in."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.errors import InputError
from mlscope_lab.processing.detections import DetectionOutputs

CORNERS = np.array([[1.0, 2.0, 5.0, 8.0], [0.0, 0.0, 4.0, 4.0]], np.float32)


def read(outputs, **said):
    return DetectionOutputs.from_mapping({"boxes": "boxes", "scores": "scores", **said}).read(outputs)


@pytest.mark.parametrize(
    ("form", "boxes"),
    [
        ("xyxy", CORNERS),
        ("yxyx", CORNERS[:, [1, 0, 3, 2]]),
        ("cxcywh", np.array([[3.0, 5.0, 4.0, 6.0], [2.0, 2.0, 4.0, 4.0]])),
    ],
)
def test_forms(form, boxes):
    found = read({"boxes": boxes, "scores": np.array([0.9, 0.4])}, form=form)
    assert found.boxes.tolist() == [CORNERS[0].tolist()]
    assert found.scores.tolist() == [0.9]
    assert found.classes.tolist() == [0]


def test_scores_by_class():
    outputs = {"boxes": CORNERS, "scores": np.array([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]])}
    assert read(outputs).classes.tolist() == [1, 0]
    assert read(outputs, score_index=1).scores.tolist() == [0.7]


def test_classes_of_their_own():
    outputs = {"boxes": CORNERS, "scores": np.array([0.6, 0.7]), "kinds": np.array([3.0, 17.0])}
    assert read(outputs, classes="kinds").classes.tolist() == [3, 17]


def test_offsets_of_a_grid_of_windows():
    """A window of 12 pixels at every second pixel, its corners moved by shares of 12; axes are x, y."""
    boxes, scores = np.zeros((3, 2, 4)), np.zeros((3, 2))
    scores[2, 1] = 0.9
    boxes[2, 1] = [0.5, 0.0, -0.25, 0.25]
    found = read({"boxes": boxes, "scores": scores}, form="offsets", grid="xy")
    assert found.boxes.tolist() == [[4 + 6, 2, 4 + 12 - 3, 2 + 12 + 3]]
    turned = read({"boxes": boxes.swapaxes(0, 1), "scores": scores.T}, form="offsets", grid="yx")
    assert turned.boxes.tolist() == found.boxes.tolist()


def test_duplicates_go_and_inside_out_covers_nothing():
    boxes = np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [9.0, 9.0, 8.0, 8.0]])
    found = read({"boxes": boxes, "scores": np.array([0.8, 0.9, 0.7])}, suppress=0.5)
    assert found.scores.tolist() == [0.9, 0.7]
    assert found.boxes[1].tolist() == [9.0, 9.0, 9.0, 9.0]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"boxs": "b"}, "has no 'boxs'.*'boxes'"),
        ({"boxes": "boxes"}, "must name the output with the scores"),
        ({"boxes": "boxes", "scores": "scores", "form": "polar"}, "form must be"),
    ],
)
def test_what_a_manifest_says_wrongly(said, message):
    with pytest.raises(InputError, match=message):
        DetectionOutputs.from_mapping(said)


@pytest.mark.parametrize(
    ("outputs", "more", "message"),
    [
        ({"boxes": CORNERS}, {}, "no output 'scores'"),
        ({"boxes": np.zeros((2, 5)), "scores": np.zeros(2)}, {}, "four numbers a box"),
        ({"boxes": CORNERS, "scores": np.zeros(3)}, {}, "scores"),
        ({"boxes": CORNERS, "scores": np.ones(2)}, {"form": "offsets"}, "need a grid"),
    ],
)
def test_outputs_that_do_not_fit(outputs, more, message):
    with pytest.raises(InputError, match=message):
        read(outputs, **more)
