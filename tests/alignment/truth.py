"""What EfficientNet-Lite0's values are in each framework, as its exporters recorded it; the aligner reads none of this.

The ONNX file says of each node from which torch module it came (``pkg.torch.onnx.name_scopes``), and names weights as
torch does. The conversion to TensorFlow keeps the nodes' names as scopes. ONNX Runtime names a fused node by the value
that it writes. So every value becomes a value of the ONNX file, or nothing. That the layers are the same is confirmed
by their weights: batch normalisation folded in float64.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from mlscope_lab.trace.graph import Graph

__all__ = ["Truth"]

_COMPUTE = ("Conv", "Gemm", "MatMul")


class Truth:
    """Values and layers of the ONNX file.

    Parameters
    ----------
    path
        The exported file.
    """

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.writer = {value: node.name for node in graph.node for value in node.output}
        self.nodes = {node.name: node for node in graph.node}
        self.weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.layers = [node.name for node in graph.node if node.op_type in _COMPUTE]
        # a module that is called twice writes twice; the order of calls tells which is which
        self._by_scope: dict[tuple[str, int], str] = {}
        seen: dict[str, int] = {}
        for node in graph.node:
            recorded = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
            if recorded is None:
                continue
            scope = ast.literal_eval(recorded)[-2]
            self._by_scope[scope, seen.get(scope, 0)] = node.name
            seen[scope] = seen.get(scope, 0) + 1

    def values(self, graph: Graph, backend: str) -> dict[int, str]:
        """Return the node of the file that computes each value of a side, by position; "" for the input."""
        found = dict.fromkeys(graph.inputs.values(), "")
        calls: dict[str, int] = {}
        for operation in graph.operations:
            node = None
            if set(operation.kinds) <= {"identity", "layout"} and operation.inputs[0] in found:
                found[operation.outputs[0]] = found[operation.inputs[0]]
                continue
            if backend == "pytorch":
                node = self._of_torch(operation.scope, operation.kinds, calls)
            elif backend == "tensorflow":
                node = next((part for part in operation.name.split("/") if part in self.nodes), None)
            else:
                names = (operation.name.removesuffix("_nchwc"), *(graph.values[v].name for v in operation.outputs))
                node = next((self.writer[n] for n in names if n in self.writer), None)
                node = operation.name if node is None and operation.name in self.nodes else node
                if node in self.layers and len(operation.inputs) > 1:
                    # a convolution with a sum in it writes what the addition after it wrote
                    (node,) = (n.name for n in self.nodes.values() if set(self.nodes[node].output) & set(n.input))
            if node is not None:
                # of several operations that a node became the last one writes its value
                found = {value: of for value, of in found.items() if of != node}
                found[operation.outputs[0]] = node
        return found

    def _of_torch(self, scope: str, kinds: tuple[str, ...], calls: dict[str, int]) -> str | None:
        if kinds[0] in {"convolution", "padding"}:
            return None  # followed by batch normalisation, which the file has folded
        call = calls.get(scope, 0)
        calls[scope] = call + 1
        return self._by_scope.get((scope, call))

    def holds(self, graph: Graph, backend: str) -> dict[int, set[str]]:
        """Return the layers of the file that each computing operation of a side does, by position."""
        found: dict[int, set[str]] = {}
        named = {node.input[1].rpartition(".")[0]: name for name, node in self.nodes.items() if name in self.layers}
        for i, operation in enumerate(graph.operations):
            if not {"convolution", "product"} & set(operation.kinds):
                continue
            if backend == "pytorch":
                layers = {named[operation.scope]} if operation.scope in named else set()
            else:
                parts = {p for s in (operation.name, *operation.sources) for p in s.split("/")}
                layers = parts & set(self.layers)
                if backend == "onnxruntime" and not layers:
                    # the value that it writes is made of the layer's by what is fused behind it
                    node = self.writer[operation.name.removesuffix("_nchwc")]
                    while node not in self.layers:
                        node = self.writer[self.nodes[node].input[0]]
                    layers = {node}
            found[i] = layers
        return found

    def weight_errors(self, state: Mapping[str, Any], epsilon: float) -> dict[str, float]:
        """Return for each layer the largest difference of the file's weight and torch's, folded in float64.

        Parameters
        ----------
        state
            The torch module's state dictionary, as arrays.
        epsilon
            Of its batch normalisations.
        """
        errors = {}
        for name in self.layers:
            node = self.nodes[name]
            weight_name = node.input[1]
            own = np.asarray(state[weight_name], np.float64)
            recorded = {p.key: p.value for p in node.metadata_props}["pkg.torch.onnx.name_scopes"]
            norm = ast.literal_eval(recorded)[-2]
            if f"{norm}.running_var" in state:
                part = {k: np.asarray(state[f"{norm}.{k}"], np.float64) for k in ("weight", "running_var")}
                scale = part["weight"] / np.sqrt(part["running_var"] + epsilon)
                own = own * scale.reshape(-1, *[1] * (own.ndim - 1))
            errors[name] = float(np.abs(own - self.weights[weight_name]).max())
        return errors
