"""Shadow replay: each group of operations on the reference's own inputs, so that what it adds is told from what it got.

The difference of two values has two parts: what the group *inherits* through its inputs, and what it *injects* itself.
Given the reference's inputs, a faultless group returns the reference's result but for rounding, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.records import Alignment, Pair, in_layout_of
from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.divergence.capture import Capture
from mlscope_lab.divergence.noise import ROUNDOFF_STEPS, Perturbation, unit_roundoff
from mlscope_lab.errors import InputError, MlscopeError
from mlscope_lab.trace.graph import Value

__all__ = ["Injection", "boundary", "dequantized", "from_reference", "handed_over", "replay_pair", "shadow"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What a group does to the reference's inputs.

    Attributes
    ----------
    max_abs
        Largest absolute difference from the reference's value; inf where one of them is not finite and the other is.
    l2_relative
        Root of the sum of squared differences over that of the reference's squares.
    noise
        Largest absolute difference that rounding makes of this group's result on these inputs.
    """

    max_abs: float
    l2_relative: float
    noise: float


def boundary(capture: Capture, operations: tuple[int, ...]) -> list[int]:
    """Return the positions of the values that some operations read and do not write, each once, in order."""
    inside: set[int] = set()
    found: dict[int, None] = {}
    for index in operations:
        operation = capture.graph.operations[index]
        found.update((v, None) for v in operation.inputs if v not in inside)
        inside.update(operation.outputs)
    return list(found)


