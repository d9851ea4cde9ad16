"""Plugins of other packages: found, shadow nothing, and break nothing."""

from __future__ import annotations

import pytest

from mlscope_lab import plugins
from mlscope_lab.errors import PluginError


@pytest.fixture
def package(tmp_path, monkeypatch):
    def make(entry_points: str, source: str) -> None:
        info = tmp_path / "extra-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (tmp_path / "extra_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        plugins.refresh()

    yield make
    monkeypatch.undo()
    plugins.refresh()


def test_a_plugin_is_found_after_the_built_ins(package):
    package("[mlscope_lab.steps]\nnegate = extra_plugin:Negate\n", "class Negate:\n    pass\n")
    names = plugins.names("mlscope_lab.steps")
    assert names[0] == next(iter(plugins.BUILTINS["mlscope_lab.steps"]))
    assert "negate" in names
    assert plugins.load("mlscope_lab.steps", "negate").__name__ == "Negate"


def test_a_broken_plugin_warns_and_is_left_out(package):
    package("[mlscope_lab.steps]\nbroken = extra_plugin:Missing\n", "raise RuntimeError('broken at import')\n")
    with pytest.warns(UserWarning, match="'broken' of group 'mlscope_lab.steps' is left out"):
        found = dict(plugins.load_all("mlscope_lab.steps"))
    assert "softmax" in found
    assert "broken" not in found


def test_a_plugin_cannot_take_a_built_in_name(package):
    package("[mlscope_lab.steps]\nsoftmax = extra_plugin:Evil\n", "class Evil:\n    pass\n")
    with pytest.warns(UserWarning, match="a name that mlscope-lab itself uses"):
        names = plugins.names("mlscope_lab.steps")
    assert names.count("softmax") == 1
    assert plugins.load("mlscope_lab.steps", "softmax").__module__ == "mlscope_lab.processing.classification"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(PluginError, match="Did you mean 'softmax'"):
        plugins.load("mlscope_lab.steps", "sotfmax")


@pytest.mark.parametrize("group", list(plugins.BUILTINS))
def test_every_built_in_loads(group):
    for name in plugins.BUILTINS[group]:
        if group == "mlscope_lab.architectures":
            pytest.importorskip("torch")
        assert plugins.load(group, name) is not None
