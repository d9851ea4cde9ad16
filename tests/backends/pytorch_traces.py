"""What the tests of PyTorch's deeper traces share: a small network, and what holds for every trace of operators."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn


def vector(value=1.0, n=2):
    return {"x": np.full((n, 4), value, np.float32)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return torch.tanh(self.fc(self.block(x))) * 2


def check_operators(trace):
    """Check that operators lie within their parents, their layers and their iterations, on one clock."""
    table = trace.events["operators"]
    columns = table.columns
    start, end = columns["start_ns"], columns["start_ns"] + columns["duration_ns"]
    slack = trace.clock_error_ns
    parent = columns["parent_index"]
    aten = np.array([table.tables["category"][c] == "cpu_op" for c in columns["category_code"]], dtype=bool)
    inner = (parent >= 0) & aten
    assert (start[inner] >= start[parent[inner]]).all()
    assert (end[inner] <= end[parent[inner]]).all()
    iteration, layer = columns["iteration"], columns["layer_index"]
    placed = np.flatnonzero((layer >= 0) & aten)
    assert (iteration[placed] >= 0).all()
    owner = layer[placed]
    functional = np.array(trace.layers.type)[owner] == "functional"
    outer = np.where(functional, np.array(trace.layers.parent)[owner], owner)
    layer_start = trace.start_ns[iteration[placed], outer]
    layer_end = layer_start + trace.duration_ns[iteration[placed], outer]
    assert (layer_start >= 0).all(), "an operator in a layer that did not run"
    assert (start[placed] >= layer_start - slack).all()
    assert (end[placed] <= layer_end + slack).all()


def operators(trace, iteration=0, category="cpu_op"):
    """Return [(name, layer)] of an iteration, outermost first."""
    table = trace.events["operators"]
    columns = table.columns
    return [
        (table.tables["name"][columns["name_code"][row]], layer_name(trace, columns["layer_index"][row]))
        for row in np.flatnonzero(columns["iteration"] == iteration)
        if table.tables["category"][columns["category_code"][row]] == category
    ]


def layer_name(trace, index):
    return trace.layers.name[index] if index >= 0 else ""
