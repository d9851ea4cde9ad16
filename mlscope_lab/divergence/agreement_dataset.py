"""What two sides answered to the same samples, as a dataset with its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.detections import match_detections
from mlscope_lab.analysis.proportions import McNemar, mcnemar, wilson_interval
from mlscope_lab.divergence.answering import differences
from mlscope_lab.errors import InputError
from mlscope_lab.numerics.distributions import prediction_divergences
from mlscope_lab.processing.detections import DetectionOutputs

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Reply", "Tally", "agreement_dataset", "verdict"]

Array = npt.NDArray[Any]

_LONG: dict[str, tuple[str, str]] = {
    "target": ("right class, -1 if unknown", ""),
    "top1_a": ("best class of a, -1 where it tells no classes", ""),
    "top1_b": ("best class of b, in a's numbering", ""),
    "score_a": ("probability that a gives its best class", "1"),
    "score_b": ("probability that b gives its best class", "1"),
    "margin_a": ("probability of a's best class less that of its second", "1"),
    "margin_b": ("probability of b's best class less that of its second", "1"),
    "topk_overlap": ("share of the classes among the best k of either that both have there", "1"),
    "bhattacharyya": ("Bhattacharyya distance of the predictions", "1"),
    "hellinger": ("Hellinger distance of the predictions", "1"),
    "correlation": ("correlation of the predictions over the classes", "1"),
    "jensen_shannon": ("Jensen-Shannon divergence of the predictions, in nats", "1"),
    "covariance": ("covariance of the predictions over the classes", "1"),
    "kullback_leibler": ("Kullback-Leibler divergence of b from a, in nats", "1"),
    "output_max_abs_error": ("largest absolute difference of the main output", "1"),
    "output_l2_relative": ("norm of the difference of the main output over that of a's", "1"),
    "output_cosine": ("cosine of the main outputs", "1"),
    "detections_a": ("detections of a", "1"),
    "detections_b": ("detections of b", "1"),
    "matched": ("detections that both have: same class, overlap of at least a half", "1"),
    "lost": ("detections of a that b lacks", "1"),
    "gained": ("detections of b that a lacks", "1"),
    "mean_overlap": ("mean intersection over union of the matched detections, NaN without any", "1"),
}
_WHOLE = frozenset({"target", "top1_a", "top1_b", "detections_a", "detections_b", "matched", "lost", "gained"})


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one side said to one sample: its main output, probabilities of classes or None, all outputs by name."""

    values: Array
    probabilities: Array | None
    outputs: Mapping[str, Array]


