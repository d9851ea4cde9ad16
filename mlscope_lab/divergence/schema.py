"""The vocabulary of a stored comparison: one `xarray.DataTree`, ``kind`` "comparison", of flat sibling groups.

Rows are joined by index columns, as in a run. Side "a" is the reference. Everything but ``/tensors`` is small: exact
measures and sketches, from which new tolerances are judged without running again.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CHANNELS", "DTYPES", "GROUPS", "HISTOGRAMS", "KIND", "OUTPUTS", "PAIRS", "REQUIRED_ATTRS", "SAMPLES",
    "SCHEMA_VERSION", "SKETCHES", "TENSORS", "TEXT", "UNITS", "UNMATCHED",
]  # fmt: skip

KIND: Final = "comparison"
SCHEMA_VERSION: Final = "1.0"

PAIRS: Final = "pairs"
SKETCHES: Final = "sketches"
HISTOGRAMS: Final = "histograms"
CHANNELS: Final = "channels"
UNMATCHED: Final = "unmatched"
SAMPLES: Final = "samples"
OUTPUTS: Final = "outputs"
TENSORS: Final = "tensors"

_P: Final = ("pair",)
GROUPS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    PAIRS: {
        # who: names of the values and of the operations that compute them (";" between), of either side
        "value_a": _P, "value_b": _P, "operations_a": _P, "operations_b": _P, "types_a": _P, "types_b": _P,
        "kinds": _P, "scope": _P, "shape_a": _P, "shape_b": _P, "dtype_a": _P, "dtype_b": _P, "axes": _P,
        "confidence": _P, "evidence": _P,
        # how far apart, as `mlscope_lab.numerics` measures it; the sign of an error is b minus a
        "count": _P, "max_abs_error": _P, "mean_abs_error": _P, "rms_error": _P, "max_rel_error": _P,
        "mean_rel_error": _P, "l2_relative": _P, "cosine": _P, "sqnr_db": _P, "psnr_db": _P, "kl_divergence": _P,
        "js_divergence": _P, "hellinger": _P, "nan_a": _P, "nan_b": _P, "inf_a": _P, "inf_b": _P, "min_a": _P,
        "max_a": _P, "mean_a": _P, "rms_a": _P, "min_b": _P, "max_b": _P, "mean_b": _P, "rms_b": _P,
        "worst_position": _P, "worst_a": _P, "worst_b": _P, "error_quantiles": ("pair", "quantile"),
        # what arithmetic alone does to this value, by calibration; NaN where it was not calibrated
        "noise_a": _P, "noise_b": _P,
        # the tolerance that it was judged by, and the judgement: share of elements out of it between two bounds
        "atol": _P, "rtol": _P, "tolerance_source": _P, "share_out_low": _P, "share_out_high": _P, "diverges": _P,
        # shadow replay: the error that this group makes of the reference's own inputs; NaN where it was not replayed
        "injected_max_abs": _P, "injected_l2_relative": _P, "injected_tolerance": _P, "injects": _P,
    },
    SKETCHES: {
        # how many elements have this absolute error (rows) and this absolute reference value (columns), in log2 bins;
        # the first error bin is of equal elements, the last one of those that are NaN or Inf on one side alone
        "joint": ("pair", "error_bin", "reference_bin"),
        "error_edges": ("error_edge",), "reference_edges": ("reference_edge",),
    },
    HISTOGRAMS: {
        # of the values of either side on one range of bins
        "histogram_a": ("pair", "bin"), "histogram_b": ("pair", "bin"), "bin_low": _P, "bin_high": _P,
    },
    CHANNELS: {
        # one row a channel of each pair that has some: a's axis 1 (its last one where a is channels-last)
        "pair_index": ("channel_row",), "channel": ("channel_row",), "channel_max_abs_error": ("channel_row",),
        "channel_rms_error": ("channel_row",),
    },
    UNMATCHED: {
        "side": ("unmatched",), "operation": ("unmatched",), "type": ("unmatched",), "reason": ("unmatched",),
    },
    SAMPLES: {
        # one row an input sample
        "sample": ("sample",), "status": ("sample",), "message": ("sample",), "top1_a": ("sample",),
        "top1_b": ("sample",), "output_max_abs_error": ("sample",),
    },
}  # fmt: skip

TEXT: Final = frozenset({
    "value_a", "value_b", "operations_a", "operations_b", "types_a", "types_b", "kinds", "scope", "shape_a", "shape_b",
    "dtype_a", "dtype_b", "axes", "evidence", "worst_position", "tolerance_source", "side", "operation", "type",
    "reason", "sample", "status", "message",
})  # fmt: skip
DTYPES: Final[dict[str, str]] = {
    **dict.fromkeys(TEXT, "object"),
    # elements of all samples together may be more than int32 holds
    **dict.fromkeys(("count", "nan_a", "nan_b", "inf_a", "inf_b", "joint", "histogram_a", "histogram_b"), "int64"),
    **dict.fromkeys(("pair_index", "channel"), "int32"),
    **dict.fromkeys(("channel_max_abs_error", "channel_rms_error"), "float32"),
    **dict.fromkeys(("top1_a", "top1_b"), "int32"),
    # 1 yes, 0 no, -1 not known (the tolerance falls inside a bin of the sketch, or nothing was replayed)
    **dict.fromkeys(("diverges", "injects"), "int8"),
}
"""Type of each variable; float64 for those that are not named."""
UNITS: Final = {"sqnr_db": "dB", "psnr_db": "dB"}

REQUIRED_ATTRS: Final = (
    "schema_version", "kind", "run_id", "created_at", "status", "model", "backend", "level", "device", "isolation",
    "sides", "first_divergent", "culprit", "observer_effect", "alignment", "warnings", "unavailable", "environment",
)  # fmt: skip
"""``sides``: two mappings (model, digest, backend, backend_version, precision, batch_size, threads, graph_optimization,
preprocessing, executable_digest, method). ``first_divergent`` and ``culprit``: positions of pairs, -1 for none.
``observer_effect``: for each side the largest difference of stepped and plain outputs, and whether they are equal.
``alignment``: counts of compute operations and of those paired."""
