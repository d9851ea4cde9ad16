"""`agreement`: what the difference of two sides does to the answers over a whole dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.statistics import CONFIDENCE
from mlscope_lab.config import Settings, load_settings
from mlscope_lab.divergence.agreement_dataset import Reply, Tally, agreement_dataset
from mlscope_lab.divergence.answering import Answering, Answers, rows_of
from mlscope_lab.divergence.samples import Sample, Samples, samples_of
from mlscope_lab.divergence.sides import OpenSide, open_side, side_of
from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.processing.detections import DetectionOutputs
from mlscope_lab.processing.recipe import batch_axis
from mlscope_lab.progress import Reporter, reporter

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["agreement"]

Array = npt.NDArray[Any]


def agreement(
    a: Any,
    b: Any,
    dataset: Any,
    *,
    model: Any = None,
    targets: Sequence[int] | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    k: int = 5,
    detections: Mapping[str, Any] | None = None,
    calibration: Sequence[Any] | None = None,
    confidence: float = CONFIDENCE,
    progress: bool | Reporter | None = None,
    settings: Settings | None = None,
) -> xr.Dataset:
    """Ask two sides the same questions, and tell where their answers part.

    Parameters
    ----------
    a, b
        The reference and the other side, as for `mlscope_lab.compare`: mappings of what differs
        (``{"precision": "int8-dynamic"}``, see `mlscope_lab.divergence.sides.Side`), names of backends where `model` is
        given, or models: names, files, live objects, what `mlscope_lab.load` returned.
    dataset
        A dataset, the name of a published one, a folder with or without a subfolder a class, a list of samples or of
        (sample, target) pairs. Samples of live objects are arrays without batch axis.
    model
        What both sides share.
    targets
        Right class of each sample, where `dataset` does not tell.
    batch_size
        Samples a predict, of sides that do not say their own; one by one where a model takes no more.
    limit
        Most samples to take.
    k
        Ranks to compare.
    detections
        How to read boxes, see `mlscope_lab.processing.detections.DetectionOutputs`. Default: what the manifest of a
        model for object or face detection says under ``attributes.detections``.
    calibration
        Samples from which ``precision="int8-static"`` learns its ranges; default the first 8 that can be read.
    confidence
        Of all intervals.
    progress, settings
        As for `mlscope_lab.profile`.

    Returns
    -------
    xarray.Dataset
        Along ``sample`` and ``rank``, see `mlscope_lab.divergence.agreement_dataset.agreement_dataset`. The attribute
        ``verdict`` says it in words, ``left_out`` names samples that could not be read, ``failure`` says which side
        failed where, when one did: what came before it is kept.

    Raises
    ------
    InputError
        If no sample can be read, or the sides answer in different classes.
    SessionError
        If a side fails on the very first sample.
    MlscopeError
        What `mlscope_lab.load` raises.

    Examples
    --------
    >>> import numpy as np
    >>> import mlscope_lab as ml
    >>> found = ml.agreement(lambda x: x, lambda x: 1 - x, [np.array([0.2, 0.8]), np.array([0.5, 0.5])])
    >>> found["agrees"].values.tolist()
    [False, True]
    """
    if batch_size < 1 or k < 1:
        raise InputError("batch_size and k must be at least 1")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, not {confidence}")
    resolved = settings or load_settings()
    sides = side_of(a, model=model), side_of(b, model=model)
    unnamed = samples_of(dataset, targets=targets, limit=limit, settings=resolved)
    if any(side.precision == "int8-static" for side in sides) and calibration is None:
        calibration = [s.value for s in islice((s for s in unnamed if not s.problem), 8)]
    with reporter(progress, total=2 + len(unnamed), title="agreement") as line, ExitStack() as stack:
        example = _example(unnamed)
        opened = []
        for side in sides:
            line.stage("opening")
            opened.append(
                stack.enter_context(
                    open_side(side, settings=resolved, example=example, calibration=calibration, reporter=line)
                )
            )
            line.advance()
        asked = [_Asked(one, batch_size) for one in opened]
        labels = next((x.answering.labels for x in asked if x.answering.labels is not None), None)
        samples = samples_of(dataset, targets=targets, labels=labels, limit=limit, settings=resolved)
        boxes = _detection_outputs(opened, detections, resolved)
        tally = Tally(k=k, boxes=boxes, labels=labels, order=_order(asked[0].answering, asked[1].answering))
        _run(asked, samples, tally, line)
        facts = [one.facts() for one in opened]
        how = [x.answering.how for x in asked]
    return agreement_dataset(tally, sides=facts, how=how, dataset=samples.name, asked=len(samples),
                             confidence=confidence)  # fmt: skip


def _example(samples: Samples) -> Any:
    """Return a batch of one of the first sample that is an array: the example of a live object."""
    first = next((s.value for s in samples if not s.problem), None)
    if isinstance(first, Mapping):
        return {name: np.asarray(value)[None] for name, value in first.items() if not isinstance(value, str | bytes)}
    return None if first is None or not isinstance(first, np.ndarray | list | tuple) else np.asarray(first)[None]


def _order(a: Answering, b: Answering) -> Array | None:
    """Return where a's classes are among b's, None where both count alike."""
    if a.labels is None or b.labels is None or a.labels == b.labels or sorted(a.labels) != sorted(b.labels):
        return None
    if len(set(b.labels)) != len(b.labels):
        return None
    place = {label: i for i, label in enumerate(b.labels)}
    return np.array([place[label] for label in a.labels])


def _detection_outputs(
    opened: Sequence[OpenSide], given: Mapping[str, Any] | None, settings: Settings
) -> DetectionOutputs | None:
    """Return how to read boxes, where somebody says."""
    if given is not None:
        return DetectionOutputs.from_mapping(given)
    from mlscope_lab.catalog import load_catalog

    for one in opened:
        subject = one.subject
        if subject.task not in {"object-detection", "face-detection"} or subject.manifest_digest is None:
            continue
        for entry in load_catalog(settings).models(task=subject.task):
            said = entry.manifest.attributes.get("detections")
            if entry.digest == subject.manifest_digest and isinstance(said, Mapping):
                return DetectionOutputs.from_mapping(said)
    return None


class _Asked:
    """One open side, asked in batches of its own size."""

    def __init__(self, opened: OpenSide, batch_size: int) -> None:
        self.opened = opened
        self.answering = Answering(opened.recipe)
        self.step = opened.side.batch_size or batch_size
        # of what a framework says nothing about, the first axis is taken for the batch
        self._axes = {spec.name: 0 if spec.shape is None else batch_axis(spec) for spec in opened.session.outputs}
        self._axes |= {r.spec.name: r.batch_axis for r in opened.recipe.outputs}

    def feeds(self, values: Sequence[Any]) -> dict[str, Array]:
        first = values[0]
        given: Any = {name: [v[name] for v in values] for name in first} if isinstance(first, Mapping) else list(values)
        if self.opened.subject.live is not None and not isinstance(given, Mapping):
            given = np.stack([np.asarray(v) for v in given])
        return self.opened.feeds(given, len(values))

    def outputs_of(self, answers: Answers, index: int) -> dict[str, Array]:
        """Return all outputs of one sample of a batch."""
        return {
            name: array if self._axes.get(name, 0) is None else rows_of(array, self._axes.get(name, 0))[index]
            for name, array in answers.outputs.items()
        }


def _replies(asked: _Asked, samples: Sequence[Sample]) -> list[Reply]:
    """Ask one side about some samples, a predict for each of its batches."""
    found: list[Reply] = []
    for start in range(0, len(samples), asked.step):
        part = samples[start : start + asked.step]
        answers = asked.answering.of(asked.opened.session.predict(asked.feeds([s.value for s in part])))
        if len(answers.values) < len(part):
            raise InputError(f"'{asked.opened.subject.name}' gave {len(answers.values)} answers to {len(part)} samples")
        for i in range(len(part)):  # a batch that was filled up gives more answers than were asked for
            found.append(
                Reply(
                    values=answers.values[i],
                    probabilities=None if answers.probabilities is None else answers.probabilities[i],
                    outputs=asked.outputs_of(answers, i),
                )
            )
    return found


def _batched(samples: Samples, size: int) -> Iterator[list[Sample]]:
    source = iter(samples)
    while chunk := list(islice(source, size)):
        yield chunk


def _run(asked: Sequence[_Asked], samples: Samples, tally: Tally, line: Reporter) -> None:
    """Fill the tally: what cannot be read is left out; the first failure of a side ends it."""
    line.stage("asking")
    size = max(one.step for one in asked)
    alone = False
    for chunk in _batched(samples, size):
        readable = []
        for sample in chunk:
            if sample.problem:
                tally.leave_out(sample.name, sample.problem)
            else:
                readable.append(sample)
        if readable and not alone:
            try:
                replies = [_replies(one, readable) for one in asked]
            except (InputError, SessionError):
                # one of them cannot be read, or they do not fit into one batch: one by one then tells which
                alone = _one_by_one(asked, readable, tally) and len(readable) > 1
            else:
                for sample, *pair in zip(readable, *replies, strict=True):
                    tally.add(sample, *pair)
        else:
            _one_by_one(asked, readable, tally)
        line.advance(len(chunk))
        if tally.failure is not None:
            return
    if not len(tally):
        reasons = "; ".join(f"{name}: {why}" for name, why in islice(tally.left_out.items(), 3))
        raise InputError(f"None of the {len(samples)} samples could be compared. {reasons}")


def _one_by_one(asked: Sequence[_Asked], samples: Sequence[Sample], tally: Tally) -> bool:
    """Ask about each sample alone; return whether all were answered, so that the batch was to blame."""
    fine = True
    for sample in samples:
        pair = []
        for letter, one in zip("ab", asked, strict=True):
            try:
                pair += _replies(one, [sample])
            except InputError as error:
                tally.leave_out(sample.name, str(error))
                fine = False
                break
            except SessionError as error:
                if not len(tally):
                    raise
                tally.fail(letter, sample.name, str(error))
                return False
        else:
            tally.add(sample, *pair)
    return fine
