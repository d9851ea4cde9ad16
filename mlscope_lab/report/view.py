"""What a report needs of a run, worked out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.analysis.latency import compare_latency, summarize
from mlscope_lab.analysis.layers import layer_times
from mlscope_lab.errors import SchemaError
from mlscope_lab.trace import schema
from mlscope_lab.trace.validate import validate

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["RunView", "comparisons", "largest_output_difference", "view_runs"]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run, and the tables that its sections are made of.

    Attributes
    ----------
    label
        Short name that tells it apart from the others in the report.
    run
        The tree; groups are loaded into memory when the view is made.
    summary, latency
        Summary and iterations of the untraced passes; None where nothing was measured.
    times
        Table of the layer pass, or None.
    no_layers
        Why there is no layer table, and the way out.
    """

    label: str
    run: xr.DataTree
    summary: xr.Dataset | None
    latency: xr.Dataset | None
    times: xr.Dataset | None
    no_layers: str

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes of the run's root."""
        return {str(k): v for k, v in self.run.attrs.items()}

    @property
    def backend(self) -> str:
        """The backend's name."""
        return str(self.attrs["backend"])

    @property
    def passes(self) -> xr.Dataset | None:
        """The ``/passes`` group, or None for a run that failed before its first pass."""
        return self.run[schema.PASSES].to_dataset() if schema.PASSES in self.run.children else None


def _labels(runs: Sequence[xr.DataTree]) -> list[str]:
    labels = [str(run.attrs["backend"]) for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.attrs['model']} on {run.attrs['backend']}" for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, run {str(run.attrs['run_id'])[-8:]}" for label, run in zip(labels, runs, strict=True)]
    return labels


def view_runs(runs: Sequence[xr.DataTree]) -> list[RunView]:
    """Return a view a run.

    Raises
    ------
    SchemaError
        If a tree is not a run.
    """
    views = []
    for run in runs:
        validate(run)
    for label, run in zip(_labels(runs), runs, strict=True):
        latency = run[schema.LATENCY].to_dataset() if schema.LATENCY in run.children else None
        if latency is not None and not latency.sizes["latency_iteration"]:
            latency = None
        times, reason = None, ""
        try:
            times = layer_times(run)
        except SchemaError as error:
            reason = str(error)
        if times is not None and not (times.sizes["layer"] and run[schema.LAYERS].sizes["layer_iteration"]):
            times, reason = None, "The layer pass recorded no layer."
        views.append(RunView(
            label=label, run=run, latency=latency, summary=None if latency is None else summarize(run), times=times,
            no_layers=reason,
        ))  # fmt: skip
    return views


def _span(run: xr.DataTree) -> tuple[int, int]:
    """Return when the untraced passes of a run began and ended, in ns since 1970."""
    passes = run[schema.PASSES].to_dataset()
    plain = passes.isel({"pass": np.flatnonzero(passes["level"].values == "model")})
    begin = plain["anchor_ns"].values + int(run.attrs["clock_anchor_unix_ns"])
    return int(begin.min()), int((begin + plain["wall_ns"].values).max())


def comparisons(views: Sequence[RunView]) -> tuple[list[str], bool]:
    """Compare the runs of one model with the first one.

    Returns
    -------
    sentences
        One a run after the first; none where the runs are of different models or nothing was measured.
    interleaved
        Whether all were measured in turns. Where they were not, a machine that slowed down between them looks like a
        difference.
    """
    measured = [v for v in views if v.latency is not None]
    if len(measured) < 2 or len({(v.attrs["model"], v.attrs["batch_size"]) for v in measured}) > 1:
        return [], True
    first, *others = measured
    begin, end = _span(first.run)
    spans = [_span(v.run) for v in others]
    sentences = [str(compare_latency(first.run, v.run).attrs["sentence"]) for v in others]
    return sentences, all(start < end and begin < stop for start, stop in spans)


def _raw_outputs(view: RunView) -> list[np.ndarray[Any, Any]] | None:
    """Return the raw outputs of a run in order, or None where one was not kept."""
    if schema.OUTPUTS not in view.run.children:
        return None
    data = view.run[schema.OUTPUTS].to_dataset()
    if data.attrs.get("not_kept"):
        return None
    names = sorted((str(n) for n in data.data_vars if str(n).startswith("output_")), key=lambda n: int(n[7:]))
    return [np.asarray(data[name].values) for name in names] or None


def largest_output_difference(a: RunView, b: RunView) -> float | None:
    """Return the largest absolute difference between the raw outputs of two runs.

    Returns
    -------
    float or None
        None where the outputs were not kept, differ in shape or are no numbers; infinite where one side alone is NaN.
    """
    one, two = _raw_outputs(a), _raw_outputs(b)
    if one is None or two is None or [x.shape for x in one] != [x.shape for x in two]:
        return None
    worst = 0.0
    for x, y in zip(one, two, strict=True):
        if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
            return None
        with np.errstate(invalid="ignore"):
            gaps = np.abs(x.astype(np.float64) - y.astype(np.float64))
        gaps[(np.isnan(x) & np.isnan(y)) | (x == y)] = 0.0
        worst = max(worst, float("inf") if np.isnan(gaps).any() else float(gaps.max(initial=0.0)))
    return worst
