"""The two sides of a comparison: what each is, and each opened and fed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from mlscope_lab.backends.base import Session, SessionOptions, TensorSpec
from mlscope_lab.collectors.environment import available_cores
from mlscope_lab.config import Settings
from mlscope_lab.errors import InputError, nearest
from mlscope_lab.handle import Model
from mlscope_lab.launchers.tasks import feeds_of
from mlscope_lab.plugins import names as plugin_names
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.recipe import Recipe
from mlscope_lab.progress import Reporter
from mlscope_lab.subject import Subject, as_feeds, resolve, samples_for

__all__ = ["OpenSide", "Side", "open_side", "side_of", "split_samples"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one side of a comparison is; building it touches nothing.

    Attributes
    ----------
    model
        Name of a published model, path of a manifest or model file, a live object, or a `Model` from `load`, whose open
        session is used then.
    backend, device, threads
        As for `mlscope_lab.profile`.
    precision, graph_optimization
        As for `mlscope_lab.backends.base.SessionOptions`; None for as published, and for the framework's default.
    batch_size
        Samples a predict; the batch is filled with repetitions where fewer are compared. None for as many as are.
    preprocess
        Steps in place of the declared ones: a list for the one input, or a mapping from input names to lists.
    """

    model: Any
    backend: str | None = None
    device: str = "cpu"
    threads: int | None = None
    precision: str | None = None
    graph_optimization: str | None = None
    batch_size: int | None = None
    preprocess: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]] | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.model is None:
            raise InputError("Each side needs a model: compare({...}, {...}, input, model='efficientnet-lite0')")
        if isinstance(self.model, Model):
            for field in dataclasses.fields(self):
                if (
                    field.name not in {"model", "batch_size", "preprocess"}
                    and getattr(self, field.name) != field.default
                ):
                    raise InputError(
                        f"A loaded model keeps its own {field.name}; say ml.load(..., {field.name}="
                        f"{getattr(self, field.name)!r}) instead"
                    )


def side_of(given: Any, *, model: Any = None) -> Side:
    """Return the side that a caller means.

    Parameters
    ----------
    given
        A `Side`; a mapping of its fields; the name of a backend, where `model` says of what; or a model as in
        `Side.model`.
    model
        What both sides share.

    Raises
    ------
    InputError
        If a field does not exist.
    """
    if isinstance(given, Side):
        return given
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        known = [f.name for f in dataclasses.fields(Side)]
        for name in given:
            if name not in known:
                raise InputError(f"A side has no '{name}'. Known: {', '.join(known)}.{nearest(name, known)}")
        return Side(**{"model": model, **given})
    if model is not None and isinstance(given, str) and given in plugin_names("mlscope_lab.backends"):
        return Side(model=model, backend=given)
    if given is None and model is not None:
        return Side(model=model)
    if model is not None:
        raise InputError(
            f"model= names what both sides share, so each side is a backend or a mapping such as "
            f"{{'backend': 'pytorch'}}, not {given!r:.80}"
        )
    return Side(model=given)


class OpenSide:
    """A side whose session is open; a context manager that closes it, unless the caller had it open already.

    Attributes
    ----------
    side, subject, session
        What it is, what it resolved to, and what runs it.
    recipe
        The steps in force.
    """

    def __init__(self, side: Side, subject: Subject, session: Session, recipe: Recipe, *, owned: bool) -> None:
        self.side, self.subject, self.session, self.recipe, self._owned = side, subject, session, recipe, owned

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            self.session.close()

    @property
    def label(self) -> str:
        """Name it in a sentence: ``onnxruntime (float16, graph_optimization none)``."""
        side = self.side
        extra = [
            *([side.precision] if side.precision else []),
            *([f"graph_optimization {side.graph_optimization}"] if side.graph_optimization else []),
            *([f"batch {side.batch_size}"] if side.batch_size and side.batch_size > 1 else []),
            *(["other preprocessing"] if side.preprocess is not None else []),
        ]
        return self.subject.backend.name + (f" ({', '.join(extra)})" if extra else "")

    def facts(self) -> dict[str, Any]:
        """Return what a comparison records of this side, JSON-able."""
        session, files, given = self.session, self.subject.files, self.side.model
        recipe = self.recipe.to_json()
        for kind in recipe.values():
            for item in kind:
                for step in item["steps"]:
                    step.pop("labels", None)
        return {
            "model": self.subject.name,
            "given": os.fspath(given) if isinstance(given, str | os.PathLike) else "",
            "model_version": self.subject.version,
            "model_digest": self.subject.digest,
            "format": files.format if files is not None else "live",
            "derived_from": dict(files.derived_from) if files is not None and files.derived_from else {},
            "backend": self.subject.backend.name,
            "backend_version": self.subject.backend.availability().version or "",
            "device": session.device,
            "precision": self.side.precision or session.precision,
            "asked_precision": self.side.precision or "",
            "batch_size": self.side.batch_size,
            "threads": session.threads,
            "graph_optimization": self.side.graph_optimization or "default",
            "execution_mode": session.execution_mode,
            "executable_digest": session.executable_digest,
            "preprocessing": recipe["inputs"],
            "label": self.label,
            "warnings": list(session.warnings),
        }

    def feeds(self, samples: Any, count: int, *, batch: int | None = None) -> dict[str, Array]:
        """Return the feeds of one predict.

        Parameters
        ----------
        samples
            A list of `count` samples, or a dict of these by input name, None for seeded values; for a live object its
            arrays, None for its example.
        count
            How many there are.
        batch
            Samples in the predict; default that of the side.

        Raises
        ------
        InputError
            If a sample cannot be read or does not fit.
        """
        names = [spec.name for spec in self.session.inputs]
        if self.subject.live is not None:
            feeds = as_feeds(self.subject.example if samples is None else samples)
            return _named(feeds, names, self.subject.name)
        batch = batch or max(self.side.batch_size or count, count)
        if isinstance(samples, Mapping):
            known = [r.spec.name for r in self.recipe.inputs] or names
            if set(samples) - set(known) and len(samples) == len(known):
                samples = dict(zip(known, samples.values(), strict=True))
        subject = dataclasses.replace(self.subject, recipe=self.recipe)
        described, arrays = samples_for(subject, samples, None if samples is None else batch)
        task = {
            "recipe": self.recipe.to_json(), "samples": described, "batch_size": batch if samples is None else None,
            "seed": 0, "symbols": dict(self.subject.symbols),
        }  # fmt: skip
        return dict(feeds_of(task, arrays, self.session))


