"""What a worker can do: measure, predict, convert, calibrate, tell capabilities. The inline launcher calls them, too.

A task is JSON-able; arrays travel beside it. Each function emits messages and returns nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab import plugins
from mlscope_lab.backends import load_backend
from mlscope_lab.backends.base import Level, ModelFiles, Session, SessionOptions
from mlscope_lab.collectors import collectors_for
from mlscope_lab.errors import InputError, PluginError
from mlscope_lab.launchers.codec import model_from_json, options_from_json, pass_to_message, specs_to_json
from mlscope_lab.launchers.lock import measuring
from mlscope_lab.measure import PassPlan, Workload, run_pass
from mlscope_lab.processing.recipe import Recipe, answers, batch_axis, constant_feeds, example_feeds, prepare

__all__ = ["feeds_of", "measure", "run_task", "session_facts"]

Arrays = Mapping[str, npt.NDArray[Any]]
Emit = Callable[..., None]


def session_facts(session: Session) -> dict[str, Any]:
    """Return what a run records of an opened session, JSON-able."""
    return {
        "inputs": specs_to_json(session.inputs),
        "outputs": specs_to_json(session.outputs),
        "execution_mode": session.execution_mode,
        "executable_digest": session.executable_digest,
        "precision": session.precision,
        "threads": session.threads,
        "device": session.device,
        "warnings": list(session.warnings),
    }


def measure(
    open_session: Callable[[Level], Session],
    workload: Callable[[Session], Workload],
    plans: list[PassPlan],
    *,
    process: int,
    emit: Emit,
) -> None:
    """Measure every plan in order, each in a session of its own, under the machine-wide lock.

    Emits ``session`` (facts), ``note`` (waiting for the lock), ``progress`` and ``pass`` messages.
    """
    for plan in plans:
        emit({"type": "stage", "stage": "open", "level": plan.level, "process": process})
        begin = time.perf_counter_ns()
        session = open_session(plan.opened_at)
        open_ns = time.perf_counter_ns() - begin
        try:
            emit({"type": "session", "level": plan.level, "process": process, **session_facts(session)})
            with measuring(lambda text: emit({"type": "note", "text": text})) as waited_ns:
                record = run_pass(
                    session,
                    workload(session),
                    plan,
                    process=process,
                    open_ns=open_ns,
                    progress=lambda done, total, level=plan.level: emit(  # type: ignore[misc]
                        {"type": "progress", "level": level, "process": process, "done": done, "total": total}
                    ),
                    collectors=collectors_for(plan.level),
                )
            record.lock_wait_ns = waited_ns
        finally:
            session.close()
        message, arrays = pass_to_message(record)
        emit({"type": "pass", **message}, arrays)


def _samples(described: list[dict[str, Any]], arrays: Arrays) -> list[Any]:
    """Turn samples as data (path, bytes or array) back into what preprocessing takes."""
    found: list[Any] = []
    for item in described:
        if item["kind"] == "path" and item["path"].endswith(".npy"):
            found.append(_tensor_file(Path(item["path"])))
        elif item["kind"] == "path":
            found.append(Path(item["path"]))
        elif item["kind"] == "bytes":
            found.append(arrays[item["key"]].tobytes())
        else:
            found.append(arrays[item["key"]])
    return found


def _tensor_file(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is not a .npy file of plain numbers: {error}") from error


def feeds_of(task: Mapping[str, Any], arrays: Arrays, session: Session) -> Arrays:
    """Return the feeds of one predict of an opened session."""
    return _feeding(task, arrays)(session)()


def _feeding(task: Mapping[str, Any], arrays: Arrays) -> Callable[[Session], Callable[[], Arrays]]:
    """Return what makes the `prepare` of a workload once the session's inputs are known."""
    recipe = Recipe.from_json(task["recipe"])
    if task["samples"] is None:

        def synthetic(session: Session) -> Callable[[], Arrays]:
            declared = [r.spec for r in recipe.inputs] or list(session.inputs)
            made = example_feeds(declared, seed=task["seed"], batch_size=task["batch_size"], symbols=task["symbols"])
            made |= constant_feeds(recipe, task["batch_size"])
            names = [s.name for s in session.inputs]
            feeds = made if set(made) <= set(names) else dict(zip(names, made.values(), strict=True))
            return lambda: feeds

        return synthetic
    samples = {name: _samples(items, arrays) for name, items in task["samples"].items()}

    def given(session: Session) -> Callable[[], Arrays]:
        named, names = samples, [spec.name for spec in session.inputs]
        if not recipe.inputs and set(samples) != set(names) and len(samples) == len(names):
            named = dict(zip(names, samples.values(), strict=True))  # nothing declares names, so their order counts
        if task["batch_size"] is not None:
            _check_batch(prepare(recipe, named, session.inputs), session, task["batch_size"])
        return lambda: prepare(recipe, named, session.inputs)

    return given


def _opener(task: Mapping[str, Any]) -> Callable[[Level], Session]:
    backend = load_backend(task["backend"])
    model, options = model_from_json(task["model"]), options_from_json(task["options"])
    scratch = Path(task["scratch"])

    def open_session(level: Level) -> Session:
        return backend.open(model, dataclasses.replace(options, level=level, scratch=scratch))

    return open_session


