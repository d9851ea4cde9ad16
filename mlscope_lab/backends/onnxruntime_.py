"""ONNX Runtime: opens ONNX files, records the nodes of the optimised graph."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import Backend, Capabilities, Dim, Level, ModelFiles, Session, SessionOptions, TensorSpec
from mlscope_lab.backends.onnxruntime_graph import Outline, check_external_data, precision_of, read_outline
from mlscope_lab.backends.onnxruntime_precision import PRECISIONS, REASONS, digest_parts, to_precision
from mlscope_lab.backends.onnxruntime_profile import Clock, to_layer_trace
from mlscope_lab.backends.onnxruntime_steps import OnnxRuntimeStepper
from mlscope_lab.backends.onnxruntime_written import Source
from mlscope_lab.errors import BackendNotAvailableError, InputError, SessionError, UnsupportedModelError
from mlscope_lab.trace.records import LayerTrace

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeSession"]

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_LEVELS: tuple[Level, ...] = ("model", "layer", "operator")
_OPTIMIZATIONS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU, or on a CUDA device where onnxruntime-gpu is installed and works."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    distributions = ("onnxruntime", "onnxruntime-gpu")
    module = "onnxruntime"
    extra = "onnxruntime"
    formats = ("onnx",)
    levels = _LEVELS
    level_reasons: ClassVar[Mapping[str, str]] = {
        "kernel": "on a CPU ONNX Runtime's nodes run no kernels of a device, the nodes are the operators; those of a "
        "GPU are not read from its profile here (import a profile written elsewhere to see them)",
        "hardware": "ONNX Runtime reads no hardware counters",
    }
    precisions = PRECISIONS
    graph_optimizations = tuple(_OPTIMIZATIONS)

    def capabilities(self) -> Capabilities:
        """Tell what can be opened and recorded here; imports onnxruntime if it is installed.

        A CUDA provider that is listed may still lack its libraries; opening a session on it tells.
        """
        unavailable = dict(self.level_reasons)
        devices: tuple[str, ...] = ("cpu",)
        if self.availability().ok:
            import onnxruntime

            if _CUDA in onnxruntime.get_available_providers():
                devices = ("cpu", "cuda:0")
            else:
                unavailable["cuda"] = "this build of onnxruntime has no CUDA provider; install onnxruntime-gpu"
        return Capabilities(formats=("onnx",), levels=_LEVELS, devices=devices, unavailable=unavailable)

    def _check_options(self, options: SessionOptions) -> None:
        if (reason := REASONS.get(options.precision or "")) is not None:
            raise UnsupportedModelError(
                f"{self.title} cannot be asked for precision={options.precision!r}: {reason}. "
                f"It knows {', '.join(self.precisions)}"
            )
        super()._check_options(options)

    def _open(self, model: ModelFiles, options: SessionOptions) -> Session:
        if model.format != "onnx":
            raise UnsupportedModelError(
                f"{self.title} opens 'onnx', not '{model.format}' (model '{model.name}'); "
                "convert the model, or take a backend that opens that format"
            )
        if options.level not in _LEVELS:
            raise UnsupportedModelError(
                f"{self.title} cannot be traced at level '{options.level}': "
                f"{self.level_reasons.get(options.level, 'unknown level')}; take one of {', '.join(_LEVELS)}"
            )
        outline = read_outline(model.path, model.name)
        check_external_data(outline, model.path, model.name)
        return OnnxRuntimeSession(model, options, outline)


class OnnxRuntimeSession(Session):
    """An `onnxruntime.InferenceSession`.

    ``executable_digest`` is made of the model's digest, the location and element count of its external weights, ONNX
    Runtime's version, the graph optimisation level and the provider: what decides the optimised graph on one kind of
    CPU. The optimised graph itself would have to be written to disk to be hashed.
    """

    def __init__(self, model: ModelFiles, options: SessionOptions, outline: Outline) -> None:
        super().__init__()
        import onnxruntime

        self._ort = onnxruntime
        self._model = model
        self._options = options
        self._path = model.path
        self._level = _OPTIMIZATIONS[options.graph_optimization or "all"]
        self._provider, self._provider_options = _provider_of(options.device, onnxruntime.get_available_providers())
        self._own_scratch: tempfile.TemporaryDirectory[str] | None = None
        self._converted: tempfile.TemporaryDirectory[str] | None = None
        self._profiling = False
        self._clock: Clock | None = None
        self._readings: list[tuple[Callable[[], int], int, int]] = []
        self._predicts: list[tuple[int, int]] = []
        self._last_feeds: dict[str, npt.NDArray[Any]] | None = None
        onnxruntime.set_seed(options.seed)
        self._session: Any
        self._run: Any
        try:
            if options.precision is not None:
                outline = self._convert(outline)
            # node names and scopes serve traces alone
            self._outline = outline if options.level != "model" else Outline()
            self._start()
        except BaseException:
            self._remove_scratch()
            raise
        self.device = options.device
        self.threads = options.threads
        self.inputs = tuple(_spec(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in self._session.get_outputs())
        self.precision = precision_of(outline, next((s.dtype for s in self.inputs if "float" in s.dtype), "float32"))
        self.executable_digest = _digest(
            model, outline, onnxruntime.__version__, self._provider, self._level, digest_parts(options)
        )
        self._names = [spec.name for spec in self.outputs]
        self._tensors = all(a.type.startswith("tensor(") for a in self._session.get_outputs())

    def _convert(self, outline: Outline) -> Outline:
        """Bring the model to the precision that was asked for; return the outline of what is opened."""
        self._converted = tempfile.TemporaryDirectory(prefix="precision-", dir=self._scratch())
        self._path, notes = to_precision(self._model, outline, self._options, Path(self._converted.name))
        self.warnings = (*self.warnings, *notes)
        if self._path == self._model.path:
            return outline
        made = read_outline(self._path, self._model.name)
        scopes = {node.name: node.scope for node in outline.nodes if node.name}
        made.nodes = [replace(node, scope=node.scope or scopes.get(node.name, "")) for node in made.nodes]
        return made

    def _start(self) -> None:
        """Make the InferenceSession, profiling if the level asks for it."""
        ort = self._ort
        settings = self._settings()
        traced = self._options.level != "model"
        if traced:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(self._scratch() / f"ort-{id(self):x}-{time.monotonic_ns():x}")
        clocks = _clocks() if traced else ()
        before = [clock() for clock in clocks]
        try:
            session = ort.InferenceSession(
                str(self._path),
                settings,
                providers=[self._provider],
                provider_options=[self._provider_options],
            )
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise UnsupportedModelError(
                f"ONNX Runtime {ort.__version__} cannot open model '{self._model.name}' "
                f"({self._model.path.name}): {error}"
            ) from error
        after = [clock() for clock in clocks]
        if self._provider not in session.get_providers():
            raise BackendNotAvailableError(
                f"ONNX Runtime could not start {self._provider} for device '{self._options.device}' and fell back to "
                f"{', '.join(session.get_providers())}; check the driver, CUDA and cuDNN, or use device='cpu'"
            )
        self._session = session
        self._run = session.run
        self._profiling = traced
        if traced:
            self._readings = list(zip(clocks, before, after, strict=True))
            self._clock = self._locate()

    def _settings(self) -> Any:
        """Return onnxruntime.SessionOptions for this session, without profiling."""
        ort = self._ort
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self._level)
        settings.inter_op_num_threads = 1
        if self._options.threads is not None:
            settings.intra_op_num_threads = self._options.threads
        return settings

    def _open_stepper(self) -> OnnxRuntimeStepper:
        source = Source(
            session=self,
            name=self._model.name,
            path=self._path,
            outline=read_outline(self._path, self._model.name),
            settings=self._settings,
            provider=self._provider,
            provider_options=self._provider_options,
            scratch=self._scratch(),
            threads=self._options.threads,
        )
        return OnnxRuntimeStepper(source)

    def _locate(self) -> Clock:
        """Find the clock that the profile is on, and where it starts on `time.perf_counter_ns`.

        ONNX Runtime uses C++'s high_resolution_clock, which is the wall clock with GNU's library and a monotonic one
        with LLVM's and Microsoft's: it is the one whose readings around the start enclose the start.
        """
        start = int(self._session.get_profiling_start_time_ns())
        for clock, before, after in self._readings:
            if before <= start <= after:
                best = min((_offset(clock) for _ in range(9)), key=lambda pair: pair[1])
                return Clock(start_ns=start + best[0], error_ns=best[1])
        raise SessionError(
            "ONNX Runtime's profile is on a clock that none of Python's clocks agrees with; layers cannot be placed"
        )

    def _scratch(self) -> Path:
        if self._options.scratch is not None:
            return self._options.scratch
        if self._own_scratch is None:
            self._own_scratch = tempfile.TemporaryDirectory(prefix="mlscope-ort-")
        return Path(self._own_scratch.name)

    def _remove_scratch(self) -> None:
        if self._converted is not None:
            self._converted.cleanup()
            self._converted = None
        if self._own_scratch is not None:
            self._own_scratch.cleanup()
            self._own_scratch = None

    def _predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if type(feeds) is not dict:
            feeds = dict(feeds)
        if self._tracing:
            start = time.perf_counter_ns()
            results = self._run(self._names, feeds)
            self._predicts.append((start, time.perf_counter_ns() - start))
            self._last_feeds = feeds
        else:
            results = self._run(self._names, feeds)
        if self._tensors:
            return dict(zip(self._names, results, strict=True))
        return {name: _array(name, result) for name, result in zip(self._names, results, strict=True)}

    def _begin_trace(self) -> None:
        if self._options.level == "model":
            raise SessionError(
                "The session was opened for level='model'; open it with level='layer' or 'operator' to trace"
            )
        if not self._profiling:
            # a profile that has ended cannot be taken up again; the new session is warmed with what was fed last
            self._start()
            if self._last_feeds is not None:
                for _ in range(2):
                    self._run(self._names, self._last_feeds)
        self._predicts = []

    def _end_trace(self) -> LayerTrace:
        predicts, self._predicts = self._predicts, []
        clock = self._clock
        if clock is None:
            raise SessionError("The profile of this trace is gone; open a new session")
        # the wall clock may have been slewed meanwhile: half the drift is added to the error
        now = self._locate()
        middle = Clock(
            start_ns=(clock.start_ns + now.start_ns) // 2,
            error_ns=max(clock.error_ns, now.error_ns) + (abs(clock.start_ns - now.start_ns) + 1) // 2,
        )
        path = self._end_profile()
        try:
            return to_layer_trace(
                path, middle, predicts, self._outline, self.executable_digest,
                operators=self._options.level == "operator",
            )  # fmt: skip
        finally:
            path.unlink(missing_ok=True)

    def _end_profile(self) -> Path:
        self._profiling = False
        self._clock = None
        return Path(self._session.end_profiling())

    def _close(self) -> None:
        if self._profiling:
            self._end_profile().unlink(missing_ok=True)
        self._run = self._session = self._last_feeds = None
        self._remove_scratch()


def _provider_of(device: str, available: list[str]) -> tuple[str, dict[str, str]]:
    """Return the provider for a device and its options."""
    if device == "cpu":
        return _CPU, {}
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise InputError(f"Device must be 'cpu' or 'cuda:N' for ONNX Runtime, not '{device}'")
    if _CUDA not in available:
        raise BackendNotAvailableError(
            f"Device '{device}' needs ONNX Runtime's CUDA provider, which this build lacks (it has "
            f"{', '.join(available)}). Replace onnxruntime by onnxruntime-gpu: pip install 'mlscope-lab[gpu]'"
        )
    return _CUDA, {"device_id": index or "0"}


def _clocks() -> tuple[Callable[[], int], ...]:
    """Return the clocks that a C++ library may be on."""
    clocks: list[Callable[[], int]] = [time.time_ns, time.perf_counter_ns, time.monotonic_ns]
    if hasattr(time, "CLOCK_MONOTONIC_RAW"):
        raw = time.CLOCK_MONOTONIC_RAW
        clocks.append(lambda: time.clock_gettime_ns(raw))
    return tuple(clocks)


def _offset(clock: Callable[[], int]) -> tuple[int, int]:
    """Return what to add to a clock to get `perf_counter_ns`, and a bound on the error of that, in ns."""
    before = time.perf_counter_ns()
    reading = clock()
    after = time.perf_counter_ns()
    return (before + after) // 2 - reading, (after - before + 1) // 2


def _spec(argument: Any) -> TensorSpec:
    """Translate ONNX Runtime's NodeArg; what is no tensor is of type "any"."""
    kind = str(argument.type)
    if not kind.startswith("tensor("):
        return TensorSpec(name=argument.name, dtype="any", shape=None)
    element = kind.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(
        name=argument.name,
        dtype=_DTYPES.get(element, element),
        shape=None if argument.shape is None else tuple(_dim(d) for d in argument.shape),
    )