class Tally:
    """Rows of an agreement, a few numbers a sample.

    Parameters
    ----------
    k
        Ranks to keep.
    boxes
        How to read detections, or None.
    labels
        Names of a's classes, or None.
    order
        Where a's classes are among b's, None where both count alike.
    """

    def __init__(
        self, *, k: int, boxes: DetectionOutputs | None, labels: Sequence[str] | None, order: Array | None
    ) -> None:
        self.k, self.boxes, self.labels, self._order = k, boxes, labels, order
        self.names: list[str] = []
        self.columns: dict[str, list[float]] = {}
        self.ranks: dict[str, list[Array]] = {}
        self.left_out: dict[str, str] = {}
        self.failure: dict[str, str] | None = None
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def leave_out(self, name: str, reason: str) -> None:
        """Note a sample that could not be compared."""
        self.left_out[name] = reason

    def fail(self, side: str, sample: str, message: str) -> None:
        """Note that a side failed, which ends the comparison."""
        self.failure = {"side": side, "sample": sample, "message": message}

    def add(self, sample: Any, a: Reply, b: Reply) -> None:
        """Compare the replies to one sample.

        Raises
        ------
        InputError
            If the sides tell different numbers of classes.
        """
        row: dict[str, float] = {"target": sample.target}
        p, q = a.probabilities, b.probabilities
        if (p is None) != (q is None):
            raise InputError("One side tells classes and the other does not; their answers cannot be compared")
        if p is not None and q is not None:
            if p.shape != q.shape:
                raise InputError(f"Side a tells {p.size} classes and side b {q.size}; they are of different models")
            if self._order is not None:
                q = q[self._order]
            row |= self._classes(p, q)
        else:
            row |= {"top1_a": -1, "top1_b": -1}
        if a.values.shape == b.values.shape:
            other = b.values if self._order is None or p is None else b.values[self._order]
            row |= {name: float(v[0]) for name, v in differences(a.values[None], other[None]).items()}
        else:
            self._note(f"main outputs of {a.values.size} and {b.values.size} elements are not compared")
        if self.boxes is not None:
            row |= self._detections(a, b)
        for name in self.columns.keys() | row.keys():
            column = self.columns.setdefault(name, [float("nan")] * len(self.names))
            column.append(row.get(name, float("nan")))
        self.names.append(sample.name)

    def _classes(self, p: Array, q: Array) -> dict[str, float]:
        k = min(self.k, p.size)
        row: dict[str, float] = {}
        kept = {}
        for letter, scores in (("a", p), ("b", q)):
            best = np.argsort(-scores, kind="stable")[: max(k, 2)]
            kept[letter] = set(best[:k].tolist())
            self.ranks.setdefault(f"class_{letter}", []).append(best[:k])
            self.ranks.setdefault(f"class_score_{letter}", []).append(scores[best[:k]])
            row[f"top1_{letter}"] = int(best[0])
            row[f"score_{letter}"] = float(scores[best[0]])
            row[f"margin_{letter}"] = float(scores[best[0]] - scores[best[1]]) if scores.size > 1 else float("nan")
        row["topk_overlap"] = len(kept["a"] & kept["b"]) / k
        return row | {name: float(v[0]) for name, v in prediction_divergences(p, q).items()}

    def _detections(self, a: Reply, b: Reply) -> dict[str, float]:
        if self.boxes is None:
            return {}
        one, other = self.boxes.read(a.outputs), self.boxes.read(b.outputs)
        found = match_detections(one, other)
        return {
            "detections_a": len(one), "detections_b": len(other), "matched": len(found.pairs), "lost": len(found.lost),
            "gained": len(found.gained),
            "mean_overlap": float(found.overlap.mean()) if len(found.overlap) else float("nan"),
        }  # fmt: skip

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def agreement_dataset(
    tally: Tally, *, sides: Sequence[Mapping[str, Any]], how: Sequence[str], dataset: str, asked: int, confidence: float
) -> xr.Dataset:
    """Return an agreement with its totals.

    Parameters
    ----------
    tally
        The rows.
    sides
        What each side is, see `mlscope_lab.divergence.sides.OpenSide.facts`.
    how
        How each side's probabilities were made.
    dataset, asked
        Name of the samples, and how many there are.
    confidence
        Of all intervals.

    Returns
    -------
    xarray.Dataset
        Along ``sample`` (names): `target`, ``top1_a`` and ``top1_b``, ``label_a`` and ``label_b``, ``score_*``,
        ``margin_*``, ``agrees``, ``topk_overlap``, the six measures of `mlscope_lab.numerics.distributions`, and how
        far the main outputs are apart; with targets ``correct_a`` and ``correct_b``; with boxes ``detections_*``,
        ``matched``, ``lost``, ``gained``, ``mean_overlap``. Along (sample, rank): ``class_*``, ``class_score_*``.
        Scalars: ``agreement``, ``accuracy_a`` and ``accuracy_b`` with ``_low`` and ``_high`` (Wilson's intervals),
        ``accuracy_change`` of b against a with its interval (Newcombe), ``mcnemar_p``, ``only_a_correct``,
        ``only_b_correct`` (McNemar's exact test), ``mean_*`` of the measures.
    """
    import xarray as xr

    names = np.empty(len(tally), dtype=object)
    names[:] = tally.names
    data = xr.Dataset(coords={"sample": ("sample", names)})
    for name, (meaning, unit) in _LONG.items():
        if name in tally.columns:
            values = np.array(tally.columns[name], dtype=np.int64 if name in _WHOLE else np.float64)
            data[name] = ("sample", values, {"long_name": meaning, **({"units": unit} if unit else {})})
    has_classes = "score_a" in data
    for name, rows in tally.ranks.items():
        side = name[-1]
        meaning = f"{'probabilities of' if 'score' in name else ''} classes of {side}, best first".strip()
        data[name] = (("sample", "rank"), np.stack(rows), {"long_name": meaning})
    for letter in "ab":
        data[f"label_{letter}"] = ("sample", _labels(data[f"top1_{letter}"].values, tally.labels),
                                   {"long_name": f"name of the best class of {letter}"})  # fmt: skip
    agrees = (data["top1_a"] == data["top1_b"]).values & has_classes
    data["agrees"] = ("sample", agrees, {"long_name": "whether both have the same best class"})
    if has_classes:
        _add_share(
            data, "agreement", int(agrees.sum()), len(tally), confidence, "share of samples with the same answer"
        )
    test = _add_accuracy(data, confidence) if has_classes else None
    for name in _LONG:
        if name in data and name not in _WHOLE and not name.startswith(("score", "margin")):
            values = data[name].values
            finite = values[np.isfinite(values)]
            data[f"mean_{name}"] = ((), float(finite.mean()) if finite.size else np.nan,
                                    {"long_name": f"mean of {_LONG[name][0]}", "units": "1"})  # fmt: skip
    data.attrs = {
        "sides": [dict(side) for side in sides], "dataset": dataset, "asked": asked, "samples": len(tally),
        "left_out": dict(tally.left_out), "confidence": confidence, "intervals": "Wilson; of a difference Newcombe",
        "test": "McNemar's exact test (two-sided binomial test of the discordant samples)",
        "probabilities": list(how), "notes": list(tally.notes),
        "status": "complete" if tally.failure is None else "failed",
    }  # fmt: skip
    if tally.failure is not None:
        data.attrs["failure"] = dict(tally.failure)
    data.attrs["verdict"] = verdict(data, test)
    return data


