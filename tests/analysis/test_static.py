from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mlscope_lab.analysis.static import KINDS, attach, evaluate, to_dataset
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.static.records import CONVENTIONS, CostTable, LayerCost, TensorShape, Transfer
from mlscope_lab.static.records import KINDS as RECORDED
from mlscope_lab.static.symbolic import Expression

N = Expression.symbol("batch")


def layer(name: str, kind: str, macs: Any = 0, *, moves: Mapping[str, tuple[int, ...]], **options: Any) -> LayerCost:
    """Return a layer whose tensors all have 10 bytes, weights 40."""
    transfers = tuple(
        Transfer(tensor=tensor, kind=how, nbytes=40 if how == "parameter" else 10)
        for how, tensors in moves.items()
        for tensor in tensors
    )
    return LayerCost(name=name, type=kind, macs=macs, transfers=transfers, **options)


def chain() -> CostTable:
    """Return conv -> norm -> relu -> fc, of which the first three are commonly fused."""
    return CostTable(
        model="chain", source="onnx", parameters=20, parameter_bytes=80, peak_activation_bytes=20, peak_layer=1,
        layers=(
            layer("conv", "Conv", 100, moves={"input": (0,), "output": (1,), "parameter": (90,)}, scope="net.conv",
                  parameters=10, parameter_bytes=40, outputs=(TensorShape("float32", (1, 4)),)),
            layer("norm", "BatchNormalization", moves={"input": (1,), "output": (2,)}, flops={"normalization": 8},
                  scope="net.norm"),
            layer("relu", "Relu", moves={"input": (2,), "output": (3,)}, flops={"elementwise": 4}, scope="net.act"),
            layer("fc", "Gemm", 50, moves={"input": (3,), "output": (4,), "parameter": (91,)}, scope="net.fc",
                  parameters=10, parameter_bytes=40, flops={"elementwise": 2}),
        ),
    )  # fmt: skip


@dataclass
class Measured:
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, type, scope, sources

    def tree(self) -> Any:
        columns = list(zip(*self.rows, strict=True)) or [()] * 4
        arrays = {
            key: ("layer", np.array(values, dtype=object))
            for key, values in zip(("name", "type", "scope", "sources"), columns, strict=True)
        }
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"run_id": "x"}), "/layers": xr.Dataset(arrays)})


def test_kinds_are_those_of_the_records() -> None:
    assert KINDS == RECORDED


def test_columns_and_totals() -> None:
    data = to_dataset(chain(), conventions=CONVENTIONS)
    assert data["layer"].values.tolist() == ["conv", "norm", "relu", "fc"]
    assert data["macs"].values.tolist() == [100, 0, 0, 50]
    assert data["flops"].values.tolist() == [200, 8, 4, 102]
    assert data["flops"].dtype == data["input_bytes"].dtype == np.int64
    assert data["input_bytes"].values.tolist() == [10, 10, 10, 10]
    assert data["arithmetic_intensity"].values[0] == 200 / (10 + 10 + 40)
    assert data["output_shapes"].values[0] == "float32[1,4]"
    assert int(data["total_macs"]) == 150
    assert int(data["total_flops"]) == 314
    assert int(data["total_normalization_flops"]) == 8
    assert int(data["total_parameters"]) == 20
    assert data.attrs["peak_layer"] == "norm"
    assert data.attrs["conventions"] == list(CONVENTIONS)
    assert data["input_bytes"].attrs["units"] == "byte"
    assert data["flops"].attrs["provenance"] == "analytic"
    assert data.sizes["transfer"] == 10


def test_what_is_not_known_is_not_zero() -> None:
    table = CostTable(
        model="m", source="onnx", unknown={"Mystery": 1},
        layers=(layer("a", "Mystery", moves={"input": (0,), "output": (1,)}, counted=False),),
    )  # fmt: skip
    data = to_dataset(table)
    assert data["flops"].values.tolist() == data["macs"].values.tolist() == [-1]
    assert np.isnan(data["arithmetic_intensity"].values[0])
    assert data.attrs["not_counted"] == {"Mystery": 1}


