"""Values of small constant tensors, so that shapes which a graph computes from shapes are known.

Only operators that graphs compute shapes with are evaluated, and only while operands and results stay small: a hostile
graph cannot make this allocate. What is left out is merely not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_ELEMENTS", "fold"]

MAX_ELEMENTS: Final = 4096
Array = npt.NDArray[Any]
_Fold = Callable[[Sequence[Array | None], Mapping[str, Any]], Sequence[Any] | None]


def _binary(function: Callable[..., Any]) -> _Fold:
    return lambda inputs, _: [function(inputs[0], inputs[1])]


def _unary(function: Callable[..., Any]) -> _Fold:
    return lambda inputs, _: [function(inputs[0])]


def _axes(inputs: Sequence[Array | None], attributes: Mapping[str, Any], position: int = 1) -> tuple[int, ...] | None:
    given = inputs[position] if len(inputs) > position else None
    if given is not None:
        return tuple(int(axis) for axis in given.reshape(-1))
    return tuple(attributes["axes"]) if "axes" in attributes else None


def _reduce(function: Callable[..., Any]) -> _Fold:
    def run(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
        axes = _axes(inputs, attributes)
        if axes is None and attributes.get("noop_with_empty_axes"):
            return [inputs[0]]
        return [function(inputs[0], axis=axes, keepdims=bool(attributes.get("keepdims", 1)))]

    return run


def _divide(inputs: Sequence[Array | None], _: Mapping[str, Any]) -> Sequence[Any] | None:
    a, b = _both(inputs)
    if a.dtype.kind not in "iu":
        return [a / b]
    if not b.all():
        return None
    return [(np.sign(a) * np.sign(b)) * (np.abs(a) // np.abs(b))]  # ONNX truncates towards zero


def _both(inputs: Sequence[Array | None]) -> tuple[Array, Array]:
    a, b = inputs[0], inputs[1]
    if a is None or b is None:
        raise ValueError("an operand is missing")
    return a, b


def _one(inputs: Sequence[Array | None]) -> Array:
    if inputs[0] is None:
        raise ValueError("the operand is missing")
    return inputs[0]


def _modulo(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any] | None:
    a, b = _both(inputs)
    if a.dtype.kind in "iu" and not b.all():
        return None
    return [np.fmod(a, b) if attributes.get("fmod") else np.mod(a, b)]


def _reshape(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    data = _one(inputs)
    target = [int(n) for n in inputs[1].reshape(-1)] if len(inputs) > 1 and inputs[1] is not None else []
    if not attributes.get("allowzero"):
        target = [data.shape[i] if n == 0 and i < data.ndim else n for i, n in enumerate(target)]
    return [data.reshape(target)]


def _squeeze(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    return [np.squeeze(_one(inputs), axis=_axes(inputs, attributes))]


def _unsqueeze(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any] | None:
    axes = _axes(inputs, attributes)
    return None if axes is None else [np.expand_dims(_one(inputs), axes)]


def _gather(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    data, indices = _both(inputs)
    return [np.take(data, indices.astype(np.int64), axis=attributes.get("axis", 0))]


def _slice(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    data = _one(inputs)

    def given(position: int, name: str) -> list[int] | None:
        value = inputs[position] if len(inputs) > position else attributes.get(name)
        return None if value is None else [int(n) for n in np.reshape(value, -1)]

    starts, ends = given(1, "starts") or [], given(2, "ends") or []
    axes = given(3, "axes") or list(range(len(starts)))
    steps = given(4, "steps") or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # the smallest integers mean "from the very beginning", which a slice in this direction calls None
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return [data[tuple(index)]]


def _split(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any] | None:
    sizes = inputs[1] if len(inputs) > 1 else attributes.get("split")
    if sizes is None:
        return None
    return np.split(_one(inputs), np.cumsum(np.reshape(sizes, -1))[:-1], axis=attributes.get("axis", 0))


def _filled(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any] | None:
    lengths = [int(n) for n in _one(inputs).reshape(-1)]
    value = np.reshape(attributes.get("value", np.zeros(1, np.float32)), -1)
    return [np.full(lengths, value[0])] if math.prod(lengths) <= MAX_ELEMENTS else None


def _range(inputs: Sequence[Array | None], _: Mapping[str, Any]) -> Sequence[Any] | None:
    start, limit, delta = (np.reshape(value, -1)[0] for value in inputs if value is not None)
    if not delta or abs((limit - start) / delta) > MAX_ELEMENTS:
        return None
    return [np.arange(start, limit, delta, dtype=start.dtype)]


def _expand(inputs: Sequence[Array | None], _: Mapping[str, Any]) -> Sequence[Any] | None:
    data, target = _both(inputs)
    shape = np.broadcast_shapes(data.shape, tuple(int(n) for n in target.reshape(-1)))
    return [np.broadcast_to(data, shape)] if math.prod(shape) <= MAX_ELEMENTS else None


def _tile(inputs: Sequence[Array | None], _: Mapping[str, Any]) -> Sequence[Any] | None:
    data, repeats = _both(inputs)
    if data.size * math.prod(int(n) for n in repeats.reshape(-1)) > MAX_ELEMENTS:
        return None
    return [np.tile(data, [int(n) for n in repeats.reshape(-1)])]


def _concatenated(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    return [np.concatenate([value for value in inputs if value is not None], axis=attributes["axis"])]


def _cast(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    import onnx

    return [_one(inputs).astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))]


def _transposed(inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> Sequence[Any]:
    return [np.transpose(_one(inputs), attributes.get("perm"))]


def _same(inputs: Sequence[Array | None], _: Mapping[str, Any]) -> Sequence[Any]:
    return [inputs[0]]


_FOLDS: Final[dict[str, _Fold]] = {
    "Abs": _unary(np.abs), "Ceil": _unary(np.ceil), "Floor": _unary(np.floor), "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not), "Round": _unary(np.rint), "Sign": _unary(np.sign), "Sqrt": _unary(np.sqrt),
    "Add": _binary(np.add), "Sub": _binary(np.subtract), "Mul": _binary(np.multiply), "Div": _divide, "Mod": _modulo,
    "Pow": _binary(np.power), "Equal": _binary(np.equal), "Greater": _binary(np.greater), "Less": _binary(np.less),
    "GreaterOrEqual": _binary(np.greater_equal), "LessOrEqual": _binary(np.less_equal),
    "And": _binary(np.logical_and), "Or": _binary(np.logical_or),
    "Max": lambda inputs, _: [np.maximum.reduce([v for v in inputs if v is not None])],
    "Min": lambda inputs, _: [np.minimum.reduce([v for v in inputs if v is not None])],
    "Where": lambda inputs, _: [np.where(inputs[0], inputs[1], inputs[2])],  # type: ignore[arg-type]
    "ReduceMax": _reduce(np.max), "ReduceMin": _reduce(np.min), "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Cast": _cast, "Concat": _concatenated, "ConstantOfShape": _filled, "Expand": _expand, "Gather": _gather,
    "Identity": _same, "Range": _range, "Reshape": _reshape, "Slice": _slice, "Split": _split, "Squeeze": _squeeze,
    "Tile": _tile, "Transpose": _transposed, "Unsqueeze": _unsqueeze,
}  # fmt: skip


def fold(op: str, inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> list[Array] | None:
    """Return the outputs of an operator on known values, or None where they cannot or need not be known.

    Parameters
    ----------
    op
        Of the ``ai.onnx`` domain.
    inputs
        Values, None for an input that is left out.
    attributes
        By name, tensors as arrays.
    """
    run = _FOLDS.get(op)
    if run is None or not inputs or any(value is not None and value.size > MAX_ELEMENTS for value in inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            found = run(inputs, attributes)
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError):
        return None  # a graph that does not fit itself has no value here; its runtime says why
    if found is None:
        return None
    arrays = [np.asarray(value) for value in found]
    return arrays if all(value.size <= MAX_ELEMENTS for value in arrays) else None
