from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlscope_lab.artifacts import archives, fetch
from mlscope_lab.artifacts.archives import check_zip, is_inside, open_member
from mlscope_lab.errors import ArtifactError, DigestError, UnsafeArtifactError
from mlscope_lab.manifest.common import ArchiveLocation, FileLocation, UrlLocation

BODY = bytes(range(256)) * 4000
LIMIT = 10**9


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path, member: str, limit: int = LIMIT) -> bytes:
    with open_member(path, member, limit=limit) as (size, chunks):
        data = b"".join(chunks)
        assert size == len(data)
        return data


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_member_of_any_tar(tmp_path, mode):
    entries = [(tarfile.TarInfo("./other"), b"x" * 3_000_000), (tarfile.TarInfo("./folder/net.pb"), BODY)]
    # The ending lies on purpose: content decides.
    assert read(make_tar(tmp_path / "model.zip", entries, mode), "folder/net.pb") == BODY


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_member_of_any_zip(tmp_path, method):
    assert read(make_zip(tmp_path / "a.tar", {"a/b.onnx": BODY, "c": b"1"}, method), "a/b.onnx") == BODY


def test_fetch_from_a_downloaded_archive_checks_both_digests(server, settings, sha, tmp_path):
    packed = make_zip(tmp_path / "a.zip", {"m/net.onnx": BODY}).read_bytes()
    server.route("/a.zip", body=packed)
    outer = UrlLocation(url=server.url + "/a.zip", sha256=sha(packed))
    got = fetch(ArchiveLocation(archive=outer, member="m/net.onnx", sha256=sha(BODY)), settings=settings)
    assert got.path.read_bytes() == BODY
    assert got.path.name == "net.onnx"
    wrong = ArchiveLocation(archive=outer, member="m/net.onnx", sha256=sha(b"?"))
    with pytest.raises(DigestError, match=sha(BODY)):
        fetch(wrong, settings=settings)
    assert not (settings.cache / "artifacts" / sha(b"?")).exists()
    assert not list((settings.cache / "partial").iterdir())
    assert len(server.requests) == 1


def test_missing_member_suggests_the_nearest(tmp_path):
    with pytest.raises(ArtifactError, match=r"Did you mean 'models/net\.onnx'"):
        read(make_zip(tmp_path / "a.zip", {"models/net.onnx": b"1"}), "model/net.onnx")
    with pytest.raises(ArtifactError, match="has no member"):
        read(make_tar(tmp_path / "a.tar", [(tarfile.TarInfo("b"), b"1")]), "a")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_tar_members_that_are_no_files_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("net.onnx")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(UnsafeArtifactError, match="link, a folder or a device"):
        read(make_tar(tmp_path / "a.tar", [(info, b"")]), "net.onnx")


def test_zip_member_that_is_a_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("net.onnx")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArtifactError, match="link or a device"):
        read(tmp_path / "a.zip", "net.onnx")
    with pytest.raises(UnsafeArtifactError, match="link or a device"):
        check_zip(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    packed = make_zip(tmp_path / "a.zip", {name: b"1", "good": b"2"})
    with pytest.raises(UnsafeArtifactError):
        read(packed, name)
    with pytest.raises(UnsafeArtifactError, match="outside"):
        check_zip(packed)
    tarred = make_tar(tmp_path / "a.tar", [(tarfile.TarInfo(name), b"1"), (tarfile.TarInfo("good"), b"2")])
    with pytest.raises(UnsafeArtifactError):
        read(tarred, name)
    # A hostile neighbour is never unpacked, so the member that is asked for can be had.
    assert read(packed, "good") == read(tarred, "good") == b"2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "a.zip"]


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("net.onnx", "w") as out,
    ):
        for _ in range(70):
            out.write(bytes(1 << 20))
    assert (tmp_path / "a.zip").stat().st_size < 1 << 20
    with pytest.raises(UnsafeArtifactError, match="decompression bomb"):
        read(tmp_path / "a.zip", "net.onnx")
    with pytest.raises(UnsafeArtifactError, match="decompression bomb"):
        check_zip(tmp_path / "a.zip")


@pytest.mark.parametrize("compress", [gzip.open, bz2.open, lzma.open])
def test_tar_bomb_ahead_of_the_member_is_noticed(tmp_path, compress, monkeypatch):
    monkeypatch.setattr(archives, "SMALL_BYTES", 1 << 20)
    info = tarfile.TarInfo("filler")
    info.size = 30 << 20
    with compress(tmp_path / "a", "wb") as out:
        out.write(info.tobuf())
        for _ in range(30):
            out.write(bytes(1 << 20))
    with pytest.raises(UnsafeArtifactError, match="decompression bomb"):
        read(tmp_path / "a", "net.onnx")


def test_limit_on_unpacked_bytes(tmp_path):
    tarred = make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("a"), BODY), (tarfile.TarInfo("b"), b"1")], "w:gz")
    with pytest.raises(UnsafeArtifactError, match="MLSCOPE_MAX_ARTIFACT_BYTES"):
        read(tarred, "b", limit=100_000)
    with pytest.raises(UnsafeArtifactError, match="states 1,024,000 bytes"):
        read(make_zip(tmp_path / "a.zip", {"a": BODY}), "a", limit=100_000)


def test_extended_header_of_absurd_size_is_not_read(tmp_path):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "a.tar").write_bytes(header.tobuf(format=tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(UnsafeArtifactError, match="extended header"):
        read(tmp_path / "a.tar", "net.onnx")


def test_long_names_work(tmp_path):
    name = "folder/" * 40 + "net.onnx"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        assert read(tmp_path / "a.tar", name) == b"abc"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_archive_that_was_cut_off_is_an_error_and_leaves_nothing(tmp_path, settings, sha, mode):
    path = tmp_path / "archive"
    noise = bytes((i * i * 31 + i // 7) % 251 for i in range(60_000))
    if mode == "zip":
        make_zip(path, {"a": noise})
    else:
        make_tar(path, [(tarfile.TarInfo("a"), noise)], mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError):
        fetch(ArchiveLocation(archive=FileLocation(path=str(path)), member="a", sha256=sha(noise)), settings=settings)
    assert not [p for p in (settings.cache / "artifacts").rglob("*") if p.is_file()]


def test_damaged_bytes_in_a_zip_are_an_error(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": BODY}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="CRC"):
        read(path, "a")


def test_encrypted_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="encrypted"):
        read(path, "a")


def test_other_files_are_not_archives(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(ArtifactError, match="not an archive of a known kind"):
        read(tmp_path / "a.zip", "a")


@given(st.text(alphabet="a./\\:\0b", max_size=12))
@example("a/..")
@example("..a/b")
def test_is_inside_agrees_with_path_arithmetic(name):
    import posixpath

    plain = name.replace("\\", "/")
    if is_inside(name):
        assert not plain.startswith("/")
        assert posixpath.normpath(plain).split("/")[0] != ".."
        assert "\0" not in name
    elif name and "\0" not in name and name[1:2] != ":":
        assert plain.startswith("/") or ".." in plain.split("/")
