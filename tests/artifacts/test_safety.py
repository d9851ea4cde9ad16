from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pickle
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlscope_lab.artifacts.safety import check_safe
from mlscope_lab.errors import ArtifactError, UnsafeArtifactError, UnsupportedModelError
from mlscope_lab.manifest.model import FORMATS

if find_spec("torch") is not None:
    import torch

requires_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
requires_onnx = pytest.mark.skipif(find_spec("onnx") is None, reason="needs onnx")
requires_keras = pytest.mark.skipif(find_spec("keras") is None, reason="needs keras")
requires_h5py = pytest.mark.skipif(find_spec("h5py") is None, reason="needs h5py")


class Marker:
    """Pickles to a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def replaced(source: Path, target: Path, ending: str, data: bytes) -> Path:
    with zipfile.ZipFile(source) as archive:
        return make_zip(target, {n: data if n.endswith(ending) else archive.read(n) for n in archive.namelist()})


def test_every_format_has_a_check(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\1\2\3")
    for name in FORMATS:
        with pytest.raises((UnsupportedModelError, UnsafeArtifactError)):
            check_safe(tmp_path / "a", name, trusted=False)
    with pytest.raises(UnsupportedModelError, match="unknown format 'exe'"):
        check_safe(tmp_path / "a", "exe", trusted=True)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"saved_model"}))
@pytest.mark.parametrize(
    ("data", "word"),
    [
        (LFS, "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b"just some notes\n", "text file that begins"),
        (b"", "empty file"),
    ],
)
def test_what_usually_lies_where_a_model_should_be(tmp_path, name, data, word):
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=word):
        check_safe(tmp_path / "model", name, trusted=True)


@given(data=st.binary(max_size=300), name=st.sampled_from(sorted(set(FORMATS) - {"saved_model"})))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_any_bytes_pass_or_raise_an_error_of_ours(tmp_path, data, name):
    (tmp_path / "model").write_bytes(data)
    try:
        check_safe(tmp_path / "model", name, trusted=True)
    except (ArtifactError, UnsupportedModelError) as error:
        assert str(tmp_path / "model") in str(error)  # noqa: PT017 - valid bytes may pass


# PyTorch


@requires_torch
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_with_foreign_globals_is_left_to_torch_which_refuses_it(tmp_path, legacy):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
    check_safe(path, "torch_state_dict", trusted=False)
    assert torch.load(path, weights_only=True)["a"].tolist() == [1, 1]
    torch.save({"a": Marker(marker)}, path, _use_new_zipfile_serialization=not legacy)
    check_safe(path, "torch_state_dict", trusted=False)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    assert not marker.exists()


def saves_file(self, x: torch.Tensor):
    torch.save(x, self.path)
    return x


def reads_file(self, x: torch.Tensor):
    return torch.from_file(self.path, False, 4)


def adds(self, x: torch.Tensor):
    return x + torch.ones(2)


def scripted(folder: Path, forward, path: str = "") -> Path:
    """Save a TorchScript archive whose forward is the given function."""
    module = type("Model", (torch.nn.Module,), {"forward": forward})()
    module.path = path
    torch.jit.script(module).save(str(folder / "model.pt"))
    return folder / "model.pt"


@requires_torch
@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl"])
def test_torchscript_pickle_is_not_run_by_torch(tmp_path, member):
    path, marker = scripted(tmp_path, adds), tmp_path / "marker"
    check_safe(path, "torchscript", trusted=False)
    evil = replaced(path, tmp_path / "evil.pt", member, pickle.dumps(Marker(marker), protocol=2))
    check_safe(evil, "torchscript", trusted=False)
    with pytest.raises(RuntimeError):
        torch.jit.load(str(evil))
    assert not marker.exists()


@requires_torch
@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
def test_torchscript_that_touches_files_is_refused(tmp_path):
    path = scripted(tmp_path, saves_file, str(tmp_path / "marker"))
    with pytest.raises(UnsafeArtifactError, match=r"calls 'save'.*trusted: true"):
        check_safe(path, "torchscript", trusted=False)
    check_safe(path, "torchscript", trusted=True)
    # The danger is real: this is what the model does when it runs.
    torch.jit.load(str(path))(torch.zeros(1))
    assert (tmp_path / "marker").exists()
    with pytest.raises(UnsafeArtifactError, match="calls 'from_file'"):
        check_safe(scripted(tmp_path, reads_file, "/etc/hostname"), "torchscript", trusted=False)


@requires_torch
def test_state_dict_is_not_torchscript(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UnsupportedModelError, match="format 'torch_state_dict'"):
        check_safe(tmp_path / "a.pt", "torchscript", trusted=False)


@pytest.mark.parametrize("name", ["torchscript", "torch_state_dict", "keras", "torch_exported"])
def test_archives_that_leave_their_folder_are_refused_even_if_trusted(tmp_path, name):
    path = make_zip(tmp_path / "a", {"m/data.pkl": b"", "m/code/a.py": b"", "config.json": b"{}", "../evil": b""})
    with pytest.raises(UnsafeArtifactError, match="outside"):
        check_safe(path, name, trusted=True)


def test_exported_program_needs_trust_and_nothing_is_run(tmp_path):
    marker = tmp_path / "marker"
    path = make_zip(tmp_path / "a.pt2", {"a/data/sample_inputs.pt": pickle.dumps(Marker(marker))})
    with pytest.raises(UnsafeArtifactError, match="trusted: true"):
        check_safe(path, "torch_exported", trusted=False)
    check_safe(path, "torch_exported", trusted=True)
    assert not marker.exists()


# Keras


def keras_file(path: Path, config: object, **members: bytes) -> Path:
    return make_zip(path, {"config.json": json.dumps(config).encode()} | members)


def layer(**config: object) -> dict[str, object]:
    return {"module": "keras.layers", "class_name": "Dense", "config": config}


@requires_keras
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_real_keras_files(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu"), keras.layers.Softmax()])
    model.save(tmp_path / "good.keras")
    check_safe(tmp_path / "good.keras", "keras", trusted=False)
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x)]).save(tmp_path / "bad.keras")
    with pytest.raises(UnsafeArtifactError, match="Lambda layer, which is Python bytecode"):
        check_safe(tmp_path / "bad.keras", "keras", trusted=False)
    check_safe(tmp_path / "bad.keras", "keras", trusted=True)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"layers": [layer(function={"class_name": "__lambda__", "config": {}})]}, "Lambda"),
        ({"module": "os", "class_name": "function", "config": "system"}, r"os\.function"),
        ({"a": [{"b": {"module": "keras.utils", "class_name": "get_file"}}]}, r"keras\.utils\.get_file"),
        ({"module": "kerasx.layers", "class_name": "Dense"}, "not Keras' own"),
        ({"module": "builtins", "class_name": "eval"}, r"builtins\.eval"),
        (layer(vocabulary="/etc/passwd"), "/etc/passwd"),
    ],
)
def test_keras_configs_that_reach_out_are_refused(tmp_path, config, word):
    with pytest.raises(UnsafeArtifactError, match=word):
        check_safe(keras_file(tmp_path / "a.keras", config), "keras", trusted=False)


def test_keras_files_that_are_none(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        check_safe(make_zip(tmp_path / "a.keras", {"x": b""}), "keras", trusted=False)
    with pytest.raises(UnsupportedModelError, match="not JSON"):
        check_safe(make_zip(tmp_path / "a.keras", {"config.json": b"{"}), "keras", trusted=False)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n\0\0\0")
    with pytest.raises(UnsupportedModelError, match=r"save it as a \.keras file"):
        check_safe(tmp_path / "a.h5", "keras", trusted=False)


@requires_h5py
@pytest.mark.parametrize("how", ["link", "external", "virtual", "ring"])
def test_hdf5_weights_in_other_files_are_refused_even_if_trusted(tmp_path, how):
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("layers")
        group["kernel"] = [1.0, 2.0]
        group["alias"] = h5py.SoftLink("/layers/kernel")
        if how == "link":
            group["out"] = h5py.ExternalLink("/etc/other.h5", "/a")
        elif how == "external":
            group.create_dataset("out", (4,), "u1", external=[("/etc/hostname", 0, 4)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((2,), "f4")
            layout[:] = h5py.VirtualSource("/etc/other.h5", "a", (2,))
            group.create_virtual_dataset("out", layout)
        else:
            group["out"] = file
    path = keras_file(tmp_path / "a.keras", {}, **{"model.weights.h5": buffer.getvalue()})
    if how == "ring":
        check_safe(path, "keras", trusted=False)
    else:
        with pytest.raises(UnsafeArtifactError, match=r"model\.weights\.h5"):
            check_safe(path, "keras", trusted=True)


# Other formats


def safetensors(header: bytes, body: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    good = b'{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path.write_bytes(safetensors(good))
    check_safe(path, "safetensors", trusted=False)
    for bad, word in [
        (safetensors(good, b"\0" * 7), "beyond the end"),
        (struct.pack("<Q", 1 << 60) + good, "states a header of"),
        (safetensors(b'{"w": 3}'), "malformed"),
        (safetensors(b"[" * 50_000), "malformed"),
        (b"\1\0", "states a header"),
    ]:
        path.write_bytes(bad)
        with pytest.raises(UnsupportedModelError, match=word):
            check_safe(path, "safetensors", trusted=False)


def test_tflite(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"\x1c\0\0\0TFL3rest")
    check_safe(tmp_path / "a.tflite", "tflite", trusted=False)
    (tmp_path / "a.tflite").write_bytes(b"\x1c\0\0\0ORTMrest")
    with pytest.raises(UnsupportedModelError, match="TFL3"):
        check_safe(tmp_path / "a.tflite", "tflite", trusted=False)


@pytest.fixture
def saved_model(tmp_path):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12\x0e\x0a\x06MatMul\x12\x04node")
    (folder / "variables" / "variables.index").write_bytes(b"\0")
    return folder


@pytest.mark.parametrize("operator", [b"PyFunc", b"EagerPyFunc", b"PyFuncStateless", b"ReadFile", b"WriteFile"])
@pytest.mark.parametrize("offset", [0, (1 << 18) - 3])
def test_saved_model_that_calls_python_or_files(saved_model, operator, offset):
    check_safe(saved_model, "saved_model", trusted=False)
    (saved_model / "saved_model.pb").write_bytes(b"\x08\x01" + bytes(offset) + operator + bytes(9))
    with pytest.raises(UnsafeArtifactError, match="trusted: true"):
        check_safe(saved_model, "saved_model", trusted=False)
    check_safe(saved_model, "saved_model", trusted=True)


def test_saved_model_with_links_out_or_forms_that_cannot_be_searched(saved_model, tmp_path):
    (saved_model / "saved_model.pbtxt").write_text("")
    with pytest.raises(UnsafeArtifactError, match="pbtxt"):
        check_safe(saved_model, "saved_model", trusted=False)
    (tmp_path / "secret").write_bytes(b"s")
    (saved_model / "saved_model.pbtxt").unlink()
    (saved_model / "asset").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeArtifactError, match="leaves the SavedModel"):
        check_safe(saved_model, "saved_model", trusted=True)


def test_saved_model_that_is_none(saved_model, tmp_path):
    (saved_model / "saved_model.pb").write_bytes(LFS)
    with pytest.raises(UnsupportedModelError, match="git lfs pull"):
        check_safe(saved_model, "saved_model", trusted=False)
    (saved_model / "saved_model.pb").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no saved_model\.pb"):
        check_safe(saved_model, "saved_model", trusted=False)
    with pytest.raises(UnsupportedModelError, match="is a folder"):
        check_safe(tmp_path / "absent", "saved_model", trusted=False)


@requires_onnx
def test_the_real_models_of_the_onnx_package_pass():
    files = [f for f in importlib.metadata.files("onnx") or () if f.match("data/light/light_*.onnx")]
    assert len(files) >= 9
    for file in files:
        check_safe(Path(str(file.locate())), "onnx", trusted=False)
