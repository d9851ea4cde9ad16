"""What preprocessing gets wrong in practice, as edits of a declared recipe.

Each variation changes one thing in a list of steps, so that two of them can be put together; `variations` returns those
that apply to a recipe and change what it computes.

References
----------
Li, Dakkak, Xiong and Hwu, "Challenges and Pitfalls of Machine Learning Evaluation and Benchmarking", arXiv 1904.12437,
sections 3.3 to 3.5: decoding, colour order, layout, cropping, resizing, type conversion, normalisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.variants_image import image_edits
from mlscope_lab.processing.variants_other import other_edits

__all__ = ["AXES", "Variation", "combined", "pairs", "variations"]

Specs = list[dict[str, Any]]
AXES = (
    "decoder", "colour order", "resize method", "antialiasing", "crop", "normalisation", "type conversion", "layout",
    "sampling rate", "scale", "channel", "window", "text",
)  # fmt: skip
"""What is varied, in the order in which edits are put together."""
_SHOWN_BY_FILES = frozenset({"decoder", "channel"})
"""Axes whose effect depends on how a file was stored, which probes do not show."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A recipe that differs from the declared one in one thing, or in two.

    Attributes
    ----------
    axes
        Which of `AXES` it changes: one, or two for a pair.
    name
        The change in words, ``normalisation: (x - 127) / 128``; of a pair both, with " + " between them.
    steps
        The steps that it consists of, every default written out.
    parts
        Names of the single variations of a pair; empty for a single one.
    """

    axes: tuple[str, ...]
    name: str
    steps: tuple[dict[str, Any], ...]
    parts: tuple[str, ...] = ()

    @property
    def pipeline(self) -> Pipeline:
        """The steps, ready to be applied."""
        return Pipeline.from_specs(self.steps)


@dataclass(frozen=True, kw_only=True)
class _Edit:
    axis: str
    name: str
    change: Callable[[Specs], Specs | None]


def _edits(specs: Specs) -> list[_Edit]:
    found = [
        _Edit(axis=axis, name=f"{axis}: {name}", change=change)
        for axis, name, change in itertools.chain(image_edits(specs), other_edits(specs))
    ]
    return sorted(found, key=lambda edit: AXES.index(edit.axis))


def _applied(specs: Specs, edits: Sequence[_Edit]) -> Pipeline | None:
    """Return the edited pipeline, None where an edit does not apply or the steps do not go together."""
    changed: Specs | None = [dict(spec) for spec in specs]
    for edit in edits:
        changed = edit.change(changed) if changed is not None else None
    if changed is None:
        return None
    try:
        return Pipeline.from_specs(changed)
    except InputError:
        return None


def _probes() -> Iterator[Any]:
    """Yield samples on which pipelines that compute the same cannot be told apart, and few others can."""
    rng = np.random.default_rng(0)
    yield rng.integers(0, 256, (601, 457, 3), dtype=np.uint8)  # larger than most inputs, so that it is shrunk
    yield (rng.standard_normal(60_000) * 0.2).astype(np.float32)
    yield b"  " + bytes(rng.integers(33, 127, 500, dtype=np.uint8)) + b"\n\n"


def _tensors(pipeline: Pipeline) -> list[Any]:
    """Return what a pipeline makes of each probe, None where it does not take it."""
    made: list[Any] = []
    for probe in _probes():
        try:
            made.append(np.asarray(pipeline(probe)))
        except InputError:
            made.append(None)
    return made


def _same(a: list[Any], b: list[Any]) -> bool:
    """Whether two pipelines made the same tensor of each probe."""
    for first, second in zip(a, b, strict=True):
        if first is None or second is None:
            if first is not second:
                return False
        elif first.shape != second.shape or not np.allclose(first, second, rtol=1e-5, atol=1e-6):
            return False
    return True


def variations(pipeline: Pipeline) -> tuple[Variation, ...]:
    """Return the single variations of a declared recipe.

    Parameters
    ----------
    pipeline
        The declared steps of one input.

    Returns
    -------
    tuple of Variation
        By axis, each with other steps than the declared ones and than every one before it. What shows on some samples
        alone (EXIF orientation, colour of JPEG files, a second channel) is there, too; empty where nothing applies.
    """
    specs = pipeline.to_specs()
    seen, found = [_tensors(pipeline)], []
    for edit in _edits(specs):
        made = _applied(specs, [edit])
        if made is None:
            continue
        if edit.axis not in _SHOWN_BY_FILES:
            tensors = _tensors(made)
            if any(_same(other, tensors) for other in seen):
                continue
            seen.append(tensors)
        found.append(Variation(axes=(edit.axis,), name=edit.name, steps=tuple(made.to_specs())))
    return tuple(found)


def combined(pipeline: Pipeline, names: Sequence[str]) -> Variation:
    """Return the variation that puts single ones together.

    Parameters
    ----------
    pipeline
        The declared steps.
    names
        Names of single variations, of different axes.

    Raises
    ------
    InputError
        If there is no such variation, or they do not go together.
    """
    specs = pipeline.to_specs()
    edits = [edit for edit in _edits(specs) if edit.name in names]
    if len(edits) != len(set(names)):
        known = [edit.name for edit in _edits(specs)]
        raise InputError(f"No such variation: {', '.join(n for n in names if n not in known)}")
    made = _applied(specs, edits)
    if made is None or len({edit.axis for edit in edits}) < len(edits):
        raise InputError(f"These variations do not go together: {', '.join(names)}")
    return Variation(
        axes=tuple(edit.axis for edit in edits), name=" + ".join(edit.name for edit in edits),
        steps=tuple(made.to_specs()), parts=tuple(edit.name for edit in edits),
    )  # fmt: skip


def pairs(pipeline: Pipeline, singles: Sequence[Variation]) -> tuple[Variation, ...]:
    """Return the pairs of single variations of different axes that go together and give other steps than either.

    Parameters
    ----------
    pipeline
        The declared steps.
    singles
        From `variations`; those that do nothing to the samples at hand are best left out before.
    """
    found = []
    seen = {repr(single.steps) for single in singles} | {repr(tuple(pipeline.to_specs()))}
    for one, other in itertools.combinations(singles, 2):
        if one.axes == other.axes:
            continue
        try:
            pair = combined(pipeline, (one.name, other.name))
        except InputError:
            continue
        if repr(pair.steps) not in seen:
            seen.add(repr(pair.steps))
            found.append(pair)
    return tuple(found)
