from __future__ import annotations

import warnings
from typing import Any

import pytest

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static import CostTable, cost_of

torch = pytest.importorskip("torch")
nn = torch.nn


def spec(*shape: Any, name: str = "x", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def count(module: Any, *specs: TensorSpec, **options: Any) -> CostTable:
    return cost_of(module, inputs=specs, **options)


def macs(table: CostTable) -> Any:
    return sum((layer.macs for layer in table.layers), 0)


def lite0() -> Any:
    from mlscope_lab.architectures.efficientnet_lite import build

    return build(variant="lite0")


def test_efficientnet_lite0_is_exact() -> None:
    table = count(lite0(), spec("batch", 3, 224, 224), batch_size=1)
    assert macs(table) == 385_187_552
    assert table.parameters == 4_652_008
    assert table.parameter_bytes == 4 * 4_652_008
    assert not table.unknown
    assert not table.notes


def test_rows_are_labelled_as_measured_layers_are() -> None:
    from mlscope_lab.backends.pytorch_ import PyTorchBackend

    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Identity()))
    module.append(module[0].__class__(4, 3))
    module.append(module[1])  # one module called twice
    module.eval()
    import numpy as np

    from mlscope_lab.backends.base import SessionOptions

    feeds = {"input_0": np.zeros((2, 3), np.float32)}
    with PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, level="layer")) as session:
        session.predict(feeds)
        session.begin_trace()
        session.predict(feeds)
        measured = session.end_trace().layers
    table = count(module, spec(2, 3, name="input_0"))
    assert [layer.name for layer in table.layers] == list(measured.name)
    assert [layer.type for layer in table.layers] == list(measured.type)
    assert [layer.parent for layer in table.layers] == list(measured.parent)
    assert [layer.scope for layer in table.layers] == list(measured.scope)
    assert [";".join(map(str, layer.outputs)) for layer in table.layers] == list(measured.output_shapes)


def test_the_module_stays_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    table = count(module, spec(2, 3, 8, 8))
    assert module.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert not module._forward_hooks
    assert not module[0]._forward_pre_hooks
    assert table.layers[3].flops == {"normalization": 2 * 2 * 4 * 36}  # evaluation mode: given statistics


def test_no_weight_is_allocated() -> None:
    with torch.device("meta"):
        module = nn.Linear(1 << 20, 1 << 20)  # 4 TB
    assert macs(count(module, spec(1, 1 << 20))) == 1 << 40


def test_costs_are_polynomials_in_the_batch_and_other_symbols() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    table = count(layer, spec("batch", "sequence", 16), batch_size=None)
    assert set(table.symbols) == {"batch", "sequence"}
    for batch, sequence in ((1, 3), (4, 50)):
        fixed = count(layer, spec(batch, sequence, 16))
        assert macs(table).evaluate(batch=batch, sequence=sequence) == macs(fixed)
    projections, feed_forward, attention = 4 * 16 * 16, 2 * 16 * 32, 2 * 16
    assert str(macs(table)) == f"{attention}*batch*sequence^2 + {projections + feed_forward}*batch*sequence"


