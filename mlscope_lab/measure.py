"""The measuring loop: warm-up, then timed iterations of prepare, predict and finish.

The same loop runs inline and in the worker. It imports numpy alone. `measurement.md`'s rules that live here: warm up by
count and by time, time with `perf_counter_ns`, keep the garbage collector out of the timed part, keep cold start apart.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import Level, Session
from mlscope_lab.collectors.base import Collector, Recording
from mlscope_lab.collectors.memory import peak_resident_bytes
from mlscope_lab.trace.records import PassRecord

__all__ = ["PassPlan", "Workload", "run_pass"]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """How one pass is measured.

    Attributes
    ----------
    level
        "model" for the untraced pass, else the trace level.
    session_level
        Level at which the session is opened and traced, "model" where only collectors record; None for `level`.
    iterations
        Measured iterations.
    warmup_iterations, warmup_seconds
        Warm-up lasts until both are reached.
    """

    level: Level = "model"
    session_level: Level | None = None
    iterations: int = 50
    warmup_iterations: int = 5
    warmup_seconds: float = 0.2

    @property
    def opened_at(self) -> Level:
        """Level at which the session is opened."""
        return self.session_level or self.level


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What an iteration does.

    Attributes
    ----------
    prepare
        Makes the feeds from the raw sample: preprocessing, or nothing for tensors.
    finish
        Makes the answer from the outputs: postprocessing, or nothing.
    """

    prepare: Callable[[], Arrays]
    finish: Callable[[Arrays], object]


def run_pass(
    session: Session,
    workload: Workload,
    plan: PassPlan,
    *,
    process: int = 0,
    open_ns: int = -1,
    progress: Callable[[int, int], None] | None = None,
    collectors: Sequence[Collector] = (),
) -> PassRecord:
    """Measure one pass.

    Parameters
    ----------
    session
        Opened at ``plan.level``.
    workload
        What an iteration does.
    plan
        Counts and level.
    process
        Number of this process among those of the run.
    open_ns
        What opening the session took, or -1.
    progress
        Called as ``progress(done, total)`` during warm-up only and once at the end, so that it cannot disturb.
    collectors
        What records the whole process during the measured part, started before it and stopped after it.

    Returns
    -------
    PassRecord
        Its times count from the start of the measured part.
    """
    clock = time.perf_counter_ns
    total = plan.iterations
    recording = Recording(collectors, session.device)
    recording.prepare()
    feeds = workload.prepare()
    begin = clock()
    outputs = session.predict(feeds)
    first_predict_ns = clock() - begin
    workload.finish(outputs)

    done, warm_from = 1, clock()
    while done < plan.warmup_iterations or clock() - warm_from < plan.warmup_seconds * 1e9:
        workload.finish(session.predict(workload.prepare()))
        done += 1
        if progress is not None and done % 16 == 0:
            progress(0, total)

    times = np.zeros((4, total), dtype=np.int64)
    start, before, predict_, after = times
    prepare, predict, finish = workload.prepare, session.predict, workload.finish
    traced = plan.opened_at != "model"
    if traced:
        session.begin_trace()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        recording.start()
        anchor = clock()
        for i in range(total):
            t0 = clock()
            feeds = prepare()
            t1 = clock()
            outputs = predict(feeds)
            t2 = clock()
            finish(outputs)
            t3 = clock()
            start[i], before[i], predict_[i], after[i] = t0 - anchor, t1 - t0, t2 - t1, t3 - t2
        wall_ns = clock() - anchor
    finally:
        recording.stop()
        if collecting:
            gc.enable()
    layers = session.end_trace() if traced else None
    if progress is not None:
        progress(total, total)
    return PassRecord(
        level=plan.level,
        process=process,
        warmup_iterations=done,
        start_ns=start.copy(),
        preprocess_ns=before.copy(),
        predict_ns=predict_.copy(),
        postprocess_ns=after.copy(),
        wall_ns=wall_ns,
        anchor_ns=anchor,
        open_ns=open_ns,
        first_predict_ns=first_predict_ns,
        executable_digest=layers.executable_digest if layers is not None else session.executable_digest,
        layers=layers,
        outputs=dict(outputs),
        peak_bytes=peak_resident_bytes(),
        warnings=tuple(session.warnings),
        events=recording.events(anchor + start + before, predict_),
        unavailable=recording.unavailable,
    )
