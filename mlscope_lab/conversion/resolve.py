"""From a manifest and a backend to the file that the backend opens, converting where no published form fits.

A converted form lives in the cache under a key made of what went in (source digest, architecture, converter and its
version), beside a ``derived.json`` that says where it came from and how well it agreed with its source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlscope_lab import plugins
from mlscope_lab._version import __version__
from mlscope_lab.artifacts import digest_of, fetch
from mlscope_lab.artifacts.safety import check_safe
from mlscope_lab.backends import load_backend
from mlscope_lab.backends.base import Backend, ModelFiles
from mlscope_lab.config import Settings
from mlscope_lab.errors import BackendNotAvailableError, ConversionError, UnsupportedModelError
from mlscope_lab.launchers.codec import model_to_json
from mlscope_lab.launchers.subprocess_ import Limits, TaskFailure, run_in_subprocess
from mlscope_lab.manifest.model import FORMATS, ModelManifest, Source
from mlscope_lab.processing.recipe import example_feeds, specs_of

__all__ = ["CONVERSIONS", "Conversion", "files_for", "route"]

Report = Callable[[str], None]
_TIMEOUT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One step from form to form.

    Attributes
    ----------
    source, target
        Formats.
    converter
        Name in the entry-point group ``mlscope_lab.converters``.
    source_backend, target_backend
        Backends that open either form, to measure their agreement; the source's must be installed.
    filename
        Name of what is written.
    distributions
        Packages whose versions decide what is written.
    """

    source: str
    target: str
    converter: str
    source_backend: str
    target_backend: str
    filename: str
    distributions: tuple[str, ...]


CONVERSIONS = (
    *(
        Conversion(
            source=source,
            target="onnx",
            converter="torch_to_onnx",
            source_backend="pytorch",
            target_backend="onnxruntime",
            filename="model.onnx",
            distributions=("torch", "onnxscript", "onnx"),
        )
        for source in ("torch_state_dict", "safetensors")
    ),
    Conversion(
        source="onnx",
        target="saved_model",
        converter="onnx_to_tensorflow",
        source_backend="onnxruntime",
        target_backend="tensorflow",
        filename="saved_model",
        distributions=("tensorflow", "tensorflow-cpu", "onnx"),
    ),
)


def route(source: str, wanted: tuple[str, ...]) -> list[Conversion] | None:
    """Return the shortest chain of conversions from a format to one of the wanted ones, or None."""
    queue: deque[tuple[str, list[Conversion]]] = deque([(source, [])])
    seen = {source}
    while queue:
        form, chain = queue.popleft()
        if form in wanted:
            return chain
        for step in CONVERSIONS:
            if step.source == form and step.target not in seen:
                seen.add(step.target)
                queue.append((step.target, [*chain, step]))
    return None


def _check_version(manifest: ModelManifest, source: Source) -> None:
    """Refuse a framework of a version that the source's authors rule out."""
    from packaging.specifiers import SpecifierSet

    wanted = source.framework
    if wanted is None or not wanted.version or wanted.name not in plugins.names("mlscope_lab.backends"):
        return
    found = load_backend(wanted.name).availability()
    if found.version and not SpecifierSet(wanted.version).contains(found.version, prereleases=True):
        raise BackendNotAvailableError(
            f"'{manifest.name}' asks for {wanted.name} {wanted.version}, and {found.version} is installed. "
            f"Install one that fits: pip install '{wanted.name}{wanted.version}'"
        )


