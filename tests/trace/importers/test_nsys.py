"""Exports of Nsight Systems, made here by its documented schema; none of them was recorded on a device."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.errors import InputError, SchemaError
from mlscope_lab.trace.events import table_of
from mlscope_lab.trace.importers import detect_format, import_trace

PROCESS = 4037 << 24
THREAD = PROCESS | 4038
TABLES = {
    "StringIds": "id INTEGER PRIMARY KEY, value TEXT NOT NULL",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, "
                                   "globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, "
                                   "returnValue INTEGER NOT NULL, callchainId INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
                                  "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, "
                                  "globalPid INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, "
                                  "registersPerThread INTEGER NOT NULL, gridX INTEGER NOT NULL, "
                                  "gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL, blockX INTEGER NOT NULL, "
                                  "blockY INTEGER NOT NULL, "
                                  "blockZ INTEGER NOT NULL, staticSharedMemory INTEGER NOT NULL, "
                                  "dynamicSharedMemory INTEGER NOT NULL",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
                                  "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, "
                                  "globalPid INTEGER, bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
                                  "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, "
                                  "globalPid INTEGER, value INTEGER NOT NULL, bytes INTEGER NOT NULL",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
                                           "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, "
                                           "correlationId INTEGER, globalPid INTEGER, syncType INTEGER NOT NULL",
    "NVTX_EVENTS": "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, text TEXT, textId INTEGER, "
                   "globalTid INTEGER",
    "TARGET_INFO_GPU": "id INTEGER NOT NULL, name TEXT",
    "TARGET_INFO_SESSION_START_TIME": "utcEpochNs INTEGER, utcTime TEXT, localTime TEXT",
}  # fmt: skip
ROWS = {
    "StringIds": [(1, "gemm<float>(int)"), (2, "gemm"), (3, "cudaLaunchKernel_v7000"), (4, "forward"),
                  (5, "cudaMemcpyAsync_v3020"), (6, "cuLaunchKernel")],
    "CUPTI_ACTIVITY_KIND_RUNTIME": [
        (100, 110, 0, THREAD, 7, 3, 0, None), (112, 118, 1, THREAD, 8, 6, 0, None),
        (85, 90, 0, THREAD, 6, 5, 0, None), (300, 310, 0, (5000 << 24) | 1, 7, 3, 0, None),
    ],
    "CUPTI_ACTIVITY_KIND_KERNEL": [
        (150, 190, 0, 1, 7, 8, PROCESS, 1, 2, 32, 4, 2, 1, 128, 1, 1, 16, 1024),
        (120, 150, 0, 1, 7, 7, PROCESS, 1, 2, 32, 4, 1, 1, 128, 1, 1, 0, 1024),
        (320, 330, 1, 1, 9, 7, 5000 << 24, 1, 2, 32, 4, 1, 1, 128, 1, 1, 0, 0),
        (400, 410, 1, 1, 9, 99, 5000 << 24, 1, 2, 32, 4, 1, 1, 128, 1, 1, 0, 0),
    ],
    "CUPTI_ACTIVITY_KIND_MEMCPY": [(90, 95, 0, 1, 7, 6, PROCESS, 4096, 1)],
    "CUPTI_ACTIVITY_KIND_MEMSET": [(96, 98, 0, 1, 7, 5, PROCESS, 0, 512)],
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": [(180, 200, 0, 1, 7, 11, PROCESS, 3)],
    "NVTX_EVENTS": [(80, 200, 59, None, 4, THREAD), (90, None, 34, "here", None, THREAD),
                    (95, None, 59, "never ends", None, THREAD), (0, None, 75, "a category", None, THREAD)],
    "TARGET_INFO_GPU": [(0, "Tesla V100-SXM2-16GB"), (1, "Tesla V100-SXM2-16GB")],
    "TARGET_INFO_SESSION_START_TIME": [(1_795_574_691_949_847_285, "", "")],
}  # fmt: skip


def export(path, tables=TABLES, rows=ROWS, *, more=""):
    with sqlite3.connect(path) as connection:
        for name, columns in tables.items():
            connection.execute(f"CREATE TABLE {name} ({columns})")
            for row in rows.get(name, ()):
                connection.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(row))})", row)
        connection.executescript(more)
    connection.close()
    return path


def test_calls_kernels_copies_and_ranges(tmp_path):
    path = export(tmp_path / "report.sqlite")
    assert detect_format(path) == "nsys"
    run = import_trace(path)
    calls, kernels, notes = (run[group].dataset for group in ("runtime", "kernels", "annotations"))
    assert table_of(calls, "name") == ["cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaLaunchKernel"]
    assert table_of(calls, "category") == ["cuda_runtime", "cuda_driver", "cuda_runtime", "cuda_runtime"]
    assert table_of(calls, "thread")[0] == "4037/4038"
    assert table_of(kernels, "name") == ["Memcpy HtoD", "Memset", *["gemm<float>(int)"] * 4]
    assert table_of(kernels, "category") == ["gpu_memcpy", "gpu_memset", *["kernel"] * 4]
    start = run["passes"]["anchor_ns"].values[0]
    assert start == 80
    np.testing.assert_array_equal(kernels["start_ns"] + start, [90, 96, 120, 150, 320, 400])
    np.testing.assert_array_equal(kernels["duration_ns"], [5, 2, 30, 40, 10, 10])
    np.testing.assert_array_equal(kernels["size_bytes"], [4096, 512, -1, -1, -1, -1])
    np.testing.assert_array_equal(kernels["grid_y"], [-1, -1, 1, 2, 1, 1])
    np.testing.assert_array_equal(kernels["shared_memory_bytes"], [-1, -1, 1024, 1040, 0, 0])
    # the same correlation in another process is another launch; one has none
    np.testing.assert_array_equal(kernels["runtime_index"], [2, -1, 0, 1, 3, -1])
    np.testing.assert_array_equal(run["links"]["target_index"], [0, 2, 3, 4])
    assert dict(zip(table_of(notes, "name"), table_of(notes, "category"), strict=True)) == {
        "forward": "nvtx", "here": "nvtx_mark", "Stream synchronization": "cuda_sync",
    }  # fmt: skip
    assert run.attrs["clock_anchor_unix_ns"] == 1_795_574_691_949_847_285
    assert run.attrs["environment"] == {"gpus": ["Tesla V100-SXM2-16GB"] * 2}
    assert run["passes"]["dropped_events"].values.tolist() == [1]
    assert run.attrs["warnings"] == ["1 events without a start or an end were left out"]
    assert "operators" in run.attrs["unavailable"]


def test_an_older_export_has_fewer_tables_and_columns(tmp_path):
    tables = {
        "StringIds": TABLES["StringIds"],
        "CUPTI_ACTIVITY_KIND_RUNTIME": "start INT, end INT, globalTid INT, correlationId INT, nameId INT",
        "CUPTI_ACTIVITY_KIND_KERNEL": "start INT, end INT, deviceId INT, streamId INT, correlationId INT, "
        "shortName INT",
    }
    rows = {
        "StringIds": ROWS["StringIds"],
        "CUPTI_ACTIVITY_KIND_RUNTIME": [(100, 110, THREAD, 7, 3)],
        "CUPTI_ACTIVITY_KIND_KERNEL": [(120, 150, 0, 7, 7, 2)],
    }
    run = import_trace(export(tmp_path / "old.sqlite", tables, rows))
    assert table_of(run["kernels"].dataset, "name") == ["gemm"]
    assert run["kernels"]["runtime_index"].values.tolist() == [0]
    assert run["kernels"]["registers"].values.tolist() == [-1]
    assert "annotations" not in run.children
    assert run.attrs["clock_anchor_unix_ns"] == 0


def test_nothing_is_written_beside_a_database(tmp_path):
    path = export(tmp_path / "report.sqlite")
    before = path.read_bytes()
    path.chmod(0o400)
    import_trace(path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.sqlite"]
    assert path.read_bytes() == before


VIEW = "CREATE VIEW {name} AS SELECT 1 AS start, length(hex(zeroblob(100000000))) AS end, 0 AS nameId;"
HOSTILE = {
    "a view in the place of a table": (("CUPTI_ACTIVITY_KIND_RUNTIME",),
                                       VIEW.format(name="CUPTI_ACTIVITY_KIND_RUNTIME")),
    "a view of strings": (("StringIds",), "CREATE VIEW StringIds AS SELECT 1 AS id, load_extension('/x') AS value;"),
    "a virtual table": (("NVTX_EVENTS",), "CREATE VIRTUAL TABLE NVTX_EVENTS USING fts5(start, end);"),
    "an endless view": (("NVTX_EVENTS",),
                        "CREATE VIEW NVTX_EVENTS AS WITH RECURSIVE c(start) AS (SELECT 1 UNION ALL SELECT start + 1 "
                        "FROM c) SELECT start, start AS end FROM c;"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_database_would_run_is_never_reached(what, tmp_path):
    replaced, script = HOSTILE[what]
    tables = {name: columns for name, columns in TABLES.items() if name not in replaced}
    run = import_trace(export(tmp_path / "report.sqlite", tables, more=script))
    assert run["kernels"].sizes["kernel"] == 6
    if "NVTX_EVENTS" in replaced:
        assert table_of(run["annotations"].dataset, "category") == ["cuda_sync"]


def test_generated_columns_are_not_computed(tmp_path):
    columns = TABLES["NVTX_EVENTS"].replace("text TEXT", "text TEXT AS (hex(zeroblob(900000)))")
    rows = {**ROWS, "NVTX_EVENTS": [(80, 200, 59, 4, THREAD)]}
    run = import_trace(export(tmp_path / "report.sqlite", {**TABLES, "NVTX_EVENTS": columns}, rows))
    assert "forward" in table_of(run["annotations"].dataset, "name")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"CUPTI_ACTIVITY_KIND_KERNEL": [("now", 5, *[0] * 16)]}, "column start of .* holds 'now', not an integer"),
        ({"CUPTI_ACTIVITY_KIND_KERNEL": [(1, 5, 0.5, *[0] * 15)]}, "column deviceId of .* holds '0.5'"),
    ],
)
def test_wrong_types_are_named(rows, words, tmp_path):
    with pytest.raises(InputError, match=words):
        import_trace(export(tmp_path / "report.sqlite", rows={**ROWS, **rows}))


def test_impossible_times_are_counted_and_large_numbers_do_not_wrap(tmp_path):
    huge = 2**62
    kernels = [(5, 3, *[0] * 16), (-5, 3, *[0] * 16), (huge, huge + 1, *[0] * 16), (1, 2, 2**40, *[0] * 15)]
    run = import_trace(export(tmp_path / "report.sqlite", rows={"CUPTI_ACTIVITY_KIND_KERNEL": kernels}))
    assert run["passes"]["dropped_events"].values.tolist() == [3]
    assert run["kernels"]["device"].values.tolist() == [-1]


def test_a_database_without_events(tmp_path):
    empty = sqlite3.connect(tmp_path / "empty.sqlite")
    empty.execute("CREATE TABLE x (y)")
    empty.commit()
    empty.close()
    with pytest.raises(InputError, match="nsys profile --trace=cuda,nvtx"):
        import_trace(tmp_path / "empty.sqlite")
    (tmp_path / "report.nsys-rep").write_bytes(b"nothing")
    with pytest.raises(InputError, match="nsys export --type sqlite"):
        import_trace(tmp_path / "report.nsys-rep", format="nsys")
    broken = {"CUPTI_ACTIVITY_KIND_KERNEL": "begin INTEGER"}
    with pytest.raises(InputError, match="has no column start"):
        import_trace(export(tmp_path / "broken.sqlite", broken, {}))


def test_limits(tmp_path, monkeypatch):
    path = export(tmp_path / "report.sqlite")
    with pytest.raises(InputError, match=r"more than 1,000; .* max_bytes"):
        import_trace(path, max_bytes=1000)
    monkeypatch.setattr("mlscope_lab.trace.importers.nsys._MOST_ROWS", 8)
    with pytest.raises(InputError, match="more than 8 events"):
        import_trace(path)


def test_damaged_files_are_refused_or_read(tmp_path):
    whole = export(tmp_path / "report.sqlite").read_bytes()
    chance = random.Random(5)
    for number in range(40):
        data = bytearray(whole)
        for _ in range(60):
            data[chance.randrange(100, len(data))] = chance.randrange(256)
        damaged = Path(tmp_path / f"{number}.sqlite")
        damaged.write_bytes(bytes(data[: chance.randrange(2000, len(data)) if number % 2 else len(data)]))
        with contextlib.suppress(InputError, SchemaError):
            import_trace(damaged, format="nsys")
