from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.analysis.work import KINDS, cells_of, events_of, kinds_of, layer_labels, work_of
from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.testing import synthetic_run


def test_kernels_come_before_what_stands_for_them(run):
    work = work_of(run)
    assert work.group == "kernels"
    assert work.unit == "kernel"
    assert work.iterations == 16
    assert len(work) == run["kernels"].sizes["kernel"]
    assert layer_labels(run)[-1] == "(no layer)"


def test_counter_ranges_stand_for_kernels(imported):
    ranges = [
        {"name": "k", "start_ns": 0, "duration_ns": 10, "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum": 5.0,
         "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum": 2.0},
    ]  # fmt: skip
    operators = [{"name": "aten::add", "start_ns": 0, "duration_ns": 100}]
    work = work_of(imported(counters=ranges, operators=operators))
    assert work.group == "counters"
    assert "no device kernels" in work.source
    assert work.metrics["flops"].tolist() == [12.0]  # a fused multiply-add is two operations


def test_operators_stand_for_kernels_with_their_exclusive_time(imported):
    operators = [
        {"name": "outer", "start_ns": 0, "duration_ns": 100, "parent_index": -1, "flops": 7, "iteration": 0},
        {"name": "inner", "start_ns": 10, "duration_ns": 60, "parent_index": 0, "flops": 7, "iteration": 0},
        {"name": "alone", "start_ns": 200, "duration_ns": 5, "parent_index": -1, "flops": -1, "iteration": -1},
    ]
    work = work_of(imported(operators=operators))
    assert work.source.startswith("operators: no device kernels")
    assert work.duration.tolist() == [40, 60, 5]
    assert work.length.tolist() == [100, 60, 5]
    assert work.iteration.tolist() == [0, 0, -1]
    # the same multiplication, said by the operator that does it and by the one that calls it, counts once
    assert np.nansum(work.metrics["flops"]) == 7


def test_only_the_passes_that_trace_least_count(run):
    import dataclasses

    from mlscope_lab.testing import synthetic_events, synthetic_pass
    from mlscope_lab.trace.build import build_run

    passes = [synthetic_pass()]
    for level, anchor in (("operator", 10**9), ("kernel", 10**10)):
        record = synthetic_pass(level="layer", anchor_ns=anchor, iterations=8)
        events = synthetic_events(anchor_ns=anchor)
        kept = {"operators": events["operators"]} if level == "operator" else events
        trace = dataclasses.replace(record.layers, events=kept)
        passes.append(dataclasses.replace(record, level=level, layers=trace))
    deep = build_run(attrs={**run.attrs, "level": "full"}, passes=passes)
    assert work_of(deep, group="operators").rows.level == "operator"
    assert len(work_of(deep, group="operators")) * 2 == deep["operators"].sizes["operator"]
    assert work_of(deep, group="operators", deepest=True).rows.level == "kernel"
    assert events_of(deep, "kernels").level == "kernel"
    inner = events_of(deep, "operators", of_pass=2)
    assert (inner.column("pass_index") == 2).all()


def test_kinds_by_category_and_name():
    names, categories = kinds_of(
        np.array(["Memcpy DtoH", "ncclDevKernel_AllReduce", "gemm_memset_like", "x"]),
        np.array(["gpu_memcpy", "kernel", "cuda_sync"]),
    )
    assert [KINDS[k] if k >= 0 else None for k in names] == ["memory", "communication", None, None]
    assert [KINDS[k] if k >= 0 else None for k in categories] == ["memory", None, "synchronisation"]


def test_a_run_without_either_says_the_way_out(flat):
    with pytest.raises(SchemaError, match="level='operator'"):
        work_of(flat)
    bare = synthetic_run(layers=0, unavailable={"kernels": "there is no GPU here"})
    with pytest.raises(SchemaError, match="there is no GPU here"):
        work_of(bare)


def test_counts_of_the_whole_process_are_no_kernels(imported):
    counted = [{"name": "pass", "category": "process", "start_ns": 0, "duration_ns": 10, "cycles": 1.0}]
    operators = [{"name": "aten::add", "start_ns": 0, "duration_ns": 100}]
    run = imported(counters=counted, operators=operators)
    assert work_of(run).group == "operators"
    with pytest.raises(SchemaError, match="has no counters"):
        work_of(run, group="counters")


def test_numbers_of_iterations_may_be_any(imported):
    common = {"name": "k", "category": "kernel", "duration_ns": 1, "stream": 0, "device": 0}
    numbers = [2**31 - 1, -1, 7, 2**31 - 1]
    work = work_of(imported(kernels=[common | {"start_ns": i, "iteration": n} for i, n in enumerate(numbers)]))
    assert work.iterations == 2
    assert work.iteration.tolist() == [1, -1, 0, 1]


def test_a_table_that_fits_no_memory_is_refused():
    assert cells_of(1000, 1000) == 10**6
    with pytest.raises(InputError, match="too large to be summarised"):
        cells_of(10**6, 10**6)
