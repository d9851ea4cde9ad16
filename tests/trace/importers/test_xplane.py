"""XPlane profiles: bytes put together here by the protobuf's definition, and one that TensorFlow has just recorded."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.importers import detect_format, import_trace


def varint(value):
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number, value):
    """One field of a message: integers as numbers, floats as doubles, text and bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


STATS = {1: "step_num", 2: "correlation_id", 3: "kernel_details", 4: "memcpy_details", 5: "profile_start_time", 6: "x"}


def stat(key, value):
    return message((1, key), (5 if isinstance(value, str) else 4, value))


def event(key, offset_ps, duration_ps, *stats):
    return message((1, key), (2, offset_ps), (3, duration_ps), *((4, s) for s in stats))


def line(number, name, events, *, at=1000):
    return message((1, number), (2, name), (3, at), *((4, e) for e in events))


def plane(name, lines, names, *, stats=()):
    """A plane; `names` are {metadata id: (name, display name)}."""
    entries = [message((1, key), (2, message((1, key), (2, n), (4, shown)))) for key, (n, shown) in names.items()]
    kinds = [message((1, key), (2, message((1, key), (2, n)))) for key, n in STATS.items()]
    return message((2, name), *((3, one) for one in lines), *((4, e) for e in entries), *((5, k) for k in kinds),
                   *((6, s) for s in stats))  # fmt: skip


HOST = plane("/host:CPU", [
    line(7, "python", [event(1, 0, 900_000, stat(1, 0)), event(2, 10_000, 500_000),
                       event(1, 1_000_000, 900_000, stat(1, 1)), event(2, 1_100_000, 500_000)]),
    line(8, "worker", [event(3, 100_000, 200_499), event(3, 1_200_500, 200_000), event(4, 120_000, 0)]),
], {1: ("step", ""), 2: ("EagerExecute", ""), 3: ("model/conv/Conv2D:_FusedConv2D", "_FusedConv2D"),
    4: ("Region", "")})  # fmt: skip
CUPTI = plane("/host:CUPTI", [
    line(8, "worker", [event(1, 150_000, 10_000, stat(2, 41)), event(1, 1_250_000, 10_000, stat(2, 42))]),
], {1: ("cuLaunchKernel", "")})  # fmt: skip
DETAILS = "regs:32 static_shared:1024 dynamic_shared:16 grid:4,2,1 block:128,1,1 occ_pct:50"
GPU = plane("/device:GPU:1", [
    line(14, "Stream #14(Compute)", [event(1, 400_000, 300_000, stat(2, 41), stat(3, DETAILS)),
                                     event(1, 1_500_000, 300_000, stat(2, 42)),
                                     event(1, 1_900_000, 1_000, stat(2, 99))]),
    line(15, "Stream #15(MemcpyH2D)", [event(2, 200_000, 5_000, stat(4, "kind_src:pageable size:4096 dest:0"))]),
    line(20, "TensorFlow Ops", [event(1, 400_000, 300_000)]),
], {1: ("fused_conv", ""), 2: ("MemcpyH2D", "")})  # fmt: skip
TASK = plane("Task Environment", [], {}, stats=[stat(5, 1_795_574_691_949_847_285)])


def space(*planes, more=b""):
    return message(*((1, p) for p in planes)) + more


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "vm.xplane.pb"
    path.write_bytes(space(HOST, CUPTI, GPU, TASK))
    return path