def _named(feeds: dict[str, Array], names: list[str], model: str) -> dict[str, Array]:
    """Return feeds under the session's names, by name or else by order."""
    if not names or set(feeds) == set(names):
        return feeds
    if len(feeds) != len(names):
        raise InputError(f"'{model}' takes the inputs {', '.join(names)}; {len(feeds)} are given ({', '.join(feeds)})")
    return dict(zip(names, feeds.values(), strict=True))


def _replaced(recipe: Recipe, preprocess: Any, model: str) -> Recipe:
    """Return a recipe whose inputs have other steps."""
    if preprocess is None:
        return recipe
    names = [r.spec.name for r in recipe.inputs]
    if not names:
        raise InputError(f"'{model}' declares no preprocessing that could be replaced; give it a manifest")
    if not isinstance(preprocess, Mapping):
        changeable = [r.spec.name for r in recipe.inputs if not r.constant]
        if len(changeable) != 1:
            raise InputError(f"'{model}' has the inputs {', '.join(names)}: give preprocess as a mapping by input name")
        preprocess = {changeable[0]: preprocess}
    for name in preprocess:
        if name not in names:
            raise InputError(f"'{model}' has no input '{name}'. Inputs: {', '.join(names)}.{nearest(name, names)}")
    return dataclasses.replace(
        recipe,
        inputs=tuple(
            dataclasses.replace(r, pipeline=Pipeline.from_specs(preprocess[r.spec.name]))
            if r.spec.name in preprocess
            else r
            for r in recipe.inputs
        ),
    )


def open_side(
    side: Side,
    *,
    settings: Settings,
    example: Any = None,
    calibration: Sequence[Any] | None = None,
    reporter: Reporter | None = None,
) -> OpenSide:
    """Resolve a side and open its session in this process.

    Parameters
    ----------
    side
        What to open.
    settings
        Where caches are.
    example
        Input of a live object.
    calibration
        Samples from which ``precision="int8-static"`` learns ranges; default `example`, where that is given.
    reporter
        Where to say what takes long.

    Raises
    ------
    MlscopeError
        What `mlscope_lab.load` raises.
    """
    if isinstance(side.model, Model):
        subject, session, owned = side.model.subject, side.model.session, False
    else:
        subject = resolve(side.model, backend=side.backend, example=example, settings=settings, reporter=reporter)
        options = SessionOptions(
            threads=side.threads or available_cores(),
            device=side.device,
            precision=side.precision,
            graph_optimization=side.graph_optimization,
        )
        if side.precision == "int8-static":
            options = dataclasses.replace(options, calibration=_calibration(side, subject, calibration, example))
        session, owned = subject.open(options), True
    try:
        recipe = _replaced(subject.recipe, side.preprocess, subject.name)
        return OpenSide(side, subject, session, recipe, owned=owned)
    except BaseException:
        if owned:
            session.close()
        raise


def _calibration(
    side: Side, subject: Subject, calibration: Sequence[Any] | None, example: Any
) -> tuple[Mapping[str, Array], ...]:
    """Return feeds for static quantisation, made by a plain session's inputs."""
    samples = list(calibration) if calibration is not None else split_samples(example)
    if not samples or samples[0] is None:
        raise InputError(
            "precision='int8-static' learns its ranges from samples: give an input, or calibration=[...] with more"
        )
    with subject.open(SessionOptions(threads=side.threads or available_cores(), device=side.device)) as session:
        plain = OpenSide(side, subject, session, _replaced(subject.recipe, side.preprocess, subject.name), owned=False)
        return tuple(plain.feeds(sample, 1) for sample in samples)


def split_samples(given: Any) -> list[Any]:
    """Return the samples of an input set: a list's items, each as a list of one; else what is given, whole.

    A mapping whose values are all lists of one length is taken apart into mappings.
    """
    if isinstance(given, list):
        return [[item] for item in given]
    if isinstance(given, Mapping) and given and all(isinstance(v, list) for v in given.values()):
        lengths = {len(v) for v in given.values()}
        if len(lengths) > 1:
            raise InputError(f"The inputs have lists of different lengths: {', '.join(map(str, sorted(lengths)))}")
        return [{name: [v[i]] for name, v in given.items()} for i in range(lengths.pop())]
    return [given]


def describe_inputs(specs: Sequence[TensorSpec]) -> str:
    """Return inputs or outputs in words."""
    return ", ".join(spec.describe() for spec in specs) or "nothing"
