"""PyTorch's session: arrays in and out of a module, and what it hands to those who watch it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import Session, SessionOptions, TensorSpec
from mlscope_lab.backends.pytorch_arguments import argument_order, by_keyword
from mlscope_lab.backends.pytorch_kineto import profiler_reason
from mlscope_lab.backends.pytorch_layers import LayerTracer
from mlscope_lab.backends.pytorch_precision import Casts, Converted
from mlscope_lab.backends.pytorch_profile import ProfileTracer
from mlscope_lab.backends.pytorch_steps import Program, PyTorchStepper
from mlscope_lab.backends.pytorch_values import aligned, dtype_name, flatten, to_array, to_tensor
from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.errors import BackendNotAvailableError, SessionError, UnsupportedModelError
from mlscope_lab.trace.records import LayerTrace

__all__ = ["PyTorchSession", "counters_reason", "device_of"]

# copying so little is cheaper than finding out whether it must be copied
_SMALL_BYTES = 16_384


def device_of(name: str) -> str:
    """Return PyTorch's name of a device that is there, "cuda:0" for "cuda"; raises where it is not."""
    import torch

    if name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise UnsupportedModelError(f"Backend 'pytorch' knows the devices 'cpu' and 'cuda:N', not '{name}'")
    index = int(name.partition(":")[2] or 0)
    seen = torch.cuda.device_count()
    if index >= seen:
        raise BackendNotAvailableError(
            f"Device '{name}' is not available: PyTorch {torch.__version__} sees {seen} CUDA devices. "
            f"Use device='cpu', or install a CUDA build of torch on a machine with a GPU"
        )
    return f"cuda:{index}"


def counters_reason(level: str, device: str) -> str | None:
    """Return why a device cannot be traced at level "hardware", None for other levels and where it can."""
    if level == "hardware" and not device.startswith("cuda"):
        return "PyTorch counts nothing on a CPU; what the machine counts for the whole process is recorded beside it"
    return None


def _precision(module: Any) -> str:
    counts: dict[str, int] = {}
    for tensor in module.parameters():
        name = dtype_name(tensor.dtype)
        counts[name] = counts.get(name, 0) + tensor.numel()
    return max(counts, key=lambda name: counts[name]) if counts else "float32"


