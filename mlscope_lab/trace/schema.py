"""The vocabulary of a run: group names, dimension names, variables, levels, and the check that a tree keeps to it.

A run is one `xarray.DataTree`. The root holds attributes only; the groups are flat siblings with dimensions of their
own, joined by index columns (``layer_index``) and never by alignment. Times are int64 nanoseconds since the start of
their pass. What a machine could not record is absent, and listed in ``attrs["unavailable"]`` with the reason.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANNOTATIONS", "COUNTERS", "EVENT_DIMS", "EVENT_GROUPS", "FAILURE_KINDS", "GROUPS", "INDEX_TARGETS", "KERNELS",
    "LATENCY", "LAYERS", "LEVELS", "LEVEL_ALIASES", "LINKS", "LINK_KINDS", "MEMORY", "OPERATORS", "OPTIONAL",
    "ORIGINS", "OUTPUTS", "PASSES", "POWER", "PROVENANCES", "RECORDED_LEVELS", "REQUIRED_ATTRS", "RUNTIME", "RUN_ID",
    "SCHEMA_VERSION", "STATUSES", "TABLES", "UNITS", "dtype_of", "is_text", "units_of",
]  # fmt: skip

SCHEMA_VERSION: Final = "1.0"
RUN_ID: Final = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}"

PASSES: Final = "passes"
LATENCY: Final = "latency"
LAYERS: Final = "layers"
OUTPUTS: Final = "outputs"
OPERATORS: Final = "operators"
RUNTIME: Final = "runtime"
KERNELS: Final = "kernels"
ANNOTATIONS: Final = "annotations"
LINKS: Final = "links"
COUNTERS: Final = "counters"
MEMORY: Final = "memory"
POWER: Final = "power"

LEVELS: Final = ("model", "layer", "operator", "kernel", "hardware", "full")
RECORDED_LEVELS: Final = ("model", "layer", "operator", "kernel", "hardware")
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
ORIGINS: Final = ("measured", "imported")
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

# Groups of events: millions of rows, one dim a group. Text is interned: a column ``X_code`` holds positions in the
# table ``X_table``, a variable of the same group along a dim of its own. `INDEX_TARGETS` tells which group an index
# refers to.
EVENT_DIMS: Final[dict[str, str]] = {
    OPERATORS: "operator",
    RUNTIME: "call",
    KERNELS: "kernel",
    ANNOTATIONS: "annotation",
    LINKS: "link",
    COUNTERS: "range",
    MEMORY: "memory_sample",
    POWER: "power_sample",
}
EVENT_GROUPS: Final = tuple(EVENT_DIMS)
_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    OPERATORS: ("pass_index", "iteration", "name_code", "category_code", "thread_code", "start_ns", "duration_ns",
                "parent_index", "layer_index"),
    RUNTIME: ("pass_index", "iteration", "name_code", "category_code", "thread_code", "start_ns", "duration_ns",
              "correlation", "operator_index"),
    KERNELS: ("pass_index", "iteration", "name_code", "category_code", "start_ns", "duration_ns", "device", "stream",
              "correlation", "runtime_index", "operator_index", "layer_index"),
    ANNOTATIONS: ("pass_index", "iteration", "name_code", "category_code", "thread_code", "start_ns", "duration_ns"),
    LINKS: ("pass_index", "kind_code", "source_index", "target_index"),
    # of a range that counts the whole process the category is "process"; others are around one kernel each
    COUNTERS: ("pass_index", "name_code", "category_code", "start_ns", "duration_ns", "correlation", "kernel_index"),
    MEMORY: ("pass_index", "iteration", "device_code", "time_ns", "bytes", "allocated_bytes", "layer_index"),
    POWER: ("pass_index", "device_code", "time_ns", "power_watts"),
}  # fmt: skip
TABLES: Final[dict[str, tuple[str, ...]]] = {
    group: tuple(column.removesuffix("_code") for column in columns if column.endswith("_code"))
    for group, columns in _COLUMNS.items()
}
# Columns that a group may have besides. Counters are variables of their own in /kernels and /counters, float64, named
# as the tool that measured them names them.
OPTIONAL: Final[dict[str, tuple[str, ...]]] = {
    OPERATORS: ("shapes_code", "type_code", "sequence", "correlation", "flops", "allocated_bytes", "output_bytes",
                "input_bytes", "parameter_bytes"),
    RUNTIME: (),
    KERNELS: ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "registers", "shared_memory_bytes",
              "occupancy", "size_bytes", "context"),
    ANNOTATIONS: (),
    LINKS: (),
    COUNTERS: ("iteration", "runtime_index", "operator_index", "layer_index"),
    MEMORY: ("operator_index", "reserved_bytes", "address"),
    POWER: ("energy_joules", "sm_clock_hz", "memory_clock_hz", "temperature_celsius", "utilization",
            "throttle_reasons"),
}  # fmt: skip
INDEX_TARGETS: Final[dict[str, str]] = {
    "operator_index": OPERATORS,
    "runtime_index": RUNTIME,
    "kernel_index": KERNELS,
    "layer_index": LAYERS,
    "pass_index": PASSES,
    # "parent_index" refers to its own group, "source_index" and "target_index" to what the kind of link says
}
LINK_KINDS: Final[dict[str, tuple[str, str]]] = {
    # kind: (group of source_index, group of target_index)
    "launch": (RUNTIME, KERNELS),
    "forward_backward": (OPERATORS, OPERATORS),
    "flow": (OPERATORS, OPERATORS),  # any other that a trace shows
}


def _table_dim(group: str, table: str) -> str:
    return f"{EVENT_DIMS[group]}_{table}"


for _group, _names in _COLUMNS.items():
    _dims: tuple[str, ...] = (EVENT_DIMS[_group],)
    GROUPS[_group] = dict.fromkeys(_names, _dims)
    GROUPS[_group] |= {f"{table}_table": (_table_dim(_group, table),) for table in TABLES[_group]}

_TEXT: Final = frozenset(
    {"level", "executable_digest", "name", "type", "scope", "input_shapes", "output_shapes", "sources"}
)
_FLOATS: Final = frozenset({
    "overhead_ratio", "overhead_low", "overhead_high", "max_output_difference", "occupancy", "power_watts",
    "energy_joules", "sm_clock_hz", "memory_clock_hz", "temperature_celsius", "utilization",
})  # fmt: skip
_SMALL: Final = frozenset({
    "iteration", "device", "stream", "grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "registers",
})  # fmt: skip


def is_text(name: str) -> bool:
    """Tell whether a variable of the schema holds text."""
    return name in _TEXT or name.endswith("_table")


def dtype_of(group: str, name: str) -> str:
    """Return the dtype of a variable of the schema: "object" for text.

    Times, bytes and identifiers of other tools are int64; in groups of events codes and indices are int32.
    """
    if is_text(name):
        return "object"
    if name in _FLOATS:
        return "float64"
    if name == "outputs_equal":
        return "int8"
    if group in EVENT_DIMS and (name in _SMALL or name.endswith(("_code", "_index"))):
        return "int32"
    if group in EVENT_DIMS and name not in _COLUMNS[group] and name not in OPTIONAL[group]:
        return "float64"  # a hardware counter
    return "int64"


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

_UNITS_BY_SUFFIX: Final = {
    "_ns": "ns",
    "_bytes": "byte",
    "_watts": "W",
    "_joules": "J",
    "_hz": "Hz",
    "_celsius": "degC",
}
UNITS: Final = frozenset(_UNITS_BY_SUFFIX.values())


def units_of(name: str) -> str | None:
    """Return the unit that a variable's name promises, or None."""
    if name == "bytes":
        return "byte"
    return next((unit for suffix, unit in _UNITS_BY_SUFFIX.items() if name.endswith(suffix)), None)


REQUIRED_ATTRS: Final = (
    "schema_version", "run_id", "created_at", "status", "model", "model_digest", "backend", "backend_version",
    "device", "precision", "batch_size", "level", "seed", "threads", "isolation", "execution_mode",
    "executable_digest", "clock_anchor_unix_ns", "environment", "warnings", "unavailable",
)  # fmt: skip
