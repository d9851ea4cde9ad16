"""Draw faults and clean pairs, let the tool compare each pair, and note what it names."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mlscope_lab as ml
from mlscope_lab.errors import MlscopeError
from tests.faults.models import BACKENDS, MODELS, PICTURES, Base, load_base, picture, save_onnx, to_tensorflow
from tests.faults.planting import (
    KINDS,
    READ_VALUES,
    Planted,
    RejectedError,
    plant,
    scrubbed,
    values_of,
    without_overflow,
)
from tests.faults.truth import Group, changed_operations, judge

__all__ = ["MOVES", "Bench", "Trial", "groups_of"]

MOVES = 10.0
"""A fault counts if the answer moves by more than this many times the clean difference of its two frameworks."""
_ATTEMPTS = 40
_CLEAN = "clean"


@dataclass(kw_only=True)
class Trial:
    """One comparison and what it named; names are those of the faulty side's operations."""

    kind: str
    model: str
    reference: str
    faulty: str
    fused: bool
    picture: str
    detail: str = ""
    truth: list[str] = field(default_factory=list)
    first: str = ""
    culprit: str = ""
    smallest: str = ""
    first_exact: bool = False
    shadow_first: bool = False
    reason: str = ""
    moved: float = 0.0
    clean_difference: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Draw:
    model: str
    reference: str
    faulty: str
    fused: bool
    picture: str


