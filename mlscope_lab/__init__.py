"""mlscope-lab: try, compare, verify and dissect ML models from a notebook.

A tour::

    import mlscope_lab as ml

    ml.models()                                        # what is published
    model = ml.load("efficientnet-lite0", backend="onnxruntime")
    model.predict("cat.jpg")                           # ranked classes
    run = ml.profile("efficientnet-lite0", "cat.jpg", backend="pytorch", level="layer")
    run.mlscope.summary()                              # latency with its interval
    run.mlscope.slowest()                              # the layers that cost most
    ml.analyze(run, "latency_by_type")                 # one of A1 to A15 across the stack, or a companion
    ml.compare_latency({"backend": "pytorch"}, {"backend": "onnxruntime"}, model="efficientnet-lite0")
    ml.compare("pytorch", "onnxruntime", "cat.jpg", model="efficientnet-lite0")   # where do two backends part ways
    ml.agreement({"precision": "int8-dynamic"}, {}, "pictures/", model="efficientnet-lite0")   # which answers flip
    ml.sweep_preprocessing("efficientnet-lite0", "cat.jpg", observed=282)         # which preprocessing explains 282
    ml.roofline(run)                                   # how far each layer is from what the machine allows
    ml.cost("efficientnet-lite0")                      # FLOPs, weights, bytes, peak memory, without running it
    ml.runs()                                          # everything measured so far
    ml.open_run("latest")                              # an xarray.DataTree, lazily
    ml.profile(torch_module, example_array)            # live objects, no manifest

Names are loaded when they are first used: importing this package imports neither a framework, nor xarray, nor a user
interface.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from mlscope_lab._version import __version__

if TYPE_CHECKING:
    from mlscope_lab.calibration.stored import calibrate
    from mlscope_lab.catalog import Catalog, load_catalog
    from mlscope_lab.config import Settings, load_settings
    from mlscope_lab.costing import cost
    from mlscope_lab.divergence.bisect import bisect_precision
    from mlscope_lab.divergence.compare import compare
    from mlscope_lab.divergence.consequences import agreement
    from mlscope_lab.divergence.result import Comparison
    from mlscope_lab.divergence.stored import comparisons, delete_comparison, open_comparison
    from mlscope_lab.divergence.sweep import sweep_preprocessing
    from mlscope_lab.errors import MlscopeError, RunError
    from mlscope_lab.handle import Model, load
    from mlscope_lab.public import analyze, delete_run, export_run, import_trace, models, open_run, runs
    from mlscope_lab.report import write_report
    from mlscope_lab.roofs import roofline
    from mlscope_lab.runner import compare_latency, profile

_LAZY = {
    "Catalog": "mlscope_lab.catalog",
    "Comparison": "mlscope_lab.divergence.result",
    "MlscopeError": "mlscope_lab.errors",
    "Model": "mlscope_lab.handle",
    "RunError": "mlscope_lab.errors",
    "Settings": "mlscope_lab.config",
    "agreement": "mlscope_lab.divergence.consequences",
    "analyze": "mlscope_lab.public",
    "bisect_precision": "mlscope_lab.divergence.bisect",
    "calibrate": "mlscope_lab.calibration.stored",
    "compare": "mlscope_lab.divergence.compare",
    "compare_latency": "mlscope_lab.runner",
    "comparisons": "mlscope_lab.divergence.stored",
    "cost": "mlscope_lab.costing",
    "delete_comparison": "mlscope_lab.divergence.stored",
    "delete_run": "mlscope_lab.public",
    "export_run": "mlscope_lab.public",
    "import_trace": "mlscope_lab.public",
    "load": "mlscope_lab.handle",
    "load_catalog": "mlscope_lab.catalog",
    "load_settings": "mlscope_lab.config",
    "models": "mlscope_lab.public",
    "open_comparison": "mlscope_lab.divergence.stored",
    "open_run": "mlscope_lab.public",
    "profile": "mlscope_lab.runner",
    "roofline": "mlscope_lab.roofs",
    "runs": "mlscope_lab.public",
    "sweep_preprocessing": "mlscope_lab.divergence.sweep",
    "write_report": "mlscope_lab.report",
}

__all__ = [
    "Catalog",
    "Comparison",
    "MlscopeError",
    "Model",
    "RunError",
    "Settings",
    "__version__",
    "agreement",
    "analyze",
    "bisect_precision",
    "calibrate",
    "compare",
    "compare_latency",
    "comparisons",
    "cost",
    "delete_comparison",
    "delete_run",
    "export_run",
    "import_trace",
    "load",
    "load_catalog",
    "load_settings",
    "models",
    "open_comparison",
    "open_run",
    "profile",
    "roofline",
    "runs",
    "sweep_preprocessing",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "xarray" in sys.modules:  # trees that exist already get their accessor; otherwise it waits for our first tree
    from mlscope_lab.trace.accessor import ensure_registered

    ensure_registered()
