"""Which events are the calls of layers: operators of graphs, marks of modules."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import numpy as np
import pytest

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.backends.pytorch_calls import ModuleCalls
from mlscope_lab.testing import check_layer_trace
from tests.backends.pytorch_traces import Net, check_operators, operators, vector

torch = pytest.importorskip("torch", reason="needs PyTorch")


def opened_graph(kind, level, folder, **export):
    """Open `Net` as a script or as an exported program; returns the session and its feeds."""
    options = SessionOptions(threads=1, level=level)
    if kind == "scripted":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.script(Net().eval())
        return PyTorchBackend().wrap(module, vector(), options), vector()
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 4),), **export), path)
    files = ModelFiles(name="net", format="torch_exported", path=path, digest="sha256:" + "0" * 64, trusted=True)
    session = PyTorchBackend().open(files, options)
    return session, {session.inputs[0].name: vector()["x"]}


def graph_trace(kind, level, folder, **export):
    session, feeds = opened_graph(kind, level, folder, **export)
    with session:
        session.predict(feeds)
        session.begin_trace()
        for _ in range(3):
            session.predict(feeds)
        trace = session.end_trace()
    check_layer_trace(trace, iterations=3)
    return trace


@pytest.mark.parametrize("kind", ["scripted", "exported"])
@pytest.mark.parametrize("level", ["operator", "kernel"])
def test_graphs(kind, level, tmp_path):
    trace = graph_trace(kind, level, tmp_path)
    check_operators(trace)
    called = ["aten::linear", "aten::relu", "aten::linear#2", "aten::tanh", "aten::mul"]
    assert list(trace.layers.name)[2:] == called
    assert all(layer.startswith("aten::") for name, layer in operators(trace, 2) if layer and name.startswith("aten::"))
    assert ("aten::addmm", "aten::linear#2") in operators(trace, 2)
    assert any(name == "aten::detach" and not layer for name, layer in operators(trace))
    assert trace.layers.input_shapes[2] == "float32[2,4];float32[8,4];float32[8]"


@pytest.mark.parametrize("level", ["layer", "operator"])
def test_operators_of_an_exported_graph_know_their_module(level, tmp_path):
    trace = graph_trace("exported", level, tmp_path)
    assert trace.layers.scope[2:] == ("block.0", "block.1", "fc", "", "")
    assert trace.layers.output_shapes[2:] == ("float32[2,8]", "float32[2,8]", "float32[2,3]", *["float32[2,3]"] * 2)
    assert trace.layers.activation_bytes[2] == 2 * 8 * 4
    assert trace.unavailable == {}


def test_lengths_that_depend_on_the_inputs_are_not_made_up(tmp_path):
    trace = graph_trace("exported", "layer", tmp_path, dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert trace.layers.scope[2:5] == ("block.0", "block.1", "fc")
    assert trace.layers.output_shapes[2] == ""
    assert "shapes" in trace.unavailable


@pytest.mark.parametrize("how", ["the package", "torch", "neither"])
def test_ranges_for_tools_that_watch_from_outside(how, monkeypatch):
    pushed, depth = [], [0]

    def push(label):
        pushed.append(label)
        depth[0] += 1

    def pop():
        depth[0] -= 1

    package = types.ModuleType("nvtx")
    package.push_range, package.pop_range = push, pop
    package.__spec__ = importlib.machinery.ModuleSpec("nvtx", None)
    monkeypatch.setitem(sys.modules, "nvtx", package if how == "the package" else None)
    if how != "the package":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: how == "torch")
        monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
        monkeypatch.setattr(torch.cuda.nvtx, "range_pop", pop)
    module = Net().eval()
    expected = module(torch.ones(2, 4))
    calls = ModuleCalls(module, nvtx=True)
    calls.attach()
    try:
        np.testing.assert_array_equal(module(torch.ones(2, 4)).detach(), expected.detach())
        assert pushed == ([] if how == "neither" else ["Net", "block", "block.0", "block.1", "fc"])
        with pytest.raises(RuntimeError):
            module(torch.ones(2, 5))
        assert depth == [0]
    finally:
        calls.detach()
    assert not any("forward" in part.__dict__ for part in module.modules())
