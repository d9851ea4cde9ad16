from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import RunNotFoundError, SchemaError, StoreError
from mlscope_lab.store import Store, new_run_id
from mlscope_lab.testing import synthetic_pass
from mlscope_lab.trace.build import build_run


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def make_run(run_attrs):
    def make(**changed):
        passes = [synthetic_pass(level=level, iterations=6) for level in ("model", "layer")]
        return build_run(attrs=run_attrs(**changed), passes=passes)

    return make


def hidden(store):
    return [p.name for p in store.root.iterdir() if p.name.startswith(".")]


SAVER = textwrap.dedent("""
    import sys
    from mlscope_lab.store import Store, new_run_id
    from mlscope_lab.testing import synthetic_pass
    from mlscope_lab.trace.build import build_run

    ATTRS = {
        "created_at": "2026-11-22T00:30:00+00:00", "status": "complete", "model": "m", "model_digest": None,
        "backend": "onnxruntime", "backend_version": None, "device": "cpu", "precision": None, "batch_size": 1,
        "level": "layer", "seed": None, "threads": None, "isolation": "subprocess", "execution_mode": None,
        "executable_digest": None, "clock_anchor_unix_ns": 0, "environment": {}, "warnings": [], "unavailable": {},
    }

    def make(*levels):
        passes = [synthetic_pass(level=level, iterations=6) for level in levels or ("model", "layer")]
        return build_run(attrs={**ATTRS, "run_id": new_run_id()}, passes=passes)
""")


