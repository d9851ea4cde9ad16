"""Which events of a profile are the calls of layers: marks around the modules of an eager tree, a graph's operators."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_events import MARK_PREFIX, is_operator
from mlscope_lab.backends.pytorch_kineto import TraceColumns
from mlscope_lab.backends.pytorch_scopes import Forward, ModuleScopes
from mlscope_lab.backends.pytorch_sites import CallSites, SiteInfo
from mlscope_lab.trace.attribution import iteration_at, nest

__all__ = ["CallFinder", "Calls", "GraphCalls", "ModuleCalls", "Predicts"]

_INDEX = npt.NDArray[np.int32]
# the profiler wraps a script's functions in events of these names
_WRAPPERS = frozenset({"forward", "<forward op>"})


@dataclass(frozen=True, kw_only=True)
class Predicts:
    """Where the predicts are in a trace, in order: rows of their marks, start and duration, and their threads."""

    row: npt.NDArray[np.intp]
    start_ns: npt.NDArray[np.int64]
    duration_ns: npt.NDArray[np.int64]
    thread: npt.NDArray[np.int64]

    def covers(self, columns: TraceColumns, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Return whether each row began during a predict, on whichever thread."""
        return np.asarray(iteration_at(columns.start_ns[rows], self.start_ns, self.duration_ns) >= 0)

    def at(self, columns: TraceColumns, rows: npt.NDArray[np.intp]) -> _INDEX:
        """Return the predict during which, and on whose thread, each row began; -1 for none."""
        found = iteration_at(columns.start_ns[rows], self.start_ns, self.duration_ns)
        here = np.append(self.thread, -1)[found] == columns.thread[rows]
        return np.where(here, found, -1).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The calls of layers, by predict and start.

    Attributes
    ----------
    row
        Its row in the trace.
    predict
        Number of the predict, ascending.
    code
        Number of the module or operator, -1 for a graph itself.
    parent
        The enclosing call as a position among the calls, -1 for none.
    """

    row: npt.NDArray[np.intp]
    predict: _INDEX
    code: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]


class CallFinder(Protocol):
    """Finds the calls of layers in a trace, and tells what is known of them."""

    def observe(self, run: Callable[[], Any], *, cuda: str | None = None) -> None:
        """Run once, untimed."""

    def attach(self) -> None:
        """Put marks on, if there are any."""

    def detach(self) -> None:
        """Take them off; a second call does nothing."""

    def find(self, columns: TraceColumns, predicts: Predicts) -> Calls:
        """Return the calls of layers."""

    def describe(self, code: int) -> SiteInfo:
        """Return what is known of a module or operator."""

    def name_shapes(self, sites: CallSites) -> None:
        """Tell call sites what the untimed run saw."""

    def unavailable(self) -> dict[str, str]:
        """Return what these layers lack, after `find`."""


class ModuleCalls:
    """Marks of the profiler around each ``forward`` of an eager tree: module and operator times are of one clock.

    Parameters
    ----------
    module
        The root of the tree.
    nvtx
        Open an NVTX range for each call too, for tools that record the device from outside.
    """

    def __init__(self, module: Any, *, nvtx: bool = False) -> None:
        self._scopes = ModuleScopes(module)
        self._nvtx = _nvtx_ranges() if nvtx else None
        self._elsewhere: set[int] = set()

    def observe(self, run: Callable[[], Any], *, cuda: str | None = None) -> None:
        """Run once, untimed, to learn shapes."""
        self._scopes.observe(run, cuda=cuda)

    def attach(self) -> None:
        """Put the marks on."""
        from torch._C._profiler import _RecordFunctionFast as Mark

        ranges = self._nvtx

        def enclose(code: int, forward: Forward) -> Forward:
            mark = f"{MARK_PREFIX}{code}"
            label = self._scopes.describe(code).label

            def scope(*args: Any, **kwargs: Any) -> Any:
                with Mark(mark):  # one for each call, for a module may call itself
                    return forward(*args, **kwargs)

            if ranges is None:
                return scope
            push, pop = ranges

            def ranged(*args: Any, **kwargs: Any) -> Any:
                push(label)
                try:
                    return scope(*args, **kwargs)
                finally:
                    pop()

            return ranged

        self._scopes.attach(enclose)

    def detach(self) -> None:
        """Take the marks off; a second call does nothing."""
        self._scopes.detach()

    def find(self, columns: TraceColumns, predicts: Predicts) -> Calls:
        """Return the marked calls on the threads of the predicts."""
        code_of = np.array([_code(name) for name in (*columns.names, "")], dtype=np.int64)
        rows = np.flatnonzero((code_of >= 0)[columns.name])
        rows = rows[np.lexsort((-columns.duration_ns[rows], columns.start_ns[rows]))]
        predict = predicts.at(columns, rows)
        code = code_of[columns.name[rows]]
        self._elsewhere.update(code[predicts.covers(columns, rows) & (predict < 0)].tolist())
        kept = predict >= 0
        rows, predict, code = rows[kept], predict[kept], code[kept]
        parent = nest(columns.start_ns[rows], columns.duration_ns[rows], columns.thread[rows])
        return Calls(row=rows, predict=predict, code=code, parent=parent.astype(np.int64))

    def describe(self, code: int) -> SiteInfo:
        """Return what is known of a module."""
        return self._scopes.describe(code)

    def name_shapes(self, sites: CallSites) -> None:
        """Tell call sites the shapes seen in the untimed run."""
        self._scopes.name_shapes(sites)

    def unavailable(self) -> dict[str, str]:
        """Return the modules that ran in other threads."""
        return self._scopes.elsewhere(self._elsewhere)


def _code(name: str) -> int:
    number = name.removeprefix(MARK_PREFIX)
    return int(number) if number != name and number.isdecimal() else -1


def _nvtx_ranges() -> tuple[Callable[[str], Any], Callable[[], Any]] | None:
    """Return what opens and closes an NVTX range, None if nothing here does; both are cheap where no tool listens."""
    if importlib.util.find_spec("nvtx") is not None:
        import nvtx

        return nvtx.push_range, nvtx.pop_range
    import torch

    return (torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop) if torch.cuda.is_available() else None


class GraphCalls:
    """The operators that a scripted or exported graph calls; what those call in turn stays inside them.

    Parameters
    ----------
    module
        A ScriptModule or the module of an exported program.
    """

    def __init__(self, module: Any) -> None:
        self._root = getattr(module, "original_name", "") or type(module).__name__
        self._parameter_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
        self._names: list[str] = []
        self._codes: dict[str, int] = {}

    def observe(self, run: Callable[[], Any], *, cuda: str | None = None) -> None:
        """Run once, untimed."""
        import torch

        with torch.random.fork_rng(devices=[cuda] if cuda else []):
            run()

    def attach(self) -> None:
        """Do nothing: a graph needs no marks."""

    def detach(self) -> None:
        """Do nothing."""

    def find(self, columns: TraceColumns, predicts: Predicts) -> Calls:
        """Return for each predict the graph's own event (else the mark of the predict) and the calls within."""
        rows = np.flatnonzero(is_operator(columns))
        rows = rows[np.lexsort((-columns.duration_ns[rows], columns.start_ns[rows]))]
        predict = predicts.at(columns, rows)
        rows, predict = rows[predict >= 0], predict[predict >= 0]
        wraps = columns.named(lambda name: name in _WRAPPERS)[rows]
        root = predicts.row.copy()
        for row, number in zip(rows[wraps][::-1].tolist(), predict[wraps][::-1].tolist(), strict=True):
            root[number] = row  # of several the first
        rows, predict = rows[~wraps], predict[~wraps]
        outer = nest(columns.start_ns[rows], columns.duration_ns[rows], columns.thread[rows]) < 0
        # what comes before the graph's own event converts its arguments, what comes after its results
        start, first = columns.start_ns[rows], columns.start_ns[root][predict]
        within = outer & (start >= first) & (start < first + columns.duration_ns[root][predict])
        rows, predict = rows[within], predict[within]
        code_of = np.array([self._code(name) for name in columns.names], dtype=np.int64)
        count = len(root)
        every = np.concatenate([root, rows])
        of = np.concatenate([np.arange(count, dtype=np.int32), predict])
        order = np.argsort(of, kind="stable")  # the graph first
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        code = np.concatenate([np.full(count, -1, dtype=np.int64), code_of[columns.name[rows]]])
        parent = np.concatenate([np.full(count, -1, dtype=np.int64), place[:count][predict]])
        return Calls(row=every[order], predict=of[order], code=code[order], parent=parent[order])

    def _code(self, name: str) -> int:
        code = self._codes.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        return code

    def describe(self, code: int) -> SiteInfo:
        """Return what is known of an operator, or of the graph."""
        if code < 0:
            return SiteInfo(label=self._root, type=self._root, scope="", parameter_bytes=self._parameter_bytes)
        name = self._names[code]
        return SiteInfo(label=name, type=name.rpartition("::")[2], scope="", parameter_bytes=-1)

    def name_shapes(self, sites: CallSites) -> None:
        """Do nothing: the shapes of operators come with the operators."""

    def unavailable(self) -> dict[str, str]:
        """Return what the profiler does not tell of operators."""
        reason = "PyTorch's profiler records the inputs of operators, not their outputs"
        return {"shapes": reason, "activation_bytes": reason}
