from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlscope_lab.backends.base import TensorSpec
from mlscope_lab.errors import UnsafeArtifactError, UnsupportedModelError
from mlscope_lab.static import CostTable, cost_of
from mlscope_lab.static.onnx_ import cost_of_onnx

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def macs(table: CostTable) -> Any:
    return sum((layer.macs for layer in table.layers), 0)


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def values(name: str, *numbers: int) -> Any:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def graph_of(
    nodes: list[Any], inputs: dict[str, list[Any]], outputs: list[str], stored: list[Any] = (), opset: int = 18
) -> Any:
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        list(stored),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


# what the graphs hold: counted once by hand from their shapes, and published for these architectures
@pytest.mark.parametrize(
    ("name", "multiply_adds", "parameters"),
    [
        ("squeezenet", 349_151_936, 1_235_496),
        ("resnet50", 4_089_184_256, 25_557_032),
        ("vgg19", 19_632_062_464, 143_667_240),
        ("densenet121", 2_834_161_664, 8_062_504),
    ],
)
def test_real_architectures_are_exact(name: str, multiply_adds: int, parameters: int) -> None:
    table = cost_of_onnx(LIGHT / f"light_{name}.onnx")
    assert macs(table) == multiply_adds
    assert table.parameters == parameters
    assert table.parameter_bytes == 4 * parameters
    assert not table.unknown
    assert not table.symbols


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_nothing_in_real_architectures_is_unknown(path: Path) -> None:
    table = cost_of_onnx(path)
    assert not table.unknown
    assert all(layer.counted for layer in table.layers)


def test_every_model_that_comes_with_onnx_can_be_counted() -> None:
    unknown: set[str] = set()
    for path in sorted((LIGHT.parent).glob("**/model.onnx")):
        unknown |= set(cost_of_onnx(path, batch_size=None).unknown)
    assert unknown <= {"StringNormalizer", "ai.onnx.preview.training.Gradient"}


def test_grouped_depthwise_dilated_and_transposed_convolutions() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "grouped", "b"], ["a"], name="grouped", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "depthwise"], ["b1"], name="depthwise", group=8, strides=[2, 2]),
        helper.make_node("Conv", ["b1", "dilated"], ["c"], name="dilated", dilations=[2, 2]),
        helper.make_node("ConvTranspose", ["c", "back"], ["y"], name="back", strides=[2, 2]),
    ]
    stored = [weight("grouped", 8, 2, 3, 3), weight("b", 8), weight("depthwise", 8, 1, 3, 3),
              weight("dilated", 5, 8, 2, 2), weight("back", 5, 3, 2, 2)]  # fmt: skip
    table = cost_of_onnx(graph_of(nodes, {"x": ["N", 4, 9, 9]}, ["y"], stored), batch_size=2)
    by_name = {layer.name: layer for layer in table.layers}
    assert by_name["grouped"].macs == 2 * 8 * 81 * 2 * 9
    assert by_name["grouped"].flops == {"elementwise": 2 * 8 * 81}
    assert by_name["depthwise"].macs == 2 * 8 * 16 * 9
    assert by_name["dilated"].macs == 2 * 5 * 4 * 8 * 4
    assert by_name["back"].macs == 2 * 5 * 4 * 3 * 4
    assert [str(layer.outputs[0]) for layer in table.layers] == [
        "float32[2,8,9,9]", "float32[2,8,4,4]", "float32[2,5,2,2]", "float32[2,3,4,4]",
    ]  # fmt: skip
    assert by_name["depthwise"].parameters == 72


