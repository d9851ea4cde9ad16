"""Where settings come from, and what a malformed one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlscope_lab.config import load_settings, manifest_roots
from mlscope_lab.errors import ConfigError


def test_the_order_is_argument_environment_file_default(tmp_path):
    (tmp_path / "config.toml").write_text('offline = true\nindex_url = "file"\ndownload_timeout_s = 5\n')
    environ = {"MLSCOPE_HOME": str(tmp_path), "MLSCOPE_INDEX_URL": "environment"}
    found = load_settings(environ=environ, download_timeout_s=7.0)
    assert (found.offline, found.index_url, found.download_timeout_s) == (True, "environment", 7.0)
    assert found.max_artifact_bytes == 20_000_000_000
    assert dict(found.origins) == {
        "home": "environment",
        "offline": "config.toml",
        "index_url": "environment",
        "download_timeout_s": "argument",
        "path": "default",
        "max_artifact_bytes": "default",
    }


def test_reading_settings_makes_no_folder(tmp_path):
    load_settings(home=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MLSCOPE_OFFLINE": "perhaps"}, "MLSCOPE_OFFLINE must be true or false, not 'perhaps'"),
        ({"MLSCOPE_DOWNLOAD_TIMEOUT_S": "-1"}, "must be positive"),
        ({"MLSCOPE_MAX_ARTIFACT_BYTES": "many"}, "must be a number, not 'many'"),
    ],
)
def test_a_malformed_variable_is_named(tmp_path, environ, words):
    with pytest.raises(ConfigError, match=words):
        load_settings(home=tmp_path, environ=environ)


@pytest.mark.parametrize(("text", "words"), [("ofline = true", "unknown key 'ofline'"), ("a = [", "config.toml")])
def test_a_malformed_file_is_named(tmp_path, text, words):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_settings(home=tmp_path, environ={})


def test_an_unknown_argument_is_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown setting 'hom'"):
        load_settings(home=tmp_path, environ={}, hom=1)


def test_user_folders_come_first(tmp_path):
    (tmp_path / "mine").mkdir()
    found = load_settings(home=tmp_path, environ={"MLSCOPE_PATH": f"{tmp_path / 'mine'}:{tmp_path / 'absent'}"})
    roots = manifest_roots(found)
    assert roots[0] == tmp_path / "mine"
    assert tmp_path / "absent" not in roots
    assert any((Path(root) / "models").is_dir() for root in roots[1:])
