"""What arithmetic alone does to each value of a side, so that tolerances need not be guessed.

Three sources, each a run whose difference from the plain one is no fault of anybody:

- *rounding*: the inputs and every inexact result are moved by about a unit in the last place, at random (Monte Carlo
  arithmetic). This shows how rounding errors arise and grow in this very graph on this very input, cancellations and
  all; inputs are moved because a first convolution whose terms cancel errs by more than its result shows.
- *threads*: the side opened with another number of threads, whose sums run in another order.
- *float64*: the side opened in double precision, whose rounding is nothing in comparison.

References
----------
D. S. Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA CSD-970002, 1997.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.divergence.capture import Capture, capture, is_numeric
from mlscope_lab.trace.graph import Graph
from mlscope_lab.trace.kinds import LAYOUT

__all__ = ["ROUNDOFF_STEPS", "Perturbation", "difference_noise", "rounding_noise", "unit_roundoff"]

Array = npt.NDArray[Any]

ROUNDOFF_STEPS: Final = 1.0
"""How many unit roundoffs a value is moved by at most."""
_EXACT: Final = LAYOUT | {"concatenation", "slicing", "embedding", "control"}
_ROUNDOFF: Final = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_BLOCK: Final = 1 << 16


def unit_roundoff(dtype: str) -> float:
    """Return half the distance of 1 to the next number of a type: the relative error of one rounding; 0 for integers.

    Examples
    --------
    >>> unit_roundoff("float16") == 2**-11, unit_roundoff("int64")
    (True, 0.0)
    """
    return _ROUNDOFF.get(dtype, 0.0)


class Perturbation:
    """Moves values at random by a unit roundoff of themselves and of their tensor's root mean square.

    The second part stands for results that are small because large terms cancelled: their error is that of the terms.

    Parameters
    ----------
    seed
        Of the random numbers.
    steps
        Unit roundoffs at most.
    """

    def __init__(self, seed: int, steps: float = ROUNDOFF_STEPS) -> None:
        self._random = np.random.default_rng(seed)
        self._steps = steps
        # one block, read from a random place on: millions of numbers anew would cost more than the model
        self._block = self._random.uniform(-1.0, 1.0, 2 * _BLOCK).astype(np.float32)

    def __call__(self, array: Array, dtype: str) -> Array:
        """Return the moved array, of the same shape and type."""
        size = unit_roundoff(dtype) * self._steps
        if not size or not array.size or array.dtype.kind != "f":
            return array
        flat = np.ascontiguousarray(array).reshape(-1)
        moved = np.empty_like(flat)
        with np.errstate(all="ignore"):
            finite = float(np.sqrt(np.mean(np.square(flat[: _BLOCK * 16], dtype=np.float64))))
            scale = flat.dtype.type(finite if np.isfinite(finite) else 0.0)
            for first in range(0, flat.size, _BLOCK):
                piece = flat[first : first + _BLOCK]
                offset = int(self._random.integers(_BLOCK))
                noise = self._block[offset : offset + piece.size]
                step = np.abs(piece)
                step += scale
                step *= noise * np.float32(size)
                np.add(piece, step, out=moved[first : first + _BLOCK])
        return moved.reshape(array.shape)


def _inexact(graph: Graph) -> set[int]:
    """Return the positions of values whose operation rounds, and of the inputs."""
    return set(graph.inputs.values()) | {
        value for operation in graph.operations if not set(operation.kinds) <= _EXACT for value in operation.outputs
    }


def _largest_difference(one: Array, other: Array) -> float:
    """Return the largest absolute difference where both are finite, NaN where nothing is."""
    if one.shape != other.shape or not one.size:
        return float("nan")
    with np.errstate(all="ignore"):
        if one.dtype.kind == "f" and one.dtype.itemsize >= 4:
            found = np.subtract(one, other, dtype=one.dtype)
        else:
            found = np.subtract(one, other, dtype=np.complex128 if one.dtype.kind == "c" else np.float64)
        sizes = np.abs(found)
        largest = float(sizes.max())
        if np.isfinite(largest):
            return largest
        finite = sizes[np.isfinite(sizes)]
    return float(finite.max()) if finite.size else float("nan")


def rounding_noise(
    stepper: Stepper, feeds: Mapping[str, Array], plain: Capture, *, seeds: int = 2, first_seed: int = 0
) -> dict[int, float]:
    """Return how far rounding moves each value, at most, over some random runs.

    Parameters
    ----------
    stepper
        Of the side; must take replaced values (`Stepper.can_replace`).
    feeds, plain
        What ran, and what it left.
    seeds
        Number of random runs.
    first_seed
        Seed of the first.

    Returns
    -------
    dict
        Largest absolute difference by position of the value in the plain run's graph.
    """
    inexact, found = _inexact(plain.graph), dict[int, float]()
    for seed in range(first_seed, first_seed + seeds):
        perturbation = Perturbation(seed)

        def receive(index: int, array: Array, perturb: Perturbation = perturbation) -> Array | None:
            if not is_numeric(array) or array.dtype.kind not in "fc":
                return None
            value = plain.graph.values[index]
            moved = perturb(array, value.dtype) if index in inexact else None
            if index in plain.spool:
                difference = _largest_difference(array if moved is None else moved, plain.spool.read(index))
                found[index] = float(np.fmax(found.get(index, np.nan), difference))
            return moved

        stepper.run(feeds, receive)
    return found


def difference_noise(stepper: Stepper, feeds: Mapping[str, Array], plain: Capture) -> dict[int, float]:
    """Return how far another session's values are from the plain ones, where it runs the same graph.

    Parameters
    ----------
    stepper
        Of a session of the same model, opened with other threads or in double precision.
    feeds, plain
        What ran, and what it left.

    Returns
    -------
    dict
        Largest absolute difference by position in the plain run's graph; values that the other run does not have under
        the same name and in the same shape are left out.
    """
    found: dict[int, float] = {}
    by_name = {value.name: index for index, value in enumerate(plain.graph.values)}
    other = capture(stepper, feeds, sketching=False, ranging=False)
    with other.spool:
        for number, value in enumerate(other.graph.values):
            index = by_name.get(value.name)
            if index is None or index not in plain.spool or number not in other.spool:
                continue
            if value.shape == plain.graph.values[index].shape:
                found[index] = _largest_difference(other.spool.read(number), plain.spool.read(index))
    return found
