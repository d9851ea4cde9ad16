"""What the recorded traces hold, by the standard library's JSON and exact fractions: slow, and easy to believe."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3].parent / "shared/data/cuda-traces"
TRACES = ("ns_resolution_rank0.pt.trace.json.gz", "cupti_counters.pt.trace.json.gz", "two_ranks_rank0.json.gz",
          "two_ranks_rank1.json.gz")  # fmt: skip
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


def recorded(name):
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"the recorded trace {name} is not here")
    return path


def read(path):
    """Return the events, times in whole nanoseconds."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        data = json.load(file, parse_float=Decimal)
    events = data["traceEvents"] if isinstance(data, dict) else data
    for event in events:
        for key in ("ts", "dur"):
            if key in event:
                exact = Decimal(event[key]) * 1000
                assert exact == int(exact), event
                event[key] = int(exact)
    return events


def complete(events, *categories):
    return [e for e in events if e["ph"] == "X" and e["cat"] in categories]


def covered(intervals):
    """Return the time that at least one interval covers."""
    total, until = 0, None
    for start, end in sorted(intervals):
        if until is None or start > until:
            total, until = total + end - start, end
        elif end > until:
            total, until = total + end - until, end
    return total


def by_stream(events):
    """Return (busy, idle) by (device, stream): idle is what no work covers between the first and the last."""
    spans = defaultdict(list)
    for e in complete(events, *DEVICE):
        spans[e["args"]["device"], e["args"]["stream"]].append((e["ts"], e["ts"] + e["dur"]))
    return {
        place: (covered(found), max(e for _, e in found) - min(s for s, _ in found) - covered(found))
        for place, found in spans.items()
    }


def by_name(events):
    """Return (total time, count) of kernels by name."""
    total, count = Counter(), Counter()
    for e in complete(events, "kernel"):
        total[e["name"]] += e["dur"]
        count[e["name"]] += 1
    return {name: (total[name], count[name]) for name in total}
