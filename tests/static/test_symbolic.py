from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import InputError, UnsupportedModelError
from mlscope_lab.static.symbolic import Expression, Largest, NotPolynomialError, fit, largest, total

N, S = Expression.symbol("batch"), Expression.symbol("sequence")

coefficients = st.integers(-(10**12), 10**12)
polynomials = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 2)), coefficients, max_size=5).map(
    lambda terms: Expression.of(
        {tuple((n, e) for n, e in zip(("batch", "sequence"), key, strict=True) if e): c for key, c in terms.items()}
    )
)
lengths = st.fixed_dictionaries({"batch": st.integers(1, 10**6), "sequence": st.integers(1, 10**6)})


@given(polynomials, polynomials, lengths)
def test_arithmetic_is_that_of_the_values(a: Expression, b: Expression, at: dict[str, int]) -> None:
    assert (a + b).evaluate(**at) == a.evaluate(**at) + b.evaluate(**at)
    assert (a - b).evaluate(**at) == a.evaluate(**at) - b.evaluate(**at)
    assert (a * b).evaluate(**at) == a.evaluate(**at) * b.evaluate(**at)
    assert (3 * a + 7).evaluate(**at) == 3 * a.evaluate(**at) + 7
    assert total([a, b, 5]) == a + b + 5 or not (a + b).symbols


def test_text() -> None:
    assert str(3 * N * N * S - N + 1) == "3*batch^2*sequence - batch + 1"
    assert str(Expression()) == "0"
    assert str(-1 * N) == "-batch"


def test_a_missing_length_is_named() -> None:
    with pytest.raises(InputError, match="sequence"):
        (N * S).evaluate(batch=2)


@given(polynomials, lengths)
def test_fit_finds_any_polynomial(wanted: Expression, at: dict[str, int]) -> None:
    def sample(here: Mapping[str, int]) -> Sequence[int]:
        return [wanted.evaluate(**here), 4]

    found, constant = fit(sample, ["batch", "sequence"])
    value = found if isinstance(found, int) else found.evaluate(**at)
    assert value == wanted.evaluate(**at)
    assert constant == 4


def test_fit_keeps_fractions_that_are_whole_at_all_lengths() -> None:
    (found,) = fit(lambda at: [at["n"] * (at["n"] + 1) // 2], ["n"])
    assert isinstance(found, Expression)
    assert dict(found.terms) == {(("n", 2),): Fraction(1, 2), (("n", 1),): Fraction(1, 2)}
    assert found.evaluate(n=9) == 45


@pytest.mark.parametrize("divisor", [2, 32, 256])
def test_fit_refuses_what_is_rounded(divisor: int) -> None:
    with pytest.raises(NotPolynomialError, match=r"symbols=\{'n'"):
        fit(lambda at: [-(-at["n"] // divisor)], ["n"])


def test_fit_takes_a_model_that_refuses_great_lengths() -> None:
    def sample(at: Mapping[str, int]) -> Sequence[int]:
        if at["n"] > 512:
            raise UnsupportedModelError("there are 512 positions")
        return [at["n"] ** 2]

    assert fit(sample, ["n"]) == [Expression.of({(("n", 2),): 1})]


def test_fit_without_symbols() -> None:
    assert fit(lambda _: [1, 2], []) == [1, 2]


@given(st.lists(polynomials, min_size=1, max_size=4), lengths)
def test_largest_is_the_maximum_at_all_lengths(several: list[Expression], at: dict[str, int]) -> None:
    found = largest(several)
    value = found if isinstance(found, int) else found.evaluate(**at)
    assert value == max(one.evaluate(**at) for one in several)


def test_largest_leaves_out_what_is_bounded() -> None:
    assert largest([3 * N, 2 * N, N + 1]) == 3 * N
    assert largest([]) == 0
    both = largest([3 * N, 2 * N + 5])
    assert isinstance(both, Largest)
    assert [both.evaluate(batch=n) for n in (1, 9)] == [7, 27]
    assert str(both) == "max(3*batch, 2*batch + 5)"
    assert both.symbols == ("batch",)


def test_three_symbols() -> None:
    (found,) = fit(lambda at: [at["a"] * at["b"] + at["c"] ** 2], ["a", "b", "c"])
    for a, b, c in itertools.product((1, 4, 9), repeat=3):
        assert isinstance(found, Expression)
        assert found.evaluate(a=a, b=b, c=c) == a * b + c * c
