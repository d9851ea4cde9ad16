"""What a PyTorch module did, as a list of calls that can be made again on other values; no activation is kept.

A call holds the operator and its arguments: a `Slot` where a value stood, constants by reference, all else as it was.
What an operator wrote in place is the result of the same operator on a copy, so that a call made again changes nothing
that it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_values import ALIGNMENT, aligned, dtype_name, to_tensor
from mlscope_lab.errors import SessionError

__all__ = [
    "Call",
    "Form",
    "Geometry",
    "Overlay",
    "Slot",
    "Tape",
    "address",
    "exchanged",
    "flat_tensors",
    "is_strided",
    "restrided",
    "same",
    "shape_of",
    "shown",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in a call's arguments for the value of this position."""

    value: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which elements of its memory a tensor is."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Any) -> Geometry:
        """Return that of a strided tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.storage_offset())

    @property
    def end(self) -> int:
        """First element of the memory after the tensor's last one."""
        if 0 in self.size:
            return self.offset
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))

    @property
    def narrow(self) -> tuple[slice, ...]:
        """Slices of the tensor that leave out what is the same element again."""
        return tuple(slice(0, 1) if step == 0 else slice(None) for step in self.stride)

    def overlaps(self, other: Geometry) -> bool:
        """Tell whether two may share elements; True where their ranges meet and the answer would cost more."""
        return self.offset < other.end and other.offset < self.end

    def moved(self, by: int) -> Geometry:
        """Return the same elements of a memory that begins elsewhere."""
        return Geometry(self.size, self.stride, self.offset - by)


@dataclass(frozen=True, slots=True)
class Form:
    """How a value lies in memory and what its elements are, so that an array can take its place.

    Attributes
    ----------
    dtype
        The torch element type.
    stride
        As in the run; operators such as ``view`` ask for it.
    quantization
        (scale, zero point) of a tensor quantised as a whole.
    reason
        Why no tensor can be made from an array, "" where one can.
    skew
        Bytes from the alignment of memory to its first element, which decides how kernels round.
    """

    dtype: Any
    stride: tuple[int, ...]
    quantization: tuple[float, int] | None = None
    reason: str = ""
    skew: int = 0

    @classmethod
    def of(cls, tensor: Any) -> Form:
        """Return the form of a tensor."""
        import torch

        if tensor.is_nested:
            return cls(tensor.dtype, (), None, "a nested tensor")
        if tensor.layout != torch.strided:
            return cls(tensor.dtype, (), None, f"a tensor of layout {tensor.layout}")
        if not tensor.is_quantized:
            skew = tensor.data_ptr() % ALIGNMENT if tensor.device.type == "cpu" else 0
            return cls(tensor.dtype, tensor.stride(), skew=skew)
        if tensor.qscheme() == torch.per_tensor_affine:
            return cls(tensor.dtype, tensor.stride(), (tensor.q_scale(), tensor.q_zero_point()))
        return cls(tensor.dtype, tensor.stride(), None, "a tensor quantised by channel")

    @property
    def shown_dtype(self) -> str:
        """Name of numpy's type in which it is shown; "bfloat16" for bfloat16, which is shown as float32."""
        import torch

        if self.dtype.is_floating_point:
            exact = self.dtype in {torch.float16, torch.float32, torch.float64, torch.bfloat16}
            return dtype_name(self.dtype) if exact else "float32"
        quantized = {torch.quint8: "uint8", torch.qint8: "int8", torch.qint32: "int32"}
        if self.dtype in quantized:
            return quantized[self.dtype] if self.quantization is not None else "float32"
        return dtype_name(self.dtype)

    def tensor(self, array: Array, device: str) -> Any:
        """Return a tensor of this form with a copy of an array's elements."""
        import torch

        if self.reason:
            raise SessionError(f"PyTorch: {self.reason} is shown, but cannot be given back")
        if self.quantization is not None:
            integers = to_tensor(np.array(array)).to(device)
            tensor = torch._make_per_tensor_quantized_tensor(integers, *self.quantization)
            if tensor.stride() == self.stride or tensor.numel() < 2:
                return tensor
            scale, zero = self.quantization
            end = Geometry(tuple(tensor.shape), self.stride, 0).end
            laid = torch._empty_affine_quantized((end,), scale=scale, zero_point=zero, dtype=self.dtype, device=device)
            return laid.as_strided(tensor.shape, self.stride).copy_(tensor)
        tensor = to_tensor(aligned(array, self.skew)).to(device)
        if tensor.dtype == self.dtype and (tensor.stride() == self.stride or tensor.numel() < 2):
            return tensor
        offset = self.skew // self.dtype.itemsize
        geometry = Geometry(tuple(tensor.shape), self.stride, offset)
        memory = torch.empty(geometry.end, dtype=self.dtype, device=device)
        view = memory.as_strided(geometry.size, geometry.stride, geometry.offset)
        narrow = geometry.narrow
        view[narrow].copy_(tensor[narrow])  # what is one element in memory cannot be written to twice
        return view


