"""Look at a model's file before any framework does.

Nothing here runs what it reads: archives are looked into member by member, protobuf and JSON are walked, names are
compared. What each framework's own safe loader covers is left to it: ``torch.load(weights_only=True)`` refuses foreign
globals of pickles, and ``torch.jit.load`` resolves classes against the archive's own code instead of importing them.
"""

from __future__ import annotations

import json
import re
import string
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from mlscope_lab.artifacts.archives import check_zip
from mlscope_lab.artifacts.digests import files_below
from mlscope_lab.artifacts.keras_scan import check_keras
from mlscope_lab.artifacts.onnx_scan import check_external_data
from mlscope_lab.artifacts.writer import CHUNK_BYTES
from mlscope_lab.errors import ArtifactError, UnsafeArtifactError, UnsupportedModelError

__all__ = ["check_safe"]

_TRUST = "If you trust its author, mark the source with 'trusted: true' in the manifest"
MAX_SAFETENSORS_HEADER = 100_000_000
MAX_CODE_BYTES = 256 << 20
# TensorFlow operators that call Python or touch files of this machine; reading and writing checkpoints is how every
# SavedModel restores its variables, so SaveV2 and RestoreV2 cannot be among them.
_TF_OPERATORS = (b"PyFunc", b"ReadFile", b"WriteFile", b"MatchingFiles")
# TorchScript's two functions that write and read any file of this machine while the model runs.
_TORCH_FILE_CALL = re.compile(rb"\b(save|from_file)[\s\\]*\(")


def check_safe(path: Path, format: str, *, trusted: bool) -> None:  # noqa: A002 - the manifest's word
    """Refuse a file that would run code, escape its folder or exhaust the machine when opened.

    Parameters
    ----------
    path
        The file, or the folder of a SavedModel.
    format
        One of `mlscope_lab.manifest.model.FORMATS`.
    trusted
        The user trusts whoever made the file: code in it may run. Bombs and paths out of the folder stay refused.

    Raises
    ------
    UnsafeArtifactError
        If it is not safe to open.
    UnsupportedModelError
        If the file is not what its format says, e.g. an error page or a pointer file of git-lfs.
    """
    check = _CHECKS.get(format)
    if check is None:
        raise UnsupportedModelError(f"{path}: unknown format '{format}'. Known: {', '.join(_CHECKS)}")
    if format != "saved_model":
        if not path.is_file():
            raise UnsupportedModelError(f"{path}: the format '{format}' is a file, and this is none")
        _check_not_text(path, format)
    check(path, trusted)


def _check_not_text(path: Path, format: str) -> None:  # noqa: A002
    """Name the usual things that lie where a model should be."""
    with path.open("rb") as stream:
        head = stream.read(512)
    start = head.lstrip().lower()
    if not head:
        found = "an empty file; fetch it again"
    elif head.startswith(b"version https://git-lfs.github.com/spec/"):
        found = "a pointer file of git-lfs; run 'git lfs pull' where it comes from, or take the file's download address"
    elif start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<error")):
        found = "a web page, probably a server's error or login page; take the file's download address"
    elif not head.translate(None, string.printable.encode()):
        found = f"a text file that begins {head[:40]!r}"
    else:
        return
    raise UnsupportedModelError(f"{path} is not a model of format '{format}' but {found}")


def _open_zip(path: Path, what: str) -> zipfile.ZipFile:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"PK\x03\x04":
        raise UnsupportedModelError(f"{path} is not {what}: it does not begin like a zip archive")
    try:
        return check_zip(path)
    except UnsafeArtifactError:
        raise
    except ArtifactError as error:
        raise UnsupportedModelError(f"{path} is not {what}, or was cut off: {error}") from error


def _onnx(path: Path, trusted: bool) -> None:
    check_external_data(path)


def _torchscript(path: Path, trusted: bool) -> None:
    with _open_zip(path, "a TorchScript archive") as archive:
        # torch finds members without regard to case.
        code = [i for i in archive.infolist() if i.filename.lower().endswith(".py")]
        names = {i.filename.rpartition("/")[2] for i in archive.infolist()}
        if not code or "data.pkl" not in names:
            raise UnsupportedModelError(
                f"{path} is a zip archive without TorchScript code: a state dict has the format 'torch_state_dict', "
                f"an archive of torch.export 'torch_exported'"
            )
        if sum(i.file_size for i in code) > MAX_CODE_BYTES:
            raise UnsafeArtifactError(f"{path}: more than {MAX_CODE_BYTES:,} bytes of code")
        for info in [] if trusted else code:
            hit = _TORCH_FILE_CALL.search(archive.read(info))
            if hit is not None:
                raise UnsafeArtifactError(
                    f"{path}: the model calls '{hit[1].decode()}' in {info.filename}, which reads or writes any file "
                    f"of this machine while it runs. {_TRUST}"
                )


