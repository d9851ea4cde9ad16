"""What our TensorFlow session costs over the bare concrete function, and its traces over the bare frozen graph.

    python -m tests.benchmarks.bench_tensorflow_overhead --model efficientnet-lite0.onnx --rounds 600 --json out.json

`--model` is a SavedModel folder or an ONNX file, which is converted first; without it the ResNet-50 of the onnx package
is. The bare call does what ours must: numpy in, tensors, the function, numpy out. Traces are compared block by block.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.artifacts import digest_of
from mlscope_lab.backends.base import Level, ModelFiles, Session, SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from tests.benchmarks._stats import Result, interleave, median_difference, median_ratio, report

_BLOCK = 10


def files_of(path: Path) -> ModelFiles:
    """Describe a model on disk."""
    kind = "saved_model" if path.is_dir() else "onnx"
    return ModelFiles(name=path.stem, format=kind, path=path, digest=digest_of(path))


def saved_model(path: Path | None, folder: Path) -> Path:
    """Return a SavedModel, converting an ONNX file."""
    from mlscope_lab.conversion.onnx_to_tensorflow import convert

    if path is None:
        import onnx

        path = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    if path.is_dir():
        return path
    from mlscope_lab.conversion.onnx_tf.graph import read

    feeds = {
        p.name: np.zeros([d if isinstance(d, int) else 1 for d in p.shape or ()], p.dtype) for p in read(path).inputs
    }
    convert(files_of(path), folder / path.stem, example=feeds)
    return folder / path.stem


def one_node(folder: Path) -> Path:
    """Write a SavedModel that negates three numbers."""
    tf = load_tensorflow()
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": -x}, input_signature=[tf.TensorSpec([3], tf.float32, "x")])
    tf.saved_model.save(module, str(folder / "one"), signatures={"serving_default": module.f})
    return folder / "one"


def feeds_of(session: Session) -> dict[str, np.ndarray]:
    """Draw inputs that fit a session."""
    random = np.random.default_rng(0)
    return {
        s.name: random.standard_normal([d if isinstance(d, int) else 1 for d in s.shape or ()]).astype(s.dtype)
        for s in session.inputs
    }


def bare_function(path: Path, session: Session) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    """Return the concrete function with the same conversions, loaded on its own."""
    tf = load_tensorflow()
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    keys = {name: key for key, name in session._pairs}  # type: ignore[attr-defined]

    def call(feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        done = function(**{keys[n]: tf.convert_to_tensor(a) for n, a in feeds.items()})
        return {k: v.numpy() for k, v in done.items()}

    call.keep = loaded  # type: ignore[attr-defined]
    return call


def plain_pairs(path: Path, rounds: int, threads: int) -> Any:
    """Time Session.predict and the bare function in turns."""
    with TensorFlowBackend().open(files_of(path), SessionOptions(threads=threads)) as session:
        feeds, bare = feeds_of(session), bare_function(path, session)
        return interleave([lambda: session.predict(feeds), lambda: bare(feeds)], rounds=rounds)


def traced_blocks(path: Path, blocks: int, threads: int, level: Level) -> npt.NDArray[np.float64]:
    """Time traced predicts and the same frozen graph run bare, in blocks that take turns.

    TensorFlow's profiler watches the whole process, so the bare graph must not run while a trace does. The bare graph
    runs in a session of TensorFlow 1, once through the public ``Session.run`` and once through a prepared callable of
    a session, which is what a traced predict calls.

    Returns
    -------
    numpy.ndarray
        (block, 3): medians of traced predict, ``Session.run`` and callable, in ns. The first steps of a block are left
        out.
    """
    tf = load_tensorflow()
    with TensorFlowBackend().open(files_of(path), SessionOptions(threads=threads, level=level)) as session:
        feeds, frozen = feeds_of(session), session._recorder._frozen  # type: ignore[attr-defined]
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1, use_per_session_threads=True
        )
        with tf.compat.v1.Session(graph=frozen.graph, config=config) as other:
            given = dict(zip(frozen.feeds, (feeds[s.name] for s in session.inputs), strict=True))
            calls: list[Callable[[], object]] = [
                lambda: session.predict(feeds),
                lambda: other.run(frozen.fetches, given),
                lambda: session.predict(feeds),
            ]
            medians = np.zeros((blocks, len(calls)))
            orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(calls)), (blocks + 1, 1)), axis=1).tolist()
            for number, order in enumerate(orders):  # the first block warms up
                for index in order:
                    if index == 0:
                        session.begin_trace()
                    times = interleave([calls[index]], rounds=_BLOCK, warmup=2)
                    if index == 0:
                        trace = session.end_trace()
                        if trace.unavailable or trace.dropped_events:
                            raise RuntimeError(f"not the trace to be measured: {trace.unavailable}")
                    medians[number - 1, index] = np.median(times)
            return medians


def measure(model: Path | None = None, *, rounds: int = 600, threads: int = 1) -> list[dict[str, Any]]:
    """Measure and return one dict a figure."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tf = load_tensorflow()
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        path = saved_model(model, folder)
        times = plain_pairs(path, rounds, threads)
        value, low, high = median_ratio(times[:, 0], times[:, 1])
        what = f"{path.stem}: predict over bare concrete function"
        results.append(Result(name=what, value=value, low=low, high=high, unit="ratio", target=1.01, n=rounds))
        times = plain_pairs(one_node(folder), 20 * rounds, threads)
        value, low, high = (v / 1000 for v in median_difference(times[:, 0], times[:, 1]))
        what = "one node: predict less bare concrete function"
        results.append(Result(name=what, value=value, low=low, high=high, unit="us", target=15.0, n=20 * rounds))
        blocks = max(2, rounds // 5)
        levels: tuple[Level, ...] = ("layer", "operator")
        for level in levels:
            medians = traced_blocks(path, blocks, threads, level)
            for column, other, target in ((1, "bare frozen graph", 1.10), (2, "the same call untraced", None)):
                value, low, high = median_ratio(medians[:, 0], medians[:, column])
                what = f"{path.stem}: {level} pass over {other}"
                results.append(
                    Result(name=what, value=value, low=low, high=high, unit="ratio", target=target, n=blocks)
                )
    return [r.as_dict() for r in results]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a SavedModel folder or an ONNX file")
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures = measure(options.model, rounds=options.rounds, threads=options.threads)
    results = [Result(**{k: v for k, v in figure.items() if k != "ok"}) for figure in figures]
    return report("TensorFlow overhead", results, out=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
