"""TensorFlow and Keras: opens SavedModels, .keras archives and TensorFlow Lite files, wraps live models and functions.

What runs is a concrete function, one graph optimised as a whole, never Keras's eager ``predict``. Layers come from the
same graph with its variables frozen into constants, see `mlscope_lab.backends.tensorflow_trace`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy.typing as npt

from mlscope_lab.artifacts.safety import check_safe
from mlscope_lab.backends.base import PRECISIONS, Backend, Capabilities, Level, ModelFiles, Session, SessionOptions
from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.backends.tensorflow_load import Opened, from_object, open_keras, open_saved_model
from mlscope_lab.errors import BackendNotAvailableError, InputError, SessionError, UnsupportedModelError
from mlscope_lab.trace.records import LayerTrace

__all__ = ["TensorFlowBackend", "TensorFlowSession", "load_tensorflow"]

_FORMATS = ("saved_model", "keras", "tflite")
_LEVELS: tuple[Level, ...] = ("model", "layer", "operator")


def load_tensorflow() -> Any:
    """Import TensorFlow with its start-up messages silenced; everything else is left as the user has it.

    ``TF_CPP_MIN_LOG_LEVEL`` and ``GLOG_minloglevel`` are read once, when the library is loaded, so they are set around
    the import alone and only where the user has not set them.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    with _environment({"TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "2"}):
        import tensorflow as tf
    return tf


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    ours = [name for name in values if name not in os.environ]
    for name in ours:
        os.environ[name] = values[name]
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


class TensorFlowBackend(Backend):
    """TensorFlow on the CPU, or on a GPU that it sees."""

    name = "tensorflow"
    title = "TensorFlow"
    distributions = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos", "tf-nightly")
    module = "tensorflow"
    extra = "tensorflow"
    formats = _FORMATS
    levels = _LEVELS
    precisions = PRECISIONS
    graph_optimizations = ("none", "all")
    level_reasons: ClassVar[Mapping[str, str]] = {
        "kernel": "on a CPU TensorFlow's nodes run no kernels of a device, the nodes are the operators; those of a GPU "
        "are not read from its profiler",
        "hardware": "TensorFlow reads no hardware counters",
    }

    def capabilities(self) -> Capabilities:
        """Tell what can be opened and recorded here; imports TensorFlow if it is installed."""
        unavailable = {
            **self.level_reasons,
            "layer (tflite)": "TensorFlow Lite's Python interpreter gives no times of its nodes",
        }
        devices: tuple[str, ...] = ("cpu",)
        if self.availability().ok:
            gpus = load_tensorflow().config.list_physical_devices("GPU")
            devices += tuple(f"cuda:{i}" for i in range(len(gpus)))
            if not gpus:
                unavailable["cuda"] = "TensorFlow sees no GPU: none is there, or this build lacks CUDA"
        return Capabilities(formats=_FORMATS, levels=_LEVELS, devices=devices, unavailable=unavailable)

    def accepts(self, obj: object) -> bool:
        """Tell whether `obj` is a Keras model on TensorFlow, a tf.Module that can be called, or a tf.function."""
        keras = sys.modules.get("keras")
        if keras is not None and isinstance(obj, getattr(keras, "Model", ())):
            return bool(keras.config.backend() == "tensorflow")
        tf = sys.modules.get("tensorflow")
        if tf is None or not hasattr(tf, "types"):
            return False
        kinds = (tf.types.experimental.PolymorphicFunction, tf.types.experimental.ConcreteFunction)
        return isinstance(obj, kinds) or (isinstance(obj, tf.Module) and callable(obj))

    def _open(self, model: ModelFiles, options: SessionOptions) -> Session:
        if model.format not in _FORMATS:
            raise UnsupportedModelError(
                f"{self.title} opens {', '.join(_FORMATS)}, not '{model.format}' (model '{model.name}'); "
                "convert the model, or take a backend that opens that format"
            )
        check_safe(model.path, model.format, trusted=model.trusted)
        if model.format == "tflite":
            from mlscope_lab.backends.tensorflow_lite import TensorFlowLiteSession

            if options.precision is not None:
                raise UnsupportedModelError(
                    f"'{model.name}' is a TensorFlow Lite file, whose types are fixed: take the model as SavedModel, "
                    f".keras or ONNX for precision={options.precision!r}, or leave it out"
                )
            return TensorFlowLiteSession(model, options)
        tf = load_tensorflow()
        notes = _prepare(tf, options)
        opened = (open_saved_model if model.format == "saved_model" else open_keras)(tf, model)
        digest = _digest(["sha256", model.digest, "tensorflow", tf.__version__, model.format])
        return _session(tf, opened, options, digest, notes, model.name)

    def _wrap(self, obj: object, example: Mapping[str, npt.NDArray[Any]], options: SessionOptions) -> Session:
        tf = load_tensorflow()
        notes = _prepare(tf, options)
        opened = from_object(tf, obj, example)
        graph = opened.function.graph.as_graph_def()
        text = _digest(["live", hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()])
        return _session(tf, opened, options, text, notes, type(obj).__name__)


def _session(tf: Any, opened: Opened, options: SessionOptions, digest: str, notes: Sequence[str], name: str) -> Session:
    """Return a session in the precision that was asked for."""
    if options.precision in {None, opened.precision}:
        return TensorFlowSession(tf, opened, options, digest, notes)
    from mlscope_lab.backends.tensorflow_precision import FLOATS, cast_model
    from mlscope_lab.backends.tensorflow_quantization import QuantizedSession

    if options.precision in FLOATS:
        return TensorFlowSession(tf, cast_model(tf, opened, options.precision), options, digest, notes)
    return QuantizedSession(tf, opened, name, digest, options)


def _prepare(tf: Any, options: SessionOptions) -> list[str]:
    """Set threads, seed and check the device; return what the user should know."""
    notes: list[str] = []
    kind, _, index = options.device.partition(":")
    if kind not in {"cpu", "cuda"} or (kind == "cpu" and index) or not (index or "0").isdecimal():
        raise InputError(f"Device must be 'cpu' or 'cuda:N' for TensorFlow, not '{options.device}'")
    if options.threads is not None:
        try:
            tf.config.threading.set_inter_op_parallelism_threads(1)
            tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        except RuntimeError:  # the runtime has started; its pools stay as they are
            pass
        if _intra(tf) != options.threads or tf.config.threading.get_inter_op_parallelism_threads() != 1:
            notes.append(
                f"TensorFlow had started with {_intra(tf)} intra-operator and "
                f"{_inter(tf)} inter-operator threads, so {options.threads} and 1 could not be set; "
                "open the model in a fresh process (on='subprocess')"
            )
    if kind == "cuda":
        gpus = tf.config.list_physical_devices("GPU")
        if int(index or 0) >= len(gpus):
            raise BackendNotAvailableError(
                f"Device '{options.device}' is not there: TensorFlow sees {len(gpus)} GPUs. Use device='cpu', or "
                "install a TensorFlow with CUDA: pip install 'tensorflow[and-cuda]'"
            )
    tf.random.set_seed(options.seed)
    return notes


def _intra(tf: Any) -> int:
    """Return the intra-operator threads in force."""
    return int(tf.config.threading.get_intra_op_parallelism_threads()) or _cores()


def _inter(tf: Any) -> int:
    return int(tf.config.threading.get_inter_op_parallelism_threads()) or _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _digest(parts: Sequence[str]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


class TensorFlowSession(Session):
    """A concrete function; at levels "layer" and "operator" the same graph, frozen, in a session that times its nodes.

    ``executable_digest`` names what runs: at level "model" the digest of the file with TensorFlow's version, at the
    other levels that of the frozen graph, for freezing lets TensorFlow prepare weights ahead which it otherwise cannot.
    With another precision the rewritten frozen graph runs at every level. With ``graph_optimization="none"`` the frozen
    graph does, and Grappler leaves it as it is; what oneDNN merges below cannot be turned off in a process that has
    started.
    """

    def __init__(
        self, tf: Any, opened: Opened, options: SessionOptions, digest: str, notes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._tf = tf
        self._opened: Opened | None = opened
        self._options = options
        self.inputs, self.outputs = opened.inputs, opened.outputs
        self.execution_mode = "graph"
        self.device = options.device
        self.threads = options.threads if not notes else _intra(tf)
        self.precision = opened.precision
        self.executable_digest = digest
        self.warnings = (*notes, *opened.notes)
        self._names = [spec.name for spec in self.inputs]
        self._pairs = list(zip(opened.input_keys, self._names, strict=True))
        self._count = len(self._names)
        self._answers = [spec.name for spec in self.outputs]
        self._results = list(zip(self._answers, opened.output_keys, strict=True))
        self._call: Callable[..., Any] | None = opened.function
        self._convert = tf.convert_to_tensor
        self._recorder: Any = None
        gpus = tf.config.list_physical_devices("GPU")
        self._place = None
        if gpus:
            self._place = "/CPU:0" if options.device == "cpu" else f"/GPU:{options.device.partition(':')[2] or 0}"
        unoptimized = options.graph_optimization == "none"
        frozen = unoptimized or opened.function is None
        if options.level in {"layer", "operator"} or (frozen and options.level == "model"):
            from mlscope_lab.backends.tensorflow_trace import Recorder

            self._recorder = Recorder(
                tf, opened, self.threads or _intra(tf), self._place, options.scratch,
                operators=options.level == "operator", optimize=not unoptimized,
            )  # fmt: skip
        elif options.level != "model":
            raise UnsupportedModelError(
                f"TensorFlow cannot be traced at level '{options.level}': "
                f"{TensorFlowBackend.level_reasons.get(options.level, 'unknown level')}; "
                f"take one of {', '.join(_LEVELS)}"
            )
        if self._recorder is not None:
            self.executable_digest = self._recorder.digest

    def _predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if len(feeds) != self._count:
            self.check(feeds)
        if self._recorder is not None:
            results = self._recorder.run([feeds[name] for name in self._names], traced=self._tracing)
            return dict(zip(self._answers, results, strict=True))
        if self._place is None:
            return self._run(feeds)
        with self._tf.device(self._place):
            return self._run(feeds)

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        convert = self._convert
        results = self._call(  # type: ignore[misc]
            **{key: convert(feeds[name]) for key, name in self._pairs}
        )
        return {name: results[key].numpy() for name, key in self._results}

    def _open_stepper(self) -> Stepper:
        from mlscope_lab.backends.tensorflow_steps import TensorFlowStepper

        if self._opened is None:
            raise SessionError("The session is closed; open it again with backend.open(...)")
        return TensorFlowStepper(
            self._tf, self._opened, optimize=self._options.graph_optimization != "none",
            threads=self.threads or _intra(self._tf), place=self._place, check=self.check,
        )  # fmt: skip

    def _begin_trace(self) -> None:
        if self._recorder is None or self._options.level == "model":
            raise SessionError(
                "The session was opened for level='model'; open it with level='layer' or 'operator' to trace"
            )
        self._recorder.begin()

    def _end_trace(self) -> LayerTrace:
        trace: LayerTrace = self._recorder.end()
        return trace

    def _close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
        self._call = self._opened = self._recorder = None
