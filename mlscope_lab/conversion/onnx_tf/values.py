"""Values that know their memory order, and the table of operators.

TensorFlow convolves on a CPU only with the channels last, ONNX has them on axis 1. A `Value` holds a tensor in ONNX's
order (``first``), with the channels last (``last``), or both; each form is made once, when somebody asks for it. An
operator that does not care keeps the form it is given, so a convolutional graph is transposed at its borders only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.conversion.onnx_tf.graph import Node
from mlscope_lab.errors import ConversionError

__all__ = ["OPERATORS", "Context", "Entry", "Operator", "Value", "operator"]

Array = npt.NDArray[Any]
Tensor = Any


def last_axes(rank: int) -> list[int]:
    """Return the permutation from ONNX's order to channels last: ``[0, 2, 3, 1]`` for rank 4."""
    return [0, *range(2, rank), 1]


def first_axes(rank: int) -> list[int]:
    """Return the permutation from channels last to ONNX's order: ``[0, 3, 1, 2]`` for rank 4."""
    return [0, rank - 1, *range(1, rank - 1)]


@dataclass(eq=False, slots=True)
class Value:
    """A tensor or a constant.

    Attributes
    ----------
    constant
        The array, in ONNX's order, if the value is known at conversion.
    first, last
        The tensor in ONNX's order, and with axis 1 moved to the end.
    native_last
        True if the value was made with its channels last.
    """

    constant: Array | None = None
    first: Tensor | None = None
    last: Tensor | None = None
    native_last: bool = False

    @property
    def rank(self) -> int:
        """Number of axes."""
        if self.constant is not None:
            return int(self.constant.ndim)
        tensor: Any = self.first if self.first is not None else self.last
        rank = tensor.shape.rank
        if rank is None:
            raise ConversionError("The number of axes of a value is not known before the model runs")
        return int(rank)

    @property
    def dims(self) -> list[int | None]:
        """Static lengths in ONNX's order, None where dynamic."""
        if self.constant is not None:
            return list(self.constant.shape)
        if self.first is not None:
            return list(self.first.shape.as_list())
        tensor: Any = self.last
        dims = list(tensor.shape.as_list())
        return [dims[i] for i in first_axes(len(dims))]


@dataclass
class Context:
    """What operators need while a graph is built.

    Attributes
    ----------
    tf
        The tensorflow module.
    file
        Name of the ONNX file, for messages.
    store
        Turns a large constant into a tensor (a variable's value where constants would not fit the file).
    """

    tf: Any
    file: str
    store: Callable[[Array], Tensor] | None = None

    def tensor(self, array: Array) -> Tensor:
        """Return a constant as a tensor."""
        if self.store is not None and array.nbytes >= 1024:
            return self.store(array)
        return self.tf.constant(array)

    def first(self, value: Value) -> Tensor:
        """Return the tensor in ONNX's order."""
        if value.first is None:
            if value.constant is not None:
                value.first = self.tensor(value.constant)
            else:
                value.first = self.tf.transpose(value.last, first_axes(value.rank))
        return value.first

    def last(self, value: Value) -> Tensor:
        """Return the tensor with its channels last; the value has at least three axes."""
        if value.last is None:
            axes = last_axes(value.rank)
            if value.constant is not None:
                value.last = self.tensor(np.ascontiguousarray(value.constant.transpose(axes)))
            elif all(d == 1 for d in value.dims[2:]):  # nothing moves in memory: a reshape is free
                value.last = self.tf.reshape(value.first, self.shape_of(value.first, axes))
            else:
                value.last = self.tf.transpose(value.first, axes)
        return value.last

    def native(self, value: Value) -> tuple[Tensor, bool]:
        """Return the tensor in the order it was made in, and whether its channels are last."""
        return (self.last(value), True) if value.native_last else (self.first(value), False)

    def wrap(self, tensor: Tensor, last: bool = False) -> Value:
        """Return a tensor as a value."""
        return Value(last=tensor, native_last=True) if last else Value(first=tensor)

    def length(self, tensor: Tensor, axis: int) -> int | Tensor:
        """Return the length of an axis: a number where static, else an int32 tensor."""
        static = tensor.shape[axis]
        return int(static) if static is not None else self.tf.shape(tensor)[axis]

    def shape_of(self, tensor: Tensor, axes: Sequence[int] | None = None) -> Any:
        """Return the shape along `axes`: a list if static but for one axis (-1), else an int32 tensor."""
        order = range(tensor.shape.rank) if axes is None else axes
        lengths = [tensor.shape[a] for a in order]
        if lengths.count(None) <= 1 and 0 not in lengths:
            return [-1 if d is None else int(d) for d in lengths]
        return self.tf.stack([self.length(tensor, a) for a in order])

    def constant(self, value: Value | None, node: Node, what: str) -> Array:
        """Return the array of an operand that must be known at conversion.

        Raises
        ------
        ConversionError
            If it is computed from the inputs.
        """
        known = self.known(value)
        if known is None:
            raise ConversionError(
                f"{self.file}: {what} of {node.op} '{node.name}' is computed while the model runs; "
                "TensorFlow needs it as a constant"
            )
        return known

    def known(self, value: Value | None) -> Array | None:
        """Return the array of an operand if TensorFlow can tell it before running, else None."""
        if value is None or value.constant is not None:
            return None if value is None else value.constant
        static = self.tf.get_static_value(self.first(value))
        return None if static is None else np.asarray(static)

    def axis(self, axis: int, rank: int, last: bool) -> int:
        """Return where an ONNX axis lies in memory."""
        axis = axis + rank if axis < 0 else axis
        return last_axes(rank).index(axis) if last else axis


Operator = Callable[..., Value | tuple[Value, ...]]
Check = Callable[[Node], str]


@dataclass(frozen=True)
class Entry:
    """An operator's converter, and what it cannot do.

    Attributes
    ----------
    build
        ``(context, node, *inputs) -> value or values``.
    refuse
        Returns why a node cannot be converted, or "".
    """

    build: Operator
    refuse: Check | None = None


OPERATORS: dict[str, Entry] = {}


def operator(*names: str, refuse: Check | None = None) -> Callable[[Operator], Operator]:
    """Register a function as the converter of operators of these names."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = Entry(function, refuse)
        return function

    return register
