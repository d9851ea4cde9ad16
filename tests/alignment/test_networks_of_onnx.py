"""Published architectures in ONNX Runtime, fused and not: branches, concatenations, channel shuffles, transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.alignment.aligner import align
from mlscope_lab.alignment.distances import distance
from mlscope_lab.alignment.sketch import ValueSketch, sketch
from mlscope_lab.trace.graph import Graph
from mlscope_lab.trace.kinds import COMPUTE

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import mlscope_lab as ml  # noqa: E402 - after what it needs

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def recorded(path: Path, x: np.ndarray, optimization: str | None) -> tuple[Graph, dict[int, ValueSketch]]:
    sketches: dict[int, ValueSketch] = {}
    with (
        ml.load(path, backend="onnxruntime", graph_optimization=optimization, threads=1) as model,
        model.session.open_stepper() as stepper,
    ):
        name = model.session.inputs[0].name
        graph = stepper.run({name: x}, lambda i, value: sketches.__setitem__(i, sketch(value)))
    return graph, sketches


def check(one: tuple[Graph, dict[int, ValueSketch]], other: tuple[Graph, dict[int, ValueSketch]]) -> int:
    """Check that all pairs have equal values, and all computing operations a group; return how many pairs there are."""
    (a, sketches_a), (b, sketches_b) = one, other
    found = align(a, b, sketches_a, sketches_b, provenance=False)
    for pair in found.pairs:
        assert distance(sketches_a[pair.a], sketches_b[pair.b]) < 1e-3, (a.values[pair.a].name, b.values[pair.b].name)
    for graph, left in ((a, found.unmatched_a), (b, found.unmatched_b)):
        assert not any(COMPUTE & set(graph.operations[i].kinds) for i in left)
    return len(found.pairs)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1"])
def test_fused_and_unfused_meet(name: str) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 224, 224)).astype(np.float32)
    path = LIGHT / f"light_{name}.onnx"
    fused, unfused = recorded(path, x, None), recorded(path, x, "none")
    assert len(fused[0].operations) < len(unfused[0].operations)
    there, back = check(fused, unfused), check(unfused, fused)
    assert there == back > 0.4 * len(fused[0].operations)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter
def test_a_transformer_encoder_meets_its_optimised_form(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0, activation="gelu")
    module = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 12, 32)
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(module, (x,), path, dynamo=True, external_data=False, verbose=False)
    fused, unfused = recorded(path, x.numpy(), None), recorded(path, x.numpy(), "none")
    assert check(fused, unfused) > 20
