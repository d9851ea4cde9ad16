"""Faults in copies of EfficientNet-Lite's torch module; what was changed is named by the module's qualified name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.faults.planting import Planted, RejectedError, flip_exponent, overflow_scale

__all__ = ["module_without_overflow", "plant_module"]


class _Padded(nn.Module):
    """A convolution with four pads of its own: left, right, top, bottom."""

    def __init__(self, convolution: nn.Conv2d, pads: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.weight, self.pads = convolution.weight, pads
        self.stride, self.groups = convolution.stride, convolution.groups

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, self.pads), self.weight, None, self.stride, 0, 1, self.groups)


class _Behind(nn.Module):
    """A module and something behind it."""

    def __init__(self, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class _Overflow(nn.Module):
    """A product in float16 and back."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x.half() * self.scale).float() * (1 / self.scale)


class _Turn(nn.Module):
    """Height and width swapped."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 1, 3, 2)


class _OneOf(nn.Module):
    """An activation that a block uses several times, another one at one of these places."""

    def __init__(self, usual: nn.Module, other: nn.Module, *, place: int, places: int) -> None:
        super().__init__()
        self.usual, self.other = usual, other
        self._place, self._places, self._calls = place, places, 0

    def forward(self, x: Tensor) -> Tensor:
        here = self._calls % self._places == self._place
        self._calls += 1
        return (self.other if here else self.usual)(x)


class _Copy:
    """A copy of the module that is being changed, with the picture that it will see."""

    def __init__(self, module: nn.Module, x: np.ndarray) -> None:
        self.module = copy.deepcopy(module)
        self.x = x

    def pick(self, random: np.random.Generator, kinds: Any, test: Callable[[Any], bool] = bool) -> tuple[str, Any]:
        found = [(n, m) for n, m in self.module.named_modules() if isinstance(m, kinds) and test(m)]
        return found[int(random.integers(len(found)))]

    def replace(self, name: str, made: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self.module.get_submodule(parent), last, made.eval())

    def result_of(self, wanted: nn.Module) -> np.ndarray:
        found: list[Tensor] = []
        hook = wanted.register_forward_hook(lambda m, i, o: found.append(o))
        with torch.no_grad():
            self.module(torch.from_numpy(self.x))
        hook.remove()
        return found[0].numpy()


def _exponent(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, (nn.Conv2d, nn.Linear))
    weight, text = flip_exponent(module.weight.detach().numpy(), random)
    module.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return f"{type(module).__name__}: {text}", (name,)


def _pad(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, nn.Conv2d, lambda m: m.kernel_size[0] > 1)
    near, far = module.padding[0], module.padding[0] + module._odd
    step = 0 if module._odd else int(random.choice([-1, 1]))
    new = (far, near, far, near) if module._odd else (near + step, far - step, near + step, far - step)
    c.replace(name, _Padded(module, new))
    return f"convolution: pads {(near, far)} -> {new[:2]} on both axes", (name,)


def _epsilon(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, nn.BatchNorm2d)
    old, module.eps = module.eps, float(random.choice([1e-5, 1e-2, 1e-1]))
    return f"BatchNorm2d: eps {old:.3g} -> {module.eps:.3g}", (name,)


def _activation(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, nn.ReLU6)
    parent = c.module.get_submodule(name.rpartition(".")[0])
    places = 2 if name == "_activation" or parent._expands else 1
    other = [nn.ReLU(), nn.LeakyReLU(0.1), nn.ELU(), nn.SiLU()][int(random.integers(4))]
    place = int(random.integers(places))
    c.replace(name, _OneOf(module, other, place=place, places=places))
    return f"ReLU6 -> {type(other).__name__} at place {place + 1} of {places}", (f"{name}.other",)


def _overflow(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, (nn.Conv2d, nn.BatchNorm2d))
    scale = overflow_scale(c.result_of(module), random)
    c.replace(name, _Behind(module, _Overflow(scale)))
    return f"behind {type(module).__name__}: times {scale:.0f} in float16", (f"{name}.outer",)


def module_without_overflow(module: nn.Module) -> nn.Module:
    """Return a module with an overflow planted as it would be without: rounded to float16, but times one."""
    changed = copy.deepcopy(module)
    for part in changed.modules():
        if isinstance(part, _Overflow):
            part.scale = 1.0
    return changed


def _axes(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, (nn.Conv2d, nn.BatchNorm2d))
    c.replace(name, _Behind(module, _Turn()))
    return f"behind {type(module).__name__}: height and width swapped", (f"{name}.outer",)


def _bias(c: _Copy, random: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    name, module = c.pick(random, (nn.BatchNorm2d, nn.Linear))
    if isinstance(module, nn.Linear):
        module.bias = None
    else:
        module.bias = nn.Parameter(torch.zeros_like(module.bias), requires_grad=False)
    return f"{type(module).__name__}: no bias", (name,)


_PLANTERS: dict[str, Callable[[_Copy, np.random.Generator], tuple[str, tuple[str, ...]]]] = {
    "exponent bit": _exponent, "swapped pad": _pad, "wrong epsilon": _epsilon, "other activation": _activation,
    "fp16 overflow": _overflow, "swapped axes": _axes, "dropped bias": _bias,
}  # fmt: skip


def plant_module(module: nn.Module, kind: str, random: np.random.Generator, x: np.ndarray) -> Planted:
    """Return a copy of EfficientNet-Lite with one fault.

    Parameters
    ----------
    module
        Without a fault.
    kind
        One of `tests.faults.planting.KINDS`.
    random
        What to change, and how.
    x
        The input that will be compared.

    Raises
    ------
    RejectedError
        If the change would be none.
    """
    changing = _Copy(module, x)
    detail, changed = _PLANTERS[kind](changing, random)
    if not changed:
        raise RejectedError("nothing to change")
    return Planted(kind=kind, detail=detail, changed=changed, model=changing.module)
