"""The `.mlscope` accessor of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.errors import SchemaError, nearest
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["RunAccessor", "ensure_registered"]

_registered = False


class RunAccessor:
    """What a run says about itself, as ``run.mlscope``.

    Parameters
    ----------
    tree
        A run.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return str(self._attr("run_id"))

    @property
    def latency(self) -> xr.Dataset:
        """The untraced iterations, ``/latency``."""
        return self._group(schema.LATENCY)

    def summary(self) -> dict[str, Any]:
        """Return the headline numbers.

        Returns
        -------
        dict
            run_id, model, backend, backend_version, device, precision, batch_size, threads, level, status; for a run
            with untraced iterations also ``median_ns``, ``low_ns`` and ``high_ns`` of the predict time, ``throughput``
            (samples/s), ``drift``, ``iterations`` and ``processes`` (see `mlscope_lab.analysis.latency.summarize`);
            for a failed one ``failure``, kind and message.
        """
        from mlscope_lab.analysis.latency import summarize

        names = ("run_id", "model", "backend", "backend_version", "device", "precision", "batch_size", "threads",
                 "level", "status")  # fmt: skip
        found: dict[str, Any] = {name: self._attr(name) for name in names}
        latency = self._tree.children.get(schema.LATENCY)
        if latency is not None and latency.dataset.sizes.get("latency_iteration"):
            table = summarize(self._tree)
            predict = table.sel(stage="predict")
            found |= {name: float(predict[name]) for name in ("median_ns", "low_ns", "high_ns")}
            found |= {name: float(table[name]) for name in ("throughput", "drift")}
            found |= {name: int(table[name]) for name in ("iterations", "processes")}
        if failure := self._tree.attrs.get("failure"):
            found["failure"] = {name: failure.get(name) for name in ("kind", "message")}
        return found

    def layers(self) -> pd.DataFrame:
        """Return one row a layer, in order of first start.

        Returns
        -------
        pandas.DataFrame
            Indexed by label: medians over the iterations ``duration_ns`` and ``exclusive_ns`` with bounds, ``share``
            of the pass, ``type``, shapes, bytes (see `mlscope_lab.analysis.layers.layer_times`).

        Raises
        ------
        SchemaError
            If the run has no layers.
        """
        from mlscope_lab.analysis.layers import layer_times

        return _rows_of(layer_times(self._tree))

    def slowest(self, n: int = 5) -> pd.DataFrame:
        """Return the n layers with the largest exclusive time, slowest first; columns as in `layers`."""
        from mlscope_lab.analysis.layers import slowest_layers

        return _rows_of(slowest_layers(self._tree, n))

    def analyze(self, name: str, **options: Any) -> xr.Dataset:
        """Run an analysis on this run, such as "layer_latency" or "A3".

        Parameters
        ----------
        name
            Name or number, see `mlscope_lab.analysis.registry.analyses`.
        **options
            Its keywords.

        Raises
        ------
        InputError
            If there is no such analysis or option.
        SchemaError
            If the run lacks what the analysis needs.
        """
        from mlscope_lab.analysis.registry import analyze

        return analyze(self._tree, name, **options)

    def operators(self) -> pd.DataFrame:
        """Return one row an operator call, names instead of numbers.

        Returns
        -------
        pandas.DataFrame
            The columns of ``/operators``, each ``X_code`` as the text ``X``, and ``layer`` beside ``layer_index``
            ("(no layer)" for -1).

        Raises
        ------
        SchemaError
            If the run holds no operators.
        """
        return self._events(schema.OPERATORS)

    def kernels(self) -> pd.DataFrame:
        """Return one row a device kernel or copy; columns as in `operators`.

        Raises
        ------
        SchemaError
            If the run holds no kernels.
        """
        return self._events(schema.KERNELS)

    def _events(self, group: str) -> pd.DataFrame:
        import pandas as pd

        from mlscope_lab.analysis.tables import NO_LAYER

        data = self._group(group)
        columns: dict[str, Any] = {}
        for key, variable in data.data_vars.items():
            name = str(key)
            if variable.dims != (schema.EVENT_DIMS[group],):
                continue
            if name.endswith("_code"):
                table = np.append(data[f"{name[:-5]}_table"].values.astype(object), "")  # -1 finds the last
                columns[name[:-5]] = table[variable.values]
                continue
            columns[name] = variable.values
            if name == "layer_index":
                layers = self._tree.children.get(schema.LAYERS)
                labels = [] if layers is None else list(layers.dataset["name"].values)
                columns["layer"] = np.array([*labels, NO_LAYER], dtype=object)[variable.values]
        return pd.DataFrame(columns, index=pd.RangeIndex(data.sizes[schema.EVENT_DIMS[group]], name=group[:-1]))

    def to_dataframe(self, group: str) -> pd.DataFrame:
        """Return a group as a table: one row a pass, iteration, or iteration and layer.

        Parameters
        ----------
        group
            Name such as "latency".

        Raises
        ------
        SchemaError
            If the run has no such group.
        """
        return self._group(group).to_dataframe()

    def _attr(self, name: str) -> Any:
        if name not in self._tree.attrs:
            raise SchemaError(f"This tree is not a run: its root has no attribute '{name}'")
        return self._tree.attrs[name]

    def _group(self, group: str) -> xr.Dataset:
        name = group.strip("/")
        if name not in self._tree.children:
            known = list(self._tree.children)
            raise SchemaError(
                f"The run has no group /{name} (status: {self._tree.attrs.get('status', '?')}). "
                f"Groups: {', '.join(known) or 'none'}.{nearest(name, known)}"
            )
        return self._tree.children[name].to_dataset()


def _rows_of(table: xr.Dataset) -> pd.DataFrame:
    """Return the columns along ``layer`` as a DataFrame; what holds for the whole pass becomes attrs."""
    import pandas as pd

    frame = pd.DataFrame(
        {str(name): values.values for name, values in table.data_vars.items() if values.dims == ("layer",)},
        index=pd.Index(np.asarray(table["layer"].values, dtype=object), name="layer"),
    )
    frame.attrs = {str(name): float(values) for name, values in table.data_vars.items() if not values.dims}
    return frame


def ensure_registered() -> None:
    """Register the accessor on `xarray.DataTree`; later calls do nothing.

    Called at import if xarray is loaded already, and before any function of ours returns a tree, so that
    ``import mlscope_lab`` never imports xarray. For trees from elsewhere: ``import mlscope_lab.xarray``.
    """
    global _registered
    if _registered:
        return
    import xarray as xr

    xr.register_datatree_accessor("mlscope")(RunAccessor)  # type: ignore[no-untyped-call]
    _registered = True
