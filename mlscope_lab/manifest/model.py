"""The model manifest: everything that a run needs to know about a model, as data."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlscope_lab import plugins
from mlscope_lab.errors import PluginError
from mlscope_lab.manifest.common import (
    Attributes,
    FrameworkConstraint,
    Location,
    ManifestBase,
    Name,
    Symbol,
    Tensor,
)
from mlscope_lab.manifest.messages import explain

__all__ = ["FORMATS", "TASKS", "ClaimedMetric", "Input", "Labels", "ModelManifest", "Output", "Source"]

FORMATS = {
    "onnx": "an ONNX graph",
    "torchscript": "a TorchScript archive (torch.jit.save)",
    "torch_state_dict": "a PyTorch state dict (torch.save); needs an architecture",
    "safetensors": "weights in safetensors; needs an architecture",
    "torch_exported": "a torch.export archive (.pt2); opens only with trusted: true, for loading it can run code",
    "saved_model": "a TensorFlow SavedModel folder",
    "keras": "a .keras archive, opened in safe mode",
    "tflite": "a TensorFlow Lite flatbuffer",
}
TASKS = (
    "image-classification", "object-detection", "face-detection", "voice-activity-detection", "music-transcription",
    "file-type-detection", "text-embedding", "tensor",
)  # fmt: skip


@cache
def _step_type(step: type) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    adapter: TypeAdapter[Any] = TypeAdapter(step)
    return adapter, adapter.json_schema()


def _wrong(suffix: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("step_error", "{suffix} {problem}", {"suffix": suffix, "problem": problem})


def _validated_steps(value: Any) -> Any:
    """Check each step's name and parameters; return them as plain dicts, parameters in their declared types."""
    if not isinstance(value, list | tuple):
        raise _wrong("", "must be a list of steps such as {step: softmax}")
    done = []
    for index, item in enumerate(value):
        at = f"[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("step"), str):
            raise _wrong(at, f"must be a mapping with the key 'step', not {str(item)[:80]!r}")
        name, parameters = item["step"], {k: v for k, v in item.items() if k != "step"}
        try:
            step = plugins.load("mlscope_lab.steps", name)
        except PluginError as error:
            raise _wrong(f"{at}.step", f"names no usable step: {error}") from None
        adapter, schema = _step_type(step)
        try:
            made = adapter.validate_python(parameters)
        except ValidationError as error:
            path, problem = explain(error.errors(include_url=False), schema)[0]
            if problem.startswith("unknown key"):
                raise _wrong(at, f"(step '{name}') {problem}") from None
            if path and problem.startswith(path + " "):
                raise _wrong(f"{at}.{path}", f"{problem.removeprefix(path + ' ')} (step '{name}')") from None
            raise _wrong(at, f"(step '{name}'): {problem}") from None
        done.append({"step": name, **{k: getattr(made, k) for k in parameters}})
    return tuple(done)


class Input(Tensor):
    """An input and how a sample (a picture, a sound, a tensor) becomes it; steps see one sample, without batch."""

    preprocess: tuple[dict[str, Any], ...] = ()

    _steps = field_validator("preprocess", mode="before")(_validated_steps)


class Output(Tensor):
    """An output and how it becomes an answer; steps see one sample, without batch."""

    postprocess: tuple[dict[str, Any], ...] = ()

    _steps = field_validator("postprocess", mode="before")(_validated_steps)


class Labels(ManifestBase):
    """Class names: inline, or a file of lines, or a JSON file with a list or an index-to-name mapping."""

    names: tuple[str, ...] | None = None
    location: Location | None = None
    format: Literal["lines", "json"] = "lines"
    key: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Labels:
        if (self.names is None) == (self.location is None):
            raise ValueError("give either names or location")
        return self


class ClaimedMetric(ManifestBase):
    """An accuracy that somebody published."""

    metric: str
    value: float
    dataset: str
    source: str = ""


class Source(ManifestBase):
    """One form in which the model is published."""

    format: Literal[tuple(FORMATS)]  # type: ignore[valid-type]
    location: Location
    framework: FrameworkConstraint | None = None
    architecture: Name | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    trusted: bool = False

    @model_validator(mode="after")
    def _architecture(self) -> Source:
        needs = self.format in {"torch_state_dict", "safetensors"}
        if needs and self.architecture is None:
            raise ValueError(
                f"format '{self.format}' holds weights only: name an architecture. "
                f"Registered: {', '.join(plugins.names('mlscope_lab.architectures'))}"
            )
        if not needs and self.architecture is not None:
            raise ValueError(f"format '{self.format}' carries its own graph: drop the architecture")
        if self.architecture is not None and self.architecture not in plugins.names("mlscope_lab.architectures"):
            raise ValueError(
                f"architecture '{self.architecture}' is not registered. "
                f"Registered: {', '.join(plugins.names('mlscope_lab.architectures'))}"
            )
        return self


class ModelManifest(ManifestBase):
    """A published model.

    Attributes
    ----------
    symbols
        Usual lengths of symbolic dimensions, for values that are made up (a picture's height, say); the batch has its
        own argument everywhere.
    sources
        The forms it is published in, the authors' own first. A backend opens the form that it likes best of those that
        it opens as they are; if there is none, one is converted and recorded as derived.
    """

    kind: Literal["model"] = "model"
    name: Name
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+(\.\d+)?([.+-][0-9A-Za-z.+-]+)?$")] = "1.0.0"
    task: Literal[TASKS]  # type: ignore[valid-type]
    description: str = ""
    license: str = ""
    references: tuple[str, ...] = ()
    symbols: dict[Symbol, Annotated[int, Field(gt=0, strict=True)]] = Field(default_factory=dict)
    inputs: Annotated[tuple[Input, ...], Field(min_length=1)]
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    labels: Labels | None = None
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    claimed: tuple[ClaimedMetric, ...] = ()
    attributes: Attributes = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names(self) -> ModelManifest:
        used = {d for t in self.inputs for d in t.shape if isinstance(d, str)}
        for symbol in self.symbols:
            if symbol not in used:
                raise ValueError(f"symbols: no input has a dimension '{symbol}'. There are: {', '.join(sorted(used))}")
        for what, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [t.name for t in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} name the same tensor twice")
        return self
