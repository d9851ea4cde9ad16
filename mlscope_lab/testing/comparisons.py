"""Whole comparisons from a seed: two sides that agree but for rounding, or that part ways at a chosen pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.divergence import schema
from mlscope_lab.testing.runs import synthetic_environment

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["synthetic_comparison"]

Array = npt.NDArray[Any]

_CLASSES = 10
_NOISE = 1.5
"""How many times its actual error a value moves when it is perturbed."""
_BLOCK = (
    ("expand", "convolution", "aten::conv2d;aten::batch_norm", "Conv"),
    ("expand_act", "activation", "aten::hardtanh", "Clip"),
    ("depthwise", "convolution", "aten::conv2d;aten::batch_norm", "Conv"),
    ("depthwise_act", "activation", "aten::hardtanh", "Clip"),
    ("project", "convolution", "aten::conv2d;aten::batch_norm", "Conv"),
    ("residual", "addition", "aten::add", "Add"),
)
_STEPS = [
    {"step": "decode_image", "color": "RGB"}, {"step": "resize", "height": 224, "width": 224},
    {"step": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
]  # fmt: skip


def _side(backend: str, version: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": "efficientnet-lite0", "model_version": "1.0.0", "model_digest": "sha256:" + "a" * 64, "format": "onnx",
        "derived_from": {}, "backend": backend, "backend_version": version, "device": "cpu", "precision": "float32",
        "asked_precision": "", "batch_size": 1, "threads": 2, "graph_optimization": "default",
        "execution_mode": "graph", "executable_digest": "sha256:" + "5" * 64, "label": backend,
        "method": "each operation on its own",
        "preprocessing": [{"name": "image", "dtype": "float32", "shape": [1, 3, 224, 224], "steps": _STEPS}],
    } | changes  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A value of the reference and what is wrong with it on the other side: in all, and by its own layer."""

    a: Array
    error: Array
    own: Array
    noise: float
    own_noise: float


