"""The PyTorch backend: files, live modules, arrays in and out, hostile files, threads."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest

from mlscope_lab import plugins
from mlscope_lab.backends.base import ModelFiles, SessionOptions, TensorSpec
from mlscope_lab.backends.pytorch_ import PyTorchBackend, input_names
from mlscope_lab.errors import (
    BackendNotAvailableError,
    InputError,
    SessionError,
    UnsafeArtifactError,
    UnsupportedModelError,
)
from mlscope_lab.testing import BackendContract

torch = pytest.importorskip("torch", reason="needs PyTorch")
nn = torch.nn

IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 16, 16))
LOGITS = TensorSpec(name="logits", dtype="float32", shape=("batch", 5))


class SmallNet(nn.Module):
    """Convolution, normalisation, activation, linear."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))


def make_small_net(channels=8):
    torch.manual_seed(0)
    net = SmallNet(channels)
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def architecture(monkeypatch):
    """Register SmallNet under a name, as a plugin would."""
    loaded = plugins.load
    monkeypatch.setattr(
        plugins,
        "load",
        lambda group, name: (lambda channels=8: SmallNet(channels)) if name == "small_net" else loaded(group, name),
    )
    return "small_net"


def files_of(path, kind, **more):
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    values = {"inputs": (IMAGE,), "outputs": (LOGITS,), **more}
    return ModelFiles(name="small", format=kind, path=path, digest=digest, **values)


def save(kind, path):
    """Save SmallNet in one of the formats; returns the fields of ModelFiles that the format needs."""
    net = make_small_net()
    if kind == "torch_state_dict":
        torch.save(net.state_dict(), path)
        return {"architecture": "small_net"}
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
        return {"architecture": "small_net"}
    example = torch.zeros(2, 3, 16, 16)
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(net, example).save(str(path))
        return {}
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, str(path))
    return {"trusted": True}


def image(batch=2, seed=0):
    return np.random.default_rng(seed).random((batch, 3, 16, 16), dtype=np.float32)


def expected_logits(array):
    with torch.no_grad():
        return make_small_net()(torch.tensor(array)).numpy()


class Contract(BackendContract):
    kind: str

    @pytest.fixture
    def backend(self):
        return PyTorchBackend()

    @pytest.fixture
    def model_files(self, tmp_path, architecture):
        path = tmp_path / f"model.{self.kind}"
        return files_of(path, self.kind, **save(self.kind, path))

    @pytest.fixture
    def feeds(self):
        return {"image": image()}

    @pytest.fixture
    def expected(self, feeds):
        return {"logits": expected_logits(feeds["image"])}

    @pytest.fixture
    def live(self):
        return make_small_net(), {"x": image()}


class TestStateDict(Contract):
    kind = "torch_state_dict"


class TestSafetensors(Contract):
    kind = "safetensors"


class TestTorchScript(Contract):
    kind = "torchscript"

    @pytest.fixture
    def live(self, tmp_path):
        path = tmp_path / "live.torchscript"
        save("torchscript", path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path)), {"x": image()}


class TestExported(Contract):
    kind = "torch_exported"


def wrap(module, feeds, **options):
    return PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1, **options))


def test_modes_digests_and_precision(tmp_path, architecture):
    digests, modes = [], []
    for kind in ("torch_state_dict", "torchscript", "torch_exported"):
        path = tmp_path / f"m.{kind}"
        files = files_of(path, kind, **save(kind, path))
        with PyTorchBackend().open(files, SessionOptions(threads=1)) as session:
            modes.append(session.execution_mode)
            digests.append(session.executable_digest)
            assert session.precision == "float32"
        with PyTorchBackend().open(dataclasses.replace(files, digest="sha256:" + "0" * 64)) as session:
            assert session.executable_digest not in digests
    assert modes == ["eager", "graph", "exported"]
    assert len(set(digests)) == 3


