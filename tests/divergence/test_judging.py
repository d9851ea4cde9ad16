import numpy as np
import pytest

from mlscope_lab.divergence.judging import INJECTION_FACTOR, injection_tolerance, judge_injections, judge_tree, pick
from mlscope_lab.errors import InputError
from mlscope_lab.testing import synthetic_comparison


def columns(diverges, injects, excess=None):
    count = len(diverges)
    excess = np.ones(count) if excess is None else np.asarray(excess, dtype=np.float64)
    return {
        "diverges": np.array(diverges), "injects": np.array(injects), "injected_max_abs": excess,
        "injected_tolerance": np.full(count, 0.5),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("diverges", "injects", "first", "culprit"),
    [
        ([0, 0, 0], [0, 0, 0], -1, -1),
        ([0, 1, 1], [0, 1, 0], 1, 1),
        ([0, 0, 1], [0, 1, 0], 1, 1),  # a small error that grew
        ([0, 1, 1], [-1, -1, -1], 1, -1),  # nothing could be replayed
        ([1, 1, 1], [-1, 0, 0], 0, -1),  # the inputs differ
        ([0, 0, 0], [0, 1, 0], -1, -1),  # within tolerance all the way
    ],
)
def test_the_first_and_the_culprit(diverges, injects, first, culprit):
    found = pick(columns(diverges, injects))
    assert (found.first_divergent, found.culprit) == (first, culprit)


def test_the_culprit_is_whoever_exceeds_most():
    assert pick(columns([0, 1, 1], [0, 1, 1], [0, 1, 9])).culprit == 2
    assert pick(columns([0, 1, 1], [0, 1, 1], [0, 1, np.inf])).culprit == 2


def test_injections_are_judged_by_rounding():
    tolerance = injection_tolerance(np.array([1e-7, 1e-7, np.nan]))
    assert tolerance[0] == INJECTION_FACTOR * 1e-7
    assert judge_injections(np.array([1e-8, 1.0, 1.0]), tolerance).tolist() == [0, 1, -1]
    assert judge_injections(np.array([np.inf]), np.array([1.0])).tolist() == [1]


def test_judging_anew_changes_the_judgement_alone():
    tree = synthetic_comparison(pairs=20, fault_at=9)
    loose = judge_tree(tree, {"atol": 1e9})
    assert loose.attrs["first_divergent"] == -1
    assert (loose["pairs"]["diverges"] == 0).all()
    assert tree.attrs["first_divergent"] == 9
    strict = judge_tree(loose, "atol=0")
    assert strict.attrs["first_divergent"] >= 0
    for name, variable in tree["pairs"].dataset.variables.items():
        if name not in {"atol", "rtol", "tolerance_source", "share_out_low", "share_out_high", "diverges"}:
            assert strict["pairs"][name].identical(tree["pairs"][name]) or variable.dtype == object, name


def test_calibrated_needs_something_calibrated():
    tree = synthetic_comparison(pairs=5)
    for name in ("noise_a", "noise_b"):
        tree["pairs"][name] = tree["pairs"][name] * np.nan
    assert "by dtype" in set(judge_tree(tree)["pairs"]["tolerance_source"].values)
    assert any("usual tolerances" in w for w in judge_tree(tree).attrs["warnings"])
    with pytest.raises(InputError, match="no tolerance can be calibrated"):
        judge_tree(tree, "calibrated")
