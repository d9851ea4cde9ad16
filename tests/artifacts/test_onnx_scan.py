from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlscope_lab.artifacts.onnx_scan import check_external_data, external_locations
from mlscope_lab.errors import UnsafeArtifactError, UnsupportedModelError

pytestmark = pytest.mark.skipif(find_spec("onnx") is None, reason="needs onnx")


def tensor(name: str, **external: str):
    import onnx

    made = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[2])
    made.data_location = onnx.TensorProto.EXTERNAL
    for key, value in external.items():
        made.external_data.add(key=key, value=value)
    return made


def model_with(*initializers, nodes=(), functions=()):
    from onnx import TensorProto, helper

    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"]), *nodes], "g", [], [out], list(initializers))
    return helper.make_model(graph, functions=list(functions))


def save(model, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_model_with_its_data_beside_it(tmp_path):
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = model_with(numpy_helper.from_array(np.arange(4096, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert external_locations(tmp_path / "m.onnx") == {("m.data", 0, 16384)}
    check_external_data(tmp_path / "m.onnx")
    (tmp_path / "m.data").write_bytes(b"short")
    with pytest.raises(UnsafeArtifactError, match="of a file of 5"):
        check_external_data(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(UnsupportedModelError, match="is not beside it"):
        check_external_data(tmp_path / "m.onnx")


def test_tensors_are_found_wherever_a_model_can_hold_one(tmp_path):
    from onnx import helper

    deep = helper.make_graph([], "deep", [], [], [tensor("d", location="deep")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("c", location="attribute")),
        helper.make_node("If", ["c"], ["o"], then_branch=deep, else_branch=deep),
    ]
    sparse = helper.make_sparse_tensor(tensor("v", location="values"), tensor("i", location="indices"), [4])
    inner = helper.make_node("Constant", [], ["z"], value=tensor("f", location="function"))
    function = helper.make_function("local", "F", [], ["z"], [inner], [helper.make_opsetid("", 21)])
    model = model_with(tensor("w", location="initializer"), nodes=nodes, functions=[function])
    model.graph.sparse_initializer.append(sparse)
    model.training_info.add().algorithm.initializer.append(tensor("t", location="training"))
    found = {name for name, _, _ in external_locations(save(model, tmp_path / "m.onnx"))}
    assert found == {"deep", "attribute", "values", "indices", "function", "initializer", "training"}


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret", "sub/../../secret", "..\\secret", "C:\\secret", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_data_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(8))
    (tmp_path / "m").mkdir()
    path = save(model_with(tensor("w", location=location)), tmp_path / "m" / "m.onnx")
    with pytest.raises(UnsafeArtifactError, match="outside the model's folder"):
        check_external_data(path)


def test_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    (tmp_path / "m").mkdir()
    path = save(model_with(tensor("w", location="w.data")), tmp_path / "m" / "m.onnx")
    (tmp_path / "m" / "w.data").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeArtifactError, match="is a link that leaves"):
        check_external_data(path)
    (tmp_path / "m" / "w.data").unlink()
    (tmp_path / "m" / "real").write_bytes(bytes(8))
    (tmp_path / "m" / "w.data").symlink_to("real")
    check_external_data(path)


@pytest.mark.parametrize("changes", [{"offset": "-4"}, {"offset": "8", "length": "8"}, {"length": "-1"}])
def test_ranges_outside_the_file_are_refused(tmp_path, changes):
    (tmp_path / "w.data").write_bytes(bytes(8))
    path = save(model_with(tensor("w", location="w.data", **changes)), tmp_path / "m.onnx")
    with pytest.raises(UnsafeArtifactError, match="of a file of 8"):
        check_external_data(path)


def test_second_location_of_one_tensor_cannot_hide(tmp_path):
    (tmp_path / "w.data").write_bytes(bytes(8))
    for order in (("w.data", "/etc/passwd"), ("/etc/passwd", "w.data")):
        twice = tensor("w", location=order[0])
        twice.external_data.add(key="location", value=order[1])
        with pytest.raises(UnsafeArtifactError, match="/etc/passwd"):
            check_external_data(save(model_with(twice), tmp_path / "m.onnx"))


def field(number: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def test_deep_nesting_is_refused(tmp_path):
    graph = b""
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "m.onnx").write_bytes(field(7, graph))
    with pytest.raises(UnsupportedModelError, match="nested deeper"):
        external_locations(tmp_path / "m.onnx")


@given(cut=st.integers(0, 400), flip=st.tuples(st.integers(0, 400), st.integers(1, 255)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_whatever_onnx_itself_reads_is_read_alike(tmp_path, cut, flip):
    """The reader never misses external data that onnx's own parser sees in damaged bytes."""
    import onnx
    from google.protobuf.message import DecodeError

    data = bytearray(
        model_with(tensor("w", location="w.data", offset="0"), tensor("v", location="v.data")).SerializeToString()
    )
    data[flip[0] % len(data)] ^= flip[1]
    data = data[: len(data) - cut % len(data)]
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    try:
        parsed = onnx.ModelProto.FromString(bytes(data))
    except (DecodeError, UnicodeDecodeError):
        parsed = None
    seen = {
        entry.value
        for t in (parsed.graph.initializer if parsed is not None else ())
        for entry in t.external_data
        if entry.key == "location"
    }
    try:
        found = {name for name, _, _ in external_locations(path)}
    except UnsupportedModelError:
        return
    assert seen <= found