def _labels(index: Array, labels: Sequence[str] | None) -> Array:
    made = np.full(len(index), "", dtype=object)
    if labels is not None:
        made[:] = [labels[i] if 0 <= i < len(labels) else "" for i in index.tolist()]
    return made


def _add_share(data: xr.Dataset, name: str, count: int, n: int, confidence: float, meaning: str) -> None:
    interval = wilson_interval(count, n, confidence)
    for suffix, value in (("", interval.centre), ("_low", interval.low), ("_high", interval.high)):
        bound = {"": "", "_low": ", lower bound", "_high": ", upper bound"}[suffix]
        data[name + suffix] = ((), value, {"long_name": meaning + bound, "units": "1"})


def _add_accuracy(data: xr.Dataset, confidence: float) -> McNemar | None:
    """Add what needs targets, over the samples that have one."""
    known = data["target"].values >= 0
    if not known.any():
        return None
    right = {}
    for letter in "ab":
        right[letter] = (data[f"top1_{letter}"].values == data["target"].values) & known
        data[f"correct_{letter}"] = ("sample", right[letter], {"long_name": f"whether {letter} is right"})
        _add_share(data, f"accuracy_{letter}", int(right[letter].sum()), int(known.sum()), confidence,
                   f"share of right answers of {letter}")  # fmt: skip
    a, b = right["a"][known], right["b"][known]
    test = mcnemar(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum()), confidence)
    for name, value, meaning in (
        ("accuracy_change", test.difference, "accuracy of b less that of a"),
        ("accuracy_change_low", test.low, "its lower bound"),
        ("accuracy_change_high", test.high, "its upper bound"),
        ("mcnemar_p", test.p_value, "p-value of McNemar's exact test"),
    ):
        data[name] = ((), value, {"long_name": meaning, "units": "1"})
    for name, count in (("only_a_correct", test.only_a), ("only_b_correct", test.only_b)):
        data[name] = ((), count, {"long_name": "samples that one side alone gets right", "units": "1"})
    return test


def verdict(data: xr.Dataset, test: McNemar | None) -> str:
    """Return what an agreement shows, in a sentence or two."""
    parts = []
    n = data.attrs["samples"]
    confidence = f"{100 * data.attrs['confidence']:g} %"
    if n == 0:
        parts.append("Nothing was compared")
    elif "agreement" in data:
        same = int(data["agrees"].values.sum())
        low, high = (100 * data[f"agreement_{bound}"].item() for bound in ("low", "high"))
        parts.append(
            f"{same:,} of {n:,} answers agree ({100 * same / n:.1f} %, {confidence} interval {low:.1f} to {high:.1f}); "
            f"{n - same:,} {'flips' if n - same == 1 else 'flip'}"
        )
    elif "lost" not in data:
        cosine, error = data["output_cosine"].values, data["output_l2_relative"].values
        parts.append(
            f"No classes to agree on; the outputs of {n:,} samples have a cosine of {np.nanmin(cosine):.4f} to "
            f"{np.nanmax(cosine):.4f} and a relative difference of up to {np.nanmax(error):.2g}"
        )
    if "lost" in data and n:
        parts.append(
            f"{int(data['matched'].sum()):,} of {int(data['detections_a'].sum()):,} detections are found again, "
            f"{int(data['lost'].sum()):,} lost, {int(data['gained'].sum()):,} gained"
        )
    if test is not None:
        shown = test.p_value < 1 - data.attrs["confidence"]
        if not shown:
            words = "no difference in accuracy shown"
        else:
            words = f"b is {'more' if test.difference > 0 else 'less'} accurate"
        known = int((data["target"].values >= 0).sum())
        parts.append(
            f"accuracy {100 * data['accuracy_a'].item():.1f} and {100 * data['accuracy_b'].item():.1f} % of {known:,}, "
            f"McNemar p = {_p_value(test.p_value)} ({test.only_a} and {test.only_b} discordant): {words}"
        )
    if data.attrs["left_out"]:
        parts.append(f"{len(data.attrs['left_out']):,} could not be compared and were left out")
    if "failure" in data.attrs:
        failure = data.attrs["failure"]
        parts.append(f"side {failure['side']} failed at {failure['sample']}, so that the rest was not asked")
    return "; ".join(parts) + "."


def _p_value(p: float) -> str:
    return f"{p:.1g}" if p < 0.01 else "1" if p > 0.995 else f"{p:.2f}".lstrip("0")
