from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import mlscope_lab as ml
from mlscope_lab import plugins
from mlscope_lab.analysis.registry import ACROSS_STACK, analyses, analyze, find
from mlscope_lab.errors import InputError, RunNotFoundError, SchemaError
from mlscope_lab.store import Store
from mlscope_lab.testing import synthetic_failed_run

NAMES = plugins.names("mlscope_lab.analyses")
NEED_MORE = {"roofline"}  # peaks of the machine that the run was measured on


def test_the_fifteen_come_first_and_by_number():
    assert NAMES[:15] == list(ACROSS_STACK.values())
    assert list(ACROSS_STACK) == [f"A{n}" for n in range(1, 16)]
    assert find("a6").name == find("latency-by-type").name == "latency_by_type"
    assert all(number in find(number).title for number in ACROSS_STACK)


def test_every_analysis_says_what_it_does():
    for found in analyses():
        assert found.title.endswith(".")
        for section in ("Parameters", "Returns"):
            assert section in (found.function.__doc__ or ""), found.name


# these need more than the synthetic run holds: tests/test_roofs.py, tests/analysis/test_process.py
ELSEWHERE = {"process_counters", "roofline"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_every_analysis_of_a_deep_run(run, name):
    given = [run, run] if name == "predict_latency" else run
    before = run.copy(deep=True)
    found = ml.analyze(given, name)
    assert isinstance(found, xr.Dataset)
    assert found.attrs["analysis"] == name
    for variable in found.data_vars.values():
        assert isinstance(variable.attrs["units"], str)
        if str(variable.name).endswith("_ns"):
            assert variable.attrs["units"] == "ns"
    xr.testing.assert_identical(run, before)
    xr.testing.assert_identical(ml.analyze(given, name), found)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_MORE])
def test_a_failed_run_is_refused_with_its_reason(name):
    failed = synthetic_failed_run()
    with pytest.raises((SchemaError, InputError), match="has no "):
        analyze([failed, failed] if find(name).several else failed, name)


def test_stored_runs_by_id(settings, run):
    Store(settings.runs).save(run)
    by_id = ml.analyze("latest", "A10", settings=settings)
    xr.testing.assert_identical(by_id, run.mlscope.analyze("A10"))
    assert ml.analyze([run.attrs["run_id"][:16], run], "A1", settings=settings).sizes["run"] == 2
    with pytest.raises(RunNotFoundError):
        ml.analyze("1999", "A1", settings=settings)


def test_wrong_questions(run):
    with pytest.raises(InputError, match="Did you mean 'critical_path'"):
        analyze(run, "critical_pth")
    with pytest.raises(InputError, match="takes one run, not 2"):
        analyze([run, run], "A2")
    with pytest.raises(InputError, match=r"has no option 'peak_flop'\. Options: peak_flops"):
        analyze(run, "A9", peak_flop=1.0)
    with pytest.raises(InputError, match="needs a run"):
        analyze([], "A2")


def test_a_plugin_is_an_analysis_too(tmp_path, monkeypatch, run):
    info = tmp_path / "more-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mlscope_lab.analyses]\nlayer_count = more_analyses:layer_count\n")
    (tmp_path / "more_analyses.py").write_text(
        "import xarray as xr\n\n\ndef layer_count(run, *, twice=False):\n"
        '    """Count the layers."""\n'
        '    return xr.Dataset({"n": run["layers"].sizes["layer"] * (1 + twice)})\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.refresh()
    try:
        assert find("layer_count").options == {"twice": False}
        assert int(run.mlscope.analyze("layer_count", twice=True)["n"]) == 24
    finally:
        monkeypatch.undo()
        plugins.refresh()


def test_events_as_tables(run):
    operators, kernels = run.mlscope.operators(), run.mlscope.kernels()
    assert len(kernels) == run["kernels"].sizes["kernel"]
    assert {"name", "category", "thread", "layer", "duration_ns"} <= set(operators)
    assert operators["name"].iloc[0] == "aten::conv2d"
    assert set(kernels["layer"]) == set(run["layers"]["name"].values)
    assert np.array_equal(kernels["duration_ns"], run["kernels"]["duration_ns"])
    assert kernels.index.name == "kernel"
