"""The work of a comparison: two open sides run sample after sample, aligned once, compared pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mlscope_lab.alignment.aligner import align
from mlscope_lab.alignment.records import Alignment, Fix, Pair, in_layout_of
from mlscope_lab.divergence.capture import Capture, capture, is_numeric, open_stepper
from mlscope_lab.divergence.noise import difference_noise, rounding_noise
from mlscope_lab.divergence.shadow import Injection, dequantized, shadow
from mlscope_lab.divergence.sides import OpenSide, describe_inputs
from mlscope_lab.errors import InputError, MlscopeError, SessionError
from mlscope_lab.numerics.measures import PairAccumulator, PairMeasures
from mlscope_lab.processing.recipe import declared_outputs
from mlscope_lab.trace.comparison import compare_outputs

__all__ = ["Options", "SampleRow", "Work"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a comparison is made; see `mlscope_lab.compare`."""

    provenance: bool = True
    values: bool = True
    fixes: tuple[Fix, ...] = ()
    calibrate: tuple[str, ...] = ("rounding",)
    shadow: bool = True
    keep_tensors: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """What became of one input sample."""

    name: str
    status: str
    message: str = ""
    top1_a: int = -1
    top1_b: int = -1
    output_max_abs_error: float = float("nan")


class Work:
    """Two open sides and what was found of them so far; a context manager that frees steppers and spools.

    Parameters
    ----------
    a, b
        The reference and the other side.
    options
        How.

    Raises
    ------
    InputError
        If the sides take different numbers of inputs, so that one input cannot serve both.
    """

    def __init__(self, a: OpenSide, b: OpenSide, options: Options) -> None:
        self.a, self.b, self.options = a, b, options
        self._stack = ExitStack()
        self.alignment: Alignment | None = None
        self.captures: tuple[Capture, Capture] | None = None
        self.measures: list[PairAccumulator] = []
        self.rows: list[SampleRow] = []
        self.outputs: dict[str, Array] = {}
        self.noise: tuple[dict[int, float], dict[int, float]] = ({}, {})
        self.noise_sources: dict[str, str] = {}
        self.injections: dict[int, Injection] = {}
        self.not_replayed: dict[int, str] = {}
        self.observer: list[dict[str, Any]] = []
        self.tensors: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []
        self.failure: dict[str, str] | None = None
        self.calibrated_on: tuple[dict[str, Array], dict[str, Array]] | None = None
        given = (a.session.inputs, b.session.inputs)
        if given[0] and given[1] and len(given[0]) != len(given[1]):
            raise InputError(
                f"The sides take different inputs: a ({a.label}) takes {describe_inputs(given[0])}; "
                f"b ({b.label}) takes {describe_inputs(given[1])}. Compare models of the same interface"
            )
        self.steppers = tuple(self._stack.enter_context(open_stepper(side.session)) for side in (a, b))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, name: str, samples: Any, count: int = 1) -> None:
        """Run both sides on some samples and add what differs.

        Parameters
        ----------
        name
            Of the samples, for the record.
        samples
            As for `OpenSide.feeds`.
        count
            How many samples they are.

        Raises
        ------
        InputError
            If they cannot be read or do not fit; nothing is added then.
        SessionError
            If a side fails; `failure` says which, and what was found until then stays.
        """
        feeds = (self.a.feeds(samples, count), self.b.feeds(samples, count))
        plain = [
            self._guarded(letter, side, lambda s=side, g=given: s.session.predict(g))
            for letter, side, given in zip("ab", (self.a, self.b), feeds, strict=True)
        ]
        first, batches = self.captures is None, (self._batch(self.a, count), self._batch(self.b, count))
        alone = self._alone(samples, batches) if first else None
        made: list[Capture] = []
        try:
            if alone is not None:
                self._begin(*alone, batches=(1, 1))
            self._capture(feeds, batches, made, sketching=first and alone is None, ranging=first)
            if first and alone is None:
                self._begin(made[0], made[1], batches=batches)
                self.calibrated_on = feeds
            if first:
                self._observe(made, plain)
                self._lay_out(made)
            self._accumulate(made[0], made[1], count, keep=first and self.options.keep_tensors)
            self._record(name, plain)
            for letter, side, one in zip("ab", (self.a, self.b), made, strict=True):
                if one.failure:
                    self._fail(letter, side, one.failure)
            if first and self.failure is None:
                self._calibrate()
                if self.options.shadow:
                    self._shadow()
        finally:
            for one in made:
                if one not in (self.captures or ()):
                    one.spool.close()
        if self.failure is not None:
            raise SessionError(self.failure["message"])

    def _capture(
        self, feeds: Sequence[Mapping[str, Array]], batches: Sequence[int], made: list[Capture], *, sketching: bool,
        ranging: bool,
    ) -> None:  # fmt: skip
        """Run both sides; what the first left is in `made` also where the second fails."""
        for letter, side, stepper, given, batch in zip(
            "ab", (self.a, self.b), self.steppers, feeds, batches, strict=True
        ):
            made.append(
                self._guarded(
                    letter, side,
                    lambda st=stepper, g=given, n=batch: capture(
                        st, g, batch=n, sketching=sketching, ranging=ranging
                    ),
                )
            )  # fmt: skip

    def _alone(self, samples: Any, batches: tuple[int, int]) -> tuple[Capture, Capture] | None:
        """Run the first sample of a batch alone, where the models let us: calibration then costs that much less.

        None where there is no batch, its length is what differs, or a model takes no other length.
        """
        if batches[0] != batches[1] or batches[0] == 1 or self.a.subject.live or self.b.subject.live:
            return None
        one = (
            {name: given[:1] for name, given in samples.items()} if isinstance(samples, Mapping)
            else samples[:1] if isinstance(samples, list) else samples
        )  # fmt: skip
        made: list[Capture] = []
        try:
            feeds = (self.a.feeds(one, 1, batch=1), self.b.feeds(one, 1, batch=1))
            self._capture(feeds, (1, 1), made, sketching=True, ranging=False)
        except (InputError, SessionError):
            self.failure = None
        if len(made) < 2 or any(capture.failure for capture in made):
            for capture in made:
                capture.spool.close()
            return None
        self.calibrated_on = feeds
        return made[0], made[1]

    def _guarded(self, letter: str, side: OpenSide, call: Any) -> Any:
        try:
            return call()
        except SessionError as error:
            self._fail(letter, side, str(error))
            raise SessionError(self.failure["message"] if self.failure else str(error)) from error

    def _fail(self, letter: str, side: OpenSide, message: str) -> None:
        self.failure = {
            "side": letter,
            "label": side.label,
            "message": f"Side {letter} ({side.label}) failed: {message}",
        }

    def _batch(self, side: OpenSide, count: int) -> int:
        return max(side.side.batch_size or count, count)

    def _begin(self, a: Capture, b: Capture, *, batches: tuple[int, int]) -> None:
        """Keep the first captures and align them."""
        self.captures = (a, b)
        for one in (a, b):
            self._stack.callback(one.spool.close)
        self.alignment = align(
            a.graph, b.graph, a.sketches, b.sketches, batch_a=batches[0], batch_b=batches[1], fixes=self.options.fixes,
            provenance=self.options.provenance, values=self.options.values,
        )  # fmt: skip

    def _observe(self, made: Sequence[Capture], plain: Sequence[Mapping[str, Array]]) -> None:
        """See what stepping did to the outputs."""
        for letter, stepper, one, outputs in zip("ab", self.steppers, made, plain, strict=True):
            stepped = {name: one.spool.read(value) for name, value in one.graph.outputs.items() if value in one.spool}
            common = [name for name in outputs if name in stepped]
            equal, largest = compare_outputs({n: outputs[n] for n in common}, {n: stepped[n] for n in common})
            self.observer.append({"side": letter, "equal": bool(equal == 1), "max_abs_difference": largest,
                                  "method": stepper.method, "notes": list(stepper.notes)})  # fmt: skip
            self.outputs |= {
                # the store takes names for folders
                f"{letter}_{name.replace('/', ':')}": array
                for name, array in outputs.items()
                if is_numeric(array)
            }

    def _lay_out(self, made: Sequence[Capture]) -> None:
        """Make an accumulator for each pair, on the range of both its values."""
        a, b = made
        for pair in self.alignment.pairs if self.alignment is not None else ():
            ranges = np.array([a.ranges.get(pair.a, (np.nan, np.nan)), b.ranges.get(pair.b, (np.nan, np.nan))])
            low, high = np.fmin(*ranges[:, 0]), np.fmax(*ranges[:, 1])
            axis = self._channel_axis(pair, a.graph.values[pair.a].shape)
            self.measures.append(PairAccumulator(low=float(low), high=float(high), channel_axis=axis))

    def _channel_axis(self, pair: Pair, shape: tuple[int, ...]) -> int | None:
        """Return a's channel axis: 1, or the last where the layouts say that a is channels-last; None for vectors."""
        if len(shape) < 3:
            return 1 if len(shape) == 2 else None
        # b's axes in a's order: (0, 3, 1, 2) brings channels-last into channels-first, (0, 2, 3, 1) the reverse
        if pair.axes is not None and pair.axes[-1] == 1:
            return len(shape) - 1
        return 1

    def _matched(self, a: Capture, b: Capture, pair: Pair, count: int) -> tuple[Array, Array] | None:
        """Return both values of a pair in a's layout, cut to the samples that count; None where one is absent."""
        if pair.a not in a.spool or pair.b not in b.spool:
            return None
        one, other = a.spool.read(pair.a), b.spool.read(pair.b)
        one = dequantized(one, a.graph.values[pair.a])
        other = dequantized(other, b.graph.values[pair.b])
        sizes = self._batch(self.a, count), self._batch(self.b, count)
        if sizes[0] != sizes[1] or max(sizes) > count:
            one = one[:count] if one.ndim and one.shape[0] == sizes[0] else one
            other = other[:count] if other.ndim and other.shape[0] == sizes[1] else other
        return one, in_layout_of(one.shape, other, pair.axes)

    def _accumulate(self, a: Capture, b: Capture, count: int, *, keep: bool) -> None:
        if self.alignment is None or self.captures is None:
            return
        if a is not self.captures[0]:
            for letter, one, first in (("a", a, self.captures[0]), ("b", b, self.captures[1])):
                if [v.name for v in one.graph.values] != [v.name for v in first.graph.values]:
                    raise InputError(
                        f"side {letter} took another path through its graph than on the first sample, so that its "
                        "layers cannot be added up; compare it alone"
                    )
        for position, (pair, accumulator) in enumerate(zip(self.alignment.pairs, self.measures, strict=True)):
            both = self._matched(a, b, pair, count)
            if both is None:
                continue
            accumulator.add(*both)
            if keep:
                self.tensors[f"t{position:05d}"] = {
                    "a": both[0], "b": both[1], "name": a.graph.values[pair.a].name, "pair": position
                }  # fmt: skip

    def _record(self, name: str, plain: Sequence[Mapping[str, Array]]) -> None:
        named = [declared_outputs(side.recipe, done) for side, done in zip((self.a, self.b), plain, strict=True)]
        if set(named[0]) != set(named[1]):  # frameworks name outputs as they like; then their order counts
            named = [{str(i): array for i, array in enumerate(outputs.values())} for outputs in named]
        _, largest = compare_outputs(named[0], named[1])
        self.rows.append(
            SampleRow(
                name=name, status="compared", top1_a=_top1(named[0]), top1_b=_top1(named[1]),
                output_max_abs_error=largest,
            )
        )  # fmt: skip

    def leave_out(self, name: str, reason: str) -> None:
        """Record a sample that could not be compared."""
        self.rows.append(SampleRow(name=name, status="left out", message=reason))
        self.warnings.append(f"Sample {name} is left out: {reason}")

    def _calibrate(self) -> None:
        if self.captures is None or self.calibrated_on is None:
            return
        for letter, index in (("a", 0), ("b", 1)):
            stepper, plain, found = self.steppers[index], self.captures[index], self.noise[index]
            if "rounding" in self.options.calibrate:
                if stepper.can_replace:
                    _merge(
                        found, rounding_noise(stepper, self.calibrated_on[index], plain, first_seed=self.options.seed)
                    )
                    self.noise_sources[f"rounding {letter}"] = (
                        "inputs and results moved by a unit in the last place, 2 seeds"
                    )
                else:
                    self.noise_sources[f"rounding {letter}"] = "unavailable: values cannot be replaced on this side"

    def add_noise(self, index: int, source: str, other: OpenSide) -> None:
        """Take another session of a side's model as a source of noise: other threads, or double precision."""
        letter = "ab"[index]
        if self.captures is None or self.calibrated_on is None:
            return
        try:
            with open_stepper(other.session) as stepper:
                found = difference_noise(stepper, self.calibrated_on[index], self.captures[index])
            _merge(self.noise[index], found)
            self.noise_sources[f"{source} {letter}"] = "the same graph, run so"
        except MlscopeError as error:
            self.noise_sources[f"{source} {letter}"] = f"unavailable: {error}"

    def _shadow(self) -> None:
        if self.captures is None or self.alignment is None:
            return
        a, b = self.captures
        if not self.steppers[1].can_replay:
            self.warnings.append(
                f"Side b ({self.b.label}) cannot run single operations again, so that injected error is not told from "
                "inherited; make it the reference to have that"
            )
            return
        self.injections, self.not_replayed = shadow(self.steppers[1], a, b, self.alignment, seed=self.options.seed)

    def results(self) -> list[PairMeasures]:
        """Return the measures of every pair, in order."""
        return [accumulator.result() for accumulator in self.measures]


def _merge(into: dict[int, float], more: Mapping[int, float]) -> None:
    for key, value in more.items():
        into[key] = float(np.fmax(into.get(key, np.nan), value))


def _top1(outputs: Mapping[str, Array]) -> int:
    """Return the largest class of the first sample, -1 where the first output is no row of scores."""
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1 and np.isfinite(array[0]).any():
            return int(np.nanargmax(array[0]))
        break
    return -1
