"""Optimised nodes traced back to published ones, by names alone."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")
from onnx import helper

from mlscope_lab.backends.onnxruntime_graph import Node, Outline, Weight
from mlscope_lab.backends.onnxruntime_origins import origins_of, places_of
from mlscope_lab.backends.onnxruntime_pieces import Piece


def node(op, inputs, outputs, name="", scope=""):
    return Node(name=name or op.lower(), op=op, inputs=tuple(inputs), outputs=tuple(outputs), scope=scope)


def piece(op, inputs, outputs, name, constants=("w", "b"), **attributes):
    proto = helper.make_node(op, inputs, outputs, name=name, **attributes)
    reads = [i for i in inputs if i and i not in constants]
    positions = tuple(reads.index(i) if i in reads else -1 for i in inputs)
    return Piece(name, proto, tuple(reads), positions, tuple(constants), tuple(outputs), False)


NCHWC = "com.microsoft.nchwc"
PUBLISHED = Outline(
    nodes=[
        node("Conv", ["x", "w"], ["c"], "conv", "stem"),
        node("BatchNormalization", ["c", "b"], ["n"], "norm", "stem"),
        node("Relu", ["n"], ["r"], "bend"),
        node("Conv", ["r", "w"], ["d"], "deep"),
        node("Add", ["d", "r"], ["s"], "around"),
        node("Clip", ["s", "b"], ["e"], "cut"),
        node("Flatten", ["e"], ["y"], "flat"),
    ],
    weights=[Weight(name=name, dtype="float32", elements=4) for name in ("w", "b")],
)


def test_nodes_between_inputs_and_output():
    pieces = [
        piece("FusedConv", ["x", "w", "b"], ["r"], "conv"),
        piece("Conv", ["r", "w"], ["d"], "deep"),
        piece("Add", ["d", "r"], ["s"], "around"),
    ]
    sources, scopes = origins_of(pieces, PUBLISHED)
    assert sources == {"conv": ("conv", "norm", "bend")}
    assert scopes == {"conv": "stem"}


def test_blocked_sums_and_activations():
    pieces = [
        piece("Conv", ["x", "w", "b"], ["t0"], "r_nchwc", domain=NCHWC, activation="Relu"),
        piece("Conv", ["t0", "w", "", "t0"], ["t1"], "d_nchwc", domain=NCHWC, activation="Clip"),
        piece("ReorderOutput", ["t1"], ["e"], "ReorderOutput_token_7", domain=NCHWC, channels=4),
        piece("Flatten", ["e"], ["y"], "flat"),
    ]
    sources, _ = origins_of(pieces, PUBLISHED)
    assert sources == {"r_nchwc": ("conv", "norm", "bend"), "d_nchwc": ("deep", "around", "cut")}


def test_a_sum_without_activation_stops_there():
    pieces = [
        piece("Conv", ["x", "w", "b"], ["t0"], "r_nchwc", domain=NCHWC, activation="Relu"),
        piece("Conv", ["t0", "w", "", "t0"], ["t1"], "d_nchwc", domain=NCHWC),
    ]
    assert origins_of(pieces, PUBLISHED)[0]["d_nchwc"] == ("deep", "around")


def test_names_that_lead_past_the_inputs_tell_nothing():
    sources, scopes = origins_of([piece("Mystery", ["elsewhere"], ["s"], "made up")], PUBLISHED)
    assert sources == {}
    assert scopes == {}


def test_casts_of_half_precision_are_seen_through():
    pieces = [
        piece("Conv", ["x", "w"], ["t0"], "InsertedPrecisionFreeCast_c_nchwc", domain=NCHWC),
        piece("ReorderOutput", ["t0"], ["InsertedPrecisionFreeCast_c"], "ReorderOutput", domain=NCHWC, channels=4),
        piece("BatchNormalization", ["InsertedPrecisionFreeCast_c", "b"], ["n"], "norm"),
    ]
    assert origins_of(pieces, PUBLISHED)[0] == {"InsertedPrecisionFreeCast_c_nchwc": ("conv",)}


def test_places():
    assert places_of(PUBLISHED)["d"] == 3
