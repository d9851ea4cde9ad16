"""What a sweep of the preprocessing found, as a ranked dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.proportions import mcnemar, wilson_interval
from mlscope_lab.divergence.answering import Answers, effect_of
from mlscope_lab.divergence.causes import Observed, named_cause
from mlscope_lab.numerics.distributions import jensen_shannon
from mlscope_lab.processing.variants import Variation

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Row", "Swept", "sweep_dataset"]

Array = npt.NDArray[Any]


@dataclass(kw_only=True)
class Row:
    """What one variation did, a number a sample in each list."""

    variation: Variation
    input_max_abs: list[float] = field(default_factory=list)
    input_rms: list[float] = field(default_factory=list)
    top1: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    declared_score: list[float] = field(default_factory=list)
    js_divergence: list[float] = field(default_factory=list)
    effect: list[float] = field(default_factory=list)
    interaction: list[float] = field(default_factory=list)
    explains: list[bool] = field(default_factory=list)
    fit: list[float] = field(default_factory=list)

    def add_input(self, declared: Array, varied: Array) -> None:
        """Compare the input tensor of a sample."""
        error = varied.astype(np.float64) - declared.astype(np.float64)
        self.input_max_abs.append(float(np.abs(error).max()))
        self.input_rms.append(float(np.sqrt(np.mean(error * error))))

    def add(self, declared: Answers, varied: Answers, observed: Observed | None, positions: Sequence[int]) -> None:
        """Compare the answers to a batch; `positions` are those of its samples among all that were given."""
        count = len(varied.values)
        self.top1.extend(varied.top1.tolist())
        self.effect.extend(effect_of(declared, varied).tolist())
        if varied.probabilities is None or declared.probabilities is None:
            for column in (self.score, self.declared_score, self.js_divergence):
                column.extend([float("nan")] * count)
        else:
            rows = np.arange(count)
            self.score.extend(varied.probabilities.max(axis=1).tolist())
            self.declared_score.extend(varied.probabilities[rows, declared.top1].tolist())
            self.js_divergence.extend(jensen_shannon(declared.probabilities, varied.probabilities).tolist())
        if observed is not None:
            explains, fit = observed.fits(varied, positions)
            self.explains.extend(explains)
            self.fit.extend(fit)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """All that a sweep found.

    Attributes
    ----------
    model, backend, dataset, input, output, how
        Who answered, to what, in which words; `how` is that of `mlscope_lab.divergence.answering.Answering`.
    labels
        Names of the classes.
    names, targets
        Of the samples that could be read; a target is -1 where nobody said.
    reference, rows
        The declared steps, and each variation.
    not_applicable, left_out
        Variations and samples that failed, with the reason.
    observed
        What is to be explained.
    """

    model: str
    backend: str
    dataset: str
    input: str
    output: str
    how: str
    labels: tuple[str, ...] | None
    names: tuple[str, ...]
    targets: tuple[int, ...]
    reference: Row
    rows: tuple[Row, ...]
    not_applicable: dict[str, str]
    left_out: dict[str, str]
    observed: Observed | None


_LONG = {
    "input_max_abs": "largest difference of the input tensor to the declared one",
    "input_rms": "root mean square difference of the input tensor to the declared one",
    "top1": "best class, -1 where the model tells no classes",
    "score": "probability of the best class",
    "declared_score": "probability of the class that the declared steps lead to",
    "js_divergence": "Jensen-Shannon divergence of the prediction to the declared one, in nats",
    "effect": "total variation distance to the declared prediction; without classes, relative norm of the difference",
    "interaction": "size of what both changes do together beyond the sum of what each does alone; NaN for single ones",
}


def sweep_dataset(swept: Swept) -> xr.Dataset:
    """Return what a sweep found, the variations with the largest effect first.

    Returns
    -------
    xarray.Dataset
        Along (variation, sample): ``input_max_abs``, ``input_rms``, ``top1``, ``label``, ``score``, ``changed`` (best
        class other than the declared), ``declared_score``, ``js_divergence``, ``effect``, ``interaction``. Along
        ``variation``: ``name``, ``axes``, ``size`` (1 or 2), ``steps`` (JSON), ``changed_share``, ``js_mean``,
        ``effect_mean``; for pairs ``part`` (positions of its single ones along ``variation``, -1 for none),
        ``excess`` (mean effect less the sum of its parts'), ``flips_together`` (samples that only both changes flip);
        with targets ``correct``, ``accuracy``, ``accuracy_low``, ``accuracy_high`` (Wilson), ``accuracy_change``,
        ``mcnemar_p``, ``only_declared_correct``, ``only_varied_correct``. Along ``sample``: ``declared_top1``,
        ``declared_label``, ``declared_top1_score``, ``target``.

    Notes
    -----
    Variations are ranked by the share of samples whose best class changes, then by the mean Jensen-Shannon divergence,
    or the mean effect where there are no classes.
    """
    import xarray as xr

    rows, count = swept.rows, len(swept.names)
    changed = np.array([np.not_equal(r.top1, swept.reference.top1) for r in rows], dtype=bool).reshape(len(rows), count)
    js = _table(rows, "js_divergence", count)
    effect = _table(rows, "effect", count)
    has_classes = swept.reference.top1[0] >= 0
    strength = js if has_classes else effect
    order = np.lexsort((np.arange(len(rows)), -_means(strength), -_means(changed.astype(np.float64))))
    rows = tuple(rows[i] for i in order)
    both, one = ("variation", "sample"), ("variation",)
    data = xr.Dataset(coords={"sample": ("sample", np.array(swept.names, dtype=object))})
    for name, meaning in _LONG.items():
        if name == "interaction":
            values = np.array([r.interaction or [np.nan] * count for r in rows], dtype=np.float64)
        else:
            values = np.array([getattr(r, name) for r in rows])
        kind = np.int64 if name == "top1" else np.float64
        data[name] = (both, values.reshape(len(rows), count).astype(kind), {"long_name": meaning, "units": "1"})
    data["label"] = (both, _labels(data["top1"].values, swept.labels), {"long_name": "name of the best class"})
    data["changed"] = (both, changed[order], {"long_name": "whether the best class is not the declared one"})
    data["name"] = (one, _text(r.variation.name for r in rows), {"long_name": "what was changed"})
    data["axes"] = (one, _text(" + ".join(r.variation.axes) for r in rows), {"long_name": "kinds of what was changed"})
    data["size"] = (one, np.array([max(1, len(r.variation.parts)) for r in rows], dtype=np.int64),
                    {"long_name": "how many things were changed"})  # fmt: skip
    data["steps"] = (one, _text(json.dumps(r.variation.steps) for r in rows), {"long_name": "the steps as JSON"})
    for name, values, meaning in (
        ("changed_share", changed[order].astype(np.float64), "share of samples whose best class changes"),
        ("js_mean", js[order], "mean Jensen-Shannon divergence, in nats"),
        ("effect_mean", effect[order], "mean effect"),
    ):
        data[name] = (one, _means(values), {"long_name": meaning, "units": "1"})
    _add_pairs(data, rows)
    _add_reference(data, swept)
    _add_accuracy(data, swept)
    data.attrs = {
        "model": swept.model, "backend": swept.backend, "dataset": swept.dataset, "input": swept.input,
        "output": swept.output, "probabilities": swept.how, "samples": count,
        "declared_steps": json.dumps(swept.reference.variation.steps),
        "not_applicable": dict(swept.not_applicable), "left_out": dict(swept.left_out),
    }  # fmt: skip
    if swept.observed is not None:
        _add_explanations(data, swept, rows)
    return data


def _table(rows: Sequence[Row], name: str, count: int) -> npt.NDArray[np.float64]:
    return np.array([getattr(r, name) for r in rows], dtype=np.float64).reshape(len(rows), count)


def _means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values.mean(axis=1) if values.size else np.zeros(len(values))


def _text(items: Any) -> Array:
    listed = list(items)
    made = np.empty(len(listed), dtype=object)
    made[:] = listed
    return made


def _labels(index: Array, labels: Sequence[str] | None) -> Array:
    made = np.full(index.shape, "", dtype=object)
    if labels is not None:
        for place in np.ndindex(index.shape):
            made[place] = labels[int(index[place])] if index[place] >= 0 else ""
    return made


def _add_pairs(data: xr.Dataset, rows: Sequence[Row]) -> None:
    place = {r.variation.name: i for i, r in enumerate(rows)}
    effect, changed = data["effect_mean"].values, data["changed"].values
    part = np.full((len(rows), 2), -1, dtype=np.int64)
    excess, together = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        if row.variation.parts:
            part[i] = [place[name] for name in row.variation.parts]
            excess[i] = effect[i] - effect[part[i]].sum()
            together[i] = int((changed[i] & ~changed[part[i]].any(axis=0)).sum())
    data["part"] = (("variation", "part_of_pair"), part, {"long_name": "the two single variations of a pair"})
    data["excess"] = (("variation",), excess, {"long_name": "effect less the sum of its parts' effects", "units": "1"})
    data["flips_together"] = (("variation",), together,
                              {"long_name": "samples flipped by both changes, but by neither alone"})  # fmt: skip


def _add_reference(data: xr.Dataset, swept: Swept) -> None:
    top1 = np.array(swept.reference.top1, dtype=np.int64)
    data["declared_top1"] = ("sample", top1, {"long_name": "best class with the declared steps"})
    data["declared_label"] = ("sample", _labels(top1, swept.labels), {"long_name": "its name"})
    data["declared_top1_score"] = ("sample", np.array(swept.reference.score), {"long_name": "its probability",
                                                                               "units": "1"})  # fmt: skip
    data["target"] = ("sample", np.array(swept.targets, dtype=np.int64), {"long_name": "right class, -1 if unknown"})


def _add_accuracy(data: xr.Dataset, swept: Swept) -> None:
    """Add accuracy, and McNemar's test against the declared steps, over the samples with a target."""
    target = data["target"].values
    known = target >= 0
    if not known.any() or swept.reference.top1[0] < 0:
        return
    declared = (data["declared_top1"].values == target)[known]
    varied = (data["top1"].values == target)[:, known]
    n = int(known.sum())
    one = ("variation",)
    intervals = [wilson_interval(int(row.sum()), n) for row in varied]
    tests = [
        mcnemar(int((declared & row).sum()), int((declared & ~row).sum()), int((~declared & row).sum()),
                int((~declared & ~row).sum()))
        for row in varied
    ]  # fmt: skip
    data["correct"] = (("variation", "sample"), (data["top1"].values == target) & known,
                       {"long_name": "whether the best class is right; false where that is unknown"})  # fmt: skip
    for name, values, meaning in (
        ("accuracy", [i.centre for i in intervals], "share of right answers"),
        ("accuracy_low", [i.low for i in intervals], "lower bound of its 95 % interval (Wilson)"),
        ("accuracy_high", [i.high for i in intervals], "upper bound of its 95 % interval (Wilson)"),
        ("accuracy_change", [t.difference for t in tests], "accuracy less that of the declared steps"),
        ("mcnemar_p", [t.p_value for t in tests], "p-value of McNemar's exact test against the declared steps"),
        ("only_declared_correct", [t.only_a for t in tests], "samples that the declared steps alone get right"),
        ("only_varied_correct", [t.only_b for t in tests], "samples that the variation alone gets right"),
    ):
        data[name] = (one, np.array(values), {"long_name": meaning, "units": "1"})
    base = wilson_interval(int(declared.sum()), n)
    for name, value in (("declared_accuracy", base.centre), ("declared_accuracy_low", base.low),
                        ("declared_accuracy_high", base.high)):  # fmt: skip
        data[name] = ((), value, {"long_name": "accuracy with the declared steps, or a bound of it", "units": "1"})


def _add_explanations(data: xr.Dataset, swept: Swept, rows: Sequence[Row]) -> None:
    if swept.observed is None:
        return
    one = ("variation",)
    explains = np.array([np.mean(r.explains) for r in rows])
    fit = np.array([np.mean(r.fit) for r in rows])
    size = data["size"].values
    # only what explains everything profits from being simple; among the others the better fit comes first
    simple = np.where(explains == 1, size, 0)
    order = np.lexsort((np.arange(len(rows)), -fit, simple, -explains))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    data["explains"] = (one, explains, {"long_name": "share of samples whose observed answer it gives", "units": "1"})
    data["fit"] = (one, fit, {"long_name": "how well it gives the observed answers, 0 to 1", "units": "1"})
    data["explanation_rank"] = (one, rank, {"long_name": "place among the explanations, 0 the best"})
    data.attrs |= named_cause(data, swept.observed, swept.labels, all(swept.reference.explains))
