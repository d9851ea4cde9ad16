"""Exact polynomials in the lengths of symbolic dimensions, and how they are found.

A graph with symbolic dimensions is costed at a few lengths, each time with every shape known, and the polynomial
through these points is kept if it also meets the costs at lengths beyond them. That way a Reshape whose target is
computed from a Shape needs no algebra of its own, and one method serves every framework. What is not a polynomial (a
stride that does not divide, a branch on a length) is refused, with the way out: to give that length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mlscope_lab.errors import InputError, MlscopeError, UnsupportedModelError

__all__ = ["Expression", "Largest", "NotPolynomialError", "Quantity", "evaluate", "fit", "largest", "total"]

Monomial = tuple[tuple[str, int], ...]
_MAX_DEGREE = 4
_MAX_POINTS = 400
# Primes beyond every point that a polynomial goes through, others for other symbols, so that no two agree by chance.
_CHECKS = ((11, 17, 13, 23, 19, 29), (7, 13, 23, 11, 17, 19))
# Strides and windows are of tens to hundreds, so that a quotient rounded down can look constant at small lengths. The
# largest of these that the model takes is checked too: one with a table of positions takes no more than these.
_FAR = ((1009, 1013, 1019, 1021, 1031, 1033), (499, 491, 487, 479, 467, 463), (251, 241, 239, 233, 229, 227),
        (61, 59, 53, 47, 43, 41))  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A polynomial with rational coefficients that is whole at all lengths it stands for.

    Attributes
    ----------
    terms
        {((symbol, exponent), ...): coefficient}, symbols sorted, no zero coefficients; the empty key is the constant.

    Examples
    --------
    >>> n = Expression.symbol("batch")
    >>> str(3 * n * n + n + 2)
    '3*batch^2 + batch + 2'
    >>> (3 * n * n + n + 2).evaluate(batch=10)
    312
    """

    terms: tuple[tuple[Monomial, Fraction], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[Monomial, Fraction | int]) -> Expression:
        """Make one of its coefficients."""
        kept = {key: Fraction(value) for key, value in terms.items() if value}
        return cls(tuple(sorted(kept.items(), key=lambda item: (-sum(e for _, e in item[0]), item[0]))))

    @classmethod
    def symbol(cls, name: str) -> Expression:
        """Return the polynomial that is one symbol."""
        return cls.of({((name, 1),): 1})

    @classmethod
    def constant(cls, value: int) -> Expression:
        """Return a polynomial without symbols."""
        return cls.of({(): value})

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of its symbols, sorted."""
        return tuple(sorted({name for key, _ in self.terms for name, _ in key}))

    def __add__(self, other: Expression | int) -> Expression:
        mine = dict(self.terms)
        for key, value in _lifted(other).terms:
            mine[key] = mine.get(key, Fraction(0)) + value
        return Expression.of(mine)

    __radd__ = __add__

    def __neg__(self) -> Expression:
        return Expression.of({key: -value for key, value in self.terms})

    def __sub__(self, other: Expression | int) -> Expression:
        return self + -_lifted(other)

    def __mul__(self, other: Expression | int) -> Expression:
        product: dict[Monomial, Fraction] = {}
        for (a, x), (b, y) in itertools.product(self.terms, _lifted(other).terms):
            powers = dict(a)
            for name, exponent in b:
                powers[name] = powers.get(name, 0) + exponent
            key = tuple(sorted(powers.items()))
            product[key] = product.get(key, Fraction(0)) + x * y
        return Expression.of(product)

    __rmul__ = __mul__

    def evaluate(self, **lengths: int) -> int:
        """Return the value at some lengths.

        Raises
        ------
        InputError
            If a symbol gets no length.
        """
        _check_lengths(self.symbols, lengths)
        value = Fraction(0)
        for key, coefficient in self.terms:
            for name, exponent in key:
                coefficient *= lengths[name] ** exponent
            value += coefficient
        return int(value)

    def __str__(self) -> str:
        parts: list[str] = []
        for key, value in self.terms:
            factors = [name if exponent == 1 else f"{name}^{exponent}" for name, exponent in key]
            if abs(value) != 1 or not factors:
                factors.insert(0, str(abs(value)))
            sign = ("-" if value < 0 else "") if not parts else (" - " if value < 0 else " + ")
            parts.append(sign + "*".join(factors))
        return "".join(parts) or "0"


def _lifted(value: Expression | int) -> Expression:
    return value if isinstance(value, Expression) else Expression.constant(value)


def _check_lengths(symbols: Sequence[str], lengths: Mapping[str, int]) -> None:
    missing = [name for name in symbols if name not in lengths]
    if missing:
        raise InputError(f"No length is given for {', '.join(missing)}: evaluate({missing[0]}=8)")


@dataclass(frozen=True)
class Largest:
    """The largest of several polynomials, where which one it is depends on the lengths."""

    of: tuple[Expression, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbols, sorted."""
        return tuple(sorted({name for one in self.of for name in one.symbols}))

    def evaluate(self, **lengths: int) -> int:
        """Return the value at some lengths."""
        return max(one.evaluate(**lengths) for one in self.of)

    def __str__(self) -> str:
        return f"max({', '.join(map(str, self.of))})"


Quantity = int | Expression | Largest


def evaluate(value: Quantity, lengths: Mapping[str, int]) -> int:
    """Return a quantity as a number."""
    return value if isinstance(value, int) else value.evaluate(**lengths)


