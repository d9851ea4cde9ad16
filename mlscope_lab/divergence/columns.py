"""The columns of a comparison's groups, from what the work found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlscope_lab.alignment.records import Alignment
from mlscope_lab.divergence import schema
from mlscope_lab.divergence.capture import Capture
from mlscope_lab.divergence.judging import injection_tolerance, judge_injections
from mlscope_lab.divergence.work import Work
from mlscope_lab.numerics.measures import PairMeasures

__all__ = ["groups_of"]

Columns = dict[str, Any]


def _of_operations(capture: Capture, group: Sequence[int], what: str) -> str:
    return ";".join(str(getattr(capture.graph.operations[i], what)) for i in group)


def _shape(capture: Capture, value: int) -> str:
    return ",".join(str(n) for n in capture.graph.values[value].shape)


def _identity(a: Capture, b: Capture, alignment: Alignment) -> Columns:
    """Return who is paired with whom."""
    found: Columns = {}
    pairs = alignment.pairs
    for letter, capture in (("a", a), ("b", b)):
        found[f"value_{letter}"] = [capture.graph.values[getattr(p, letter)].name for p in pairs]
        found[f"dtype_{letter}"] = [capture.graph.values[getattr(p, letter)].dtype for p in pairs]
        found[f"shape_{letter}"] = [_shape(capture, getattr(p, letter)) for p in pairs]
        groups = [getattr(p, f"group_{letter}") for p in pairs]
        found[f"operations_{letter}"] = [_of_operations(capture, g, "name") for g in groups]
        found[f"types_{letter}"] = [_of_operations(capture, g, "type") for g in groups]
    found["kinds"] = [
        ";".join(k for i in p.group_a or p.group_b for k in (a if p.group_a else b).graph.operations[i].kinds)
        for p in pairs
    ]
    found["scope"] = [_scope(a, b, p.group_a, p.group_b) for p in pairs]
    found["axes"] = ["" if p.axes is None else ",".join(map(str, p.axes)) for p in pairs]
    found["confidence"] = [p.confidence for p in pairs]
    found["evidence"] = [";".join(p.evidence) for p in pairs]
    return found


def _scope(a: Capture, b: Capture, group_a: Sequence[int], group_b: Sequence[int]) -> str:
    for capture, group in ((a, group_a), (b, group_b)):
        for index in reversed(group):
            if capture.graph.operations[index].scope:
                return capture.graph.operations[index].scope
    return ""


def _measured(results: Sequence[PairMeasures]) -> Columns:
    names = [n for n in schema.GROUPS[schema.PAIRS] if results and hasattr(results[0], n)]
    return {name: [getattr(r, name) for r in results] for name in names}


def _noise(work: Work, alignment: Alignment) -> Columns:
    return {
        f"noise_{letter}": [noise.get(getattr(p, letter), math.nan) for p in alignment.pairs]
        for letter, noise in zip("ab", work.noise, strict=True)
    }


def _injected(work: Work, alignment: Alignment) -> Columns:
    found = [work.injections.get(i) for i in range(len(alignment.pairs))]
    max_abs = np.array([math.nan if f is None else f.max_abs for f in found], dtype=np.float64)
    tolerance = injection_tolerance(np.array([math.nan if f is None else f.noise for f in found], dtype=np.float64))
    return {
        "injected_max_abs": max_abs,
        "injected_l2_relative": [math.nan if f is None else f.l2_relative for f in found],
        "injected_tolerance": tolerance,
        "injects": judge_injections(max_abs, tolerance),
    }


def _unjudged(count: int) -> Columns:
    nothing = np.full(count, math.nan)
    return {
        "atol": nothing, "rtol": nothing, "share_out_low": nothing, "share_out_high": nothing,
        "tolerance_source": [""] * count, "diverges": np.full(count, -1),
    }  # fmt: skip


def _sketches(results: Sequence[PairMeasures]) -> dict[str, Columns]:
    first = results[0] if results else None
    return {
        schema.SKETCHES: {
            "joint": [r.joint for r in results],
            "error_edges": [] if first is None else first.error_edges,
            "reference_edges": [] if first is None else first.reference_edges,
        },
        schema.HISTOGRAMS: {
            name: [getattr(r, name) for r in results] for name in ("histogram_a", "histogram_b", "bin_low", "bin_high")
        },
    }


def _channels(results: Sequence[PairMeasures]) -> Columns:
    sizes = [len(r.channel_max_abs_error) for r in results]
    empty = np.zeros(0, dtype=np.float32)
    return {
        "pair_index": np.repeat(np.arange(len(results)), sizes),
        "channel": np.concatenate([np.arange(n) for n in sizes]) if sizes else empty,
        "channel_max_abs_error": np.concatenate([r.channel_max_abs_error for r in results]) if sizes else empty,
        "channel_rms_error": np.concatenate([r.channel_rms_error for r in results]) if sizes else empty,
    }


def _unmatched(a: Capture, b: Capture, alignment: Alignment) -> Columns:
    rows = [
        (letter, capture.graph.operations[i].name, capture.graph.operations[i].type, reason)
        for letter, capture in (("a", a), ("b", b))
        for reason, positions in (
            ("no partner found", getattr(alignment, f"unmatched_{letter}")),
            ("moves values only", getattr(alignment, f"layout_{letter}")),
        )
        for i in positions
    ]
    return {name: [row[k] for row in rows] for k, name in enumerate(("side", "operation", "type", "reason"))}


def _samples(work: Work) -> Columns:
    rows: list[Mapping[str, Any]] = [asdict(row) for row in work.rows]
    return {
        ("sample" if key == "name" else key): [row[key] for row in rows]
        for key in ("name", "status", "message", "top1_a", "top1_b", "output_max_abs_error")
    }


def groups_of(work: Work, alignment: Alignment) -> dict[str, Columns]:
    """Return every group's columns, as `mlscope_lab.divergence.tree.build_comparison` takes them."""
    if work.captures is None:
        return {}
    a, b = work.captures
    results = work.results()
    return {
        schema.PAIRS: {
            **_identity(a, b, alignment),
            **_measured(results),
            **_noise(work, alignment),
            **_unjudged(len(results)),
            **_injected(work, alignment),
        },
        **_sketches(results),
        schema.CHANNELS: _channels(results),
        schema.UNMATCHED: _unmatched(a, b, alignment),
        schema.SAMPLES: _samples(work),
    }
