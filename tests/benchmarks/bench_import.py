"""Importing a large trace: from the file to a stored run that opens again, beside HolisticTraceAnalysis and json.load.

python -m tests.benchmarks.bench_import --hta /tmp/hta/bin/python --json out.json

The trace is a recorded one repeated with shifted times and identifiers: 3,022,448 events, 690 MB. Every figure is of a
fresh process, interpreter and imports included. Memory is the sum over the process and its children of what is not
backed by files (RssAnon), sampled every 10 ms. HolisticTraceAnalysis 0.5.0 needs an environment of its own; without
--hta it is left out.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks._stats import Result, report

RECORDED = Path(__file__).parents[2].parent / "shared/data/cuda-traces/ns_resolution_rank0.pt.trace.json.gz"
REPEATS = 44
PERIOD_US = 600_000
PERIOD_ID = 10_000_000
_SHIFTED = re.compile(rb'("(?:ts|id|correlation|External id)": ?)([0-9]+)')

OURS = """
import sys, mlscope_lab as ml
run = ml.import_trace(sys.argv[1], progress=False)
again = ml.open_run(run.attrs["run_id"])
assert again.attrs["trace"]["events"] == int(sys.argv[2]) and again["kernels"].sizes["kernel"]
"""
JSON = """
import sys, gzip, json
open_ = gzip.open if sys.argv[1].endswith(".gz") else open
with open_(sys.argv[1], "rb") as file:
    assert len(json.load(file)["traceEvents"]) == int(sys.argv[2])
"""
HTA = """
import os, sys
from hta.trace_analysis import TraceAnalysis
folder, name = os.path.split(sys.argv[1])
TraceAnalysis(trace_files={0: name}, trace_dir=folder)
"""


def shifted(body: bytes, number: int) -> bytes:
    """Return events with their times and identifiers moved on by a number of periods."""

    def move(found: re.Match[bytes]) -> bytes:
        step = PERIOD_US if found[1].startswith(b'"ts"') else PERIOD_ID
        return found[1] + str(int(found[2]) + number * step).encode()

    return _SHIFTED.sub(move, body)


def make_trace(path: Path, recorded: Path = RECORDED, repeats: int = REPEATS) -> int:
    """Write the large trace and return the number of its events."""
    text = gzip.decompress(recorded.read_bytes())
    first = text.index(b'"traceEvents": [') + len(b'"traceEvents": [')
    last = text.rindex(b"]", first, text.index(b'"INFO"', first))
    body = text[first:last].rstrip()
    with path.open("wb") as file:
        file.write(text[:first])
        for number in range(repeats):
            file.write(b"," if number else b"")
            file.write(shifted(body, number))
        file.write(text[last:])
    return repeats * len(re.findall(rb'"ph": "', body))


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _family(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return


def _anonymous_bytes(pid: int) -> int:
    total = 0
    for member in list(_family(pid)):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        total += int(found[1]) * 1024 if found else 0
    return total


def measured(python: str, code: str, path: Path, events: int) -> tuple[float, float]:
    """Run the code on the trace in a fresh process; return seconds and peak MB."""
    with tempfile.TemporaryDirectory(dir=path.parent) as home, tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [python, "-c", code, str(path), str(events)], env={**os.environ, "MLSCOPE_HOME": home},
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        errors.seek(0)
        said = errors.read()
    if process.returncode:
        raise RuntimeError(f"{python} failed:\n{said.decode(errors='replace')[-3000:]}")
    return seconds, peak / 1e6


def _result(name: str, values: list[float], unit: str, target: float | None = None) -> Result:
    middle = sorted(values)[len(values) // 2]
    return Result(name=name, value=middle, low=min(values), high=max(values), unit=unit, target=target, n=len(values))


def measure(*, rounds: int, hta: str | None, folder: Path) -> list[Result]:
    """Return the figures; intervals are the smallest and the largest of the rounds."""
    plain, packed = folder / "trace.json", folder / "trace.json.gz"
    events = make_trace(plain)
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        while piece := source.read(1 << 24):
            target.write(piece)
    print(f"{events} events, {plain.stat().st_size} bytes, {packed.stat().st_size} compressed", file=sys.stderr)
    jobs: dict[str, tuple[str, str, Path]] = {
        "ours": (sys.executable, OURS, plain), "json.load": (sys.executable, JSON, plain),
        "ours, gz": (sys.executable, OURS, packed), "json.load, gz": (sys.executable, JSON, packed),
    }  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name in list(jobs)[:: 1 if number % 2 else -1]:
            found[name].append(measured(*jobs[name], events))
            print(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1]:.0f} MB", file=sys.stderr)
    if hta is not None:
        found["HolisticTraceAnalysis"] = [measured(hta, HTA, plain, events)]
        found["ours"].append(measured(*jobs["ours"], events))
    results = []
    for name, pairs in found.items():
        results.append(_result(f"{name}: time", [seconds for seconds, _ in pairs], "s"))
        limit = 500.0 if name.startswith("ours") else None
        results.append(_result(f"{name}: peak memory", [peak for _, peak in pairs], "MB", limit))
    for ours, theirs, limit in (("ours", "json.load", 1.0), ("ours, gz", "json.load, gz", 1.0),
                                ("ours", "HolisticTraceAnalysis", 1 / 15)):  # fmt: skip
        if theirs in found:
            peer = sorted(seconds for seconds, _ in found[theirs])[len(found[theirs]) // 2]
            results.append(
                _result(f"time of {ours} / {theirs}", [seconds / peer for seconds, _ in found[ours]], "ratio", limit)
            )
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--hta", metavar="PYTHON", help="interpreter of an environment with HolisticTraceAnalysis 0.5.0"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not RECORDED.is_file():
        print(f"left out: the recorded trace {RECORDED} is not here", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="mlscope-bench-") as folder:
        results: list[Any] = measure(rounds=options.rounds, hta=options.hta, folder=Path(folder))
    return report("Import of 3,022,448 events", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
