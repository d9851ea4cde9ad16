"""The modules of an eager tree, with each one's ``forward`` enclosed while it is traced.

An enclosed ``forward`` costs 0.3 us a call where a pair of hooks costs 1.8 us. It also sees calls that go past
``__call__``, and leaves attention on its fused path, which PyTorch gives up as soon as it sees a hook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_sites import CallSites, SiteInfo
from mlscope_lab.backends.pytorch_values import shape_text, tensor_bytes

__all__ = ["Enclosure", "Forward", "ModuleScopes", "Order"]

Forward = Callable[..., Any]
Enclosure = Callable[[int, Forward], Forward]
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Order:
    """One order of calls, and where in the list of begins and ends each of its calls begins and ends."""

    sites: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


@dataclass(kw_only=True)
class _Seen:
    """What the untimed run saw, call by call."""

    codes: list[int] = field(default_factory=list)
    inputs: dict[int, str] = field(default_factory=dict)
    outputs: dict[int, tuple[str, int]] = field(default_factory=dict)


class ModuleScopes:
    """All modules of a tree, containers and root included, each known by its number in the tree.

    What is inside a scripted or compiled module belongs to that one: its children are not called from Python, or would
    be compiled anew.

    Parameters
    ----------
    root
        The root of the tree.
    inner
        False for the root alone.
    """

    def __init__(self, root: Any, *, inner: bool = True) -> None:
        self.modules: list[tuple[str, Any]] = list(_visible(root)) if inner else [("", root)]
        self._enclosed: list[tuple[Any, Any, Forward]] = []
        self._seen = _Seen()

    def attach(self, enclose: Enclosure) -> None:
        """Enclose every ``forward``.

        Parameters
        ----------
        enclose
            Called with a module's number and its ``forward``; returns what to call in its place.
        """
        for code, (_, module) in enumerate(self.modules):
            inner = module.forward
            outer = enclose(code, inner)
            functools.update_wrapper(outer, inner)  # for who asks for its signature
            self._enclosed.append((module, module.__dict__.get("forward", _ABSENT), outer))
            module.__dict__["forward"] = outer  # past __setattr__, which modules override

    def detach(self) -> None:
        """Give every module its own ``forward`` back; a second call does nothing."""
        while self._enclosed:
            module, before, outer = self._enclosed.pop()
            if module.__dict__.get("forward") is not outer:  # replaced since by somebody else, who knows better
                continue
            if before is _ABSENT:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before

    def observe(self, run: Callable[[], Any], *, cuda: str | None = None) -> None:
        """Run once, untimed, to learn call sites and shapes; random generators end as they began.

        Parameters
        ----------
        run
            Runs the root module.
        cuda
            Device whose generator is to be kept as well.
        """
        import torch

        seen, home = _Seen(), get_ident()

        def enclose(code: int, forward: Forward) -> Forward:
            def scope(*args: Any, **kwargs: Any) -> Any:
                if get_ident() != home:
                    return forward(*args, **kwargs)
                seen.inputs[len(seen.codes)] = shape_text(args, kwargs)
                seen.codes.append(code)
                try:
                    result = forward(*args, **kwargs)
                    seen.outputs[len(seen.codes)] = shape_text(result), tensor_bytes(result)
                    return result
                finally:
                    seen.codes.append(~code)

            return scope

        self.attach(enclose)
        try:
            with torch.random.fork_rng(devices=[cuda] if cuda else []):
                run()
        finally:
            self.detach()
        self._seen = seen

    def name_shapes(self, sites: CallSites) -> None:
        """Tell call sites the shapes seen in the untimed run; after the timed runs, so that rows keep their order."""
        order = self.order_of(self._seen.codes, sites)
        for site, begin, end in zip(order.sites.tolist(), order.begins.tolist(), order.ends.tolist(), strict=True):
            info = sites.infos[site]
            info.input_shapes = self._seen.inputs.get(begin, "")
            info.output_shapes, info.activation_bytes = self._seen.outputs.get(end, ("", -1))

    def order_of(self, codes: list[int], sites: CallSites) -> Order:
        """Match begins (a module's number) and ends (its complement).

        An end without its begin is left out, a begin without its end ends with its parent.
        """
        stack: list[tuple[int, int]] = []  # code, call
        calls: list[int] = []
        parents: list[int] = []
        begins: list[int] = []
        ends: list[int] = []
        for position, code in enumerate(codes):
            if code >= 0:
                parents.append(stack[-1][1] if stack else -1)
                stack.append((code, len(calls)))
                calls.append(code)
                begins.append(position)
                ends.append(len(codes) - 1)
            elif any(entry[0] == ~code for entry in stack):
                while True:
                    opened, call = stack.pop()
                    ends[call] = position
                    if opened == ~code:
                        break
        return Order(
            sites=np.array(sites.place(calls, parents, self.describe), dtype=np.int64),
            begins=np.array(begins, dtype=np.int64),
            ends=np.array(ends, dtype=np.int64),
        )

    def elsewhere(self, codes: set[int]) -> dict[str, str]:
        """Return what to list as unavailable if modules ran in threads other than the one that predicts."""
        if not codes:
            return {}
        names = sorted(self.modules[code][0] or type(self.modules[code][1]).__name__ for code in codes)
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return {
            "layers of other threads": f"modules called in other threads are part of what waited for them: {listed}"
        }

    def describe(self, code: int) -> SiteInfo:
        """Return what is known of a module before it runs."""
        name, module = self.modules[code]
        inside = not _is_opaque(module)
        return SiteInfo(
            label=name or type(module).__name__,
            type=getattr(module, "original_name", "") or type(module).__name__,
            scope=name,
            parameter_bytes=sum(p.numel() * p.element_size() for p in module.parameters(recurse=not inside)),
        )


def _is_opaque(module: Any) -> bool:
    """Tell whether a module runs its children where we cannot see them: TorchScript, ``torch.compile``."""
    import torch

    return isinstance(module, torch.jit.ScriptModule) or (
        hasattr(module, "_orig_mod") and "_dynamo" in type(module).__module__
    )


def _visible(root: Any) -> Iterator[tuple[str, Any]]:
    """Walk modules as ``named_modules`` does, each once, but into no opaque one."""
    hidden: set[int] = set()
    for name, module in root.named_modules():
        if id(module) in hidden:
            continue
        if _is_opaque(module):
            hidden.update(id(child) for child in module.modules() if child is not module)
        yield name, module