def _published(
    manifest: ModelManifest, source: Source, base: Path | None, settings: Settings, progress: Any
) -> ModelFiles:
    """Fetch a published form and check that opening it is safe."""
    _check_version(manifest, source)
    fetched = fetch(source.location, settings=settings, base=base, progress=progress)
    check_safe(fetched.path, source.format, trusted=source.trusted)
    return ModelFiles(
        name=manifest.name,
        format=source.format,
        path=fetched.path,
        digest=fetched.digest,
        inputs=specs_of(manifest.inputs),
        outputs=specs_of(manifest.outputs),
        architecture=source.architecture,
        parameters=source.parameters,
        trusted=source.trusted,
    )


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _derive(
    model: ModelFiles, step: Conversion, settings: Settings, report: Report | None, symbols: Mapping[str, int]
) -> ModelFiles:
    """Convert once, or take what an earlier conversion left."""
    from filelock import FileLock

    ingredients = {
        "source": model.digest,
        "architecture": model.architecture,
        "parameters": dict(model.parameters),
        "inputs": [s.describe() for s in model.inputs],
        "converter": step.converter,
        "versions": {"mlscope-lab": __version__, **_versions(step.distributions)},
    }
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
    folder = settings.cache / "derived" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    record_file = folder / "derived.json"
    with FileLock(folder.with_suffix(".lock")):
        if not record_file.is_file():
            work = Path(tempfile.mkdtemp(prefix=f".tmp-{key}-", dir=folder.parent))
            try:
                record = {**ingredients, **_convert(model, step, work / step.filename, report, symbols)}
                record["digest"] = digest_of(work / step.filename)
                (work / "derived.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
                os.rename(work, folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    record = json.loads(record_file.read_text(encoding="utf-8"))
    origin = {
        "format": step.source,
        "digest": model.digest,
        "converter": step.converter,
        "versions": record["versions"],
        "agreement": record["agreement"],
        "before": None if model.derived_from is None else dict(model.derived_from),
    }
    return replace(
        model, format=step.target, path=folder / step.filename, digest=record["digest"], architecture=None,
        parameters={}, trusted=False, derived_from=origin,
    )  # fmt: skip


def _convert(
    model: ModelFiles, step: Conversion, target: Path, report: Report | None, symbols: Mapping[str, int]
) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def listen(message: dict[str, Any], _: Any) -> None:
        if message["type"] == "note" and report is not None:
            report(message["text"])
        elif message["type"] == "converted":
            found.update(made=message["made"], agreement=message["agreement"])

    example = example_feeds(model.inputs, symbols=symbols)
    task = {
        "kind": "convert",
        "model": model_to_json(model),
        "converter": step.converter,
        "format": step.target,
        "target": str(target),
        "example": list(example),
        "source_backend": step.source_backend,
        "derived_backend": step.target_backend,
    }
    try:
        run_in_subprocess(task, example, limits=Limits(timeout_s=_TIMEOUT_S), on_message=listen)
    except TaskFailure as failure:
        if failure.error is not None:
            raise failure.error from None
        raise ConversionError(
            f"Converting '{model.name}' from {step.source} to {step.target} failed: {failure.message}"
        ) from failure
    return found


def files_for(
    manifest: ModelManifest,
    backend: Backend,
    *,
    settings: Settings,
    base: Path | None = None,
    progress: Any = None,
    report: Report | None = None,
) -> ModelFiles:
    """Return the file of a published model that a backend opens.

    Of the published forms that the backend opens as they are, the one it likes best (`Backend.formats`, in order)
    wins; else the first one from which a chain of conversions leads there.

    Parameters
    ----------
    manifest, base
        The model, and the folder of its manifest, to which file locations are relative.
    backend
        Who will open it.
    progress
        For downloads, see `mlscope_lab.artifacts.fetch`.
    report
        Called with a sentence when something takes long.

    Raises
    ------
    UnsupportedModelError
        If no published form leads to this backend.
    ArtifactError
        If the bytes cannot be had.
    BackendNotAvailableError
        If a conversion needs a framework that is not installed.
    """
    for form in backend.formats:
        for source in manifest.sources:
            if source.format == form:
                return _published(manifest, source, base, settings, progress)
    for source in manifest.sources:
        chain = route(source.format, backend.formats)
        if chain is None:
            continue
        for step in chain:
            found = load_backend(step.source_backend).availability()
            if not found.ok:
                raise BackendNotAvailableError(
                    f"'{manifest.name}' runs on '{backend.name}' by way of {step.source} -> {step.target}, which needs "
                    f"backend '{step.source_backend}': {found.reason}. Install with: {found.install}"
                )
        model = _published(manifest, source, base, settings, progress)
        for step in chain:
            model = _derive(model, step, settings, report, manifest.symbols)
        return model
    forms = ", ".join(f"{s.format} ({FORMATS[s.format]})" for s in manifest.sources)
    raise UnsupportedModelError(
        f"'{manifest.name}' is published as {forms}; backend '{backend.name}' opens "
        f"{', '.join(backend.formats) or 'live objects only'}, and no conversion leads there"
    )
