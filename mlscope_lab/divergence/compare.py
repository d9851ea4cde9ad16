"""`compare`: two sides on one or many inputs; what differs, where it begins, and who is to blame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.alignment.records import Alignment, Fix
from mlscope_lab.collectors.environment import describe
from mlscope_lab.config import Settings, load_settings
from mlscope_lab.divergence import schema
from mlscope_lab.divergence.columns import groups_of
from mlscope_lab.divergence.judging import judge_tree
from mlscope_lab.divergence.result import Comparison
from mlscope_lab.divergence.sides import OpenSide, Side, open_side, side_of, split_samples
from mlscope_lab.divergence.stored import store_of
from mlscope_lab.divergence.tree import build_comparison
from mlscope_lab.divergence.work import Options, Work
from mlscope_lab.errors import ComparisonError, InputError, MlscopeError, SessionError, nearest
from mlscope_lab.numerics.measures import QUANTILES
from mlscope_lab.progress import Reporter, reporter
from mlscope_lab.trace.build import new_run_id
from mlscope_lab.trace.kinds import COMPUTE

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CALIBRATIONS", "compare"]

CALIBRATIONS = ("rounding", "threads", "float64")
_FEW = 4


def compare(
    a: Any,
    b: Any,
    input: Any = None,  # noqa: A002 - the word that every caller expects
    *,
    model: Any = None,
    tolerance: Any = None,
    fixes: str | os.PathLike[str] | Sequence[Fix] = (),
    provenance: bool = True,
    shadow: bool = True,
    calibrate: Sequence[str] = ("rounding",),
    calibration: Sequence[Any] | None = None,
    keep_tensors: bool = False,
    repro: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    save: bool = True,
    progress: bool | Reporter | None = None,
    settings: Settings | None = None,
) -> Comparison:
    """Compare two models, or one model on two backends, layer by layer.

    Parameters
    ----------
    a, b
        The reference and the other side: mappings of what differs (``{"backend": "pytorch"}``, see
        `mlscope_lab.divergence.sides.Side`), names of backends where `model` is given, or models.
    input
        A sample, a list of samples, a dataset (its samples are used), or None for seeded values; for live objects the
        example arrays. Samples run one by one, and what they show is added up.
    model
        What both sides share.
    tolerance
        "calibrated": what arithmetic alone does to each value, times a factor (`numerics.calibration`); the default
        where either side shows that. Else "by dtype"; ``{"atol": 1e-5, "rtol": 1e-3}``, with tolerances of their own
        for names under "by"; the same as text; or a file (`numerics.tolerances.Tolerances.from_any`).
    fixes
        Pairs that a person decided: a file (`mlscope_lab.alignment.fixes`) or records.
    provenance
        Use names that exporters leave; without, shapes, order and values alone.
    shadow
        Replay each group of b on a's inputs, so that injected error is told from inherited.
    calibrate
        Sources of the calibrated tolerance: "rounding" (values moved by units in the last place), "threads" (another
        number of them), "float64" (the side in double precision, where its backend can).
    calibration
        Samples from which ``precision="int8-static"`` learns its ranges; default the input.
    keep_tensors
        Store the compared values of the first sample, too: they are large.
    repro
        Folder to write the smallest ONNX model into that shows the difference (of the culprit's group, else of the
        first divergent one), with its inputs; where nothing diverges nothing is written, and a warning says so.
    limit
        Most samples to take of `input`.
    seed
        Of the perturbations.
    save
        Keep the comparison in the store.
    progress, settings
        As for `mlscope_lab.profile`.

    Returns
    -------
    Comparison
        See `mlscope_lab.divergence.result.Comparison`.

    Raises
    ------
    InputError
        If the sides do not take the same inputs, or the input cannot be read. Of several samples those that cannot are
        left out and listed.
    ComparisonError
        If a side fails while it runs. What was found until then is stored (``save=True``) and is ``error.comparison``.
    MlscopeError
        What `mlscope_lab.load` raises.

    Examples
    --------
    >>> import mlscope_lab as ml
    >>> found = ml.compare(lambda x: x * 2, lambda x: x + x, [[1.0, 2.0]], save=False)
    >>> found.diverges
    False
    """
    resolved = settings or load_settings()
    sides = side_of(a, model=model), side_of(b, model=model)
    for name in calibrate:
        if name not in CALIBRATIONS:
            raise InputError(f"Unknown calibration {name!r}. Known: {', '.join(CALIBRATIONS)}."
                             f"{nearest(str(name), CALIBRATIONS)}")  # fmt: skip
    if isinstance(fixes, str | os.PathLike):
        from mlscope_lab.alignment.fixes import load_fixes

        fixes = load_fixes(fixes, a=_named(sides[0]), b=_named(sides[1]))
    options = Options(
        provenance=provenance, fixes=tuple(fixes),
        calibrate=tuple(calibrate), shadow=shadow, keep_tensors=keep_tensors, seed=seed,
    )  # fmt: skip
    with reporter(progress, total=4, title="compare") as line, ExitStack() as stack:
        opened = []
        for side in sides:
            line.stage(f"opening {side.backend or side.model}")
            live_example = input if not _is_dataset(input) else None
            opened.append(
                stack.enter_context(
                    open_side(side, settings=resolved, example=live_example, calibration=calibration, reporter=line)
                )
            )
            line.advance()
        work = stack.enter_context(Work(opened[0], opened[1], options))
        line.stage("comparing")
        chunks, count, names = _chunks(input, opened, limit)
        _run(work, chunks, count, names)
        line.advance()
        line.stage("calibrating")
        if work.captures is not None and work.failure is None:
            _other_noise(work, options.calibrate, resolved, line)
        tree = _tree(work, tolerance)
        if repro is not None and work.failure is None:
            tree.attrs.update(_repro(work, tree, Path(repro)))
        line.advance()
    found = Comparison(tree)
    if save:
        store_of(resolved).save(tree)
    if work.failure is not None:
        kept = f" What was compared until then is kept as {found.run_id}." if save else ""
        raise ComparisonError(work.failure["message"] + kept, comparison=found, run_id=found.run_id if save else None)
    return found


def _is_dataset(given: Any) -> bool:
    from mlscope_lab.datasets.base import Dataset

    return isinstance(given, Dataset)


def _chunks(given: Any, opened: Sequence[OpenSide], limit: int | None) -> tuple[list[Any], int, list[str]]:
    """Return what runs at a time, how many samples each is, and their names."""
    if _is_dataset(given):
        count = len(given) if limit is None else min(limit, len(given))
        given = [given[i][0] for i in range(count)]
    if any(side.subject.live is not None for side in opened):
        example = opened[0].subject.example or opened[1].subject.example
        return [example if given is None else given], 1, ["given"]
    sizes = {side.side.batch_size or 1 for side in opened}
    singles = split_samples(given)
    if limit is not None:
        singles = singles[:limit]
    names = [_name_of(sample, i) for i, sample in enumerate(singles)]
    size = min(sizes)
    if size == 1 or given is None or not isinstance(given, list):
        return singles, 1 if size == 1 or given is not None else size, names
    joined = [[item[0] for item in singles[i : i + size]] for i in range(0, len(singles), size)]
    return joined, size, [", ".join(names[i : i + size]) for i in range(0, len(names), size)]


def _name_of(sample: Any, index: int) -> str:
    one = sample[0] if isinstance(sample, list) and sample else sample
    if isinstance(one, str | os.PathLike):
        return os.path.basename(os.fspath(one))
    return "seeded values" if one is None else f"sample {index}"


def _run(work: Work, chunks: Sequence[Any], count: int, names: Sequence[str]) -> None:
    """Run every chunk; of several, those that cannot be read are left out."""
    for chunk, name in zip(chunks, names, strict=True):
        size = len(chunk) if isinstance(chunk, list) else count
        try:
            work.add(name, chunk, max(1, size))
        except InputError as error:
            if len(chunks) == 1:
                raise
            work.leave_out(name, str(error))
        except SessionError:
            if work.failure is None:
                raise
            work.leave_out(name, work.failure["message"])
            return
    if work.captures is None and work.failure is None:
        raise InputError(f"None of the {len(chunks)} samples could be read; the last: {work.rows[-1].message}")


def _other_noise(work: Work, wanted: Sequence[str], settings: Settings, line: Reporter) -> None:
    """Run what was calibrated on again with other threads and in double precision, where that is asked for."""
    from dataclasses import replace

    for index, side in enumerate((work.a, work.b)):
        for source in wanted:
            if source == "rounding":
                continue
            given = side.side
            model = side.subject.live if side.subject.live is not None else given.model
            if not isinstance(model, str | os.PathLike) and side.subject.live is None:
                work.noise_sources[f"{source} {'ab'[index]}"] = "unavailable: a loaded model keeps its own session"
                continue
            other: Side = (
                replace(given, threads=1 if (side.session.threads or 2) > 1 else 2)
                if source == "threads"
                else replace(given, precision="float64")
            )
            try:
                with open_side(other, settings=settings, example=side.subject.example, reporter=line) as opened:
                    work.add_noise(index, source, opened)
            except MlscopeError as error:
                work.noise_sources[f"{source} {'ab'[index]}"] = f"unavailable: {error}"


def _repro(work: Work, tree: xr.DataTree, folder: Path) -> dict[str, Any]:
    """Write the repro and return what the attributes say of it."""
    from mlscope_lab.divergence.repro import write_repro

    culprit = int(tree.attrs["culprit"])
    position = culprit if culprit >= 0 else int(tree.attrs["first_divergent"])
    if position < 0:
        return {"warnings": [*tree.attrs["warnings"], "Nothing diverges, so no repro was written"]}
    return {"repro": {"pair": position, **write_repro(work, position, folder)}}


def _named(side: Side) -> dict[str, str]:
    """Return what says which side this is, for a file of fixes; nothing of a live object's name is known."""
    fields = ("model", "backend", "precision", "graph_optimization")
    return {name: value for name in fields if isinstance(value := getattr(side, name), str)}


