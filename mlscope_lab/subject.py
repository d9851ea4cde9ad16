"""What a call is about: a published model, a bare file or a live object, together with the backend that runs it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends import backend_for, installed, load_backend
from mlscope_lab.backends.base import Backend, ModelFiles, Session, SessionOptions
from mlscope_lab.config import Settings
from mlscope_lab.errors import InputError, ManifestError, UnsupportedModelError, nearest
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.recipe import Recipe, TensorRecipe, specs_of
from mlscope_lab.progress import Quiet, Reporter

__all__ = ["SUFFIXES", "Subject", "as_feeds", "resolve", "samples_for"]

SUFFIXES = {
    ".onnx": "onnx",
    ".jit": "torchscript",
    ".torchscript": "torchscript",
    ".pt2": "torch_exported",
    ".keras": "keras",
    ".tflite": "tflite",
}
_WEIGHTS_ONLY = {".pt", ".pth", ".safetensors", ".bin", ".h5"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and who runs it.

    Attributes
    ----------
    name, version, task, digest
        For the record; the digest is that of the published or derived file, or of a live object's weights' layout.
    backend
        Who runs it.
    recipe
        Declared steps; without inputs where nothing declares them.
    files
        Where its bytes are, or None for a live object.
    live
        The live object, or None.
    example
        Feeds for a live object.
    manifest_digest
        Of the manifest, or None.
    symbols
        Usual lengths of symbolic dimensions, for seeded values.
    """

    name: str
    version: str
    task: str
    digest: str
    backend: Backend
    recipe: Recipe
    files: ModelFiles | None = None
    live: object | None = None
    example: Mapping[str, npt.NDArray[Any]] | None = None
    manifest_digest: str | None = None
    symbols: Mapping[str, int] = field(default_factory=dict)

    def open(self, options: SessionOptions) -> Session:
        """Open a session in this process."""
        if self.files is not None:
            return self.backend.open(self.files, options)
        return self.backend.wrap(self.live, self.example or {}, options)


def _backend_named(name: str | None, formats: Sequence[str]) -> Backend:
    """Return the wanted backend, or the first installed one that opens one of the formats as it is."""
    if name is not None:
        return load_backend(name)
    for candidate in installed():
        backend = load_backend(candidate)
        if set(backend.formats) & set(formats):
            return backend
    raise UnsupportedModelError(
        f"No installed backend opens {', '.join(formats)}. Installed: {', '.join(installed()) or 'none'}. "
        "Install all with: pip install 'mlscope-lab[cpu]'"
    )


def _published(name: str, backend_name: str | None, settings: Settings, reporter: Reporter) -> Subject:
    from mlscope_lab.artifacts import fetch
    from mlscope_lab.catalog import load_catalog, load_entry
    from mlscope_lab.conversion.resolve import files_for
    from mlscope_lab.manifest.model import ModelManifest
    from mlscope_lab.processing.labels import load_labels

    is_file = name.endswith((".yaml", ".yml"))
    entry = load_entry(Path(name)) if is_file else load_catalog(settings).model(name)
    manifest, base = entry.manifest, entry.path.parent
    if not isinstance(manifest, ModelManifest):
        raise ManifestError(f"{entry.path.name} describes a {manifest.kind}, not a model")
    backend = _backend_named(backend_name, [s.format for s in manifest.sources])
    backend.require()
    files = files_for(manifest, backend, settings=settings, base=base, progress=reporter.bytes, report=reporter.note)
    labels = None
    if manifest.labels is not None:
        labels = load_labels(
            manifest.labels, lambda where: fetch(where, settings=settings, base=base, progress=reporter.bytes).path
        )
    return Subject(
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        digest=files.digest,
        backend=backend,
        recipe=_recipe(manifest, labels),
        files=files,
        manifest_digest=entry.digest,
        symbols=manifest.symbols,
    )


def _recipe(manifest: Any, labels: tuple[str, ...] | None) -> Recipe:
    def pipeline(steps: Sequence[Mapping[str, Any]]) -> Pipeline:
        made = Pipeline.from_specs(steps)
        if labels is None:
            return made
        filled = tuple(
            replace(step, labels=labels) if getattr(step, "labels", labels) is None else step  # type: ignore[call-arg]
            for step in made.steps
        )
        return replace(made, steps=filled)

    return Recipe(
        inputs=tuple(
            TensorRecipe(spec=spec, pipeline=pipeline(item.preprocess))
            for spec, item in zip(specs_of(manifest.inputs), manifest.inputs, strict=True)
        ),
        outputs=tuple(
            TensorRecipe(spec=spec, pipeline=pipeline(item.postprocess))
            for spec, item in zip(specs_of(manifest.outputs), manifest.outputs, strict=True)
        ),
    )


