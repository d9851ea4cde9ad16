"""The measures as their definitions say, in plain float64 numpy over whole arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlscope_lab.numerics.measures import QUANTILES


def reference_measures(a: Any, b: Any, channel_axis: int | None = None) -> dict[str, Any]:
    """Return what `PairMeasures` should hold, but for sketches."""
    with np.errstate(all="ignore"):
        return _measures(np.asarray(a), np.asarray(b), channel_axis)


def _measures(given_a, given_b, channel_axis):
    a, b = given_a.astype(np.float64), given_b.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    agree = (np.isnan(a) & np.isnan(b)) | (~both & (a == b))
    apart = ~both & ~agree
    size = np.where(both, np.abs(b - a), np.where(apart, np.inf, 0.0))
    fine_a, fine_b, e = a[both], b[both], (b - a)[both]
    comparable = a.size - int(apart.sum())
    nonzero = fine_a != 0
    relative = np.abs(e[nonzero]) / np.abs(fine_a[nonzero])
    aa, bb, ee = (float((x**2).sum()) for x in (fine_a, fine_b, e))
    rms = math.sqrt(ee / comparable) if comparable else math.nan
    own = {"a": a[np.isfinite(a)], "b": b[np.isfinite(b)]}
    peak = own["a"].max() - own["a"].min() if own["a"].size else math.nan
    found = {
        "count": a.size,
        "max_abs_error": size.max() if a.size else math.nan,
        "mean_abs_error": np.abs(e).sum() / comparable if comparable else math.nan,
        "rms_error": rms,
        "max_rel_error": math.inf if apart.any() else relative.max() if relative.size else math.nan,
        "mean_rel_error": relative.mean() if relative.size else math.nan,
        "l2_relative": (math.sqrt(ee / aa) if aa else math.inf if ee else 0.0) if comparable else math.nan,
        "cosine": ((fine_a * fine_b).sum() / math.sqrt(aa) / math.sqrt(bb) if aa and bb else float(not aa and not bb))
        if comparable else math.nan,
        "sqnr_db": _db(aa, ee) if comparable else math.nan,
        "psnr_db": _db(peak**2, rms**2) if comparable and own["a"].size else math.nan,
        "nan_a": int(np.isnan(a).sum()), "nan_b": int(np.isnan(b).sum()),
        "inf_a": int(np.isinf(a).sum()), "inf_b": int(np.isinf(b).sum()),
        "error_quantiles": np.quantile(size, QUANTILES, method="inverted_cdf") if a.size else None,
    }  # fmt: skip
    for side, x in own.items():
        found |= {
            f"min_{side}": x.min() if x.size else math.nan, f"max_{side}": x.max() if x.size else math.nan,
            f"mean_{side}": x.mean() if x.size else math.nan,
            f"rms_{side}": math.sqrt((x**2).mean()) if x.size else math.nan,
        }  # fmt: skip
    if a.size:
        worst = int(size.argmax())
        found["worst_position"] = ",".join(map(str, np.unravel_index(worst, a.shape))) if a.ndim else ""
        found["worst_a"], found["worst_b"] = a.reshape(-1)[worst], b.reshape(-1)[worst]
    if channel_axis is not None:
        others = tuple(i for i in range(a.ndim) if i != channel_axis % a.ndim)
        counted = (~apart).sum(axis=others)
        found["channel_max_abs_error"] = size.max(axis=others)
        square = np.where(both, b - a, 0.0) ** 2
        found["channel_rms_error"] = np.sqrt(square.sum(axis=others) / counted)
    return found


def _db(signal, noise):
    if not noise:
        return math.inf
    return float(10 * np.log10(signal / noise))


def _single(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


EXACT = ("count", "max_abs_error", "nan_a", "nan_b", "inf_a", "inf_b", "min_a", "max_a", "min_b", "max_b",
         "worst_position", "worst_a", "worst_b", "max_rel_error")  # fmt: skip
ROUNDED = ("mean_abs_error", "rms_error", "mean_rel_error", "l2_relative", "cosine", "sqnr_db", "psnr_db", "mean_a",
           "rms_a", "mean_b", "rms_b")  # fmt: skip


def assert_equal_measures(found: Any, wanted: dict[str, Any], *, rel: float = 1e-12) -> None:
    """Check every measure: extremes, counts and places to the bit, sums but for the order of their terms."""
    for name in EXACT:
        one, other = getattr(found, name), wanted[name]
        same = one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
        assert same, f"{name}: {one!r}, not {other!r}"
    for name in ROUNDED:
        one, other = getattr(found, name), wanted[name]
        scale = {
            "mean_a": wanted["rms_a"],
            "mean_b": wanted["rms_b"],
            "cosine": 1.0,
            "sqnr_db": 10.0,
            "psnr_db": 10.0,
        }.get(name, abs(other))
        same = one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= rel * scale
        assert same, f"{name}: {one!r}, not {other!r}"
    for name in ("channel_max_abs_error", "channel_rms_error"):
        if name in wanted:
            np.testing.assert_allclose(getattr(found, name), _single(wanted[name]), rtol=1e-6, err_msg=name)
