"""The command cost: the static profile of a model on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson, BackendName, ModelName, symbols_from
from mlscope_lab.cli.output import Column, command, console, emit_json, heading, print_pairs, print_table, quiet_stdout

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = ["cost"]

_LAYER_KEYS = ("type", "scope", "input_shapes", "output_shapes", "macs", "flops", "parameters", "parameter_bytes",
               "input_bytes", "output_bytes")  # fmt: skip
_SCALES = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def cost_json(data: xr.Dataset) -> dict[str, Any]:
    """Return what ``mlscope cost --json`` prints; see the command's help."""
    totals = {str(n).removeprefix("total_"): _plain(v.values.item()) for n, v in data.data_vars.items() if not v.dims}
    keys = [key for key in (*_LAYER_KEYS, "arithmetic_intensity") if key in data]
    keys += [str(name) for name in data.data_vars if str(name).endswith("_flops") and data[name].dims]
    columns = {key: data[key].values.tolist() for key in keys}
    layers = [
        {"name": str(name), "counted": bool(counted), **{key: _plain(columns[key][row]) for key in keys}}
        for row, (name, counted) in enumerate(zip(data["layer"].values, data["counted"].values, strict=True))
    ]
    told = ("model", "source", "symbols", "peak_layer", "not_counted", "notes", "conventions")
    return {**{key: data.attrs[key] for key in told}, "totals": totals, "layers": layers}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)


def _amount(value: Any, unit: str = "") -> str:
    """Return a large number with three or more digits and a prefix; a polynomial as it is."""
    if not isinstance(value, int):
        return str(value)
    if value < 0:
        return "not counted"
    for scale, prefix in _SCALES:
        if value >= scale:
            return f"{value / scale:.4g} {prefix}{unit}".rstrip()
    return f"{value} {unit}".rstrip()


def _exact(value: Any) -> str:
    """Return a number in full, and short in brackets."""
    return f"{value:,} ({_amount(value)})" if isinstance(value, int) and value >= _SCALES[-1][0] else _amount(value)


def _print(out: Console, data: xr.Dataset, count: int) -> None:
    def total(name: str) -> Any:
        return data[name].values.item()

    heading(out, f"{data.attrs['model']}: static cost, nothing was run")
    kinds = [str(n) for n in data.data_vars if str(n).startswith("total_") and str(n).endswith("_flops")]
    kinds.remove("total_flops")
    parts = [f"{n.removeprefix('total_').removesuffix('_flops')} {_amount(total(n))}" for n in kinds if total(n) != 0]
    print_pairs(
        out,
        [
            ("multiply-adds", _exact(total("total_macs"))),
            ("FLOPs", _exact(total("total_flops"))),
            ("not in multiply-adds", ", ".join(parts)),
            ("parameters", f"{_exact(total('total_parameters'))}, {_amount(total('total_parameter_bytes'), 'B')}"),
            ("peak activation memory", _peak(data)),
            ("not counted", ", ".join(f"{n} x {name}" for name, n in data.attrs["not_counted"].items())),
            ("symbols", ", ".join(data.attrs["symbols"])),
        ],
    )
    rows = _largest(data, count)
    columns = [Column(title="layer", keep=9, shrink=True), Column(title="type", keep=7),
               Column(title="MACs", right=True, keep=8), Column(title="FLOPs", right=True, keep=8),
               Column(title="parameters", right=True, keep=6), Column(title="in+out", right=True, keep=5),
               Column(title="FLOP/byte", right=True, keep=6), Column(title="output", keep=4)]  # fmt: skip
    table = []
    for row in rows:
        one = {str(n): v.values[row] for n, v in data.data_vars.items() if v.dims == ("layer",)}
        one = {n: v.item() if hasattr(v, "item") else v for n, v in one.items()}
        intensity = one.get("arithmetic_intensity")
        table.append((
            data["layer"].values[row], one["type"], _amount(one["macs"]), _amount(one["flops"]),
            _amount(one["parameters"]), _amount(one["input_bytes"] + one["output_bytes"], "B"),
            "" if intensity is None or intensity != intensity else f"{intensity:.3g}", one["output_shapes"],
        ))  # fmt: skip
    if table:
        print_table(out, columns, table, title=f"Largest of {data.sizes['layer']} layers")
    for title in ("notes", "conventions"):
        if data.attrs[title]:
            heading(out, title.capitalize())
            for sentence in data.attrs[title]:
                out.print(f"  {sentence}")


def _peak(data: xr.Dataset) -> str:
    where = f", at {data.attrs['peak_layer']}" if data.attrs["peak_layer"] else ""
    return _amount(data["peak_activation_bytes"].values.item(), "B") + where


def _largest(data: xr.Dataset, count: int) -> list[int]:
    """Return the rows of most FLOPs; with open symbols, at 8 of each."""
    lengths = dict.fromkeys(data.attrs["symbols"], 8)
    flops = [v.evaluate(**lengths) if hasattr(v, "evaluate") else v for v in data["flops"].values.tolist()]
    return sorted(range(len(flops)), key=lambda row: -flops[row])[:count]


@command
def cost(
    model: ModelName,
    *,
    backend: BackendName = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples in each predict.")] = 1,
    symbolic: Annotated[
        bool, typer.Option("--symbolic", help="Leave the batch, and symbols without a length, as symbols.")
    ] = False,
    symbols: Annotated[
        list[str] | None,
        typer.Option("--symbol", metavar="NAME=LENGTH", help="Length of a symbolic dimension. Repeat for several."),
    ] = None,
    layers: Annotated[int, typer.Option("--layers", "-n", min=0, help="Layers to print, those of most FLOPs.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Count a model's operations, weights, bytes and peak activation memory by layer, without running it.

    --json: {"model", "source", "symbols", "peak_layer", "not_counted" {OPERATOR: COUNT}, "notes", "conventions",
    "totals" {"macs", "flops", "KIND_flops", "parameters", "parameter_bytes", "peak_activation_bytes"}, "layers":
    [{"name", "counted", "type", "scope", "input_shapes", "output_shapes", "macs", "flops", "parameters",
    "parameter_bytes", "input_bytes", "output_bytes", "arithmetic_intensity", "KIND_flops"}]}; with open symbols
    numbers are text such as "118013952*batch".
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.costing import cost as counted

    lengths = symbols_from(symbols)
    with quiet_stdout():
        data = counted(
            model, backend=backend, batch_size=None if symbolic else batch_size, symbols=lengths,
            settings=load_settings(),
        )  # fmt: skip
    if as_json:
        emit_json(cost_json(data))
    else:
        _print(console(), data, layers)
