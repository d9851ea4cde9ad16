"""The vocabulary of a run: group names, dimension names, variables, levels, and the check that a tree keeps to it.

A run is one `xarray.DataTree`. The root holds attributes only; the groups are flat siblings with dimensions of their
own, joined by index columns (``layer_index``) and never by alignment. Times are int64 nanoseconds since the start of
their pass. What a machine could not record is absent, and listed in ``attrs["unavailable"]`` with the reason.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "DTYPES", "FAILURE_KINDS", "GROUPS", "LATENCY", "LAYERS", "LEVELS", "LEVEL_ALIASES", "OUTPUTS", "PASSES",
    "PROVENANCES", "RECORDED_LEVELS", "REQUIRED_ATTRS", "RUN_ID", "SCHEMA_VERSION", "STATUSES", "TEXT", "UNITS",
]  # fmt: skip

SCHEMA_VERSION: Final = "1.0"
RUN_ID: Final = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}"

PASSES: Final = "passes"
LATENCY: Final = "latency"
LAYERS: Final = "layers"
OUTPUTS: Final = "outputs"

LEVELS: Final = ("model", "layer", "operator", "kernel", "hardware", "full")
RECORDED_LEVELS: Final = ("model", "layer")
LEVEL_ALIASES: Final = {
    # MLModelScope's names of its trace levels
    "application": "model",
    "model": "model",
    "framework": "layer",
    "ml_library": "operator",
    "system_library": "kernel",
    "hardware": "hardware",
    "full": "full",
}
STATUSES: Final = ("complete", "failed", "interrupted")
FAILURE_KINDS: Final = ("crash", "out_of_memory", "timeout", "error", "interrupted")

GROUPS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    # group: {variable: dims}; every variable named here must be present in that group
    PASSES: {
        "level": ("pass",),
        "process": ("pass",),
        "warmup_iterations": ("pass",),
        "measured_iterations": ("pass",),
        "wall_ns": ("pass",),
        "executable_digest": ("pass",),
        "overhead_ratio": ("pass",),
        "overhead_low": ("pass",),
        "overhead_high": ("pass",),
        "lock_wait_ns": ("pass",),
        "clock_error_ns": ("pass",),
        "resolution_ns": ("pass",),
        "outputs_equal": ("pass",),
        "max_output_difference": ("pass",),
        "anchor_ns": ("pass",),
        "open_ns": ("pass",),
        "first_predict_ns": ("pass",),
        "peak_bytes": ("pass",),
        "dropped_events": ("pass",),
    },
    LATENCY: {
        "process": ("latency_iteration",),
        "pass_index": ("latency_iteration",),
        "start_ns": ("latency_iteration",),
        "preprocess_ns": ("latency_iteration",),
        "predict_ns": ("latency_iteration",),
        "postprocess_ns": ("latency_iteration",),
    },
    LAYERS: {
        "name": ("layer",),
        "type": ("layer",),
        "scope": ("layer",),
        "parent": ("layer",),
        "depth": ("layer",),
        "input_shapes": ("layer",),
        "output_shapes": ("layer",),
        "parameter_bytes": ("layer",),
        "activation_bytes": ("layer",),
        "sources": ("layer",),
        "start_ns": ("layer_iteration", "layer"),
        "duration_ns": ("layer_iteration", "layer"),
        "exclusive_ns": ("layer_iteration", "layer"),
        "pass_index": ("layer_iteration",),
        "process": ("layer_iteration",),
        "iteration_start_ns": ("layer_iteration",),
        "pass_duration_ns": ("layer_iteration",),
    },
}

# Variables that are text, and those that are neither text nor int64.
TEXT: Final = frozenset(
    {"level", "executable_digest", "name", "type", "scope", "input_shapes", "output_shapes", "sources"}
)
DTYPES: Final = {
    "overhead_ratio": "float64",
    "overhead_low": "float64",
    "overhead_high": "float64",
    "max_output_difference": "float64",
    "outputs_equal": "int8",
}
PROVENANCES: Final = ("measured", "analytic", "imported", "derived")

UNITS: Final = {
    "_ns": "ns",
    "_bytes": "byte",
    "_watts": "W",
    "_joules": "J",
}

REQUIRED_ATTRS: Final = (
    "schema_version", "run_id", "created_at", "status", "model", "model_digest", "backend", "backend_version",
    "device", "precision", "batch_size", "level", "seed", "threads", "isolation", "execution_mode",
    "executable_digest", "clock_anchor_unix_ns", "environment", "warnings", "unavailable",
)  # fmt: skip