def symbolic() -> CostTable:
    transfers = (Transfer(tensor=0, kind="input", nbytes=4 * N), Transfer(tensor=1, kind="output", nbytes=8 * N))
    one = LayerCost(name="a", type="Gemm", macs=3 * N, flops={"elementwise": N}, transfers=transfers)
    return CostTable(model="m", source="torch", symbols=("batch",), layers=(one,), peak_activation_bytes=12 * N)


def test_expressions_and_their_values() -> None:
    data = to_dataset(symbolic())
    assert data["macs"].dtype == object
    assert str(data["flops"].values[0]) == "7*batch"
    assert "arithmetic_intensity" not in data
    found = evaluate(data, batch=5)
    assert found["flops"].dtype == np.int64
    assert (int(found["flops"][0]), int(found["total_flops"]), int(found["peak_activation_bytes"])) == (35, 35, 60)
    assert found["transfer_bytes"].values.tolist() == [20, 40]
    assert found["arithmetic_intensity"].values[0] == 35 / 60
    assert found.attrs["symbols"] == []
    with pytest.raises(InputError, match="batch"):
        evaluate(data)
    with pytest.raises(InputError, match="positive"):
        evaluate(data, batch=0)


def test_a_fused_layer_moves_what_crosses_its_boundary() -> None:
    run = Measured([("conv_nchwc", "Conv", "", "conv;norm;relu"), ("fc", "Gemm", "", "")]).tree()
    joined = attach(run, to_dataset(chain()))
    assert joined["matched_by"].values.tolist() == ["sources", "name"]
    assert joined["flops"].values.tolist() == [212, 102]
    assert (joined["input_bytes"].values[0], joined["output_bytes"].values[0]) == (10, 10)
    assert joined["parameter_bytes"].values[0] == 40
    assert joined["arithmetic_intensity"].values[0] == 212 / 60
    assert float(joined["matched_flops_ratio"]) == 1.0
    assert int(joined["unmatched_layers"]) == 0
    assert joined["cost_layers"].values[0] == "conv;norm;relu"


def test_what_is_left_is_told_and_never_spread() -> None:
    run = Measured([("reorder", "ReorderInput", "", ""), ("conv", "Conv", "", "")]).tree()
    joined = attach(run, to_dataset(chain()))
    assert joined["flops"].values.tolist() == [-1, 200]
    assert joined["matched_by"].values.tolist() == ["", "name"]
    assert float(joined["matched_flops_ratio"]) == 200 / 314
    assert int(joined["unmatched_flops"]) == 114
    assert joined.attrs["unmatched_cost_layers"] == ["norm", "relu", "fc"]


def test_scopes_match_by_kind_where_several_layers_share_one() -> None:
    rows = [("a", "FusedConv2D", "net.conv", ""), ("b", "Relu6", "net.act", ""), ("c", "Transpose", "net.fc", ""),
            ("d", "MatMul", "net.fc", "")]  # fmt: skip
    joined = attach(Measured(rows).tree(), to_dataset(chain()))
    assert joined["matched_by"].values.tolist() == ["scope", "scope", "", "scope"]
    assert joined["macs"].values.tolist() == [100, 0, -1, 50]


def test_tensorflows_paths_are_those_of_keras() -> None:
    table = CostTable(model="m", source="keras", layers=(
        layer("net/deep", "DepthwiseConv2D", 9, moves={}, scope="net/deep"),
        layer("net/deep_BN", "BatchNormalization", moves={}, scope="net/deep_BN", flops={"normalization": 2}),
    ))  # fmt: skip
    rows = [("a", "FusedDepthwiseConv2d", "net/deep", ""), ("b", "Mul", "net_1/deep_BN_1/batchnorm", "")]
    joined = attach(Measured(rows).tree(), to_dataset(table))
    assert joined["cost_layers"].values.tolist() == ["net/deep", "net/deep_BN"]


