"""What a session costs over ONNX Runtime itself: plain, on a model of one node, and while tracing layers.

python -m tests.benchmarks.bench_onnxruntime_overhead --json out.json [--model efficientnet.onnx]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from tests.benchmarks._stats import Result, interleave, median_difference, median_ratio, report

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def bare(path: Path, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Open as one would by hand, with the settings that our session uses."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def files_of(path: Path) -> ModelFiles:
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFiles(name=path.stem, format="onnx", path=path, digest=digest)


def one_node(folder: Path) -> Path:
    """Write a model that does next to nothing, so that what is around it shows."""
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", io[:1], io[1:])
    path = folder / "one_node.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    return path


def feeds_of(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        i.name: random.random([d if isinstance(d, int) else 1 for d in i.shape], dtype=np.float32)
        for i in session.get_inputs()
    }


def pairs_of(path: Path, threads: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return times of our predict and of the bare run, ns, interleaved on ONE InferenceSession.

    Two sessions of one model differ by more than a per cent by where their memory lies, which is not our doing.
    """
    with OnnxRuntimeBackend().open(files_of(path), SessionOptions(threads=threads)) as session:
        run = session._session.run
        feeds = feeds_of(session._session)
        times = interleave([lambda: session.predict(feeds), lambda: run(None, feeds)], rounds=rounds)
    return times[:, 0], times[:, 1]


def traced_pairs(path: Path, threads: int, rounds: int, folder: Path) -> np.ndarray:
    """Return times (rounds, 3): our traced predict, the bare run of that same profiling session, a plain bare run."""
    plain = bare(path, threads)
    feeds = feeds_of(plain)
    options = SessionOptions(threads=threads, level="layer", scratch=folder)
    with OnnxRuntimeBackend().open(files_of(path), options) as session:
        profiled: Callable[..., object] = session._session.run
        session.begin_trace()
        times = interleave(
            [lambda: session.predict(feeds), lambda: profiled(None, feeds), lambda: plain.run(None, feeds)],
            rounds=rounds,
        )
        trace = session.end_trace()
        # the warm-up rounds are traced too; the bare runs between ours must not be taken for ours
        if len(trace.iteration_start_ns) != rounds + 20 or trace.dropped_events:
            raise SystemExit(f"the trace holds {len(trace.iteration_start_ns)} of {rounds + 20} predicts")
    return times


def measure(models: list[Path], *, rounds: int = 600, threads: int = 1) -> list[dict[str, Any]]:
    """Measure all figures; see the module's first line."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in models:
            ours, theirs = pairs_of(path, threads, rounds)
            value, low, high = median_ratio(ours, theirs)
            what = f"{path.stem}: predict over sess.run"
            results.append(Result(name=what, value=value, low=low, high=high, unit="ratio", target=1.01, n=rounds))
        ours, theirs = pairs_of(one_node(folder), threads, 20 * rounds)
        value, low, high = (v / 1000 for v in median_difference(ours, theirs))
        what = "one node: predict less sess.run"
        results.append(Result(name=what, value=value, low=low, high=high, unit="us", target=15.0, n=20 * rounds))
        for path in models:
            times = traced_pairs(path, threads, rounds, folder)
            for what, one, other, target in (
                ("traced predict over profiled sess.run", 0, 1, 1.03),
                ("traced predict over plain sess.run", 0, 2, None),
                ("profiled sess.run over plain sess.run", 1, 2, None),
            ):
                value, low, high = median_ratio(times[:, one], times[:, other])
                what = f"{path.stem}: {what}"
                results.append(
                    Result(name=what, value=value, low=low, high=high, unit="ratio", target=target, n=rounds)
                )
    return [r.as_dict() for r in results]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="a further ONNX file")
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure([LIGHT / "light_squeezenet.onnx", *options.model], rounds=options.rounds, threads=options.threads)
    results = [Result(**{k: v for k, v in figure.items() if k != "ok"}) for figure in figures]
    return report("ONNX Runtime overhead", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