def groups_of(found: Any) -> list[Group]:
    """Return the groups of a comparison's pairs."""
    pairs = found.pairs()
    columns = ("operations_a", "operations_b", "types_a", "types_b")
    split = [[tuple(p for p in str(text).split(";") if p) for text in pairs[c]] for c in columns]
    return [Group(**dict(zip(columns, row, strict=True))) for row in zip(*split, strict=True)]


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two answers; infinite if one has NaN or Inf and the other has not."""
    one, other = one.reshape(-1).astype(np.float64), other.reshape(-1).astype(np.float64)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.abs(one - other).max())


class Bench:
    """The models, opened once for all trials; a context manager.

    Parameters
    ----------
    folder
        For files of models; what a trial writes there is removed after it.
    report
        Called with each trial.

    Attributes
    ----------
    rejected
        How many draws were no faults, by kind and reason.
    last
        The comparison of the last trial, to look into a miss.
    """

    def __init__(self, folder: Path, report: Callable[[Trial], None] = lambda trial: None) -> None:
        self.folder, self.report = folder, report
        self.rejected: Counter[tuple[str, str]] = Counter()
        self.last: Any = None
        self._bases: dict[str, Base] = {}
        self._stack = ExitStack()
        self._open: dict[tuple[str, str, bool], Any] = {}
        self._count = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def base(self, name: str) -> Base:
        """Return a model without a fault."""
        if name not in self._bases:
            (self.folder / "clean").mkdir(parents=True, exist_ok=True)
            self._bases[name] = load_base(name, self.folder / "clean")
        return self._bases[name]

    def reference(self, model: str, backend: str, fused: bool, x: np.ndarray) -> Any:
        """Return an open model without a fault."""
        key = (model, backend, fused)
        if key not in self._open:
            self._open[key] = self._stack.enter_context(_load(self.base(model).side(backend), backend, fused, x))
        return self._open[key]

    def faults(self, seed: int, count: int, kinds: tuple[str, ...] = KINDS) -> Iterator[Trial]:
        """Yield trials of faults: kinds and models in turn, frameworks and the rest at random, every second pair fused.

        Parameters
        ----------
        seed
            Decides everything.
        count
            Number of faults that count.
        kinds
            Which ones.
        """
        random = np.random.default_rng([seed, 1])
        offset = int(random.integers(len(KINDS)))
        for index in range(count):
            kind = kinds[(index + offset) % len(kinds)]
            # 7 kinds, 3 models and 2 ways to fuse: each kind meets all six of the others
            models = [MODELS[(index + i) % len(MODELS)] for i in range(len(MODELS))]
            yield self._fault(kind, models, fused=bool(index % 2), random=random)

    def clean(self, seed: int, count: int) -> Iterator[Trial]:
        """Yield trials without a fault, over models and frameworks in turn."""
        random = np.random.default_rng([seed, 2])
        for index in range(count):
            draw = self._draw(MODELS[index % len(MODELS)], bool(index // len(MODELS) % 2), random)
            x = picture(draw.picture, random)
            planted = self._plant(draw, None, random, x)
            with self._faulty(draw, planted, x) as (side, file):
                trial = self._compare(draw, planted, side, file, x)
            self.report(trial)
            yield trial

    def _draw(self, model: str, fused: bool, random: np.random.Generator) -> _Draw:
        reference, faulty = random.choice(BACKENDS, 2, replace=False)
        return _Draw(model=model, reference=str(reference), faulty=str(faulty), fused=fused,
                     picture=str(random.choice(PICTURES)))  # fmt: skip

    def _fault(self, kind: str, models: list[str], *, fused: bool, random: np.random.Generator) -> Trial:
        for model in models:
            for _ in range(_ATTEMPTS):
                draw = self._draw(model, fused, random)
                x = picture(draw.picture, random)
                try:
                    return self._trial(draw, kind, x, random)
                except RejectedError as reason:
                    self.rejected[kind, str(reason)] += 1
        raise RuntimeError(f"No fault of kind '{kind}' moved an answer in {len(models) * _ATTEMPTS} draws")

    def _trial(self, draw: _Draw, kind: str, x: np.ndarray, random: np.random.Generator) -> Trial:
        planted = self._plant(draw, kind, random, x)
        sides = [self.reference(draw.model, b, draw.fused, x) for b in (draw.reference, draw.faulty)]
        plain, same = (_answer(side, x) for side in sides)
        clean = _difference(plain, same)
        if kind == "fp16 overflow" and not _overflow_moves(planted, x) > MOVES * clean:
            raise RejectedError("what overflows does not move the answer, rounding to float16 alone may")
        with self._faulty(draw, planted, x) as (side, file):
            moved = _difference(_answer(side, x), plain)
            if not moved > MOVES * clean:
                raise RejectedError(f"the answer moves by less than {MOVES:.0f} times the clean difference")
            trial = self._compare(draw, planted, side, file, x)
        trial.moved, trial.clean_difference = moved, clean
        self.report(trial)
        return trial

    def _plant(self, draw: _Draw, kind: str | None, random: np.random.Generator, x: np.ndarray) -> Planted:
        base = self.base(draw.model)
        if draw.faulty == "pytorch" and base.module is not None:
            from tests.faults.planting_torch import plant_module

            if kind is None:
                return Planted(kind=_CLEAN, detail="", changed=(), model=base.module)
            return plant_module(base.module, kind, random, x)
        if kind is None:
            return scrubbed(Planted(kind=_CLEAN, detail="", changed=(), model=base.graph), random)
        values = values_of(base.graph, x) if kind in READ_VALUES else {}
        return scrubbed(plant(base.graph, kind, random, values), random)

    def _faulty(self, draw: _Draw, planted: Planted, x: np.ndarray) -> _Faulty:
        self._count += 1
        return _Faulty(draw, planted, x, self.folder / f"trial-{self._count}")

    def _compare(self, draw: _Draw, planted: Planted, side: Any, file: Path | None, x: np.ndarray) -> Trial:
        trial = Trial(kind=planted.kind, detail=planted.detail, model=draw.model, reference=draw.reference,
                      faulty=draw.faulty, fused=draw.fused, picture=draw.picture)  # fmt: skip
        truth: set[str] = set()
        if planted.changed:
            with side.session.open_stepper() as stepper:
                graph = stepper.run({side.session.inputs[0].name: x}, lambda index, array: None)
            for blamed in (planted.changed[:1], planted.changed):
                truth = truth or changed_operations(graph, draw.faulty, blamed, file)
            if not truth:
                raise RejectedError("the framework's optimiser removed the changed operator")
        trial.truth = sorted(truth)
        try:
            found = ml.compare(
                self.reference(draw.model, draw.reference, draw.fused, x), side, x, provenance=False, save=False,
                progress=False,
            )  # fmt: skip
        except MlscopeError as error:
            trial.reason = f"{type(error).__name__}: {error}"
            return trial
        groups = groups_of(found)
        first, culprit = int(found.tree.attrs["first_divergent"]), int(found.tree.attrs["culprit"])
        trial.first, trial.culprit = _text(groups, first), _text(groups, culprit)
        if planted.changed:
            judged = judge(groups, truth, first, culprit)
            trial.first_exact, trial.shadow_first = judged.first_exact, judged.shadow_first
            trial.reason, trial.smallest = judged.reason, _text(groups, judged.smallest)
        else:
            trial.first_exact, trial.shadow_first = first < 0, culprit < 0
            trial.reason = "" if first < 0 and culprit < 0 else "named something"
        self.last = found
        return trial


class _Faulty:
    """The other side, opened from files of its own; these are removed when it is left."""

    def __init__(self, draw: _Draw, planted: Planted, x: np.ndarray, folder: Path) -> None:
        self._draw, self._planted, self._x, self._folder = draw, planted, x, folder
        self._model: Any = None

    def __enter__(self) -> tuple[Any, Path | None]:
        from tests.faults.twin import Twin

        model, file = self._planted.model, None
        backend = self._draw.faulty
        if hasattr(model, "graph"):
            self._folder.mkdir(parents=True)
            file = save_onnx(model, self._folder / "model.onnx")
            model = Twin(model) if backend == "pytorch" else to_tensorflow(file) if backend == "tensorflow" else file
        self._model = _load(model, backend, self._draw.fused, self._x)
        return self._model, file

    def __exit__(self, *_: object) -> None:
        if self._model is not None:
            self._model.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _overflow_moves(planted: Planted, x: np.ndarray) -> float:
    """Return how far the answer moves by what overflows alone, as against the same layer in float16 without that."""
    if hasattr(planted.model, "graph"):
        answer = planted.model.graph.output[0].name
        pair = (planted.model, without_overflow(planted.model, planted.changed))
        return _difference(*(values_of(model, x)[answer] for model in pair))
    import torch

    from tests.faults.planting_torch import module_without_overflow

    with torch.no_grad():
        pair = (planted.model, module_without_overflow(planted.model))
        return _difference(*(module(torch.from_numpy(x)).numpy() for module in pair))


def _load(model: Any, backend: str, fused: bool, x: np.ndarray) -> Any:
    example = None if isinstance(model, Path) else x
    # PyTorch runs modules as they are written: there is nothing that could be left out
    optimization = None if fused or backend == "pytorch" else "none"
    return ml.load(model, backend=backend, example=example, graph_optimization=optimization, threads=2)


def _answer(model: Any, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(next(iter(model.predict(x).outputs.values())))


def _text(groups: list[Group], position: int) -> str:
    if position < 0:
        return ""
    group = groups[position]
    made = [f"{t} {o}" for t, o in zip(group.types_b, group.operations_b, strict=True)]
    return f"#{position}: {', '.join(made) or 'input'} / {', '.join(group.types_a)}"
