"""From what was measured to the stored form of a comparison: one DataTree of flat groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.divergence import schema
from mlscope_lab.divergence.validate import validate_comparison

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["build_comparison", "with_columns"]

_LONG_NAMES: dict[str, str] = {
    "value_a": "value of the reference",
    "value_b": "value of the other side",
    "max_abs_error": "largest absolute difference",
    "mean_abs_error": "mean absolute difference",
    "rms_error": "root mean square of the difference",
    "max_rel_error": "largest relative difference",
    "l2_relative": "L2 norm of the difference over that of the reference",
    "cosine": "cosine of the angle between the two",
    "sqnr_db": "signal to quantisation noise ratio",
    "psnr_db": "peak signal to noise ratio",
    "kl_divergence": "Kullback-Leibler divergence of the distributions of values",
    "js_divergence": "Jensen-Shannon divergence of the distributions of values",
    "hellinger": "Hellinger distance of the distributions of values",
    "noise_a": "what arithmetic alone does to the reference's value",
    "noise_b": "what arithmetic alone does to the other side's value",
    "atol": "absolute tolerance",
    "rtol": "relative tolerance",
    "injected_max_abs": "largest absolute error of the group on the reference's inputs",
    "injected_l2_relative": "relative L2 error of the group on the reference's inputs",
    "joint": "elements by size of error and of reference",
}


def _variable(name: str, dims: tuple[str, ...], values: Any) -> xr.Variable:
    import xarray as xr

    dtype = schema.DTYPES.get(name, "float64")
    array = np.asarray(values, dtype=object if dtype == "object" else dtype)
    if array.ndim != len(dims):  # no rows: the shape of the others is not known from the values
        array = array.reshape((0,) * len(dims))
    attrs = {"units": schema.UNITS.get(name, "1"), "long_name": _LONG_NAMES.get(name, name.replace("_", " "))}
    return xr.Variable(dims, array, attrs)


def _group(name: str, columns: Mapping[str, Any]) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset({key: _variable(key, dims, columns[key]) for key, dims in schema.GROUPS[name].items()})


def build_comparison(
    *,
    attrs: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Any]],
    quantiles: Sequence[float] = (),
    outputs: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Mapping[str, Any]] | None = None,
) -> xr.DataTree:
    """Return a valid comparison.

    Parameters
    ----------
    attrs
        Of the root, see `schema.REQUIRED_ATTRS`.
    groups
        Columns by group and name, as `schema.GROUPS` has them.
    quantiles
        Which ones ``error_quantiles`` holds.
    outputs
        Arrays by name (``a_logits``), stored in ``/outputs``.
    tensors
        For each kept value ``t00042`` the arrays "a" and "b" (in a's layout) and the text "name".

    Raises
    ------
    SchemaError
        If something is missing or of another form.
    """
    import xarray as xr

    made = {f"/{name}": _group(name, columns) for name, columns in groups.items()}
    if f"/{schema.PAIRS}" in made and len(quantiles):
        made[f"/{schema.PAIRS}"] = made[f"/{schema.PAIRS}"].assign_coords(quantile=("quantile", list(quantiles)))
    if outputs:
        made[f"/{schema.OUTPUTS}"] = xr.Dataset(
            {
                name: xr.Variable([f"{name}_axis_{i}" for i in range(np.ndim(array))], np.asarray(array))
                for name, array in outputs.items()
            }
        )
    for key, item in (tensors or {}).items():
        dims = [f"axis_{i}" for i in range(np.ndim(item["a"]))]
        made[f"/{schema.TENSORS}/{key}"] = xr.Dataset(
            {"a": (dims, item["a"]), "b": (dims, item["b"])}, attrs={"name": item["name"], "pair_index": item["pair"]}
        )
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **made})
    validate_comparison(tree)
    return tree


def with_columns(tree: xr.DataTree, columns: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.DataTree:
    """Return a comparison with other judgements in /pairs and other attributes; the given one stays as it is."""
    changed = tree.copy()
    pairs = changed.children[schema.PAIRS].to_dataset()
    made = {name: _variable(name, schema.GROUPS[schema.PAIRS][name], values) for name, values in columns.items()}
    changed[schema.PAIRS] = type(changed)(pairs.assign(made))
    changed.attrs.update(attrs)
    validate_comparison(changed)
    return changed
