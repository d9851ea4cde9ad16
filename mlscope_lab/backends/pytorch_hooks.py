"""Layer times of an eager PyTorch module, from forward hooks on every module in it."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.pytorch_sites import CallSites, SiteInfo
from mlscope_lab.backends.pytorch_values import shape_text, tensor_bytes
from mlscope_lab.trace.records import LayerTrace

__all__ = ["HookTracer"]

# CUDA events resolve about half a microsecond (CUDA runtime API, cudaEventElapsedTime)
_CUDA_RESOLUTION_NS = 500


@dataclass(kw_only=True)
class _Sequence:
    """One order of calls, and where in the event list each of its calls begins and ends."""

    sites: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


@dataclass(kw_only=True)
class _Seen:
    """What the untimed discovery run saw, call by call."""

    codes: list[int] = field(default_factory=list)
    inputs: dict[int, str] = field(default_factory=dict)
    outputs: dict[int, tuple[str, int]] = field(default_factory=dict)


class HookTracer:
    """Hooks on all modules of a tree, containers and root included.

    The hooks of a timed run append two numbers a call and do nothing else: the number of the module (its complement at
    the end of the call), and the time. Shapes are taken once, in an untimed run. What is left to do is done after
    the last iteration.

    Parameters
    ----------
    module
        The root of the tree.
    device
        "cpu", or "cuda:N" to time with CUDA events on the current stream instead of on the host.
    """

    def __init__(self, module: Any, device: str) -> None:
        self._modules: list[tuple[str, Any]] = list(module.named_modules())
        self._device = device
        self._cuda = device.startswith("cuda")
        self._handles: list[Any] = []
        self._events: list[Any] = []
        self._sites = CallSites()
        self._raw: list[tuple[int, int, Any]] = []
        self._seen = _Seen()
        self._base: Any = None
        self._clock_error_ns = 0
        self.discovered = False

    def discover(self, run: Callable[[], Any]) -> None:
        """Run once, untimed, to learn call sites and shapes; random generators end as they began."""
        import torch

        seen = _Seen()
        for code, (_, module) in enumerate(self._modules):
            self._observe(code, module, seen)
        try:
            with torch.random.fork_rng(devices=[self._device] if self._cuda else []):
                run()
        finally:
            self.detach()
        self._seen = seen
        self.discovered = True

    def _observe(self, code: int, module: Any, seen: _Seen) -> None:
        def before(_module: Any, args: Any, kwargs: Any) -> None:
            seen.inputs[len(seen.codes)] = shape_text(args, kwargs)
            seen.codes.append(code)

        def after(_module: Any, _args: Any, _kwargs: Any, result: Any) -> None:
            seen.outputs[len(seen.codes)] = shape_text(result), tensor_bytes(result)
            seen.codes.append(~code)

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def attach(self) -> None:
        """Put the timing hooks on."""
        mark = self._cuda_clock() if self._cuda else time.perf_counter_ns
        append = self._events.append
        for code, (_, module) in enumerate(self._modules):
            before, after = _timing_hooks(code, append, mark)
            self._handles.append(module.register_forward_pre_hook(before))
            self._handles.append(module.register_forward_hook(after, always_call=True))

    def detach(self) -> None:
        """Take all hooks off; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def _cuda_clock(self) -> Callable[[], Any]:
        import torch

        def mark() -> Any:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        return mark

    def begin(self) -> int:
        """Start an iteration; returns its time."""
        self._events.clear()
        if self._cuda:
            import torch

            # an event recorded on an idle stream happens between the two host times around it
            torch.cuda.synchronize(self._device)
            earliest = time.perf_counter_ns()
            self._base = torch.cuda.Event(enable_timing=True)
            self._base.record()
            self._base.synchronize()
            self._clock_error_ns = max(self._clock_error_ns, time.perf_counter_ns() - earliest)
            return earliest
        return time.perf_counter_ns()

    def discard(self) -> None:
        """Drop an iteration that raised."""
        self._events.clear()

    def commit(self, start_ns: int, duration_ns: int) -> None:
        """Keep the iteration that began at `start_ns` and took `duration_ns`."""
        events = self._events
        if self._cuda:
            base = self._base
            events[1::2] = [start_ns + round(base.elapsed_time(event) * 1e6) for event in events[1::2]]
        self._raw.append((start_ns, duration_ns, array("q", events)))
        events.clear()

    def end(self, executable_digest: str) -> LayerTrace:
        """Take the hooks off and return the trace."""
        self.detach()
        parsed: dict[bytes, _Sequence] = {}
        for start_ns, duration_ns, events in self._raw:
            pairs = np.frombuffer(events, dtype=np.int64).reshape(-1, 2) if events else np.empty((0, 2), dtype=np.int64)
            codes, times = pairs[:, 0], pairs[:, 1]
            key = codes.tobytes()
            order = parsed.get(key)
            if order is None:
                order = parsed[key] = self._parse(codes.tolist())
            self._sites.add_iteration(start_ns, duration_ns, order.sites, times[order.begins], times[order.ends])
        # after the timed runs, so that rows stand in the order in which those began
        order = self._parse(self._seen.codes)
        for site, begin, end in zip(order.sites.tolist(), order.begins.tolist(), order.ends.tolist(), strict=True):
            info = self._sites.infos[site]
            info.input_shapes = self._seen.inputs.get(begin, "")
            info.output_shapes, info.activation_bytes = self._seen.outputs.get(end, ("", -1))
        return self._sites.build(
            executable_digest=executable_digest,
            resolution_ns=_CUDA_RESOLUTION_NS if self._cuda else 1,
            clock_error_ns=self._clock_error_ns,
        )

    def _parse(self, codes: list[int]) -> _Sequence:
        """Match begins and ends; an end without its begin is left out, a begin without its end ends with its parent."""
        stack: list[tuple[int, int, int, dict[int, int]]] = []  # code, call, site, calls by code within
        roots: dict[int, int] = {}
        sites: list[int] = []
        begins: list[int] = []
        ends: list[int] = []
        for position, code in enumerate(codes):
            if code >= 0:
                parent, counts = (stack[-1][2], stack[-1][3]) if stack else (-1, roots)
                nth = counts.get(code, 0)
                counts[code] = nth + 1
                site = self._sites.site(parent, code, nth, self._describe)
                stack.append((code, len(sites), site, {}))
                sites.append(site)
                begins.append(position)
                ends.append(len(codes) - 1)
            elif any(entry[0] == ~code for entry in stack):
                while True:
                    opened, call, _, _ = stack.pop()
                    ends[call] = position
                    if opened == ~code:
                        break
        return _Sequence(
            sites=np.array(sites, dtype=np.int64),
            begins=np.array(begins, dtype=np.int64),
            ends=np.array(ends, dtype=np.int64),
        )

    def _describe(self, code: int) -> SiteInfo:
        name, module = self._modules[code]
        return SiteInfo(
            label=name or type(module).__name__,
            type=type(module).__name__,
            scope=name,
            parameter_bytes=sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)),
        )


def _timing_hooks(code: int, append: Callable[[Any], None], mark: Callable[[], Any]) -> tuple[Any, Any]:
    done = ~code

    def before(_module: Any, _args: Any) -> None:
        append(code)
        append(mark())

    def after(_module: Any, _args: Any, _result: Any) -> None:
        append(done)
        append(mark())

    return before, after
