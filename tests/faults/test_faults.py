"""A few planted faults and clean pairs; ``python -m tests.faults --seed N`` runs the whole."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tensorflow")
pytest.importorskip("skimage")

from tests.faults.__main__ import describe, kept, table
from tests.faults.trials import MOVES, Bench, Trial

SEED, FAULTS, CLEAN = 21, 6, 4


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with Bench(tmp_path_factory.mktemp("faults")) as found:
        yield found


def test_the_changed_operator_is_named(bench):
    trials = list(bench.faults(SEED, FAULTS))
    assert len(trials) == FAULTS
    assert all(t.moved > MOVES * t.clean_difference for t in trials)
    assert all(t.truth for t in trials)
    assert {t.fused for t in trials} == {True, False}
    assert all(t.first_exact and t.shadow_first for t in trials), "\n".join(map(describe, trials))
    assert kept(trials, []) == []


def test_nothing_is_named_without_a_fault(bench):
    trials = list(bench.clean(SEED, CLEAN))
    assert [describe(t) for t in trials if t.reason] == []


def test_limits_that_are_missed_are_said():
    def trial(kind, right, reason=""):
        return Trial(kind=kind, model="m", reference="a", faulty="b", fused=True, picture="p", first_exact=right,
                     shadow_first=right, reason=reason)  # fmt: skip

    faults = [trial("dropped bias", index < 7) for index in range(10)] + [trial("swapped pad", True)] * 10
    missed = kept(faults, [trial("clean", True), trial("clean", False, "named something")])
    assert len(missed) == 4
    assert "dropped bias: 7 of 10" in " ".join(missed)
    assert "1 of 2 clean pairs" in " ".join(missed)
    assert kept([trial("swapped pad", True)] * 20, [trial("clean", True)]) == []
    assert "swapped pad" in table(faults, {("swapped pad", "too little"): 3})
