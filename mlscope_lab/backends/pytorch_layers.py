"""Layer times of an eager PyTorch module: a time stamp before and after each ``forward`` in it."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from threading import get_ident
from typing import Any

import numpy as np

from mlscope_lab.backends.pytorch_scopes import Forward, ModuleScopes, Order
from mlscope_lab.backends.pytorch_sites import CallSites
from mlscope_lab.trace.records import LayerTrace

__all__ = ["LayerTracer"]

# CUDA events resolve about half a microsecond (CUDA runtime API, cudaEventElapsedTime)
_CUDA_RESOLUTION_NS = 500


class LayerTracer:
    """Time stamps around all modules of a tree, containers and root included.

    A timed run appends two numbers at each end of a call and does nothing else: the number of the module (its
    complement at the end of the call), and the time. Shapes are taken once, in an untimed run. What is left to do is
    done after the last iteration. Modules called in a thread of their own are part of the layer that waits for them.

    Parameters
    ----------
    module
        The root of the tree.
    device
        "cpu", or "cuda:N" to time with CUDA events on the current stream instead of on the host.
    """

    def __init__(self, module: Any, device: str) -> None:
        self._scopes = ModuleScopes(module)
        self._device = device
        self._cuda = device.startswith("cuda")
        self._home = [get_ident()]
        self._elsewhere: set[int] = set()
        self._events: list[Any] = []
        self._sites = CallSites()
        self._raw: list[tuple[int, int, Any]] = []
        self._base: Any = None
        self._clock_error_ns = 0
        self.discovered = False

    def discover(self, run: Callable[[], Any]) -> None:
        """Run once, untimed, to learn call sites and shapes; random generators end as they began."""
        self._scopes.observe(run, cuda=self._device if self._cuda else None)
        self.discovered = True

    def attach(self) -> None:
        """Put the time stamps on."""
        mark = self._cuda_clock() if self._cuda else time.perf_counter_ns
        append, home, elsewhere = self._events.append, self._home, self._elsewhere

        def enclose(code: int, forward: Forward) -> Forward:
            done = ~code

            def scope(*args: Any, **kwargs: Any) -> Any:
                if get_ident() != home[0]:
                    elsewhere.add(code)
                    return forward(*args, **kwargs)
                append(code)
                append(mark())
                try:
                    return forward(*args, **kwargs)
                finally:
                    append(done)
                    append(mark())

            return scope

        self._scopes.attach(enclose)

    def detach(self) -> None:
        """Take all time stamps off; a second call does nothing."""
        self._scopes.detach()

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
        self._home[0] = get_ident()
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
        """Take the time stamps off and return the trace."""
        self.detach()
        parsed: dict[bytes, Order] = {}
        for start_ns, duration_ns, events in self._raw:
            pairs = np.frombuffer(events, dtype=np.int64).reshape(-1, 2) if events else np.empty((0, 2), dtype=np.int64)
            codes, times = pairs[:, 0], pairs[:, 1]
            key = codes.tobytes()
            order = parsed.get(key)
            if order is None:
                order = parsed[key] = self._scopes.order_of(codes.tolist(), self._sites)
            self._sites.add_iteration(start_ns, duration_ns, order.sites, times[order.begins], times[order.ends])
        self._scopes.name_shapes(self._sites)
        return self._sites.build(
            executable_digest=executable_digest,
            resolution_ns=_CUDA_RESOLUTION_NS if self._cuda else 1,
            clock_error_ns=self._clock_error_ns,
            unavailable=self._scopes.elsewhere(self._elsewhere),
        )