def test_what_fits_several_is_spread_over_none() -> None:
    rows = [("a", "Einsum", "net.fc", ""), ("b", "Softmax", "net.fc", ""), ("c", "Einsum", "net.fc", "")]
    joined = attach(Measured(rows).tree(), to_dataset(chain()))
    assert joined["matched_by"].values.tolist() == ["", "", ""]
    assert int(joined["unmatched_macs"]) == 150


def test_a_product_does_not_take_the_cost_of_what_is_none() -> None:
    joined = attach(Measured([("a", "Conv", "net.norm", "")]).tree(), to_dataset(chain()))
    assert joined["matched_by"].values.tolist() == [""]


def test_a_product_fused_with_its_activation_by_name_alone() -> None:
    table = CostTable(model="m", source="onnx", layers=(
        layer("fc", "Gemm", 50, moves={"input": (0,), "output": (1,)}),
        layer("act", "Relu", moves={"input": (1,), "output": (2,)}, flops={"elementwise": 4}),
    ))  # fmt: skip
    joined = attach(Measured([("fused fc", "FusedGemm", "", "")]).tree(), to_dataset(table))
    assert joined["cost_layers"].values.tolist() == ["fc;act"]
    assert (joined["input_bytes"].values[0], joined["output_bytes"].values[0]) == (10, 10)
    plain = attach(Measured([("fc", "Gemm", "", "")]).tree(), to_dataset(table))
    assert plain["cost_layers"].values.tolist() == ["fc"]


def test_sources_by_the_path_of_a_frameworks_own_nodes() -> None:
    joined = attach(Measured([("x", "FusedConv2D", "", "conv/Conv2D;conv/BiasAdd;relu/Relu6")]).tree(),
                    to_dataset(chain()))  # fmt: skip
    assert joined["cost_layers"].values.tolist() == ["conv;relu"]
    assert joined["flops"].values.tolist() == [204]


def test_each_cost_is_taken_once() -> None:
    joined = attach(Measured([("conv", "Conv", "", ""), ("x", "Conv", "", "conv")]).tree(), to_dataset(chain()))
    assert joined["macs"].values.tolist() == [-1, 100]  # sources say more than a name


def test_what_attach_needs() -> None:
    with pytest.raises(SchemaError, match="no layers"):
        attach(xr.DataTree(xr.Dataset()), to_dataset(chain()))
    with pytest.raises(InputError, match="evaluate"):
        attach(Measured([("a", "Gemm", "", "")]).tree(), to_dataset(symbolic()))


def test_a_measured_torch_run_joins_by_name() -> None:
    torch = pytest.importorskip("torch")
    import mlscope_lab as ml

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                                 torch.nn.Linear(144, 2)).eval()  # fmt: skip
    example = np.zeros((2, 3, 8, 8), np.float32)
    run = ml.profile(module, example, level="layer", iterations=2, warmup=1, save=False, progress=False)
    cost = ml.cost(module, example)
    joined = attach(run, cost)
    assert float(joined["matched_flops_ratio"]) == 1.0
    assert int(joined["unmatched_layers"]) == 0
    assert joined["layer"].values.tolist() == run["layers"]["name"].values.tolist()
    known = joined["parameter_bytes"].values >= 0
    # buffers are weights to neither
    assert joined["parameter_bytes"].values[known].tolist() == run["layers"]["parameter_bytes"].values[known].tolist()


def test_a_measured_onnx_run_joins_by_sources_and_names(tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pathlib import Path

    import mlscope_lab as ml

    path = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"
    run = ml.profile(path, level="layer", iterations=2, warmup=1, save=False, progress=False, on="inline")
    joined = attach(run, ml.cost(path))
    assert float(joined["matched_macs_ratio"]) == 1.0
    assert float(joined["matched_flops_ratio"]) > 0.99
    assert set(joined["matched_by"].values) <= {"sources", "name", ""}
