"""The ONNX outline against the onnx package's own reading, and against bytes that are no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.backends.onnxruntime_graph import Node, Outline, precision_of, read_outline, sources_of
from mlscope_lab.errors import UnsupportedModelError

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SQUEEZENET = (LIGHT / "light_squeezenet.onnx").read_bytes()


@pytest.mark.parametrize("model", ["squeezenet", "inception_v1", "zfnet512"])
def test_outline_agrees_with_onnx(model):
    path = LIGHT / f"light_{model}.onnx"
    graph = onnx.load(path).graph
    outline = read_outline(path, model)
    assert [(n.name, n.op, list(n.inputs), list(n.outputs)) for n in outline.nodes] == [
        (n.name, n.op_type, list(n.input), list(n.output)) for n in graph.node
    ]
    named = [w for w in outline.weights if w.name in {t.name for t in graph.initializer}]
    assert [(w.name, w.elements) for w in named] == [(t.name, int(np.prod(t.dims))) for t in graph.initializer]


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "uint16", "bool"]
)
@pytest.mark.parametrize("where", ["initializer", "constant", "body"])
def test_weights_are_found_wherever_they_are(tmp_path, dtype, where):
    tensor = numpy_helper.from_array(np.zeros((3, 5, 7), dtype), "w")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    nodes, initializers = [constant], []
    if where == "initializer":
        nodes, initializers = [helper.make_node("Identity", ["w"], ["c"])], [tensor]
    elif where == "body":
        body = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", tensor.data_type, None)])
        nodes = [helper.make_node("If", ["q"], ["y"], then_branch=body, else_branch=body)]
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", [], [], initializers)).SerializeToString())
    outline = read_outline(path, "m")
    assert {(w.dtype, w.elements) for w in outline.weights} == {(dtype, 105)}
    assert precision_of(outline, "float32") == (dtype if dtype != "int64" else "float32")


def test_functions_are_walked(tmp_path):
    tensor = numpy_helper.from_array(np.zeros(9, np.float16), "w")
    function = helper.make_function(
        "own", "f", [], ["c"], [helper.make_node("Constant", [], ["c"], value=tensor)], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph([helper.make_node("f", [], ["y"], domain="own")], "g", [], [])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, functions=[function]).SerializeToString())
    assert precision_of(read_outline(path, "m"), "float32") == "float16"


def test_external_locations_are_read_and_weights_are_not(tmp_path):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights/w.bin"), ("offset", "0")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [weight])).SerializeToString())
    assert [w.location for w in read_outline(path, "m").weights] == ["weights/w.bin"]


def outline_or_message(path):
    """Return the outline, or the text of our own error; anything else that is raised fails the test."""
    try:
        return read_outline(path, "m")
    except UnsupportedModelError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(SQUEEZENET) - 16))  # the last bytes are the opset, behind the graph
def test_truncated_models_are_refused(tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    path.write_bytes(SQUEEZENET[:cut])
    with pytest.raises(UnsupportedModelError, match=r"cut\.onnx is not an ONNX graph"):
        read_outline(path, "cut")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_an_outline_or_our_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    found = outline_or_message(path)
    assert isinstance(found, Outline) or "any.onnx is not an ONNX graph" in found


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(SQUEEZENET) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_gives_an_outline_or_our_error(tmp_path_factory, at, byte):
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    path.write_bytes(SQUEEZENET[:at] + bytes([byte]) + SQUEEZENET[at + 1 :])
    found = outline_or_message(path)
    assert isinstance(found, Outline) or "flipped.onnx is not an ONNX graph" in found


def test_bodies_cannot_be_nested_without_end(tmp_path):
    def field(number, payload):
        length, size = len(payload), bytearray()
        while length > 0x7F:
            size.append(length & 0x7F | 0x80)
            length >>= 7
        return bytes([number << 3 | 2]) + bytes([*size, length]) + payload

    graph = b""
    for _ in range(500):
        graph = field(1, field(5, field(6, graph)))  # graph.node.attribute.g
    path = tmp_path / "deep.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(UnsupportedModelError, match="nested deeper"):
        read_outline(path, "deep")


def test_scopes_that_are_code_are_not_run(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"], name="n")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="[__import__('os').getcwd(), 'b']")
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString())
    assert read_outline(path, "m").nodes[0].scope == ""


def node(name, op, inputs, outputs, scope=""):
    return Node(name=name, op=op, inputs=tuple(inputs), outputs=tuple(outputs), scope=scope)


BLOCK = Outline(
    nodes=[
        node("c1", "Conv", ["x", "w"], ["t1"], "block.conv1"),
        node("b1", "BatchNormalization", ["t1", "s", "b", "m", "v"], ["t2"]),
        node("r1", "Relu", ["t2"], ["t3"]),
        node("c2", "Conv", ["t3", "w"], ["t4"]),
        node("c3", "Conv", ["x", "w"], ["t5"]),
        node("a1", "Add", ["t4", "x"], ["t6"]),
        node("a2", "Add", ["t6", "t5"], ["t7"]),
        node("g1", "Gemm", ["x", "w"], ["t8"], "head"),
        node("r2", "Relu", ["t8"], ["t9"]),
    ]
)


@pytest.mark.parametrize(
    ("name", "op", "sources", "scope"),
    [
        ("t3_nchwc", "Conv", "c1;b1;r1", "block.conv1"),
        ("t1_nchwc", "Conv", "c1", "block.conv1"),
        ("t6_nchwc", "Conv", "c2;a1", ""),
        ("t7_nchwc", "Conv", "", ""),  # a sum of two convolutions: which one was fused is not in the name
        ("c1", "FusedConv", "c1;b1;r1", "block.conv1"),
        ("fused g1", "FusedGemm", "g1;r2", "head"),
        ("fused nowhere", "FusedGemm", "", ""),
        ("c2", "FusedConv", "", ""),  # no activation follows, so something else was fused
        ("c1", "Conv", "", "block.conv1"),
        ("nowhere_nchwc", "Conv", "", ""),
        ("ReorderInput", "ReorderInput", "", ""),
        ("", "Conv", "", ""),
    ],
)
def test_sources_are_told_where_names_tell(name, op, sources, scope):
    assert sources_of([name], [op], BLOCK) == ([sources], [scope])
