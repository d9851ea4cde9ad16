"""What somebody saw, and how well an answer explains it."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.divergence.causes import Observed
from mlscope_lab.errors import InputError

LABELS = ("cat", "dog", "3")
P = np.array([0.6, 0.3, 0.1])


def fit(given, probabilities=P):
    return Observed.of(given, LABELS, 1).each[0].fit(np.asarray(probabilities))


@pytest.mark.parametrize(
    ("given", "explains", "how_well"),
    [
        (0, True, 0.6),
        ("cat", True, 0.6),
        ("dog", False, 0.3),
        ("3", False, 0.1),  # a label goes before an index
        ((0, 0.605), True, 0.995),
        (("cat", 0.9), False, 0.7),
        ([0.6, 0.3, 0.1], True, 1.0),
        ([0.5, 0.4, 0.1], False, 0.9),
        (np.log([0.6, 0.3, 0.1]) + 4, True, 1.0),  # scores that are no probabilities
    ],
)
def test_classes_labels_probabilities_and_scores(given, explains, how_well):
    assert fit(given) == (explains, pytest.approx(how_well))


def test_several_samples():
    observed = Observed.of([0, "dog"], LABELS, 2)
    assert [o.index for o in observed.each] == [0, 1]
    assert observed.describe(LABELS) == "the answers to 2 samples"
    assert Observed.of(None, LABELS, 2) is None
    assert Observed.of([1], LABELS, 1).describe(LABELS) == "1 (dog)"


@pytest.mark.parametrize(
    ("given", "count", "message"),
    [
        ("dgo", 1, "no label 'dgo'.*'dog'"),
        (7, 1, "a class of the model"),
        (-1, 1, "a class of the model"),
        (True, 1, "must be a class"),
        ((0, 1.5), 1, "between 0 and 1"),
        ({"a": 1}, 1, "must be a class"),
        ([0.5, np.nan], 1, "must be a class"),
        ([1, 2], 3, "each of the 3 samples"),
    ],
)
def test_nonsense_is_refused(given, count, message):
    with pytest.raises(InputError, match=message):
        Observed.of(given, LABELS, count)


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(InputError, match="2 scores, the model 3 classes"):
        fit([0.5, 0.5])
