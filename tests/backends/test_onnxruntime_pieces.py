"""ONNX files taken apart: order, constants, names, types, and what is no model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
from onnx import helper  # noqa: E402

from mlscope_lab.backends.onnxruntime_blocks import DOMAIN, find_blocks  # noqa: E402
from mlscope_lab.backends.onnxruntime_pieces import read_pieces, type_proto  # noqa: E402
from mlscope_lab.errors import UnsupportedModelError  # noqa: E402
from tests.backends.onnx_models import constant, floats, save  # noqa: E402


def labels(pieces):
    return [piece.label for piece in pieces.pieces]


class TestOrder:
    """Constants come when they are needed; the rest as asked for, as far as edges allow."""

    def test_constants_come_right_before_their_first_reader(self, tmp_path):
        nodes = [
            helper.make_node("ConstantOfShape", ["shape"], ["w0"], name="zeros"),
            helper.make_node("Exp", ["w0"], ["w"], name="ones"),
            helper.make_node("ConstantOfShape", ["shape"], ["never"], name="unread"),
            helper.make_node("Relu", ["x"], ["r"], name="bend"),
            helper.make_node("Mul", ["r", "w"], ["m"], name="scale"),
            helper.make_node("Add", ["m", "w"], ["y"], name="shift"),
        ]
        files = save(tmp_path, nodes, [floats("x", 3)], [floats("y")], initializers=[constant("shape", np.int64([3]))])
        pieces = read_pieces(files.path, "m")
        assert labels(pieces) == ["bend", "zeros", "ones", "scale", "shift"]
        assert [piece.fixed for piece in pieces.pieces] == [False, True, True, False, False]

    def test_random_numbers_and_outputs_are_no_constants(self, tmp_path):
        nodes = [
            helper.make_node("RandomNormal", [], ["n"], name="dice", shape=[3]),
            helper.make_node("ConstantOfShape", ["shape"], ["z"], name="zeros"),
            helper.make_node("Add", ["x", "n"], ["y"], name="shift"),
        ]
        files = save(
            tmp_path, nodes, [floats("x", 3)], [floats("y"), floats("z")],
            initializers=[constant("shape", np.int64([3]))],
        )  # fmt: skip
        assert not any(piece.fixed for piece in read_pieces(files.path, "m").pieces)

    @given(st.permutations(range(6)))
    def test_any_wish_gives_an_order_that_can_run(self, tmp_path_factory, wish):
        edges = [("x", "a"), ("x", "b"), ("a", "c"), ("b", "d"), ("c", "e"), ("d", "f")]
        nodes = [helper.make_node("Relu", [source], [target], name=target) for source, target in edges]
        files = save(tmp_path_factory.mktemp("model"), nodes, [floats("x", 3)], [floats("e"), floats("f")])
        order = {target: place for (_, target), place in zip(edges, wish, strict=True)}
        found = labels(read_pieces(files.path, "m", order))
        assert sorted(found) == list("abcdef")
        done = {"x"}
        for name in found:
            source = next(source for source, target in edges if target == name)
            assert source in done
            done.add(name)
        first = min("ab", key=order.__getitem__)
        assert found[0] == first


class TestNames:
    """Branches may use the same names."""

    def test_equal_names_in_two_branches(self, tmp_path):
        def branch(op):
            nodes = [helper.make_node(op, ["x"], ["t"], name="one"), helper.make_node("Abs", ["t"], ["u"], name="two")]
            return helper.make_graph(nodes, op, [], [floats("u")])

        node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("Neg"), else_branch=branch("Relu"))
        flag = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
        pieces = read_pieces(save(tmp_path, [node], [floats("x", 2), flag], [floats("y")]).path, "m")
        assert sorted(labels(pieces)) == ["one", "one#2", "two", "two#2"]
        written = [name for piece in pieces.pieces for name in piece.writes]
        assert sorted(written) == ["t", "t#2", "y", "y"]
        conditions = {piece.node.op_type: piece.conditions for piece in pieces.pieces if piece.node.op_type != "Abs"}
        assert conditions == {"Neg": (("c", True),), "Relu": (("c", False),)}


class TestTypes:
    """ONNX Runtime's names of types."""

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("tensor(float)", "tensor_type"), ("seq(tensor(int64))", "sequence_type"),
            ("optional(seq(tensor(string)))", "optional_type"), ("map(int64,tensor(float))", "map_type"),
            ("sparse_tensor(double)", "sparse_tensor_type"), ("seq(map(string,tensor(float)))", "sequence_type"),
        ],
    )  # fmt: skip
    def test_known(self, text, field):
        assert type_proto(text).WhichOneof("value") == field

    @pytest.mark.parametrize("text", ["tensor(quaternion)", "opaque", "", "map(float128,tensor(float))"])
    def test_unknown(self, text):
        with pytest.raises(UnsupportedModelError, match="has no ONNX type"):
            type_proto(text)


class TestBroken:
    """What is no model is refused in our words."""

    def test_no_protobuf(self, tmp_path):
        path = tmp_path / "broken.onnx"
        path.write_bytes(b"\xff" * 40)
        with pytest.raises(UnsupportedModelError, match=r"broken.onnx cannot be read"):
            read_pieces(path, "m")

    def test_a_node_that_reads_what_nothing_writes(self, tmp_path):
        files = save(tmp_path, [helper.make_node("Relu", ["ghost"], ["y"])], [floats("x", 2)], [floats("y")])
        with pytest.raises(UnsupportedModelError, match="'y' reads 'ghost', which nothing writes"):
            read_pieces(files.path, "m")

    def test_branches_that_do_not_fit(self, tmp_path):
        branch = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "b", [], [floats("t")])
        flag = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
        for inputs, outputs in ((["c"], ["y", "z"]), ([], ["y"])):
            node = helper.make_node("If", inputs, outputs, then_branch=branch, else_branch=branch)
            files = save(tmp_path, [node], [floats("x", 2), flag], [floats("y")])
            with pytest.raises(UnsupportedModelError, match="has an If whose branches do not fit"):
                read_pieces(files.path, "m")

    def test_blocked_nodes_without_arguments(self, tmp_path):
        nodes = [
            helper.make_node("Conv", ["x"], ["a"], domain=DOMAIN, group=4),
            helper.make_node("ReorderOutput", [], ["b"], domain=DOMAIN),
            helper.make_node("MaxPool", ["a"], [], domain=DOMAIN),
        ]
        files = save(tmp_path, nodes, [floats("x", 2)], [floats("a"), floats("b")], domains={DOMAIN: 1})
        assert find_blocks(read_pieces(files.path, "m")).names == {"a"}
