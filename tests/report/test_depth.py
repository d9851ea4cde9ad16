from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.report import write_report
from mlscope_lab.report.depth import levels_section, work_section
from mlscope_lab.report.view import view_runs
from mlscope_lab.testing import synthetic_events, synthetic_run
from mlscope_lab.trace.build import build_imported
from mlscope_lab.trace.records import EventTable


def imported(**changes):
    events = synthetic_events(layers=4, iterations=2)
    columns = {**events["kernels"].columns, "layer_index": np.full(len(events["kernels"]), -1, dtype=np.int32)}
    operators = {**events["operators"].columns, "layer_index": np.full(len(events["operators"]), -1, dtype=np.int32)}
    groups = {
        "operators": EventTable(columns=operators, tables=events["operators"].tables),
        "runtime": events["runtime"],
        "kernels": EventTable(columns=columns, tables={**events["kernels"].tables, **changes}),
    }
    return build_imported(
        attrs={"model": "trace.json", "backend": "kineto"}, events=groups, wall_ns=2_000_000, level="kernel"
    )


def test_each_level_stands_with_its_cost_over_the_one_above():
    section = levels_section(view_runs([synthetic_run(deep=True)]))
    assert [section.index(f">{level}<") for level in ("model", "layer", "kernel")] == sorted(
        section.index(f">{level}<") for level in ("model", "layer", "kernel")
    )
    assert "Over the level above" in section
    assert "1.00 [1.00, 1.00]" in section  # the synthetic kernel pass takes as long as its layer pass
    assert levels_section(view_runs([synthetic_run()])) == ""


def test_kernels_are_summed_by_name_and_the_device_said_to_be_busy():
    section = work_section(view_runs([synthetic_run(deep=True)]))
    assert "implicit_gemm_128x64" in section
    assert "Device 0 was busy for" in section
    assert "Kernels: work on the device. Times are of one iteration, at level kernel." in section
    assert work_section(view_runs([synthetic_run()])) == ""


def test_an_imported_trace_is_reported_with_its_names_escaped(tmp_path: Path):
    path = write_report(imported(name=("<b>gemm</b>", "k1", "k2", "Memcpy HtoD")), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "&lt;b&gt;gemm&lt;/b&gt;" in text
    assert "<b>gemm" not in text
    assert "kineto" in text


def test_a_run_without_events_in_its_groups_says_nothing():
    empty = EventTable(columns={"start_ns": np.zeros(0, dtype=np.int64), "duration_ns": np.zeros(0, dtype=np.int64)})
    run = build_imported(attrs={"model": "m", "backend": "b"}, events={"operators": empty}, wall_ns=0, level="operator")
    assert work_section(view_runs([run])) == ""


@pytest.mark.parametrize("seed", [1, 2])
def test_shares_of_all_names_are_at_most_one(seed):
    from mlscope_lab.analysis.kernels import kernels_by_name

    assert float(kernels_by_name(synthetic_run(deep=True, seed=seed))["share"].sum()) <= 1.0 + 1e-9