def test_host_threads_are_operators_and_steps_iterations(profile):
    assert detect_format(profile) == "xplane"
    run = import_trace(profile)
    operators = run["operators"].dataset
    assert table_of(operators, "name") == ["EagerExecute"] * 2 + ["model/conv/Conv2D"] * 2 + ["Region"]
    assert table_of(operators, "category") == ["host"] * 2 + ["tf_op"] * 2 + ["host"]
    assert table_of(operators, "type") == ["", "", "_FusedConv2D", "_FusedConv2D", ""]
    assert table_of(operators, "thread") == ["python"] * 2 + ["worker"] * 3
    np.testing.assert_array_equal(operators["iteration"], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(operators["parent_index"], [-1, -1, -1, -1, 2])
    # rounded to whole nanoseconds, halves to even
    np.testing.assert_array_equal(operators["start_ns"], [10, 1100, 100, 1200, 120])
    np.testing.assert_array_equal(operators["duration_ns"], [500, 500, 200, 200, 0])
    assert table_of(run["annotations"].dataset, "name") == ["step", "step"]
    assert run["passes"]["measured_iterations"].values.tolist() == [2]
    assert run["passes"]["anchor_ns"].values.tolist() == [1000]
    assert run.attrs["clock_anchor_unix_ns"] == 1_795_574_691_949_847_285


def test_streams_are_kernels_of_the_operators_that_launched_them(profile):
    run = import_trace(profile)
    kernels = run["kernels"].dataset
    assert table_of(kernels, "name") == ["fused_conv"] * 3 + ["MemcpyH2D"]
    assert table_of(kernels, "category") == ["kernel"] * 3 + ["gpu_memcpy"]
    np.testing.assert_array_equal(kernels["device"], [1] * 4)
    np.testing.assert_array_equal(kernels["stream"], [14, 14, 14, 15])
    np.testing.assert_array_equal(kernels["runtime_index"], [0, 1, -1, -1])
    np.testing.assert_array_equal(kernels["operator_index"], [2, 3, -1, -1])
    np.testing.assert_array_equal(kernels["iteration"], [0, 1, -1, -1])
    np.testing.assert_array_equal(kernels["grid_x"], [4, -1, -1, -1])
    np.testing.assert_array_equal(kernels["shared_memory_bytes"], [1040, -1, -1, -1])
    np.testing.assert_array_equal(kernels["size_bytes"], [-1, -1, -1, 4096])
    np.testing.assert_array_equal(run["links"]["target_index"], [0, 1])
    assert run["passes"]["level"].values.tolist() == ["kernel"]


def test_gzip_and_the_folder_that_tensorflow_writes(profile, tmp_path):
    whole = import_trace(profile)
    folder = tmp_path / "log" / "plugins" / "profile"
    for time in ("2026_11_25_01", "2026_11_25_02"):
        (folder / time).mkdir(parents=True)
        (folder / time / "vm.xplane.pb").write_bytes(profile.read_bytes())
    packed = tmp_path / "vm.xplane.pb.gz"
    packed.write_bytes(gzip.compress(profile.read_bytes()))
    for path in (tmp_path / "log", packed):
        assert detect_format(path) == "xplane"
        found = import_trace(path)
        assert found["operators"].dataset.equals(whole["operators"].dataset)
    (folder / "2026_11_25_02" / "other.xplane.pb").write_bytes(profile.read_bytes())
    with pytest.raises(
        InputError, match=r"profiles of 2 hosts \(other.xplane.pb, vm.xplane.pb, ...\); import them one"
    ):
        import_trace(tmp_path / "log")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no .xplane.pb file"):
        import_trace(tmp_path / "empty", format="xplane")


def test_planes_of_other_kinds(tmp_path):
    lines = [line(1, "XLA Ops", [event(1, 0, 5_000)]), line(2, "XLA Modules", [event(1, 0, 9_000)])]
    tpu = plane("/device:TPU:0", lines, {1: ("fusion.1", "")})
    python = plane("/host:python-tracer", [line(1, "main", [event(1, 0, 5_000)])], {1: ("main.py:1 f", "")})
    other = plane("/custom:plane", [line(1, "x", [event(1, 0, 1), event(1, 5, 1)])], {})
    path = tmp_path / "tpu.xplane.pb"
    path.write_bytes(space(tpu, python, other, more=message((2, "lost"), (3, "partial"))))
    run = import_trace(path)
    assert table_of(run["kernels"].dataset, "name") == ["fusion.1"]
    assert table_of(run["annotations"].dataset, "category") == ["python"]
    assert run.attrs["warnings"] == ["lost", "partial", "2 events of the plane /custom:plane were left out"]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\xff" * 40, b"\x0a\x05/host", space(TASK),
        message((1, message((2, "/host:CPU"), (3, message((4, b"\x08")))))),
        message((1, message((2, "/host:CPU"), (3, message((4, b"\xff" * 11)))))),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_refused(data, tmp_path):
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x.xplane.pb (is not an XPlane profile, or was cut off|holds no events)"):
        import_trace(path)


def test_a_damaged_gzip_file(profile, tmp_path):
    packed = gzip.compress(profile.read_bytes())
    path = tmp_path / "vm.xplane.pb.gz"
    for data in (packed[: len(packed) // 2], packed[:30] + b"\xff" * 40 + packed[70:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="is not an XPlane profile, or was cut off"):
            import_trace(path, format="xplane")


def test_impossible_times_are_counted(tmp_path):
    events = [event(1, 0, -5), event(1, 2**63 - 1, 5), event(1, 0, 2**62), event(1, 3_000, 2_000)]
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(space(plane("/host:CPU", [line(1, "t", events)], {})))
    run = import_trace(path)
    assert run["passes"]["dropped_events"].values.tolist() == [3]
    assert run["operators"]["duration_ns"].values.tolist() == [2]
    assert table_of(run["operators"].dataset, "name") == [""]


def test_limits(profile, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="more than 100; profile fewer steps"):
        import_trace(profile, max_bytes=100)
    bomb = tmp_path / "bomb.xplane.pb.gz"
    bomb.write_bytes(gzip.compress(b"\x0a" * 3_000_000))
    with pytest.raises(InputError, match="holds more bytes than are allowed once decompressed"):
        import_trace(bomb, max_bytes=1_000_000)
    monkeypatch.setattr("mlscope_lab.trace.importers.xspace.MOST_EVENTS", 5)
    with pytest.raises(InputError, match="more than 5 events"):
        import_trace(profile)


def test_damaged_files_are_refused_or_read(profile, tmp_path):
    whole, chance = profile.read_bytes(), random.Random(3)
    path = tmp_path / "x.xplane.pb"
    for number in range(300):
        data = bytearray(whole)
        for _ in range(1 + number % 5):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(bytes(data[: chance.randrange(len(data)) if number % 3 == 0 else len(data)]))
        with contextlib.suppress(InputError, SchemaError):
            import_trace(path)


RECORD = """
import tensorflow as tf, sys
f = tf.function(lambda x: tf.nn.relu(tf.linalg.matmul(x, x)))
x = tf.random.normal((32, 32)); f(x)
tf.profiler.experimental.start(sys.argv[1])
for number in range(3):
    with tf.profiler.experimental.Trace("step", step_num=number, _r=1):
        f(x)
tf.profiler.experimental.stop()
"""


@pytest.mark.slow
def test_a_profile_that_tensorflow_has_recorded(tmp_path):
    pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", RECORD, str(tmp_path)], check=True, env=environ, capture_output=True)
    run = import_trace(tmp_path)
    operators = run["operators"].dataset
    named = dict(zip(table_of(operators, "name"), table_of(operators, "type"), strict=True))
    assert {"MatMul", "_MklMatMul", "_FusedMatMul", "_MklNativeFusedMatMul"} & set(named.values())
    assert run["passes"]["measured_iterations"].values.tolist() == [3]
    of_ops = operators["iteration"].values[np.array(table_of(operators, "category")) == "tf_op"]
    assert set(of_ops.tolist()) == {0, 1, 2}
    # a nanosecond since 1970 of this decade
    anchor = run.attrs["clock_anchor_unix_ns"] + int(run["passes"]["anchor_ns"].values[0])
    assert 1.7e18 < anchor < 4e18
