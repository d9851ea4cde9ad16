"""From measures to a judgement: which pairs are out of tolerance, which comes first, and which group is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.divergence import schema
from mlscope_lab.divergence.tree import with_columns
from mlscope_lab.errors import InputError
from mlscope_lab.numerics.tolerances import BY_DTYPE, CALIBRATED, Tolerances, judge

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["INJECTION_FACTOR", "Judgement", "injection_tolerance", "judge_injections", "judge_tree", "pick"]

Array = npt.NDArray[Any]

INJECTION_FACTOR: Final = 8.0
"""How many times the rounding noise of a group another framework's kernel may differ: it sums in another order, and
some (Winograd, FFT) compute other intermediate values."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Which pair is first, and which is to blame: positions of pairs, -1 for none."""

    first_divergent: int
    culprit: int


def injection_tolerance(noise: Array) -> Array:
    """Return the largest absolute error that a faultless group may make, by pair; NaN where nothing was replayed."""
    return np.asarray(INJECTION_FACTOR * noise, dtype=np.float64)


def judge_injections(max_abs: Array, tolerance: Array) -> npt.NDArray[np.int8]:
    """Return 1 where a group injects an error of its own, 0 where not, -1 where it was not replayed."""
    with np.errstate(invalid="ignore"):
        injects = max_abs > tolerance
    known = ~np.isnan(max_abs) & ~np.isnan(tolerance)
    return np.where(known, injects, -1).astype(np.int8)


def pick(columns: Mapping[str, Array]) -> Judgement:
    """Name the first divergent pair and the culprit.

    Parameters
    ----------
    columns
        Of ``/pairs``: ``diverges``, ``injects``, ``injected_max_abs``, ``injected_tolerance``.

    Notes
    -----
    A small injected error may grow until it passes a tolerance some pairs later. So, where groups were replayed, the
    first divergent pair is the first out of tolerance if it injects or nothing before it does, else the first one
    before it that injects. The culprit is the group whose injected error is largest beside its tolerance.
    """
    diverges, injects = columns["diverges"] == 1, columns["injects"] == 1
    beyond = np.flatnonzero(diverges)
    first = int(beyond[0]) if beyond.size else -1
    if first >= 0 and not injects[first]:
        earlier = np.flatnonzero(injects[:first])
        first = int(earlier[0]) if earlier.size else first
    culprit = -1
    if injects.any() and first >= 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(injects, columns["injected_max_abs"] / columns["injected_tolerance"], 0.0)
        excess[np.isnan(excess)] = np.inf
        culprit = int(np.argmax(excess))
    return Judgement(first_divergent=first, culprit=culprit)


_UNCALIBRATED: Final = (
    "Neither side shows what rounding does to it, so that values are judged by the usual tolerances of their types; "
    "give one with tolerance=..."
)


def judge_tree(tree: xr.DataTree, tolerance: Any = None) -> xr.DataTree:
    """Judge a comparison by what is stored of it; nothing runs.

    Parameters
    ----------
    tree
        A comparison.
    tolerance
        As for `mlscope_lab.compare`.

    Returns
    -------
    xarray.DataTree
        The same with ``atol``, ``rtol``, ``tolerance_source``, ``share_out_low``, ``share_out_high`` and ``diverges``
        of ``/pairs`` anew, and ``first_divergent`` and ``culprit`` of the root.

    Raises
    ------
    InputError
        If the tolerance is malformed, or "calibrated" and nothing was calibrated.
    """
    if schema.PAIRS not in tree.children:
        raise InputError("This comparison failed before anything was compared, so there is nothing to judge")
    data = tree.children[schema.PAIRS].dataset
    columns = {str(name): variable.values for name, variable in data.variables.items()}
    known = bool(np.isfinite(columns["noise_a"]).any() or np.isfinite(columns["noise_b"]).any())
    warnings = [w for w in tree.attrs["warnings"] if w != _UNCALIBRATED]
    if tolerance is None:
        tolerance = CALIBRATED if known or not data.sizes["pair"] else BY_DTYPE
        if tolerance == BY_DTYPE:
            warnings.append(_UNCALIBRATED)
    atol, rtol, sources = Tolerances.from_any(tolerance).for_pairs(columns)
    sketches = tree.children[schema.SKETCHES].dataset
    judged = judge(
        columns,
        sketches["joint"].values,
        sketches["error_edges"].values,
        sketches["reference_edges"].values,
        atol,
        rtol,
    )
    changed: dict[str, Any] = {
        "atol": atol, "rtol": rtol, "tolerance_source": sources, "share_out_low": judged.share_out_low,
        "share_out_high": judged.share_out_high, "diverges": judged.diverges,
    }  # fmt: skip
    found = pick({**columns, **changed})
    return with_columns(
        tree, changed,
        {"first_divergent": found.first_divergent, "culprit": found.culprit, "warnings": warnings},
    )  # fmt: skip
