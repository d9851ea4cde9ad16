"""Static cost as datasets: of a model alone, and joined with the layers of a measured run.

References
----------
Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures", 2009,
for arithmetic intensity as operations over bytes moved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["KINDS", "attach", "evaluate", "to_dataset"]

KINDS = ("elementwise", "normalization", "pooling", "reduction", "resampling", "softmax", "other")
_TRANSFERS = ("input", "output", "parameter")
_LONG_NAMES = {
    "macs": "multiply-adds of convolutions and matrix products",
    "flops": "floating-point operations, a multiply-add being two",
    "parameters": "elements of weights read",
    "parameter_bytes": "stored bytes of weights read",
    "input_bytes": "bytes of the tensors read from other layers",
    "output_bytes": "bytes of the tensors written for other layers",
    "weight_bytes": "bytes read of weights",
    "arithmetic_intensity": "operations over bytes of inputs, outputs and weights",
    "peak_activation_bytes": "largest sum of live tensors while an operator runs",
}


class _Layer(Protocol):
    """What is read of `mlscope_lab.static.LayerCost`."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def parent(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def inputs(self) -> Sequence[object]: ...
    @property
    def outputs(self) -> Sequence[object]: ...
    @property
    def counted(self) -> bool: ...
    @property
    def macs(self) -> Any: ...
    @property
    def flops(self) -> Any: ...
    @property
    def parameters(self) -> Any: ...
    @property
    def parameter_bytes(self) -> Any: ...
    @property
    def transfers(self) -> Sequence[Any]: ...


