"""Who writes and who reads which tensor: what crosses a layer's boundary, and what lives at the same time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mlscope_lab.static.records import Transfer

__all__ = ["Flow", "Operator"]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator in the order of execution.

    Attributes
    ----------
    site
        Number of the layer that it belongs to.
    reads, writes
        Bytes that it moves from and to each tensor, by the tensor's number. A tensor in both is written in place.
    touches
        Tensors that it takes without moving anything (views); they stay alive for it.
    """

    site: int
    reads: Mapping[int, int] = field(default_factory=dict)
    writes: Mapping[int, int] = field(default_factory=dict)
    touches: frozenset[int] = frozenset()


class Flow:
    """The operators of one execution.

    Parameters
    ----------
    operators
        In the order of execution.
    sizes
        Bytes of each tensor, by its number.
    given
        Tensors that are there at the start.
    results
        Tensors that the caller gets.
    """

    def __init__(
        self, operators: Sequence[Operator], sizes: Sequence[int], given: Collection[int], results: Collection[int]
    ) -> None:
        self._operators = operators
        self._sizes = sizes
        self._given = given
        self._results = frozenset(results)
        self._readers: dict[int, list[tuple[int, int]]] = {}
        self._of_site: dict[int, list[int]] = {}
        for index, operator in enumerate(operators):
            self._of_site.setdefault(operator.site, []).append(index)
            for tensor in operator.reads:
                self._readers.setdefault(tensor, []).append((index, operator.site))

    def transfers(self, site: int) -> tuple[Transfer, ...]:
        """Return what crosses the boundary of a layer; what it makes and uses up itself does not."""
        inputs: dict[int, int] = {}
        outputs: dict[int, int] = {}
        made: set[int] = set()
        for index in self._of_site.get(site, ()):
            operator = self._operators[index]
            for tensor, nbytes in operator.reads.items():
                if tensor not in made:
                    inputs[tensor] = max(inputs.get(tensor, 0), nbytes)
            for tensor, nbytes in operator.writes.items():
                made.add(tensor)
                later = any(at > index and who != site for at, who in self._readers.get(tensor, ()))
                if later or tensor in self._results:
                    outputs[tensor] = max(outputs.get(tensor, 0), nbytes)
        return (
            *(Transfer(tensor=tensor, kind="input", nbytes=n) for tensor, n in inputs.items()),
            *(Transfer(tensor=tensor, kind="output", nbytes=n) for tensor, n in outputs.items()),
        )

    def live(self) -> list[int]:
        """Return for each operator the bytes of the tensors that live while it runs."""
        begins: dict[int, int] = dict.fromkeys(self._given, 0)
        last: dict[int, int] = {}
        for index, operator in enumerate(self._operators):
            for tensor in {*operator.reads, *operator.writes, *operator.touches}:
                begins.setdefault(tensor, index)
                last[tensor] = index
        last.update(dict.fromkeys(self._results, len(self._operators)))
        change = [0] * (len(self._operators) + 2)
        for tensor, begin in begins.items():
            if tensor in last:
                change[begin] += self._sizes[tensor]
                change[last[tensor] + 1] -= self._sizes[tensor]
        live, now = [], 0
        for index in range(len(self._operators)):
            now += change[index]
            live.append(now)
        return live
