"""What a PyTorch module remembers from call to call, so that runs can start alike and leave no trace.

Recurrent states, caches and counters live in attributes, in lists and dictionaries there, in buffers that are assigned
anew, or in memory that is written in place. A TorchScript module keeps its attributes to itself; a shallow copy of it
has its own, on the same weights.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["ModuleState", "StartingState", "own_attributes", "whole_memory"]


def whole_memory(tensor: Any) -> Any:
    """Return the whole memory of a tensor as one axis of its element type."""
    import torch

    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


@functools.cache
def _common() -> frozenset[str]:
    """Return the attributes that every module has, but for those that hold its tensors."""
    import torch

    return frozenset(vars(torch.nn.Module())) - {"_buffers", "_parameters"}


def own_attributes(part: Any) -> dict[str, Any]:
    """Return the attributes of a module that not every module has, and the dictionaries of its tensors."""
    common = _common()
    return {key: value for key, value in vars(part).items() if key not in common}


class ModuleState:
    """The attributes of the modules of a tree, as they are now.

    Parameters
    ----------
    root
        Root of the tree. What is inside a TorchScript module of an eager tree is not seen.
    """

    def __init__(self, root: Any) -> None:
        self._parts: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = []
        for name, part in root.named_modules():
            own = own_attributes(part)
            inside = {key: copy.copy(value) for key, value in own.items() if type(value) in {list, dict, set}}
            self._parts.append((name, part, own, inside))

    def restore(self) -> list[str]:
        """Put everything back; returns the names of what had changed."""
        changed: list[str] = []
        for prefix, part, own, inside in self._parts:
            present, dot = vars(part), f"{prefix}." if prefix else ""
            for key in [key for key in present if key not in own and key not in _common()]:
                changed.append(dot + key)
                del present[key]
            for key in [key for key, value in own.items() if present.get(key) is not value]:
                changed.append(dot + key)
                present[key] = own[key]
            for key, saved in inside.items():
                names = _put_back(own[key], saved)
                changed += [f"{dot}{name}" if key in {"_buffers", "_parameters"} else f"{dot}{key}" for name in names]
        return list(dict.fromkeys(changed))


def _put_back(container: Any, saved: Any) -> list[str]:
    """Fill a list, dictionary or set as it was; returns the keys that had changed, or one text for the others."""
    if isinstance(container, dict):
        keys = [k for k in {**saved, **container} if container.get(k) is not saved.get(k) or k not in saved]
        if keys:
            container.clear()
            container.update(saved)
        return [str(key) for key in keys]
    same = len(container) == len(saved) and all(a is b for a, b in zip(container, saved, strict=True))
    if same:
        return []
    if isinstance(container, list):
        container[:] = saved
    else:
        container.clear()
        container.update(saved)
    return [""]


class StartingState:
    """The state from which every run of a stepper starts: that in which the stepper found the module.

    Parameters
    ----------
    module
        What is run.

    Attributes
    ----------
    changed
        Names of the attributes that runs changed.
    """

    def __init__(self, module: Any) -> None:
        import torch

        self._module = module
        self._scripted = isinstance(module, torch.jit.ScriptModule)
        self._script = _copy_of_script(module) if self._scripted else None
        self._state = None if self._scripted else ModuleState(module)
        self._memories: list[tuple[Any, Any]] = []
        self.changed: list[str] = []

    @contextlib.contextmanager
    def applied(self) -> Iterator[Any]:
        """Yield the module to run, in the starting state; afterwards it is as it was before."""
        present = [(tensor, whole_memory(tensor).clone()) for tensor, _ in self._memories]
        now = None if self._state is None else ModuleState(self._module)
        if self._state is not None:
            self._state.restore()
        _fill(self._memories)
        try:
            yield self._module if self._script is None else _copy_of_script(self._script)
        finally:
            if now is not None:
                names = now.restore()
                self.changed += [name for name in names if name not in self.changed]
            _fill(present)

    def wrote(self, memories: Iterable[tuple[Any, Any]]) -> None:
        """Take note of memory that a run wrote to in place, with what it held before, and put that back."""
        known = {tensor.untyped_storage()._cdata for tensor, _ in self._memories}
        new = [(tensor, held) for tensor, held in memories if tensor.untyped_storage()._cdata not in known]
        _fill(new)
        self._memories += new


def _fill(memories: Iterable[tuple[Any, Any]]) -> None:
    import torch

    with torch.no_grad():
        for tensor, content in memories:
            whole_memory(tensor).copy_(content)


def _copy_of_script(module: Any) -> Any:
    with warnings.catch_warnings():  # torch deprecates the format; files in it stay, and we open them on purpose
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        return copy.copy(module)
