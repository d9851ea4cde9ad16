"""Layer times of TorchScript and exported graphs, from the operators that PyTorch's profiler sees.

Hooks cannot be put on a ScriptModule, and an exported graph has no submodules to put them on. Its layers are the
operators that the graph calls; what those call in turn stays inside them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mlscope_lab.backends.pytorch_sites import CallSites, SiteInfo
from mlscope_lab.trace.records import LayerTrace

__all__ = ["OperatorTracer"]

_MARK = "mlscope::iteration"
# the profiler wraps a script's functions in events of these names
_WRAPPERS = frozenset({"forward", "<forward op>"})
_DTYPES = {"float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16",
           "long int": "int64", "long": "int64", "int": "int32", "short": "int16", "signed char": "int8",
           "unsigned char": "uint8", "bool": "bool"}  # fmt: skip
_NO_OUTPUTS = "PyTorch's profiler records the inputs of operators, not their outputs"


class OperatorTracer:
    """Operators called by a graph, recorded by one profiler over all traced predicts.

    Parameters
    ----------
    module
        A ScriptModule or the module of an exported program.
    """

    def __init__(self, module: Any) -> None:
        self._root = getattr(module, "original_name", "") or type(module).__name__
        self._parameter_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
        self._profiler: Any = None
        self._range: Any = None
        self._marks: list[tuple[int, int]] = []
        self._kept: dict[int, tuple[int, int]] = {}
        self._shapes: dict[tuple[int, int], str] = {}
        self._sites = CallSites()
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self.discovered = False

    def discover(self, run: Callable[[], Any]) -> None:
        """Run once, untimed, to learn input shapes; random generators end as they began."""
        import torch

        with torch.random.fork_rng(devices=[]):
            self._start(shapes=True)
            try:
                self.begin()
                try:
                    run()
                finally:
                    self.commit(0, 0)
            finally:
                events = self._stop()
        for _, _, calls in self._calls(events):
            for code, nth, event in calls:
                self._shapes[code, nth] = _input_text(event)
        self._marks.clear()
        self._kept.clear()
        self.discovered = True

    def attach(self) -> None:
        """Start the profiler."""
        self._start(shapes=False)

    def detach(self) -> None:
        """Stop the profiler; a second call does nothing."""
        if self._profiler is not None:
            self._stop()

    def _start(self, *, shapes: bool) -> None:
        from torch.autograd.profiler import profile

        # the library below the profiler prints to stderr at each start and stop
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._profiler = profile(use_kineto=True, record_shapes=shapes)
        self._profiler.__enter__()

    def _stop(self) -> list[Any]:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return []
        profiler.__exit__(None, None, None)
        events: list[Any] = profiler.kineto_results.events()
        return events

    def begin(self) -> int:
        """Start an iteration; returns its time."""
        from torch.autograd.profiler import record_function

        self._range = record_function(_MARK)
        earliest = time.perf_counter_ns()
        self._range.__enter__()
        start = time.perf_counter_ns()
        self._marks.append((earliest, start))
        return start

    def discard(self) -> None:
        """Drop an iteration that raised."""
        self._range.__exit__(None, None, None)

    def commit(self, start_ns: int, duration_ns: int) -> None:
        """Keep the iteration that began at `start_ns` and took `duration_ns`."""
        self._range.__exit__(None, None, None)
        self._kept[len(self._marks) - 1] = start_ns, duration_ns

    def end(self, executable_digest: str) -> LayerTrace:
        """Stop the profiler and return the trace."""
        iterations = self._calls(self._stop())
        # each mark was set between two readings of our clock: the tightest of them bound the difference of the clocks
        bounds = list(zip(self._marks, (mark.start_ns() for mark, _, _ in iterations), strict=True))
        low = max((earliest - begun for (earliest, _), begun in bounds), default=0)
        high = min((latest - begun for (_, latest), begun in bounds), default=0)
        offset = (low + high) // 2
        for number, (start_ns, duration_ns) in self._kept.items():
            _, root, calls = iterations[number]
            base, limit = root.start_ns() + offset, min(root.end_ns() + offset, start_ns + duration_ns)
            base = max(base, start_ns)
            sites = [self._sites.site(-1, -1, 0, self._describe)]
            times = [(base, limit)]
            for code, nth, event in calls:
                sites.append(self._sites.site(0, code, nth, self._describe))
                times.append(tuple(min(max(t + offset, base), limit) for t in (event.start_ns(), event.end_ns())))
            spans = np.array(times, dtype=np.int64)
            self._sites.add_iteration(start_ns, duration_ns, sites, spans[:, 0], spans[:, 1])
        for (code, nth), text in self._shapes.items():
            info = self._sites.find(0, code, nth)
            if info is not None:
                info.input_shapes = text
        return self._sites.build(
            executable_digest=executable_digest,
            clock_error_ns=abs(high - low) // 2 + 1,
            unavailable={"shapes": _NO_OUTPUTS, "activation_bytes": _NO_OUTPUTS},
        )

    def _calls(self, events: list[Any]) -> list[tuple[Any, Any, list[tuple[int, int, Any]]]]:
        """Return per iteration its mark, the graph's event (else the mark), and (code, nth, event) by operator."""
        marks = sorted((e for e in events if e.name() == _MARK and e.is_user_annotation()), key=lambda e: e.start_ns())
        found = []
        if not marks:
            return []
        thread = marks[0].start_thread_id()
        ordered = sorted(
            (e for e in events if e.start_thread_id() == thread and e.name() != _MARK),
            key=lambda e: (e.start_ns(), -e.duration_ns()),
        )
        position = 0
        for mark in marks:
            root, calls, until = mark, [], 0
            counts: dict[int, int] = {}
            while position < len(ordered) and ordered[position].start_ns() < mark.end_ns():
                event = ordered[position]
                position += 1
                if event.start_ns() < max(until, mark.start_ns()):
                    continue
                if event.name() in _WRAPPERS:
                    root = event if root is mark else root
                    continue
                until = event.end_ns()
                code = self._code(event.name())
                nth = counts.get(code, 0)
                counts[code] = nth + 1
                calls.append((code, nth, event))
            # what comes before the graph's own event converts its arguments
            found.append((mark, root, [call for call in calls if call[2].start_ns() >= root.start_ns()]))
        return found

    def _code(self, name: str) -> int:
        code = self._codes.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        return code

    def _describe(self, code: int) -> SiteInfo:
        if code < 0:
            return SiteInfo(label=self._root, type=self._root, scope="", parameter_bytes=self._parameter_bytes)
        name = self._names[code]
        return SiteInfo(label=name, type=name.rpartition("::")[2], scope="", parameter_bytes=-1)


def _input_text(event: Any) -> str:
    pairs = zip(event.shapes(), event.dtypes(), strict=False)
    return ";".join(f"{_DTYPES[kind]}[{','.join(map(str, dims))}]" for dims, kind in pairs if kind in _DTYPES)
