"""From costs at given lengths to one table: sums, the peak, and polynomials where lengths were left open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static.records import KINDS, CostTable, LayerCost, TensorShape
from mlscope_lab.static.symbolic import Expression, NotPolynomialError, Quantity, fit, largest

__all__ = ["Counted", "Lengths", "tabulate"]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A model counted at given lengths.

    Attributes
    ----------
    table
        All its quantities are int; peak excluded, which comes from `live`.
    live
        For each operator in the order of execution its row and the bytes of the tensors that live while it runs.
    """

    table: CostTable
    live: Sequence[tuple[int, int]]


class Lengths:
    """Lengths of symbolic dimensions, and which ones were asked for."""

    def __init__(self, given: Mapping[str, int]) -> None:
        self._given = given
        self.asked: dict[str, None] = {}

    def of(self, name: str) -> int:
        """Return the length of a symbol, 1 where none was given."""
        self.asked.setdefault(name)
        return self._given.get(name, 1)


def tabulate(
    count: Callable[[Lengths], Counted],
    fixed: Mapping[str, int],
    *,
    usual: Mapping[str, int] | None = None,
) -> CostTable:
    """Return the table of a model, with polynomials in the symbols that have no length.

    Parameters
    ----------
    count
        Counts the model at some lengths; which symbols there are shows when it asks for them.
    fixed
        Lengths that were given.
    usual
        Lengths to take, with a note, of symbols in which the cost is no polynomial.

    Raises
    ------
    UnsupportedModelError
        If layers or quantities depend on a length in a way that is no polynomial.
    """
    lengths = Lengths(fixed)
    here = count(lengths)
    symbols = [name for name in lengths.asked if name not in fixed]
    if not symbols:
        return _closed(here)
    problem: UnsupportedModelError | None = None
    for least in (1, 2):
        try:
            table = _fitted(count, fixed, symbols, least)
        except UnsupportedModelError as error:
            problem = problem or error
            continue
        told = f"another graph runs where {' or '.join(symbols)} is 1; the expressions hold from 2 on"
        return table if least == 1 else replace(table, notes=(*table.notes, told))
    taken = {name: usual[name] for name in symbols if name in usual} if usual else {}
    if not taken:
        raise problem or NotPolynomialError("The cost is no polynomial")
    table = tabulate(count, {**fixed, **taken})
    told = ", ".join(f"{name} = {length}" for name, length in taken.items())
    return replace(table, notes=(*table.notes, f"{told}: usual lengths, for the cost is no polynomial in them"))


def _fitted(
    count: Callable[[Lengths], Counted], fixed: Mapping[str, int], symbols: Sequence[str], least: int
) -> CostTable:
    """Return the table with polynomials in the symbols, from lengths of at least `least`."""
    start = dict.fromkeys(symbols, least)
    here = count(Lengths({**fixed, **start}))
    signature = _signature(here)

    def sample(at: Mapping[str, int]) -> list[int]:
        found = count(Lengths({**fixed, **at}))
        if _signature(found) != signature:
            raise NotPolynomialError(
                f"The layers that run depend on {', '.join(symbols)}; give lengths: symbols={{'{symbols[-1]}': 8}}, or "
                "batch_size for the batch"
            )
        return list(_flat(found))

    values = iter(fit(sample, symbols, first=start))
    return replace(_filled(here, values), symbols=tuple(symbols))


def _closed(counted: Counted) -> CostTable:
    row, peak = max(counted.live, key=lambda step: step[1], default=(-1, 0))
    return replace(counted.table, peak_activation_bytes=peak, peak_layer=row)


def _signature(counted: Counted) -> tuple[object, ...]:
    layers = tuple(
        (
            layer.name, layer.type, layer.parent, layer.counted, tuple((t.tensor, t.kind) for t in layer.transfers),
            tuple((t.dtype, None if t.shape is None else len(t.shape)) for t in (*layer.inputs, *layer.outputs)),
        )
        for layer in counted.table.layers
    )  # fmt: skip
    return layers, tuple(row for row, _ in counted.live)


def _number(value: Quantity) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value} is no number")
    return value


def _flat(counted: Counted) -> Iterator[int]:
    """Yield every quantity; `_filled` takes them in the same order."""
    table = counted.table
    for layer in table.layers:
        yield _number(layer.macs)
        yield from (_number(layer.flops.get(kind, 0)) for kind in KINDS)
        yield _number(layer.parameters)
        yield _number(layer.parameter_bytes)
        yield from (_number(t.nbytes) for t in layer.transfers)
        for tensor in (*layer.inputs, *layer.outputs):
            yield from map(_number, tensor.shape or ())
    yield _number(table.parameters)
    yield _number(table.parameter_bytes)
    yield from (nbytes for _, nbytes in counted.live)


def _filled(counted: Counted, values: Iterator[int | Expression]) -> CostTable:
    layers: list[LayerCost] = []
    for layer in counted.table.layers:
        macs = next(values)
        kinds = [(kind, next(values)) for kind in KINDS]
        parameters, parameter_bytes = next(values), next(values)
        transfers = tuple(replace(t, nbytes=next(values)) for t in layer.transfers)
        inputs, outputs = (
            tuple(t if t.shape is None else TensorShape(t.dtype, tuple(next(values) for _ in t.shape)) for t in tensors)
            for tensors in (layer.inputs, layer.outputs)
        )
        layers.append(
            replace(
                layer, macs=macs, flops={kind: n for kind, n in kinds if n != 0}, parameters=parameters,
                parameter_bytes=parameter_bytes, transfers=transfers, inputs=inputs, outputs=outputs,
            )
        )  # fmt: skip
    parameters, parameter_bytes = next(values), next(values)
    return replace(
        counted.table, layers=tuple(layers), parameters=parameters, parameter_bytes=parameter_bytes,
        peak_activation_bytes=largest(list(values)),
    )  # fmt: skip
