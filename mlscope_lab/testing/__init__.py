"""For tests of mlscope-lab and of packages that extend it.

`BackendContract`
    What every backend must do; subclass it in a test module (needs pytest).
`StepperContract`
    What every stepper must do: it runs a model operation by operation as the session runs it whole, shows each value
    once, and repeats single operations. A class of its own, or beside `BackendContract` (needs pytest).
`check_layer_trace`
    The invariants of a `LayerTrace`.
`check_events`
    The invariants of the events that a `LayerTrace` holds.
`synthetic_layer_trace`, `synthetic_pass`, `synthetic_events`
    Valid records of any size from a seed, for tests of whatever takes records.
`synthetic_run`, `synthetic_failed_run`, `synthetic_ranking`
    Whole runs and their answers, for tests of whatever takes runs.
`synthetic_comparison`
    A whole comparison, clean or with a fault at a pair of the caller's choosing.

Importing this package needs numpy alone; pytest is imported once a contract is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlscope_lab.testing.checks import check_layer_trace
from mlscope_lab.testing.comparisons import synthetic_comparison
from mlscope_lab.testing.event_checks import check_events
from mlscope_lab.testing.events import synthetic_events
from mlscope_lab.testing.runs import synthetic_failed_run, synthetic_ranking, synthetic_run
from mlscope_lab.testing.synthetic import synthetic_layer_trace, synthetic_pass

if TYPE_CHECKING:
    from mlscope_lab.testing.contract import BackendContract
    from mlscope_lab.testing.stepping import StepperContract

__all__ = [
    "BackendContract",
    "StepperContract",
    "check_events",
    "check_layer_trace",
    "synthetic_comparison",
    "synthetic_events",
    "synthetic_failed_run",
    "synthetic_layer_trace",
    "synthetic_pass",
    "synthetic_ranking",
    "synthetic_run",
]


def __getattr__(name: str) -> Any:
    if name == "BackendContract":
        import pytest

        pytest.register_assert_rewrite("mlscope_lab.testing.contract", "mlscope_lab.testing.levels")
        from mlscope_lab.testing.contract import BackendContract

        return BackendContract
    if name == "StepperContract":
        import pytest

        pytest.register_assert_rewrite("mlscope_lab.testing.stepping")
        from mlscope_lab.testing.stepping import StepperContract

        return StepperContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
