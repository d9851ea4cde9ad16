"""Peak memory of the measuring process over a bare run, and of the process that asked for it.

python -m tests.benchmarks.bench_memory --json out.json

Every process is fresh; the figure is the peak resident set size (VmHWM). The bare run opens the same file with the
framework alone, with the same threads, and predicts as often.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlscope_lab as ml
from mlscope_lab.backends import load_backend
from mlscope_lab.catalog import load_catalog
from mlscope_lab.conversion.resolve import files_for
from tests.benchmarks._stats import Result, report

MODEL = "efficientnet-lite0"
PEAK = "print('PEAK', next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
BARE = {
    "onnxruntime": """
import numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 2; options.inter_op_num_threads = 1
session = ort.InferenceSession({path!r}, options, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
for _ in range(60): session.run(None, {{session.get_inputs()[0].name: x}})
""",
    "pytorch": """
import numpy as np, torch
from mlscope_lab.architectures.efficientnet_lite import build
torch.set_num_threads(2)
module = build(); module.load_state_dict(torch.load({path!r}, weights_only=True)); module.eval()
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
with torch.inference_mode():
    for _ in range(60): module(torch.from_numpy(x)).numpy()
""",
    "tensorflow": """
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(2); tf.config.threading.set_inter_op_parallelism_threads(1)
loaded = tf.saved_model.load({path!r}); function = loaded.signatures["serving_default"]
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
name = next(iter(function.structured_input_signature[1]))
for _ in range(60): [v.numpy() for v in function(**{{name: tf.constant(x)}}).values()]
""",
}
PARENT = f"""
import mlscope_lab as ml
ml.profile({MODEL!r}, backend={{backend!r}}, level="layer", iterations=50, threads=2, progress=False)
"""


def peak_bytes(code: str) -> int:
    """Run the code in a fresh interpreter and return its peak resident set in bytes."""
    done = subprocess.run([sys.executable, "-c", code + "\n" + PEAK], capture_output=True, text=True, check=True)
    return int(done.stdout.rsplit("PEAK", 1)[1]) * 1024


def measure(*, repeats: int = 3) -> list[dict[str, Any]]:
    """Measure every installed backend; the figure is the largest of the repeats, as a peak should be."""
    settings = ml.load_settings()
    manifest = load_catalog(settings).model(MODEL).manifest
    results = []
    empty = peak_bytes("pass")
    for name, code in BARE.items():
        backend = load_backend(name)
        if not backend.availability().ok:
            print(f"{name} is not installed and left out", file=sys.stderr)
            continue
        files = files_for(manifest, backend, settings=settings)
        bare = [peak_bytes(code.format(path=str(files.path))) for _ in range(repeats)]
        ours = [
            int(
                ml.profile(MODEL, backend=name, iterations=50, threads=2, save=False, progress=False)["passes"][
                    "peak_bytes"
                ].values.max()
            )
            for _ in range(repeats)
        ]
        parent = [peak_bytes(PARENT.format(backend=name)) for _ in range(repeats)]
        for what, values, base, target in (
            ("measuring process less the bare run", ours, max(bare), 60.0),
            ("calling process less an empty interpreter", parent, empty, 150.0),
        ):
            megabytes = [(value - base) / 1e6 for value in values]
            results.append(
                Result(
                    name=f"{name}: {what}", value=sorted(megabytes)[len(megabytes) // 2], low=min(megabytes),
                    high=max(megabytes), unit="MB", target=target, n=repeats,
                )
            )  # fmt: skip
    return [result.as_dict() for result in results]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(repeats=options.repeats)
    results = [Result(**{k: v for k, v in figure.items() if k != "ok"}) for figure in figures]
    return report("Peak memory", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