class PyTorchSession(Session):
    """A module ready to run.

    The module runs in inference mode and, unless it is an exported graph, in evaluation mode; a live module gets its
    training flags back when the session closes. Arguments go by name if ``forward`` has all their names, else in order.
    """

    def __init__(
        self,
        module: Any,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: SessionOptions,
        mode: str,
        digest: str,
        converted: Converted | None = None,
    ) -> None:
        super().__init__()
        import torch

        self._torch = torch
        self._names = tuple(spec.name for spec in inputs)
        if converted:
            if not by_keyword(converted.module, self._names):  # a layer of another type names its arguments otherwise
                self._names = argument_order(module, self._names)
                inputs = tuple(sorted(inputs, key=lambda spec: self._names.index(spec.name)))
            module = converted.module
        self._module = module
        self._keywords = self._names if by_keyword(module, self._names) else None
        self._casts = converted.casts if converted else None
        self._options = options
        self.warnings: list[str] = list(converted.notes) if converted else []
        self.inputs = inputs
        self.outputs = outputs
        self.execution_mode = mode
        self.device = device_of(options.device)
        integer = (options.precision or "").startswith("int8")
        self.precision = "int8" if integer else _precision(module)
        form = mode if options.precision is None else f"{mode} {options.precision}"
        self.executable_digest = _digest(digest, form, torch.__version__)
        self._cuda = self.device != "cpu"
        self._declared = bool(outputs)
        self._form: list[tuple[Any, Any]] = []
        self._owned = _owned(module)
        self._traceable = options.level != "model"
        self._copies = True
        self._writes = False
        self._feeds: Mapping[str, npt.NDArray[Any]] | None = None
        self._tracer: LayerTracer | ProfileTracer | None = None
        self._threads_before = torch.get_num_threads()
        self._set_threads()
        self._training = self._to_evaluation()

    def _set_threads(self) -> None:
        torch = self._torch
        asked = self._options.threads
        if asked is not None:
            torch.set_num_threads(asked)
            if torch.get_num_interop_threads() != 1:
                try:
                    torch.set_num_interop_threads(1)
                except RuntimeError:
                    self.warnings.append(
                        f"PyTorch keeps {torch.get_num_interop_threads()} inter-operator threads: they were started "
                        f"already and cannot be changed in this process; use on='subprocess' for one"
                    )
        self.threads: int = torch.get_num_threads()
        if asked is not None and self.threads != asked:
            self.warnings.append(f"PyTorch runs on {self.threads} threads, {asked} were asked for")

    def _to_evaluation(self) -> list[tuple[Any, bool]]:
        if self.execution_mode == "exported":  # its mode was fixed when it was exported
            return []
        before = [(module, module.training) for module in self._module.modules()]
        if any(training for _, training in before):
            if self._module.training:
                self.warnings.append(
                    "The module was in training mode; it runs in evaluation mode, and is set back at close"
                )
            self._module.eval()
        return before

    def _predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if self._tracer is not None:
            return self._run_traced(feeds, self._tracer)
        outputs = self._run(feeds)
        self._feeds = feeds if self._traceable else None
        return outputs

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        tensors = self._tensors(feeds, copies=self._copies)
        with self._torch.inference_mode():
            result = self._call(self._module, self._placed(tensors))
            if self._cuda:
                self._torch.cuda.synchronize(self.device)
            outputs = self._outputs(result, tensors)
        self._watch_writes(tensors)
        return outputs

    def _tensors(self, feeds: Mapping[str, npt.NDArray[Any]], *, copies: bool) -> list[Any]:
        """Return the feeds as tensors on the host; made outside inference mode, where they count the writes to them."""
        if self._torch.get_num_threads() != self.threads:  # another session in this process asked for its own
            self._torch.set_num_threads(self.threads)
        arrays = [np.asarray(feeds[name]) for name in self._names]
        form = [(array.shape, array.dtype) for array in arrays]
        if form != self._form or len(feeds) != len(arrays):
            self.check(feeds)
            self._form = form
        return [self._tensor(array, copies=copies) for array in arrays]

    def _placed(self, tensors: list[Any]) -> list[Any]:
        """Return the module's arguments: on its device, in the type in which it computes."""
        if self._cuda:
            tensors = [tensor.to(self.device) for tensor in tensors]
        return tensors if self._casts is None else [self._casts.inward(tensor) for tensor in tensors]

    def _call(self, module: Any, arguments: list[Any]) -> Any:
        if self._casts is not None:
            return self._call_cast(module, arguments, self._casts)
        if self._keywords is None:
            return module(*arguments)
        return module(**dict(zip(self._keywords, arguments, strict=True)))

    def _call_cast(self, module: Any, arguments: list[Any], casts: Casts) -> dict[str, Any]:
        """Run a module of another precision; its outputs have their names already, so that they can be cast."""
        try:
            if self._keywords is None:
                result = module(*arguments)
            else:
                result = module(**dict(zip(self._keywords, arguments, strict=True)))
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise SessionError(
                f"The module does not run in {self._options.precision}: {reason}. Tensors that it makes itself keep "
                "the type that its code gives them, and PyTorch lacks some operators in some types"
            ) from error
        return {name: casts.outward(leaf) for name, leaf in self._leaves(result).items()}

    def _tensor(self, array: npt.NDArray[Any], *, copies: bool) -> Any:
        if copies:
            return to_tensor(aligned(array))
        if array.flags.writeable:
            try:
                return self._torch.from_numpy(array)
            except (TypeError, ValueError):  # strides or a type that need the longer way
                return to_tensor(array)
        return to_tensor(array)

    def _watch_writes(self, tensors: list[Any]) -> None:
        """Give copies to a module that works in place; the very first predict always gets them, to find out."""
        for tensor in tensors:
            if tensor._version:
                self._writes = True
        self._copies = self._writes

    def _outputs(self, result: Any, inputs: list[Any]) -> dict[str, npt.NDArray[Any]]:
        if type(result) is self._torch.Tensor and len(self.outputs) == 1:
            name = self.outputs[0].name
            return {name: self._array(name, result, inputs)}
        found = {name: self._array(name, leaf, inputs) for name, leaf in self._leaves(result).items()}
        if not self.outputs:
            self.outputs = tuple(
                TensorSpec(name=name, dtype=array.dtype.name, shape=(None,) * array.ndim)
                for name, array in found.items()
            )
        return found

    def _leaves(self, result: Any) -> dict[str, Any]:
        """Return the tensors and numbers that a module returned, by the names of the session's outputs."""
        found = {}
        for name, leaf in flatten(result):
            if name in found:
                raise SessionError(f"The module returns two outputs of the name '{name}'")
            if isinstance(leaf, self._torch.Tensor | bool | int | float | complex | np.ndarray | np.generic):
                found[name] = leaf
            else:
                self._note(f"Output '{name}' is a {type(leaf).__name__}, neither tensor nor number, and is left out")
        if not self._declared:
            return found
        wanted = [spec.name for spec in self.outputs]
        if all(name in found for name in wanted):
            return {name: found[name] for name in wanted}
        if len(wanted) == len(found):
            return dict(zip(wanted, found.values(), strict=True))
        raise SessionError(
            f"The module returns {len(found)} outputs ({', '.join(found)}), and the manifest declares {len(wanted)} "
            f"({', '.join(wanted)}); declare all of them, or some by the names given here"
        )

    def _array(self, name: str, tensor: Any, inputs: list[Any]) -> npt.NDArray[Any]:
        if not isinstance(tensor, self._torch.Tensor):
            return np.array(tensor)
        try:
            array: npt.NDArray[Any] = tensor.numpy()
        except (RuntimeError, TypeError):  # another device, layout or type; gradients
            if tensor.dtype == self._torch.bfloat16:
                self._note(f"Output '{name}' is bfloat16, which numpy lacks; it is returned as float32")
            array = to_array(tensor)
        if not array.flags.c_contiguous:
            return np.ascontiguousarray(array)
        # what the module still owns, or was given, would change under the caller with the next predict
        if array.nbytes <= _SMALL_BYTES or (not self._cuda and self._shares(tensor, inputs)):
            return array.copy()
        return array

    def _shares(self, tensor: Any, inputs: list[Any]) -> bool:
        if tensor.layout != self._torch.strided:
            return False
        memory = tensor.untyped_storage().data_ptr()
        return memory in self._owned or any(memory == given.untyped_storage().data_ptr() for given in inputs)

    def _open_stepper(self) -> Stepper:
        if self.execution_mode == "compiled":
            raise UnsupportedModelError(
                "A module under torch.compile shows no operations: it runs as generated kernels, and would run as "
                "plain PyTorch while it is watched. Take the module that was compiled, or compare the outputs alone"
            )
        return PyTorchStepper(
            Program(
                module=self._module,
                mode=self.execution_mode,
                device=self.device,
                inputs=self._names,
                tensors=self._fresh_tensors,
                placed=self._placed,
                call=self._call,
                named=self._leaves,
            )
        )

    def _fresh_tensors(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
        if self._closed or self._tracing:
            raise SessionError("The session is closed" if self._closed else "The session is tracing; end that first")
        self.check(feeds)
        return self._tensors(feeds, copies=True)

    def _note(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _run_traced(
        self, feeds: Mapping[str, npt.NDArray[Any]], tracer: LayerTracer | ProfileTracer
    ) -> dict[str, npt.NDArray[Any]]:
        if not tracer.discovered:
            self._discover(feeds, tracer)
        start = tracer.begin()
        try:
            outputs = self._run(feeds)
        except BaseException:
            tracer.discard()
            raise
        tracer.commit(start, time.perf_counter_ns() - start)
        return outputs

    def _discover(self, feeds: Mapping[str, npt.NDArray[Any]], tracer: LayerTracer | ProfileTracer) -> None:
        tracer.discover(lambda: self._run(feeds))
        tracer.attach()

    def _begin_trace(self) -> None:
        """Start tracing; runs once, untimed, on the feeds of the last predict (else at the first traced one)."""
        if not self._traceable:
            raise SessionError(
                "The session was opened for level 'model'; open it with level='layer' to trace layers, or deeper"
            )
        if self.execution_mode == "compiled":
            raise SessionError(
                "A module under torch.compile records no layers: time stamps would make it compile anew, as another "
                "program. Trace the module that was compiled instead"
            )
        level, graph = self._options.level, self.execution_mode != "eager"
        if graph and self._cuda:
            raise SessionError("TorchScript and exported graphs record layers on 'cpu' only; open with device='cpu'")
        if (reason := counters_reason(level, self.device)) is not None:
            raise SessionError(f"Level '{level}' on '{self.device}': {reason}; open it at level 'model' or 'kernel'")
        if level == "layer" and not graph:
            self._tracer = LayerTracer(self._module, self.device)
        else:
            if (reason := profiler_reason()) is not None:
                raise SessionError(reason)
            if self._cuda:
                self._note(
                    f"Layers of the {level} pass carry the host's times, from launch to launch; their times on the "
                    f"device are those of the layer pass, and of their kernels"
                )
            self._tracer = ProfileTracer(self._module, self.device, level=level, graph=graph, form=lambda: self._form)
        if self._feeds is not None:
            try:
                self._discover(self._feeds, self._tracer)
            except Exception as error:
                self._tracer.detach()
                self._tracer = None
                raise SessionError(f"The untimed run before the trace: {type(error).__name__}: {error}") from error

    def _end_trace(self) -> LayerTrace:
        tracer, self._tracer = self._tracer, None
        if tracer is None:
            raise SessionError("The session is not tracing; call begin_trace() first")
        try:
            return tracer.end(self.executable_digest)
        finally:
            tracer.detach()

    def _close(self) -> None:
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            tracer.detach()
        for module, training in self._training:
            module.training = training
        if self._torch.get_num_threads() == self.threads:
            self._torch.set_num_threads(self._threads_before)
        self._module = None
        self._feeds = None


def _digest(digest: str, mode: str, version: str) -> str:
    return "sha256:" + hashlib.sha256(f"{digest}\n{mode}\ntorch {version}".encode()).hexdigest()


def _owned(module: Any) -> frozenset[int]:
    """Return the addresses of the memory of a module's weights and buffers."""
    import torch

    tensors = (*module.parameters(), *module.buffers())
    return frozenset(t.untyped_storage().data_ptr() for t in tensors if t.layout == torch.strided and not t.is_meta)
