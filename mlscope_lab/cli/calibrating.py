"""The command calibrate: what this machine can do at most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson, Device, Threads
from mlscope_lab.cli.output import Column, command, console, emit_json, note, print_pairs, print_table
from mlscope_lab.cli.text import binary_size

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["calibrate"]

_AGES = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"))


def _age(seconds: float) -> str:
    for factor, unit in _AGES:
        if seconds >= 2 * factor:
            return f"{seconds / factor:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _rate(row: dict[str, Any], value: str, unit: str) -> str:
    centre, low, high = (row[f"{value}{suffix}"] / 1e9 for suffix in ("", "_low", "_high"))
    return "not measured" if math.isnan(centre) else f"{centre:.1f} {unit} [{low:.1f}, {high:.1f}]"


def _listed(peaks: xr.Dataset, dim: str, value: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    columns = {dim: peaks[dim].values, **{name: peaks[name].values for name in names}}
    columns |= {f"{value}{suffix}": peaks[f"{value}{suffix}"].values for suffix in ("", "_low", "_high")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@command
def calibrate(
    *,
    threads: Threads = None,
    device: Device = "cpu",
    again: Annotated[bool, typer.Option("--again", help="Measure, even if this machine has been calibrated.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the bandwidth of caches and memory, and the arithmetic by element type; kept for rooflines.

    --json: {"source", "device", "threads", "created_at", "age_s", "seconds", "disturbed", "notes", "machine",
    "working_sets", "levels": [{"level", "capacity_bytes" (null for memory), "bandwidth", "bandwidth_low",
    "bandwidth_high" (bytes a second), "triad", "bandwidth_kernel"}], "dtypes": [{"dtype", "throughput",
    "throughput_low", "throughput_high" (operations a second), "throughput_kernel"}]}.
    """
    from mlscope_lab.calibration.stored import calibrate as measure

    peaks = measure(threads=threads, device=device, again=again, report=note)
    levels = _listed(peaks, "level", "bandwidth", ("capacity_bytes", "triad", "bandwidth_kernel"))
    dtypes = _listed(peaks, "dtype", "throughput", ("throughput_kernel",))
    if as_json:
        emit_json({**peaks.attrs, "levels": levels, "dtypes": dtypes})
        return
    out = console()
    processor = peaks.attrs["machine"].get("cpu") or device
    print_pairs(out, [("processor", processor), ("threads", peaks.attrs["threads"]),
                      ("measured", f"{_age(peaks.attrs['age_s'])}, in {peaks.attrs['seconds']:.0f} s")])  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (row["level"], "" if math.isinf(row["capacity_bytes"]) else binary_size(row["capacity_bytes"]),
         _rate(row, "bandwidth", "GB/s"),
         "" if math.isnan(row["triad"]) else f"{row['triad'] / 1e9:.1f} GB/s", row["bandwidth_kernel"])
        for row in levels
    ]  # fmt: skip
    columns = [Column(title="level", keep=9), Column(title="size", keep=5, right=True),
               Column(title="bandwidth", keep=8, right=True), Column(title="STREAM triad", keep=6, right=True),
               Column(title="by", keep=7)]  # fmt: skip
    print_table(out, columns, rows, title="Bandwidth")
    rows = [
        (row["dtype"], _rate(row, "throughput", "GFLOP/s"), row["throughput_kernel"])
        for row in dtypes
    ]  # fmt: skip
    columns = [Column(title="type", keep=9), Column(title="throughput", keep=8, right=True), Column(title="by", keep=7)]
    print_table(out, columns, rows, title="Arithmetic")
    if peaks.attrs["disturbed"]:
        note(f"Other work disturbed the measurement of {', '.join(peaks.attrs['disturbed'])}: calibrate again with "
             "--again when the machine is quiet")  # fmt: skip
    for sentence in peaks.attrs["notes"]:
        note(sentence)
