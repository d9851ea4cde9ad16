"""From a call to a run: measure a subject in one or more processes, build the DataTree, keep it in the store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mlscope_lab.backends.base import Backend, Level, Session, SessionOptions
from mlscope_lab.collectors.environment import available_cores, describe, noise_warnings
from mlscope_lab.config import Settings, load_settings
from mlscope_lab.errors import InputError, MlscopeError, RunError, nearest
from mlscope_lab.launchers.codec import model_to_json, options_to_json, pass_from_message
from mlscope_lab.launchers.subprocess_ import Limits, TaskFailure, run_in_subprocess
from mlscope_lab.measure import PassPlan, Workload
from mlscope_lab.processing.recipe import declared_outputs
from mlscope_lab.progress import Reporter, reporter
from mlscope_lab.subject import Subject, resolve, samples_for
from mlscope_lab.trace import schema
from mlscope_lab.trace.records import PassRecord

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Configuration", "Measurement", "compare_latency", "profile"]

_DEFAULT_COMPARISON_PROCESSES = 5


def _positive(name: str, value: Any, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is measured and how; building it touches nothing.

    See `profile` for the meaning of each field.
    """

    model: Any
    input: Any = None
    backend: str | None = None
    level: str = "model"
    batch_size: int = 1
    iterations: int = 50
    warmup: int = 5
    processes: int = 1
    threads: int | None = None
    device: str = "cpu"
    on: str | None = None
    seed: int = 0
    symbols: Mapping[str, int] = field(default_factory=dict)
    timeout_s: float | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "iterations", "processes"):
            _positive(name, getattr(self, name))
        _positive("warmup", self.warmup)
        if self.threads is not None:
            _positive("threads", self.threads)
        _positive("seed", self.seed, least=0)
        level = schema.LEVEL_ALIASES.get(self.level)
        if level is None and self.level not in schema.LEVELS:
            known = list(dict.fromkeys([*schema.LEVELS, *schema.LEVEL_ALIASES]))
            raise InputError(
                f"Unknown level {self.level!r}. Known: {', '.join(known)}.{nearest(str(self.level), known)}"
            )
        object.__setattr__(self, "level", level or self.level)
        if self.on not in {None, "inline", "subprocess"}:
            raise InputError(f"on must be 'inline' or 'subprocess', not {self.on!r}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InputError(f"timeout_s must be positive, not {self.timeout_s!r}")


def levels_of(level: str) -> tuple[Level, ...]:
    """Return the levels of the passes that a level asks for: every one down to it."""
    recorded: tuple[Any, ...] = schema.RECORDED_LEVELS
    return recorded if level == "full" else recorded[: recorded.index(level) + 1]


def _plans(what: Configuration, backend: Backend) -> tuple[list[PassPlan], dict[str, str]]:
    """Return a pass for each level, and why the backend cannot be traced at some of them.

    What was asked for by name and cannot be had is an error, for the backend's own words say why; levels on the way to
    it are left out. At level "hardware" the process is watched even where the framework records nothing.
    """
    plans, missing = [], {}
    for level in levels_of(what.level):
        reason = backend.level_reason(level, what.device)
        traced = reason is None or (level == "layer" and what.level == "layer")
        if not traced:
            missing[f"{level} (framework)" if level == "hardware" else level] = str(reason)
        if traced or level == "hardware":
            plans.append(
                PassPlan(
                    level=level, session_level=None if traced else "model", iterations=what.iterations,
                    warmup_iterations=what.warmup,
                )
            )  # fmt: skip
    return plans, missing


class Measurement:
    """A configuration on its way to a run: processes are measured one at a time, so that two can be interleaved.

    Parameters
    ----------
    configuration
        What to measure.
    settings
        Where caches and runs are.
    progress
        Where to report.
    """

    def __init__(self, configuration: Configuration, *, settings: Settings, progress: Reporter) -> None:
        self._what = configuration
        self._settings = settings
        self._progress = progress
        self.subject: Subject = resolve(
            configuration.model,
            backend=configuration.backend,
            example=configuration.input,
            settings=settings,
            reporter=progress,
        )
        self.isolation = configuration.on or ("inline" if self.subject.live is not None else "subprocess")
        if self.subject.live is not None and self.isolation == "subprocess":
            from mlscope_lab.launchers.live import save_live

            self.subject = save_live(self.subject)
        if self.isolation == "inline" and configuration.processes > 1:
            raise InputError("processes > 1 needs on='subprocess': inline runs share this one process")
        self._options = SessionOptions(
            threads=configuration.threads or available_cores(), device=configuration.device, seed=configuration.seed
        )
        self._plans, self._missing = _plans(configuration, self.subject.backend)
        self._passes: list[PassRecord] = []
        self._facts: dict[str, Any] = {}
        self._environment, self._unavailable = describe()
        self._created = datetime.now(UTC)
        self._anchor_unix_ns = time.time_ns() - time.perf_counter_ns()

    def _listen(self, message: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
        message = dict(message)
        kind = message.pop("type")
        if kind == "stage":
            self._progress.stage(f"{self.subject.backend.name}: {message['level']} level, process {message['process']}")
        elif kind == "note":
            self._progress.note(message["text"])
        elif kind == "session" and (not self._facts or message["level"] == "model"):
            self._facts = message
        elif kind == "pass":
            self._passes.append(pass_from_message(message, arrays))
            self._progress.advance()

    def run_process(self, process: int) -> None:
        """Measure all passes once.

        Raises
        ------
        RunError
            If the process failed; the failed run is in the store by then, unless the model could not even be opened
            for a reason of the caller's (a bad input, a file that is no model), which is raised as it is.
        """
        try:
            if self.isolation == "inline":
                self._inline(process)
            else:
                self._in_subprocess(process)
        except TaskFailure as failure:
            caller = isinstance(failure.error, InputError)
            if failure.error is not None and (caller or not self._facts):
                raise failure.error from None
            raise self._failed(failure) from None

    def _task(self, process: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        samples, arrays = (
            samples_for(self.subject, self._what.input, self._what.batch_size)
            if self.subject.example is None
            else ({n: [{"kind": "array", "key": n}] for n in self.subject.example}, dict(self.subject.example))
        )
        if self.subject.files is None:
            raise InputError("a live object has no files")
        return {
            "kind": "measure",
            "backend": self.subject.backend.name,
            "model": model_to_json(self.subject.files),
            "options": options_to_json(self._options),
            "recipe": self.subject.recipe.to_json(),
            "samples": samples,
            "batch_size": self._what.batch_size,
            "seed": self._what.seed,
            "symbols": {**self.subject.symbols, **self._what.symbols},
            "plans": [dataclasses.asdict(plan) for plan in self._plans],
            "process": process,
        }, arrays

    def _in_subprocess(self, process: int) -> None:
        task, arrays = self._task(process)
        limits = Limits(timeout_s=self._what.timeout_s, memory_bytes=self._what.memory_limit_bytes)
        run_in_subprocess(task, arrays, limits=limits, on_message=self._listen)

    def _inline(self, process: int) -> None:
        import tempfile
        from pathlib import Path

        from mlscope_lab.launchers.tasks import measure, run_task

        def emit(message: dict[str, Any], arrays: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
            self._listen(message, dict(arrays or {}))

        with tempfile.TemporaryDirectory(prefix="mlscope-") as folder:
            try:
                if self.subject.files is not None:
                    task, arrays = self._task(process)
                    run_task({**task, "scratch": folder}, arrays, emit)
                    return

                def open_session(level: Level) -> Session:
                    options = dataclasses.replace(self._options, level=level, scratch=Path(folder))
                    return self.subject.open(options)

                def workload(session: Session) -> Workload:
                    feeds = dict(self.subject.example or {})
                    names = [s.name for s in session.inputs]
                    if names and set(names) != set(feeds) and len(names) == len(feeds):
                        feeds = dict(zip(names, feeds.values(), strict=True))
                    return Workload(prepare=lambda: feeds, finish=lambda outputs: None)

                measure(open_session, workload, self._plans, process=process, emit=emit)
            except MlscopeError as error:
                raise TaskFailure(kind="error", message=str(error), error=error) from error

    def _shallower(self) -> list[str]:
        """Say that the level that was asked for could not be had."""
        reason = self._missing.get(self._what.level)
        return [f"Level '{self._what.level}' was asked for, but {reason}"] if reason else []

    def _attrs(self) -> dict[str, Any]:
        from mlscope_lab.trace.build import new_run_id

        what, facts, files = self._what, self._facts, self.subject.files
        recipe = self.subject.recipe.to_json()
        for side in recipe.values():
            for item in side:
                for step in item["steps"]:
                    step.pop("labels", None)  # a thousand class names; the manifest's digest vouches for them
        availability = self.subject.backend.availability()
        warnings = list(
            dict.fromkeys(
                [*noise_warnings(self._environment), *self._shallower(), *facts.get("warnings", [])]
                + [w for p in self._passes for w in p.warnings]
            )
        )
        unavailable = {**self._unavailable, **self._missing}
        for record in self._passes:
            if record.layers is not None:
                unavailable.update(record.layers.unavailable)
        return {
            "schema_version": schema.SCHEMA_VERSION,
            "run_id": new_run_id(),
            "created_at": self._created.isoformat(timespec="milliseconds"),
            "status": "complete",
            "model": self.subject.name,
            "model_version": self.subject.version,
            "task": self.subject.task,
            "model_digest": self.subject.digest,
            "manifest_digest": self.subject.manifest_digest or "",
            "derived_from": dict(files.derived_from) if files is not None and files.derived_from else {},
            "backend": self.subject.backend.name,
            "backend_version": availability.version or "",
            "device": facts.get("device", what.device),
            "precision": facts.get("precision", ""),
            "batch_size": what.batch_size,
            "level": self._plans[-1].level,
            "seed": what.seed,
            "threads": facts.get("threads") or self._options.threads,
            "isolation": self.isolation,
            "execution_mode": facts.get("execution_mode", ""),
            "executable_digest": facts.get("executable_digest", ""),
            "clock_anchor_unix_ns": self._anchor_unix_ns,
            "processes": what.processes,
            "input": "given" if what.input is not None else "seeded values",
            "symbols": {**self.subject.symbols, **what.symbols},
            "recipe": recipe,
            "environment": self._environment,
            "warnings": warnings,
            "unavailable": unavailable,
        }

    def finish(self) -> xr.DataTree:
        """Return the run of all processes measured so far."""
        from mlscope_lab.prediction import outputs_dataset
        from mlscope_lab.trace.accessor import ensure_registered
        from mlscope_lab.trace.build import build_run

        ensure_registered()
        last = [p for p in self._passes if p.level == "model"][-1]
        recipe = self.subject.recipe
        outputs = outputs_dataset(recipe, declared_outputs(recipe, last.outputs))
        return build_run(attrs=self._attrs(), passes=self._passes, outputs=outputs)

    def _failed(self, failure: TaskFailure) -> RunError:
        """Record the failure and return what to raise."""
        from mlscope_lab.store import Store
        from mlscope_lab.trace.build import build_run

        attrs = self._attrs()
        attrs["status"] = "failed"
        attrs["failure"] = {"kind": failure.kind, "message": failure.message, "log": failure.log}
        run_id = Store(self._settings.runs).save(build_run(attrs=attrs, passes=self._passes))
        return RunError(
            f"{self.subject.name} on {self.subject.backend.name} failed ({failure.kind}): {failure.message} "
            f"Recorded as run {run_id}; mlscope_lab.open_run('{run_id}').attrs['failure'] has the log.",
            run_id=run_id,
            kind=failure.kind,
        )


def _save(run: xr.DataTree, settings: Settings) -> None:
    from mlscope_lab.store import Store

    Store(settings.runs).save(run)


def profile(
    model: Any,
    input: Any = None,  # noqa: A002 - the word that every caller expects
    *,
    backend: str | None = None,
    level: str = "model",
    batch_size: int = 1,
    iterations: int = 50,
    warmup: int = 5,
    processes: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    on: str | None = None,
    seed: int = 0,
    symbols: Mapping[str, int] | None = None,
    timeout_s: float | None = None,
    memory_limit_bytes: int | None = None,
    save: bool = True,
    progress: bool | Reporter | None = None,
    settings: Settings | None = None,
) -> xr.DataTree:
    """Measure a model and return the run.

    Parameters
    ----------
    model
        Name of a published model, path of a manifest or model file, or a live object: a ``torch.nn.Module``, a
        ``keras.Model`` or any callable.
    input
        A sample (path, bytes, array, picture), a list of samples for the batch, or a dict of these by input name; None
        for seeded values. For a live object the example arrays: one, a tuple, or a dict by argument name.
    backend
        "onnxruntime", "pytorch", "tensorflow", ...; default the first that opens the model as published.
    level
        "model" for latency alone; "layer", "operator", "kernel" and "hardware" each add a traced pass of their own to
        those above them; "full" is all. What the backend or this machine cannot record is in ``attrs["unavailable"]``.
    batch_size, iterations, warmup
        Samples a predict; measured predicts in each process and pass; least number of predicts before them.
    processes
        Fresh processes measured one after another. With two or more, intervals are over processes.
    threads
        Intra-operator threads; default every core this process may use, the same on each backend.
    device
        "cpu" or "cuda:0".
    on
        "subprocess" (default for files) or "inline" (default for live objects).
    seed
        Of seeded values and of the framework.
    symbols
        Lengths of symbolic dimensions other than the batch, for seeded values.
    timeout_s, memory_limit_bytes
        Limits of a measuring process; default none, and 90 % of the memory available at its start.
    save
        Keep the run in the store.
    progress
        True, False, a reporter of your own, or None for a line where somebody can see it.
    settings
        Default: what the environment says.

    Returns
    -------
    xarray.DataTree
        The run, see `mlscope_lab.trace.schema`.

    Raises
    ------
    MlscopeError
        `RunError` if the measuring process failed (the failed run is stored), else what was wrong with the call.
    """
    configuration = Configuration(
        model=model, input=input, backend=backend, level=level, batch_size=batch_size, iterations=iterations,
        warmup=warmup, processes=processes, threads=threads, device=device, on=on, seed=seed, symbols=symbols or {},
        timeout_s=timeout_s, memory_limit_bytes=memory_limit_bytes,
    )  # fmt: skip
    resolved = settings or load_settings()
    steps = processes * len(levels_of(configuration.level))
    with reporter(progress, total=steps, title=f"profile {model if isinstance(model, str) else ''}".strip()) as line:
        measurement = Measurement(configuration, settings=resolved, progress=line)
        for process in range(processes):
            measurement.run_process(process)
        run = measurement.finish()
    if save:
        _save(run, resolved)
    return run


def compare_latency(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    processes: int = _DEFAULT_COMPARISON_PROCESSES,
    save: bool = True,
    progress: bool | Reporter | None = None,
    settings: Settings | None = None,
    **common: Any,
) -> xr.Dataset:
    """Measure two configurations interleaved and tell whether b is faster or slower than a.

    Parameters
    ----------
    a, b
        Arguments of `profile` that differ, e.g. ``{"backend": "pytorch"}`` and ``{"backend": "onnxruntime"}``.
    processes
        Fresh processes a side. The order alternates from round to round (a b, b a, ...), so that a machine that slows
        down slows both.
    save, progress, settings
        As for `profile`.
    **common
        Arguments of `profile` that both share, e.g. ``model="efficientnet-lite0"``.

    Returns
    -------
    xarray.Dataset
        See `mlscope_lab.analysis.latency.compare_latency`; its attributes ``run_a`` and ``run_b`` are the runs' ids.

    Raises
    ------
    InputError
        If an argument does not exist.
    """
    from mlscope_lab.analysis.latency import compare_latency as judge

    known = {f.name for f in dataclasses.fields(Configuration)}
    for side in (a, b, common):
        for name in side:
            if name not in known or name == "processes":
                raise InputError(f"Unknown argument {name!r}. Known: {', '.join(sorted(known - {'processes'}))}")
    configurations = []
    for side in (a, b):
        merged = {**common, **side}
        if "model" not in merged:
            raise InputError("Neither side names a model: give model=... for both, or one in each side")
        configurations.append(Configuration(processes=processes, **merged))
    resolved = settings or load_settings()
    with reporter(progress, total=2 * processes, title="compare latency") as line:
        sides = [Measurement(c, settings=resolved, progress=line) for c in configurations]
        for process in range(processes):
            for side_now in sides if process % 2 == 0 else reversed(sides):
                side_now.run_process(process)
        runs = [side.finish() for side in sides]
    if save:
        for run in runs:
            _save(run, resolved)
    found = judge(runs[0], runs[1])
    found.attrs.update(run_a=runs[0].attrs["run_id"], run_b=runs[1].attrs["run_id"])
    return found
