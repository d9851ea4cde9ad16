"""From raw samples to feeds, and from outputs to answers: the declared steps of every input and output of a model.

A recipe is data (it is recorded in the run and crosses to the worker as JSON); applying it needs numpy and what its
steps need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.raw import Constant

__all__ = [
    "Recipe",
    "TensorRecipe",
    "answers",
    "batch_axis",
    "constant_feeds",
    "declared_outputs",
    "example_feeds",
    "prepare",
    "specs_of",
]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TensorRecipe:
    """One input or output and its steps.

    Attributes
    ----------
    spec
        As the manifest declares it. Its batch axis is the one called "batch", else a first axis that is a symbol, or of
        length 1 (one sample at a time).
    pipeline
        Steps from sample to tensor (inputs) or from tensor to answer (outputs), one sample at a time.
    """

    spec: TensorSpec
    pipeline: Pipeline

    @property
    def batch_axis(self) -> int | None:
        """Position of the axis along which samples are stacked, None if there is none."""
        return batch_axis(self.spec)

    @property
    def constant(self) -> bool:
        """Whether the input is the same for every sample, so that none need be given."""
        return bool(self.pipeline.steps) and isinstance(self.pipeline.steps[0], Constant)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All inputs and outputs of a model, in the manifest's order."""

    inputs: tuple[TensorRecipe, ...]
    outputs: tuple[TensorRecipe, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-able data, every default written out."""
        return {
            side: [
                {
                    "name": r.spec.name,
                    "dtype": r.spec.dtype,
                    "shape": None if r.spec.shape is None else list(r.spec.shape),
                    "steps": r.pipeline.to_specs(),
                }
                for r in recipes
            ]
            for side, recipes in (("inputs", self.inputs), ("outputs", self.outputs))
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Undo `to_json`."""
        made = {
            side: tuple(
                TensorRecipe(
                    spec=TensorSpec(
                        name=item["name"],
                        dtype=item["dtype"],
                        shape=None if item["shape"] is None else tuple(item["shape"]),
                    ),
                    pipeline=Pipeline.from_specs(item["steps"]),
                )
                for item in data[side]
            )
            for side in ("inputs", "outputs")
        }
        return cls(**made)


def batch_axis(spec: TensorSpec) -> int | None:
    """Return the position of a tensor's batch axis, None if it has none."""
    if not spec.shape:
        return None
    if "batch" in spec.shape:
        return spec.shape.index("batch")
    return 0 if spec.shape[0] == 1 or not isinstance(spec.shape[0], int) else None


def specs_of(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """Return the specs of tensors as a manifest declares them."""
    return tuple(TensorSpec(name=t.name, dtype=t.dtype, shape=tuple(t.shape)) for t in tensors)


def example_feeds(
    inputs: Sequence[TensorSpec], *, seed: int = 0, batch_size: int = 2, symbols: Mapping[str, int] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Make seeded values for declared inputs: standard normal floats, zeros and ones for integers and booleans.

    Parameters
    ----------
    inputs
        Declared inputs.
    batch_size
        Length of the batch axis where that is a symbol.
    symbols
        Lengths of other symbols; 1 where not given.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for spec in inputs:
        batch = batch_axis(spec)
        shape = [
            size if isinstance(size, int) else batch_size if axis == batch else (symbols or {}).get(str(size), 1)
            for axis, size in enumerate(spec.shape or ())
        ]
        if spec.dtype in {"float16", "float32", "float64"}:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif spec.dtype == "str":
            raise InputError(f"Input '{spec.name}' takes text; there is no example for it, give an input")
        else:
            feeds[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def constant_feeds(recipe: Recipe, batch_size: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of those inputs that need no sample, by declared name."""
    return {r.spec.name: _stacked(r, [_tensor(r, None)] * batch_size) for r in recipe.inputs if r.constant}


def _fits(array: npt.NDArray[Any], spec: TensorSpec) -> bool:
    """Whether an array is the tensor itself (of one sample), rather than something to preprocess."""
    if spec.shape is None or array.dtype.name != spec.dtype:
        return False
    axis = batch_axis(spec)
    want = spec.shape if axis is None else spec.shape[:axis] + spec.shape[axis + 1 :]
    return array.ndim == len(want) and all(
        not isinstance(w, int) or w == h for w, h in zip(want, array.shape, strict=True)
    )


def _is_whole(given: Sequence[Any], recipe: TensorRecipe) -> bool:
    """Whether one array is all of an input that only the framework describes, batch axis included."""
    array, spec, axis = given[0], recipe.spec, recipe.batch_axis
    if not isinstance(array, np.ndarray) or any(other is not array for other in given):
        return False
    if spec.dtype != "any" and array.dtype.name != spec.dtype:
        return False
    if spec.shape is None:
        return True
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(w, int) or w == h for w, h in zip(spec.shape, array.shape, strict=True)
    )
    return fits and (len(given) == 1 or axis is None or array.shape[axis] == len(given))


def _tensor(recipe: TensorRecipe, sample: Any) -> npt.NDArray[Any]:
    """Return the tensor of one sample, without its batch axis where there is one."""
    spec = recipe.spec
    if isinstance(sample, np.ndarray):
        single = _single(recipe, sample)
        if _fits(single, spec):
            return single
    if not recipe.pipeline.steps:
        given = f"an array {sample.dtype.name}{list(sample.shape)}" if isinstance(sample, np.ndarray) else repr(sample)
        raise InputError(
            f"Input {spec.describe()} has no preprocessing, so it takes tensors of that type and shape "
            f"(.npy files or numpy arrays), not {given[:120]}"
        )
    try:
        made = np.asarray(recipe.pipeline(sample))
    except InputError as error:
        raise InputError(f"Input '{spec.name}', {error}") from error
    made = _single(recipe, made)
    if made.dtype.name != spec.dtype:
        raise InputError(
            f"Input {spec.describe()}: its preprocessing made {made.dtype.name}{list(made.shape)}; "
            f"end it with {{step: convert, dtype: {spec.dtype}}}"
        )
    if spec.shape is not None and not _fits(made, spec):
        raise InputError(f"Input {spec.describe()}: its preprocessing made a tensor of shape {list(made.shape)}")
    return made


def _single(recipe: TensorRecipe, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Drop a batch axis of length 1, if the array has one."""
    axis = recipe.batch_axis
    if axis is not None and array.ndim == len(recipe.spec.shape or ()) and array.shape[axis] == 1:
        return np.asarray(np.take(array, 0, axis=axis))
    return array


def _stacked(recipe: TensorRecipe, tensors: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Put the tensors of a batch together."""
    spec, axis = recipe.spec, recipe.batch_axis
    if axis is None:
        if recipe.constant or len(tensors) == 1:
            return np.asarray(tensors[0], order="C")
        raise InputError(f"Input {spec.describe()} has no batch axis; use batch_size=1")
    if spec.shape is not None and spec.shape[axis] == 1 and len(tensors) > 1:
        raise InputError(f"Input {spec.describe()} takes one sample at a time; use batch_size=1")
    shapes = {t.shape for t in tensors}
    if len(shapes) > 1:
        raise InputError(f"Input '{spec.name}': the samples of one batch differ in shape: {sorted(shapes)}")
    return np.stack(tensors, axis=axis)


def prepare(
    recipe: Recipe, samples: Mapping[str, Sequence[Any]], specs: Sequence[TensorSpec] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Make the feeds of one predict.

    Parameters
    ----------
    recipe
        What to do; without declared inputs the session's own count, and a single array may be a whole batch.
    samples
        For each input by its declared name, one sample for each place in the batch. An array that already has the
        declared type and shape is taken as it is. Inputs that begin with the step constant may be left out.
    specs
        The session's inputs; feeds are named after them, matched by name, else by order.

    Raises
    ------
    InputError
        If a sample is missing, cannot be decoded, or does not become the declared tensor.
    """
    undeclared = not recipe.inputs
    if undeclared:
        nothing = Pipeline()
        recipe = Recipe(inputs=tuple(TensorRecipe(spec=s, pipeline=nothing) for s in specs), outputs=recipe.outputs)
    feeds: dict[str, npt.NDArray[Any]] = {}
    names = [s.name for s in specs]
    by_name = {r.spec.name for r in recipe.inputs} <= set(names)
    if names and not by_name and len(names) != len(recipe.inputs):
        raise InputError(
            f"The model takes the inputs {', '.join(names)}; "
            f"its manifest declares {', '.join(r.spec.name for r in recipe.inputs)}"
        )
    batch_size = max((len(given) for given in samples.values()), default=1)
    for index, item in enumerate(recipe.inputs):
        declared = item.spec.name
        given = samples.get(declared, [None] * batch_size if item.constant else ())
        if not given:
            raise InputError(
                f"Input '{declared}' is missing. Inputs: {', '.join(r.spec.describe() for r in recipe.inputs)}"
            )
        name = declared if by_name or not names else names[index]
        feeds[name] = (
            np.asarray(given[0], order="C")
            if undeclared and _is_whole(given, item)
            else _stacked(item, [_tensor(item, sample) for sample in given])
        )
    return feeds


def declared_outputs(recipe: Recipe, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs under their declared names, which are the same on every backend.

    Frameworks rename outputs (``StatefulPartitionedCall:1``); where names differ and their number does not, order
    counts. Without declared outputs the framework's names stay.
    """
    names = [r.spec.name for r in recipe.outputs]
    if not names or set(names) <= set(outputs) or len(names) != len(outputs):
        return dict(outputs)
    return dict(zip(names, outputs.values(), strict=True))


def answers(recipe: Recipe, outputs: Arrays) -> dict[str, list[Any]]:
    """Apply the declared post-processing.

    Parameters
    ----------
    outputs
        Arrays by the session's names, matched with the declared outputs by name, else by order.

    Returns
    -------
    dict
        For each declared output that has steps, one answer a sample.
    """
    found: dict[str, list[Any]] = {}
    arrays = list(outputs.values())
    for index, item in enumerate(recipe.outputs):
        if not item.pipeline.steps:
            continue
        array = outputs[item.spec.name] if item.spec.name in outputs else arrays[index]
        axis = item.batch_axis
        rows = [array] if axis is None else [np.take(array, i, axis=axis) for i in range(array.shape[axis])]
        try:
            found[item.spec.name] = [item.pipeline(row) for row in rows]
        except InputError as error:
            raise InputError(f"Output '{item.spec.name}', {error}") from error
    return found
