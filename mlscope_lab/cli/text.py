"""Numbers and foreign text as a terminal should show them."""

from __future__ import annotations

import math

__all__ = ["binary_size", "duration", "interval", "parse_bytes", "percent", "plain"]

_TIME_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))
_SIZE_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_FACTORS = {
    "": 1, "b": 1, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9, "t": 1e12, "tb": 1e12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def plain(text: object) -> str:
    """Return text with every control character escaped, so that a label cannot steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def _unit_of(ns: float) -> tuple[float, str]:
    return next((unit for unit in _TIME_UNITS if abs(ns) >= unit[0]), _TIME_UNITS[-1])


def _digits(value: float) -> int:
    """Return the decimals that show three significant digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) >= 1 else 2


def duration(ns: float | None) -> str:
    """Return a time of `ns` nanoseconds with three significant digits and its unit, "-" for None and NaN."""
    if ns is None or math.isnan(ns):
        return "-"
    factor, unit = _unit_of(ns)
    value = ns / factor
    return f"{value:.{_digits(value)}f} {unit}"


def interval(ns: float | None, low: float | None, high: float | None) -> str:
    """Return a time and its interval in one unit, such as ``12.3 ms [12.1, 12.6]``.

    Where the interval is unknown (None or NaN), "(no interval)" stands in its place.
    """
    if ns is None or math.isnan(ns):
        return "-"
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return f"{duration(ns)} (no interval)"
    factor, unit = _unit_of(ns)
    decimals = _digits(ns / factor)
    return f"{ns / factor:.{decimals}f} {unit} [{low / factor:.{decimals}f}, {high / factor:.{decimals}f}]"


def percent(share: float | None) -> str:
    """Return a share of 1 as percent, "-" for None and NaN."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def binary_size(count: float) -> str:
    """Return a number of bytes in binary units, such as ``3.4 GiB``."""
    for unit in _SIZE_UNITS[:-1]:
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_SIZE_UNITS[-1]}"


def parse_bytes(text: str) -> int:
    """Return the number of bytes in text such as ``2GB``, ``512MiB`` or ``1000000``.

    Raises
    ------
    ValueError
        If it is not a positive number with a known unit.
    """
    number = text.strip().lower().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text.strip().lower()[len(number) :].strip()
    try:
        count = float(number) * _FACTORS[unit]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size; write e.g. 2GB, 512MiB or 1000000") from None
    if not 1 <= count < 2**63:
        raise ValueError(f"{text!r} is not a possible size; write e.g. 2GB")
    return int(count)