def _counts(work: Work, alignment: Alignment) -> dict[str, int]:
    """Return how many compute operations each side has, and how many of them are paired.

    One is paired if its group has some on either side, as many or a few: a group that holds half of a model tells
    nothing of what is in it. Groups that share an operation (one that writes several outputs) are seen as one, too.
    """
    found: dict[str, int] = {}
    if work.captures is None:
        return found
    compute = [
        {i for i, o in enumerate(capture.graph.operations) if COMPUTE & set(o.kinds)} for capture in work.captures
    ]
    groups = [(set(pair.group_a), set(pair.group_b)) for pair in alignment.pairs]
    paired: tuple[set[int], set[int]] = set(), set()
    for inside in [*groups, *_joined(groups)]:
        some = [every & part for every, part in zip(compute, inside, strict=True)]
        if all(some) and (len(some[0]) == len(some[1]) or max(map(len, some)) <= _FEW):
            for known, more in zip(paired, some, strict=True):
                known.update(more)
    for letter, capture, every, some_paired in zip("ab", work.captures, compute, paired, strict=True):
        found[f"operations_{letter}"] = len(capture.graph.operations)
        found[f"compute_{letter}"] = len(every)
        found[f"paired_{letter}"] = len(some_paired)
    return found


def _joined(groups: Sequence[tuple[set[int], set[int]]]) -> list[tuple[set[int], set[int]]]:
    """Return groups with those that share an operation on either side put together."""
    joined: list[tuple[set[int], set[int]]] = []
    for one in groups:
        apart, together = [], (set(one[0]), set(one[1]))
        for other in joined:
            if together[0] & other[0] or together[1] & other[1]:
                together = together[0] | other[0], together[1] | other[1]
            else:
                apart.append(other)
        joined = [*apart, together]
    return joined