def attention_like() -> Any:
    """Return a block whose shapes go through Shape, Gather, Concat and Reshape, as exporters write it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Gather", ["shape", "one"], ["s"]),
        helper.make_node("Concat", ["n", "s", "heads", "rest"], ["target"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["q"], name="project"),
        helper.make_node("Reshape", ["q", "target"], ["split"]),
        helper.make_node("Transpose", ["split"], ["heads_first"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["split"], ["keys"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["heads_first", "keys"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["y"], name="softmax", axis=-1),
    ]
    stored = [values("zero", 0), values("one", 1), values("heads", 4), values("rest", -1), weight("w", 16, 16)]
    return graph_of(nodes, {"x": ["batch_size", "sequence", 16]}, ["y"], stored)


def test_costs_are_polynomials_in_batch_and_sequence() -> None:
    table = cost_of_onnx(attention_like(), batch_size=None)
    by_name = {layer.name: layer for layer in table.layers}
    assert set(table.symbols) == {"batch", "sequence"}
    assert str(by_name["project"].macs) == "256*batch*sequence"
    assert str(by_name["scores"].macs) == "16*batch*sequence^2"
    assert str(by_name["softmax"].outputs[0]) == "float32[batch,4,sequence,sequence]"
    assert "calls 'batch_size'" in " ".join(table.notes)
    for batch, sequence in ((1, 1), (3, 7), (8, 128)):
        fixed = cost_of_onnx(attention_like(), batch_size=batch, symbols={"sequence": sequence})
        assert not fixed.symbols
        assert [
            v if isinstance(v, int) else v.evaluate(batch=batch, sequence=sequence)
            for v in (macs(table), table.peak_activation_bytes)
        ] == [macs(fixed), fixed.peak_activation_bytes]


def test_the_graphs_own_name_of_the_batch_is_taken_too() -> None:
    assert not cost_of_onnx(attention_like(), batch_size=None, symbols={"batch_size": 2, "sequence": 3}).symbols


def test_declared_lengths_fill_open_ones() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [None, None, 4]}, ["y"], [weight("w", 4, 2)]
    )
    declared = [TensorSpec(name="x", dtype="float32", shape=("batch", 7, 4))]
    assert str(macs(cost_of_onnx(model, inputs=declared, batch_size=None))) == "56*batch"
    assert cost_of_onnx(model, batch_size=None).symbols == ("batch", "x.1")


def test_a_stride_that_does_not_divide_is_refused_or_taken_at_its_usual_length() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[128], pads=[64, 64])]
    model = graph_of(nodes, {"x": ["N", 1, "samples"]}, ["y"], [weight("w", 4, 1, 256)])
    with pytest.raises(UnsupportedModelError, match="samples"):
        cost_of_onnx(model, batch_size=None)
    table = cost_of_onnx(model, batch_size=None, usual={"samples": 1024})
    assert str(macs(table)) == "8192*batch"
    assert "samples = 1024" in " ".join(table.notes)


def test_a_fixed_batch_is_not_changed() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"])
    assert cost_of_onnx(model, batch_size=None).symbols == ()
    with pytest.raises(UnsupportedModelError, match="fixes the batch"):
        cost_of_onnx(model, batch_size=8)


def test_gemm_einsum_and_broadcasting() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="gemm", transA=1, transB=1),
        helper.make_node("Einsum", ["h", "h"], ["e"], name="einsum", equation="ij,kj->ik"),
        helper.make_node("Add", ["e", "row"], ["y"], name="add"),
    ]
    model = graph_of(nodes, {"x": [3, 5]}, ["y"], [weight("w", 7, 3), weight("b", 7), weight("row", 5)])
    gemm, einsum, add = cost_of_onnx(model).layers
    assert (gemm.macs, gemm.flops, gemm.parameters) == (5 * 3 * 7, {"elementwise": 35}, 28)
    assert einsum.macs == 5 * 5 * 7
    assert (add.macs, add.flops, add.parameters) == (0, {"elementwise": 25}, 5)


def test_recurrent_layers() -> None:
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r", "b"], ["y", "h"], name="lstm", hidden_size=4, direction="bidirectional"
        ),
        helper.make_node("GRU", ["x", "gw", "gr"], ["z", ""], name="gru", hidden_size=4),
    ]
    stored = [weight("w", 2, 16, 3), weight("r", 2, 16, 4), weight("b", 2, 32), weight("gw", 1, 12, 3),
              weight("gr", 1, 12, 4)]  # fmt: skip
    lstm, gru = cost_of_onnx(graph_of(nodes, {"x": ["steps", 2, 3]}, ["y", "z"], stored), symbols={"batch": 6}).layers
    assert lstm.macs == 6 * 2 * 2 * 16 * (3 + 4)
    assert lstm.parameters == 2 * 16 * 3 + 2 * 16 * 4 + 64
    assert gru.macs == 6 * 2 * 12 * (3 + 4)


def test_attention_operator() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=2)
    model = graph_of([node], {"q": [2, 7, 32], "k": [2, 9, 16], "v": [2, 9, 16]}, ["y"], opset=23)
    (layer,) = cost_of_onnx(model).layers
    assert layer.macs == 2 * 4 * 7 * 9 * (8 + 8)


def quantized() -> Any:
    int8 = onnx.TensorProto.INT8
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["y"], name="product"),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "scale", "zero", "w", "scale", "zero", "scale", "zero"], ["z"],
                         name="linear"),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"]),
        helper.make_node("MatMul", ["x", "wf"], ["f"], name="dequantized"),
    ]  # fmt: skip
    stored = [
        numpy_helper.from_array(np.zeros((8, 3), np.int8), "w"),
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None),
         helper.make_tensor_value_info("z", int8, None), helper.make_tensor_value_info("f", FLOAT, None)],
        stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_quantised_products_count_as_products_and_their_bytes_as_stored() -> None:
    table = cost_of_onnx(quantized())
    by_name = {layer.name: layer for layer in table.layers}
    for name in ("product", "linear", "dequantized"):
        assert by_name[name].macs == 2 * 8 * 3
        assert (by_name[name].parameters, by_name[name].parameter_bytes) == (24, 24)
    assert (table.parameters, table.parameter_bytes) == (24, 24)  # one weight, read three times
    assert not table.unknown


def body(name: str, nodes: list[Any], outputs: list[str], inputs: list[Any] = ()) -> Any:
    return helper.make_graph(
        nodes, name, list(inputs), [helper.make_tensor_value_info(o, FLOAT, None) for o in outputs]
    )


def test_of_an_if_the_branch_with_more_work_counts() -> None:
    small = body("small", [helper.make_node("Relu", ["x"], ["a"], name="relu")], ["a"])
    large = body("large", [helper.make_node("MatMul", ["x", "w"], ["b"], name="inner")], ["b"])
    nodes = [helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=small, else_branch=large)]
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4]),
         helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, None)], [weight("w", 4, 4)],
    )  # fmt: skip
    table = cost_of_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert [(layer.name, layer.parent, layer.macs) for layer in table.layers] == [("choice", -1, 0), ("inner", 0, 32)]
    assert "else branch counts" in table.notes[0]
    assert table.parameters == 16


def test_nested_branches_are_walked_once_each() -> None:
    graph = body("innermost", [helper.make_node("Relu", ["x"], ["a0"], name="relu")], ["a0"])
    for level in range(1, 26):  # two walks at each level would be 2^25 of the innermost
        other = body(f"other{level}", [helper.make_node("Identity", ["x"], [f"b{level}"])], [f"b{level}"])
        node = helper.make_node("If", ["condition"], [f"a{level}"], name=f"if{level}", then_branch=graph,
                                else_branch=other)  # fmt: skip
        graph = body(f"level{level}", [node], [f"a{level}"])
    graph.input.extend([helper.make_tensor_value_info("x", FLOAT, [2, 4]),
                        helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, [])])  # fmt: skip
    table = cost_of_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert table.layers[-1].name == "relu"
    assert len(table.layers) == 26


def test_an_if_on_a_constant_is_no_choice() -> None:
    small = body("small", [helper.make_node("Relu", ["x"], ["a"], name="relu")], ["a"])
    large = body("large", [helper.make_node("MatMul", ["x", "w"], ["b"], name="inner")], ["b"])
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=small, else_branch=large)]
    stored = [weight("w", 4, 4), numpy_helper.from_array(np.array(True), "yes")]
    table = cost_of_onnx(graph_of(nodes, {"x": [2, 4]}, ["y"], stored))
    assert [layer.name for layer in table.layers] == ["y", "relu"]
    assert not table.notes


def loop(trips: list[Any]) -> Any:
    inputs = [
        helper.make_tensor_value_info("i", INT64, []),
        helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", FLOAT, [2, 4]),
    ]
    turn = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"], name="turn"),
         helper.make_node("Identity", ["go"], ["go_on"])],
        "turn", inputs,
        [helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", FLOAT, None), helper.make_tensor_value_info("next", FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "", "x"], ["last", "all"], name="again", body=turn)
    graph = helper.make_graph(
        [node], "graph",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4]), helper.make_tensor_value_info("trips", INT64, [])],
        [helper.make_tensor_value_info("last", FLOAT, None), helper.make_tensor_value_info("all", FLOAT, None)],
        [weight("w", 4, 4), *trips],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_loop_counts_its_turns() -> None:
    table = cost_of_onnx(loop([numpy_helper.from_array(np.int64(5), "trips")]))
    assert [(layer.name, layer.macs) for layer in table.layers] == [("again", 0), ("turn", 5 * 32), ("go_on", 0)]
    assert str(table.layers[0].outputs[1]) == "float32[5,2,4]"


def test_a_loop_of_unknown_length_is_a_symbol() -> None:
    table = cost_of_onnx(loop([]))
    assert table.symbols == ("trips_of_again",)
    assert str(macs(table)) == "32*trips_of_again"
    assert macs(cost_of_onnx(loop([]), symbols={"trips_of_again": 3})) == 96


def test_a_scan_counts_along_its_axis() -> None:
    turn = helper.make_graph(
        [helper.make_node("MatMul", ["part", "w"], ["made"], name="turn")], "turn",
        [helper.make_tensor_value_info("part", FLOAT, [2, 4])], [helper.make_tensor_value_info("made", FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("Scan", ["x"], ["y"], name="scan", body=turn, num_scan_inputs=1)
    table = cost_of_onnx(graph_of([node], {"x": [6, 2, 4]}, ["y"], [weight("w", 4, 4)]))
    assert macs(table) == 6 * 32
    assert str(table.layers[0].outputs[0]) == "float32[6,2,4]"


def test_unknown_operators_are_listed_and_never_zero() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], name="mystery", domain="org.example"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="after"),
    ]
    model = graph_of(nodes, {"x": [2, 4]}, ["y"], [weight("w", 4, 4)])
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    table = cost_of_onnx(model)
    assert dict(table.unknown) == {"org.example.Mystery": 1, "MatMul (a shape is not known)": 1}
    assert not any(layer.counted for layer in table.layers)


def test_of_a_table_the_rows_taken_are_read() -> None:
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    graph = helper.make_graph(
        [node], "graph", [helper.make_tensor_value_info("x", INT64, [2, 3])],
        [helper.make_tensor_value_info("y", FLOAT, None)], [weight("table", 1000, 4)],
    )  # fmt: skip
    table = cost_of_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    (layer,) = table.layers
    assert (layer.parameters, layer.parameter_bytes) == (4000, 16000)
    assert [(t.kind, t.nbytes) for t in layer.transfers] == [("input", 48), ("output", 96), ("parameter", 96)]


def test_a_loop_moves_its_bytes_each_turn() -> None:
    table = cost_of_onnx(loop([numpy_helper.from_array(np.int64(5), "trips")]))
    assert {t.kind: t.nbytes for t in table.layers[1].transfers} == {"input": 160, "output": 160, "parameter": 320}


def test_peak_memory_is_the_largest_sum_of_live_tensors() -> None:
    # x (64 B) -> a (64 B) -> b (16 B); x is still needed by the sum at the end
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("ReduceSum", ["a", "axis"], ["b"], name="second", keepdims=1),
        helper.make_node("Add", ["x", "b"], ["y"], name="third"),
    ]
    table = cost_of_onnx(graph_of(nodes, {"x": [4, 4]}, ["y"], [values("axis", 1)]))
    assert table.peak_activation_bytes == 64 + 64 + 16  # x, a and b
    assert table.layers[table.peak_layer].name == "second"


def test_a_body_adds_to_what_lives_around_it() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="r"), helper.make_node("Tanh", ["r"], ["a"], name="t")]
    inside = body("inside", nodes, ["a"])
    other = body("other", [helper.make_node("Identity", ["x"], ["b"])], ["b"])
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=inside, else_branch=other)
    graph = helper.make_graph(
        [node], "graph",
        [helper.make_tensor_value_info("x", FLOAT, [4]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )  # fmt: skip
    table = cost_of_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert table.peak_activation_bytes == (16 + 1 + 16) + 32  # x, c and y; r and a within


def test_bounds_statistics_and_shapes_are_no_parameters() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Clip", ["n", "low", "high"], ["c"]),
        helper.make_node("Reshape", ["c", "target"], ["f"]),
        helper.make_node("Mul", ["f", "half"], ["y"]),
    ]
    stored = [weight(n, 3) for n in "sbmv"] + [
        numpy_helper.from_array(np.float32(0), "low"), numpy_helper.from_array(np.float32(6), "high"),
        values("target", 0, -1), numpy_helper.from_array(np.float32(0.5), "half"),
    ]  # fmt: skip
    table = cost_of_onnx(graph_of(nodes, {"x": [1, 3, 2, 2]}, ["y"], stored))
    assert table.parameters == 6
    assert [layer.type for layer in table.layers] == ["BatchNormalization", "Clip", "Reshape", "Mul"]


def test_what_is_filled_or_sized_by_an_input_is_no_parameter() -> None:
    nodes = [
        helper.make_node("Expand", ["zero", "three"], ["bias"]),
        helper.make_node("CastLike", ["bias", "x"], ["same"]),
        helper.make_node("Gemm", ["x", "w", "same"], ["h"]),
        helper.make_node("Shape", ["h"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["blank"]),
        helper.make_node("Concat", ["h", "blank"], ["y"], axis=1),
    ]
    stored = [numpy_helper.from_array(np.float32(0), "zero"), values("three", 3), weight("w", 4, 3)]
    table = cost_of_onnx(graph_of(nodes, {"x": ["n", 4]}, ["y"], stored))
    assert table.parameters == 12
    assert [layer.type for layer in table.layers] == ["Gemm", "Concat"]


def test_external_data_is_not_read_and_stays_in_its_folder(tmp_path: Path) -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 64]}, ["y"], [weight("w", 64, 64)])
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    size = (tmp_path / "weights.bin").stat().st_size
    (tmp_path / "weights.bin").write_bytes(b"\xff" * size)  # not what was saved: nobody looks
    table = cost_of(path)
    assert (macs(table), table.parameters) == (2 * 64 * 64, 64 * 64)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../elsewhere.bin"
    path.write_bytes(model.SerializeToString())
    (tmp_path.parent / "elsewhere.bin").write_bytes(b"\0" * size)
    with pytest.raises(UnsafeArtifactError):
        cost_of(path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07garbage")
    with pytest.raises(UnsupportedModelError):
        cost_of(path)


def test_huge_shapes_are_only_numbers() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["c"]),
        helper.make_node("Expand", ["x", "huge"], ["e"]),
        helper.make_node("Add", ["e", "c"], ["y"], name="add"),
    ]
    table = cost_of_onnx(graph_of(nodes, {"x": [1]}, ["y"], [values("huge", 2**40, 2**40)]))
    assert table.layers[-1].flops == {"elementwise": 2**80}


@pytest.mark.parametrize(
    ("node", "shapes"),
    [
        (("GatherND", {}), {"x": [2, 1 << 50, 2], "i": [2, 1, -3]}),  # crashed ONNX's own inference
        (("MaxPool", {"kernel_shape": [2, 2], "strides": [0, 0]}), {"x": [1, 1, 8, 8]}),
        (("SpaceToDepth", {"blocksize": 0}), {"x": [1, 1, 8, 8]}),
        (("Transpose", {"perm": [7, 1]}), {"x": [2, 2]}),
        (("Split", {"num_outputs": 1 << 50}), {"x": [2, 2]}),
        (("Scan", {}), {"x": [2, 2]}),
        (("If", {}), {"x": [2, 2]}),
    ],
)
def test_malformed_nodes_are_refused_or_not_counted(node: Any, shapes: dict[str, Any]) -> None:
    model = graph_of([helper.make_node(node[0], list(shapes), ["y"], **node[1])], shapes, ["y"])
    if node[0] in {"If", "Scan"}:
        with pytest.raises(UnsupportedModelError, match="malformed"):
            cost_of_onnx(model)
    else:
        assert cost_of_onnx(model).layers[0].outputs[0].shape is None


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "here", "Twice", ["a"], ["c"],
        [helper.make_node("MatMul", ["a", "a"], ["b"]), helper.make_node("MatMul", ["b", "a"], ["c"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    model = graph_of([helper.make_node("Twice", ["x"], ["y"], domain="here")], {"x": [3, 3]}, ["y"])
    model.opset_import.append(helper.make_opsetid("here", 1))
    model.functions.append(function)
    assert macs(cost_of_onnx(model)) == 54
