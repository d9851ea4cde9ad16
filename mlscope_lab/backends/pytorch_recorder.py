"""Watching a PyTorch module run, operator by operator: `Recording`.

A ``TorchDispatchMode`` sees every operator before its kernel. In inference mode those are the operators of the source
(``aten::conv2d``, ``aten::linear``, ``aten::batch_norm``), not the smaller ones that autograd would see, in eager
modules, TorchScript and exported programs alike.

Values are tensors at a time: an operator in place ends one and begins another in the same memory. Whoever reads that
memory through another tensor afterwards reads what was written, so that tensor becomes a new value, too (`Overlay`).
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_dispatch import LIFTS, Guard, Operator
from mlscope_lab.backends.pytorch_held import CONSTANT, Held, Memory, Read
from mlscope_lab.backends.pytorch_state import whole_memory
from mlscope_lab.backends.pytorch_tape import (
    Call,
    Form,
    Geometry,
    Overlay,
    Slot,
    Tape,
    address,
    exchanged,
    flat_tensors,
    is_strided,
    restrided,
    same,
    shape_of,
    shown,
)
from mlscope_lab.errors import SessionError
from mlscope_lab.trace.graph import Graph, Operation, Value

__all__ = ["Recording"]

Array = npt.NDArray[Any]
_Receive = Callable[[int, Array], "Array | None"]

_MARK: Final = "_mlscope_value"


class Recording:
    """One run of a module: its values as they appear, its operations, and the tape to run them again.

    Parameters
    ----------
    receive
        As for `mlscope_lab.backends.stepping.Stepper.run`.
    scope
        Returns the qualified name of the module whose ``forward`` is running, given the operator.
    constants
        Names of tensors that are the module's own, by their ids; None where it cannot tell them from others.
    device
        Where it runs.
    shared
        Operations whose results are views of memory that an earlier run wrote to later.

    Attributes
    ----------
    values, operations, inputs, tape, notes
        What was recorded so far.
    failure
        The error that ended the recording, if it was ours or that of `receive`.
    shared
        As the parameter, for the next run.
    """

    def __init__(
        self,
        receive: _Receive,
        scope: Callable[[Any], str],
        *,
        constants: Mapping[int, str] | None,
        device: str,
        shared: frozenset[int] = frozenset(),
    ) -> None:
        import torch

        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.inputs: dict[str, int] = {}
        self.notes: list[str] = []
        self.tape = Tape(device=device)
        self.failure: BaseException | None = None
        self.shared: set[int] = set()
        self._receive, self._scope, self._constants = receive, scope, constants
        self._device, self._was_shared = device, shared
        self._type = torch.Tensor
        self._as_normal = functools.partial(torch.inference_mode, False)
        self._token = object()
        self._operators: dict[Any, Operator] = {}
        self._labels: dict[str, int] = {}
        self._marked: list[weakref.ref[Any]] = []
        self._foreign: dict[int, Memory] = {}
        self._handed_over = False

    # -- the ends of the run ------------------------------------------------------------------------------------

    def feed(self, name: str, tensor: Any, argument: Any) -> None:
        """Take an input of the graph.

        Parameters
        ----------
        name
            The session's name of it.
        tensor
            What was fed, which is shown.
        argument
            The same as the module takes it, on its device and in its type; a replacement is written there.
        """
        index = self.inputs[name] = self._value(name, argument)
        self.values[index] = dataclasses.replace(self.values[index], dtype=Form.of(tensor).shown_dtype)
        self._mark(argument, index, Memory())
        if (other := self._seen(index, tensor)) is not None:
            argument.copy_(self.tape.forms[index].tensor(other, self._device))

    def value_of(self, leaf: Any) -> int:
        """Return the position of an output, which is shown now where no operation wrote it."""
        if not isinstance(leaf, self._type):
            import torch

            leaf = torch.from_numpy(np.array(leaf))
        read = Read()
        taken = self._tensor(leaf, read, known=True)
        return taken.value if isinstance(taken, Slot) else self._appear(leaf, "constant")

    def graph(self, outputs: Mapping[str, int]) -> Graph:
        """Return what ran so far."""
        return Graph(
            values=tuple(self.values), operations=tuple(self.operations), inputs={**self.inputs}, outputs={**outputs}
        )

    def end(self) -> None:
        """Take the marks off tensors that live on, such as a module's state."""
        for reference in self._marked:
            tensor = reference()
            if tensor is not None:
                tensor.__dict__.pop(_MARK, None)
        self._marked.clear()
        self.tape.before = {
            where: (memory.owner, memory.original)
            for where, memory in self._foreign.items()
            if memory.original is not None
        }

    # -- an operator --------------------------------------------------------------------------------------------

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], as_plain: Guard) -> Any:
        """Run an operator and record it; for `mlscope_lab.backends.pytorch_dispatch.dispatching`."""
        if self.failure is not None:  # the module went on after an error that was not its own
            return func(*args, **kwargs)
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = Operator.of(func)
        try:
            read = self._before(operator, args, kwargs)
        except BaseException as error:
            self.failure = error
            raise
        if operator.aliases:
            result = func(*args, **kwargs)
        else:
            with as_plain():
                result = func(*args, **kwargs)
        try:
            return self._after(operator, func, result, read)
        except BaseException as error:
            self.failure = error
            raise

    def _before(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Read:
        read = Read()
        if operator.idle:
            return read
        known = operator.type in LIFTS
        read.args = self._taken(args, read, known=known)
        if kwargs:
            read.kwargs = self._taken(kwargs, read, known=known)
        if operator.writes:
            read.written = operator.written(args, kwargs)
            for tensor in () if operator.renames else read.written:
                self._before_write(operator, tensor)
        if operator.random:
            import torch

            cuda = torch.cuda.get_rng_state(self._device) if self._device != "cpu" else None
            read.generator = (torch.get_rng_state(), cuda)
        return read

    def _before_write(self, operator: Operator, tensor: Any) -> None:
        """Keep the elements of a memory that is not the run's own before they change; refuse what would go astray."""
        held = self._held(tensor)
        if held is not None and held.memory.detached:
            raise SessionError(
                f"{operator.type} in {self._where()} writes in place to memory that a replaced value shared with "
                "others; run once without replacing anything, so that this is known"
            )
        own = held is not None and held.value != CONSTANT and held.memory.owner is None
        if own or not is_strided(tensor):
            return
        memory = self._foreign_memory(tensor)
        if memory.original is None:
            memory.original = whole_memory(tensor).clone()
            name = (self._constants or {}).get(id(tensor))
            self._note(
                f"The module writes to {f'its own {name!r}' if name else 'a tensor of its own'} in place; runs here "
                "start from what it held when it was first seen"
            )

    def _foreign_memory(self, tensor: Any) -> Memory:
        memory: Memory = self._foreign.setdefault(address(tensor), Memory(owner=tensor))
        return memory

    def _taken(self, value: Any, read: Read, *, known: bool) -> Any:
        """Return arguments with slots in the place of values."""
        if isinstance(value, self._type):
            read.tensors.append(value)
            return self._tensor(value, read, known=known)
        if isinstance(value, tuple):
            return tuple([self._taken(member, read, known=known) for member in value])
        if isinstance(value, list):
            return [self._taken(member, read, known=known) for member in value]
        if isinstance(value, dict):
            return {key: self._taken(member, read, known=known) for key, member in value.items()}
        return value

    def _tensor(self, tensor: Any, read: Read, *, known: bool) -> Any:
        held = self._held(tensor)
        if self._foreign and (held is None or (held.value == CONSTANT and held.memory.owner is None)):
            memory = self._foreign.get(address(tensor))
            if memory is not None and memory.writes:  # of the module's own memory, to which this run wrote
                held = self._mark(tensor, CONSTANT, memory, seen=0)
        if held is None and not known and self._is_unknown(tensor):
            index = self._appear(tensor, "unseen")
            self._note(
                f"'{self.operations[-1].name}' is a tensor that no operation made: a constant of the code, or computed "
                "where operations are not seen (numpy, another thread)"
            )
            read.values.append(index)
            return Slot(index)
        if held is not None and held.seen < len(held.memory.writes):
            self._refresh(tensor, held)
        if held is None or held.value == CONSTANT:
            read.constants[id(tensor)] = tensor.numel()
            return tensor
        read.values.append(held.value)
        return Slot(held.value)

    def _is_unknown(self, tensor: Any) -> bool:
        return self._constants is not None and tensor.dim() > 0 and id(tensor) not in self._constants

    def _refresh(self, tensor: Any, held: Held) -> None:
        """Make a tensor a new value where others wrote to its memory."""
        own = Geometry.of(tensor)
        pending = [(value, there) for value, there in held.memory.writes[held.seen :] if there.overlaps(own)]
        held.seen = len(held.memory.writes)
        if not pending:
            return
        last, there = pending[-1]
        if there == own and self.tape.forms[last].dtype == tensor.dtype:
            held.value = last
            return
        base: Any = Slot(held.value)
        if held.value == CONSTANT:
            base = held.memory.original.as_strided(own.size, own.stride, own.offset)
        (index,) = self._operation(
            Operator(type="aten::alias", kinds=("identity",)),
            Overlay(base, own, tuple((Slot(value), there) for value, there in pending)),
            inputs=[*([] if held.value == CONSTANT else [held.value]), *(value for value, _ in pending)],
            outputs=[tensor],
        )
        held.value = index
        self._show(index, tensor, own=True)

    def _after(self, operator: Operator, func: Any, result: Any, read: Read) -> Any:
        if operator.idle:
            return result
        leaves = [result] if isinstance(result, self._type) else flat_tensors(result)
        if not leaves and not read.written:
            if read.values and operator.reads_numbers:
                self._note(f"{self._where()} takes numbers out of values ({operator.type}); replays use the same ones")
            return result
        if operator.type in LIFTS:
            return self._lift(operator, func, result)
        if operator.type == "aten::resolve_neg" and read.values:  # the last that Tensor.numpy() asks for
            self._handed_over = True
            self._note(f"{self._where()} hands values to numpy; what comes back is an operation without inputs")
        before = {id(tensor) for tensor in read.tensors}
        results = [(i, leaf) for i, leaf in enumerate(leaves) if id(leaf) not in before]
        if not results and not read.written:  # an operator that had nothing to do
            return result
        ties = [self._tie(leaf, read) for _, leaf in results]
        if not read.values and not read.written and all(tie is not None for tie in ties):
            for _, leaf in results:  # a view of a constant is a constant
                self._mark(leaf, CONSTANT, Memory())
            return result
        if operator.clears:
            for leaf in leaves:
                leaf.zero_()
        places = [next(~i for i, given in enumerate(read.tensors) if given is tensor) for tensor in read.written]
        if operator.type == "aten::as_strided":
            func, read.args, read.kwargs = *restrided(read.args[0], read.tensors[0], leaves[0]), {}
        call = Call(
            func, read.args, read.kwargs, (*places, *(i for i, _ in results)), frozenset(~place for place in places),
            read.generator, operator.clears,
        )  # fmt: skip
        tensors = [*read.written, *(leaf for _, leaf in results)]
        count = sum(read.constants.values())
        indices = self._operation(operator, call, inputs=read.values, outputs=tensors, count=count)
        rewritten = len(read.written)
        for index, tensor in zip(indices[:rewritten], read.written, strict=True):
            self._rewrite(index, tensor, renames=operator.renames)
        for index, (_, leaf), tie in zip(indices[rewritten:], results, ties, strict=True):
            if tie is not None:
                tie.views.append(len(self.operations) - 1)
            self._mark(leaf, index, tie or Memory())
        instead: dict[int, Any] = {}
        known = len(self.operations) - 1 in self._was_shared
        for index, tensor, tie in zip(indices, tensors, [None] * rewritten + ties, strict=True):
            other = self._show(index, tensor, own=tie is None or known)
            if other is not None:
                instead[id(tensor)] = other
        return exchanged(result, instead) if instead else result

    def _rewrite(self, index: int, tensor: Any, *, renames: bool) -> None:
        """Let a tensor be a new value after an operator in place."""
        held = self._held(tensor)
        if held is None:
            held = self._mark(tensor, CONSTANT, self._foreign_memory(tensor))
        if not renames:
            if held.value == CONSTANT and held.memory.owner is None:
                held.memory = self._foreign_memory(tensor)
            self.shared.update(held.memory.views)
            held.memory.writes.append((index, Geometry.of(tensor)))
        held.value, held.seen = index, len(held.memory.writes)

    def _tie(self, leaf: Any, read: Read) -> Memory | None:
        """Return the memory that a result shares with what the operator was given, None for one of its own."""
        where = address(leaf)
        if where:
            for tensor in read.tensors:
                if address(tensor) == where:
                    held = self._held(tensor)
                    return self._foreign_memory(tensor) if held is None or held.value == CONSTANT else held.memory
        return None

    def _lift(self, operator: Operator, func: Any, tensor: Any) -> Any:
        """Take a tensor that the code made of its own numbers: a constant if it is one number, else a value."""
        if self._held(tensor) is not None:
            return tensor
        if not tensor.dim() and not self._handed_over:
            self._mark(tensor, CONSTANT, Memory())
            return tensor
        (index,) = self._operation(operator, Call(same, (tensor.clone(),), {}, (0,)), inputs=[], outputs=[tensor])
        self._mark(tensor, index, Memory())
        self._show(index, tensor, own=True)
        return tensor

    # -- what is recorded ---------------------------------------------------------------------------------------

    def _appear(self, tensor: Any, label: str) -> int:
        """Show a tensor that no operation wrote as the result of one without inputs."""
        call = Call(same, (tensor.detach().clone(),), {}, (0,))
        (index,) = self._operation(Operator(type=label, kinds=("other",)), call, inputs=[], outputs=[tensor])
        self._mark(tensor, index, Memory())
        self._show(index, tensor, own=False)
        return index

    def _operation(
        self, operator: Operator, call: Call | Overlay, *, inputs: Sequence[int], outputs: Sequence[Any], count: int = 0
    ) -> tuple[int, ...]:
        scope = self._scope(getattr(call, "func", None))
        name = f"{scope}/{operator.label}" if scope else operator.label
        number = self._labels[name] = self._labels.get(name, 0) + 1
        if number > 1:
            name = f"{name}#{number}"
        indices = tuple([self._value(f"{name}:{i}", tensor) for i, tensor in enumerate(outputs)])
        self.operations.append(
            Operation(
                name=name,
                type=operator.type,
                kinds=operator.kinds,
                inputs=tuple(inputs),
                outputs=indices,
                scope=scope,
                parameter_count=count,
            )
        )
        self.tape.calls.append(call)
        self.tape.outputs.append(indices)
        return indices

    def _value(self, name: str, tensor: Any) -> int:
        form = Form.of(tensor)
        self.tape.forms.append(form)
        self.values.append(
            Value(name=name, shape=shape_of(tensor), dtype=form.shown_dtype, quantization=form.quantization)
        )
        return len(self.values) - 1

    def _show(self, index: int, tensor: Any, *, own: bool) -> Any:
        """Show a value. What `receive` returns goes into its memory, or is returned where others share that."""
        other = self._seen(index, tensor)
        if other is None:
            return None
        form = self.tape.forms[index]
        if own and 0 not in form.stride and not form.reason:
            tensor.copy_(form.tensor(other, self._device))
            return None
        if np.array_equal(other, shown(tensor), equal_nan=other.dtype.kind in "fc"):
            return None
        with self._as_normal():  # as PyTorch asks of a view of a tensor that was made outside inference mode
            instead = form.tensor(other, self._device)
        self._mark(instead, index, Memory(detached=True))
        return instead

    def _seen(self, index: int, tensor: Any) -> Array | None:
        array = shown(tensor)
        array.flags.writeable = False  # it may be the memory that the module goes on with
        return self._receive(index, array)

    def _held(self, tensor: Any) -> Held | None:
        held: Held | None = tensor.__dict__.get(_MARK)
        return held if held is not None and held.token is self._token else None

    def _mark(self, tensor: Any, value: int, memory: Memory, seen: int | None = None) -> Held:
        held = Held(self._token, value, memory, len(memory.writes) if seen is None else seen)
        tensor.__dict__[_MARK] = held
        self._marked.append(weakref.ref(tensor))
        return held

    def _where(self) -> str:
        scope = self._scope(None)
        return f"'{scope}'" if scope else "The module"

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
