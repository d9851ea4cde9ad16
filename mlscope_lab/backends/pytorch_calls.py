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
from mlscope_lab.backends.pytorch_values import shape_text, tensor_bytes, tensors_in
from mlscope_lab.trace.attribution import iteration_at, nest

__all__ = ["CallFinder", "Calls", "GraphCalls", "ModuleCalls", "Predicts"]

_INDEX = npt.NDArray[np.int32]
_GRAPH = MARK_PREFIX + "graph"
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


@dataclass(frozen=True, kw_only=True)
class _Node:
    """A call in an exported graph: its operator, the module it stood in, and what the export says of its outputs."""

    name: str
    scope: str
    output_shapes: str
    activation_bytes: int


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
        self._nodes = _nodes(module)
        self._scope = ModuleScopes(module, inner=False)
        self._learned: tuple[list[int], list[int], tuple[str, ...]] = [], [], ()

    def observe(self, run: Callable[[], Any], *, cuda: str | None = None) -> None:
        """Run once, untimed."""
        import torch

        self.attach()
        try:
            with torch.random.fork_rng(devices=[cuda] if cuda else []):
                run()
        finally:
            self.detach()

    def attach(self) -> None:
        """Mark the graph itself, for what is around it converts its arguments and results."""
        from torch._C._profiler import _RecordFunctionFast as Mark

        def enclose(_code: int, forward: Forward) -> Forward:
            def scope(*args: Any, **kwargs: Any) -> Any:
                with Mark(_GRAPH):
                    return forward(*args, **kwargs)

            return scope

        self._scope.attach(enclose)

    def detach(self) -> None:
        """Take the mark off; a second call does nothing."""
        self._scope.detach()

    def find(self, columns: TraceColumns, predicts: Predicts) -> Calls:
        """Return for each predict the graph (the whole predict where it never ran) and the calls within."""
        root = predicts.row.copy()
        graphs = np.flatnonzero(columns.named(lambda name: name == _GRAPH))
        predict = predicts.at(columns, graphs)
        root[predict[predict >= 0]] = graphs[predict >= 0]
        # the profiler wraps a script's functions in events that are no calls of the graph
        rows = np.flatnonzero(is_operator(columns) & ~columns.named(lambda name: name in _WRAPPERS))
        rows = rows[np.lexsort((-columns.duration_ns[rows], columns.start_ns[rows]))]
        predict = predicts.at(columns, rows)
        rows, predict = rows[predict >= 0], predict[predict >= 0]
        outer = nest(columns.start_ns[rows], columns.duration_ns[rows], columns.thread[rows]) < 0
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

    def learn(self, calls: Calls, input_shapes: tuple[str, ...]) -> None:
        """Keep what the untimed run called, and the shapes of its inputs."""
        codes = calls.code.tolist()
        self._learned = codes, calls.parent.tolist(), input_shapes
        # the n-th call is the n-th node only if all of them are
        if tuple(self._names[code] for code in codes if code >= 0) != tuple(node.name for node in self._nodes):
            self._nodes = ()

    def name_shapes(self, sites: CallSites) -> None:
        """Tell call sites the shapes seen in the untimed run, and what the graph says of its nodes."""
        codes, parents, shapes = self._learned
        nodes = iter(self._nodes)
        for site, code, text in zip(sites.place(codes, parents, self.describe), codes, shapes, strict=True):
            if code < 0:
                continue
            info, node = sites.infos[site], next(nodes, None)
            info.input_shapes = text
            if node is not None:
                info.scope, info.output_shapes, info.activation_bytes = (
                    node.scope, node.output_shapes, node.activation_bytes,
                )  # fmt: skip

    def unavailable(self) -> dict[str, str]:
        """Return what neither the profiler nor the graph tells of operators."""
        if self._nodes and all(node.output_shapes for node in self._nodes):
            return {}
        reason = "PyTorch's profiler records the inputs of operators, not their outputs"
        return {"shapes": reason, "activation_bytes": reason}


def _nodes(module: Any) -> tuple[_Node, ...]:
    """Return the operators of an exported graph in the order of their calls, () for what is no such graph."""
    import torch

    if not isinstance(module, torch.fx.GraphModule):
        return ()
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        stack = node.meta.get("nn_module_stack") or {}
        scope = next(reversed(stack.values()), ("",))[0] if isinstance(stack, dict) else ""
        shapes, size = _declared(node.meta.get("val"))
        name = node.target._schema.name
        found.append(_Node(name=name, scope=str(scope), output_shapes=shapes, activation_bytes=size))
    return tuple(found)


def _declared(value: Any) -> tuple[str, int]:
    """Return text and bytes of the tensors that an export declares, ("", -1) where a length depends on the inputs."""
    tensors = list(tensors_in(value))
    if not tensors or not all(isinstance(length, int) for tensor in tensors for length in tensor.shape):
        return "", -1
    return shape_text(value), tensor_bytes(value)