def _format_of(path: Path) -> str:
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "saved_model"
        raise InputError(f"{path} is a folder without saved_model.pb; of folders, SavedModels can be opened")
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    if path.suffix.lower() in _WEIGHTS_ONLY:
        raise InputError(
            f"{path.name} may hold weights only, or a TorchScript archive. Write a manifest that says which (format "
            "and, for weights, architecture), or rename a TorchScript file to .torchscript"
        )
    raise InputError(f"{path.name}: unknown ending. Known: {', '.join(SUFFIXES)}, and SavedModel folders")


def _bare_file(path: Path, backend_name: str | None) -> Subject:
    from mlscope_lab.artifacts import digest_of
    from mlscope_lab.artifacts.safety import check_safe

    form = _format_of(path)
    backend = _backend_named(backend_name, [form])
    backend.require()
    if form not in backend.formats:
        raise UnsupportedModelError(
            f"Backend '{backend.name}' opens {', '.join(backend.formats)}, not {form}. A model with a manifest can be "
            "converted; a bare file runs as it is"
        )
    check_safe(path, form, trusted=False)
    digest = digest_of(path)
    files = ModelFiles(name=path.name, format=form, path=path.absolute(), digest=digest)
    return Subject(
        name=path.stem, version="", task="tensor", digest=digest, backend=backend, recipe=Recipe(inputs=()), files=files
    )


def _live(obj: object, example: Any, backend_name: str | None) -> Subject:
    backend = load_backend(backend_name) if backend_name is not None else backend_for(obj)
    if backend is None or not backend.accepts(obj):
        who = "no installed backend takes" if backend is None else f"backend '{backend.name}' does not take"
        raise UnsupportedModelError(
            f"{who} a {type(obj).__module__}.{type(obj).__qualname__}. Give the name of a published model, a model "
            "file, a torch.nn.Module, a keras.Model or any callable"
        )
    feeds = as_feeds(example)
    name = getattr(obj, "__qualname__", None) or getattr(obj, "name", None) or type(obj).__name__
    layout = repr([(n, a.dtype.str, a.shape) for n, a in feeds.items()])
    identity = f"{type(obj).__module__}.{type(obj).__qualname__}:{name}:{layout}"
    return Subject(
        name=str(name),
        version="",
        task="tensor",
        digest="live:" + hashlib.sha256(identity.encode()).hexdigest(),
        backend=backend,
        recipe=Recipe(inputs=()),
        live=obj,
        example=feeds,
    )


def as_feeds(example: Any) -> dict[str, npt.NDArray[Any]]:
    """Return example inputs (one, a tuple of several, or a dict by name) as arrays by name.

    Raises
    ------
    InputError
        If there are none, or one holds something other than numbers.
    """
    if example is None:
        raise InputError("A live object needs example inputs: input=array, a tuple of arrays, or a dict by name")
    if not isinstance(example, Mapping):
        items = example if isinstance(example, tuple) else (example,)
        example = {f"input_{i}": value for i, value in enumerate(items)}
    feeds = {}
    for name, value in example.items():
        array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        if array.dtype.hasobject:
            raise InputError(f"Input '{name}' must be an array of numbers, not {type(value).__name__}")
        feeds[str(name)] = array
    return feeds


