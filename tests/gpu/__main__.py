"""What a CUDA device gives: ``python -m tests.gpu``, or ``make gpu-check``.

EfficientNet-Lite0 with random weights runs on the first device at every level, and the figures of the run are printed.
Where there is no device it says so, and runs the same attribution on recorded traces.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mlscope_lab.backends.pytorch_events import event_tables
from tests.gpu.figures import figures_of
from tests.gpu.recorded import frame, load_recorded, outermost

NO_DEVICE = """There is no CUDA device here: {reason}. Nothing was measured, and what follows is unverified on a device:
the same attribution on recorded traces, with a layer for each outermost operator."""
RECORDED = ("ns_resolution_rank0.pt.trace.json.gz", "two_ranks_rank0.json.gz", "two_ranks_rank1.json.gz",
            "cupti_counters.pt.trace.json.gz")  # fmt: skip


MANIFEST = """
kind: model
name: efficientnet-lite0-random
version: 1.0.0
task: image-classification
license: Apache-2.0
inputs:
  - {name: x, dtype: float32, shape: [batch, 3, SIZE, SIZE]}
outputs:
  - {name: logits, dtype: float32, shape: [batch, 1000]}
sources:
  - format: torch_state_dict
    location: {from: file, path: weights.pth}
    architecture: efficientnet_lite
    parameters: {variant: lite0}
"""


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


def run_on(device: str, *, iterations: int, warmup: int, batch_size: int, size: int = 224):
    """Return the run of EfficientNet-Lite0 with random weights at every level, in a process of its own.

    That process has no CUDA context yet when the counters are prepared, and the model comes from files as any other.
    """
    import torch

    import mlscope_lab as ml
    from mlscope_lab.architectures.efficientnet_lite import build

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(build().state_dict(), Path(folder) / "weights.pth")
        manifest = Path(folder) / "model.yaml"
        manifest.write_text(MANIFEST.replace("SIZE", str(size)), encoding="utf-8")
        return ml.profile(
            str(manifest), backend="pytorch", batch_size=batch_size, level="full", device=device, on="subprocess",
            iterations=iterations, warmup=warmup,
        )  # fmt: skip


def main() -> int:
    """Print the figures; 0 if there is no device or all were kept, 1 if one was missed."""
    if (reason := device_reason()) is not None:
        print(NO_DEVICE.format(reason=reason))
        recorded_figures()
        return 0
    import torch

    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices")
    figures = figures_of(run_on("cuda:0", iterations=50, warmup=10, batch_size=8))
    for figure in figures:
        print(f"{figure.what:45} {figure.found:60} {({True: 'yes', False: 'NO', None: ''})[figure.kept]}")
    return int(any(figure.kept is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