class _Table(Protocol):
    """What is read of `mlscope_lab.static.CostTable`."""

    @property
    def model(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def layers(self) -> Sequence[_Layer]: ...
    @property
    def symbols(self) -> Sequence[str]: ...
    @property
    def parameters(self) -> Any: ...
    @property
    def parameter_bytes(self) -> Any: ...
    @property
    def peak_activation_bytes(self) -> Any: ...
    @property
    def peak_layer(self) -> int: ...
    @property
    def unknown(self) -> Any: ...
    @property
    def notes(self) -> Sequence[str]: ...


def to_dataset(table: _Table, *, conventions: Sequence[str] = ()) -> xr.Dataset:
    """Return a cost table as a dataset.

    Parameters
    ----------
    table
        A `mlscope_lab.static.CostTable`.
    conventions
        Sentences that say what is counted, for the attributes.

    Returns
    -------
    xarray.Dataset
        Along ``layer`` (label coordinate), in execution order: ``type``, ``scope``, ``parent``, ``depth``,
        ``input_shapes``, ``output_shapes``, ``counted`` (0 where an operator is not known: ``macs`` and ``flops`` are
        -1 there), ``macs``, ``flops``, one ``<kind>_flops`` for each of `KINDS`, ``parameters``, ``parameter_bytes``,
        ``input_bytes``, ``output_bytes``, ``weight_bytes`` (what is read of the weights: of an embedding the rows
        taken, in a loop each turn) and, where all is numbers, ``arithmetic_intensity`` (NaN where no byte moves).
        Along ``transfer``: ``transfer_layer`` (row), ``transfer_tensor`` (number), ``transfer_kind`` ("input",
        "output", "parameter") and ``transfer_bytes``, the tensors behind these sums.
        Scalars: ``total_macs``, ``total_flops``, ``total_<kind>_flops`` (sums of what is known), ``total_parameters``
        and ``total_parameter_bytes`` (each weight once), ``peak_activation_bytes``.
        Integers are int64; where symbols are open, columns are objects: int or an expression with ``evaluate``.
        Attributes: ``model``, ``source``, ``symbols``, ``peak_layer``, ``not_counted`` {operator: how often},
        ``notes``, ``conventions``.
    """
    import xarray as xr

    layers = table.layers
    bytes_by_kind = {
        kind: [sum((t.nbytes for t in layer.transfers if t.kind == kind), 0) for layer in layers] for kind in _TRANSFERS
    }
    known = [2 * layer.macs + sum(layer.flops.values(), 0) for layer in layers]
    columns: dict[str, tuple[Any, ...]] = {
        "type": ("layer", _texts(layer.type for layer in layers)),
        "scope": ("layer", _texts(layer.scope for layer in layers)),
        "parent": ("layer", np.array([layer.parent for layer in layers], dtype=np.int64)),
        "depth": ("layer", np.array([layer.depth for layer in layers], dtype=np.int64)),
        "input_shapes": ("layer", _texts(";".join(map(str, layer.inputs)) for layer in layers)),
        "output_shapes": ("layer", _texts(";".join(map(str, layer.outputs)) for layer in layers)),
        "counted": ("layer", np.array([layer.counted for layer in layers], dtype=np.int8)),
        "macs": ("layer", _numbers([layer.macs if layer.counted else -1 for layer in layers])),
        "flops": ("layer", _numbers([n if layer.counted else -1 for n, layer in zip(known, layers, strict=True)])),
        **{f"{kind}_flops": ("layer", _numbers([layer.flops.get(kind, 0) for layer in layers])) for kind in KINDS},
        "parameters": ("layer", _numbers([layer.parameters for layer in layers])),
        "parameter_bytes": ("layer", _numbers([layer.parameter_bytes for layer in layers])),
        "input_bytes": ("layer", _numbers(bytes_by_kind["input"])),
        "output_bytes": ("layer", _numbers(bytes_by_kind["output"])),
        "weight_bytes": ("layer", _numbers(bytes_by_kind["parameter"])),
        "total_macs": ((), _number(sum((layer.macs for layer in layers), 0))),
        "total_flops": ((), _number(sum(known, 0))),
        **{
            f"total_{kind}_flops": ((), _number(sum((layer.flops.get(kind, 0) for layer in layers), 0)))
            for kind in KINDS
        },
        "total_parameters": ((), _number(table.parameters)),
        "total_parameter_bytes": ((), _number(table.parameter_bytes)),
        "peak_activation_bytes": ((), _number(table.peak_activation_bytes)),
    }
    flows = [(row, t) for row, layer in enumerate(layers) for t in layer.transfers]
    columns["transfer_layer"] = ("transfer", np.array([row for row, _ in flows], dtype=np.int64))
    columns["transfer_tensor"] = ("transfer", np.array([t.tensor for _, t in flows], dtype=np.int64))
    columns["transfer_kind"] = ("transfer", _texts(t.kind for _, t in flows))
    columns["transfer_bytes"] = ("transfer", _numbers([t.nbytes for _, t in flows]))
    peak = layers[table.peak_layer].name if table.peak_layer >= 0 else ""
    data = xr.Dataset(
        columns,
        coords={"layer": _texts(layer.name for layer in layers)},
        attrs={
            "model": table.model, "source": table.source, "symbols": list(table.symbols), "peak_layer": peak,
            "not_counted": dict(table.unknown), "notes": list(table.notes), "conventions": list(conventions),
        },
    )  # fmt: skip
    return _described(_with_intensity(data))


def _texts(values: Any) -> npt.NDArray[Any]:
    found = list(values)
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array


def _numbers(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return int64 where all values are numbers that fit, else objects."""
    if all(isinstance(value, int) and abs(value) < 1 << 63 for value in values):
        return np.array(values, dtype=np.int64)
    return _texts(values)


def _number(value: Any) -> npt.NDArray[Any]:
    return _numbers([value])[0:1].reshape(())


def _with_intensity(data: xr.Dataset) -> xr.Dataset:
    weights = "weight_bytes" if "weight_bytes" in data else "parameter_bytes"
    parts = [data[name] for name in ("flops", "input_bytes", "output_bytes", weights)]
    if any(part.dtype == object for part in parts):
        return data
    flops, moved = parts[0].values, sum(part.values for part in parts[1:])
    usable = (moved > 0) & (flops >= 0)
    intensity = np.where(usable, flops / np.where(usable, moved, 1), np.nan)
    return data.assign(arithmetic_intensity=("layer", intensity))


def _described(data: xr.Dataset) -> xr.Dataset:
    for name, variable in data.data_vars.items():
        text = str(name)
        if text.endswith("_bytes"):
            variable.attrs["units"] = "byte"
        elif text.endswith(("flops", "macs", "parameters")):
            variable.attrs["units"] = "1"
        elif text == "arithmetic_intensity":
            variable.attrs["units"] = "FLOP/byte"
        long_name = _LONG_NAMES.get(text.removeprefix("total_"))
        if long_name:
            variable.attrs["long_name"] = long_name
        variable.attrs["provenance"] = "analytic"
    return data


def evaluate(cost: xr.Dataset, **lengths: int) -> xr.Dataset:
    """Put numbers in the place of symbols.

    Parameters
    ----------
    cost
        From `to_dataset` (``ml.cost(..., batch_size=None)``).
    **lengths
        A length for each of ``cost.attrs["symbols"]``.

    Returns
    -------
    xarray.Dataset
        The same with int64 columns, and ``arithmetic_intensity``.

    Raises
    ------
    InputError
        If a symbol gets no length, or a length is no positive integer.
    """
    missing = [name for name in cost.attrs.get("symbols", ()) if name not in lengths]
    if missing:
        raise InputError(f"No length is given for {', '.join(missing)}: evaluate(cost, {missing[0]}=8)")
    wrong = [name for name, value in lengths.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise InputError(f"The length of {wrong[0]} must be a positive integer, not {lengths[wrong[0]]!r}")
    replaced = {}
    for name, variable in cost.data_vars.items():
        values = variable.values
        if variable.dtype == object and any(hasattr(value, "evaluate") for value in values.reshape(-1)):
            flat = [v.evaluate(**lengths) if hasattr(v, "evaluate") else v for v in values.reshape(-1)]
            replaced[name] = (variable.dims, _numbers(flat).reshape(values.shape), variable.attrs)
    found = cost.assign(replaced)
    attrs = {**cost.attrs, "symbols": [], "lengths": dict(lengths)}
    if not cost.attrs.get("peak_layer"):
        attrs["peak_layer"] = ""
    return _described(_with_intensity(found)).assign_attrs(attrs)


def attach(run: xr.DataTree, cost: xr.Dataset) -> xr.Dataset:
    """Join a static profile with the layers of a measured run.

    A measured layer gets the cost of the layers that it stands for: those named in ``sources`` (what a fused node was
    made of), else the one of its own name, else those of its scope. Of several measured layers of one scope each takes
    the cost of its own kind (convolution, matrix product, normalisation, activation, pooling); what fits none of them,
    or several, stays unmatched and is never spread. Bytes of a fused layer are those that cross its boundary, so what
    its parts hand on to each other does not count.

    Parameters
    ----------
    run
        A run with layers.
    cost
        From `to_dataset`, without open symbols.

    Returns
    -------
    xarray.Dataset
        Along ``layer`` (the run's labels, in its order): ``macs``, ``flops``, ``parameters``, ``parameter_bytes``
        (those read), ``input_bytes``, ``output_bytes``, -1 where nothing matched; ``arithmetic_intensity`` (NaN there);
        ``matched_by`` ("sources", "name", "scope" or "") and ``cost_layers`` (names joined by ``;``).
        Scalars: ``matched_flops_ratio`` and ``matched_macs_ratio`` of the model's, ``unmatched_flops``,
        ``unmatched_macs``, ``unmatched_layers`` (measured layers without a cost). Attributes:
        ``unmatched_cost_layers``, names of layers with operations that no measured layer took, and those of `cost`.

    Raises
    ------
    SchemaError
        If the run has no layers.
    InputError
        If symbols are open.
    """
    import xarray as xr

    if schema.LAYERS not in run.children:
        raise SchemaError(f"Run {run.attrs.get('run_id', '?')} has no layers. Profile again with level='layer'.")
    if cost.attrs.get("symbols"):
        first = cost.attrs["symbols"][0]
        raise InputError(
            f"The cost depends on {first}; use evaluate(cost, {first}=...) with the run's own length first"
        )
    data = run[schema.LAYERS].to_dataset()
    join = _Join(cost)
    taken, how = join.match(data)
    columns = {name: np.full(len(taken), -1, dtype=np.int64) for name in _JOINED}
    for row, rows in enumerate(taken):
        if rows:
            for name, value in join.united(rows).items():
                columns[name][row] = value
    joined = xr.Dataset(
        {
            **{name: ("layer", values) for name, values in columns.items()},
            "matched_by": ("layer", _texts(how)),
            "cost_layers": ("layer", _texts(";".join(join.names[r] for r in rows) for rows in taken)),
        },
        coords={"layer": data["name"].values},
    )
    claimed = sorted({r for rows in taken for r in rows})
    totals: dict[str, Any] = {"unmatched_layers": ((), sum(not rows for rows in taken))}
    for name in ("flops", "macs"):
        whole = np.maximum(cost[name].values, 0)
        matched = int(whole[claimed].sum())
        totals[f"matched_{name}_ratio"] = ((), matched / int(whole.sum()) if whole.sum() else float("nan"))
        totals[f"unmatched_{name}"] = ((), int(whole.sum()) - matched)
    left = [join.names[r] for r in range(len(join.names)) if r not in set(claimed) and cost["flops"].values[r] != 0]
    joined = _with_intensity(joined.assign(totals))
    return _described(joined).assign_attrs({**cost.attrs, "unmatched_cost_layers": left})


_JOINED = ("macs", "flops", "parameters", "parameter_bytes", "input_bytes", "output_bytes")
# the kinds of layers that frameworks call differently, by what their names contain
_FAMILIES = (
    ("convolution", ("conv",)),
    ("matrix product", ("matmul", "gemm", "linear", "dense", "addmm", "bmm", "einsum", "lstm", "gru", "rnn")),
    ("normalization", ("norm",)),
    ("pooling", ("pool", "mean")),
    ("softmax", ("softmax",)),
    ("activation", ("relu", "clip", "hardtanh", "sigmoid", "gelu", "tanh", "silu", "swish", "activation")),
    ("addition", ("add", "sum", "functional")),
)


_PRODUCTS = ("convolution", "matrix product")


def _family(kind: str) -> str:
    lowered = kind.lower()
    return next((family for family, words in _FAMILIES if any(word in lowered for word in words)), lowered)


class _Join:
    """Which rows of a cost table each measured layer stands for; a row is taken once."""

    def __init__(self, cost: xr.Dataset) -> None:
        self._cost = cost
        self.names: list[str] = [str(name) for name in cost["layer"].values]
        self._types: list[str] = [str(kind) for kind in cost["type"].values]
        self._macs: list[int] = cost["macs"].values.tolist()
        self._row = {name: row for row, name in enumerate(self.names)}
        self._of_scope: dict[str, list[int]] = defaultdict(list)
        for row, (name, scope) in enumerate(zip(self.names, cost["scope"].values, strict=True)):
            for key in {name, str(scope)} - {""}:
                self._of_scope[key].append(row)
        self._flows: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
        self._readers: dict[int, set[int]] = defaultdict(set)
        kinds, tensors = cost["transfer_kind"].values, cost["transfer_tensor"].values
        for row, kind, tensor, nbytes in zip(
            cost["transfer_layer"].values.tolist(), kinds, tensors.tolist(), cost["transfer_bytes"].values.tolist(),
            strict=True,
        ):  # fmt: skip
            self._flows[row].append((kind, tensor, nbytes))
            if kind == "input":
                self._readers[tensor].add(row)
        self._claimed: set[int] = set()

    def match(self, data: xr.Dataset) -> tuple[list[list[int]], list[str]]:
        """Return for each measured layer the rows that it stands for, and what told so."""
        count = data.sizes["layer"]
        taken: list[list[int]] = [[] for _ in range(count)]
        how = [""] * count
        names, sources = data["name"].values, data["sources"].values
        types = [str(kind) for kind in data["type"].values]
        for row in range(count):
            parts = [part for part in str(sources[row]).split(";") if part]
            self._claim(taken, how, row, [r for r in map(self._source, parts) if r >= 0], "sources")
        for row in range(count):
            if not taken[row]:
                self._claim(taken, how, row, self._named(str(names[row]), types[row]), "name")
        groups: dict[str, list[int]] = defaultdict(list)
        for row, scope in enumerate(data["scope"].values):
            known = self._scope(str(scope)) if not taken[row] else ""
            if known:
                groups[known].append(row)
        for scope, rows in groups.items():
            open_rows = [r for r in self._of_scope.get(scope, ()) if r not in self._claimed]
            if len(rows) == 1:
                product = _family(types[rows[0]]) in _PRODUCTS
                if not product or any(self._macs[r] > 0 for r in open_rows):  # else its product has another scope
                    self._claim(taken, how, rows[0], open_rows, "scope")
                continue
            by_family: dict[str, list[int]] = defaultdict(list)
            for cost_row in open_rows:
                by_family[self._kind(cost_row)].append(cost_row)
            for family, cost_rows in by_family.items():
                fits = [row for row in rows if _family(types[row]) == family]
                if len(fits) == 1:
                    self._claim(taken, how, fits[0], cost_rows, "scope")
                elif len(fits) == len(cost_rows):
                    for row, cost_row in zip(fits, cost_rows, strict=True):
                        self._claim(taken, how, row, [cost_row], "scope")
        return taken, how

    def _named(self, name: str, kind: str) -> list[int]:
        """Return the row of a name, with the activation after it where the measured node is fused with one.

        ONNX Runtime calls a product that it fused with its activation ``fused <name>``.
        """
        first = self._row.get(name, self._row.get(name.removeprefix("fused "), -1))
        rows = [first] if first >= 0 else []
        if rows and kind.startswith("Fused"):
            written = [tensor for how, tensor, _ in self._flows[first] if how == "output"]
            readers = {row for tensor in written for row in self._readers.get(tensor, ())}
            rows += [row for row in readers if len(readers) == 1 and _family(self._types[row]) == "activation"]
        return rows

    def _kind(self, cost_row: int) -> str:
        """Return the family of a cost row, by its type, else by what it computes."""
        family = _family(self._types[cost_row])
        return "matrix product" if self._macs[cost_row] > 0 and family not in _PRODUCTS else family

    def _scope(self, scope: str) -> str:
        """Return the scope as the cost table spells it: itself, one around it, or these without TensorFlow's count.

        TensorFlow appends ``_1`` to each part of a path that Keras has used before.
        """
        while scope:
            for spelled in (scope, "/".join(part.removesuffix("_1") for part in scope.split("/"))):
                if spelled in self._of_scope:
                    return spelled
            scope = scope.rpartition("/")[0]
        return ""

    def _source(self, name: str) -> int:
        """Return the row of a source node, or of the layer that a framework's own node belongs to by its path."""
        while name and name not in self._row:
            name = name.rpartition("/")[0]
        return self._row.get(name, -1)

    def _claim(self, taken: list[list[int]], how: list[str], row: int, rows: Sequence[int], by: str) -> None:
        fresh = [r for r in dict.fromkeys(rows) if r not in self._claimed]
        if fresh:
            self._claimed.update(fresh)
            taken[row].extend(fresh)
            how[row] = by

    def united(self, rows: Sequence[int]) -> dict[str, int]:
        """Return the cost of several rows that run as one."""
        ordered, inside = sorted(rows), set(rows)
        found = {}
        for name in ("macs", "flops"):
            values = [int(self._cost[name].values[r]) for r in ordered]
            found[name] = -1 if min(values) < 0 else sum(values)
        moved: dict[str, dict[int, int]] = {kind: {} for kind in _TRANSFERS}
        made: set[int] = set()
        for row in ordered:
            flows = self._flows[row]
            for kind, tensor, nbytes in flows:
                if kind == "parameter" or (kind == "input" and tensor not in made):
                    moved[kind][tensor] = max(moved[kind].get(tensor, 0), nbytes)
            for kind, tensor, nbytes in flows:
                readers = self._readers.get(tensor, set())
                if kind == "output" and (not readers or readers - inside):
                    moved[kind][tensor] = max(moved[kind].get(tensor, 0), nbytes)
                if kind == "output":
                    made.add(tensor)
        found.update({f"{kind}_bytes": sum(tensors.values()) for kind, tensors in moved.items()})
        found["parameters"] = sum(int(self._cost["parameters"].values[r]) for r in ordered)
        return found