def _tree(work: Work, tolerance: Any) -> xr.DataTree:
    """Build, judge and return the tree."""
    environment, unavailable = describe()
    facts = [work.a.facts(), work.b.facts()]
    for seen, fact in zip(work.observer, facts, strict=False):
        fact["method"] = seen["method"]
    alignment = work.alignment or Alignment(pairs=())
    warnings = [f"side {letter}: {w}" for letter, fact in zip("ab", facts, strict=True) for w in fact.pop("warnings")]
    warnings += [f"side {seen['side']}: {n}" for seen in work.observer for n in seen["notes"]]
    attrs: dict[str, Any] = {
        "schema_version": schema.SCHEMA_VERSION,
        "kind": schema.KIND,
        "run_id": new_run_id(),
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "status": "failed" if work.failure is not None else "complete",
        "model": facts[0]["model"] if facts[0]["model"] == facts[1]["model"] else
                 f"{facts[0]['model']}, {facts[1]['model']}",
        "backend": f"{facts[0]['backend']}, {facts[1]['backend']}",
        "level": "operator",
        "device": facts[0]["device"],
        "isolation": "inline",
        "sides": facts,
        "first_divergent": -1,
        "culprit": -1,
        "observer_effect": work.observer,
        "alignment": {**_counts(work, alignment), "provenance": work.options.provenance,
                      "notes": list(alignment.notes)},
        "calibration": dict(work.noise_sources),
        "not_replayed": {str(k): v for k, v in work.not_replayed.items()},
        "warnings": [*warnings, *work.warnings, *alignment.notes],
        "unavailable": unavailable,
        "environment": environment,
    }  # fmt: skip
    if work.failure is not None:
        attrs["failure"] = dict(work.failure)
    if work.captures is None:
        return build_comparison(attrs=attrs, groups={})
    tree = build_comparison(
        attrs=attrs, groups=groups_of(work, alignment), quantiles=QUANTILES, outputs=work.outputs, tensors=work.tensors
    )
    return judge_tree(tree, tolerance)
