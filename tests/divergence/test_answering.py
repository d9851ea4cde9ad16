"""Outputs to answers, and how far answers are apart."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.divergence.answering import Answering, Answers, differences, effect_of, interaction_of
from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.recipe import Recipe, TensorRecipe

LOGITS = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, -5.0]], np.float32)


def recipe(*steps, shape=("batch", 3), labels=None):
    specs = [{**s, "labels": labels} if s["step"] == "top_k" else s for s in steps]
    output = TensorRecipe(
        spec=TensorSpec(name="out", dtype="float32", shape=shape), pipeline=Pipeline.from_specs(specs)
    )
    return Recipe(inputs=(), outputs=(output,))


def softmax(x):
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_declared_steps_before_the_ranking_count():
    answering = Answering(recipe({"step": "softmax"}, {"step": "top_k"}, labels=("a", "b", "c")))
    found = answering.of({"other name": LOGITS})
    np.testing.assert_allclose(found.probabilities, softmax(LOGITS), atol=1e-6)
    assert found.top1.tolist() == [1, 0]
    assert answering.labels == ("a", "b", "c")
    assert (answering.output, answering.how) == ("out", "as the model gives them")


@pytest.mark.parametrize("answering", [Answering(Recipe(inputs=())), Answering(recipe({"step": "top_k"}))])
def test_scores_that_are_no_probabilities_become_some_and_it_is_said(answering):
    found = answering.of({"out": LOGITS})
    np.testing.assert_allclose(found.probabilities, softmax(LOGITS), atol=1e-6)
    assert answering.how == "softmax of the scores"
    np.testing.assert_array_equal(found.values, LOGITS)
    # decided once: a later batch that happens to add up to 1 is treated alike
    np.testing.assert_allclose(answering.of({"out": np.eye(3, dtype=np.float32)}).probabilities[0, 0], 0.576, atol=1e-3)


def test_one_probability_is_a_decision():
    answering = Answering(recipe({"step": "select", "index": 0}, shape=("batch", 1)))
    found = answering.of({"out": np.array([[0.2], [0.5], [0.9]], np.float32)})
    assert found.top1.tolist() == [0, 1, 1]
    assert "no below .5" in answering.how


def test_embeddings_are_what_the_steps_make_of_hidden_states():
    steps = ({"step": "mean", "axis": 0}, {"step": "unit_length"})
    found = Answering(recipe(*steps, shape=("batch", "n", 2))).of({"out": np.array([[[3.0, 0.0], [3.0, 8.0]]])})
    np.testing.assert_allclose(found.values, [[0.6, 0.8]])
    assert found.probabilities is None
    assert found.top1.tolist() == [-1]
    assert found.ranked(3)[0].shape == (1, 0)


def test_broken_outputs_are_said():
    with pytest.raises(InputError, match="NaN"):
        Answering(Recipe(inputs=())).of({"out": np.array([[np.nan, 1.0]])})


def test_differences_by_hand():
    found = differences(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 5.0], [1.0, 0.0]]))
    assert found["output_max_abs_error"].tolist() == [1.0, 1.0]
    assert found["output_l2_relative"][0] == pytest.approx(0.2)
    assert found["output_cosine"][0] == pytest.approx(29 / (5 * np.sqrt(34)))
    assert np.isnan(found["output_cosine"][1])
    with pytest.raises(InputError, match="2 and 3 elements"):
        differences(np.zeros((1, 2)), np.zeros((1, 3)))


def answers(*rows):
    table = np.array(rows, dtype=np.float64)
    return Answers(values=table, probabilities=table, outputs={})


def test_effect_is_the_largest_change_of_any_set_of_classes():
    assert effect_of(answers([0.7, 0.2, 0.1]), answers([0.2, 0.4, 0.4])).tolist() == [pytest.approx(0.5)]


def test_changes_that_add_up_do_not_interact():
    base, one, other = answers([0.5, 0.5]), answers([0.6, 0.4]), answers([0.55, 0.45])
    assert interaction_of(base, answers([0.65, 0.35]), one, other)[0] == pytest.approx(0, abs=1e-12)
    assert interaction_of(base, answers([0.95, 0.05]), one, other)[0] == pytest.approx(0.3)
    plain = [
        Answers(values=a.values, probabilities=None, outputs={}) for a in (base, answers([0.65, 0.35]), one, other)
    ]
    assert interaction_of(*plain)[0] == pytest.approx(0, abs=1e-12)
