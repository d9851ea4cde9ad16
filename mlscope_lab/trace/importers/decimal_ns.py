"""Decimal text of microseconds to whole nanoseconds, exactly: never through a float."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LIMIT_NS", "to_ns"]

LIMIT_NS = 1 << 62
"""Times further than 146 years from zero are no times; sums of two that are nearer fit into 64 bits."""
_MAX_DIGITS = 200
_CONTEXT = Context(prec=2 * _MAX_DIGITS, rounding=ROUND_HALF_EVEN)
_DIGITS = b"0123456789"
_NEWLINE, _DOT, _NINE = b"\n.9"


def to_ns(texts: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None, int]:
    r"""Convert numbers of microseconds.

    Parameters
    ----------
    texts
        JSON numbers, or strings of them, a newline after each; empty where there is none.

    Returns
    -------
    values
        int64 (N,) nanoseconds, rounded half to even where the text is finer.
    bad
        bool (N,) what is no number or beyond `LIMIT_NS`, None if nothing is.
    uncommon
        How many were quoted, had an exponent or more than three decimals.

    Examples
    --------
    >>> to_ns(b"1712195495519689.047\n2\n")[0].tolist()
    [1712195495519689047, 2000]
    """
    ends = np.flatnonzero(np.frombuffer(texts, dtype=np.uint8) == _NEWLINE)
    lengths = np.diff(ends, prepend=-1) - 1
    if not len(ends) or int(lengths.min()) <= 0 or (values := _common(texts, ends, lengths)) is None:
        return _one_by_one(texts.split(b"\n")[: len(ends)])
    bad = values >= LIMIT_NS
    return values, bad if bad.any() else None, 0


def _common(texts: bytes, ends: npt.NDArray[np.intp], lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.int64] | None:
    """Convert numbers that are all whole, or all have three decimals as Kineto writes them; else None."""
    longest = int(lengths.max())
    if not texts.translate(None, _DIGITS + b"\n"):
        return np.fromstring(texts, dtype=np.int64, sep="\n") * 1000 if longest <= 15 else None
    if longest > 20 or int(lengths.min()) < 5 or texts.translate(None, _DIGITS + b".\n"):
        return None
    data = np.frombuffer(texts, dtype=np.uint8)
    dots = np.flatnonzero(data == _DOT)
    if not np.array_equal(dots, ends - 4):
        return None
    if longest == 20 and (data[(ends - lengths)] >= _NINE).any():
        return None  # more than 64 bits hold
    return np.fromstring(texts.replace(b".", b""), dtype=np.int64, sep="\n")


def _one_by_one(texts: list[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None, int]:
    values, bad, uncommon = [0] * len(texts), np.zeros(len(texts), dtype=np.bool_), 0
    for row, text in enumerate(texts):
        whole, dot, decimals = text.partition(b".")
        if whole.isdigit() and len(whole) <= 15 and (decimals.isdigit() if dot else True) and len(decimals) <= 3:
            values[row] = int(whole + decimals.ljust(3, b"0"))
            continue
        value, odd = _exact(text)
        uncommon += odd
        if value is None:
            bad[row] = True
        else:
            values[row] = value
    return np.array(values, dtype=np.int64), bad if bad.any() else None, uncommon


def _exact(text: bytes) -> tuple[int | None, bool]:
    """Return the nanoseconds, None if they are none, and whether the text is of an uncommon form."""
    bare = text.strip()
    odd = bare.startswith(b'"') or b"e" in bare.lower() or len(bare.partition(b".")[2]) > 3
    try:
        number = Decimal(bare.strip(b'"').decode("ascii").strip())
        if not number.is_finite() or number.adjusted() > 20 or len(bare) > _MAX_DIGITS:
            return None, False
        value: Any = int(number.scaleb(3, _CONTEXT).quantize(Decimal(1), context=_CONTEXT))
    except (InvalidOperation, ValueError, UnicodeDecodeError):
        return None, False
    return (value, odd) if abs(value) < LIMIT_NS else (None, False)
