"""`ml.compare` from end to end on callables: input, store, judging, failures. Frameworks have tests of their own."""

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.errors import ComparisonError, InputError, RunNotFoundError


def double(x):
    return x * 2


def almost_double(x):
    return x + x + 1e-3


def both(x, y):
    return x + y


def test_agreement_is_said_and_stored():
    found = ml.compare(double, lambda x: x + x, np.ones((1, 3)))
    assert not found.diverges
    assert found.first_divergent is None
    assert "agree but for rounding" in found.summary()
    again = ml.open_comparison()
    assert again.run_id == found.run_id
    assert again.summary() == found.summary()
    assert list(ml.comparisons().index) == [found.run_id]
    assert len(ml.runs()) == 0
    ml.delete_comparison(found.run_id[:20])
    with pytest.raises(RunNotFoundError, match="holds no comparisons yet"):
        ml.open_comparison()


def test_a_difference_is_measured_named_and_judged_anew():
    found = ml.compare(double, almost_double, np.array([[1.0, 2.0]]), save=False)
    assert found.diverges
    first = found.first_divergent
    assert first["types_b"] == "model"
    assert first["max_abs_error"] == pytest.approx(1e-3, rel=1e-9)
    assert first["worst_position"] in {"0,0", "0,1"}
    assert "First divergent: model 'model'" in found.summary()
    assert not found.judge("atol=0.01").diverges
    assert found.diverges  # the first judgement stays
    pairs = found.pairs()
    assert pairs["count"].tolist() == [2, 2]
    assert pairs["diverges"].tolist() == [0, 1]


def test_html_is_escaped():
    def model(x):
        return x

    model.__qualname__ = "<script>alert(1)</script>"
    text = ml.compare(model, double, np.ones(2), save=False)._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_two_inputs_go_by_name():
    given = {"x": np.ones(2), "y": np.zeros(2)}
    assert not ml.compare(both, lambda x, y: y + x, given, save=False).diverges


def test_outputs_of_other_shapes_are_compared_as_far_as_they_go():
    found = ml.compare(double, lambda x: np.concatenate([x * 2, x]), np.ones((2, 3)), save=False)
    assert len(found.pairs()) >= 1
    assert np.isnan(found.samples()["output_max_abs_error"]).all()


def test_a_side_that_fails_is_named_and_what_was_found_is_kept():
    calls = []

    def fragile(x):
        calls.append(x)
        if len(calls) > 1:  # the first call is the example's
            raise ValueError("out of luck")
        return x * 2

    with pytest.raises(ComparisonError, match=r"Side b \(python\) failed: .*out of luck.*kept as") as caught:
        ml.compare(double, fragile, np.ones(3))
    kept = caught.value.comparison
    assert kept.tree.attrs["status"] == "failed"
    assert kept.tree.attrs["failure"]["side"] == "b"
    assert "FAILED" in kept.summary()
    assert ml.open_comparison().run_id == kept.run_id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"calibrate": ["ulps"]}, r"Unknown calibration 'ulps'. Known: rounding, threads, float64"),
        ({"tolerance": "atol=much"}, r"atol must be a number, not 'much'"),
        ({"tolerance": {"atlo": 1}}, r"unknown key 'atlo'.*atol"),
        ({"tolerance": "calibrated"}, "no tolerance can be calibrated"),
        ({"model": "efficientnet-lite0"}, "each side is a backend or a mapping"),
    ],
)
def test_wrong_arguments_are_said_in_words(arguments, words):
    with pytest.raises(InputError, match=words):
        ml.compare(double, double, np.ones(2), save=False, **arguments)


def test_kept_tensors_are_stored_and_come_back():
    found = ml.compare(double, almost_double, np.arange(6.0).reshape(2, 3), keep_tensors=True)
    again = ml.open_comparison(found.run_id)
    stored = {node.attrs["name"]: node for node in again.tree["tensors"].children.values()}
    output = next(node for name, node in stored.items() if "output" in name)
    assert np.array_equal(output["a"].values, np.arange(6.0).reshape(2, 3) * 2)
    assert output["b"].values - output["a"].values == pytest.approx(np.full((2, 3), 1e-3))


def test_names_that_hold_semicolons_are_said_whole():
    from mlscope_lab.divergence.result import _who

    row = {"operations_b": "a;b;c", "types_b": "CONV_2D", "value_b": "v", "scope": ""}
    assert _who(row) == "CONV_2D 'a;b;c'"
    row = {"operations_b": "a;b", "types_b": "Conv;Relu", "value_b": "v", "scope": "net"}
    assert _who(row) == "Relu 'b' and the 1 before it in its group (in net)"