def start(body, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SAVER + textwrap.dedent(body), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_saved_run_comes_back_identical_and_lazy(store, make_run):
    run = make_run()
    run_id = store.save(run)
    assert run_id == run.attrs["run_id"]
    opened = store.open(run_id)
    assert not opened["layers"].dataset.variables["duration_ns"]._in_memory
    assert opened["layers"]["name"].dtype == object
    assert not opened["layers"].dataset.variables["name"]._in_memory
    xr.testing.assert_identical(opened, run)
    assert opened.mlscope.summary()["median_ns"] == run.mlscope.summary()["median_ns"]
    assert store.open(run_id)["layers"]["duration_ns"][2:5, ::-3].equals(run["layers"]["duration_ns"][2:5, ::-3])
    picked = store.open(run_id)["layers"]["duration_ns"].isel(layer=[5, 1, 1], layer_iteration=xr.DataArray([0, 2]))
    np.testing.assert_array_equal(picked, run["layers"]["duration_ns"].values[[0, 2]][:, [5, 1, 1]])


def test_xarray_itself_opens_a_stored_run(store, make_run):
    run = make_run()
    store.save(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with xr.open_datatree(store.path(), engine="zarr") as opened:
            xr.testing.assert_equal(opened["latency"].to_dataset(), run["latency"].to_dataset())
            assert list(opened["layers"]["name"].values) == list(run["layers"]["name"].values)
            assert opened.attrs == run.attrs


def test_text_survives_what_xarray_does_to_tables(store, make_run):
    store.save(make_run())
    layers = store.open()["layers"].to_dataset()
    table = layers[["name"]].assign_coords(layer=np.arange(12))
    assert table.reindex(layer=[0, 99])["name"].values[0] == "block0"
    xr.merge([table, table.isel(layer=slice(2, 4))], join="outer", compat="override")


def test_saving_twice_is_refused_and_keeps_the_first(store, make_run):
    run = make_run()
    store.save(run)
    with pytest.raises(StoreError, match="stored already"):
        store.save(run)
    xr.testing.assert_identical(store.open(), run)


def test_what_is_no_run_is_not_stored(store, make_run):
    run = make_run()
    run.attrs["run_id"] = "../../escaped"
    with pytest.raises(SchemaError, match="run_id"):
        store.save(run)
    assert not store.root.exists()
    run = make_run()
    run["outputs"] = xr.DataTree(xr.Dataset({"x": ("a", np.array([1, "b", None], dtype=object))}))
    with pytest.raises(StoreError, match="/outputs variable 'x' is an object array that holds int"):
        store.save(run)
    assert not store.root.exists()


def test_a_failed_run_is_stored_and_listed(store, run_attrs):
    failure = {"kind": "out_of_memory", "message": "killed by the kernel", "log": ["a", "b"]}
    run = build_run(attrs=run_attrs(status="failed", failure=failure), passes=[])
    store.save(run)
    xr.testing.assert_identical(store.open(), run)
    listed = store.runs(status="failed")
    assert list(listed.index) == [run.attrs["run_id"]]
    assert np.isnan(listed["predict_median_ns"].iloc[0])
    assert store.runs(status="complete").empty


def test_prefixes_and_latest(store, make_run):
    with pytest.raises(RunNotFoundError, match="holds no runs yet"):
        store.open()
    ids = ["20261120T000000Z-aaaaaaaa", "20261121T000000Z-00000000", "20261122T003000Z-ffffffff",
           "20261122T003000Z-11111111"]  # fmt: skip
    for run_id in ids:
        store.save(make_run(run_id=run_id))
        time.sleep(0.01)
    assert store.resolve("latest") == ids[-1]  # the same second: the one written last
    assert store.resolve("20261120") == ids[0]
    assert store.resolve(ids[2]) == ids[2]
    with pytest.raises(RunNotFoundError, match=r"4 runs begin with '2026112'.*write more"):
        store.open("2026112")
    with pytest.raises(RunNotFoundError, match="Did you mean '20261121T000000Z-00000000'"):
        store.open("20261121T000000Z-00000001")
    assert len(store) == 4


@given(st.text(max_size=30) | st.sampled_from(["", ".", "..", "../runs", "/etc", "index.sqlite", "*", "%", "\0"]))
def test_no_text_leads_out_of_the_folder(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp() / "escape" / "runs"
    (root / "20261122T003000Z-1a2b3c4d").mkdir(parents=True, exist_ok=True)
    (root / "index.sqlite").touch()
    try:
        found = Store(root).path(text)
    except RunNotFoundError:
        return
    assert found == root / "20261122T003000Z-1a2b3c4d"


def test_filters(store, make_run):
    made = {}
    for day, model, backend, batch in ((1, "a", "pytorch", 1), (2, "b", "pytorch", 8), (3, "a", "onnxruntime", 8)):
        run = make_run(model=model, backend=backend, batch_size=batch, created_at=f"2026-11-0{day}T23:30:00-01:00")
        made[store.save(run)] = day
    days = lambda **filters: [made[i] for i in store.runs(**filters).index]  # noqa: E731
    assert days() == [3, 2, 1]
    assert days(model="a") == [3, 1]
    assert days(model="a", backend="pytorch") == [1]
    assert days(model=["a", "b"], batch_size=8) == [3, 2]
    assert days(model=[]) == []
    assert days(limit=2) == [3, 2]
    # 23:30 an hour west of Greenwich is the next day in UTC
    assert days(since="2026-11-03") == [3, 2]
    assert days(until=date(2026, 11, 3)) == [2, 1]
    assert days(since="2026-11-03T00:30:00", until="2026-11-03T00:30:00+00:00") == [2]
    assert days(since=datetime(2026, 11, 4, tzinfo=UTC)) == [3]
    assert days(model="a' OR '1'='1") == []
    with pytest.raises(TypeError, match=r"no filter 'modell'.*Did you mean 'model'"):
        store.runs(modell="a")
    with pytest.raises(ValueError, match="since must be an ISO"):
        store.runs(since="now")
    with pytest.raises(ValueError, match="limit"):
        store.runs(limit=0)
    frame = store.runs()
    assert str(frame["created_at"].dt.tz) == "UTC"
    assert frame["predict_median_ns"].notna().all()


def test_an_empty_store_lists_nothing_and_makes_nothing(store):
    assert store.runs().empty
    assert store.rebuild() == 0
    assert store.size == 0
    assert not store.root.exists()


def test_delete(store, make_run):
    kept, gone = store.save(make_run()), store.save(make_run())
    size = store.size
    assert store.delete(gone) == gone
    assert list(store.runs().index) == [kept]
    assert store.size < size
    assert hidden(store) == []
    with pytest.raises(RunNotFoundError):
        store.open(gone)


def test_reading_a_deleted_run_says_so(store, make_run):
    store.save(make_run())
    opened = store.open()
    store.delete("latest")
    with pytest.raises(StoreError, match="deleted meanwhile"):
        opened["latency"]["predict_ns"].load()


def test_the_folder_is_the_truth(store, make_run, tmp_path):
    first, second = store.save(make_run()), store.save(make_run())
    shutil.move(store.root / first, tmp_path / first)
    assert list(store.runs().index) == [second]
    shutil.move(tmp_path / first, store.root / first)
    assert set(store.runs().index) == {first, second}
    assert store.rebuild() == 2


def test_a_damaged_folder_warns_and_is_left_out(store, make_run):
    good, bad, renamed = store.save(make_run()), store.save(make_run()), store.save(make_run())
    (store.root / bad / "zarr.json").write_text("{")
    elsewhere = store.root / "20200101T000000Z-00000000"
    (store.root / renamed).rename(elsewhere)
    (store.root / "index.sqlite").unlink()
    with pytest.warns(UserWarning, match="left out of the index") as caught:
        assert list(store.runs().index) == [good]
    assert {bad in str(w.message) or f"holds run {renamed}" in str(w.message) for w in caught} == {True}
    with pytest.raises(StoreError, match="is damaged"):
        store.open(bad)
    shutil.rmtree(elsewhere)
    for content, words in (("[]", "Zarr 3 group"), ('{"zarr_format": 3, "attributes": {}}', "consolidate_metadata"),
                           ('{"zarr_format": 3, "attributes": {}, "consolidated_metadata": {"metadata": {"a": {}}}}',
                            "is damaged")):  # fmt: skip
        (store.root / bad / "zarr.json").write_text(content)
        with pytest.raises(StoreError, match=words):
            store.open(bad)
    (store.root / bad / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"holds no zarr\.json"):
        store.open(bad)


@pytest.mark.parametrize("damage", ["missing", "rubbish", "empty", "foreign", "older", "truncated"])
def test_the_index_rebuilds_itself(store, make_run, damage):
    saved = {store.save(make_run()) for _ in range(3)}
    index = store.root / "index.sqlite"
    if damage == "missing":
        index.unlink()
    elif damage == "rubbish":
        index.write_bytes(b"not a database" * 100)
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "truncated":
        index.write_bytes(index.read_bytes()[:5000])
    else:
        with sqlite3.connect(index) as connection:
            connection.execute("PRAGMA user_version = 0" if damage == "older" else "PRAGMA application_id = 7")
        connection.close()
    assert set(store.runs().index) == saved
    if damage == "rubbish":
        index.write_bytes(b"again")
        saved.add(store.save(make_run()))
        assert set(store.runs().index) == saved


def test_a_locked_index_loses_no_run(store, make_run, monkeypatch):
    store.save(make_run())
    monkeypatch.setattr("mlscope_lab.store.index._BUSY_S", 0.05)
    with sqlite3.connect(store.root / "index.sqlite") as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.warns(UserWarning, match="stored, but not indexed yet"):
            run_id = store.save(make_run())
        with pytest.raises(StoreError, match="database is locked"):
            store.runs()
        connection.rollback()
    connection.close()
    assert run_id in store.runs().index


@pytest.mark.parametrize("when", [1, 40, 85])
def test_killed_in_the_middle_of_saving_leaves_the_store_whole(store, make_run, when):
    kept = store.save(make_run())
    victim = start("""
        import os, signal
        store, first, count = Store(sys.argv[1]), make(), 0
        sync = os.fsync
        def fatal(handle):
            global count
            count += 1
            if count == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)
        os.fsync = fatal
        store.save(first)
    """, store.root, when)  # fmt: skip
    _, errors = victim.communicate(timeout=600)
    assert victim.returncode == -signal.SIGKILL, errors
    assert list(store.runs().index) == [kept]
    assert len(hidden(store)) == 1
    store.rebuild()
    assert len(hidden(store)) == 1  # it could be another process's at work
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(store.root / hidden(store)[0], (long_ago, long_ago))
    store.save(make_run())
    assert hidden(store) == []


def test_an_interrupt_leaves_nothing(store, make_run, monkeypatch):
    calls = []

    def interrupted(handle):
        calls.append(handle)
        if len(calls) == 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(make_run())
    assert list(store.root.iterdir()) == []


def test_two_processes_save_at_once(store):
    body = """
        store = Store(sys.argv[1])
        for _ in range(20):
            print(store.save(make("model")))
    """
    savers = [start(body, store.root) for _ in range(2)]
    printed = set()
    for saver in savers:
        out, errors = saver.communicate(timeout=600)
        assert saver.returncode == 0, errors
        assert errors == ""
        printed |= set(out.split())
    assert len(printed) == 40
    with sqlite3.connect(store.root / "index.sqlite") as connection:
        assert {row[0] for row in connection.execute("SELECT run_id FROM runs")} == printed
    connection.close()
    assert set(store.runs().index) == printed
    assert hidden(store) == []
    for run_id in list(printed)[:3]:
        store.open(run_id).load()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_told_with_bytes_and_path(store, make_run):
    kept = store.save(make_run())
    # the kernel refuses to let a file grow beyond the limit, as a full disk refuses any
    saver = start("""
        import resource, signal
        from mlscope_lab.errors import StoreError
        run, store = make(), Store(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            store.save(run)
        except StoreError as error:
            print(error.errno, error)
    """, store.root)  # fmt: skip
    out, errors = saver.communicate(timeout=600)
    assert saver.returncode == 0, errors
    assert "could not be stored in" in out
    assert str(store.root) in out
    assert "bytes in" in out
    assert "make room" in out
    assert hidden(store) == []
    assert list(store.runs().index) == [kept]


def _mounted(folder: Path) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path, make_run):
    small = tmp_path / "small"
    if not _mounted(small):
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(StoreError, match=r"No space left on device; make room, or choose another folder"):
            Store(small / "runs").save(make_run())
        assert list((small / "runs").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_store_that_cannot_be_written(tmp_path, make_run):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="check the folder"):
        Store(tmp_path / "file" / "runs").save(make_run())
    with pytest.raises(StoreError, match="cannot be listed"):
        Store(tmp_path / "file").open()


def test_ids_sort_by_time():
    early = new_run_id()
    late = f"{datetime.now(UTC) + timedelta(seconds=2):%Y%m%dT%H%M%SZ}-00000000"
    assert early < late