def shown(tensor: Any) -> Array:
    """Return a tensor's elements as an array of its own type, of the same memory where numpy can.

    Types that numpy lacks (bfloat16, 8-bit floats) become float32; a tensor quantised as a whole its integers, one
    quantised by channel its real values; sparse ones dense; nested ones padded by zeros. What is on another device is
    copied, after it is computed.
    """
    import torch

    if tensor.is_nested:
        tensor = torch.nested.to_padded_tensor(tensor, 0.0)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr() if tensor.qscheme() == torch.per_tensor_affine else tensor.dequantize()
    if tensor.is_floating_point() and tensor.dtype not in {torch.float32, torch.float64, torch.float16}:
        tensor = tensor.float()
    array: Array = tensor.numpy(force=True)
    return array


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator.

    Attributes
    ----------
    func
        The operator, an overload of it.
    args, kwargs
        Its arguments, with a `Slot` for each value.
    results
        What is a value of the call, in the order of the operation's outputs: the position among the tensors of the
        result, or ``~position`` among the tensors of the arguments, where the call wrote to one.
    writes
        Positions among the tensors of the arguments that are written to, and so are copied first.
    generator
        State of the random generators before the call (CPU, device), where it draws from one.
    clears
        The result is memory as it came, and is cleared.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[int, ...]
    writes: frozenset[int] = frozenset()
    generator: tuple[Any, Any] | None = None
    clears: bool = False


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a tensor holds after others wrote to the memory that it shares with them.

    Attributes
    ----------
    base
        What it held before: a `Slot`, or a constant.
    geometry
        Its elements.
    writes
        What was written since, in order, and to which elements.
    """

    base: Any
    geometry: Geometry
    writes: tuple[tuple[Slot, Geometry], ...]

    def compute(self, base: Any, written: Sequence[Any]) -> Any:
        """Return the tensor, in a memory of its own."""
        import torch

        parts = [self.geometry, *(geometry for _, geometry in self.writes)]
        start, end = min(g.offset for g in parts), max(g.end for g in parts)
        memory = torch.empty(end - start, dtype=base.dtype, device=base.device)
        own = self.geometry.moved(start)
        view = memory.as_strided(own.size, own.stride, own.offset)
        view[own.narrow].copy_(base[own.narrow])
        for tensor, (_, geometry) in zip(written, self.writes, strict=True):
            there = geometry.moved(start)
            if tensor.dtype != base.dtype:
                raise SessionError("PyTorch: memory seen as two element types cannot be computed again")
            memory.as_strided(there.size, there.stride, there.offset).copy_(tensor)
        return view


def flat_tensors(value: Any, found: list[Any] | None = None) -> list[Any]:
    """Return the tensors in arguments or results, in order."""
    import torch

    found = [] if found is None else found
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for member in value:
            flat_tensors(member, found)
    elif isinstance(value, dict):
        for member in value.values():
            flat_tensors(member, found)
    return found


@dataclass
class Tape:
    """The calls of one run, by position of their operation, and the forms of its values."""

    device: str = "cpu"
    calls: list[Call | Overlay] = field(default_factory=list)
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    before: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        """Make some calls again; the arguments are those of `mlscope_lab.backends.stepping.Stepper.replay`."""
        import torch

        last: dict[int, int] = {}
        for position in operations:
            for slot in _slots(self.calls[position]):
                last[slot] = position
        kept, tensors, memories = set(wanted), dict[int, Any](), set[int]()
        devices = [self.device] if self.device != "cpu" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            for value in last:
                if value in given:
                    tensors[value] = self.forms[value].tensor(np.asarray(given[value]), self.device)
                    memories.add(address(tensors[value]))
            for position in operations:
                call = self.calls[position]
                made = self._overlay(call, tensors) if isinstance(call, Overlay) else self._call(call, tensors)
                tensors.update(zip(self.outputs[position], made, strict=True))
                for value in _slots(call):
                    if last[value] == position and value not in kept:
                        tensors.pop(value, None)
            found = {}
            for value in wanted:
                if value not in tensors:
                    found[value] = np.array(given[value])
                    continue
                array = shown(tensors[value])
                # a view of what was given would change with it
                found[value] = array.copy() if address(tensors[value]) in memories else array
        return found

    def _overlay(self, call: Overlay, tensors: Mapping[int, Any]) -> list[Any]:
        base = tensors[call.base.value] if isinstance(call.base, Slot) else call.base
        return [call.compute(base, [tensors[slot.value] for slot, _ in call.writes])]

    def _call(self, call: Call, tensors: Mapping[int, Any]) -> list[Any]:
        import torch

        arguments: list[Any] = []
        args, kwargs = self._filled(call, (call.args, call.kwargs), tensors, arguments)
        if call.generator is not None:
            torch.set_rng_state(call.generator[0])
            if call.generator[1] is not None:
                torch.cuda.set_rng_state(call.generator[1], self.device)
        result = call.func(*args, **kwargs)
        leaves = flat_tensors(result)
        if call.clears:
            for leaf in leaves:
                leaf.zero_()
        return [leaves[where] if where >= 0 else arguments[~where] for where in call.results]

    def _filled(self, call: Call, value: Any, tensors: Mapping[int, Any], found: list[Any]) -> Any:
        """Return arguments with tensors for slots, those to be written copied; `found` gets all tensors in order."""
        import torch

        if isinstance(value, Slot | torch.Tensor):
            tensor = tensors[value.value] if isinstance(value, Slot) else self._constant(value)
            if len(found) in call.writes:
                tensor = tensor.clone()
            found.append(tensor)
            return tensor
        if type(value) in {list, tuple}:
            return type(value)(self._filled(call, member, tensors, found) for member in value)
        if isinstance(value, dict):
            return {key: self._filled(call, member, tensors, found) for key, member in value.items()}
        return value

    def _constant(self, tensor: Any) -> Any:
        """Return a constant as it was before the run wrote to it."""
        if not self.before:
            return tensor
        owner, memory = self.before.get(address(tensor), (None, None))
        if owner is None:
            return tensor
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _slots(call: Call | Overlay) -> set[int]:
    found: set[int] = set()

    def walk(value: Any) -> None:
        if isinstance(value, Slot):
            found.add(value.value)
        elif type(value) in {list, tuple}:
            for member in value:
                walk(member)
        elif isinstance(value, dict):
            for member in value.values():
                walk(member)

    walk((call.base, [slot for slot, _ in call.writes]) if isinstance(call, Overlay) else (call.args, call.kwargs))
    return found


def exchanged(value: Any, instead: Mapping[int, Any]) -> Any:
    """Return a result with some of its tensors exchanged."""
    if id(value) in instead:
        return instead[id(value)]
    if isinstance(value, tuple | list):
        members = [exchanged(member, instead) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    return value


def restrided(argument: Any, given: Any, result: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what stands for ``as_strided``, which counts from the beginning of a memory that a replay does not have.

    Parameters
    ----------
    argument
        The tensor as the tape keeps it: a `Slot` or a constant.
    given, result
        What the operator was given and what it returned.
    """
    base, own = Geometry.of(given), Geometry.of(result)
    dense = base.end - base.offset == given.numel()
    if not dense or own.offset < base.offset or own.end > base.end:
        return _out_of_reach, (argument,)
    again = functools.partial(_as_strided, offset=own.offset - base.offset, form=Form.of(given))
    return again, (argument, own.size, own.stride)


def _as_strided(tensor: Any, size: Any, stride: Any, *, offset: int, form: Form) -> Any:
    if tensor.stride() != form.stride:
        tensor = form.tensor(shown(tensor), str(tensor.device))
    return tensor.as_strided(size, stride, tensor.storage_offset() + offset)


def _out_of_reach(*_: Any) -> Any:
    raise SessionError(
        "PyTorch: as_strided read memory around the value that it was given, so it cannot run again alone"
    )


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape in which a tensor is shown."""
    return tuple(shown(tensor).shape if tensor.is_nested else tensor.shape)


def same(tensor: Any) -> Any:
    """Return what is given: the operator of a call that makes a constant."""
    return tensor


def is_strided(tensor: Any) -> bool:
    """Tell whether a tensor's elements lie in one memory."""
    import torch

    return bool(tensor.layout == torch.strided)


def address(tensor: Any) -> int:
    """Return what tells a tensor's memory from that of others that live at the same time; 0 where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse, or opaque to torch
        return 0
