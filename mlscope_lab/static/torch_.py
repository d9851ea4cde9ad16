"""The static profile of a torch module: one run on fake tensors, which have shapes and no memory.

The module is copied with every weight replaced by a fake one, so that nothing of the original is read or written, and
every operator that reaches PyTorch's dispatcher is counted at the call site of the module that called it. Rows are
labelled as the layers of a measured run are, by the same code.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.backends.pytorch_scopes import Forward, ModuleScopes
from mlscope_lab.backends.pytorch_sites import CallSites, SiteInfo
from mlscope_lab.backends.pytorch_values import dtype_name, tensors_in
from mlscope_lab.errors import InputError, UnsupportedModelError
from mlscope_lab.static.assembly import Counted, Lengths, tabulate
from mlscope_lab.static.flow import Flow, Operator
from mlscope_lab.static.records import CostTable, LayerCost, TensorShape, Transfer, Work
from mlscope_lab.static.torch_operators import TABLES, AtenCall, operator_name, work_of

__all__ = ["cost_of_torch"]


def cost_of_torch(
    module: Any,
    *,
    inputs: Sequence[TensorSpec],
    name: str = "",
    batch_size: int | None = None,
    symbols: Mapping[str, int] | None = None,
    usual: Mapping[str, int] | None = None,
) -> CostTable:
    """Count a torch module, scripted module or exported program in evaluation mode.

    Parameters
    ----------
    module
        `torch.nn.Module`, `torch.jit.ScriptModule` or `torch.export.ExportedProgram`; stays as it is.
    inputs
        What it is called with; arguments go by name if ``forward`` has all their names, else in order. A length may be
        a symbol; "batch" is that of `batch_size`.
    name
        For the record; default the class's.
    batch_size
        Length of "batch", None to leave it a symbol.
    symbols
        Lengths of other symbols; those not given stay symbols.
    usual
        Lengths to take of symbols in which the cost is no polynomial.

    Raises
    ------
    UnsupportedModelError
        If it cannot run without values: it branches on them, or an operator has no shape rule.
    """
    import torch

    fixed = dict(symbols or {})
    if batch_size is not None:
        fixed["batch"] = batch_size
    program = isinstance(module, torch.export.ExportedProgram)
    root = module.module() if program else getattr(module, "_orig_mod", module)
    label = name or (type(root).__name__ if not program else "exported program")
    return tabulate(lambda lengths: _Run(root, inputs, lengths, label).counted(), fixed, usual=usual)


@dataclass(kw_only=True)
class _Site:
    """What happened at one call site."""

    parent: int
    info: SiteInfo
    inputs: tuple[TensorShape, ...] = ()
    outputs: tuple[TensorShape, ...] = ()
    work: Work = field(default_factory=Work)
    counted: bool = True
    weights: dict[int, int] = field(default_factory=dict)  # bytes read of each


class _Run:
    """One run over fake tensors of known shapes."""

    def __init__(self, module: Any, inputs: Sequence[TensorSpec], lengths: Lengths, label: str) -> None:
        self._module = module
        self._inputs = inputs
        self._lengths = lengths
        self._label = label
        self._sites = CallSites()
        self._found: list[_Site] = []
        self._stack: list[tuple[int, dict[Any, int]]] = []
        self._storages: dict[int, int] = {}
        self._kept: list[Any] = []  # storages must live until the end: freed ones lend their address to others
        self._sizes: list[int] = []
        self._weights: dict[int, tuple[int, int]] = {}  # storage: elements and bytes
        self._constants: set[int] = set()
        self._operators: list[Operator] = []
        self._unknown: Counter[str] = Counter()
        self._scripted = False
        self._codes: dict[Any, int] = {}

    def counted(self) -> Counted:
        import torch
        from torch._subclasses.fake_tensor import (
            DataDependentOutputException,
            DynamicOutputShapeException,
            FakeTensorMode,
            UnsupportedOperatorException,
        )

        mode = FakeTensorMode(allow_non_fake_inputs=True)
        scripted = self._scripted = isinstance(self._module, torch.jit.ScriptModule)
        graph = isinstance(self._module, torch.fx.GraphModule) and not any(
            node.op == "call_module" and node.target != "_guards_fn" for node in self._module.graph.nodes
        )
        with ExitStack() as undo, torch.no_grad():
            module = self._module if scripted else _fake_copy(self._module, mode)
            if not graph:
                undo.callback(_restore_training, [(m, m.training) for m in module.modules()])
                module.eval()
            self._declare(module, mode)
            feeds = self._feeds(module, mode)
            given = frozenset(self._storage(t) for t in tensors_in(*feeds.values()))
            positional, keywords = _arguments(module, feeds)
            run = self._prepared(module, scripted=scripted, graph=graph, undo=undo)
            try:
                with mode, _counter(self):
                    result = run(*positional, **keywords)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                raise UnsupportedModelError(
                    f"{self._label}: {error.func} in {self._where()} needs values, and a static profile has none. "
                    "Measure it instead (mlscope profile), or export it to ONNX and count that"
                ) from error
            except UnsupportedOperatorException as error:
                raise UnsupportedModelError(
                    f"{self._label}: PyTorch has no shape rule for {error.func} in {self._where()}; register a fake "
                    "implementation with torch.library.register_fake"
                ) from error
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
                told = "; ".join(spec.describe() for spec in self._inputs)
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UnsupportedModelError(
                    f"{self._label} does not run on shapes alone ({told}), in {self._where()}: {first}"
                ) from error
        results = frozenset(self._storage(t) for t in tensors_in(result))
        return self._assemble(given, results)

    def _where(self) -> str:
        return self._found[self._stack[-1][0]].info.label if self._stack else "its arguments"

    def _declare(self, module: Any, mode: Any) -> None:
        for parameter in module.parameters():
            key = self._storage(parameter)
            self._weights[key] = parameter.numel(), parameter.numel() * parameter.element_size()
        for buffer in module.buffers():
            self._constants.add(self._storage(buffer))

    def _feeds(self, module: Any, mode: Any) -> dict[str, Any]:
        import torch

        feeds = {}
        homes = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())}
        home = homes.pop() if len(homes) == 1 else "cpu"
        with mode:
            for spec in self._inputs:
                if spec.shape is None:
                    raise InputError(f"Input '{spec.name}' has no shape; a static profile needs one")
                shape = [self._length(spec, axis) for axis in range(len(spec.shape))]
                dtype = getattr(torch, spec.dtype if spec.dtype != "any" else "float32", None)
                if not isinstance(dtype, torch.dtype):
                    raise UnsupportedModelError(f"Input '{spec.name}' is of type {spec.dtype}, which torch lacks")
                feeds[spec.name] = torch.empty(shape, dtype=dtype, device=home)
        return feeds

    def _length(self, spec: TensorSpec, axis: int) -> int:
        length = spec.shape[axis] if spec.shape is not None else None
        if isinstance(length, int):
            return length
        return self._lengths.of(length or ("batch" if axis == 0 else f"{spec.name}.{axis}"))

    def _storage(self, tensor: Any) -> int:
        """Return the number of a tensor's storage."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = len(self._sizes)
            self._kept.append(storage)
            self._sizes.append(storage.nbytes())
        return self._storages[key]

    def _alias(self, view: Any, args: Sequence[Any]) -> None:
        """Give the view of a weight its number: of a script's real weight it is a fake tensor of other memory."""
        for tensor in tensors_in(args):
            key = self._storage(tensor)
            if key in self._weights or key in self._constants:
                storage = view.untyped_storage()
                self._kept.append(storage)
                self._storages.setdefault(storage._cdata, key)

    def _prepared(self, module: Any, *, scripted: bool, graph: bool, undo: ExitStack) -> Callable[..., Any]:
        """Return what to call, with the bookkeeping of call sites around it."""
        called: Callable[..., Any] = module
        if scripted or graph:
            root = getattr(module, "original_name", "") or type(module).__name__
            info = SiteInfo(label=root, type=root, scope="", parameter_bytes=0)
            self._enter(-1, info)
            undo.callback(self._leave)
            return self._interpreted(module) if graph else called
        scopes = ModuleScopes(module)
        scopes.attach(lambda code, forward: self._enclosed(code, forward, scopes))
        undo.callback(scopes.detach)
        return called

    def _enclosed(self, code: int, forward: Forward, scopes: ModuleScopes) -> Forward:
        def scope(*args: Any, **kwargs: Any) -> Any:
            self._enter(code, scopes.describe(code))
            here = self._found[self._stack[-1][0]]
            here.inputs = _described(args, kwargs)
            try:
                result = forward(*args, **kwargs)
                here.outputs = _described(result)
                return result
            finally:
                self._leave()

        return scope

    def _enter(self, code: Any, info: SiteInfo) -> None:
        parent, counts = self._stack[-1] if self._stack else (-1, {})
        nth = counts[code] = counts.get(code, -1) + 1
        number = self._codes.setdefault(code, len(self._codes))
        site = self._sites.site(parent, number, nth, lambda _: copy.copy(info))
        if site == len(self._found):
            self._found.append(_Site(parent=parent, info=self._sites.infos[site]))
        self._stack.append((site, {}))

    def _leave(self) -> None:
        self._stack.pop()

    def _interpreted(self, module: Any) -> Callable[..., Any]:
        """Return a call that runs a graph node by node, each a call site named by its operator."""
        import torch

        run = self

        class Nodes(torch.fx.Interpreter):  # type: ignore[misc]
            def run_node(self, node: Any) -> Any:
                if node.op != "call_function":
                    return super().run_node(node)
                target = node.target
                name = f"{target.namespace}::{target.overloadpacket.__name__}" if hasattr(target, "namespace") else ""
                name = name or getattr(target, "__name__", str(target))
                info = SiteInfo(label=name, type=name.rpartition("::")[2], scope=_stacked(node), parameter_bytes=0)
                run._enter(name, info)
                try:
                    made = run._found[run._stack[-1][0]]
                    result = super().run_node(node)
                    made.inputs = _described(*self.fetch_args_kwargs_from_env(node))
                    made.outputs = _described(result)
                finally:
                    run._leave()
                return result

        def call(*args: Any, **kwargs: Any) -> Any:
            flat = list(args) + list(kwargs.values())
            return Nodes(module).run(*flat, enable_io_processing=False)

        return call

    def count(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take note of an operator that ran."""
        if self._scripted and self._stack:  # scripts take no hooks: their layers are the operators that they call
            name = f"{func.namespace}::{func.overloadpacket.__name__}"
            self._enter(name, SiteInfo(label=name, type=name.rpartition("::")[2], scope="", parameter_bytes=0))
            made = self._found[self._stack[-1][0]]
            made.inputs, made.outputs = _described(args, kwargs), _described(result)
            try:
                self._note(func, args, kwargs, result)
            finally:
                self._leave()
        else:
            self._note(func, args, kwargs, result)

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        site = self._found[self._stack[-1][0]] if self._stack else None
        if site is None:
            return
        call = AtenCall(func=func, arguments=_bound(func, args, kwargs), results=list(tensors_in(result)))
        work = work_of(call)
        if work is None:
            site.counted = False
            self._unknown[f"{func.namespace}::{operator_name(func)}"] += 1
        else:
            site.work += work
        written = _written(func, args, kwargs)
        reads: dict[int, int] = {}
        writes: dict[int, int] = {}
        touches: set[int] = set()
        for tensor in tensors_in(list(args), list(kwargs.values())):
            key = self._storage(tensor)
            if key in self._weights:
                taken = sum(map(_extent, call.results)) if operator_name(func) in TABLES else self._weights[key][1]
                site.weights[key] = max(site.weights.get(key, 0), taken)
            elif key not in self._constants:
                touches.add(key)
                if not func.is_view:
                    reads[key] = max(reads.get(key, 0), _extent(tensor))
        for tensor in tensors_in(result):
            if func.is_view:
                self._alias(tensor, list(args))
            key = self._storage(tensor)
            if (
                key not in self._weights
                and key not in self._constants
                and (key not in touches or id(tensor) in written)
            ):
                writes[key] = max(writes.get(key, 0), _extent(tensor))
        self._operators.append(
            Operator(site=self._stack[-1][0], reads=reads, writes=writes, touches=frozenset(touches))
        )

    def _assemble(self, given: frozenset[int], results: frozenset[int]) -> Counted:
        count = len(self._found)
        order = np.arange(count, dtype=np.int64)
        self._sites.add_iteration(0, count, order, order, order + 1)
        table = self._sites.build(executable_digest="").layers
        containers = {site.parent for site in self._found}
        own: list[int] = []  # the row that holds a site's own work
        row = 0
        for index in range(count):
            row += index in containers
            own.append(row)
            row += 1
        flow = Flow(self._operators, self._sizes, given, results)
        layers: list[LayerCost] = [
            LayerCost(name=table.name[i], type=table.type[i], scope=table.scope[i], parent=table.parent[i],
                      depth=table.depth[i])
            for i in range(len(table))
        ]  # fmt: skip
        for index, site in enumerate(self._found):
            at = own[index]
            if index in containers:
                container = layers[at - 1]
                layers[at - 1] = _replaced(container, inputs=site.inputs, outputs=site.outputs)
            sizes = [self._weights[key] for key in site.weights]
            shown = {} if index in containers else {"inputs": site.inputs, "outputs": site.outputs}
            layers[at] = _replaced(
                layers[at], counted=site.counted, macs=site.work.macs, flops=site.work.flops,
                parameters=sum(n for n, _ in sizes), parameter_bytes=sum(n for _, n in sizes),
                transfers=(*flow.transfers(index), *self._read_weights(site)), **shown,
            )  # fmt: skip
        read = {key for site in self._found for key in site.weights}
        idle = sum(n for key, (n, _) in self._weights.items() if key not in read)
        notes = (f"{idle:,} parameters are read by no operator of this run",) if idle else ()
        cost = CostTable(
            model=self._label,
            source="torch",
            layers=tuple(layers),
            parameters=sum(n for n, _ in self._weights.values()),
            parameter_bytes=sum(n for _, n in self._weights.values()),
            unknown=dict(self._unknown),
            notes=notes,
        )
        rows = [own[operator.site] for operator in self._operators]
        return Counted(table=cost, live=list(zip(rows, flow.live(), strict=True)))

    def _read_weights(self, site: _Site) -> Iterator[Transfer]:
        for key, nbytes in site.weights.items():
            yield Transfer(tensor=key, kind="parameter", nbytes=nbytes)


def _replaced(layer: LayerCost, **changes: Any) -> LayerCost:
    from dataclasses import replace

    return replace(layer, **changes)


def _counter(run: _Run) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.namespace != "prim":  # questions such as that for a tensor's device
                run.count(func, args, kwargs or {}, result)
            return result

    return Counting()


def _fake_copy(module: Any, mode: Any) -> Any:
    """Return a module of fake weights that shares no tensor with the original."""
    memo: dict[int, Any] = {}
    for tensor in _tensors_of(module):
        memo[id(tensor)] = mode.from_tensor(tensor)
    try:
        with warnings.catch_warnings():  # of torch about torch, where it copies graphs of its own
            warnings.simplefilter("ignore")
            return copy.deepcopy(module, memo)
    except Exception as error:  # a module may hold anything: locks, files, handles
        raise UnsupportedModelError(
            f"{type(module).__name__} cannot be copied ({error}); a static profile runs a copy of it without weights"
        ) from error


def _tensors_of(module: Any) -> Iterator[Any]:
    import torch

    for part in module.modules():
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(value, torch.Tensor):
                if torch.nn.parameter.is_lazy(value):
                    raise UnsupportedModelError(
                        f"{type(module).__name__} has lazy parameters without a shape yet; call it once first"
                    )
                yield value


def _restore_training(modes: Sequence[tuple[Any, bool]]) -> None:
    for part, training in modes:
        part.training = training


def _arguments(module: Any, feeds: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    from mlscope_lab.backends.pytorch_arguments import by_keyword

    if by_keyword(module, tuple(feeds)):
        return [], dict(feeds)
    return list(feeds.values()), {}


def _bound(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by their names in the operator's schema."""
    bound = {}
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            bound[argument.name] = args[index]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    """Return the ids of the tensors that an operator writes in place."""
    written: set[int] = set()
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written.update(id(tensor) for tensor in tensors_in(value))
    return written


def _extent(tensor: Any) -> int:
    """Return the bytes that reading a tensor moves: an expanded one has more elements than memory."""
    return min(int(tensor.numel() * tensor.element_size()), int(tensor.untyped_storage().nbytes()))


def _described(*values: Any) -> tuple[TensorShape, ...]:
    return tuple(TensorShape(dtype_name(t.dtype), tuple(int(n) for n in t.shape)) for t in tensors_in(*values))


def _stacked(node: Any) -> str:
    """Return the qualified name of the module that an exported node came from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", None))[0] if stack else ""
    return path if isinstance(path, str) else ""
