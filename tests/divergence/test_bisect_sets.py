"""The searches of `mlscope_lab.divergence.bisect`, without a model."""

from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.divergence.bisect import minimal_set, singles


@given(st.integers(1, 40), st.data())
def test_the_needed_ones_are_found_exactly_where_each_is_needed(count, data):
    needed = data.draw(st.sets(st.integers(0, count - 1), max_size=6))
    asked = []

    def holds(chosen):
        asked.append(chosen)
        return needed <= chosen

    assert minimal_set(range(count), holds) == needed
    assert singles(range(count), holds) == needed


@given(st.integers(2, 24), st.data())
def test_nothing_of_what_is_found_can_be_left_out(count, data):
    """Where several sets would do, one is found none of whose members is spare."""
    ways = data.draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1, max_size=4), min_size=1, max_size=4))

    def holds(chosen):
        return any(way <= chosen for way in ways)

    found = minimal_set(range(count), holds)
    assert holds(found)
    assert not any(holds(found - {member}) for member in found)


def test_a_single_needed_one_takes_few_questions():
    asked = []

    def holds(chosen):
        asked.append(chosen)
        return 613 in chosen

    assert minimal_set(range(1000), holds) == {613}
    assert len(asked) < 60
