from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlscope_lab.artifacts import fetch
from mlscope_lab.errors import ArtifactError, DigestError, DownloadError, OfflineError
from mlscope_lab.manifest.common import HubLocation, UrlLocation

BODY = random.Random(0).randbytes(1_500_000)


@pytest.fixture
def location(server, sha):
    server.route("/models/net.onnx", body=BODY, etag='"v1"')
    return UrlLocation(url=server.url + "/models/net.onnx", sha256=sha(BODY))


def part_of(settings, location) -> Path:
    return settings.cache / "partial" / f"{location.sha256}.part"


def leave_part(settings, location, data: bytes) -> None:
    part_of(settings, location).parent.mkdir(parents=True)
    part_of(settings, location).write_bytes(data)


def final_files(settings) -> list[Path]:
    return [p for p in (settings.cache / "artifacts").rglob("*") if p.is_file()]


def test_download_is_checked_cached_and_named_like_the_original(server, settings, location):
    seen = []
    got = fetch(location, settings=settings, progress=lambda *a: seen.append(a))
    assert got.path == settings.cache / "artifacts" / location.sha256 / "net.onnx"
    assert got.path.read_bytes() == BODY
    assert (got.digest, got.size_bytes, got.from_cache) == (f"sha256:{location.sha256}", len(BODY), False)
    assert seen[-1] == (len(BODY), len(BODY), "net.onnx")
    again = fetch(location, settings=replace(settings, offline=True))
    assert again.from_cache
    assert again.path == got.path
    assert len(server.requests) == 1
    assert not list((settings.cache / "partial").iterdir())


def test_other_name_for_cached_bytes_needs_no_download(server, settings, location):
    fetch(location, settings=settings)
    got = fetch(location, settings=settings, filename="other name.pt")
    assert got.path.name == "other_name.pt"
    assert got.path.read_bytes() == BODY
    assert got.from_cache
    assert len(server.requests) == 1


def test_damaged_cache_is_fetched_again(server, settings, location):
    path = fetch(location, settings=settings).path
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    got = fetch(location, settings=settings)
    assert got.path.read_bytes() == BODY
    assert not got.from_cache
    assert len(server.requests) == 2


def test_wrong_digest_names_both_and_keeps_nothing(server, settings, sha):
    server.route("/a.onnx", body=b"other bytes")
    wrong = UrlLocation(url=server.url + "/a.onnx", sha256=sha(BODY))
    with pytest.raises(DigestError) as caught:
        fetch(wrong, settings=settings)
    for part in (sha(BODY), sha(b"other bytes"), server.url + "/a.onnx"):
        assert part in str(caught.value)
    assert final_files(settings) == []
    assert not part_of(settings, wrong).exists()


def test_cut_connection_goes_on_where_it_ended(server, settings, location):
    server.routes["/models/net.onnx"].cuts = [600_000, 300_000]
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=600000-", "bytes=900000-"]
    assert [h.get("If-Range") for _, h in server.requests] == [None, '"v1"', '"v1"']


def test_connection_that_ends_without_length_is_noticed_by_its_digest(server, settings, location):
    server.route("/models/net.onnx", body=BODY, send_length=False, cuts=[1000])
    with pytest.raises(DigestError):
        fetch(location, settings=settings)


def test_server_without_ranges_begins_again(server, settings, location):
    server.route("/models/net.onnx", body=BODY, ranges=False, cuts=[700_000])
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=700000-"]


def test_server_with_a_wrong_range_begins_again(server, settings, location):
    server.routes["/models/net.onnx"].cuts = [700_000]
    server.routes["/models/net.onnx"].wrong_range = True
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=700000-", None]


def test_content_changed_between_attempts_is_fetched_whole(server, settings, location, sha):
    leave_part(settings, location, b"x" * 1000)
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == ["bytes=1000-", None]


def test_changed_etag_makes_the_server_send_all(server, settings, location):
    route = server.routes["/models/net.onnx"]
    route.cuts = [500]
    route.statuses = []
    original = route.body
    route.body, route.etag = b"y" * len(BODY), '"old"'

    def swap(done: int, total: int | None, what: str) -> None:
        route.body, route.etag = original, '"new"'

    assert fetch(location, settings=settings, progress=swap).path.read_bytes() == BODY
    assert [h.get("If-Range") for _, h in server.requests] == [None, '"old"']


def test_complete_part_needs_no_more_bytes(server, settings, location):
    leave_part(settings, location, BODY)
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == [f"bytes={len(BODY)}-"]