def test_half_precision_weights_stay_half(tmp_path, architecture):
    path = tmp_path / "half.pt"
    torch.save(
        {name: t.half() if t.is_floating_point() else t for name, t in make_small_net().state_dict().items()}, path
    )
    inputs = (dataclasses.replace(IMAGE, dtype="float16"),)
    files = files_of(path, "torch_state_dict", architecture=architecture, inputs=inputs)
    with PyTorchBackend().open(files, SessionOptions(threads=1)) as session:
        assert session.precision == "float16"
        logits = session.predict({"image": image().astype(np.float16)})["logits"]
    assert logits.dtype == np.float16
    np.testing.assert_allclose(logits, expected_logits(image()), atol=2e-2)


# -- files that do not fit ------------------------------------------------------------------------------------------


def open_state(tmp_path, architecture, state, **more):
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    return PyTorchBackend().open(files_of(path, "torch_state_dict", architecture=architecture, **more))


def test_missing_and_unexpected_keys_are_named(tmp_path, architecture):
    state = dict(make_small_net().state_dict())
    state["head.weight"] = state.pop("fc.weight")
    with pytest.raises(UnsupportedModelError, match=r"misses 'fc\.weight' and has the unknown 'head\.weight'"):
        open_state(tmp_path, architecture, state)


def test_wrong_shape_of_a_weight_is_named(tmp_path, architecture):
    with pytest.raises(UnsupportedModelError, match=r"'conv\.weight' is \(8, 3, 3, 3\).*\(4, 3, 3, 3\)"):
        open_state(tmp_path, architecture, make_small_net().state_dict(), parameters={"channels": 4})


def test_unknown_architecture_parameter(tmp_path, architecture):
    with pytest.raises(UnsupportedModelError, match="widht"):
        open_state(tmp_path, architecture, make_small_net().state_dict(), parameters={"widht": 4})


def test_checkpoint_that_is_no_state_dict(tmp_path, architecture):
    with pytest.raises(UnsupportedModelError, match="'model', 'epoch', not a state dict"):
        open_state(tmp_path, architecture, {"model": make_small_net().state_dict(), "epoch": 3})


