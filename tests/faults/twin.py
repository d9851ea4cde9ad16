"""A torch module that computes an ONNX graph, a submodule a node, so that one graph runs in a third framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Twin"]

_TYPES = {TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16}


def _symmetric(pads: list[int]) -> bool:
    return pads[:2] == pads[2:]


class _Convolution(nn.Module):
    def __init__(self, pads: list[int], strides: list[int], group: int, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pads, self.strides, self.group = pads, strides, group
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.pads
        if _symmetric(self.pads):
            return functional.conv2d(x, self.weight, self.bias, self.strides, (top, left), 1, self.group)
        x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, self.weight, self.bias, self.strides, 0, 1, self.group)


class _MaxPool(nn.Module):
    def __init__(self, kernel: list[int], pads: list[int], strides: list[int]) -> None:
        super().__init__()
        self.kernel, self.pads, self.strides = kernel, pads, strides

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.pads
        if _symmetric(self.pads) and all(2 * p <= k for p, k in zip(self.pads[:2], self.kernel, strict=True)):
            return functional.max_pool2d(x, self.kernel, self.strides, (top, left))
        x = functional.pad(x, (left, right, top, bottom), value=float("-inf"))
        return functional.max_pool2d(x, self.kernel, self.strides)


class _BatchNormalization(nn.BatchNorm2d):
    def __init__(self, epsilon: float, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> None:
        super().__init__(len(scale), eps=epsilon)
        with torch.no_grad():
            self.weight.copy_(scale)
            self.bias.copy_(bias)
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)


class _Product(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class _Call(nn.Module):
    """A function without weights of its own."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(*x)


def _total(*x: Tensor) -> Tensor:
    total = x[0]
    for other in x[1:]:
        total = total + other
    return total


def _module(node: NodeProto, constants: dict[str, np.ndarray]) -> tuple[nn.Module, list[str]]:
    """Return what computes a node, and which of its inputs it is called with."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = list(node.input)
    tensors = [torch.from_numpy(np.array(constants[n])) if n in constants else None for n in inputs]
    op, first = node.op_type, inputs[:1]
    pads, strides = list(attributes.get("pads", [0, 0, 0, 0])), list(attributes.get("strides", [1, 1]))
    if op == "Conv":
        bias = tensors[2] if len(tensors) > 2 else None
        return _Convolution(pads, strides, attributes.get("group", 1), tensors[1], bias), first
    if op == "BatchNormalization":
        return _BatchNormalization(attributes.get("epsilon", 1e-5), *tensors[1:5]), first
    if op == "Gemm":
        weight = tensors[1] if attributes.get("transB") else tensors[1].T.contiguous()
        return _Product(weight, tensors[2] if len(tensors) > 2 else None), first
    if op == "MaxPool":
        return _MaxPool(list(attributes["kernel_shape"]), pads, strides), first
    if op == "AveragePool":
        return nn.AvgPool2d(attributes["kernel_shape"], strides, pads[:2], count_include_pad=False), first
    plain = {
        "Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Dropout": nn.Dropout,
        "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1), "Softmax": lambda: nn.Softmax(dim=1),
        "LeakyRelu": lambda: nn.LeakyReLU(attributes.get("alpha", 0.01)),
        "Elu": lambda: nn.ELU(attributes.get("alpha", 1.0)),
    }  # fmt: skip
    if op in plain:
        return plain[op](), first
    if op in ("Mul", "Add"):
        function = torch.mul if op == "Mul" else torch.add
        if tensors[1] is not None:
            value = tensors[1]
            return _Call(lambda x: function(x, value)), first
        return _Call(function), inputs
    functions = {
        "Concat": lambda *x: torch.cat(x, attributes["axis"]),
        "Sum": _total,
        "Transpose": lambda x: x.permute(*attributes["perm"]),
        "Cast": lambda x: x.to(_TYPES[attributes["to"]]),
    }
    if op in functions:
        return _Call(functions[op]), inputs
    if op == "Reshape":
        shape = [int(d) for d in constants[inputs[1]]]
        return _Call(lambda x: x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(shape)])), first
    raise NotImplementedError(f"{op} of node '{node.name}'")


class Twin(nn.Module):
    """An ONNX graph of one input and one output as a torch module; each node's module has the node's name."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        graph = model.graph
        constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self._input = next(i.name for i in graph.input if i.name not in constants)
        self._output = graph.output[0].name
        self._steps: list[tuple[str, list[str], str]] = []
        for node in graph.node:
            module, inputs = _module(node, constants)
            self.add_module(node.name, module)
            self._steps.append((node.name, inputs, node.output[0]))
        last = {name: index for index, (_, inputs, _) in enumerate(self._steps) for name in inputs}
        self._done = [[n for n in inputs if last[n] == i] for i, (_, inputs, _) in enumerate(self._steps)]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        values = {self._input: x}
        for (name, inputs, output), done in zip(self._steps, self._done, strict=True):
            values[output] = self.get_submodule(name)(*[values[n] for n in inputs])
            for gone in set(done):
                del values[gone]
        return values[self._output]