def _dim(value: object) -> Dim:
    if isinstance(value, int):
        return value if value > 0 else None
    return value if isinstance(value, str) and value else None


def _digest(model: ModelFiles, outline: Outline, version: str, provider: str, level: str, more: list[str]) -> str:
    external = sorted((w.location, w.name, w.elements) for w in outline.weights if w.location is not None)
    parts = [model.digest, external, "onnxruntime", version, level, provider, *more]
    return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    """Make an array of an output that is no tensor.

    A sequence of maps (what scikit-learn's converters write) becomes a row a sample and a column a key, keys sorted; a
    sequence of tensors of one shape is stacked.

    Raises
    ------
    SessionError
        If the value has no such form.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, dict):
        return np.array([value[key] for key in sorted(value)])
    if isinstance(value, list) and value and all(isinstance(v, dict) and v.keys() == value[0].keys() for v in value):
        keys = sorted(value[0])
        return np.array([[row[key] for key in keys] for row in value], dtype=np.float32)
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
        if len({(v.shape, v.dtype) for v in value}) == 1:
            return np.stack(value)
        raise SessionError(
            f"Output '{name}' is a sequence of {len(value)} tensors of different shapes, which is no array; "
            "end the model in tensors, e.g. with ConcatFromSequence"
        )
    raise SessionError(f"Output '{name}' is a {type(value).__name__}, which is no array; end the model in tensors")
