"""Views of comparisons: error along the layers, and one pair of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlscope_lab.divergence import schema
from mlscope_lab.divergence.validate import validate_comparison
from mlscope_lab.errors import InputError
from mlscope_lab.report import comparison_figures, comparison_view

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

__all__ = ["divergence_view", "pair_view"]


def divergence_view(comparison: Any) -> go.Figure:
    """Draw the error of every aligned value, what it may be, and what each layer adds of its own.

    Parameters
    ----------
    comparison
        From `mlscope_lab.compare`, or its tree.

    Raises
    ------
    InputError
        If it is no comparison, or nothing was compared.
    SchemaError
        If the tree is none of a comparison.
    """
    return comparison_figures.divergence_figure(_tree(comparison))


def pair_view(comparison: Any, pair: int | None = None) -> go.Figure:
    """Draw one pair: the values of both sides, error against size of the reference, and error by channel.

    Parameters
    ----------
    comparison
        As for `divergence_view`.
    pair
        Its number in ``pairs()``; default the one to blame, else the first divergent, else the one nearest to its
        tolerance.

    Raises
    ------
    InputError
        If it is no comparison, has no such pair, or all values are equal and none is asked for.
    SchemaError
        If the tree is none of a comparison.
    """
    tree = _tree(comparison)
    count = tree[schema.PAIRS].dataset.sizes["pair"]
    if pair is None:
        chosen = comparison_view.worst_pairs(tree, 1)
        if not chosen:
            raise InputError("All values are equal to the last bit: say which pair to draw")
        pair = chosen[0]
    if not 0 <= pair < count:
        raise InputError(f"pair must lie between 0 and {count - 1}, not {pair}")
    return comparison_figures.pair_figure(tree, pair)


def _tree(given: Any) -> xr.DataTree:
    import xarray as xr

    tree = getattr(given, "tree", given)
    if not isinstance(tree, xr.DataTree):
        raise InputError(
            f"A comparison is wanted, not a {type(given).__name__}; make one with mlscope_lab.compare(...)"
        )
    validate_comparison(tree)
    if schema.PAIRS not in tree.children or not tree[schema.PAIRS].dataset.sizes["pair"]:
        raise InputError("Nothing was compared, so there is nothing to draw; see summary()")
    return tree
