"""Running a PyTorch module operator by operator: `PyTorchStepper`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy.typing as npt

from mlscope_lab.backends.pytorch_dispatch import dispatching
from mlscope_lab.backends.pytorch_recorder import Recording
from mlscope_lab.backends.pytorch_scopes import Forward, ModuleScopes
from mlscope_lab.backends.pytorch_state import StartingState, own_attributes
from mlscope_lab.backends.stepping import Receive, Stepper
from mlscope_lab.trace.graph import Graph

__all__ = ["Program", "PyTorchStepper"]

Array = npt.NDArray[Any]
_STATEFUL = "The module keeps state from call to call"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a session runs, as far as a stepper must know.

    Attributes
    ----------
    module
        What is called.
    mode
        The session's execution mode: "eager", "graph" (TorchScript) or "exported".
    device
        Where it runs.
    inputs
        Names of the inputs, in order.
    tensors
        Checks feeds and makes tensors of them that nobody else owns.
    placed
        Moves these to the device and casts them to what the module computes in.
    call
        Runs the module, or a copy of it, on the result.
    named
        Returns the tensors and numbers in what the module returned, by the names of the outputs.
    """

    module: Any
    mode: str
    device: str
    inputs: tuple[str, ...]
    tensors: Callable[[Mapping[str, Array]], list[Any]]
    placed: Callable[[list[Any]], list[Any]]
    call: Callable[[Any, list[Any]], Any]
    named: Callable[[Any], dict[str, Any]]


class PyTorchStepper(Stepper):
    """A session's module with every operator watched; the kernels, and so the numbers, are those of a plain run.

    An operator that returns what it was given (``dropout`` in evaluation, ``contiguous`` of a contiguous tensor) is no
    operation. An operator in place writes a new value. A replaced value that shares its memory with others takes a
    memory of its own, unless an earlier run showed that this memory is written to later.

    Every run starts from the state in which the stepper found the module (recurrent states, caches, buffers), and
    leaves module and random generators as they were, so that all runs of one stepper are alike.
    """

    method = "a dispatch mode around the module, which sees each operator of inference mode"
    can_replay = True
    can_replace = True

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._start = StartingState(program.module)
        self._own: dict[int, str] | None = None  # the same in every run, for all start from one state
        self._recording: Recording | None = None
        self.notes: list[str] = []
        if program.mode == "graph":
            self.notes.append("TorchScript does not tell which module an operator belongs to")

    def _run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph:
        import torch

        program, before = self._program, self._recording
        tensors = program.tensors(feeds)
        scopes, recording = _Scopes(program), None
        try:
            with (
                self._start.applied() as module,
                scopes.attached(),
                torch.random.fork_rng(devices=[program.device] if program.device != "cpu" else []),
            ):
                if self._own is None and program.mode == "eager":
                    self._own = _own_tensors(module)
                recording = self._recording = Recording(
                    receive,
                    scopes.of,
                    constants=self._own,
                    device=program.device,
                    shared=frozenset(before.shared) if before is not None else frozenset(),
                )
                outputs = self._watched(module, recording, tensors)
        except BaseException:
            if recording is not None and recording.failure is not None:  # as it was, not as an interpreter wrapped it
                raise recording.failure from None
            raise
        finally:
            if recording is not None:
                self._end(recording, scopes.notes)
        return recording.graph(outputs)

    def _end(self, recording: Recording, notes: Sequence[str]) -> None:
        recording.end()
        self._start.wrote(recording.tape.before.values())
        changed = self._start.changed
        if changed and not any(note.startswith(_STATEFUL) for note in self.notes):
            self.notes.append(f"{_STATEFUL} ({', '.join(changed[:5])}); every run starts from the one that was found")
        self.notes += [note for note in (*recording.notes, *notes) if note not in self.notes]

    def _watched(self, module: Any, recording: Recording, tensors: list[Any]) -> dict[str, int]:
        import torch

        program = self._program
        with torch.inference_mode():
            arguments = program.placed(tensors)
            for name, tensor, argument in zip(program.inputs, tensors, arguments, strict=True):
                recording.feed(name, tensor, argument)
                if argument.dtype != tensor.dtype:
                    recording.notes.append(
                        f"Input '{name}' is shown as it was fed; the module reads it as {argument.dtype}"
                    )
            with dispatching(recording.dispatch):
                result = program.call(module, arguments)
            if recording.failure is not None:  # the module caught it
                raise recording.failure
            return {name: recording.value_of(leaf) for name, leaf in program.named(result).items()}

    def _partial(self) -> Graph | None:
        return None if self._recording is None else self._recording.graph({})

    def _replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        if self._recording is None:
            return {}
        return self._recording.tape.replay(operations, given, wanted)

    def _close(self) -> None:
        self._recording = None
        del self._start


class _Scopes:
    """Tells which module an operator belongs to.

    In an eager tree it is the innermost one whose ``forward`` runs. An exported graph calls no modules; there the node
    that calls the operator tells, and nodes run in order.
    """

    def __init__(self, program: Program) -> None:
        self.notes: list[str] = []
        self._eager = ModuleScopes(program.module) if program.mode == "eager" else None
        self._stack = [""]
        self._nodes = list(_nodes(program.module)) if program.mode == "exported" else []
        self._next = 0

    def of(self, func: Any) -> str:
        """Return the qualified name, given the operator; None asks for the present one."""
        if not self._nodes:
            return self._stack[-1]
        for position in range(self._next, len(self._nodes)) if func is not None else ():
            target, scope = self._nodes[position]
            if target is func:
                self._next = position + 1
                self._stack[-1] = scope
                return scope
        return self._stack[-1]

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Watch the modules' ``forward`` meanwhile."""
        if self._eager is None:
            yield
            return
        names = [name for name, _ in self._eager.modules]
        stack, notes, home = self._stack, self.notes, get_ident()

        def enclose(code: int, forward: Forward) -> Forward:
            name = names[code]

            def scope(*args: Any, **kwargs: Any) -> Any:
                if get_ident() != home:
                    note = f"'{name}' runs in another thread, where its operators are not seen"
                    if note not in notes:
                        notes.append(note)
                    return forward(*args, **kwargs)
                stack.append(name)
                try:
                    return forward(*args, **kwargs)
                finally:
                    stack.pop()

            return scope

        self._eager.attach(enclose)
        try:
            yield
        finally:
            self._eager.detach()


def _nodes(module: Any) -> Iterator[tuple[Any, str]]:
    """Walk the operators of an exported graph with the module that each comes from."""
    for node in module.graph.nodes:
        if node.op == "call_function":
            stack = node.meta.get("nn_module_stack") or {}
            yield node.target, (list(stack.values())[-1][0] if stack else "")


def _own_tensors(module: Any) -> dict[int, str] | None:
    """Return the names of the tensors that modules of a tree hold, parameters or not, by their ids.

    None for a tree with a TorchScript module in it, which keeps some to itself.
    """
    import torch

    found: dict[int, str] = {}
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return None
    for prefix, part in module.named_modules():
        for name, member in own_attributes(part).items():
            if isinstance(member, dict):
                pairs = list(member.items())
            else:
                pairs = [(name, tensor) for tensor in (member if isinstance(member, list | tuple) else (member,))]
            for key, tensor in pairs:
                if isinstance(tensor, torch.Tensor):
                    own = key if name in {"_buffers", "_parameters"} else name
                    found.setdefault(id(tensor), f"{prefix}.{own}" if prefix else own)
    return found