def _values(pairs: int, fault_at: int | None, magnitude: float, shape: tuple[int, int, int], seed: int) -> list[_Value]:
    random = np.random.default_rng(seed)
    found: list[_Value] = []
    eps = float(np.finfo(np.float32).eps)
    # what rounding and the fault leave to later layers, apart
    rounded, wrong = np.zeros((1, *shape)), np.zeros((1, *shape))
    for p in range(pairs):
        tail = pairs - p
        size = (1, *shape) if tail > 2 else (1, shape[0]) if tail == 2 else (1, _CLASSES)
        a = random.normal(scale=random.uniform(0.5, 3.0), size=size)
        if tail > 2 and p % len(_BLOCK) in {2, 4}:
            a = np.clip(a, 0, 6)
        own = random.uniform(-2.0, 2.0, size=size) * eps * float(np.abs(a).max()) if p else np.zeros(size)
        fault = np.zeros(size)
        if p == fault_at:
            fault = random.normal(scale=magnitude * float(np.sqrt((a**2).mean())), size=size)
            fault[:, size[1] // 2 :] *= 0.02  # it sits in some channels
        # errors move to other channels and change a little in size from layer to layer
        gain = random.uniform(0.9, 1.08)
        rounded = own + gain * np.roll(_of_size(rounded, size), 1, axis=1)
        wrong = fault + gain * np.roll(_of_size(wrong, size), 1, axis=1)
        found.append(_Value(
            a=a, error=rounded + wrong, own=own + fault, noise=_NOISE * float(np.abs(rounded).max()),
            own_noise=_NOISE * float(np.abs(own).max()),
        ))  # fmt: skip
    return found


def _of_size(error: Array, size: tuple[int, ...]) -> Array:
    """Return an error as the next layer inherits it: pooled, then classified, where the shape changes."""
    if error.shape == size:
        return error
    return error[:, :, 0, 0] if error.shape[:2] == size else np.resize(error, size)


def _identity(p: int, pairs: int, shape: tuple[int, ...], names: Mapping[int, str]) -> dict[str, Any]:
    """Return who pair `p` is: an input, layers of inverted residual blocks, a pooling and a classifier."""
    b_shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
    common = {
        "shape_a": ",".join(map(str, shape)), "shape_b": ",".join(map(str, b_shape)), "dtype_a": "float32",
        "dtype_b": "float32", "axes": "0,3,1,2" if len(shape) == 4 else "",
    }  # fmt: skip
    if p == 0:
        return {"value_a": "image", "value_b": "image", "operations_a": "", "operations_b": "", "types_a": "",
                "types_b": "", "kinds": "", "scope": "", "confidence": 1.0, "evidence": "input", **common}  # fmt: skip
    if p >= pairs - 2:
        name, kind, types_a, types_b = (
            ("pool", "pooling", "aten::adaptive_avg_pool2d", "GlobalAveragePool")
            if p == pairs - 2 else ("classifier", "product", "aten::linear", "Gemm")
        )  # fmt: skip
        scope = name
    else:
        name, kind, types_a, types_b = _BLOCK[(p - 1) % len(_BLOCK)]
        scope = f"blocks.{(p - 1) // len(_BLOCK)}"
        name = f"{scope}.{name}"
    shown = names.get(p, name)
    last = p == pairs - 1
    return {
        "value_a": "logits" if last else f"{shown}.out", "value_b": "logits" if last else f"/{shown}/out",
        "operations_a": ";".join(f"{shown}.{t.split('::')[1]}" for t in types_a.split(";")),
        "operations_b": f"/{shown}/{types_b}", "types_a": types_a, "types_b": types_b,
        "kinds": "convolution;normalization" if ";" in types_a else kind, "scope": scope,
        "confidence": 0.998 if p % 5 else 0.93,
        "evidence": "output;provenance;values" if last else "provenance;values" if p % 5 else "values;structure",
        **common,
    }  # fmt: skip


def _noise(value: _Value, scale: float, p: int) -> dict[str, Any]:
    """Return what rounding does to pair `p`, and what its group makes of the reference's inputs; unjudged yet."""
    from mlscope_lab.divergence.judging import injection_tolerance, judge_injections

    injected = np.array([float(np.abs(value.own).max()) if p else np.nan])
    limit = injection_tolerance(np.array([value.own_noise if p else np.nan]))
    return {
        "noise_a": value.noise, "noise_b": 0.8 * value.noise, "atol": np.nan, "rtol": np.nan, "tolerance_source": "",
        "share_out_low": np.nan, "share_out_high": np.nan, "diverges": -1, "injected_max_abs": float(injected[0]),
        "injected_l2_relative": float(np.sqrt((value.own**2).mean())) / scale if p else np.nan,
        "injected_tolerance": float(limit[0]), "injects": int(judge_injections(injected, limit)[0]),
    }  # fmt: skip


def synthetic_comparison(
    pairs: int = 60,
    *,
    fault_at: int | None = None,
    magnitude: float = 0.4,
    seed: int = 0,
    samples: int = 1,
    channels: int = 16,
    size: int = 6,
    rename: Mapping[int, str] | None = None,
    keep_tensors: bool = False,
    tolerance: Any = "calibrated",
    **changes: Any,
) -> xr.DataTree:
    """Return a comparison of a network on two frameworks, every number of it measured on seeded arrays.

    Parameters
    ----------
    pairs
        Aligned pairs, at least 4: an input, layers of residual blocks, a pooling and a classifier.
    fault_at
        Pair whose group injects an error on the other side, which all later pairs inherit; None for sides that agree
        but for rounding.
    magnitude
        Root mean square of the injected error, as a share of the value's.
    seed
        Same seed, same comparison.
    samples
        Input samples; one more is left out where there are several.
    channels, size
        Of the values: ``(1, channels, size, size)``.
    rename
        {pair: label} for layers with labels of the caller's choosing.
    keep_tensors
        Keep the values of every pair.
    tolerance
        What it is judged by, as for `mlscope_lab.compare`.
    **changes
        Attributes of the root that differ from the default ones.

    Raises
    ------
    ValueError
        If there are fewer than 4 pairs, or no pair `fault_at` that computes.
    """
    from mlscope_lab.divergence.judging import judge_tree
    from mlscope_lab.divergence.tree import build_comparison
    from mlscope_lab.numerics.measures import QUANTILES, PairAccumulator

    if pairs < 4 or (fault_at is not None and not 0 < fault_at < pairs):
        raise ValueError(f"a comparison has at least 4 pairs and its fault at one of 1 to pairs - 1, not {fault_at}")
    found = _values(pairs, fault_at, magnitude, (channels, size, size), seed)
    rows, measures = [], []
    for p, value in enumerate(found):
        pair = PairAccumulator(channel_axis=1)
        pair.add(value.a, value.a + value.error)
        measures.append(pair.result())
        rows.append(_identity(p, pairs, value.a.shape, rename or {}) | _noise(value, measures[-1].rms_a, p))
    last = found[-1]
    logits = {"a_logits": last.a.astype(np.float32), "b_logits": (last.a + last.error).astype(np.float32)}
    top = [int(x[0].argmax()) for x in logits.values()]
    compute = sum("convolution" in row["kinds"] or row["kinds"] == "product" for row in rows)
    lengths = [len(m.channel_rms_error) for m in measures]
    pair_names, histograms = schema.GROUPS[schema.PAIRS], schema.GROUPS[schema.HISTOGRAMS]
    groups: dict[str, Mapping[str, Any]] = {
        schema.PAIRS: {
            name: [row[name] if name in row else getattr(m, name) for row, m in zip(rows, measures, strict=True)]
            for name in pair_names
        },
        schema.SKETCHES: {
            "joint": [m.joint for m in measures], "error_edges": measures[0].error_edges,
            "reference_edges": measures[0].reference_edges,
        },
        schema.HISTOGRAMS: {name: [getattr(m, name) for m in measures] for name in histograms},
        schema.CHANNELS: {
            "pair_index": np.repeat(np.arange(pairs), lengths),
            "channel": np.concatenate([np.arange(n) for n in lengths]),
            **{name: np.concatenate([getattr(m, name) for m in measures])
               for name in ("channel_max_abs_error", "channel_rms_error")},
        },
        schema.UNMATCHED: {
            "side": ["a", "b", "b"], "operation": ["flatten", "/image/reorder", "/tail/Erf"],
            "type": ["aten::flatten", "ReorderInput", "Erf"],
            "reason": ["moves values only", "moves values only", "no partner found"],
        },
        schema.SAMPLES: _samples(samples, top, measures[-1].max_abs_error),
    }  # fmt: skip
    attrs = {
        "schema_version": schema.SCHEMA_VERSION, "kind": schema.KIND,
        "run_id": f"20261125T0630{seed:02d}Z-4d5e6f{seed:02x}",
        "created_at": "2026-11-25T06:30:00.000+00:00", "status": "complete", "model": "efficientnet-lite0",
        "backend": "pytorch, onnxruntime", "level": "operator", "device": "cpu", "isolation": "inline",
        "sides": [_side("pytorch", "2.13.0", format="torch_export"), _side("onnxruntime", "1.31.1")],
        "first_divergent": -1,
        "culprit": -1,
        "observer_effect": [
            {"side": "a", "equal": True, "max_abs_difference": 0.0, "method": "each operation on its own", "notes": []},
            {"side": "b", "equal": False, "max_abs_difference": 2.4e-6, "method": "an instrumented build", "notes": []},
        ],
        "alignment": {"operations_a": 2 * pairs, "compute_a": compute, "paired_a": compute, "operations_b": pairs + 2,
                      "compute_b": compute, "paired_b": compute, "provenance": True, "notes": []},
        "calibration": {"rounding a": "values moved by some units in the last place, 2 seeds",
                        "rounding b": "values moved by some units in the last place, 2 seeds"},
        "not_replayed": {"0": "it is an input"}, "warnings": [], "unavailable": {},
        "environment": synthetic_environment(),
    } | changes  # fmt: skip
    kept = None
    if keep_tensors:
        kept = {f"t{p:05d}": {"a": v.a, "b": v.a + v.error, "name": rows[p]["value_a"], "pair": p}
                for p, v in enumerate(found)}  # fmt: skip
    tree = build_comparison(attrs=attrs, groups=groups, quantiles=QUANTILES, outputs=logits, tensors=kept)
    return judge_tree(tree, tolerance)


def _samples(count: int, top: list[int], largest: float) -> dict[str, Any]:
    """Return rows of samples, of which the first is the one whose values were kept."""
    extra = count > 1
    return {
        "sample": [f"picture-{i}.png" for i in range(count + extra)],
        "status": ["compared"] * count + ["left out"] * extra,
        "message": [""] * count + ["picture-broken.png: not a picture"] * extra,
        "top1_a": [top[0], *[2] * (count - 1)] + [-1] * extra,
        "top1_b": [top[1], *[2] * (count - 1)] + [-1] * extra,
        "output_max_abs_error": [largest * (1 + 0.1 * i) for i in range(count)] + [np.nan] * extra,
    }
