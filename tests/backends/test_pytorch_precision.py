"""PyTorch modules in other precisions: what changes, what stays, and what cannot be done."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends.base import PRECISIONS, SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
from mlscope_lab.errors import InputError, SessionError, UnsupportedModelError
from mlscope_lab.testing import StepperContract

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn

# relative L2 error of the answer of the networks below
BOUNDS = {"float64": 1e-6, "float32": 0.0, "float16": 5e-3, "bfloat16": 4e-2, "int8-dynamic": 5e-2, "int8-static": 8e-2}


class OddConv(nn.Conv2d):
    """A subclass that calls the function itself, as architectures with their own padding do."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(OddConv(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, image):
        x = self.stem(image)
        return self.fc((x + self.body(x)).mean((2, 3)))


class Dense(nn.Module):
    """Two inputs, one of them integers, and two outputs, one of them integers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, tokens, scale):
        x = self.encoder(self.lstm(self.table(tokens) * scale)[0])
        logits = self.fc(x)
        return {"logits": logits, "best": logits.argmax(-1)}


def images(seed=0):
    return {"image": np.random.default_rng(seed).standard_normal((2, 3, 16, 16)).astype(np.float32)}


def tokens():
    return {"scale": np.ones((1, 1), np.float32), "tokens": np.arange(8).reshape(2, 4)}


def make(build):
    torch.manual_seed(0)
    return build().eval()


def opened(module, feeds, precision, **options):
    return PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, precision=precision, **options))


def answer(module, feeds, precision=None, **options):
    with opened(module, feeds, precision, **options) as session:
        return session.predict(feeds)


def distance(one, other):
    return float(np.linalg.norm(one.astype(np.float64) - other) / np.linalg.norm(other.astype(np.float64)))


class TestStepping(StepperContract):
    """Sessions of other precisions can be stepped; replays and all."""

    @pytest.fixture(params=["float16", "bfloat16", "int8-dynamic", "int8-static"])
    def options(self, request):
        return SessionOptions(threads=1, precision=request.param, calibration=(images(1), images(2)))

    @pytest.fixture(autouse=True)
    def _use(self, options, monkeypatch):
        monkeypatch.setattr(type(self), "options", options)

    @pytest.fixture
    def backend(self):
        return PyTorchBackend()

    @pytest.fixture
    def live(self):
        return make(ConvNet), images()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_answer_keeps_its_type_and_is_near(precision):
    plain = answer(make(ConvNet), images())["output"]
    found = answer(make(ConvNet), images(), precision, calibration=(images(1), images()))["output"]
    assert found.dtype == np.float32
    assert distance(found, plain) <= BOUNDS[precision]
    assert np.array_equal(found, plain) == (precision == "float32")


@pytest.mark.parametrize("precision", ["float64", "float16", "bfloat16", "int8-dynamic"])
def test_integers_and_names_pass(precision):
    plain, found = answer(make(Dense), tokens()), answer(make(Dense), tokens(), precision)
    assert list(found) == ["logits", "best"]
    assert found["best"].dtype == np.int64
    assert found["logits"].dtype == np.float32
    assert distance(found["logits"], plain["logits"]) <= BOUNDS[precision] + 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_live_module_is_never_changed(precision):
    module = make(ConvNet).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = [type(part) for part in module.modules()]
    answer(module, images(), precision, calibration=(images(1),))
    assert [type(part) for part in module.modules()] == kinds
    assert module.training
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_computed_is_what_was_asked_for(precision):
    with opened(make(ConvNet), images(), precision, calibration=(images(1),)) as session:
        with session.open_stepper() as stepper:
            graph = stepper.run(images(), lambda *_: None)
            cast = [note for note in stepper.notes if "is shown as it was fed" in note]
            assert len(cast) == (precision in {"float64", "float16", "bfloat16"})
        digest = session.executable_digest
        assert session.precision == precision.partition("-")[0]
    layers = {o.type: graph.values[o.outputs[0]] for o in graph.operations if {"convolution", "product"} & {*o.kinds}}
    if precision == "int8-static":
        assert set(layers) >= {"quantized::conv2d", "quantized::linear"}
        assert all(value.dtype == "uint8" and value.quantization for value in layers.values())
        assert "aten::batch_norm" not in {o.type for o in graph.operations}, "the tool folds it"
        assert [o.scope for o in graph.operations if o.type.startswith("quantized::conv2d")] == ["stem.0", "body"]
    elif precision == "int8-dynamic":
        assert {*layers} == {"aten::conv2d", "quantized::linear_dynamic"}
    else:
        assert {value.dtype for value in layers.values()} == {precision}
    with opened(make(ConvNet), images(), None) as session:
        assert session.executable_digest != digest


def test_layers_that_stay_are_named():
    with opened(make(ConvNet), images(), "int8-dynamic") as session:
        (note,) = session.warnings
    assert note.startswith("1 layers are in 8 bits")
    assert "1 OddConv" in note
    with opened(make(Dense), tokens(), "int8-dynamic") as session:
        assert any("unfused" in note for note in session.warnings)


def test_a_root_that_is_itself_such_a_layer_is_quantised():
    feeds = {"input": np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)}
    module = make(lambda: nn.Linear(16, 8))
    plain, found = answer(module, feeds)["output"], answer(module, feeds, "int8-dynamic")["output"]
    assert 0 < distance(found, plain) < 5e-2


def test_scripted_and_exported_modules_in_floating_types():
    feeds = images()
    module = make(ConvNet)
    plain = answer(module, feeds)["output"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(module, torch.from_numpy(feeds["image"]))
    exported = torch.export.export(module, (torch.from_numpy(feeds["image"]),)).module()
    for form in (scripted, exported):
        for precision in ("float64", "float16", "bfloat16"):
            assert distance(answer(form, feeds, precision)["output"], plain) <= BOUNDS[precision]
        for precision in ("int8-dynamic", "int8-static"):
            with pytest.raises(UnsupportedModelError, match="eager modules only"):
                answer(form, feeds, precision, calibration=(feeds,))


def test_a_module_that_makes_tensors_of_its_own_type_says_so():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(x) @ torch.zeros(4, 4, dtype=torch.float32)

    feeds = {"x": np.ones((2, 6), np.float32)}
    with opened(make(Fixed), feeds, "float16") as session, pytest.raises(SessionError, match="does not run in float16"):
        session.predict(feeds)


def test_what_cannot_be_quantised_says_why():
    feeds = images()
    with pytest.raises(UnsupportedModelError, match="no linear or recurrent layer"):
        opened(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), feeds, "int8-dynamic")
    with pytest.raises(UnsupportedModelError, match="no layer that PyTorch quantises"):
        opened(nn.ReLU().eval(), feeds, "int8-static", calibration=(feeds,))
    with pytest.raises(InputError, match="calibration"):
        opened(make(ConvNet), feeds, "int8-static")
    with pytest.raises(InputError, match="lacks the input 'image'"):
        opened(make(ConvNet), feeds, "int8-static", calibration=({"picture": feeds["image"]},))

    class Branching(nn.Module):
        def forward(self, image):
            return image * 2 if image.sum() > 0 else image

    with pytest.raises(UnsupportedModelError, match="cannot trace"):
        opened(Branching().eval(), feeds, "int8-static", calibration=(feeds,))
    with pytest.raises(UnsupportedModelError, match=r"under torch\.compile"):
        opened(torch.compile(make(ConvNet), backend="eager"), feeds, "float16")


def test_a_module_that_cannot_be_copied_is_refused():
    module = make(ConvNet)
    module.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match="cannot be copied"):
        opened(module, images(), "float64")


def test_an_unknown_precision_names_those_that_are_known():
    with pytest.raises(InputError, match="int8-static"):
        SessionOptions(precision="int4")


def test_silero_makes_its_state_in_single_precision_and_says_so():
    feeds = {"x": np.zeros((1, 512), np.float32), "sr": np.array(16000)}
    with ml.load("silero-vad-torchscript", backend="pytorch", precision="float64", threads=1) as model:
        with pytest.raises(SessionError, match="does not run in float64"):
            model.session.predict(feeds)
        with model.session.open_stepper() as stepper, pytest.raises(SessionError, match="does not run in float64"):
            stepper.run(feeds, lambda *_: None)


def test_efficientnet_lite0_knows_the_cat_in_every_floating_type():
    data = pytest.importorskip("skimage.data", reason="needs scikit-image for a picture")
    resize = pytest.importorskip("skimage.transform").resize
    picture = (resize(data.chelsea()[:, 75:375], (224, 224)) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    feeds = {"input": picture.transpose(2, 0, 1)[None].astype(np.float32)}
    with ml.load("efficientnet-lite0", backend="pytorch", threads=1) as model:
        module = model.session._module
    exact = answer(module, feeds, "float64")["output"]
    assert exact.dtype == np.float32
    assert exact.argmax() == 285
    for precision, bound in (("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 1e-1)):
        found = answer(module, feeds, precision)["output"]
        assert found.argmax() == 285
        assert 0 < distance(found, exact) < bound
