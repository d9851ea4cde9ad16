"""What the benchmarks share: interleaved pairs, intervals, a table, JSON."""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Result", "interleave", "median_difference", "median_ratio", "report"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured figure with its 95 % interval, and what it is held to.

    Attributes
    ----------
    name
        What was measured, over what.
    value, low, high
        Estimate and interval.
    unit
        "ratio", "us", ...
    target
        Bound that `high` must keep below, or None where the figure is only reported.
    n
        Pairs behind it.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    target: float | None = None
    n: int = 0

    @property
    def ok(self) -> bool | None:
        """Whether the upper bound keeps the target; None without a target."""
        return None if self.target is None else self.high <= self.target

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as the plain data of the JSON report."""
        return {**asdict(self), "ok": self.ok}


def interleave(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 20,
    before: Callable[[int], object] | None = None,
) -> npt.NDArray[np.int64]:
    """Time several callables in turns, so that what disturbs the machine disturbs all alike.

    Parameters
    ----------
    calls
        What to time. The order changes from round to round, so that none always follows the same other.
    rounds
        Timed rounds; each runs every callable once.
    warmup
        Rounds before that.
    before
        Called with the index of the callable, untimed, before each timed call.

    Returns
    -------
    numpy.ndarray
        int64 nanoseconds, (rounds, len(calls)).
    """
    clock = time.perf_counter_ns
    for _ in range(warmup):
        for call in calls:
            call()
    times = np.zeros((rounds, len(calls)), dtype=np.int64)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(calls)), (rounds, 1)), axis=1).tolist()
    gc.collect()
    gc.disable()
    try:
        for row, order in zip(times, orders, strict=True):
            for index in order:
                if before is not None:
                    before(index)
                call = calls[index]
                start = clock()
                call()
                row[index] = clock() - start
    finally:
        gc.enable()
    return times


def _bootstrap(
    pairs: npt.NDArray[Any], statistic: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], resamples: int = 2000
) -> tuple[float, float, float]:
    """Return estimate and 95 % percentile interval of a statistic of the pairs (Efron 1979)."""
    random = np.random.default_rng(0)
    n = len(pairs)
    drawn = np.concatenate(
        [statistic(pairs[random.integers(0, n, size=(100, n))]) for _ in range(max(1, resamples // 100))]
    )
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(statistic(pairs[None])[0]), float(low), float(high)


def median_ratio(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> tuple[float, float, float]:
    """Return the median over the pairs of ours/theirs, with its 95 % interval."""
    return _bootstrap(np.asarray(ours) / np.asarray(theirs), lambda r: np.median(r, axis=1))


def median_difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> tuple[float, float, float]:
    """Return the median over the pairs of ours - theirs, with its 95 % interval, in the unit given."""
    return _bootstrap(np.asarray(ours, float) - np.asarray(theirs, float), lambda d: np.median(d, axis=1))


def report(title: str, results: Sequence[Result], *, out: Path | None = None) -> int:
    """Print a table, write JSON if asked to, and return the exit status: 1 if a target was missed."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in ("what", "value", "95 % interval", "target", "n", "kept"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for result in results:
        kept = {True: "yes", False: "NO", None: ""}[result.ok]
        target = "" if result.target is None else f"<= {result.target:g}"
        interval = f"{result.low:.4g} .. {result.high:.4g}"
        table.add_row(result.name, f"{result.value:.4g} {result.unit}", interval, target, str(result.n), kept)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if out is not None:
        machine = {"python": platform.python_version(), "system": platform.platform(), "machine": platform.machine()}
        body = {"benchmark": title, "environment": machine, "results": [r.as_dict() for r in results]}
        out.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return int(any(result.ok is False for result in results))
