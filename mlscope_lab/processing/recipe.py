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

__all__ = ["Recipe", "TensorRecipe", "answers", "example_feeds", "prepare", "specs_of"]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TensorRecipe:
    """One input or output and its steps.

    Attributes
    ----------
    spec
        As the manifest declares it; its first axis is the batch if it is a symbol.
    pipeline
        Steps from sample to tensor (inputs) or from tensor to answer (outputs), one sample at a time.
    """

    spec: TensorSpec
    pipeline: Pipeline

    @property
    def batched(self) -> bool:
        """Whether samples are stacked along a first axis of their own."""
        return bool(self.spec.shape) and not isinstance(self.spec.shape[0], int)  # type: ignore[index]


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
        Declared inputs; the first axis counts as batch where it is a symbol.
    batch_size
        Length of a symbolic first axis.
    symbols
        Lengths of other symbols; 1 where not given.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for spec in inputs:
        shape = [
            size if isinstance(size, int) else batch_size if axis == 0 else (symbols or {}).get(str(size), 1)
            for axis, size in enumerate(spec.shape or ())
        ]
        if spec.dtype in {"float16", "float32", "float64"}:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif spec.dtype == "str":
            raise InputError(f"Input '{spec.name}' takes text; there is no example for it, give an input")
        else:
            feeds[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def _fits(array: npt.NDArray[Any], spec: TensorSpec, *, batched: bool) -> bool:
    """Whether an array is the tensor itself (of one sample), rather than something to preprocess."""
    if spec.shape is None or array.dtype.name != spec.dtype:
        return False
    want = spec.shape[1:] if batched else spec.shape
    return array.ndim == len(want) and all(
        not isinstance(w, int) or w == h for w, h in zip(want, array.shape, strict=True)
    )


def _tensor(recipe: TensorRecipe, sample: Any) -> npt.NDArray[Any]:
    """Return the tensor of one sample, without its batch axis where there is one."""
    spec = recipe.spec
    if isinstance(sample, np.ndarray):
        if recipe.batched and sample.ndim and sample.shape[0] == 1 and _fits(sample[0], spec, batched=True):
            return sample[0]
        if _fits(sample, spec, batched=recipe.batched):
            return sample
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
    if recipe.batched and made.ndim == len(spec.shape or ()) and made.shape[0] == 1:
        made = made[0]
    if made.dtype.name != spec.dtype:
        raise InputError(
            f"Input {spec.describe()}: its preprocessing made {made.dtype.name}{list(made.shape)}; "
            f"end it with {{step: convert, dtype: {spec.dtype}}}"
        )
    if not _fits(made, spec, batched=recipe.batched):
        raise InputError(f"Input {spec.describe()}: its preprocessing made a tensor of shape {list(made.shape)}")
    return made


def prepare(
    recipe: Recipe, samples: Mapping[str, Sequence[Any]], specs: Sequence[TensorSpec] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Make the feeds of one predict.

    Parameters
    ----------
    recipe
        What to do; without declared inputs the session's own are taken as they are.
    samples
        For each input by its declared name, one sample for each place in the batch. An array that already has the
        declared type and shape is taken as it is.
    specs
        The session's inputs; feeds are named after them, matched by name, else by order.

    Raises
    ------
    InputError
        If a sample is missing, cannot be decoded, or does not become the declared tensor.
    """
    if not recipe.inputs:
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
    for index, item in enumerate(recipe.inputs):
        declared = item.spec.name
        if declared not in samples:
            raise InputError(
                f"Input '{declared}' is missing. Inputs: {', '.join(r.spec.describe() for r in recipe.inputs)}"
            )
        tensors = [_tensor(item, sample) for sample in samples[declared]]
        name = declared if by_name or not names else names[index]
        if item.batched:
            shapes = {t.shape for t in tensors}
            if len(shapes) > 1:
                raise InputError(f"Input '{declared}': the samples of one batch differ in shape: {sorted(shapes)}")
            feeds[name] = np.stack(tensors)
        elif len(tensors) == 1:
            feeds[name] = np.ascontiguousarray(tensors[0])
        else:
            raise InputError(
                f"Input {item.spec.describe()} has no batch axis (its first dimension is no symbol); use batch_size=1"
            )
    return feeds


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
        rows = list(array) if item.batched else [array]
        found[item.spec.name] = [item.pipeline(row) for row in rows]
    return found