def test_part_longer_than_the_file_is_dropped(server, settings, location):
    leave_part(settings, location, BODY + b"more")
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == [f"bytes={len(BODY) + 4}-", None]


def test_server_errors_that_pass_are_tried_again(server, settings, location):
    server.routes["/models/net.onnx"].statuses = [500, 503, 429]
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert len(server.requests) == 4


def test_server_errors_that_stay_give_up_and_keep_what_came(server, settings, location):
    server.routes["/models/net.onnx"].cuts = [1000]
    server.routes["/models/net.onnx"].statuses = []

    def fail_from_now_on(done: int, total: int | None, what: str) -> None:
        server.routes["/models/net.onnx"].statuses = [502] * 50

    with pytest.raises(DownloadError, match=r"502.*gave up after 5 attempts.*the 1,000 bytes that came are kept"):
        fetch(location, settings=settings, progress=fail_from_now_on)
    assert part_of(settings, location).read_bytes() == BODY[:1000]
    assert final_files(settings) == []


@pytest.mark.parametrize(
    ("status", "word"), [(404, "revision in the manifest"), (403, "HF_TOKEN"), (410, "taken away")]
)
def test_final_answers_are_not_tried_again(server, settings, location, status, word):
    server.routes["/models/net.onnx"].statuses = [status] * 9
    with pytest.raises(DownloadError, match=f"{status}.*{word}"):
        fetch(location, settings=settings)
    assert len(server.requests) == 1


def test_silent_server_times_out(server, settings, location, monkeypatch):
    monkeypatch.setattr("mlscope_lab.artifacts.download.ATTEMPTS", 2)
    server.routes["/models/net.onnx"].hang = True
    before = time.monotonic()
    with pytest.raises(DownloadError, match=r"(?i)timed out.*gave up after 2 attempts"):
        fetch(location, settings=replace(settings, download_timeout_s=0.2))
    assert 0.4 <= time.monotonic() - before < 5
    assert len(server.requests) == 2


def test_server_that_stops_in_the_middle_times_out_and_is_resumed(server, settings, location):
    route = server.routes["/models/net.onnx"]
    route.gate, route.gate_after = threading.Event(), 400_000

    def no_gate(done: int, total: int | None, what: str) -> None:
        route.gate = None

    stuck = route.gate
    assert (
        fetch(location, settings=replace(settings, download_timeout_s=0.5), progress=no_gate).path.read_bytes() == BODY
    )
    stuck.set()
    assert server.ranges()[0] is None
    assert server.ranges()[1].startswith("bytes=")


def test_nobody_listening(settings, sha, monkeypatch):
    monkeypatch.setattr("mlscope_lab.artifacts.download.BACKOFF_S", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/x\.onnx"):
        fetch(UrlLocation(url="http://127.0.0.1:9/x.onnx", sha256=sha(b"")), settings=settings)


def test_offline_names_the_way_out(server, settings, location):
    with pytest.raises(OfflineError, match=r"MLSCOPE_OFFLINE=0.*put the file at .*net\.onnx"):
        fetch(location, settings=replace(settings, offline=True))
    assert server.requests == []


def test_file_put_by_hand_is_taken_after_a_check(server, settings, location):
    place = settings.cache / "artifacts" / location.sha256 / "net.onnx"
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    assert fetch(location, settings=replace(settings, offline=True)).from_cache
    place.write_bytes(b"wrong")
    with pytest.raises(OfflineError):
        fetch(location, settings=replace(settings, offline=True))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,hello"])
def test_redirect_to_another_scheme_is_refused(server, settings, location, target):
    server.routes["/models/net.onnx"].location = target
    with pytest.raises(DownloadError, match="not http or https"):
        fetch(location, settings=settings)


def test_redirects_are_followed_and_counted(server, settings, sha):
    server.route("/end.bin", body=BODY)
    server.route("/a", location="/b")
    server.route("/b", location=server.url + "/end.bin")
    assert fetch(UrlLocation(url=server.url + "/a", sha256=sha(BODY)), settings=settings).path.read_bytes() == BODY
    server.route("/loop", location="/loop")
    with pytest.raises(DownloadError, match="more than 5 redirects"):
        fetch(UrlLocation(url=server.url + "/loop", sha256=sha(b"z")), settings=settings)


@pytest.mark.parametrize("send_length", [True, False])
def test_size_limit_holds_whether_or_not_the_server_says_the_size(server, settings, location, send_length):
    server.route("/models/net.onnx", body=BODY, send_length=send_length)
    with pytest.raises(ArtifactError, match="MLSCOPE_MAX_ARTIFACT_BYTES"):
        fetch(location, settings=replace(settings, max_artifact_bytes=1_000_000))
    assert not part_of(settings, location).exists()


def test_file_that_does_not_fit_the_disk_is_refused_at_once(server, settings, location):
    server.routes["/models/net.onnx"].length = 10**15
    with pytest.raises(
        ArtifactError, match=r"disk is full.*1,000,000,000,000,000 more bytes in .*partial.*MLSCOPE_HOME"
    ):
        fetch(location, settings=replace(settings, max_artifact_bytes=10**16))
    assert not part_of(settings, location).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_disk_that_fills_while_downloading(server, settings, location):
    part_of(settings, location).parent.mkdir(parents=True)
    part_of(settings, location).symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match=r"disk is full: .*net\.onnx needs 1,500,000 more bytes in .*partial"):
        fetch(location, settings=settings)
    assert not part_of(settings, location).is_symlink()
    assert final_files(settings) == []


