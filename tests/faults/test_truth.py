"""What counts as naming the fault, and how a changed node is found in an optimised graph."""

from __future__ import annotations

import pytest

from tests.faults.truth import Group, judge


def group(b, a=("Conv",), types=None):
    names = tuple(b.split())
    return Group(
        operations_a=tuple(f"a{i}" for i in range(len(a))), operations_b=names, types_a=a,
        types_b=types or ("Conv",) * len(names),
    )  # fmt: skip


GROUPS = [
    Group(operations_a=(), operations_b=(), types_a=(), types_b=()),
    group("conv1"),
    group("pad conv2 bias2", types=("Pad", "Conv2D", "BiasAdd")),
    group("relu2"),
    group("conv3 relu3"),
]


@pytest.mark.parametrize(
    ("truth", "first", "culprit", "exact", "shadow", "reason"),
    [
        ({"conv1"}, 1, 1, True, True, ""),
        ({"conv2"}, 2, 2, True, True, ""),
        ({"conv2"}, 3, 2, False, True, "too late"),
        ({"conv3"}, 3, 4, False, True, "too early"),
        ({"relu3"}, -1, -1, False, False, "nothing was named"),
        ({"gone"}, 1, 1, False, False, "in no group"),
        (set(), 1, 1, False, False, "the changed operator does not run"),
    ],
)
def test_only_the_smallest_group_that_holds_the_fault_counts(truth, first, culprit, exact, shadow, reason):
    judged = judge(GROUPS, truth, first, culprit)
    assert (judged.first_exact, judged.shadow_first, judged.reason) == (exact, shadow, reason)


def test_of_two_groups_that_hold_it_the_smaller_counts():
    groups = [group("conv1 relu1 conv2"), group("conv2")]
    assert judge(groups, {"conv2"}, 1, 1).first_exact
    assert not judge(groups, {"conv2"}, 0, 0).first_exact


def test_a_group_of_several_operators_on_both_sides_is_too_large():
    wide = [group("conv1 relu1", a=("Conv", "Relu"))]
    judged = judge(wide, {"conv1"}, 0, 0)
    assert not judged.first_exact
    assert not judged.shadow_first
    assert judged.reason == "the group is too large"


def test_what_only_moves_values_makes_no_group_large():
    assert judge([group("t c", a=("Conv", "Transpose"), types=("Transpose", "Conv2D"))], {"t"}, 0, 0).first_exact
