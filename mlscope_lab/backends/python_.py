"""Any callable: the way in for frameworks without a backend of their own, and for plain numpy code."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import (
    Availability,
    Backend,
    Capabilities,
    ModelFiles,
    Session,
    SessionOptions,
    TensorSpec,
)
from mlscope_lab.errors import InputError, SessionError, UnsupportedModelError

__all__ = ["PythonBackend", "PythonSession"]

# objects that are callable and belong to a backend that sees into them: (module, attributes to the class)
_OTHERS = (("torch.nn", "Module"), ("torch.jit", "ScriptFunction"), ("keras", "Model"), ("tf_keras", "Model"))
_OPAQUE = "a Python callable is opaque; open the model with its framework's backend for what is inside"


class PythonBackend(Backend):
    """A callable that takes arrays and returns arrays, timed from outside."""

    name = "python"
    title = "Python"
    module = "builtins"
    levels = ("model",)
    level_reasons: ClassVar[Mapping[str, str]] = dict.fromkeys(("layer", "operator", "kernel", "hardware"), _OPAQUE)

    def availability(self) -> Availability:
        """Tell Python's version: it is always there."""
        return Availability(ok=True, version=".".join(str(n) for n in sys.version_info[:3]))

    def capabilities(self) -> Capabilities:
        """Tell that callables run, and that nothing inside them is seen."""
        return Capabilities(
            formats=(),
            levels=self.levels,
            devices=("cpu",),
            unavailable=dict(self.level_reasons),
        )

    def accepts(self, obj: object) -> bool:
        """Tell whether `obj` is callable and no framework's own model; classes are not taken."""
        if not callable(obj) or isinstance(obj, type):
            return False
        for module, name in _OTHERS:
            cls = getattr(sys.modules.get(module), name, None)
            if isinstance(cls, type) and isinstance(obj, cls):
                return False
        return True

    def _open(self, model: ModelFiles, options: SessionOptions) -> Session:
        raise UnsupportedModelError(
            f"Backend 'python' opens no files, and model '{model.name}' is a file of format '{model.format}'; "
            "load it yourself and wrap the callable, or take the backend of its framework"
        )

    def _wrap(self, obj: object, example: Mapping[str, npt.NDArray[Any]], options: SessionOptions) -> Session:
        if not callable(obj):
            raise UnsupportedModelError(f"Backend 'python' takes callables, got {type(obj).__name__}")
        return PythonSession(obj, example, options)


class PythonSession(Session):
    """A wrapped callable.

    The names of the example decide how it is called: by keyword if the callable has parameters of those names, else
    by position in the order of the example. It is called once with the example to see its outputs.

    ``executable_digest`` is made of the callable's qualified name and its bytecode where it has one; what it closes
    over or calls is not seen.
    """

    execution_mode = "eager"

    def __init__(
        self, function: Callable[..., Any], example: Mapping[str, npt.NDArray[Any]], options: SessionOptions
    ) -> None:
        super().__init__()
        if options.device != "cpu":
            raise InputError(f"Backend 'python' knows no devices; place '{options.device}' inside the callable")
        if options.level != "model":
            raise SessionError("Backend 'python' records no layers: a Python callable is opaque; use level='model'")
        if not example:
            raise InputError("A callable needs an example: a mapping from input names to arrays")
        self._function = function
        self._order = tuple(example)
        self._keywords = _takes(function, self._order)
        # a callable takes what it takes: neither type nor shape is promised
        self.inputs = tuple(TensorSpec(name=name, dtype="any") for name in self._order)
        self.threads = None
        if options.threads is not None:
            self.warnings = (
                f"threads={options.threads} was asked for; a Python callable sets its own threads, "
                "so set them in the library it uses before it starts",
            )
        # what a foreign callable draws from is most likely the global generator
        np.random.seed(options.seed % 2**32)
        outputs = self.predict(example)
        self.outputs = tuple(TensorSpec(name=name, dtype=_dtype(array)) for name, array in outputs.items())
        floating = [a.dtype.name for a in (*example.values(), *outputs.values()) if np.asarray(a).dtype.kind == "f"]
        self.precision = floating[0] if floating else _dtype(next(iter(outputs.values())))
        self.executable_digest = _digest(function)

    def _predict(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if len(feeds) != len(self._order) or any(name not in feeds for name in self._order):
            self.check(feeds)
        if self._keywords:
            result = self._function(**feeds)
        else:
            result = self._function(*[feeds[name] for name in self._order])
        return _flatten(result, feeds)


def _takes(function: Callable[..., Any], names: tuple[str, ...]) -> bool:
    """Tell whether the callable can be called with these keywords, by name and not through ``**anything``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # many builtins tell no signature
        return False
    by_name = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return set(names) <= by_name


def _flatten(result: Any, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Name what a callable returned: ``output``, or ``output_0``, ``output_1`` ... or a mapping's own keys.

    An array that shares memory with an input is copied, so that it stays valid when the input is written to.
    """
    named: dict[str, npt.NDArray[Any]] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{name}.{key}" if name else str(key), item)
        elif isinstance(value, tuple) or (isinstance(value, list) and any(hasattr(v, "shape") for v in value)):
            for index, item in enumerate(value):
                add(f"{name or 'output'}_{index}", item)
        else:
            array = np.asarray(value)
            if array.dtype.kind == "O":
                raise SessionError(
                    f"The callable returned a {type(value).__name__} where numbers are wanted; "
                    "return arrays, numbers, or tuples or dicts of them"
                )
            if any(np.may_share_memory(array, given) for given in feeds.values()):
                array = array.copy()
            named[name or "output"] = np.ascontiguousarray(array) if array.ndim else array

    add("", result)
    if not named:
        raise SessionError("The callable returned nothing; return at least one array")
    return named


def _dtype(array: npt.NDArray[Any]) -> str:
    return "str" if array.dtype.kind in "US" else array.dtype.name


def _digest(function: Callable[..., Any]) -> str:
    inner = inspect.unwrap(function)
    if not hasattr(inner, "__code__"):
        inner = inspect.getattr_static(type(inner), "__call__")
    code = getattr(inner, "__code__", None)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', None) or _named(function)}"
    parts = [name, sys.version, _code(code) if isinstance(code, CodeType) else None]
    return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _named(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__qualname__))


def _code(code: CodeType) -> list[object]:
    """Return what decides a function's behaviour, without file names and line numbers."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]
