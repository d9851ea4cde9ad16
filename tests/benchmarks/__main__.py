"""All benchmarks, each in a process of its own: ``python -m tests.benchmarks --json out/bench.json``.

Run it on an idle machine. EfficientNet-Lite0 is fetched and converted first. The comparison of A with A takes about
ten seconds a pair; ``--pairs 200`` is the full one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlscope_lab as ml
from mlscope_lab.backends import load_backend
from mlscope_lab.catalog import load_catalog
from mlscope_lab.conversion.resolve import files_for

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run every benchmark, write one JSON file, and return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("out/bench.json"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument(
        "--hta", metavar="PYTHON", help="interpreter of an environment with HolisticTraceAnalysis 0.5.0"
    )
    parser.add_argument("--polygraphy", metavar="PYTHON", help="interpreter of an environment with Polygraphy 0.53")
    options = parser.parse_args()
    settings = ml.load_settings()
    manifest = load_catalog(settings).model("efficientnet-lite0").manifest
    paths = {
        name: str(files_for(manifest, load_backend(name), settings=settings, report=print).path)
        for name in ("onnxruntime", "tensorflow")
    }
    commands = {
        "bench_onnxruntime_overhead": ["--model", paths["onnxruntime"]],
        "bench_pytorch_overhead": [],
        "bench_pytorch_operators": [],
        "bench_tensorflow_overhead": ["--model", paths["tensorflow"]],
        "bench_store": [],
        "bench_analysis": [],
        "bench_coverage": [],
        "bench_prediction": [],
        "bench_import": ["--hta", options.hta] if options.hta else [],
        "bench_divergence": ["--polygraphy", options.polygraphy] if options.polygraphy else [],
        "bench_measures": [],
        "bench_memory": [],
        "bench_collectors": [],
        "bench_roofline": [],
        "bench_static": [],
        "bench_alignment": [],
        "bench_comparison": ["--pairs", str(options.pairs)],
    }
    found, missed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands.items():
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments, "--json", str(out)]
            missed |= subprocess.run(command, cwd=ROOT, check=False).returncode
            if out.is_file():
                found.append(json.loads(out.read_text(encoding="utf-8")))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"Figures: {options.json}")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
