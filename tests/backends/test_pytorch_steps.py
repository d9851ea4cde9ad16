"""Running PyTorch modules operator by operator."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.backends.pytorch_dispatch import kinds_of
from mlscope_lab.errors import InputError, SessionError, UnsupportedModelError
from mlscope_lab.testing import StepperContract

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class ConvNet(nn.Module):
    """Convolutions with a residual, an activation in place, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(x)
        return self.fc(self.drop(self.pool(x).flatten(1)))


class Shared(nn.Module):
    """One layer called twice, several outputs of several operators, integers and booleans."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        y = self.fc(torch.relu(self.fc(x)))
        a, b = y.split(4, 1)
        first, *_ = y.unbind(1)
        values, order = torch.topk(y, 3)
        mask = a > b
        positions = torch.arange(4).to(torch.float32)
        mixed = torch.where(mask, a * positions, b)
        return {"mixed": mixed, "first": first, "order": order, "values": values, "mask": mask}


class InPlace(nn.Module):
    """Views of memory that is written to through others."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 2.0))

    def forward(self, x):
        y = x * self.scale
        rows = y.view(-1)
        tail = y[:, 3:]
        y[:, 0] = 5.0
        y[:, 1:3].mul_(-1)
        tail.add_(1)
        flipped = y.t()
        buffer = torch.zeros(4, 6)
        buffer[1] = rows[:6]
        buffer[2:].copy_(y[:2])
        x.add_(1)
        buffer.transpose_(0, 1)
        return buffer @ y + flipped.sum() + x.sum() + rows.max()


class Attention(nn.Module):
    """A transformer encoder: PyTorch's fused path, and the same layer unfused."""

    def __init__(self):
        super().__init__()
        self.fused = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.query = nn.Linear(16, 48)

    def forward(self, x):
        x = self.fused(x)
        q, k, v = self.query(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + attended.transpose(1, 2).reshape(x.shape)


class Recurrent(nn.Module):
    """Recurrent layers, whose operators return several tensors."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0][:, -1]


class HalfInside(nn.Module):
    """bfloat16, float16, complex and double values on the way."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6).to(torch.bfloat16)

    def forward(self, x):
        y = self.fc(x.to(torch.bfloat16)).half().double()
        z = torch.fft.fft(y.float())
        return (z * z.conj()).real + z.abs()


MODULES = {
    "convolutions": (ConvNet, (2, 3, 8, 8)),
    "shared": (Shared, (4, 8)),
    "in place": (InPlace, (4, 6)),
    "attention": (Attention, (2, 5, 16)),
    "recurrent": (Recurrent, (2, 7, 4)),
    "types": (HalfInside, (3, 6)),
}


def make(build):
    torch.manual_seed(0)
    return build().eval()


class Contract(StepperContract):
    @pytest.fixture
    def backend(self):
        return PyTorchBackend()


class TestEager(Contract):
    @pytest.fixture(params=MODULES)
    def live(self, request):
        build, shape = MODULES[request.param]
        return make(build), {"x": array(*shape)}


class TestExported(Contract):
    @pytest.fixture(params=["convolutions", "shared", "attention"])
    def live(self, request):
        build, shape = MODULES[request.param]
        feeds = {"x": array(*shape)}
        return torch.export.export(make(build), (torch.from_numpy(feeds["x"]),)).module(), feeds


class TestScripted(Contract):
    @pytest.fixture(params=["convolutions", "in place", "recurrent"])
    def live(self, request):
        build, shape = MODULES[request.param]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.script(make(build)), {"x": array(*shape)}
