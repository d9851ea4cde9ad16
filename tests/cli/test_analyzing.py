"""The command analyze: the list, every analysis as JSON and as a table, options, and wrong questions."""

from __future__ import annotations

import json

import pytest

from mlscope_lab.cli.analyzing import as_tables
from mlscope_lab.store import Store
from mlscope_lab.testing import synthetic_run
from tests.cli.conftest import Workspace, _make

KEYS = {"analysis", "number", "title", "runs", "attrs", "units", "scalars", "tables"}
ALL = [
    "model_information", "layer_information", "layer_latency", "layer_memory", "layer_types", "latency_by_type",
    "memory_by_type", "kernel_information", "kernel_roofline", "kernels_by_name", "kernels_by_layer",
    "metrics_by_layer", "device_and_host_by_layer", "layer_roofline", "kernels_by_model",
]  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a folder with two stored runs of every level."""
    made = _make(tmp_path_factory.mktemp("analyzed"))
    store = Store(made.home / "runs")
    for seed in (0, 1):
        store.save(synthetic_run(seed=seed, deep=True, batch_size=seed + 1))
    return made


def test_the_list_holds_the_fifteen_in_order(filled: Workspace) -> None:
    found = filled.json("analyze")
    assert [(a["number"], a["name"]) for a in found[:15]] == [(f"A{i + 1}", name) for i, name in enumerate(ALL)]
    assert all(set(a) == {"name", "number", "title", "several_runs", "options"} for a in found)
    assert {"critical_path", "idle_breakdown", "what_if", "predict_latency"} <= {a["name"] for a in found}
    assert "A15" in filled.invoke("analyze").stdout


@pytest.mark.parametrize("number", range(1, 16))
def test_every_one_of_the_fifteen(filled: Workspace, number: int) -> None:
    found = filled.json("analyze", "latest", "--analysis", f"A{number}")
    assert set(found) == KEYS
    assert (found["analysis"], found["number"]) == (ALL[number - 1], f"A{number}")
    ((_, table),) = found["tables"].items()
    assert table["count"] == len(table["rows"]) > 0
    shown = filled.invoke("analyze", "--analysis", ALL[number - 1])
    assert shown.exit_code == 0
    assert found["title"] in shown.stdout.replace("\n", " ")


def test_limit_says_what_it_leaves_out(filled: Workspace) -> None:
    found = filled.json("analyze", "latest", "-a", "layer-latency", "--limit", "3")
    assert len(found["tables"]["layer"]["rows"]) == 3
    assert found["tables"]["layer"]["count"] == 14
    assert "and 11 more" in filled.invoke("analyze", "-a", "A3", "--limit", "3").stdout


def test_several_runs(filled: Workspace) -> None:
    ids = [row["run_id"] for row in filled.json("runs")]
    found = filled.json("analyze", *ids, "-a", "A1")
    assert {row["batch_size"] for row in found["tables"]["run"]["rows"]} == {1.0, 2.0}
    refused = filled.invoke("analyze", *ids, "-a", "A3", "--json")
    assert refused.exit_code == 1
    assert "takes one run, not 2" in json.loads(refused.stderr)["error"]["message"]


def test_options(filled: Workspace) -> None:
    found = filled.json("analyze", "-a", "what_if", "-o", "factor=4", "-o", "layer=block0.layer1")
    assert found["attrs"]["factor"] == 4.0
    (row,) = found["tables"]["layer"]["rows"]
    assert row["layer"] == "block0.layer1"
    assert "has no option 'factr'" in filled.invoke("analyze", "-a", "what_if", "-o", "factr=4").stderr
    assert filled.invoke("analyze", "-a", "what_if", "-o", "factor").exit_code == 2


def test_an_unknown_analysis_suggests_the_nearest(filled: Workspace) -> None:
    result = filled.invoke("analyze", "-a", "layer_latncy")
    assert result.exit_code == 1
    assert "Did you mean 'layer_latency'" in result.stderr


def test_open_shows_what_each_level_cost(filled: Workspace) -> None:
    shown = filled.invoke("open", "latest").stdout
    table = shown[shown.index("Passes by level") :].splitlines()
    assert "over the level above [interval]" in table[1]
    assert [line.split()[0] for line in table[2:5]] == ["model", "layer", "kernel"]
    assert "equal" in table[3]
    (model, layer, kernel) = filled.json("open", "latest")["levels"]
    assert model["overhead"] is None
    assert kernel["overhead"] == pytest.approx(1.0)
    assert layer["outputs_equal"] == 1


def test_tables_of_two_dimensions() -> None:
    import xarray as xr

    data = xr.Dataset({"x": (("a", "b"), [[1.0, float("nan")]], {"units": "ns"})}, coords={"a": ["p"], "b": [5, 6]})
    found = as_tables(data)
    assert found["tables"] == {
        "a,b": {"count": 2, "rows": [{"a": "p", "b": 5, "x": 1.0}, {"a": "p", "b": 6, "x": None}]}
    }
    assert found["units"] == {"x": "ns"}