class Touch:
    """Unpickling one creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile_zip(path, proof, protocol):
    """Write a torch archive whose pickle would create `proof`."""
    torch.save({"weight": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickle.dumps(Touch(proof), protocol=protocol) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_pickle_in_weights_is_refused(tmp_path, architecture, form):
    path, proof = tmp_path / "evil.pt", tmp_path / "executed"
    if form == "archive":
        hostile_zip(path, proof, 2)
    else:
        path.write_bytes(pickle.dumps(Touch(proof), protocol=2))
    with pytest.raises(UnsafeArtifactError, match="mkdir"):
        PyTorchBackend().open(files_of(path, "torch_state_dict", architecture=architecture))
    assert not proof.exists()


@pytest.mark.parametrize("protocol", [0, 3, 4, 5])
def test_pickle_of_any_protocol_is_refused(tmp_path, architecture, protocol):
    path, proof = tmp_path / "evil.pt", tmp_path / "executed"
    hostile_zip(path, proof, protocol)
    with pytest.raises((UnsafeArtifactError, UnsupportedModelError)):
        PyTorchBackend().open(files_of(path, "torch_state_dict", architecture=architecture))
    assert not proof.exists()


def test_pickle_in_torchscript_is_refused(tmp_path):
    path, proof = tmp_path / "evil.torchscript", tmp_path / "executed"
    save("torchscript", path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickle.dumps(Touch(proof), protocol=2) if name.endswith("data.pkl") else data)
    with pytest.raises(UnsupportedModelError):
        PyTorchBackend().open(files_of(path, "torchscript"))
    assert not proof.exists()


def test_untrusted_exported_program_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    save("torch_exported", path)
    with pytest.raises(UnsafeArtifactError, match="trusted: true"):
        PyTorchBackend().open(files_of(path, "torch_exported"))


def test_unknown_device(tmp_path):
    with pytest.raises(UnsupportedModelError, match="'tpu'"):
        wrap(make_small_net(), {"x": image()}, device="tpu")
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(BackendNotAvailableError, match=missing):
        wrap(make_small_net(), {"x": image()}, device=missing)


# -- live modules ---------------------------------------------------------------------------------------------------


def test_training_flags_come_back():
    net = make_small_net().train()
    net.norm.eval()
    with wrap(net, {"x": image()}) as session:
        assert not any(module.training for module in net.modules())
        assert any("training mode" in w for w in session.warnings)
        np.testing.assert_allclose(session.predict({"x": image()})["output"], expected_logits(image()), atol=1e-6)
    assert net.training
    assert net.fc.training
    assert not net.norm.training


def test_live_digest_follows_the_weights():
    net = make_small_net()
    with wrap(net, {"x": image()}) as first, wrap(make_small_net(), {"x": image()}) as same:
        assert first.executable_digest == same.executable_digest
    with torch.no_grad():
        net.fc.bias[0] += 1
    with wrap(net, {"x": image()}) as changed:
        assert changed.executable_digest != first.executable_digest


class Subtract(nn.Module):
    def forward(self, a, b):
        return a - b


def test_names_that_forward_knows_go_by_keyword_else_in_order():
    one, two = np.full(3, 1, np.float32), np.full(3, 2, np.float32)
    with wrap(Subtract(), {"b": one, "a": two}) as session:
        assert session.predict({"b": one, "a": two})["output"][0] == 1
    with wrap(Subtract(), {"first": one, "second": two}) as session:
        assert session.predict({"second": two, "first": one})["output"][0] == -1
    assert input_names(Subtract()) == ("a", "b")


Pair = collections.namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass
class Answer:
    logits: object
    hidden: object = None


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(x)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1, [x + 2, x + 3]), ["output_0", "output_1.0", "output_1.1"]),
        (lambda x: {"logits": x + 1, "aux": {"deep": x + 2}}, ["logits", "aux.deep"]),
        (lambda x: Pair(x + 1, x + 2), ["left", "right"]),
        (lambda x: Answer(logits=x + 1), ["logits"]),
        (lambda x: (x + 1, 3), ["output_0", "output_1"]),
    ],
)
def test_outputs_are_flattened(form, names):
    feeds = {"x": np.zeros(4, np.float32)}
    with wrap(Returns(form), feeds) as session:
        outputs = session.predict(feeds)
        assert [spec.name for spec in session.outputs] == list(outputs) == names
    assert (outputs[names[0]] == 1).all()


def test_output_that_is_no_tensor_is_left_out_and_said():
    feeds = {"x": np.zeros(4, np.float32)}
    with wrap(Returns(lambda x: (x, "words")), feeds) as session:
        assert list(session.predict(feeds)) == ["output_0"]
        session.predict(feeds)
        assert sum("'output_1' is a str" in w for w in session.warnings) == 1


def test_two_outputs_of_one_name_are_refused():
    feeds = {"x": np.zeros(4, np.float32)}
    module = Returns(lambda x: {"a.b": x, "a": {"b": x}})
    with wrap(module, feeds) as session, pytest.raises(SessionError, match=r"two outputs of the name 'a\.b'"):
        session.predict(feeds)


def test_bfloat16_output_becomes_float32_with_a_note():
    feeds = {"x": np.arange(4, dtype=np.float32)}
    with wrap(Returns(lambda x: x.bfloat16()), feeds) as session:
        output = session.predict(feeds)["output"]
        assert output.dtype == np.float32
        assert any("bfloat16" in w for w in session.warnings)
    np.testing.assert_array_equal(output, feeds["x"])


def test_number_of_outputs_must_fit_the_declaration(tmp_path, architecture):
    path = tmp_path / "m.pt"
    files = files_of(path, "torch_state_dict", **save("torch_state_dict", path))
    files = dataclasses.replace(files, outputs=(LOGITS, dataclasses.replace(LOGITS, name="boxes")))
    with PyTorchBackend().open(files) as session, pytest.raises(SessionError, match="declares 2"):
        session.predict({"image": image()})


@pytest.mark.parametrize("writeable", [True, False])
def test_module_that_works_in_place_gets_copies(writeable):
    array = np.full(4, -1, np.float32)
    array.flags.writeable = writeable
    with wrap(nn.ReLU(inplace=True), {"input": array}) as session:
        for _ in range(3):
            assert (session.predict({"input": array})["output"] == 0).all()
    assert (array == -1).all()


class Counter(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("count", torch.zeros(size))

    def forward(self, x):
        self.count += 1
        return self.count, x


@pytest.mark.parametrize("size", [1, 10_000])
def test_outputs_do_not_share_the_modules_memory(size):
    feeds = {"x": np.zeros(size, np.float32)}
    with wrap(Counter(size), feeds) as session:
        session.predict(feeds)
        second, third = session.predict(feeds), session.predict(feeds)
        assert second["output_0"][0] == 2
        assert third["output_0"][0] == 3
        third["output_1"][:] = 7
    assert (feeds["x"] == 0).all()


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32)[::-1], np.arange(6, dtype=">f4"), np.float32(3)])
def test_unusual_arrays(array):
    with wrap(Returns(lambda x: x + 1), {"x": array}) as session:
        np.testing.assert_array_equal(session.predict({"x": array})["output"], array + 1)


def test_shape_and_dtype_are_checked_when_they_change():
    with wrap(Returns(lambda x: x + 1), {"x": np.zeros((2, 2), np.float32)}) as session:
        session.predict({"x": np.zeros((5, 7), np.float32)})
        with pytest.raises(InputError, match="float64"):
            session.predict({"x": np.zeros((5, 7))})
        with pytest.raises(InputError, match="2 axes"):
            session.predict({"x": np.zeros(5, np.float32)})


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no luck today")


def test_what_forward_raises_becomes_a_session_error():
    feeds = {"x": np.zeros(1, np.float32)}
    with wrap(Failing(), feeds) as session, pytest.raises(SessionError, match="RuntimeError: no luck today"):
        session.predict(feeds)


def test_lazy_module_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(3)
    with pytest.raises(UnsupportedModelError, match="call it once first"):
        wrap(lazy, {"input": np.zeros((1, 2), np.float32)})


# -- threads --------------------------------------------------------------------------------------------------------


def test_each_session_keeps_its_own_thread_count():
    before = torch.get_num_threads()
    feeds = {"x": np.zeros(1, np.float32)}
    seen = []
    module = Returns(lambda x: (seen.append(torch.get_num_threads()), x)[1])
    one = PyTorchBackend().wrap(module, feeds, SessionOptions(threads=1))
    two = PyTorchBackend().wrap(module, feeds, SessionOptions(threads=2))
    for session in (one, two, one):
        session.predict(feeds)
    assert (one.threads, two.threads) == (1, 2)
    assert seen == [1, 2, 1]
    two.close()
    one.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("late", [False, True])
def test_inter_operator_threads(late):
    code = """
import sys
import numpy as np, torch
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.pytorch_ import PyTorchBackend
torch.set_num_interop_threads(2) if sys.argv[1] == "True" else None
session = PyTorchBackend().wrap(torch.nn.ReLU().eval(), {"input": np.zeros(1, np.float32)}, SessionOptions(threads=1))
print(torch.get_num_interop_threads(), *session.warnings)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, str(late)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said == "1" if not late else said.startswith("2 PyTorch keeps 2 inter-operator threads")


def test_the_live_module_of_an_exported_program_keeps_its_mode():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    x = np.ones((1, 3), dtype=np.float32)
    graph = torch.export.export(module, (torch.from_numpy(x),)).module()
    with PyTorchBackend().wrap(graph, {"x": x}, SessionOptions(level="layer")) as session:
        assert session.execution_mode == "exported"
        (plain,) = session.predict({"x": x}).values()
        session.begin_trace()
        session.predict({"x": x})
        trace = session.end_trace()
    np.testing.assert_array_equal(plain, module(torch.from_numpy(x)).detach().numpy())
    assert "aten::linear" in trace.layers.name
