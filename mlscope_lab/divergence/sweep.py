"""`sweep_preprocessing`: what happens to a model's answer when its input is prepared in another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.config import Settings, load_settings
from mlscope_lab.divergence.answering import Answering, Answers, interaction_of
from mlscope_lab.divergence.causes import Observed
from mlscope_lab.divergence.samples import Sample, Samples, samples_of
from mlscope_lab.divergence.sides import OpenSide, Side, open_side
from mlscope_lab.divergence.spool import Spool
from mlscope_lab.divergence.sweep_dataset import Row, Swept, sweep_dataset
from mlscope_lab.errors import InputError, MlscopeError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.recipe import Recipe, TensorRecipe
from mlscope_lab.processing.variants import AXES, Variation, variations
from mlscope_lab.processing.variants import pairs as pairs_of
from mlscope_lab.progress import Reporter, reporter

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["sweep_preprocessing"]

Array = npt.NDArray[Any]


def sweep_preprocessing(
    model: Any,
    input: Any,  # noqa: A002 - the word that every caller expects
    *,
    targets: Sequence[int] | None = None,
    observed: Any = None,
    backend: str | None = None,
    pairs: bool = True,
    axes: Sequence[str] | None = None,
    input_name: str | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    threads: int | None = None,
    progress: bool | Reporter | None = None,
    settings: Settings | None = None,
) -> xr.Dataset:
    """Prepare an input in every way that people get wrong, and tell what each does to the answer.

    Parameters
    ----------
    model
        Name of a published model, path of a manifest, or a `Model` from `load`; its manifest declares the steps that
        are varied.
    input
        A sample, a list of samples, a dataset, its name or folder, or a list of (sample, target) pairs.
    targets
        Right class of each sample, where `input` does not tell.
    observed
        An answer that somebody saw, to be explained: a class index, a label, ``(class, probability)``, or a vector of
        the scores of all classes. With several samples a list of these, one a sample.
    backend, threads
        As for `mlscope_lab.load`.
    pairs
        Put variations together, too, two at a time. Of those that leave the input as it is on these samples no pairs
        are made.
    axes
        Which of `mlscope_lab.processing.variants.AXES` to vary; default all.
    input_name
        Which input, where several are prepared from samples.
    batch_size
        Samples a predict.
    limit
        Most samples to take.
    progress, settings
        As for `mlscope_lab.profile`.

    Returns
    -------
    xarray.Dataset
        Along ``variation`` (ranked, the largest effect first), ``sample`` and ``part``; see
        `mlscope_lab.divergence.sweep_dataset.sweep_dataset`. With `observed` the variables ``explains``, ``fit`` and
        ``explanation_rank``, and the attribute ``cause``; see `mlscope_lab.divergence.causes.named_cause`.

    Raises
    ------
    InputError
        If the model declares no steps that could be varied, or no sample can be read.
    MlscopeError
        What `mlscope_lab.load` raises.

    References
    ----------
    Li et al., "Challenges and Pitfalls of Machine Learning Evaluation and Benchmarking", arXiv 1904.12437.
    """
    resolved = settings or load_settings()
    for axis in axes or ():
        if axis not in AXES:
            raise InputError(f"Unknown axis {axis!r}. Known: {', '.join(AXES)}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    side = Side(model=model, backend=backend, threads=threads)
    with (
        reporter(progress, total=3, title="sweep") as line,
        open_side(side, settings=resolved, reporter=line) as opened,
        Spool() as spool,
    ):
        line.advance()
        varied = _varied_input(opened, input_name)
        labels = Answering(opened.recipe).labels
        samples = samples_of(input, targets=targets, labels=labels, limit=limit, settings=resolved)
        told = Observed.of(observed, labels, len(samples))
        sweep = _Sweep(opened, varied, batch_size, spool, told)
        return sweep_dataset(sweep.run(samples, axes, pairs, line))


def _varied_input(opened: OpenSide, name: str | None) -> TensorRecipe:
    """Return the input whose steps are varied."""
    found = [r for r in opened.recipe.inputs if r.pipeline.steps and not r.constant]
    if name is not None:
        found = [r for r in found if r.spec.name == name]
    if len(found) == 1:
        if not variations(found[0].pipeline):
            raise InputError(
                f"No variation is known of the steps of input '{found[0].spec.name}' of '{opened.subject.name}' "
                f"({', '.join(found[0].pipeline.names)}); pictures, sound and bytes can be varied"
            )
        return found[0]
    known = ", ".join(r.spec.name for r in opened.recipe.inputs)
    if found:
        raise InputError(f"'{opened.subject.name}' prepares several inputs ({known}); say input_name=")
    if name is not None:
        raise InputError(f"'{opened.subject.name}' declares no preprocessing for an input '{name}'. Inputs: {known}")
    raise InputError(
        f"'{opened.subject.name}' declares no preprocessing to vary; write a manifest that says how a sample becomes "
        "its input"
    )


class _Sweep:
    """Samples run through one open model under many recipes, one variation after the other.

    Memory holds one batch at a time: declared tensors, and the answers of single variations, of which pairs are judged,
    wait on disk.
    """

    def __init__(
        self, opened: OpenSide, varied: TensorRecipe, batch: int, spool: Spool, observed: Observed | None
    ) -> None:
        self._opened, self._varied, self._spool, self._observed = opened, varied, spool, observed
        self._answering = Answering(opened.recipe)
        axis, shape = varied.batch_axis, varied.spec.shape
        others = [d for i, d in enumerate(shape or ()) if i != axis and not isinstance(d, int)]
        # pictures of a model that takes any size cannot be stacked
        self._batch = batch if axis is not None and shape is not None and shape[axis] != 1 and not others else 1
        self._written = 0

    def run(self, samples: Samples, axes: Sequence[str] | None, with_pairs: bool, line: Reporter) -> Swept:
        """Return everything measured."""
        declared = self._varied.pipeline
        line.stage("the declared steps")
        kept, left_out = self._declared_tensors(samples)
        reference = Row(variation=Variation(axes=(), name="as declared", steps=tuple(declared.to_specs())))
        answers: list[int] = []
        for chunk in self._chunks(len(kept)):
            found = self._answers([self._spool.read(i) for i in chunk])
            answers.append(self._keep(found))
            reference.add(found, found, self._observed, [kept[i][1] for i in chunk])
        singles = [v for v in variations(declared) if axes is None or set(v.axes) <= set(axes)]
        rows: list[Row] = []
        skipped: dict[str, str] = {}
        of: dict[str, list[int]] = {}
        for number, variation in enumerate(singles):
            line.stage(f"{number + 1} of {len(singles)}: {variation.name}")
            self._measure(variation, kept, answers, of, rows, skipped)
        line.advance()
        if with_pairs:
            acting = [row.variation for row in rows if max(row.input_max_abs) > 0]
            made = pairs_of(declared, acting)
            for number, variation in enumerate(made):
                line.stage(f"pair {number + 1} of {len(made)}: {variation.name}")
                self._measure(variation, kept, answers, of, rows, skipped)
        line.advance()
        return Swept(
            model=self._opened.subject.name, backend=self._opened.subject.backend.name, dataset=samples.name,
            input=self._varied.spec.name, output=self._answering.output, how=self._answering.how,
            labels=self._answering.labels, names=tuple(s.name for s, _ in kept),
            targets=tuple(s.target for s, _ in kept), reference=reference, rows=tuple(rows), not_applicable=skipped,
            left_out=left_out, observed=self._observed,
        )  # fmt: skip

    def _declared_tensors(self, samples: Samples) -> tuple[list[tuple[Sample, int]], dict[str, str]]:
        """Spool the declared tensor of every sample that can be read, under its place among these."""
        kept: list[tuple[Sample, int]] = []
        left_out: dict[str, str] = {}
        raw = False
        for position, sample in enumerate(samples):
            try:
                if sample.problem:
                    raise InputError(sample.problem)
                tensor = self._tensor(self._varied.pipeline, sample.value)
            except MlscopeError as error:
                left_out[sample.name] = str(error)
                continue
            raw = raw or (isinstance(sample.value, np.ndarray) and sample.value.size == tensor.size
                          and np.array_equal(sample.value.reshape(tensor.shape), tensor))  # fmt: skip
            self._spool.write(len(kept), tensor)
            # what was decoded already stays in memory with its owner; files are read anew
            kept.append((sample, position))
        if not kept:
            raise InputError(f"No sample can be read: {next(iter(left_out.values()))}")
        if raw:
            raise InputError(
                "A sample is the input tensor already, so that no step applies to it; give pictures or files"
            )
        self._written = len(kept)
        return kept, left_out

    def _keep(self, found: Answers) -> int:
        """Spool an answer and return its number."""
        self._spool.write(self._written, found.values if found.probabilities is None else found.probabilities)
        self._written += 1
        return self._written - 1

    def _chunks(self, count: int) -> Iterator[range]:
        for start in range(0, count, self._batch):
            yield range(start, min(start + self._batch, count))

    def _feeds(self, pipeline: Pipeline, values: list[Any]) -> dict[str, Array]:
        inputs = tuple(
            dataclasses.replace(r, pipeline=pipeline) if r.spec.name == self._varied.spec.name else r
            for r in self._opened.recipe.inputs
        )
        recipe: Recipe = dataclasses.replace(self._opened.recipe, inputs=inputs)
        opened = self._opened
        return OpenSide(opened.side, opened.subject, opened.session, recipe, owned=False).feeds(values, len(values))

    def _tensor(self, pipeline: Pipeline, value: Any) -> Array:
        """Return the varied input of one sample, batch axis included."""
        feeds = self._feeds(pipeline, [value])
        position = [r.spec.name for r in self._opened.recipe.inputs].index(self._varied.spec.name)
        return feeds.get(self._varied.spec.name, list(feeds.values())[position])

    def _answers(self, tensors: list[Array]) -> Answers:
        """Return what the model says to prepared tensors."""
        return self._answering.of(self._opened.session.predict(self._feeds(self._varied.pipeline, tensors)))

    def _measure(
        self, variation: Variation, kept: Sequence[tuple[Sample, int]], reference: Sequence[int],
        of: dict[str, list[int]], rows: list[Row], skipped: dict[str, str],
    ) -> None:  # fmt: skip
        """Append the row of a variation, or say why there is none."""
        row, pipeline = Row(variation=variation), variation.pipeline
        numbers: list[int] = []
        try:
            for place, chunk in enumerate(self._chunks(len(kept))):
                tensors = []
                for index in chunk:
                    before, after = self._spool.read(index), self._tensor(pipeline, kept[index][0].value)
                    if after.shape != before.shape:
                        raise InputError(f"it makes a tensor {list(after.shape)}, not {list(before.shape)}")
                    row.add_input(before, after)
                    tensors.append(after)
                found = self._answers(tensors)
                declared = self._read(reference[place], found)
                row.add(declared, found, self._observed, [kept[i][1] for i in chunk])
                if variation.parts:
                    one, other = (self._read(of[name][place], found) for name in variation.parts)
                    row.interaction.extend(interaction_of(declared, found, one, other).tolist())
                else:
                    numbers.append(self._keep(found))
        except MlscopeError as error:
            skipped[variation.name] = str(error)
            return
        if not variation.parts:
            of[variation.name] = numbers
        rows.append(row)

    def _read(self, number: int, like: Answers) -> Answers:
        """Return a spooled answer of the same kind as another."""
        array = self._spool.read(number)
        if like.probabilities is None:
            return Answers(values=array, probabilities=None, outputs={})
        return Answers(values=array, probabilities=array, outputs={})
