from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlscope_lab.artifacts import digest_of, fetch
from mlscope_lab.errors import ArtifactError, DigestError, ManifestError, UnsafeArtifactError
from mlscope_lab.manifest.common import FileLocation, FolderLocation, FolderMember, UrlLocation


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_file_is_used_in_place_relative_to_its_manifest(tmp_path, settings, sha):
    write(tmp_path / "manifests" / "net.onnx", b"bytes")
    got = fetch(FileLocation(path="net.onnx", sha256=sha(b"bytes")), settings=settings, base=tmp_path / "manifests")
    assert got.path == tmp_path / "manifests" / "net.onnx"
    assert (got.digest, got.size_bytes, got.from_cache) == (f"sha256:{sha(b'bytes')}", 5, False)
    above = fetch(FileLocation(path="../manifests/net.onnx"), settings=settings, base=tmp_path / "manifests")
    assert above.path == got.path
    assert not settings.home.exists()


def test_file_errors(tmp_path, settings, sha):
    with pytest.raises(ArtifactError, match=r"no file .*absent\.onnx"):
        fetch(FileLocation(path="absent.onnx"), settings=settings, base=tmp_path)
    write(tmp_path / "net.onnx", b"bytes")
    with pytest.raises(DigestError, match=f"expected sha256 {sha(b'?')}, got {sha(b'bytes')}"):
        fetch(FileLocation(path="net.onnx", sha256=sha(b"?")), settings=settings, base=tmp_path)


def test_digest_of_a_folder_follows_its_definition(tmp_path, settings, sha):
    members = {"saved_model.pb": b"graph", "variables/v.index": b"i", "variables/v.data": b"d", "é": b"u"}
    for name, data in members.items():
        write(tmp_path / "m" / name, data)
    lines = "".join(f"{name}\0{sha(members[name])}\n" for name in sorted(members))
    want = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert digest_of(tmp_path / "m") == want
    got = fetch(FileLocation(path=str(tmp_path / "m")), settings=settings)
    assert (got.path, got.digest, got.size_bytes) == (tmp_path / "m", want, sum(map(len, members.values())))
    (tmp_path / "m" / "é").rename(tmp_path / "m" / "e")
    assert digest_of(tmp_path / "m") != want


def test_folders_with_links_to_folders_or_pipes_have_no_digest(tmp_path):
    write(tmp_path / "m" / "a", b"1")
    (tmp_path / "m" / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafeArtifactError, match="link to a folder"):
        digest_of(tmp_path / "m")
    (tmp_path / "m" / "link").unlink()
    os.mkfifo(tmp_path / "m" / "pipe")
    with pytest.raises(UnsafeArtifactError, match="not a file"):
        digest_of(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no files"):
        digest_of(tmp_path / "empty")


@pytest.fixture
def folder(server, tmp_path, sha):
    server.route("/graph", body=b"graph")
    write(tmp_path / "weights", b"weights")
    return FolderLocation(
        members=(
            FolderMember(path="saved_model.pb", location=UrlLocation(url=server.url + "/graph", sha256=sha(b"graph"))),
            FolderMember(path="variables/v.data", location=FileLocation(path="weights", sha256=sha(b"weights"))),
        )
    )


def test_folder_is_put_together_once(server, settings, folder, tmp_path):
    got = fetch(folder, settings=settings, base=tmp_path)
    assert got.path.parent == settings.cache / "trees"
    assert got.digest == digest_of(got.path) == f"sha256:{got.path.name}"
    assert (got.path / "variables" / "v.data").read_bytes() == b"weights"
    assert (got.size_bytes, got.from_cache) == (12, False)
    again = fetch(folder, settings=replace(settings, offline=True), base=tmp_path / "elsewhere")
    assert again.from_cache
    assert len(server.requests) == 1


def test_folder_holds_copies_of_own_files_and_no_links_out(settings, folder, tmp_path):
    got = fetch(folder, settings=settings, base=tmp_path)
    assert not any(p.is_symlink() for p in got.path.rglob("*"))
    with (tmp_path / "weights").open("r+b") as stream:
        stream.write(b"changed")
    assert (got.path / "variables" / "v.data").read_bytes() == b"weights"


def test_damaged_folder_is_built_anew(settings, folder, tmp_path):
    got = fetch(folder, settings=settings, base=tmp_path)
    (got.path / "variables" / "v.data").write_bytes(b"damaged!")
    (got.path / "extra").write_bytes(b"")
    assert fetch(folder, settings=settings, base=tmp_path).digest == digest_of(got.path) == got.digest


def test_members_that_cannot_share_a_folder(settings, tmp_path):
    def member(path: str, source: str) -> FolderMember:
        return FolderMember(path=path, location=FileLocation(path=source))

    write(tmp_path / "a", b"1")
    with pytest.raises(ManifestError, match="'x' is both a file and the folder of 'x/y'"):
        fetch(FolderLocation(members=(member("x", "a"), member("x/y", "a"))), settings=settings, base=tmp_path)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b", b"1")
    with pytest.raises(ManifestError, match="'x' must be a file"):
        fetch(FolderLocation(members=(member("x", "sub"),)), settings=settings, base=tmp_path)


def test_cache_folder_that_cannot_be_made_names_the_setting(server, settings, sha, tmp_path):
    write(tmp_path / "home", b"a file where a folder should be")
    server.route("/a", body=b"1")
    with pytest.raises(ArtifactError, match="MLSCOPE_HOME"):
        fetch(UrlLocation(url=server.url + "/a", sha256=sha(b"1")), settings=settings)
