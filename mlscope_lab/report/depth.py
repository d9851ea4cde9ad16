"""Sections on what lies below the model's latency: what each level of tracing cost, and the work that it showed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlscope_lab.analysis.device import temporal_breakdown
from mlscope_lab.analysis.kernels import kernels_by_name
from mlscope_lab.analysis.levels import levels
from mlscope_lab.report.html_ import Column, Html, join, table, tag
from mlscope_lab.report.results import backend_cell
from mlscope_lab.report.units import UNKNOWN, time_scale
from mlscope_lab.report.view import RunView
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["levels_section", "work_section"]

_WORK = 10
_EQUAL = {1: "equal", 0: "differ", -1: UNKNOWN}


def _times(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.2f}" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def levels_section(views: Sequence[RunView]) -> Html:
    """Return the passes of runs that were traced below their layers, each with what it cost over the one above."""
    deep = [(v, levels(v.run)) for v in views if v.passes is not None and v.run.attrs.get("origin") != "imported"]
    deep = [(v, found) for v, found in deep if set(found["level"].values) - {"model", "layer"}]
    parts = []
    for view, found in deep:
        scale = time_scale([float(x) for x in found["predict_ns"].values])
        rows: list[list[str | None]] = []
        for i in range(found.sizes["level"]):
            one = found.isel(level=i)
            rows.append([
                str(one["level"].item()), str(int(one["iterations"])), scale.value(float(one["predict_ns"])),
                _times(*(float(one[name]) for name in ("overhead", "overhead_low", "overhead_high"))),
                _EQUAL[int(one["outputs_equal"])], str(int(one["dropped_events"])),
            ])  # fmt: skip
        columns = [
            Column("Level"), Column("Iterations", numeric=True), Column(f"Median predict, {scale.unit}", numeric=True),
            Column("Over the level above", numeric=True), Column("Outputs"), Column("Events lost", numeric=True),
        ]  # fmt: skip
        parts.append(table(f"Passes of {view.label}: each level is measured on its own", columns, rows))
    return tag("section", tag("h2", "Levels"), *parts, id="levels") if parts else Html()


def _device(run: xr.DataTree) -> Html | None:
    """Return one sentence a device on how busy it was; nothing for a run without device kernels."""
    kernels = run.children.get(schema.KERNELS)
    if kernels is None or not kernels.dataset.sizes.get("kernel"):
        return None
    found = temporal_breakdown(run)
    sentences = []
    for i in range(found.sizes["device"]):
        one = found.isel(device=i)
        scale = time_scale([float(one["span_ns"])])
        sentences.append(
            f"Device {one['device'].item()} was busy for {float(one['busy_ns'] / one['span_ns']):.1%} of "
            f"{scale.text(float(one['span_ns']))} from its first to its last kernel: computing "
            f"{float(one['compute_share']):.1%}, otherwise {float(one['non_compute_share']):.1%}, idle "
            f"{float(one['idle_share']):.1%}. "
        )
    return tag("p", *sentences)


def _caption(shown: int, all_: int, label: str) -> str:
    return f"All {all_} names on {label}" if shown == all_ else f"The {shown} costliest of {all_} names on {label}"


def work_section(views: Sequence[RunView]) -> Html:
    """Return the kernels, or the operators where there are none, that took most of the time, by name."""
    parts: list[Html | None] = []
    for view in views:
        groups = (schema.KERNELS, schema.COUNTERS, schema.OPERATORS)
        if not any(view.run[g].sizes.get(schema.EVENT_DIMS[g]) for g in groups if g in view.run.children):
            continue
        found = kernels_by_name(view.run)
        if not found.sizes["name"]:
            continue
        scale = time_scale([float(found["duration_ns"].max())])
        rows: list[list[str | None]] = []
        for i in range(min(_WORK, found.sizes["name"])):
            one = found.isel(name=i)
            rows.append([
                tag("code", str(one["name"].item())), str(one["kind"].item()), f"{float(one['kernels']):.4g}",
                scale.value(float(one["duration_ns"])), scale.interval(float(one["low_ns"]), float(one["high_ns"])),
                f"{float(one['share']):.1%}",
            ])  # fmt: skip
        columns = [
            Column("Name"), Column("Kind"), Column("Calls", numeric=True), Column(f"Time, {scale.unit}", numeric=True),
            Column(f"95 % interval, {scale.unit}", numeric=True), Column("Share", numeric=True),
        ]  # fmt: skip
        source = str(found.attrs["source"])
        parts += [
            tag("h3", backend_cell(view)),
            tag("p", f"{source[0].upper()}{source[1:]}. Times are of one iteration, at level {found.attrs['level']}."),
            _device(view.run),
            table(_caption(len(rows), found.sizes["name"], view.label), columns, rows, class_="layers"),
        ]  # fmt: skip
    return tag("section", tag("h2", "Below the layers"), join(parts), id="work") if parts else Html()