def resolve(
    model: Any, *, backend: str | None, example: Any, settings: Settings, reporter: Reporter | None = None
) -> Subject:
    """Find out what the caller means by `model`.

    Parameters
    ----------
    model
        A published model's name (``"efficientnet-lite0"``, ``"name@version"``), the path of a manifest, the path of a
        model file or SavedModel folder, or a live object.
    backend
        Name of a backend, or None for the first that fits.
    example
        Inputs of a live object.

    Raises
    ------
    ManifestNotFoundError, UnsupportedModelError, InputError, ArtifactError
        With the nearest names, the known endings, or what is missing.
    """
    from mlscope_lab import plugins

    reporter = reporter or Quiet()
    if backend is not None and backend not in plugins.names("mlscope_lab.backends"):
        known = plugins.names("mlscope_lab.backends")
        raise InputError(f"Unknown backend '{backend}'. Known: {', '.join(known)}.{nearest(backend, known)}")
    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        path = Path(text).expanduser()
        if text.endswith((".yaml", ".yml")):
            if not path.is_file():
                raise ManifestError(f"{text}: there is no such file")
            return _published(str(path), backend, settings, reporter)
        looks_like_path = isinstance(model, os.PathLike) or os.sep in text or path.suffix.lower() in {
            *SUFFIXES, *_WEIGHTS_ONLY
        }  # fmt: skip
        if looks_like_path:
            if not path.exists():
                raise InputError(f"{text}: there is no such file or folder")
            return _bare_file(path, backend)
        return _published(text, backend, settings, reporter)
    return _live(model, example, backend)


def samples_for(
    subject: Subject, given: Any, batch_size: int | None
) -> tuple[dict[str, list[dict[str, Any]]] | None, dict[str, npt.NDArray[Any]]]:
    """Describe the caller's input as data for a task.

    Parameters
    ----------
    given
        None for seeded values; one sample (path, bytes, array, PIL picture); a list of samples, or an array with the
        declared batch axis; or, for several inputs, a mapping from input name to one of these.
    batch_size
        Samples are repeated in turn until the batch is full. None for as many as are given.

    Returns
    -------
    described, arrays
        What `mlscope_lab.launchers.tasks` takes as ``samples``, and the arrays that travel beside it.
    """
    if given is None:
        return None, {}
    recipes = {r.spec.name: r for r in subject.recipe.inputs}
    if not isinstance(given, Mapping):
        needed = [name for name, r in recipes.items() if not r.constant]
        if len(needed) > 1 and all(_shares_sample(recipes[name]) for name in needed):
            given = dict.fromkeys(needed, given)
        elif len(needed) > 1:
            raise InputError(f"'{subject.name}' has {len(recipes)} inputs ({', '.join(recipes)}): give a dict by name")
        else:
            given = {needed[0] if needed else "": given}
    if recipes and set(given) - set(recipes):
        strange = sorted(set(given) - set(recipes))[0]
        raise InputError(f"'{subject.name}' has no input '{strange}'. Inputs: {', '.join(recipes)}")
    samples = {name: _split(value, recipes.get(name)) for name, value in given.items()}
    most = max(len(found) for found in samples.values())
    if batch_size is not None and most > batch_size:
        raise InputError(f"{most} samples are given for batch_size={batch_size}; say batch_size={most}")
    described: dict[str, list[dict[str, Any]]] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, found in samples.items():
        if not found:
            raise InputError(f"Input '{name}': the list of samples is empty")
        described[name] = [
            _described(found[index % len(found)], f"{name}.{index % len(found)}", arrays)
            for index in range(batch_size or most)
        ]
    return described, arrays


def _shares_sample(recipe: TensorRecipe) -> bool:
    """Whether an input is made of the sample that other inputs are made of, too: numbers and mask of one text."""
    steps = recipe.pipeline.steps
    return bool(steps) and getattr(steps[0], "shares_sample", False)


def _split(value: Any, recipe: TensorRecipe | None) -> list[Any]:
    """Return the samples of one input; an array that already has the declared batch axis is taken apart."""
    if isinstance(value, list):
        return value
    if recipe is not None and isinstance(value, np.ndarray) and recipe.spec.shape is not None:
        axis = recipe.batch_axis
        if axis is not None and value.ndim == len(recipe.spec.shape) and value.dtype.name == recipe.spec.dtype:
            return [np.take(value, index, axis=axis) for index in range(value.shape[axis])]
    return [value]


def _described(sample: Any, key: str, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    if isinstance(sample, str | os.PathLike):
        path = Path(sample).expanduser()
        if not path.is_file():
            raise InputError(f"{os.fspath(sample)}: there is no such file")
        return {"kind": "path", "path": str(path.absolute())}
    if isinstance(sample, bytes | bytearray):
        arrays[key] = np.frombuffer(bytes(sample), dtype=np.uint8)
        return {"kind": "bytes", "key": key}
    array = np.asarray(sample)
    if array.dtype.hasobject:
        raise InputError(
            f"A sample must be a path, bytes, a picture or an array of numbers, not {type(sample).__name__}"
        )
    arrays[key] = array
    return {"kind": "array", "key": key}
