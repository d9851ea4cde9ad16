"""Tolerances: where they come from, and which pair has which; `judge` and `calibrated` are here, too."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError, ManifestError, nearest
from mlscope_lab.numerics.calibration import calibrated
from mlscope_lab.numerics.judging import Judged, judge

__all__ = [
    "BY_DTYPE",
    "CALIBRATED",
    "NAME_COLUMNS",
    "Judged",
    "Tolerance",
    "Tolerances",
    "calibrated",
    "default_tolerance",
    "judge",
]

Array = npt.NDArray[Any]

CALIBRATED: Final = "calibrated"
BY_DTYPE: Final = "by dtype"
NAME_COLUMNS: Final = ("value_a", "value_b", "operations_a", "operations_b", "types_a", "types_b", "kinds", "scope")
"""Columns of ``/pairs`` whose texts, and parts between semicolons, a pattern may match."""

_DEFAULTS: Final = {"float16": (1e-5, 1e-3), "bfloat16": (1e-5, 1.6e-2), "float32": (1e-5, 1.3e-6),
                    "float64": (1e-7, 1e-7), "complex64": (1e-5, 1.3e-6), "complex128": (1e-7, 1e-7)}  # fmt: skip
_MAX_PATTERNS: Final = 10_000


@dataclass(frozen=True)
class Tolerance:
    """An element is out of tolerance if ``|b - a| > atol + rtol * |a|``, a being the reference.

    Attributes
    ----------
    atol, rtol
        Absolute part, in the values' own unit, and relative part.

    Raises
    ------
    InputError
        If one is negative or not finite.
    """

    atol: float = 0.0
    rtol: float = 0.0

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0, not {value!r}")

    def __str__(self) -> str:
        return f"atol={self.atol:g},rtol={self.rtol:g}"


def default_tolerance(dtype_a: str, dtype_b: str | None = None) -> Tolerance:
    """Return the usual tolerance of a type, or of two, whose looser one counts; 0 for integers and bool.

    Parameters
    ----------
    dtype_a, dtype_b
        Names as numpy has them, and "bfloat16".

    References
    ----------
    `torch.testing.assert_close`, the table of its defaults (PyTorch 2).

    Examples
    --------
    >>> default_tolerance("float32", "float16")
    Tolerance(atol=1e-05, rtol=0.001)
    """
    known = [_DEFAULTS.get(dtype, (0.0, 0.0)) for dtype in (dtype_a, dtype_b or dtype_a)]
    return Tolerance(atol=max(a for a, _ in known), rtol=max(r for _, r in known))


Rule = Tolerance | str
"""A tolerance, or `CALIBRATED`, or `BY_DTYPE`."""


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Which pair has which tolerance.

    Attributes
    ----------
    default
        For pairs that no pattern matches.
    by
        Patterns (``*``, ``?``, ``[abc]``; upper and lower case differ) for names of values or operations, for types,
        kinds or scopes, each with its tolerance. A name written out beats patterns; of several the last one counts.
    """

    default: Rule = CALIBRATED
    by: Mapping[str, Rule] = field(default_factory=dict)

    @classmethod
    def from_any(cls, given: Any) -> Self:
        """Return tolerances from what a caller may give.

        Parameters
        ----------
        given
            Tolerances or a `Tolerance`; "calibrated"; "by dtype"; text such as ``"atol=1e-5,rtol=1e-3"``; a mapping
            with "atol", "rtol", or "default", and "by", a mapping of patterns to any of these; the path of a YAML or
            JSON file (.yaml, .yml, .json) that holds such a mapping.

        Raises
        ------
        InputError
            Naming the part that is malformed.

        Examples
        --------
        >>> Tolerances.from_any("atol=1e-5, rtol=1e-3").default
        Tolerance(atol=1e-05, rtol=0.001)
        >>> Tolerances.from_any({"default": "calibrated", "by": {"softmax*": {"atol": 0.01}}}).by
        {'softmax*': Tolerance(atol=0.01, rtol=0.0)}
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, os.PathLike) or (
            isinstance(given, str) and given.lower().endswith((".yaml", ".yml", ".json"))
        ):
            return cls._from_mapping(_read(Path(given)), str(given))
        if isinstance(given, Mapping):
            return cls._from_mapping(given, "tolerance")
        return cls(default=_rule(given, "tolerance"))

    @classmethod
    def _from_mapping(cls, given: Mapping[str, Any], where: str) -> Self:
        for key in given:
            if key not in {"atol", "rtol", "default", "by"}:
                known = ["atol", "rtol", "default", "by"]
                raise InputError(f"{where}: unknown key {key!r}; known: {', '.join(known)}.{nearest(str(key), known)}")
        numbers = {k: given[k] for k in ("atol", "rtol") if k in given}
        if numbers and "default" in given:
            raise InputError(f"{where}: give either 'default' or 'atol' and 'rtol', not both")
        by = given.get("by", {})
        if not isinstance(by, Mapping):
            raise InputError(f"{where}: 'by' must be a mapping of names or patterns to tolerances, not {by!r}")
        if len(by) > _MAX_PATTERNS:
            raise InputError(f"{where}: 'by' holds {len(by)} patterns, more than {_MAX_PATTERNS}")
        default = numbers or given.get("default", CALIBRATED)
        return cls(
            default=_rule(default, where), by={str(p): _rule(rule, f"{where}: by: {p}") for p, rule in by.items()}
        )

    def for_pairs(self, columns: Mapping[str, Array]) -> tuple[Array, Array, list[str]]:
        """Return the tolerance of each pair.

        Parameters
        ----------
        columns
            Of ``/pairs``: those of `NAME_COLUMNS` where there are patterns, ``dtype_a`` and ``dtype_b``, and for
            calibrated ones also ``noise_a``, ``noise_b`` and ``rms_a``.

        Returns
        -------
        tuple
            atol and rtol, float64, (pairs,), and where each is from: "calibrated", "given", "by <pattern>" or "by
            dtype".

        Raises
        ------
        InputError
            If a pattern matches no pair, or calibrated tolerances are wanted and nothing was calibrated.
        """
        count = len(columns["dtype_a"])
        rules: list[Rule] = [self.default] * count
        sources = [_source(self.default)] * count
        for pattern, pairs in self._matched(columns):
            for pair in pairs:
                rules[pair], sources[pair] = self.by[pattern], f"by {pattern}"
        atol, rtol = np.zeros(count), np.zeros(count)
        noise = calibrated(
            columns["noise_a"], columns["noise_b"], columns["rms_a"], columns["dtype_a"], columns["dtype_b"]
        ) if CALIBRATED in rules else atol  # fmt: skip
        for pair, rule in enumerate(rules):
            if rule == CALIBRATED:
                atol[pair] = noise[pair]
            else:
                one = rule if isinstance(rule, Tolerance) else default_tolerance(
                    str(columns["dtype_a"][pair]), str(columns["dtype_b"][pair])
                )  # fmt: skip
                atol[pair], rtol[pair] = one.atol, one.rtol
        return atol, rtol, sources

    def _matched(self, columns: Mapping[str, Array]) -> list[tuple[str, list[int]]]:
        """Return patterns and the pairs that they match, those that count over others last."""
        if not self.by:
            return []
        places: dict[str, set[int]] = {}
        for column in NAME_COLUMNS:
            for pair, text in enumerate(columns.get(column, ())):
                for name in {str(text), *str(text).split(";")}:
                    places.setdefault(name, set()).add(pair)
        names = [name for name in places if name]
        found = []
        for pattern in sorted(self.by, key=lambda p: p in places):
            matching = [pattern] if pattern in places else fnmatch.filter(names, pattern)
            matching = [n for n in matching if n == pattern or fnmatch.fnmatchcase(n, pattern)]
            if not matching:
                raise InputError(
                    f"The tolerance for '{pattern}' matches no value, operation, type, kind or scope here."
                    f"{nearest(pattern, names)}"
                )
            found.append((pattern, sorted(_union(places[n] for n in matching))))
        return found


def _union(sets: Iterable[set[int]]) -> set[int]:
    return set().union(*sets)


def _source(rule: Rule) -> str:
    return "given" if isinstance(rule, Tolerance) else rule


def _rule(given: Any, where: str) -> Rule:
    """Return one tolerance from text, numbers or a mapping of numbers."""
    if isinstance(given, Tolerance):
        return given
    if isinstance(given, Mapping):
        for key in given:
            if key not in {"atol", "rtol"}:
                raise InputError(
                    f"{where}: unknown key {key!r}; known: atol, rtol.{nearest(str(key), ['atol', 'rtol'])}"
                )
        try:
            return Tolerance(**{str(k): v for k, v in given.items()})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if isinstance(given, str):
        if given in {CALIBRATED, BY_DTYPE}:
            return given
        return _rule(_parsed(given, where), where)
    raise InputError(
        f"{where} must be '{CALIBRATED}', '{BY_DTYPE}', text such as 'atol=1e-5,rtol=1e-3', a mapping or a file, "
        f"not {given!r}"
    )


def _parsed(text: str, where: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            words = [CALIBRATED, BY_DTYPE]
            raise InputError(
                f"{where}: {text!r} is no tolerance; write 'atol=1e-5,rtol=1e-3', '{CALIBRATED}', '{BY_DTYPE}', or the "
                f"name of a .yaml or .json file.{nearest(text, words)}"
            )
        if name in found:
            raise InputError(f"{where}: {name} is given twice in {text!r}")
        try:
            found[name] = float(number)
        except ValueError:
            raise InputError(f"{where}: {name} must be a number, not {number!r}") from None
    return found


def _read(path: Path) -> Mapping[str, Any]:
    """Read a mapping from YAML, of which JSON is a part: data alone, of bounded size."""
    from mlscope_lab.manifest.yaml_ import MAX_BYTES, parse_yaml

    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The tolerances in {path} cannot be read: {error}") from error
    try:
        return parse_yaml(text, where=str(path))
    except ManifestError as error:
        raise InputError(str(error)) from error