def test_another_graph_at_length_one_is_told() -> None:
    class Squeezes(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.squeeze(0) * 2 if x.shape[0] == 1 else x @ x.mT

    table = count(Squeezes(), spec("batch", 3, 4), batch_size=None)
    assert str(macs(table)) == "36*batch"
    assert "from 2 on" in " ".join(table.notes)


@pytest.mark.parametrize("fast", [True, False])
def test_fused_and_separate_attention_count_alike(fast: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    specs = [spec(2, 7, 16, name=name) for name in ("query", "key", "value")]
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        table = count(layer, *specs)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert macs(table) == 4 * 2 * 7 * 16 * 16 + 2 * 2 * 4 * 7 * 7 * 4
    assert table.parameters == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_modules(kind: Any, gates: int) -> None:
    module = kind(10, 20, num_layers=2, bidirectional=True)
    table = count(module, spec(5, 3, 10))
    first, second = gates * 20 * (10 + 20), gates * 20 * (40 + 20)
    assert macs(table) == 5 * 3 * 2 * (first + second)
    assert not table.unknown


@pytest.mark.parametrize(
    ("module", "shape", "multiply_adds", "kinds"),
    [
        (nn.Conv1d(4, 8, 3, groups=2), (2, 4, 9), 2 * 8 * 7 * 2 * 3, {"elementwise": 2 * 8 * 7}),
        (nn.Conv3d(1, 2, 2, bias=False), (1, 1, 3, 3, 3), 2 * 8 * 8, {}),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False), (1, 4, 3, 3), 36 * 3 * 4, {}),
        (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7, {"elementwise": 42}),
        (nn.Bilinear(3, 4, 5, bias=False), None, 0, {}),
        (nn.LayerNorm(6), (2, 6), 0, {"normalization": 7 * 12}),
        (nn.GroupNorm(2, 4), (2, 4, 3), 0, {"normalization": 7 * 24}),
        (nn.MaxPool2d(2), (1, 3, 8, 8), 0, {"pooling": 3 * 64}),
        (nn.AvgPool1d(3, stride=1), (1, 2, 5), 0, {"pooling": 2 * 3 * 3}),
        (nn.AdaptiveAvgPool2d((2, 2)), (1, 1, 5, 4), 0, {"pooling": 6 * 4}),
        (nn.AdaptiveAvgPool2d(1), (1, 2, 5, 5), 0, {"reduction": 50}),
        (nn.Softmax(-1), (2, 6), 0, {"softmax": 60}),
        (nn.GELU(), (2, 6), 0, {"elementwise": 12}),
        (nn.Upsample(scale_factor=2), (1, 2, 3, 3), 0, {}),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 3), 0, {"resampling": 8 * 72}),
        (nn.PixelShuffle(2), (1, 4, 3, 3), 0, {}),
        (nn.Embedding(10, 4), None, 0, {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_modules(module: Any, shape: tuple[int, ...] | None, multiply_adds: int, kinds: dict[str, int]) -> None:
    if isinstance(module, nn.Bilinear):
        table = count(module, spec(2, 3, name="input1"), spec(2, 4, name="input2"))
        multiply_adds = macs(table)
        assert multiply_adds >= 2 * 3 * 4 * 5
        kinds = {}
        assert not table.unknown
        return
    if isinstance(module, nn.Embedding):
        table = count(module, spec(2, 3, dtype="int64"))
    else:
        table = count(module, spec(*shape or ()))
    assert macs(table) == multiply_adds
    found: dict[str, Any] = {}
    for layer in table.layers:
        for kind, n in layer.flops.items():
            found[kind] = found.get(kind, 0) + n
    assert found == kinds
    assert not table.unknown


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        return self.act(self.linear(x)) + x


def test_bytes_are_those_that_cross_a_modules_boundary() -> None:
    table = count(Block(), spec(2, 4))
    by_name = {layer.name: layer for layer in table.layers}

    def moved(name: str) -> list[tuple[str, Any]]:
        return sorted((t.kind, t.nbytes) for t in by_name[name].transfers)

    assert moved("Block") == []
    assert moved("Block.functional") == [("input", 32), ("input", 32), ("output", 32)]
    assert moved("linear") == [("input", 32), ("output", 32), ("parameter", 64)]
    assert moved("act") == [("input", 32), ("output", 32)]  # in place: it reads and writes the same tensor
    assert by_name["Block.functional"].flops == {"elementwise": 8}


def test_peak_memory_follows_storages() -> None:
    # x and the product, then their sum beside them; the activation in place adds nothing
    assert count(Block(), spec(2, 4)).peak_activation_bytes == 3 * 32
    views = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 2)))
    assert count(views, spec(2, 4)).peak_activation_bytes == 32


def test_of_an_embedding_the_rows_taken_are_read() -> None:
    table = count(nn.Embedding(1000, 4), spec(2, 3, dtype="int64"))
    assert table.layers[0].parameter_bytes == 16000
    assert [(t.kind, t.nbytes) for t in table.layers[0].transfers][-1] == ("parameter", 96)


def test_tied_weights_count_once_and_idle_ones_are_told() -> None:
    class Tied(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.idle = nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.embed(x))

    table = count(Tied(), spec(2, 5, dtype="int64"))
    assert table.parameters == 40 + 12
    assert [layer.parameters for layer in table.layers if layer.name in {"embed", "head"}] == [40, 40]
    assert table.notes == ("12 parameters are read by no operator of this run",)


def test_exported_programs_and_scripts_count_alike() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten(), nn.Linear(144, 2)).eval()
    example = torch.zeros(1, 3, 8, 8)
    eager = count(module, spec(1, 3, 8, 8))
    program = count(torch.export.export(module, (example,)), spec(1, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(module, example)
    scripted = count(script, spec(1, 3, 8, 8))
    for other in (program, scripted):
        assert macs(other) == macs(eager)
        assert other.parameters == eager.parameters
        assert other.peak_activation_bytes == eager.peak_activation_bytes
    assert [layer.name for layer in program.layers if layer.macs] == ["aten::conv2d", "aten::linear"]
    assert [layer.scope for layer in program.layers if layer.macs] == ["0", "4"]
    assert len(scripted.layers) > 5


def test_values_are_asked_for_in_vain() -> None:
    class Branches(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UnsupportedModelError, match="needs values"):
        count(Branches(), spec(2))
    with pytest.raises(UnsupportedModelError, match="does not run on shapes alone"):
        count(nn.Linear(3, 4), spec(2, 5))
    with pytest.raises(UnsupportedModelError, match="example arrays"):
        cost_of(nn.Linear(3, 4))


def test_unknown_operators_are_listed() -> None:
    class Transform(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.fft.rfft(x).real

    table = count(Transform(), spec(2, 8))
    assert list(table.unknown) == ["aten::_fft_r2c"]
    assert not table.layers[0].counted
