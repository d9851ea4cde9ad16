"""What hardware counters mean: the names that tools give them, and the metrics that analyses want.

References
----------
NVIDIA, "Kernel Profiling Guide" (Nsight Compute) and "CUPTI", for the names; XSP (arXiv 1908.06869) for the metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema

if TYPE_CHECKING:
    from mlscope_lab.analysis.work import Rows

__all__ = ["METRICS", "METRIC_COUNTERS", "counter_names", "metrics_of"]

METRICS = ("flops", "dram_read_bytes", "dram_write_bytes", "occupancy")

# Instructions that do one or two operations; a fused multiply-add does two.
_INSTRUCTIONS = {
    f"smsp__sass_thread_inst_executed_op_{operation}_pred_on.sum": factor
    for operation, factor in (
        ("dadd", 1.0), ("dmul", 1.0), ("dfma", 2.0), ("fadd", 1.0), ("fmul", 1.0), ("ffma", 2.0),
        ("hadd", 1.0), ("hmul", 1.0), ("hfma", 2.0),
    )
}  # fmt: skip
METRIC_COUNTERS: dict[str, tuple[dict[str, float], ...]] = {
    # metric: alternatives in order of preference; one is a sum of counters, each with its factor
    "flops": ({"flop_count_sp": 1.0, "flop_count_dp": 1.0, "flop_count_hp": 1.0}, _INSTRUCTIONS),
    "dram_read_bytes": ({"dram_read_bytes": 1.0}, {"dram_read_bytes.sum": 1.0}, {"dram__bytes_read.sum": 1.0}),
    "dram_write_bytes": ({"dram_write_bytes": 1.0}, {"dram_write_bytes.sum": 1.0}, {"dram__bytes_write.sum": 1.0}),
    "occupancy": (
        {"achieved_occupancy": 1.0},
        {"sm__warps_active.avg.pct_of_peak_sustained_active": 0.01},
        {"occupancy": 1.0},
    ),
}
"""The counters behind each metric. Tensor cores run none of these instructions: `flops` leaves their work out."""


def counter_names(rows: Rows) -> list[str]:
    """Return the hardware counters among the columns of /kernels or /counters."""
    dim = schema.EVENT_DIMS[rows.group]
    known = {*schema.GROUPS[rows.group], *schema.OPTIONAL[rows.group]}
    return [str(n) for n, v in rows.data.variables.items() if v.dims == (dim,) and n not in known]


def metrics_of(rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
    """Return the metrics that the columns tell, float64 (N,), NaN where a counter is.

    Parameters
    ----------
    rows
        Of /kernels or /counters.
    """
    present = set(map(str, rows.data.variables))
    found: dict[str, npt.NDArray[np.float64]] = {}
    for metric, alternatives in METRIC_COUNTERS.items():
        for counters in alternatives:
            names = [name for name in counters if name in present]
            if not names:
                continue
            parts = [rows.column(name).astype(np.float64) * counters[name] for name in names]
            total = np.sum(parts, axis=0) if len(parts) > 1 else parts[0]
            if np.isfinite(total).any():
                found[metric] = total
                break
    return found