def test_hub_address_and_token_go_to_the_chosen_hub_only(server, settings, sha, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    path = "/some/model/resolve/main/onnx/model%20a.onnx"
    server.route(path, body=BODY)
    location = HubLocation(
        repository="some/model", file="onnx/model a.onnx", revision="main", endpoint=server.url, sha256=sha(BODY)
    )
    fetch(location, settings=settings)
    assert "Authorization" not in server.requests[-1][1], "a manifest's endpoint must not get the token of another hub"

    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    elsewhere = server.url.replace("127.0.0.1", "localhost") + "/cdn"
    server.route("/cdn", body=b"gated")
    server.route("/some/model/resolve/main/gated.onnx", location=elsewhere)
    fetch(location.model_copy(update={"file": "gated.onnx", "sha256": sha(b"gated")}), settings=settings)
    (first, with_token), (second, without) = server.requests[-2:]
    assert (first, second) == ("/some/model/resolve/main/gated.onnx", "/cdn")
    assert with_token["Authorization"] == "Bearer secret"
    assert "Authorization" not in without

    fetch(UrlLocation(url=server.url + path, sha256=sha(BODY)), settings=replace(settings, home=settings.home / "2"))
    assert "Authorization" not in server.requests[-1][1]


def test_messages_hide_secrets_of_the_address(server, settings, sha):
    url = server.url.replace("http://", "http://user:pass@") + "/none.onnx?token=abc"
    with pytest.raises(DownloadError) as caught:
        fetch(UrlLocation(url=url, sha256=sha(b"")), settings=settings)
    assert "pass" not in str(caught.value)
    assert "abc" not in str(caught.value)


SCRIPT = """
import sys
from pathlib import Path
from mlscope_lab.artifacts import fetch
from mlscope_lab.config import Settings
from mlscope_lab.manifest.common import UrlLocation
got = fetch(UrlLocation(url=sys.argv[1], sha256=sys.argv[2]), settings=Settings(home=Path(sys.argv[3])),
            progress=lambda done, total, what: print(done, what, flush=True))
print("done", got.from_cache, flush=True)
"""


def start(location, settings) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, location.url, location.sha256, str(settings.home)]
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_is_resumed_by_the_next(server, settings, location, sent):
    route = server.routes["/models/net.onnx"]
    route.gate, route.gate_after = threading.Event(), 786_432
    process = start(location, settings)
    for line in process.stdout:
        if line.startswith("786432 "):
            break
    process.send_signal(sent)
    process.communicate(timeout=600)
    assert process.returncode != 0
    assert final_files(settings) == []
    route.gate.set()
    assert fetch(location, settings=settings).path.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=786432-"]


def test_two_processes_download_once(server, settings, location):
    route = server.routes["/models/net.onnx"]
    route.gate, route.gate_after = threading.Event(), 786_432
    first = start(location, settings)
    assert first.stdout.readline()
    second = start(location, settings)
    assert "waiting for another process" in second.stdout.readline()
    route.gate.set()
    assert "done False" in first.communicate(timeout=600)[0]
    assert second.communicate(timeout=600)[0].strip() == "done True"
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.requests) == 1


def test_two_threads_download_once(server, settings, location):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(location, settings=settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.path.read_bytes() == BODY for r in results] == [True] * 4
    assert len(server.requests) == 1