def from_reference(array: Array, pair: Pair, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a's value as b would have it: the inverse of `in_layout_of`.

    Parameters
    ----------
    array
        a's value.
    pair
        Says how the axes go.
    shape, dtype
        Of b's value. A batch of another length is cut or filled with repetitions.

    Raises
    ------
    InputError
        If the numbers of elements a sample differ.
    """
    if pair.axes is not None:
        moved_shape = tuple(shape[axis] for axis in pair.axes)
        inverse = tuple(np.argsort(pair.axes))
        moved = _resized(array, moved_shape).transpose(inverse)
    else:
        moved = _resized(array, shape)
    with np.errstate(over="ignore"):  # what is too large for float16 is infinite there, too
        return np.ascontiguousarray(moved.astype(dtype, copy=False))


def dequantized(array: Array, value: Value) -> Array:
    """Return the real numbers that a quantised value stands for, float32; any other value as it is."""
    if value.quantization is None:
        return array
    scale, zero = value.quantization
    return (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def handed_over(array: Array, pair: Pair, value: Value, dtype: np.dtype[Any]) -> Array:
    """Return real numbers in a's layout as b's value: in its layout and type, quantised where it is.

    Parameters
    ----------
    array
        Of a's value, dequantised.
    pair
        Whose value it is.
    value, dtype
        b's value, and the type of its array.
    """
    if value.quantization is None or dtype.kind not in "iu":
        return from_reference(array, pair, value.shape, dtype)
    scale, zero = value.quantization
    limits = np.iinfo(dtype)
    with np.errstate(invalid="ignore"):
        whole = np.clip(np.rint(np.nan_to_num(array) / scale) + zero, limits.min, limits.max)
    return from_reference(whole, pair, value.shape, dtype)


def _resized(array: Array, shape: tuple[int, ...]) -> Array:
    if array.size == int(np.prod(shape)):
        return array.reshape(shape)
    if array.ndim and shape and array.shape[0] and shape[0]:
        rows = array.reshape(array.shape[0], -1)
        if rows.shape[1] * shape[0] == int(np.prod(shape)):
            return np.resize(rows, (shape[0], rows.shape[1])).reshape(shape)
    raise InputError(f"A value of shape {array.shape} is no value of shape {shape}")


def replay_pair(stepper: Stepper, pair: Pair, given: Mapping[int, Array]) -> Array:
    """Run a pair's group of side b on given values and return b's value."""
    return stepper.replay(pair.group_b, given, [pair.b])[pair.b]


def _measure(reference: Array, other: Array) -> tuple[float, float]:
    """Return the largest absolute and the relative L2 difference; equal NaN and infinities are agreement."""
    with np.errstate(all="ignore"):
        if reference.dtype == other.dtype == np.float32:
            quick = np.subtract(other, reference).reshape(-1)
            largest = float(np.abs(quick).max(initial=0.0))
            if np.isfinite(largest):
                size, scale = float(np.linalg.norm(quick)), float(np.linalg.norm(reference.reshape(-1)))
                if np.isfinite(scale):
                    return largest, size / scale if scale else (0.0 if size == 0.0 else float("inf"))
        one, two = reference.astype(np.float64, copy=False), other.astype(np.float64, copy=False)
        difference = np.abs(two - one)
        same = (one == two) | (np.isnan(one) & np.isnan(two))
        difference[same] = 0.0
        difference[~np.isfinite(difference)] = np.inf
        largest = float(difference.max(initial=0.0))
        scale = float(np.sqrt(np.sum(np.square(one[np.isfinite(one)]))))
        size = float(np.sqrt(np.sum(np.square(difference))))
    return largest, size / scale if scale else (0.0 if size == 0.0 else float("inf"))


def shadow(
    stepper: Stepper, a: Capture, b: Capture, alignment: Alignment, *, seed: int = 0
) -> tuple[dict[int, Injection], dict[int, str]]:
    """Replay every group of side b on the reference's inputs.

    Parameters
    ----------
    stepper
        Of side b, whose last run was that of `b`.
    a, b
        What the runs left.
    alignment
        How they meet.
    seed
        Of the perturbation that measures each group's rounding.

    Returns
    -------
    injections, reasons
        By position of the pair; and for those that could not be replayed, why.
    """
    partner = {pair.b: pair for pair in alignment.pairs}
    injections: dict[int, Injection] = {}
    reasons: dict[int, str] = {}
    perturb = Perturbation(seed)
    for position, pair in enumerate(alignment.pairs):
        if not pair.group_b:
            continue
        try:
            given: dict[int, Array] = {}
            for value in boundary(b, pair.group_b):
                own = b.graph.values[value]
                if value not in partner:
                    raise InputError(f"it reads '{own.name}', which has no partner in the reference")
                if value not in b.spool or partner[value].a not in a.spool:
                    raise InputError(f"it reads '{own.name}', which is no number")
                source = partner[value].a
                real = dequantized(a.spool.read(source), a.graph.values[source])
                given[value] = handed_over(real, partner[value], own, b.spool.dtype(value))
            result = dequantized(replay_pair(stepper, pair, given), b.graph.values[pair.b])
            reference = dequantized(a.spool.read(pair.a), a.graph.values[pair.a])
            injected = in_layout_of(_like(reference.shape, result), result, pair.axes)
            rows = min(len(reference), len(injected)) if reference.ndim else None
            largest, relative = _measure(reference[:rows], injected[:rows])
            noise = _rounding(result, b.graph.values[pair.b].dtype)
            if largest > noise:  # else one rounding of the result explains it, whatever its inputs do
                moved = {v: perturb(array, b.graph.values[v].dtype) for v, array in given.items()}
                if any(moved[v] is not given[v] for v in given):
                    again = dequantized(replay_pair(stepper, pair, moved), b.graph.values[pair.b])
                    noise += _moved(result, again)
        except MlscopeError as error:
            reasons[position] = str(error)
            continue
        injections[position] = Injection(max_abs=largest, l2_relative=relative, noise=noise)
    return injections, reasons


def _like(shape: tuple[int, ...], result: Array) -> tuple[int, ...]:
    """Return the reference's shape with the batch of the result, where that is of another length."""
    size = int(np.prod(shape[1:])) if shape else 1
    return (result.size // size, *shape[1:]) if shape and size and result.size % size == 0 else shape


def _rounding(result: Array, dtype: str) -> float:
    """Return how far one rounding moves a result, at most."""
    if result.dtype.kind != "f" or not result.size:
        return 0.0
    with np.errstate(all="ignore"):
        size = np.abs(result)
        scale = float(size.max())
        if not np.isfinite(scale):
            scale = float(size[np.isfinite(size)].max(initial=0.0))
    return ROUNDOFF_STEPS * unit_roundoff(dtype) * scale


def _moved(result: Array, again: Array) -> float:
    """Return how far a result moved, at most, where it is finite."""
    with np.errstate(all="ignore"):
        moved = np.abs(np.subtract(again, result, dtype=np.result_type(again, result, np.float32)))
        largest = float(moved.max(initial=0.0))
    if np.isfinite(largest):
        return largest
    return float(moved[np.isfinite(moved)].max(initial=0.0))