def total(values: Sequence[int | Expression]) -> int | Expression:
    """Return a sum; a plain number where no symbol is in it."""
    numbers = sum(value for value in values if isinstance(value, int))
    terms: dict[Monomial, Fraction] = {(): Fraction(numbers)}
    for value in values:
        if isinstance(value, Expression):
            for key, coefficient in value.terms:
                terms[key] = terms.get(key, Fraction(0)) + coefficient
    return _plain(Expression.of(terms))


def _plain(value: Expression) -> int | Expression:
    return value if value.symbols else value.evaluate()


def largest(values: Sequence[int | Expression]) -> Quantity:
    """Return the maximum over all lengths of at least 1; polynomials that others bound are left out.

    One polynomial bounds another if their difference, written in lengths less one, has no negative coefficient.
    """
    kept: list[Expression] = []
    for value in dict.fromkeys(_lifted(value) for value in values):
        if any(_bounded(value, other) for other in kept):
            continue
        kept = [other for other in kept if not _bounded(other, value)]
        kept.append(value)
    if not kept:
        return 0
    return _plain(kept[0]) if len(kept) == 1 else Largest(tuple(kept))


def _bounded(value: Expression, by: Expression) -> bool:
    """Tell whether `value` is at most `by` at all lengths of at least 1, as far as coefficients show."""
    difference = by - value
    shifted = Expression()
    for key, coefficient in difference.terms:
        term = Expression.of({(): coefficient})
        for name, exponent in key:
            for _ in range(exponent):
                term = term * (Expression.symbol(name) + 1)
        shifted = shifted + term
    return all(coefficient >= 0 for _, coefficient in shifted.terms)


class NotPolynomialError(UnsupportedModelError):
    """A cost that no polynomial in the open lengths tells; give lengths."""


Sample = Callable[[Mapping[str, int]], Sequence[int]]


def fit(sample: Sample, symbols: Sequence[str], *, first: Mapping[str, int] | None = None) -> list[int | Expression]:
    """Return the polynomials through the values that `sample` gives.

    Parameters
    ----------
    sample
        Returns the quantities, always equally many, at some lengths of the symbols.
    symbols
        Their names.
    first
        The least length to try of each, default 1.

    Raises
    ------
    NotPolynomialError
        If a quantity is not a polynomial of degree 4 or less in each symbol.
    """
    names = list(symbols)
    start = {name: (first or {}).get(name, 1) for name in names}
    known: dict[tuple[int, ...], Sequence[int]] = {}

    def at(point: tuple[int, ...]) -> Sequence[int]:
        if point not in known:
            known[point] = sample(dict(zip(names, point, strict=True)))
        return known[point]

    if not names:
        return list(at(()))
    checks = [_point(row, names, start) for row in _CHECKS]
    for row in _FAR:
        try:
            at(_point(row, names, start))
        except MlscopeError:
            continue
        checks.append(_point(row, names, start))
        break
    for degree in range(1, _MAX_DEGREE + 1):
        if (degree + 1) ** len(names) > _MAX_POINTS:
            break
        axes = [[start[name] + k for k in range(degree + 1)] for name in names]
        values = {point: at(point) for point in itertools.product(*axes)}
        found = _through(values, axes, names)
        if all(
            [evaluate(value, dict(zip(names, point, strict=True))) for value in found] == list(at(point))
            for point in checks
        ):
            return found
    raise NotPolynomialError(
        f"The cost is not a polynomial in {', '.join(names)} (a stride that does not divide it, or a branch on it). "
        f"Give lengths: symbols={{'{names[-1]}': {start[names[-1]]}}}, or batch_size for the batch"
    )


def _point(row: Sequence[int], names: Sequence[str], start: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(start[name] + row[i % len(row)] for i, name in enumerate(names))


def _through(
    values: Mapping[tuple[int, ...], Sequence[int]], axes: Sequence[Sequence[int]], names: Sequence[str]
) -> list[int | Expression]:
    """Return the polynomials of least degree through the values on a grid (tensor-product Lagrange interpolation)."""
    bases = [_lagrange(axis) for axis in axes]
    points = list(values)
    weights: list[dict[Monomial, Fraction]] = []
    for point in points:
        product: dict[Monomial, Fraction] = {(): Fraction(1)}
        for name, axis, basis, length in zip(names, axes, bases, point, strict=True):
            ascending = basis[axis.index(length)]
            product = {
                (*key, (name, exponent)) if exponent else key: factor * coefficient
                for key, factor in product.items()
                for exponent, coefficient in enumerate(ascending)
            }
        weights.append({tuple(sorted(key)): value for key, value in product.items()})
    memo: dict[tuple[int, ...], int | Expression] = {}
    found = []
    for column in zip(*(values[point] for point in points), strict=True):
        if column not in memo:
            if len(set(column)) == 1:
                memo[column] = column[0]
            else:
                terms: dict[Monomial, Fraction] = {}
                for value, weight in zip(column, weights, strict=True):
                    for key, coefficient in weight.items():
                        terms[key] = terms.get(key, Fraction(0)) + value * coefficient
                memo[column] = _plain(Expression.of(terms))
        found.append(memo[column])
    return found


def _lagrange(nodes: Sequence[int]) -> list[list[Fraction]]:
    """Return for each node the coefficients, ascending, of the polynomial that is 1 there and 0 at the others."""
    rows = []
    for node in nodes:
        row = [Fraction(1)]
        for other in nodes:
            if other == node:
                continue
            scaled = [Fraction(0), *row]
            for power, coefficient in enumerate(row):
                scaled[power] -= other * coefficient
            row = [coefficient / (node - other) for coefficient in scaled]
        rows.append(row)
    return rows
