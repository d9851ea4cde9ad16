"""TensorFlow Lite files through the interpreter of TensorFlow, or of LiteRT where TensorFlow no longer has one."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import Dim, ModelFiles, Session, SessionOptions, TensorSpec
from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.errors import BackendNotAvailableError, UnsupportedModelError

__all__ = ["TensorFlowLiteSession"]


def _interpreter() -> tuple[Any, str]:
    """Return the class that runs TensorFlow Lite files, and the name and version of its package."""
    from mlscope_lab.backends.tensorflow_ import load_tensorflow

    try:
        lite = importlib.import_module("ai_edge_litert.interpreter")
        from importlib.metadata import version

        return lite.Interpreter, f"ai-edge-litert {version('ai-edge-litert')}"
    except ImportError:
        tf = load_tensorflow()
    if not hasattr(tf, "lite") or not hasattr(tf.lite, "Interpreter"):
        raise UnsupportedModelError(
            f"TensorFlow {tf.__version__} has no TensorFlow Lite interpreter. Install with: pip install ai-edge-litert"
        )
    return tf.lite.Interpreter, f"tensorflow {tf.__version__}"


class TensorFlowLiteSession(Session):
    """A TensorFlow Lite interpreter; it tells no times of its nodes, so it records no layers."""

    def __init__(self, model: ModelFiles, options: SessionOptions) -> None:
        super().__init__()
        if options.device != "cpu":
            raise BackendNotAvailableError(f"TensorFlow Lite runs on device 'cpu' here, not '{options.device}'")
        if options.level != "model":
            raise UnsupportedModelError(
                f"'{model.name}' is a TensorFlow Lite file, whose interpreter gives no times of its nodes in Python: "
                "record level 'model', or take the model as ONNX or SavedModel for layers"
            )
        kind, version = _interpreter()
        self._kind, self._path, self._package = kind, model.path, "_".join(version.split()[0].split("-"))
        self.threads = options.threads or 1
        self._delegates: dict[str, Any] = {}
        if options.graph_optimization == "none":
            module = importlib.import_module(
                "ai_edge_litert.interpreter"
                if self._package == "ai_edge_litert"
                else "tensorflow.lite.python.interpreter"
            )
            plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            self._delegates = {"experimental_op_resolver_type": plain}
        try:
            self._interpreter: Any = self._opened(model_path=str(model.path))
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UnsupportedModelError(f"TensorFlow Lite ({version}) cannot open '{model.name}': {error}") from error
        self.execution_mode = "graph"
        keys = self._signature()
        details = (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        self.inputs, self.outputs = (
            tuple(_spec(d, keys.get(int(d["index"]), str(d["name"]))) for d in group) for group in details
        )
        self._in = [(spec.name, int(d["index"]), d) for spec, d in zip(self.inputs, details[0], strict=True)]
        self._out = [(spec.name, int(d["index"])) for spec, d in zip(self.outputs, details[1], strict=True)]
        self._shapes = {index: tuple(int(n) for n in d["shape"]) for _, index, d in self._in}
        self.precision = self._precision()
        parts = [model.digest, version, "tflite", *(["no delegate"] if self._delegates else [])]
        self.executable_digest = "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _opened(self, **model: Any) -> Any:
        with warnings.catch_warnings():
            # TensorFlow announces on every use that the interpreter moves to LiteRT
            warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated.*")
            return self._kind(**model, num_threads=self.threads, **self._delegates)

    def _signature(self) -> dict[int, str]:
        """Return the names of a single signature by tensor index; internal names serve where there is none."""
        signatures = self._interpreter.get_signature_list()
        if len(signatures) != 1:
            return {}
        key = next(iter(signatures))
        runner = self._interpreter.get_signature_runner(key)
        groups = (runner.get_input_details(), runner.get_output_details())
        return {int(d["index"]): str(name) for group in groups for name, d in group.items()}

    def _precision(self) -> str:
        count: Counter[str] = Counter()
        for detail in self._interpreter.get_tensor_details():
            dtype = np.dtype(detail["dtype"])
            if dtype.kind == "f" or dtype.name in {"int8", "uint8", "int16"}:
                count[dtype.name] += int(np.prod(detail["shape"], dtype=np.int64)) * dtype.itemsize
        return count.most_common(1)[0][0] if count else "float32"

    def _predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if len(feeds) != len(self._in):
            self.check(feeds)
        interpreter = self._interpreter
        arrays = [(index, np.ascontiguousarray(feeds[name])) for name, index, _ in self._in]
        changed = [(index, array) for index, array in arrays if array.shape != self._shapes[index]]
        if changed:
            self.check(feeds)
            for index, array in changed:
                interpreter.resize_tensor_input(index, array.shape, strict=True)
            interpreter.allocate_tensors()
            self._shapes.update({index: array.shape for index, array in changed})
        for index, array in arrays:
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._out}

    def _open_stepper(self) -> Stepper:
        from mlscope_lab.backends.tensorflow_lite_parts import read_lite
        from mlscope_lab.backends.tensorflow_lite_steps import TensorFlowLiteStepper

        inputs = [(name, index) for name, index, _ in self._in]
        return TensorFlowLiteStepper(
            read_lite(self._path, inputs, self._package), lambda content: self._opened(model_content=content), inputs,
            self._out, self.check,
        )  # fmt: skip

    def _close(self) -> None:
        self._interpreter = None


def _spec(detail: Mapping[str, Any], name: str) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    lengths = [int(n) for n in detail.get("shape_signature", detail["shape"])]
    shape: tuple[Dim, ...] = tuple(n if n > 0 else None for n in lengths)
    return TensorSpec(name=name, dtype="str" if dtype.kind in "OSU" else dtype.name, shape=shape)