def _torch_state_dict(path: Path, trusted: bool) -> None:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic.startswith(b"PK"):
        with _open_zip(path, "a PyTorch checkpoint") as archive:
            if not any(n.endswith("/data.pkl") or n == "data.pkl" for n in archive.namelist()):
                raise UnsupportedModelError(f"{path} is a zip archive without data.pkl, so not one of torch.save")
    # Before torch 1.6, torch.save wrote a row of bare pickles.
    elif magic[:1] != b"\x80":
        raise UnsupportedModelError(f"{path} is not a PyTorch checkpoint: neither a zip archive nor a pickle")


def _torch_exported(path: Path, trusted: bool) -> None:
    if not trusted:
        raise UnsafeArtifactError(
            f"{path}: opening an archive of torch.export (.pt2) can run code that is hidden in it. {_TRUST}; "
            f"or ask for the model as ONNX, TorchScript or safetensors"
        )
    _open_zip(path, "an archive of torch.export").close()


def _keras(path: Path, trusted: bool) -> None:
    with path.open("rb") as stream:
        if stream.read(8) == b"\x89HDF\r\n\x1a\n":
            raise UnsupportedModelError(
                f"{path} is a Keras 2 model in HDF5, which has no safe mode; open it once with "
                f"keras.saving.load_model and save it as a .keras file"
            )
    with _open_zip(path, "a .keras archive") as archive:
        check_keras(path, archive, trusted=trusted)


def _safetensors(path: Path, trusted: bool) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        raw = stream.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_SAFETENSORS_HEADER):
            raise UnsupportedModelError(
                f"{path} is not a safetensors file, or was cut off: it states a header of {length:,} bytes "
                f"in a file of {size:,}"
            )
        try:
            header = json.loads(stream.read(length))
            ends = [(int(a), int(b)) for k, v in header.items() if k != "__metadata__" for a, b in [v["data_offsets"]]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModelError(
                f"{path} is not a safetensors file: its header is malformed: {error}"
            ) from error
    if any(not 0 <= a <= b <= size - 8 - length for a, b in ends):
        raise UnsupportedModelError(f"{path}: tensors lie beyond the end of the file; it was cut off or tampered with")


def _tflite(path: Path, trusted: bool) -> None:
    with path.open("rb") as stream:
        head = stream.read(8)
    if head[4:8] != b"TFL3":
        raise UnsupportedModelError(
            f"{path} is not a TensorFlow Lite model: its identifier is {head[4:8]!r}, not b'TFL3'"
        )


def _saved_model(path: Path, trusted: bool) -> None:
    if not path.is_dir():
        raise UnsupportedModelError(f"{path}: a SavedModel is a folder, and this is none; use 'from: folder'")
    folder = path.resolve()
    names = files_below(path)
    for name in names:
        if not (path / name).resolve().is_relative_to(folder):
            raise UnsafeArtifactError(f"{path / name} is a link that leaves the SavedModel; put a copy in its place")
    if "saved_model.pb" not in names:
        raise UnsupportedModelError(f"{path} is not a SavedModel: it has no saved_model.pb. It holds: {names[:5]}")
    _check_not_text(path / "saved_model.pb", "saved_model")
    if trusted:
        return
    for other in ("saved_model.pbtxt", "saved_model.cpb"):
        # Escapes of the text form and compression of the chunked form would hide an operator's name.
        if other in names:
            raise UnsafeArtifactError(
                f"{path}: {other} cannot be looked into; remove it, saved_model.pb is enough. {_TRUST}"
            )
    found = _first_of(path / "saved_model.pb", _TF_OPERATORS)
    if found is not None:
        raise UnsafeArtifactError(
            f"{path}: the graph names the operator {found.decode()}, which calls Python or touches files of this "
            f"machine. {_TRUST}"
        )


def _first_of(path: Path, words: tuple[bytes, ...]) -> bytes | None:
    """Return the first of some words that a file contains.

    An operator's name stands unbroken in a serialised graph, so a search cannot miss one; it can take a layer that was
    named like one for it, which errs on the safe side and spares the measuring process TensorFlow's protos.
    """
    keep = max(map(len, words)) - 1
    tail = b""
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            window = tail + chunk
            for word in words:
                if word in window:
                    return word
            tail = window[-keep:]
    return None


_CHECKS: dict[str, Callable[[Path, bool], None]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "torch_state_dict": _torch_state_dict,
    "safetensors": _safetensors,
    "torch_exported": _torch_exported,
    "saved_model": _saved_model,
    "keras": _keras,
    "tflite": _tflite,
}
