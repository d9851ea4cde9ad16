"""What a CUDA device gives: ``python -m tests.gpu``, or ``make gpu-check``.

EfficientNet-Lite0 with random weights runs on the first device at every level, and the figures of the run are printed.
Where there is no device it says so, and runs the same attribution on recorded traces.
"""

from __future__ import annotations

import sys

import numpy as np

from mlscope_lab.backends.pytorch_events import event_tables
from tests.gpu.figures import figures_of
from tests.gpu.recorded import frame, load_recorded, outermost

NO_DEVICE = """There is no CUDA device here: {reason}. Nothing was measured, and what follows is unverified on a device:
the same attribution on recorded traces, with a layer for each outermost operator."""
RECORDED = ("ns_resolution_rank0.pt.trace.json.gz", "two_ranks_rank0.json.gz", "two_ranks_rank1.json.gz",
            "cupti_counters.pt.trace.json.gz")  # fmt: skip


def recorded_figures() -> None:
    """Print what the attribution finds in each recorded trace that is at hand."""
    for name in RECORDED:
        try:
            trace, _ = load_recorded(name)
        except FileNotFoundError as error:
            print(f"{name:40} there is no {error.filename}")
            continue
        tables = event_tables(trace, frame(calls=outermost(trace)))
        kernels = tables["kernels"].columns
        time, parts = kernels["duration_ns"], [f"{len(tables['kernels']):,} kernels and copies"]
        if len(time):
            for what in ("runtime", "operator", "layer"):
                parts.append(f"{time[kernels[f'{what}_index'] >= 0].sum() / time.sum():.2%} with {what}")
        if "counters" in tables:
            parts.append(f"counters of {len(tables['counters'])} kernels")
        print(f"{name:40} {', '.join(parts)}")


def device_reason() -> str | None:
    """Return why there is no device, None if there is one."""
    import torch

    if torch.cuda.is_available():
        return None
    built = torch.backends.cuda.is_built()
    return "PyTorch sees none" if built else f"PyTorch {torch.__version__} is built without CUDA"


def main() -> int:
    """Print the figures; 0 if there is no device or all were kept, 1 if one was missed."""
    if (reason := device_reason()) is not None:
        print(NO_DEVICE.format(reason=reason))
        recorded_figures()
        return 0
    import torch

    import mlscope_lab as ml
    from mlscope_lab.architectures.efficientnet_lite import build

    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    torch.manual_seed(0)
    example = {"x": np.random.default_rng(0).random((8, 3, 224, 224), dtype=np.float32)}
    run = ml.profile(
        build().eval().to("cuda:0"), example, level="full", device="cuda:0", on="inline", iterations=50, warmup=10
    )
    figures = figures_of(run)
    for figure in figures:
        print(f"{figure.what:45} {figure.found:60} {({True: 'yes', False: 'NO', None: ''})[figure.kept]}")
    return int(any(figure.kept is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
