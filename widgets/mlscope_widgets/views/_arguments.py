"""Checks that all views share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr


def datasets(
    name: str, given: xr.Dataset | Sequence[xr.Dataset], variable: str, *, empty: bool = False
) -> list[xr.Dataset]:
    """Return one or several datasets as a list.

    Raises
    ------
    InputError
        If one is no dataset, lacks the variable that makes it the wanted kind, or there is none.
    """
    import xarray as xr

    found = [given] if isinstance(given, xr.Dataset | xr.DataTree) else list(given)
    for data in found:
        if not isinstance(data, xr.Dataset):
            raise InputError(
                f"{name} must be datasets from mlscope_lab.analysis, not a {type(data).__name__}; a run's are made by "
                "latency.summarize(run) and layers.layer_times(run)"
            )
        if variable not in data:
            raise InputError(f"{name}: a dataset lacks '{variable}', so it is of another kind; it has "
                             f"{', '.join(str(n) for n in data.data_vars) or 'no variables'}")  # fmt: skip
    if not found and not empty:
        raise InputError(f"{name} must hold at least one dataset")
    return found


def same_length(one: str, a: Sequence[xr.Dataset], other: str, b: Sequence[xr.Dataset]) -> None:
    """Refuse two sequences that do not belong together.

    Raises
    ------
    InputError
        If their lengths differ.
    """
    if len(a) != len(b):
        raise InputError(f"{one} holds {len(a)} datasets and {other} {len(b)}; give one of each a run")


def along(name: str, data: xr.Dataset, dim: str, analysis: str) -> None:
    """Refuse a dataset that runs along another dimension.

    Raises
    ------
    InputError
        If it does, naming the analysis that makes the wanted one.
    """
    if dim not in data.dims:
        raise InputError(f"{name} must run along '{dim}', not {', '.join(map(str, data.dims)) or 'nothing'}; "
                         f"ml.analyze(run, '{analysis}') makes it")  # fmt: skip