def _check_batch(feeds: Arrays, session: Session, batch_size: int) -> None:
    """See that the run's record of its batch will be true."""
    for spec in session.inputs:
        axis = batch_axis(spec)
        if axis is not None and feeds[spec.name].ndim > axis and feeds[spec.name].shape[axis] != batch_size:
            have = feeds[spec.name].shape[axis]
            raise InputError(
                f"Input {spec.describe()}: the array holds {have} samples and batch_size is {batch_size}; "
                f"say batch_size={have}"
            )


def _measure(task: Mapping[str, Any], arrays: Arrays, emit: Emit) -> None:
    recipe, feeding = Recipe.from_json(task["recipe"]), _feeding(task, arrays)
    plans = [PassPlan(**plan) for plan in task["plans"]]
    device = options_from_json(task["options"]).device
    load_backend(task["backend"]).prepare_process([plan.opened_at for plan in plans], device)
    measure(
        _opener(task),
        lambda session: Workload(prepare=feeding(session), finish=lambda outputs: answers(recipe, outputs)),
        plans,
        process=task["process"],
        emit=emit,
    )


def _predict(task: Mapping[str, Any], arrays: Arrays, emit: Emit) -> None:
    with _opener(task)("model") as session:
        outputs = session.predict(feeds_of(task, arrays, session))
        emit({"type": "session", **session_facts(session)})
    emit({"type": "outputs", "names": list(outputs)}, {str(i): a for i, a in enumerate(outputs.values())})


def _agreement(source: ModelFiles, derived: ModelFiles, task: Mapping[str, Any], example: Arrays) -> dict[str, Any]:
    """Run both forms on the example and compare, or say why not."""
    found: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for role, model, name in (
        ("source", source, task["source_backend"]),
        ("derived", derived, task["derived_backend"]),
    ):
        backend = load_backend(name)
        if not backend.availability().ok:
            return {"measured": False, "reason": f"backend '{name}' is not installed"}
        with backend.open(model, SessionOptions(threads=1)) as session:
            feeds = dict(zip((s.name for s in session.inputs), example.values(), strict=True))
            found[role] = session.predict(feeds)
    largest = scale = 0.0
    for a, b in zip(found["source"].values(), found["derived"].values(), strict=True):
        if a.shape != b.shape:
            raise InputError(f"the converted model returns shape {b.shape} where its source returns {a.shape}")
        if a.size and a.dtype.kind == "f":
            difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
            # NaN on both sides at the same place is agreement; on one side it is not, and must not be lost in max()
            difference[np.isnan(a) & np.isnan(b)] = 0.0
            largest = max(largest, float(difference.max()) if not np.isnan(difference).any() else float("inf"))
            scale = max(scale, float(np.nanmax(np.abs(a))))
        elif not np.array_equal(a, b):
            largest = float("inf")
    return {
        "measured": True,
        "backends": [task["source_backend"], task["derived_backend"]],
        "max_abs_difference": largest,
        "output_scale": scale,
        "input": "seeded standard normal values",
    }


def _convert(task: Mapping[str, Any], arrays: Arrays, emit: Emit) -> None:
    source = model_from_json(task["model"])
    convert = plugins.load("mlscope_lab.converters", task["converter"])
    target = Path(task["target"])
    example = {name: arrays[name] for name in task["example"]}
    emit({"type": "note", "text": f"Converting {source.name} from {source.format} to {task['format']}"})
    made = convert(source, target, example=example)
    derived = dataclasses.replace(
        source, format=task["format"], path=target, digest="", architecture=None, parameters={}, trusted=False
    )
    agreement = _agreement(source, derived, task, example)
    emit({"type": "converted", "made": dict(made), "agreement": agreement})


def _capabilities(task: Mapping[str, Any], arrays: Arrays, emit: Emit) -> None:
    """Import one framework and say what it can do here; what crashes at import takes nobody else down."""
    emit({"type": "capabilities", **dataclasses.asdict(load_backend(task["backend"]).capabilities())})


def _calibrate(task: Mapping[str, Any], arrays: Arrays, emit: Emit) -> None:
    """Measure what this machine can do at most."""
    from mlscope_lab.calibration.measuring import measure_peaks

    emit({"type": "peaks", **measure_peaks(task, lambda text: emit({"type": "note", "text": text}))})


_TASKS: dict[str, Callable[[Mapping[str, Any], Arrays, Emit], None]] = {
    "measure": _measure,
    "predict": _predict,
    "convert": _convert,
    "capabilities": _capabilities,
    "calibrate": _calibrate,
}


def run_task(task: Mapping[str, Any], arrays: Arrays, emit: Emit) -> None:
    """Do one task.

    Raises
    ------
    PluginError
        If there is no such task.
    """
    try:
        function = _TASKS[task["kind"]]
    except KeyError:
        raise PluginError(f"Unknown task {task.get('kind')!r}. Known: {', '.join(_TASKS)}") from None
    function(task, arrays, emit)
