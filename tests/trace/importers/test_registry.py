from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from mlscope_lab import plugins
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.importers import detect_format, formats, import_trace
from mlscope_lab.trace.importers.base import Importer


def load(path, *, max_bytes, progress):
    return build_imported(attrs={"model": path.name, "backend": "mine"}, events={}, wall_ns=max_bytes, level="operator")


@pytest.fixture
def plugged(monkeypatch):
    module = types.ModuleType("mlscope_test_importer")
    module.MINE = Importer(title="mine", recognises=lambda head: b'"mine"' in head.data, load=load)
    monkeypatch.setitem(sys.modules, "mlscope_test_importer", module)
    points = [
        EntryPoint("mine", "mlscope_test_importer:MINE", "mlscope_lab.importers"),
        EntryPoint("broken", "mlscope_test_importer:ABSENT", "mlscope_lab.importers"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "mlscope_lab.importers" else [])
    plugins.refresh()
    yield
    plugins.refresh()


@pytest.mark.usefixtures("plugged")
def test_a_plugin_is_asked_before_the_formats_that_many_tools_write(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text('{"mine": 1, "traceEvents": []}')
    assert formats()[-2:] == ["broken", "mine"]
    with pytest.warns(UserWarning, match="Plugin 'broken'"):
        assert detect_format(path) == "mine"
    run = import_trace(path, format="mine", max_bytes=77)
    assert (run.attrs["backend"], run["passes"]["wall_ns"].values.tolist()) == ("mine", [77])
    path.write_text('{"traceEvents": []}')
    with pytest.warns(UserWarning, match="Plugin 'broken'"):
        assert detect_format(path) == "chrome"
