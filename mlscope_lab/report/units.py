"""Numbers as people read them: one unit and one number of decimals for what stands in one column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["UNKNOWN", "TimeScale", "format_bytes", "format_number", "time_scale"]

UNKNOWN = "\N{EN DASH}"
"""What stands where a number is not known."""

_TIME = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


@dataclass(frozen=True, kw_only=True)
class TimeScale:
    """A unit of time for a column or an axis.

    Attributes
    ----------
    unit
        "ns", "µs", "ms" or "s".
    ns
        Nanoseconds in one unit.
    decimals
        Digits after the point.
    """

    unit: str
    ns: float
    decimals: int

    def value(self, ns: float) -> str:
        """Return the bare number, or a dash where it is unknown (NaN)."""
        return UNKNOWN if math.isnan(ns) else f"{ns / self.ns:,.{self.decimals}f}"

    def text(self, ns: float) -> str:
        """Return the number with its unit."""
        return UNKNOWN if math.isnan(ns) else f"{self.value(ns)} {self.unit}"

    def interval(self, low_ns: float, high_ns: float) -> str:
        """Return ``[low, high]``, or "unknown" where there were too few values for bounds."""
        if math.isnan(low_ns) or math.isnan(high_ns):
            return "unknown"
        return f"[{self.value(low_ns)}, {self.value(high_ns)}]"


def time_scale(values_ns: Iterable[float]) -> TimeScale:
    """Return the scale in which the typical one of these times reads best.

    Parameters
    ----------
    values_ns
        Times that will stand beside each other; the largest finite one decides the unit.
    """
    largest = max((abs(v) for v in values_ns if math.isfinite(v)), default=0.0)
    ns, unit = next(((ns, unit) for ns, unit in _TIME if largest >= ns), _TIME[-1])
    shown = largest / ns
    decimals = 0 if unit == "ns" else 3 if shown < 10 else 2 if shown < 100 else 1
    return TimeScale(unit=unit, ns=ns, decimals=decimals)


def format_bytes(count: float) -> str:
    """Return a size in binary units: ``17.7 MiB``; "unknown" for a negative one."""
    if count < 0:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_number(value: float, digits: int = 3) -> str:
    """Return a number to so many significant digits, without an exponent where that stays readable."""
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else "∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"
