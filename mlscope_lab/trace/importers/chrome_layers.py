"""Layers of a trace that tells them: the calls of modules that PyTorch's profiler records with ``with_stack=True``.

It names a module by its class and a number, such as ``nn.Module: Conv2d_3``, not by its qualified name; what encloses
what, and when, it tells exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace.records import LayerTable, LayerTrace

__all__ = ["module_layers"]

_INDEX = npt.NDArray[np.int32]
_MARK = "nn.Module: "
_MAX_CELLS = 1 << 22


class _Sites:
    """Call sites: one for each module that another call site calls, and each time that it does so."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, int], int] = {}
        self._calls: dict[tuple[Any, str], int] = {}
        self._uses: dict[str, int] = {}
        self.name: list[str] = []
        self.type: list[str] = []
        self.scope: list[str] = []
        self.parent: list[int] = []
        self.depth: list[int] = []

    def of(self, module: str, parent: int, caller: Any) -> int:
        """Return the site of a call from a site, counted among the calls of one `caller`."""
        count = self._calls[caller, module] = self._calls.get((caller, module), 0) + 1
        key = (parent, module, count)
        if key not in self._known:
            self._known[key] = len(self.name)
            use = self._uses[module] = self._uses.get(module, 0) + 1
            self.name.append(module if use == 1 else f"{module}#{use}")
            self.type.append(module.rpartition("_")[0] or module)
            self.scope.append(f"{self.scope[parent]}.{module}" if parent >= 0 else module)
            self.parent.append(parent)
            self.depth.append(self.depth[parent] + 1 if parent >= 0 else 0)
        return self._known[key]

    def table(self) -> LayerTable:
        n = len(self.name)
        nothing, unknown = ("",) * n, (-1,) * n
        return LayerTable(
            name=tuple(self.name), type=tuple(self.type), scope=tuple(self.scope), parent=tuple(self.parent),
            depth=tuple(self.depth), input_shapes=nothing, output_shapes=nothing, parameter_bytes=unknown,
            activation_bytes=unknown, sources=nothing,
        )  # fmt: skip


def module_layers(
    operators: dict[str, npt.NDArray[Any]], names: Sequence[str], steps: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> tuple[LayerTrace | None, _INDEX, str]:
    """Return the layers that a trace tells.

    Parameters
    ----------
    operators
        Columns: ``name_code``, ``parent_index``, ``iteration``, ``start_ns``, ``duration_ns``.
    names
        Texts of the name codes.
    steps
        Starts and durations of the steps.

    Returns
    -------
    layers
        None if the trace does not tell them.
    layer_index
        int32 (N,) layer of each operator, -1 for none.
    reason
        Why there are no layers, or "".
    """
    n = len(operators["start_ns"])
    nowhere = np.full(n, -1, dtype=np.int32)
    named = np.array([name.startswith(_MARK) for name in names] or [False], dtype=np.bool_)
    is_module = named[operators["name_code"]]
    if not is_module.any():
        return None, nowhere, "the trace holds no calls of modules (PyTorch records them with with_stack=True)"
    if not len(steps[0]):
        return None, nowhere, "the trace holds calls of modules, but marks no steps (ProfilerStep#N) to sort them by"
    parents, iterations = operators["parent_index"], operators["iteration"]
    is_module &= iterations >= 0
    holder = _holders(is_module, parents)
    rows = np.flatnonzero(is_module)
    rows = rows[np.lexsort((rows, -operators["duration_ns"][rows], operators["start_ns"][rows]))]
    callers = np.append(holder, np.int32(-1))[parents[rows]]
    sites, site = _Sites(), np.full(n + 1, -1, dtype=np.int32)
    codes = operators["name_code"][rows].tolist()
    for row, caller, code, step in zip(rows.tolist(), callers.tolist(), codes, iterations[rows].tolist(), strict=True):
        module = names[code][len(_MARK) :] or "module"
        site[row] = sites.of(module, int(site[caller]), caller if caller >= 0 else ("step", step))
        if len(sites.name) * len(steps[0]) > _MAX_CELLS:
            return None, nowhere, "the trace holds more calls of modules than a table of layers can have"
    shape = (len(steps[0]), len(sites.name))
    own = operators["duration_ns"].copy()
    inner = callers >= 0
    np.subtract.at(own, callers[inner], operators["duration_ns"][rows[inner]])
    where = iterations[rows], site[rows]

    def table(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        whole = np.full(shape, -1, dtype=np.int64)
        whole[where] = values[rows]
        return whole

    layers = LayerTrace(
        layers=sites.table(), start_ns=table(operators["start_ns"]), duration_ns=table(operators["duration_ns"]),
        exclusive_ns=table(np.maximum(own, 0)), iteration_start_ns=steps[0], iteration_duration_ns=steps[1],
    )  # fmt: skip
    return layers, site[holder], ""


def _holders(is_module: npt.NDArray[np.bool_], parents: _INDEX) -> _INDEX:
    """Return for each operator the innermost call of a module that it is, or is in; -1 for none."""
    n = len(parents)
    here = np.arange(n + 1, dtype=np.int32)
    looks = np.append(np.where(is_module, here[:-1], parents), np.int32(-1))
    while not np.array_equal(onward := looks[looks], looks):  # each round looks twice as far
        looks = onward
    return looks[:-1]
