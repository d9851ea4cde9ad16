from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.backends.base import Session, TensorSpec
from mlscope_lab.collectors import collectors_for
from mlscope_lab.collectors.base import Collector
from mlscope_lab.measure import PassPlan, Workload, run_pass
from mlscope_lab.trace.events import attrs_of_pass, table_of
from mlscope_lab.trace.records import EventTable


class Doubling(Session):
    """A session that notes what happened, in order."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=(2,)),)

    def __init__(self, happened: list[str]) -> None:
        super().__init__()
        self.happened = happened

    def _predict(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.happened.append("predict")
        return {"y": 2 * feeds["x"]}


class Noting(Collector):
    """A collector that notes what happened, and records two samples."""

    name = "noting"

    def __init__(self, happened: list[str], group: str = "memory", **fails: str) -> None:
        super().__init__()
        self.happened, self.group, self.fails = happened, group, fails

    def _do(self, what: str) -> None:
        if what in self.fails:
            raise OSError(self.fails[what])
        self.happened.append(what)

    def unavailable(self, device):
        return {"noting half": "it has but one"}

    def prepare(self, device):
        self._do(f"prepare on {device}")

    def start(self, device):
        self._do("start")

    def stop(self):
        self._do("stop")
        self.missing["noting end"] = "it stopped early"
        columns = {"time_ns": np.array([1, 2]), "device_code": np.zeros(2, dtype=np.int32)}
        return {self.group: EventTable(columns=columns, tables={"device": (self.group,)})}


def measured(collectors, happened, **plan):
    session = Doubling(happened)
    feeds = {"x": np.ones(2, dtype=np.float32)}
    workload = Workload(prepare=lambda: feeds, finish=lambda outputs: None)
    plan = PassPlan(
        level="hardware", session_level="model", iterations=3, warmup_iterations=2, warmup_seconds=0, **plan
    )
    return run_pass(session, workload, plan, collectors=collectors)


def test_collectors_prepare_before_the_warm_up_and_watch_the_measured_part_alone():
    happened: list[str] = []
    record = measured([Noting(happened)], happened)
    assert happened == ["prepare on cpu", "predict", "predict", "start", "predict", "predict", "predict", "stop"]
    assert record.unavailable == {"noting half": "it has but one", "noting end": "it stopped early"}
    assert record.events["memory"].columns["iteration"].tolist() == [-1, -1]


def test_two_collectors_may_record_one_group():
    happened: list[str] = []
    record = measured([Noting(happened, "power"), Noting(happened, "power")], happened)
    assert len(record.events["power"]) == 4
    assert "iteration" not in record.events["power"].columns


@pytest.mark.parametrize("moment", ["prepare on cpu", "start"])
def test_a_collector_that_cannot_start_is_left_out_with_its_reason(moment):
    happened: list[str] = []
    record = measured([Noting(happened, **{moment: "no such counter"}), Noting(happened, "power")], happened)
    assert record.unavailable["noting"] == "no such counter"
    assert set(record.events) == {"power"}
    assert happened.count("stop") == 1


def test_collectors_stop_when_a_predict_fails():
    happened: list[str] = []
    session = Doubling(happened)
    count = iter(range(100))

    def prepare():
        if next(count) == 3:
            raise RuntimeError("no more input")
        return {"x": np.ones(2, dtype=np.float32)}

    plan = PassPlan(level="hardware", session_level="model", iterations=5, warmup_iterations=2, warmup_seconds=0)
    with pytest.raises(RuntimeError, match="no more input"):
        run_pass(session, Workload(prepare=prepare, finish=lambda outputs: None), plan, collectors=[Noting(happened)])
    assert happened[-1] == "stop"


def test_headline_latency_is_never_watched():
    assert collectors_for("model") == []
    assert {c.name for c in collectors_for("hardware")} >= {"memory", "nvml", "rapl", "perf_events"}


def test_a_hardware_pass_of_a_callable_holds_what_this_machine_tells_and_names_the_rest(settings):
    run = ml.profile(
        lambda x: np.repeat(x, 1000).sum(keepdims=True), np.ones(2000, dtype=np.float32), level="hardware",
        iterations=20, save=True, progress=False, settings=settings,
    )  # fmt: skip
    memory = run["memory"].to_dataset()
    levels = list(run["passes"]["level"].values)
    assert levels[-1] == "hardware"
    np.testing.assert_array_equal(memory["pass_index"], len(levels) - 1)
    assert set(table_of(memory, "device")) == {"process"}
    assert (memory["allocated_bytes"].values > 10e6).all()
    assert memory["iteration"].values.max() <= 19
    attrs = attrs_of_pass(memory, len(levels) - 1)
    assert attrs["page_faults_minor"] >= 0
    reasons = run.attrs["unavailable"]
    assert "nvml" in reasons
    for what in ("rapl", "perf_events"):
        groups = {"rapl": "power", "perf_events": "counters"}
        assert any(key.split()[0] == what for key in reasons) or groups[what] in run.children
    assert run["passes"]["overhead_ratio"].values[-1] > 0
    again = ml.open_run(run.attrs["run_id"], settings=settings)
    np.testing.assert_array_equal(again["memory"]["allocated_bytes"], memory["allocated_bytes"])


def test_attributes_that_differ_between_processes_stand_by_pass(settings, tmp_path):
    from mlscope_lab.trace.events import PassEvents, datasets_of

    def of(peak):
        columns = {"time_ns": np.array([1])}
        return {"memory": EventTable(columns=columns, attrs={"process_peak_bytes": peak, "process_period_s": 0.005})}

    data = datasets_of([PassEvents(pass_index=1, anchor_ns=0, groups=of(7)),
                        PassEvents(pass_index=3, anchor_ns=0, groups=of(9))])["memory"]  # fmt: skip
    assert data.attrs["process_period_s"] == 0.005
    assert attrs_of_pass(data, 1)["process_peak_bytes"] == 7
    assert attrs_of_pass(data, 3) == {"process_period_s": 0.005, "process_peak_bytes": 9}
