"""oneDNN's log: its lines, what others print meanwhile, and where primitives are put."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlscope_lab.backends.pytorch_events import Frame
from mlscope_lab.backends.pytorch_primitives import CATEGORY, PrimitiveLog, Primitives, add_primitives, parse_line
from mlscope_lab.trace.records import EventTable

LINE = (
    "v1,1795574388502.209961,primitive,exec,cpu,convolution,jit:avx512_core,forward_training,"
    "src:f32:a:blocked:abcd::f0 wei:f32::blocked:Acdb16a::f0,attr-scratchpad:user,alg:convolution_direct,"
    "mb1_ic3oc32_ih225oh112kh3sh2dh0ph0,0.215088"
)


def test_a_line_of_the_log():
    found = Primitives()
    parse_line(LINE + "\n", found)
    assert found.start_ns == [1795574388502210000]
    assert found.duration_ns == [215088]
    assert found.name == ["onednn::convolution jit:avx512_core"]
    assert found.problem == [
        "src:f32:a:blocked:abcd::f0 wei:f32::blocked:Acdb16a::f0; alg:convolution_direct; "
        "mb1_ic3oc32_ih225oh112kh3sh2dh0ph0"
    ]


def test_lines_of_older_versions():
    found = Primitives()
    parse_line(LINE.replace("v1,", "").replace("primitive,", ""), found)
    assert found.start_ns == [1795574388502210000]
    parse_line("exec" + LINE.partition("exec")[2], found)
    assert len(found) == 1
    assert found.unplaced == 1


@pytest.mark.parametrize(
    "line",
    [
        "v1,info,oneDNN v3.12.0 (commit 80afa71049cd69a3df32adcccb623b12cd7baa22)",
        "v1,primitive,info,template:timestamp,operation,engine,primitive,implementation,prop_kind,x,y,z,exec_time",
        "v1,1.5,primitive,create:cache_miss,cpu,reorder,jit:uni,undef,a,b,,32x3,0.0031",
        LINE.rpartition(",")[0] + ",soon",
        LINE[:60],
        "",
        ",,,,",
    ],
)
def test_other_lines_are_no_primitives(line):
    found = Primitives()
    parse_line(line, found)
    assert len(found) == found.unplaced == 0


WORDS = ("v1", "nan", "inf", "-1", "1e300", "exec", "primitive", "cpu", "7.5", "x")


@given(st.lists(st.sampled_from(WORDS), max_size=16))
@example(["exec", *["v1"] * 8, "inf"])
@example(["exec", *["v1"] * 8, "nan"])
def test_no_line_can_break_it(fields):
    found = Primitives()
    parse_line(",".join(fields), found)
    assert all(0 <= start < 2**63 for start in found.start_ns)
    assert all(0 <= length < 2**62 for length in found.duration_ns)


def operators():
    return EventTable(
        columns={
            "start_ns": np.array([10_000, 12_000, 40_000]), "duration_ns": np.array([20_000, 10_000, 5_000]),
            "thread_code": np.zeros(3, np.int32), "name_code": np.arange(3, dtype=np.int32),
            "category_code": np.zeros(3, np.int32), "iteration": np.zeros(3, np.int32),
            "parent_index": np.array([-1, 0, -1], np.int32), "layer_index": np.array([4, 4, 5], np.int32),
            "shapes_code": np.array([0, -1, 0], np.int32), "allocated_bytes": np.array([1, 2, 3]),
        },
        tables={"name": ("a", "b", "c"), "category": ("cpu_op",), "thread": ("1/1",), "shapes": ("float32[1]",)},
    )  # fmt: skip


def test_a_primitive_belongs_to_the_operator_that_was_running():
    none = np.zeros(0, dtype=np.int64)
    frame = Frame(
        start_ns=none, duration_ns=none, thread=none, layer=none.astype(np.int32), offset_ns=5_000,
        iteration_start_ns=np.array([0]), iteration_duration_ns=np.array([60_000]),
    )  # fmt: skip
    primitives = Primitives(
        start_ns=[8_000, 22_000, 70_000], duration_ns=[4_000, 1_000, 1_000], name=["onednn::x y"] * 2 + ["onednn::z y"],
        problem=["float32[1]", "", "p"],
    )  # fmt: skip
    found = add_primitives(operators(), primitives, frame, ["1/1"])
    assert len(found) == 6
    assert found.columns["start_ns"].tolist()[3:] == [13_000, 27_000, 75_000]
    assert found.columns["parent_index"].tolist() == [-1, 0, -1, 1, 0, -1]
    assert found.columns["layer_index"].tolist() == [4, 4, 5, 4, 4, -1]
    assert found.columns["iteration"].tolist() == [0, 0, 0, 0, 0, -1]
    assert found.columns["allocated_bytes"].tolist() == [1, 2, 3, -1, -1, -1]
    assert found.tables["category"] == ("cpu_op", CATEGORY)
    assert [found.tables["name"][c] for c in found.columns["name_code"][3:]] == primitives.name
    assert [found.tables["shapes"][c] for c in found.columns["shapes_code"][3:]] == primitives.problem
    assert add_primitives(operators(), Primitives(), frame, ["1/1"]).tables == operators().tables


SCRIPT = """
import os, sys, torch
from mlscope_lab.backends.pytorch_primitives import PrimitiveLog
conv, x = torch.nn.Conv2d(16, 32, 3), torch.zeros(1, 16, 64, 64)
print("before")
log = PrimitiveLog()
log.start()
print("from Python", flush=True)  # else it waits in a buffer while the raw lines pass it
os.write(1, b"a raw line and a rest")
with torch.inference_mode():
    conv(x)
os.write(1, b"the end")
found = log.stop()
log.stop()
with torch.inference_mode():
    conv(x)
print("after", len(found), any("convolution" in name for name in found.name), log.unavailable)
"""


def test_what_others_print_is_passed_on():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    environment = {k: v for k, v in os.environ.items() if "VERBOSE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    lines = done.stdout.splitlines()
    assert "onednn_verbose" not in done.stdout
    assert lines[:2] == ["before", "from Python"]
    assert lines[2] == "a raw line and a restthe endafter " + lines[2].rpartition("after ")[2]
    count, convolution, reasons = lines[2].rpartition("after ")[2].split(" ", 2)
    assert int(count) >= 1
    assert (convolution, reasons) == ("True", "{}")


def test_a_log_begun_before_says_why_it_has_no_times():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    early = (
        "import torch\nwith torch.backends.mkldnn.verbose(1), torch.inference_mode():\n"
        "    torch.nn.Conv2d(16, 32, 3)(torch.zeros(1, 16, 64, 64))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", early + SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    assert "without a time" in done.stdout
    assert "on='subprocess'" in done.stdout


def test_without_standard_output_there_is_a_reason():
    pytest.importorskip("torch", reason="needs PyTorch")
    script = (
        "import os; os.close(1)\nfrom mlscope_lab.backends.pytorch_primitives import PrimitiveLog\n"
        "log = PrimitiveLog(); log.start(); found = log.stop()\n"
        "import sys; sys.stderr.write(str(log.unavailable))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "no standard output" in done.stderr


def test_stopping_what_never_started():
    assert len(PrimitiveLog().stop()) == 0
