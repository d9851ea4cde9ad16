"""What a framework must offer: `Backend`, `Session` and the records they exchange.

The life of a model::

    backend = PyTorchBackend()
    with backend.open(files, SessionOptions(threads=1)) as session:
        outputs = session.predict({"input": array})       # numpy in, numpy out, synchronised
        session.begin_trace()
        ...                                               # more predicts
        trace = session.end_trace()                       # LayerTrace

Everything here is plain dataclasses and numpy, because it crosses a process boundary and because the measuring process
must stay small. Times are int nanoseconds on the clock of `time.perf_counter_ns` of the process that measured.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.errors import BackendNotAvailableError, InputError, SessionError, UnsupportedModelError, nearest
from mlscope_lab.trace.records import LayerTrace

__all__ = [
    "GRAPH_OPTIMIZATIONS",
    "PRECISIONS",
    "Availability",
    "Backend",
    "Capabilities",
    "Level",
    "ModelFiles",
    "Session",
    "SessionOptions",
    "TensorSpec",
]

Dim = int | str | None
PRECISIONS = ("float64", "float32", "float16", "bfloat16", "int8-dynamic", "int8-static")
"""What a session may be asked to compute in; which of them a backend can do, `Backend.precisions` says."""
GRAPH_OPTIMIZATIONS = ("none", "basic", "all")
"""How far the graph is rewritten: not at all; not into kernels of one processor; as far as the framework can."""
Level = Literal["model", "layer", "operator", "kernel", "hardware"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output.

    Attributes
    ----------
    name
        Name by which it is fed or returned.
    dtype
        numpy's name of the element type ("float32", "int64", "bool", "str", ...).
    shape
        Per axis a positive length, a symbol ("batch"), or None where the framework does not say.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None = None

    def describe(self) -> str:
        """Return e.g. ``input: float32[batch, 3, 224, 224]``."""
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model whose bytes are on this disk: what a session opens.

    Attributes
    ----------
    name
        For messages and records.
    format
        One of `mlscope_lab.manifest.model.FORMATS`.
    path
        The file, or the folder of a SavedModel.
    digest
        ``sha256:<hex>`` of the file (of the sorted list of member digests for a folder).
    inputs, outputs
        As declared; may be empty where the file itself declares them. Names of inputs map by name, else by order.
    architecture, parameters
        Registered builder and its keyword parameters, for formats that hold weights only.
    trusted
        The user marked this digest as trusted; needed by formats that can run code.
    derived_from
        For a converted model: digest and format of the source, the converter, the measured agreement.
    """

    name: str
    format: str
    path: Path
    digest: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    architecture: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False
    derived_from: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session is opened.

    Attributes
    ----------
    threads
        Intra-operator threads (inter-operator is 1), or None for the framework's own choice.
    device
        "cpu" or "cuda:0".
    level
        "model" for a plain session, a deeper level for one that can be traced at it.
    seed
        Seed of the framework's random generator.
    scratch
        Folder for the framework's trace files; removed by whoever made it.
    precision
        One of `PRECISIONS`: the weights and the arithmetic of the model, changed with the framework's own tools when it
        is opened; None for as published. Inputs and outputs keep their published types: the session casts.
    graph_optimization
        One of `GRAPH_OPTIMIZATIONS`: how far the framework may rewrite the graph; None for its default.
    calibration
        Feeds from which static quantisation learns its ranges; needed by ``precision="int8-static"`` alone. They do not
        cross a process boundary.
    """

    threads: int | None = None
    device: str = "cpu"
    level: Level = "model"
    seed: int = 0
    scratch: Path | None = None
    precision: str | None = None
    graph_optimization: str | None = None
    calibration: tuple[Mapping[str, npt.NDArray[Any]], ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("graph_optimization", GRAPH_OPTIMIZATIONS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"Unknown {name} {value!r}. Known: {', '.join(known)}.{nearest(str(value), known)}")


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a framework can be used here.

    Attributes
    ----------
    ok
        True if its package is installed (found without importing it).
    version
        Installed version, or None.
    reason
        Why not, in words; empty if ok.
    install
        The command that would install it.
    """

    ok: bool
    version: str | None = None
    reason: str = ""
    install: str = ""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can open and record here.

    Attributes
    ----------
    formats
        Formats opened as they are.
    levels
        Trace levels that it can record, e.g. ("model", "layer").
    devices
        Devices seen, e.g. ("cpu",).
    unavailable
        What it could record elsewhere but not here: {what: reason}.
    """

    formats: tuple[str, ...]
    levels: tuple[str, ...] = ("model",)
    devices: tuple[str, ...] = ("cpu",)
    unavailable: Mapping[str, str] = field(default_factory=dict)


class Session(ABC):
    """An opened model: a context manager, single-threaded, numpy in and numpy out.

    Subclasses implement `_predict`, and `_close`, `_begin_trace`, `_end_trace` where there is something to do.

    Attributes
    ----------
    inputs, outputs
        Specs as the framework has them.
    execution_mode
        "eager", "compiled", "exported" or "graph".
    executable_digest
        Digest of what runs (graph after optimisation where the framework tells, else the model's digest plus mode).
    precision
        "float32", "float16", "int8", ...: element type of most weights.
    threads
        Intra-operator threads in force.
    device
        Device in force.
    warnings
        What the user should know, e.g. a thread count that could not be honoured.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    execution_mode: str = "graph"
    executable_digest: str = ""
    precision: str = "float32"
    threads: int | None = None
    device: str = "cpu"
    warnings: Sequence[str] = ()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._tracing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the model once and wait for the result.

        Parameters
        ----------
        feeds
            One array for each of `inputs`, by name.

        Returns
        -------
        dict
            One array for each of `outputs`, by name, in order.

        Raises
        ------
        SessionError
            If the session is closed, another thread is inside it, or the framework raises.
        InputError
            If an input is missing, unknown, or has a wrong type or shape.
        """
        if not self._lock.acquire(blocking=False):
            raise SessionError("The session is running in another thread; open one session a thread")
        try:
            if self._closed:
                raise SessionError("The session is closed; open it again with backend.open(...)")
            return self._predict(feeds)
        except (SessionError, InputError):
            raise
        except Exception as error:
            self.check(feeds)  # if the feeds are to blame, say so in our words, naming input, axis and expectation
            raise SessionError(f"{type(self).__name__}: {type(error).__name__}: {error}") from error
        finally:
            self._lock.release()

    def check(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise InputError if `feeds` do not fit `inputs`; called off the hot path."""
        known = [spec.name for spec in self.inputs]
        for name in feeds:
            if known and name not in known:
                raise InputError(f"There is no input '{name}'. Inputs: {', '.join(s.describe() for s in self.inputs)}")
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            if spec.name not in feeds:
                raise InputError(f"Input '{spec.name}' is missing. Inputs: {', '.join(known)}")
            array = np.asarray(feeds[spec.name])
            if spec.dtype not in {"any", "str"} and array.dtype.name != spec.dtype:
                raise InputError(
                    f"Input '{spec.name}' must be {spec.dtype}, not {array.dtype.name}; "
                    f"convert it with array.astype('{spec.dtype}')"
                )
            if spec.shape is None:
                continue
            if array.ndim != len(spec.shape):
                raise InputError(f"Input {spec.describe()} has {len(spec.shape)} axes, got an array of {array.shape}")
            for axis, (want, have) in enumerate(zip(spec.shape, array.shape, strict=True)):
                if isinstance(want, int) and want != have:
                    raise InputError(f"Input {spec.describe()}: axis {axis} must be {want}, not {have}")
                if isinstance(want, str):
                    first, where = sizes.setdefault(want, (have, spec.name))
                    if first != have:
                        raise InputError(
                            f"Input {spec.describe()}: '{want}' is {have} here and {first} in input '{where}'"
                        )

    def begin_trace(self) -> None:
        """Record layers from the next predict on.

        Raises
        ------
        SessionError
            If the session is closed, already tracing, or was opened with ``level="model"``.
        """
        if self._closed or self._tracing:
            raise SessionError("The session is closed" if self._closed else "The session is tracing already")
        self._begin_trace()
        self._tracing = True

    def end_trace(self) -> LayerTrace:
        """Stop recording and return what was recorded.

        Raises
        ------
        SessionError
            If the session is not tracing.
        """
        if not self._tracing:
            raise SessionError("The session is not tracing; call begin_trace() first")
        self._tracing = False
        return self._end_trace()

    def open_stepper(self) -> Stepper:
        """Return what runs this session's model operation by operation; close it before the session.

        Raises
        ------
        UnsupportedModelError
            If this model or backend shows no operations.
        SessionError
            If the session is closed or tracing.
        """
        if self._closed or self._tracing:
            raise SessionError("The session is closed" if self._closed else "The session is tracing; end that first")
        return self._open_stepper()

    def close(self) -> None:
        """Release the framework's resources; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...

    def _close(self) -> None:  # noqa: B027 - optional
        pass

    def _open_stepper(self) -> Stepper:
        raise UnsupportedModelError(f"{type(self).__name__} shows no operations, so its outputs alone can be compared")

    def _begin_trace(self) -> None:
        raise SessionError(f"{type(self).__name__} records no layers; open with level='layer' on a backend that does")

    def _end_trace(self) -> LayerTrace:
        raise SessionError(f"{type(self).__name__} records no layers")


class Backend(ABC):
    """A framework. Constructing one imports nothing and touches no device.

    Attributes
    ----------
    name
        Entry-point name ("onnxruntime").
    title
        The framework's own name ("ONNX Runtime").
    distributions
        Names of the packages that may provide it, for versions.
    module
        Import name, looked up without importing.
    extra
        The extra of mlscope-lab that installs it.
    formats
        Formats that it opens as they are, best first, known without importing the framework.
    levels
        Levels at which its sessions can be traced, "model" included, known without importing the framework.
    level_reasons
        Why it cannot be traced at another level: {level: reason}.
    precisions
        Precisions other than the published one that it can be asked for, see `SessionOptions.precision`.
    graph_optimizations
        Values of `SessionOptions.graph_optimization` that it knows.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ()
    module: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    formats: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[tuple[Level, ...]] = ("model", "layer")
    level_reasons: ClassVar[Mapping[str, str]] = {}
    precisions: ClassVar[tuple[str, ...]] = ()
    graph_optimizations: ClassVar[tuple[str, ...]] = ()

    def availability(self) -> Availability:
        """Tell whether the framework is installed, without importing it."""
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec

        install = f"pip install 'mlscope-lab[{self.extra or self.name}]'"
        if not self.module or find_spec(self.module) is None:
            return Availability(ok=False, reason=f"no module named '{self.module}'", install=install)
        for distribution in self.distributions:
            try:
                return Availability(ok=True, version=version(distribution), install=install)
            except PackageNotFoundError:
                continue
        return Availability(ok=True, version=None, install=install)

    def require(self) -> None:
        """Raise BackendNotAvailableError, naming the command that installs it, if the framework is not there."""
        found = self.availability()
        if not found.ok:
            from mlscope_lab.backends import installed

            raise BackendNotAvailableError(
                f"Backend '{self.name}' is not available: {found.reason}. "
                f"Installed: {', '.join(installed()) or 'none'}. Install with: {found.install}"
            )

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Tell what can be opened and recorded here (may import the framework)."""

    def open(self, model: ModelFiles, options: SessionOptions | None = None) -> Session:
        """Open a model from files.

        Raises
        ------
        BackendNotAvailableError
            If the framework is not installed.
        UnsupportedModelError
            If the format is not one of `capabilities().formats`, or the file is not what its format says.
        UnsafeArtifactError
            If opening the file could run code that nobody trusted.
        """
        self.require()
        options = options or SessionOptions()
        self._check_options(options)
        return self._open(model, options)

    def _check_options(self, options: SessionOptions) -> None:
        """Refuse a precision or an optimisation level that this backend does not know, naming those that it does."""
        for name, known in (("precision", self.precisions), ("graph_optimization", self.graph_optimizations)):
            value = getattr(options, name)
            if value is not None and value not in known:
                offered = f"it knows {', '.join(known)}" if known else "it has no such choice"
                raise UnsupportedModelError(
                    f"{self.title} cannot be asked for {name}={value!r}: {offered}. Leave it out for the default"
                )

    def level_reason(self, level: str, device: str) -> str | None:
        """Return why sessions on a device cannot be traced at a level, None where they can; imports nothing."""
        if level in self.levels:
            return None
        return self.level_reasons.get(level, f"{self.title} records nothing at this level")

    def prepare_process(self, levels: Sequence[str], device: str) -> None:  # noqa: B027 - optional
        """Do what a process must have done before anything touches the device; called before its first session.

        Parameters
        ----------
        levels
            Those of the passes to come.
        device
            Where they run.
        """

    def accepts(self, obj: object) -> bool:
        """Tell whether `obj` is a live object of this framework, importing nothing."""
        return False

    def wrap(
        self, obj: object, example: Mapping[str, npt.NDArray[Any]], options: SessionOptions | None = None
    ) -> Session:
        """Open a live object (a module, a Keras model, a callable) in this process.

        Parameters
        ----------
        obj
            Something `accepts` is true for.
        example
            Arrays by input name; for positional arguments the order of the mapping counts.
        """
        self.require()
        options = options or SessionOptions()
        self._check_options(options)
        return self._wrap(obj, example, options)

    def save(self, obj: object, example: Mapping[str, npt.NDArray[Any]], folder: Path) -> tuple[Path, str]:
        """Write a live object as a file that another process opens; nothing is pickled by us.

        Parameters
        ----------
        obj, example
            As for `wrap`.
        folder
            Empty folder to write into.

        Returns
        -------
        path, format
            What was written, and which of `formats` it is.

        Raises
        ------
        UnsupportedModelError
            If the object has no such form.
        """
        raise UnsupportedModelError(f"a {type(obj).__name__} has no form that another process could open")

    @abstractmethod
    def _open(self, model: ModelFiles, options: SessionOptions) -> Session: ...

    def _wrap(self, obj: object, example: Mapping[str, npt.NDArray[Any]], options: SessionOptions) -> Session:
        raise UnsupportedModelError(f"Backend '{self.name}' does not take live objects, got {type(obj).__name__}")
